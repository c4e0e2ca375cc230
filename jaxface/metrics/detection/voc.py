"""PASCAL VOC's average precision."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxface.checks import OpenFraction, check_number
from jaxface.metrics.detection.images import pair_iou, predicted_regions, true_regions


class VocScores(NamedTuple):
    """Average precision and the curves that it is of."""

    mean: float  # over the classes that occur
    per_class: np.ndarray  # [C]; NaN of a class without an object that counts
    recall: list[np.ndarray]  # of each class, one value per detection, by falling score
    precision: list[np.ndarray]


def voc_evaluate(
    predictions: Sequence[Mapping],
    ground_truth: Sequence[Mapping],
    *,
    num_classes: int = 1,
    iou_threshold: float = 0.5,
    eleven_points: bool = False,
    legacy_coordinates: bool = False,
) -> VocScores:
    """Average precision of PASCAL VOC.

    A detection goes to the object of its best IoU; where that is below the threshold, or the object has been taken by a
    better one, it is false, without a second choice. A difficult object is not counted, nor a detection that goes to it.

        2007: AP = mean over r = 0, 0.1, …, 1 of max precision at recall ≥ r       2010: area under the envelope

    Args:
      predictions, ground_truth: of every image, as the tables in `jaxface.metrics.detection` say.
      num_classes: C.
      iou_threshold: matched from it on.
      eleven_points: VOC 2007's mean; the area otherwise.
      legacy_coordinates: boxes name their last pixel, so that a side is x1 - x0 + 1, as in the VOC development kit.

    Raises:
      UserError: the images are not as the tables say, or a number is out of range.

    Example:
      >>> truth = [{"boxes": [[0, 0, 10, 10], [20, 20, 30, 30]]}]
      >>> found = [{"boxes": [[0, 0, 10, 10], [40, 40, 50, 50]], "scores": [0.9, 0.8]}]
      >>> voc_evaluate(found, truth).mean
      0.5
    """
    check_number("iou_threshold", iou_threshold, OpenFraction)
    predicted = predicted_regions(predictions, num_classes=num_classes)
    truth = true_regions(ground_truth, num_classes=num_classes, images=len(predicted), flags=("difficult",))
    recalls, precisions, scores = [], [], np.full(num_classes, np.nan)
    for kind in range(num_classes):
        outcomes, confidences, total = [], [], 0
        for found, real in zip(predicted, truth, strict=True):
            of_kind = real.classes == kind
            difficult = real.flags["difficult"][of_kind]
            total += int(np.sum(~difficult))
            mine = found.classes == kind
            order = np.argsort(-found.scores[mine], kind="stable")
            iou = pair_iou(found.boxes[mine][order], real.boxes[of_kind], inclusive=legacy_coordinates)
            outcomes.append(_outcomes(iou, difficult, iou_threshold))
            confidences.append(found.scores[mine][order])
        outcome = np.concatenate(outcomes)
        outcome = outcome[np.argsort(-np.concatenate(confidences), kind="stable")]
        true, false = np.cumsum(outcome == 1), np.cumsum(outcome == 0)
        recalls.append(true / max(total, 1))
        precisions.append(true / np.maximum(true + false, 1))
        if total:
            scores[kind] = interpolated_precision(recalls[-1], precisions[-1], eleven_points=eleven_points)
    mean = float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")
    return VocScores(mean, scores, recalls, precisions)


def interpolated_precision(
    recall: np.ndarray, precision: np.ndarray, *, eleven_points: bool = False
) -> float:
    """Area under the falling envelope of precision over recall, or its mean at recall 0, 0.1, …, 1.

    Args:
      recall, precision: [K], by falling score; recall does not fall. K may be 0.
    """
    if eleven_points:
        return float(
            np.mean([precision[recall >= level].max(initial=0.0) for level in np.linspace(0, 1, 11)])
        )
    recall = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope[1:]))


def _outcomes(iou: np.ndarray, difficult: np.ndarray, threshold: float) -> np.ndarray:
    """1 true, 0 false, -1 not counted, of detections [D] by falling score, from their IoU [D, G]."""
    if not iou.shape[1]:
        return np.zeros(len(iou), np.int8)
    best = iou.argmax(axis=1)
    hit = iou.max(axis=1) >= threshold
    outcome = np.zeros(len(iou), np.int8)
    outcome[hit & difficult[best]] = -1
    counted = np.flatnonzero(hit & ~difficult[best])
    _, first = np.unique(best[counted], return_index=True)
    outcome[counted[first]] = 1
    return outcome
