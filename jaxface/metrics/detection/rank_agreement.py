"""Whether two detectors order the anchors of an object alike.

Methods: rm_pfi
"""

import math

import numpy as np

from jaxface.checks import index_array, real_array


def rank_agreement(student: np.ndarray, teacher: np.ndarray, objects: np.ndarray) -> dict[str, float]:
    """How a student orders the anchors of each object, against its teacher.

        kendall = mean over objects of the mean over pairs i < k of sign(s_i - s_k) sign(t_i - t_k)
        top1    = share of objects whose best anchor is the same

    Objects with one anchor have no order and are left out; a tie is no order either.

    Args:
      student, teacher: [N] float, scores of the anchors that are assigned to an object.
      objects: [N] integers ≥ 0, which one.

    Returns:
      `kendall` in [-1, 1], `top1` in [0, 1], both nan without an object of two anchors, and `objects`, how many there are.

    Raises:
      ValueError: shapes. UserError: no anchor, or a score that is not finite.

    Example:
      >>> report = rank_agreement(np.array([0.9, 0.5, 0.1]), np.array([0.8, 0.1, 0.3]), np.array([0, 0, 0]))
      >>> round(report["kendall"], 3), report["top1"], report["objects"]
      (0.333, 1.0, 1)
    """
    student, teacher = real_array("student", student, ndim=1), real_array("teacher", teacher, ndim=1)
    if student.shape != teacher.shape:
        raise ValueError(f"teacher: needs shape {student.shape}, got {teacher.shape}")
    objects = index_array("objects", objects, len(student), 1 << 62)
    order = np.argsort(objects, kind="stable")
    _, starts = np.unique(objects[order], return_index=True)
    kendall, first = [], []
    for rows in np.split(order, starts[1:]):
        if len(rows) < 2:
            continue
        s, t = student[rows], teacher[rows]
        signs = np.sign(s[:, None] - s) * np.sign(t[:, None] - t)
        kendall.append(signs.sum() / (len(rows) * (len(rows) - 1)))
        first.append(s.argmax() == t.argmax())
    mean = {
        name: float(np.mean(values)) if values else math.nan
        for name, values in (("kendall", kendall), ("top1", first))
    }
    return {**mean, "objects": len(first)}
