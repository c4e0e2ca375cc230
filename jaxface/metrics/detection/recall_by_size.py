"""Recall of objects by their size, and how many detections are wrong, at one threshold of the score."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxface.errors import UserError
from jaxface.metrics.detection.images import pair_iou, predicted_regions, true_regions


def recall_by_size(
    predictions: Sequence[Mapping],
    ground_truth: Sequence[Mapping],
    *,
    edges: Sequence[float] = (16.0, 32.0, 64.0),
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    num_classes: int = 1,
) -> dict[str, float]:
    """How a detector does at the threshold that it is used at.

    In the order of falling scores, a detection of at least `score_threshold` takes, of its class's objects that no better one
    took, the one of the largest IoU, if that is at least `iou_threshold`; else it is false, unless a crowd covers it by as much
    of its area. The size of an object is the square root of its area.

    Args:
      predictions, ground_truth: of every image, as the tables in `jaxface.metrics.detection` say.
      edges: between the sizes, pixels, increasing.
      score_threshold: of detections that count. iou_threshold: of a hit.
      num_classes: C.

    Returns:
      `recall`, `recall_below_16`, `recall_16_to_32`, …, `recall_from_64` (nan where no object is of that size), `precision` (nan
      without a detection) and `false_positives`, of an image.

    Raises:
      UserError: edges that do not increase, or images that are not as the tables say.

    Example:
      >>> truth = [{"boxes": [[0, 0, 10, 10], [20, 20, 60, 60]]}]
      >>> found = [{"boxes": [[20, 20, 60, 58], [70, 70, 80, 80]], "scores": [0.9, 0.6]}]
      >>> report = recall_by_size(found, truth, edges=(16,))
      >>> report["recall"], report["recall_below_16"], report["recall_from_16"], report["false_positives"]
      (0.5, 0.0, 1.0, 1.0)
    """
    if any(low >= high for low, high in itertools.pairwise(edges)) or not edges or edges[0] <= 0:
        raise UserError(f"edges: needs increasing numbers above 0, got {tuple(edges)}")
    predicted = predicted_regions(predictions, num_classes=num_classes)
    truth = true_regions(ground_truth, num_classes=num_classes, images=len(predicted), flags=("crowd",))
    sizes, hit, right, wrong = [], [], 0, 0
    for found, real in zip(predicted, truth, strict=True):
        keep = np.flatnonzero(found.scores >= score_threshold)
        keep = keep[np.argsort(-found.scores[keep], kind="stable")]
        crowd = real.flags["crowd"]
        overlap = pair_iou(found.boxes[keep], real.boxes)
        overlap[found.classes[keep][:, None] != real.classes] = 0.0
        covered = _covered(found.boxes[keep], real.boxes[crowd])
        free = ~crowd
        for row in range(len(keep)):
            candidates = np.where(free, overlap[row], 0.0)
            best = int(candidates.argmax()) if candidates.size else -1
            if best >= 0 and candidates[best] >= iou_threshold:
                free[best] = False
                right += 1
            elif covered[row] < iou_threshold:
                wrong += 1
        sizes.append(_size(real.boxes[~crowd]))
        hit.append(~free[~crowd])
    size, found_it = np.concatenate(sizes), np.concatenate(hit)
    bounds = [0.0, *edges, math.inf]
    names = [
        f"below_{high:g}" if low == 0 else f"from_{low:g}" if high == math.inf else f"{low:g}_to_{high:g}"
        for low, high in itertools.pairwise(bounds)
    ]
    report = {"recall": _share(found_it)}
    for name, (low, high) in zip(names, itertools.pairwise(bounds), strict=True):
        report[f"recall_{name}"] = _share(found_it[(size >= low) & (size < high)])
    report["precision"] = right / (right + wrong) if right + wrong else math.nan
    report["false_positives"] = wrong / len(predicted)
    return report


def _size(boxes: np.ndarray) -> np.ndarray:
    return np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _covered(boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """[N]: the largest share of each box that a region covers; 0 without regions."""
    low = np.maximum(boxes[:, None, :2], crowd[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], crowd[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    return (shared / np.maximum(area, 1e-9)[:, None]).max(axis=1, initial=0.0)
