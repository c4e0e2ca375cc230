"""Whether a detector orders the anchors of objects as its teacher does, on images that it never saw.

Methods: rm_pfi
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import metrics
from jaxface.boxes import assigned_rows, paired_iou
from jaxface.data.sources.source import Source, Subset
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.models.detection import RetinaNet
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.recognition import statistics
from jaxface.training.step import TrainState

_FIELDS = ("image", "image_size", "boxes", "box_mask", "box_label", "box_crowd")


class RankAgreement:
    """Agreement of the orders that a student and its teacher give the anchors of every object (`metrics.rank_agreement`).

    Reported are `ranks/kendall` and `ranks/top1` of the scores of the object's class, `ranks/box_kendall` and `ranks/box_top1` of
    the overlap of the decoded boxes with the object. The student's targets say which anchors are an object's.

    Args:
      student, teacher: detectors of the same anchors; the student's parameters are the part `detector` of the state's.
      teacher_variables: state -> variables of the teacher's module.
      source: records of images with objects.
      batch_size: images at a time.
      most: anchors of an image that are looked at, of more the first.

    Raises:
      UserError: no record.
    """

    def __init__(
        self,
        student: RetinaNet,
        teacher: RetinaNet,
        teacher_variables: Callable[[TrainState], Mapping],
        source: Source,
        *,
        batch_size: int = 32,
        most: int = 512,
    ):
        check_not_empty(source)
        self.teacher_variables, self.source, self.batch_size = teacher_variables, source, batch_size
        self._scores = jax.jit(functools.partial(_scores, student=student, teacher=teacher, most=most))

    def __call__(self, state: TrainState) -> dict[str, float]:
        variables = {
            "student": {"params": state.averaged_params["detector"], **statistics(state.extra)},
            "teacher": self.teacher_variables(state),
        }
        buckets = getattr(self.source, "buckets", np.zeros(len(self.source), np.int32))
        parts, objects = [], 0
        for bucket in np.unique(buckets):
            numbers = np.flatnonzero(buckets == bucket)
            scores, assigned = map_source(
                self._scores,
                Subset(self.source, numbers),
                variables,
                batch_size=self.batch_size,
                fields=_FIELDS,
            )
            ids = objects + np.arange(len(numbers))[:, None] * (assigned.max() + 1) + assigned
            objects = int(ids.max()) + 1
            parts.append((scores[assigned > 0], ids[assigned > 0]))
        scores, ids = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        if not len(ids):
            return {}
        report = {}
        for prefix, student, teacher in (("", 0, 1), ("box_", 2, 3)):
            agreement = metrics.rank_agreement(scores[:, student], scores[:, teacher], ids)
            report |= {f"ranks/{prefix}{name}": agreement[name] for name in ("kendall", "top1")}
        return {name: value for name, value in report.items() if not np.isnan(value)}


def _scores(variables, batch, *, student: RetinaNet, teacher: RetinaNet, most: int):
    """Scores [B, K, 4] of the first K anchors that are an object's, (student, teacher) by class, then by fit; assigned [B, K]."""
    batch = {**batch, "image": normalize_pixels(batch["image"])}
    size = batch["image"].shape[1:3]
    assigned, labels, _ = student.targets(batch)
    assigned, rows = jax.lax.top_k(jnp.where(assigned > 0, assigned, 0), min(most, assigned.shape[1]))
    labels = jnp.maximum(jnp.take_along_axis(labels, rows, axis=1) - 1, 0)
    by_class, by_fit = [], []
    for name, detector in (("student", student), ("teacher", teacher)):
        outputs = detector.module.apply(variables[name], batch["image"], train=False)
        logits = jnp.take_along_axis(outputs["class_logits"], rows[..., None], axis=1)
        by_class.append(jnp.take_along_axis(logits, labels[..., None], axis=2)[..., 0])
        decoded = jnp.take_along_axis(detector.decode(outputs, size), rows[..., None], axis=1)
        by_fit.append(paired_iou(decoded, jax.vmap(assigned_rows)(assigned, batch["boxes"])))
    return jnp.stack([*by_class, *by_fit], axis=-1), assigned
