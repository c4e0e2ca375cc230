"""How alike two networks see the relations between the same records.

Methods: cckd
"""

import numpy as np

from jaxface import checks


def congruence_error(student, teacher) -> float:
    """Mean squared difference of the cosine matrices of two sets of embeddings of the same records.

        1/N² Σ_{i,j} ( cos(f_i^s, f_j^s) - cos(f_i^t, f_j^t) )² = ( ‖F_sᵀF_s‖² - 2 ‖F_sᵀF_t‖² + ‖F_tᵀF_t‖² ) / N²

    with F of normalized rows and Frobenius norms: no N × N matrix is made.

    Args:
      student: [N, D_s] float; normalized here, a zero vector stays zero.
      teacher: [N, D_t] float.

    Returns:
      A number in [0, 4]: 0 where all angles between records are the same.

    Raises:
      ValueError: not matrices of as many rows. UserError: empty or not finite.

    Example:
      >>> teacher = np.eye(2)
      >>> congruence_error(teacher[::-1], teacher), round(congruence_error(np.ones((2, 2)), teacher), 3)
      (0.0, 0.5)
    """
    student, teacher = (
        checks.real_array(name, values, ndim=2).astype(np.float64)
        for name, values in (("student", student), ("teacher", teacher))
    )
    if len(student) != len(teacher):
        raise ValueError(f"student, teacher: need the same records, got {student.shape} and {teacher.shape}")
    s, t = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (student, teacher))
    total = np.sum((s.T @ s) ** 2) - 2 * np.sum((s.T @ t) ** 2) + np.sum((t.T @ t) ** 2)
    return float(max(total, 0.0) / len(s) ** 2)
