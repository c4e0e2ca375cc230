"""What becomes of pseudo boxes that are wrong: which anchors they make positive, and what tells how wrong they are.

Methods: pseco
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from jaxface import boxes
from jaxface.checks import Fraction, NonNegative, check_number
from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.losses.pseco import limit_assigned, pcv_weights, pla_assign
from jaxface.models.detection import RetinaNet
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.recognition import statistics
from jaxface.training.step import TrainState

GUIDE = "guide"
"""Name in `extra` of the variables of the detector whose detections are the pseudo boxes."""
_FIELDS = ("image", "image_size", "boxes", "box_mask", "box_crowd")
_RULES = ("overlap", "predictions", "overlap_as_few")


class _Counts(NamedTuple):
    positives: jax.Array  # [B, 3] anchors that a rule makes positive
    right: jax.Array  # [B, 3] of these, anchors that overlap an object
    voted: jax.Array  # [B, D] whether a pseudo box has a vote
    votes: jax.Array  # [B, D] its vote
    scores: jax.Array  # [B, D] its score
    truth: jax.Array  # [B, D] its IoU with an object


class AssignmentNoise:
    """How well anchors are assigned to a teacher's detections, after these are moved at random, on images with known objects.

    Three rules choose the positive anchors of a pseudo box: an overlap of half with it (`overlap`), the teacher's predictions
    (`predictions`, `pla_assign`), and the best overlaps, as many for each pseudo box as that rule has (`overlap_as_few`). For
    each the evaluation says `precision`, the share of positives that overlap an object by half, and `positives` per pseudo box.
    Of the pseudo boxes it says how their scores (`score`) and the student's votes (`vote`, `pcv_weights`) rank them, by
    Spearman's correlation with the IoU that each has with an object.

    The moves are independent of the teacher's predictions, which suits these rules best. Without moves the two share their
    errors: a pseudo box is one of the predictions that it is compared with.

    Args:
      teacher: its variables are `extra["guide"]`. student: its parameters are the part `detector` of the state's.
      source: images with objects.
      jitter: standard deviation of the moves of each side, in widths and heights of the box, ≥ 0.
      score_threshold: of detections that become pseudo boxes.
      seed: of the moves.

    Raises:
      UserError: no record, a number out of its range, or a student of other anchors or classes.
    """

    def __init__(
        self,
        teacher: RetinaNet,
        student: RetinaNet,
        source: Source,
        *,
        jitter: float = 0.0,
        score_threshold: float = 0.4,
        batch_size: int = 100,
        seed: int = 0,
    ):
        check_not_empty(source)
        check_number("jitter", jitter, NonNegative)
        check_number("score_threshold", score_threshold, Fraction)
        if (teacher.anchor_spec, teacher.num_classes) != (student.anchor_spec, student.num_classes):
            raise UserError("teacher: needs the student's anchors and classes")
        self.teacher, self.student, self.source, self.batch_size = teacher, student, source, batch_size
        self._measure = functools.partial(
            _measure, teacher=teacher, student=student, jitter=jitter, threshold=score_threshold, seed=seed
        )

    def __call__(self, state: TrainState) -> dict[str, float]:
        student = {"params": state.averaged_params["detector"], **statistics(state.extra)}
        counts = map_source(
            self._measure,
            self.source,
            (state.extra[GUIDE], student),
            batch_size=min(self.batch_size, len(self.source)),
            fields=_FIELDS,
        )
        pseudo = max(int((counts.scores > 0).sum()), 1)
        report = {}
        for rule, positives, right in zip(_RULES, counts.positives.sum(0), counts.right.sum(0), strict=True):
            report[f"{rule}/precision"] = float(right / max(positives, 1))
            report[f"{rule}/positives"] = float(positives / pseudo)
        voted = counts.voted
        report["pseudo/overlap"] = float(counts.truth[counts.scores > 0].sum() / pseudo)
        if voted.sum() > 2:
            for name, values in (("score", counts.scores), ("vote", counts.votes)):
                report[f"{name}/correlation"] = float(spearmanr(values[voted], counts.truth[voted]).statistic)
        return {f"assignment/{name}": value for name, value in report.items() if np.isfinite(value)}


@functools.partial(jax.jit, static_argnames=("teacher", "student", "jitter", "threshold", "seed"))
def _measure(variables, batch, *, teacher, student, jitter, threshold, seed) -> _Counts:
    image = normalize_pixels(batch["image"])
    size = image.shape[1:3]
    found = teacher.module.apply(variables[0], image, train=False)
    answers = student.module.apply(variables[1], image, train=False)
    detections = teacher.detect(
        found, size, valid_size=batch["image_size"], score_threshold=threshold, max_outputs=16
    )
    anchors = jnp.asarray(teacher.anchors(size))
    teacher_boxes, student_boxes = teacher.decode(found, size), student.decode(answers, size)
    teacher_scores = jax.nn.sigmoid(found["class_logits"])

    def of_image(number, teacher_boxes, scores, student_boxes, detected, objects, real, limits):
        moves = jitter * jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), (16, 4))
        sides = jnp.tile(detected.boxes[:, 2:] - detected.boxes[:, :2], 2)
        moved = detected.boxes + moves * sides
        # A side that moves beyond the other one takes its place.
        first, last = jnp.minimum(moved[:, :2], moved[:, 2:]), jnp.maximum(moved[:, :2], moved[:, 2:])
        pseudo = boxes.clip_boxes(jnp.concatenate([first, last], axis=1), limits)
        overlap = boxes.max_iou_assign(
            anchors, pseudo, detected.valid, positive=0.5, negative=0.5, low_quality=False
        )
        predicted = pla_assign(
            teacher_boxes, scores, boxes.box_area(anchors), pseudo, detected.classes, detected.valid
        )
        counts = jnp.sum(predicted == jnp.arange(1, 17)[:, None], axis=1)
        ious = boxes.box_iou(anchors, pseudo)
        as_few = limit_assigned(
            overlap, jnp.max(jnp.where(detected.valid, ious, 0.0), axis=1), counts, most=12
        )
        inside = jnp.where(real, boxes.box_iou(anchors, objects), 0.0).max(axis=1) >= 0.5
        rules = jnp.stack([overlap, predicted, as_few]) > 0
        weights = pcv_weights(student_boxes, predicted, pseudo, jnp.ones(len(anchors), bool))
        votes = jnp.zeros(17).at[predicted].max(weights)[1:]
        truth = jnp.where(real, boxes.box_iou(pseudo, objects), 0.0).max(axis=1)
        return _Counts(
            rules.sum(axis=1),
            (rules & inside).sum(axis=1),
            (counts > 0) & detected.valid,
            votes,
            detected.scores,
            jnp.where(detected.valid, truth, 0.0),
        )

    real = batch["box_mask"] & ~batch["box_crowd"]
    return jax.vmap(of_image)(
        batch["position"],
        teacher_boxes,
        teacher_scores,
        student_boxes,
        detections,
        batch["boxes"],
        real,
        batch["image_size"],
    )
