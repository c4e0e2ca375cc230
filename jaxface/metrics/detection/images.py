"""What is predicted and what is there, image by image, checked: the tables stand in `jaxface.metrics.detection`."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxface.errors import UserError


class Regions(NamedTuple):
    """Boxes or ellipses of one image."""

    boxes: np.ndarray  # [N, 4] float64 (y0, x0, y1, x1), or [N, 5] ellipses
    scores: np.ndarray  # [N] float64; zeros of ground truth
    classes: np.ndarray  # [N] int64
    flags: dict[str, np.ndarray]  # name -> [N], what the evaluation asked for


def predicted_regions(
    predictions: Sequence[Mapping], *, num_classes: int, ellipses: bool = False
) -> list[Regions]:
    """Detections of every image, those that are not valid left out, in the given order.

    Args:
      predictions: one dict per image.
      num_classes: C; classes are integers in [0, C).
      ellipses: whether `ellipses` may stand instead of `boxes`.

    Raises:
      UserError: a key is missing, a shape is another, a value is not finite, a box is inverted or a class out of range.
    """
    if num_classes < 1:
        raise UserError(f"num_classes: needs at least 1, got {num_classes}")
    images = []
    for index, image in enumerate(predictions):
        name = f"predictions[{index}]"
        boxes = _regions(name, image, ellipses)
        scores = _vector(name, image, "scores", len(boxes), np.float64)
        if not np.isfinite(scores).all():
            raise UserError(f"{name}['scores']: needs finite values, got {scores[~np.isfinite(scores)][0]}")
        classes = _classes(name, image, "classes", len(boxes), num_classes)
        if "valid" in image:
            valid = _vector(name, image, "valid", len(boxes), bool)
            boxes, scores, classes = boxes[valid], scores[valid], classes[valid]
        images.append(Regions(boxes, scores, classes, {}))
    return images


def true_regions(
    ground_truth: Sequence[Mapping],
    *,
    num_classes: int,
    images: int,
    flags: Sequence[str] = (),
    needs_flags: bool = False,
    ellipses: bool = False,
) -> list[Regions]:
    """What is there in every image.

    Args:
      ground_truth: one dict per image. num_classes, ellipses: as for `predicted_regions`.
      images: how many there are of predictions.
      flags: keys of [G] bool to read; False where one is left out, unless `needs_flags`.

    Raises:
      UserError: another number of images, or what `predicted_regions` refuses.
    """
    if len(ground_truth) != images:
        raise UserError(
            f"ground_truth: needs one entry for each of the {images} predictions, got {len(ground_truth)}"
        )
    if not images:
        raise UserError("predictions: needs at least one image, got none")
    result = []
    for index, image in enumerate(ground_truth):
        name = f"ground_truth[{index}]"
        boxes = _regions(name, image, ellipses)
        count = len(boxes)
        result.append(
            Regions(
                boxes,
                np.zeros(count),
                _classes(name, image, "labels", count, num_classes),
                {
                    flag: _vector(name, image, flag, count, bool)
                    if needs_flags or flag in image
                    else np.zeros(count, bool)
                    for flag in flags
                },
            )
        )
    return result


def real_vector(name: str, image: Mapping, key: str, count: int) -> np.ndarray:
    """`image[key]` as [count] finite float64 ≥ 0; a UserError names what is not."""
    values = _vector(name, image, key, count, np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise UserError(f"{name}['{key}']: needs finite values from 0")
    return values


def pair_iou(a: np.ndarray, b: np.ndarray, *, inclusive: bool = False) -> np.ndarray:
    """IoU [N, M] float64 of boxes a [N, 4] and b [M, 4]; 0 of two that are empty.

    Args:
      inclusive: sides are x1 - x0 + 1, as of boxes that name their last pixel.
    """
    more = float(inclusive)

    def area(boxes):
        return (boxes[:, 2] - boxes[:, 0] + more) * (boxes[:, 3] - boxes[:, 1] + more)

    first = np.maximum(a[:, None, :2], b[None, :, :2])
    last = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.maximum(last - first + more, 0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(a)[:, None] + area(b)[None] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _regions(name: str, image: Mapping, ellipses: bool) -> np.ndarray:
    if not isinstance(image, Mapping):
        raise UserError(f"{name}: needs a dict with boxes, got {type(image).__name__}")
    if ellipses and "ellipses" in image:
        values = _rows(name, image, "ellipses", 5)
        if (values[:, :2] <= 0).any():
            raise UserError(f"{name}['ellipses']: needs radii above 0")
        return values
    if "boxes" not in image:
        raise UserError(f"{name}: needs 'boxes', has {', '.join(map(repr, image)) or 'nothing'}")
    boxes = _rows(name, image, "boxes", 4)
    inverted = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    if inverted.any():
        listed = ", ".join(f"{value:g}" for value in boxes[inverted][0])
        raise UserError(f"{name}['boxes']: needs (y0, x0, y1, x1) with y0 <= y1 and x0 <= x1, got ({listed})")
    return boxes


def _rows(name: str, image: Mapping, key: str, columns: int) -> np.ndarray:
    values = np.asarray(image[key], np.float64)
    if values.size == 0:
        return np.zeros((0, columns))
    if values.ndim != 2 or values.shape[1] != columns:
        raise UserError(f"{name}['{key}']: needs shape [N, {columns}], got {values.shape}")
    if not np.isfinite(values).all():
        raise UserError(f"{name}['{key}']: needs finite values")
    return values


def _vector(name: str, image: Mapping, key: str, count: int, dtype: type) -> np.ndarray:
    if key not in image:
        raise UserError(f"{name}: needs '{key}', has {', '.join(map(repr, image))}")
    values = np.asarray(image[key])
    if values.shape != (count,) and not (values.size == 0 and count == 0):
        raise UserError(f"{name}['{key}']: needs {count} values, as boxes has, got shape {values.shape}")
    return values.reshape(-1).astype(dtype)


def _classes(name: str, image: Mapping, key: str, count: int, num_classes: int) -> np.ndarray:
    if key not in image:
        return np.zeros(count, np.int64)
    values = np.asarray(image[key])
    classes = _vector(name, image, key, count, np.int64)
    if values.size and (values.dtype.kind not in "iu" or classes.min() < 0 or classes.max() >= num_classes):
        raise UserError(
            f"{name}['{key}']: needs integers in [0, {num_classes}), got {values.dtype} {values.min()}..{values.max()}"
        )
    return classes
