"""Average precision of WIDER FACE, step by step as its evaluation code."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxface.checks import AtLeast, OpenFraction, check_number
from jaxface.errors import UserError
from jaxface.metrics.detection.images import Regions, pair_iou, predicted_regions, true_regions
from jaxface.metrics.detection.voc import interpolated_precision

SUBSETS = ("easy", "medium", "hard")


def wider_face_evaluate(
    predictions: Sequence[Mapping],
    ground_truth: Sequence[Mapping],
    *,
    subsets: Sequence[str] = SUBSETS,
    iou_threshold: float = 0.5,
    thresholds: int = 1000,
) -> dict[str, float]:
    """Average precision on the faces that each list keeps (arXiv:1511.06523).

    Scores are stretched to [0, 1] over the whole set. In each image a detection, by falling score, goes to the face of its
    best IoU, of inclusive pixels (a side is x1 - x0 + 1). From `iou_threshold` on: where the list does not keep that face the
    detection counts neither way; a kept face that nobody had is recalled; a kept face for the second time is a false positive.
    Below, the detection is a false positive. Precision and recall are taken at the scores 1 - t / thresholds, t = 1 … thresholds;
    AP is the area under the falling envelope. Detections in images without a face are not counted, as in the official code.

    Args:
      predictions, ground_truth: of every image, as the tables in `jaxface.metrics.detection` say.
      subsets: keys of the ground truth, [G] bool: the faces of each list.
      iou_threshold: matched from it on. thresholds: how many points the curve has.

    Returns:
      Subset -> average precision; 0 where nothing is recalled.

    Raises:
      UserError: the images are not as the tables say, or a list keeps no face at all.

    Example:
      >>> truth = [{"boxes": [[10, 10, 30, 30], [50, 50, 54, 54]], "easy": [True, False], "hard": [True, True]}]
      >>> found = [{"boxes": [[10, 10, 30, 30]], "scores": [0.9]}]
      >>> wider_face_evaluate(found, truth, subsets=("easy", "hard"))
      {'easy': 1.0, 'hard': 0.5}
    """
    check_number("iou_threshold", iou_threshold, OpenFraction)
    check_number("thresholds", thresholds, AtLeast(1))
    predicted = predicted_regions(predictions, num_classes=1)
    truth = true_regions(ground_truth, num_classes=1, images=len(predicted), flags=subsets, needs_flags=True)
    scores = _stretched(np.concatenate([image.scores for image in predicted]))
    starts = np.cumsum([0, *(image.scores.size for image in predicted)])
    counted = {subset: [] for subset in subsets}  # of each image, +1 for a detection that counts
    recalled = {subset: [] for subset in subsets}
    values = []
    for image, (found, real) in enumerate(zip(predicted, truth, strict=True)):
        if not len(real.boxes) or not len(found.boxes):
            continue
        order = np.argsort(-found.scores, kind="stable")
        values.append(scores[starts[image] : starts[image + 1]][order])
        iou = pair_iou(found.boxes[order], real.boxes, inclusive=True)
        best, hit = iou.argmax(axis=1), iou.max(axis=1) >= iou_threshold
        for subset in subsets:
            on_kept, off_kept = _outcomes(best, hit, real, subset)
            counted[subset].append(~off_kept)
            recalled[subset].append(on_kept)
    levels = 1 - np.arange(1, thresholds + 1) / thresholds
    value = np.concatenate([*values, np.zeros(0)])
    order = np.argsort(-value, kind="stable")
    reached = np.searchsorted(-value[order], -levels, side="right")  # detections with a score ≥ the level
    result = {}
    for subset in subsets:
        total = sum(int(image.flags[subset].sum()) for image in truth)
        if not total:
            raise UserError(f"ground_truth: needs a face that '{subset}' keeps")
        detections, recalls = (
            np.concatenate([[0], np.cumsum(np.concatenate([*rows[subset], np.zeros(0, bool)])[order])])[
                reached
            ]
            for rows in (counted, recalled)
        )
        precision = np.divide(recalls, detections, out=np.zeros(thresholds), where=detections > 0)
        result[subset] = interpolated_precision(recalls / total, precision)
    return result


def _outcomes(best: np.ndarray, hit: np.ndarray, real: Regions, subset: str) -> tuple[np.ndarray, np.ndarray]:
    """Of detections by falling score: whether each is the first on a kept face, and whether it is on one that is not kept."""
    kept = real.flags[subset][best]
    on_kept = np.flatnonzero(hit & kept)
    _, first = np.unique(best[on_kept], return_index=True)
    recalled = np.zeros(best.size, bool)
    recalled[on_kept[first]] = True
    return recalled, hit & ~kept


def _stretched(scores: np.ndarray) -> np.ndarray:
    """Scores from 0 to 1; zeros where all are equal."""
    if not scores.size:
        return scores
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.zeros_like(scores)
