"""COCO's average precision and recall, over `pycocotools`.

Its parameters, its `mask.iou` and its summary are used. Its loops, which visit every pair of a detection and an object at every
threshold and walk every curve in Python, are not: a detection meets only the objects that it overlaps by the least threshold.
A test holds all numbers to those of its `COCOeval`.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxface.extras import optional
from jaxface.metrics.detection.images import Regions, predicted_regions, real_vector, true_regions

NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


def coco_evaluate(
    predictions: Sequence[Mapping], ground_truth: Sequence[Mapping], *, num_classes: int = 1
) -> dict[str, float]:
    """The twelve numbers of the COCO detection task.

    AP is the mean of the interpolated precision over IoU 0.5 to 0.95 in steps of 0.05, 101 recalls and the classes that
    occur; AP50 and AP75 are at one IoU; AR is the mean recall with at most so many detections per image and class. Small is
    an area up to 32², large from 96² on.

    Args:
      predictions, ground_truth: of every image, as the tables in `jaxface.metrics.detection` say.
      num_classes: C.

    Returns:
      Name -> number in [0, 1], or -1 where no object is of that size.

    Raises:
      UserError: pycocotools is not installed, or the images are not as the tables say.

    Example:
      >>> truth = [{"boxes": [[10, 10, 60, 60]]}]
      >>> found = [{"boxes": [[10, 10, 60, 60], [0, 0, 5, 5]], "scores": [0.9, 0.4]}]
      >>> round(coco_evaluate(found, truth)["AP"], 6)
      1.0
    """
    mask = optional("pycocotools.mask", "detection")
    COCOeval = optional("pycocotools.cocoeval", "detection").COCOeval
    predicted = predicted_regions(predictions, num_classes=num_classes)
    truth = true_regions(ground_truth, num_classes=num_classes, images=len(predicted), flags=("crowd",))
    areas = [
        real_vector(f"ground_truth[{index}]", image, "area", len(regions.boxes)) if "area" in image else None
        for index, (image, regions) in enumerate(zip(ground_truth, truth, strict=True))
    ]
    evaluation = COCOeval(iouType="bbox")
    parameters = evaluation.params
    parameters.imgIds, parameters.catIds = list(range(len(predicted))), list(range(num_classes))
    ranges = np.array(parameters.areaRng)
    images = [
        _matched(found, real, given, ranges, parameters.iouThrs, parameters.maxDets[-1], mask.iou)
        for found, real, given in zip(predicted, truth, areas, strict=True)
    ]
    evaluation.eval = _curves(images, num_classes, parameters)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells the numbers
        evaluation.summarize()
    return dict(zip(NAMES, map(float, evaluation.stats), strict=True))


class _Image(NamedTuple):
    """What became of the detections of one image, sorted by class and falling score, in A ranges at T thresholds."""

    classes: np.ndarray  # [D]
    scores: np.ndarray  # [D]
    ranks: np.ndarray  # [D] among those of the class
    matched: np.ndarray  # [A, T, D] bool
    ignored: np.ndarray  # [A, T, D] bool
    object_classes: np.ndarray  # [G]
    object_ignored: np.ndarray  # [A, G] bool


def _matched(
    found: Regions,
    real: Regions,
    areas: np.ndarray | None,
    ranges: np.ndarray,
    thresholds: np.ndarray,
    most: int,
    iou: Callable,
) -> _Image:
    """The matching inside one image, `most` detections of a class at most."""
    order = np.lexsort((-found.scores, found.classes))
    classes = found.classes[order]
    ranks = np.arange(order.size) - np.searchsorted(classes, classes)
    order, classes, ranks = (values[ranks < most] for values in (order, classes, ranks))
    detections, objects = _xywh(found.boxes[order]), _xywh(real.boxes)
    low, high = ranges[:, :1], ranges[:, 1:]
    crowd = real.flags["crowd"]
    areas = objects[:, 2] * objects[:, 3] if areas is None else areas
    object_ignored = crowd | (areas < low) | (areas > high)
    matched = np.zeros((len(ranges), len(thresholds), len(order)), bool)
    ignored = np.zeros_like(matched)
    least = np.minimum(thresholds, 1 - 1e-10)
    for kind in np.intersect1d(real.classes, classes).tolist():
        those = np.flatnonzero(real.classes == kind)
        mine = slice(*np.searchsorted(classes, (kind, kind + 1)))
        ious = iou(detections[mine], objects[those], crowd[those].astype(np.uint8))
        overlap: dict[int, list[tuple[int, float]]] = {}
        for detection, other in np.argwhere(ious >= least.min()).tolist():
            overlap.setdefault(detection, []).append((other, float(ious[detection, other])))
        alike: dict[bytes, int] = {}  # ranges that ignore the same objects match alike
        for index, flags in enumerate(object_ignored[:, those] if overlap else ()):
            first = alike.setdefault(flags.tobytes(), index)
            if first == index:
                _match(overlap, flags, crowd[those], least, matched[index, :, mine], ignored[index, :, mine])
            else:
                matched[index, :, mine] = matched[first, :, mine]
                ignored[index, :, mine] = ignored[first, :, mine]
    sizes = detections[:, 2] * detections[:, 3]
    outside = (sizes < low) | (sizes > high)
    ignored |= ~matched & outside[:, None]
    return _Image(classes, found.scores[order], ranks, matched, ignored, real.classes, object_ignored)


def _curves(images: list[_Image], num_classes: int, parameters) -> dict:
    """Precision [T, R, C, A, M] and recall [T, C, A, M] of the set as `COCOeval.accumulate` leaves them; -1 for the absent."""
    classes, scores, ranks = (np.concatenate([image[field] for image in images]) for field in range(3))
    matched, ignored = (np.concatenate([image[field] for image in images], axis=2) for field in (3, 4))
    object_classes = np.concatenate([image.object_classes for image in images])
    counted = ~np.concatenate([image.object_ignored for image in images], axis=1)
    levels = parameters.recThrs
    shape = (len(parameters.iouThrs), num_classes, len(counted), len(parameters.maxDets))
    precision, recall = np.full((shape[0], len(levels), *shape[1:]), -1.0), np.full(shape, -1.0)
    for kind in np.unique(object_classes).tolist():
        order = np.flatnonzero(classes == kind)
        order = order[np.argsort(-scores[order], kind="stable")]
        for limit, most in enumerate(parameters.maxDets):
            mine = order[ranks[order] < most]
            for area, total in enumerate(counted[:, object_classes == kind].sum(axis=1)):
                if not total:
                    continue
                counts = ~ignored[area][:, mine]
                true = np.cumsum(matched[area][:, mine] & counts, axis=1, dtype=float)
                every = np.cumsum(counts, axis=1, dtype=float)
                recalls, precisions = true / total, true / (every + np.spacing(1))
                envelope = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
                envelope = np.pad(envelope, ((0, 0), (0, 1)))  # 0 past the last recall
                for threshold, row in enumerate(recalls):
                    at = np.searchsorted(row, levels, side="left")
                    precision[threshold, :, kind, area, limit] = envelope[threshold, at]
                    recall[threshold, kind, area, limit] = row[-1] if row.size else 0.0
    return {"precision": precision, "recall": recall}


def _match(
    overlap: dict[int, list[tuple[int, float]]],
    ignored_objects: np.ndarray,
    crowd: np.ndarray,
    thresholds: np.ndarray,
    matched: np.ndarray,
    ignored: np.ndarray,
) -> None:
    """Writes whether each detection is matched, and with an ignored object, at every threshold; both [T, D] bool.

    A detection takes, of the objects that are free or a crowd, the one of the largest IoU, of equal ones the last; one that
    counts goes before one that is ignored.

    Args:
      overlap: detection -> (object, IoU), of those that reach the least threshold.
    """
    ignores, crowds = ignored_objects.tolist(), crowd.tolist()
    in_order = [
        (detection, sorted(others, key=lambda o: ignores[o[0]])) for detection, others in overlap.items()
    ]
    for row, threshold in enumerate(thresholds.tolist()):
        taken = set()
        for detection, others in in_order:
            best, match = threshold, None
            for other, iou in others:
                if iou < best or (other in taken and not crowds[other]):
                    continue
                if match is not None and ignores[other] and not ignores[match]:
                    break
                best, match = iou, other
            if match is not None:
                taken.add(match)
                matched[row, detection] = True
                ignored[row, detection] = ignores[match]


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, 1::-1], (boxes[:, 2:] - boxes[:, :2])[:, ::-1]], axis=1)
