"""Log-average miss rate, the measure of pedestrian detection (Dollár et al. 2012; CityPersons, arXiv:1702.05693).

Methods: intern
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxface.checks import OpenFraction, check_number
from jaxface.errors import UserError
from jaxface.metrics.detection.images import pair_iou, predicted_regions, true_regions

POINTS = np.logspace(-2, 0, 9)
"""False positives per image at which the miss rate is read."""
_LEAST = 1e-10


def log_average_miss_rate(
    predictions: Sequence[Mapping], ground_truth: Sequence[Mapping], *, iou_threshold: float = 0.5
) -> float:
    """Geometric mean of the miss rate over false positives per image (FPPI) from 10^-2 to 1; lower is better.

        MR^-2 = exp( mean_p ln max(miss rate at the largest FPPI ≤ p, 1e-10) ),   p of 9 values even in the logarithm

    A detection takes the free object that it overlaps most, by falling score; one that overlaps none but a `crowd` region does
    not count. Where a curve has no point up to p, nothing is found there: the miss rate is 1.

    Args:
      predictions, ground_truth: of every image, as the tables in `jaxface.metrics.detection` say, of one class.
      iou_threshold: matched from it on; of a crowd region the share of the detection counts.

    Raises:
      UserError: the images are not as the tables say, no object, or a number out of its range.

    Example:
      >>> truth = [{"boxes": [[0, 0, 10, 10], [20, 20, 30, 30]]}]
      >>> log_average_miss_rate([{"boxes": [[0, 0, 10, 10]], "scores": [0.9]}], truth)
      0.5
    """
    check_number("iou_threshold", iou_threshold, OpenFraction)
    predicted = predicted_regions(predictions, num_classes=1)
    truth = true_regions(ground_truth, num_classes=1, images=len(predicted), flags=("crowd",))
    objects = sum(int(np.sum(~image.flags["crowd"])) for image in truth)
    if not objects:
        raise UserError("ground_truth: needs at least one object")
    outcomes, scores = [], []
    for found, real in zip(predicted, truth, strict=True):
        crowd = real.flags["crowd"]
        order = np.argsort(-found.scores, kind="stable")
        boxes = found.boxes[order]
        outcomes.append(_outcomes(boxes, real.boxes[~crowd], real.boxes[crowd], iou_threshold))
        scores.append(found.scores[order])
    score, outcome = np.concatenate(scores), np.concatenate(outcomes)
    order = np.argsort(-score, kind="stable")
    score, outcome = score[order], outcome[order]
    last = np.flatnonzero(np.diff(score, append=-np.inf))  # equal scores come together
    misses = 1 - np.cumsum(outcome == 1)[last] / objects
    fppi = np.cumsum(outcome == 0)[last] / len(predicted)
    rates = [misses[fppi <= point].min(initial=1.0) for point in POINTS]
    return float(np.exp(np.mean(np.log(np.maximum(rates, _LEAST)))))


def _outcomes(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray, threshold: float) -> np.ndarray:
    """1 true, 0 false, -1 not counted, of detections by falling score."""
    outcome = np.zeros(len(boxes), np.int8)
    free = np.ones(len(objects), bool)
    overlap = pair_iou(boxes, objects)
    sides = np.maximum(
        np.minimum(boxes[:, None, 2:], crowd[None, :, 2:])
        - np.maximum(boxes[:, None, :2], crowd[None, :, :2]),
        0,
    )
    area = np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), 1e-9)
    ignored = (np.prod(sides, axis=2) / area[:, None] >= threshold).any(axis=1)
    for i in range(len(boxes)):
        candidates = np.where(free, overlap[i], -1.0)
        if len(objects) and candidates.max() >= threshold:
            outcome[i] = 1
            free[candidates.argmax()] = False
        elif ignored[i]:
            outcome[i] = -1
    return outcome
