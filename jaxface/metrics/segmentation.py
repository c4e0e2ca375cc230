"""What is where: cells that hold something, and pixels of classes."""

import numpy as np

from jaxface import checks
from jaxface.errors import UserError


def average_precision(scores, truth) -> float:
    """Area under the curve of precision over recall, as a sum over its steps.

        AP = Σ_k (R_k - R_{k-1}) P_k,   k over the distinct scores, falling

    Equal scores are accepted together, so the order of what ties does not count. Scores that say nothing give the share of
    positives. (Detection benchmarks take another area; see `coco_evaluate`.)

    Args:
      scores: [N] or [..., ] float, higher where something is more likely; finite.
      truth: of the same shape, booleans or 0/1; at least one is 1.

    Raises:
      ValueError: shapes disagree or other values. UserError: empty, not finite, or no positive.

    Example:
      >>> average_precision([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0]).__round__(4)
      0.8333
    """
    scores = np.asarray(scores)
    if scores.shape != np.shape(truth):
        raise ValueError(f"truth: needs shape {scores.shape}, got {np.shape(truth)}")
    scores = checks.real_array("scores", scores.ravel(), ndim=1)
    truth = checks.truth_array("truth", np.ravel(truth), len(scores))
    positives = int(truth.sum())
    if not positives:
        raise UserError("truth: needs at least one positive, got none")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each distinct score
    right = np.cumsum(truth[order])[last]
    return float(np.sum(np.diff(right, prepend=0) / positives * (right / (last + 1))))


def pixel_confusion(predicted, labels, *, num_classes: int, ignored: int | None = 255) -> np.ndarray:
    """Counts [C, C] int64 of the pixels: row = true class, column = answer; add them up over a validation set.

    Args:
      predicted: integers of any shape in [0, C).
      labels: integers of the same shape in [0, C), or `ignored` where a pixel does not count.
      num_classes: C ≥ 1.
      ignored: label of pixels without a class; None where there are none.

    Raises:
      ValueError: shapes disagree, other than integers, or a class outside [0, C).

    Example:
      >>> pixel_confusion(np.array([[0, 1], [1, 1]]), np.array([[0, 1], [0, 255]]), num_classes=2).tolist()
      [[1, 1], [0, 1]]
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape:
        raise ValueError(f"labels: needs shape {predicted.shape}, got {labels.shape}")
    counted = np.ones(labels.shape, bool) if ignored is None else labels != ignored
    if not counted.any():
        return np.zeros((num_classes, num_classes), np.int64)
    labels = checks.index_array("labels", labels[counted], int(counted.sum()), num_classes)
    predicted = checks.index_array("predicted", predicted[counted], len(labels), num_classes)
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes * num_classes)
    return flat.reshape(num_classes, num_classes)


def class_iou(confusion) -> np.ndarray:
    """Intersection over union of every class.

        IoU_c = TP_c / (TP_c + FP_c + FN_c)

    Args:
      confusion: counts [C, C] over a whole validation set, row = true class, column = answer (`pixel_confusion`).

    Returns:
      [C] float64; NaN for a class that neither occurs nor is answered.

    Raises:
      ValueError: no square matrix of counts.

    Example:
      >>> class_iou(np.array([[3, 1], [0, 4]])).tolist()
      [0.75, 0.8]
    """
    counts = np.asarray(confusion)
    if (
        counts.ndim != 2
        or counts.shape[0] != counts.shape[1]
        or counts.dtype.kind not in "iu"
        or (counts < 0).any()
    ):
        raise ValueError(f"confusion: needs counts [C, C], got {counts.dtype} {counts.shape}")
    right = np.diag(counts).astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - right
    return np.where(union > 0, right / np.maximum(union, 1), np.nan)


def mean_iou(confusion) -> float:
    """Mean over the classes of `class_iou`; a class that neither occurs nor is answered does not count.

    (Public code counts such a class as 0; on ADE20K's 150 and PASCAL Context's 59 or 60 classes all occur.)

    Args:
      confusion: as `class_iou`.

    Raises:
      ValueError: no square matrix of counts. UserError: no pixel at all.

    Example:
      >>> mean_iou([[2, 0], [1, 1]]).__round__(4)
      0.5833
    """
    values = class_iou(confusion)
    if np.isnan(values).all():
        raise UserError("confusion: needs at least one pixel, got none")
    return float(np.nanmean(values))
