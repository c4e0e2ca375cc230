"""The two curves of FDDB, whose faces are ellipses."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxface.errors import UserError
from jaxface.extras import optional
from jaxface.metrics.detection.images import predicted_regions, true_regions


class FddbScores(NamedTuple):
    """True positive rates of the pooled set.

    Attributes:
      discrete: false positives -> share of the faces that are matched with an IoU above ½.
      continuous: false positives -> sum of the matched IoU over the number of faces.
      thresholds: [K] distinct scores, falling; the curves below have a point for each.
      false_positives: [K] detections that are in no pair of an IoU above ½.
      discrete_rates, continuous_rates: [K].
    """

    discrete: dict[int, float]
    continuous: dict[int, float]
    thresholds: np.ndarray
    false_positives: np.ndarray
    discrete_rates: np.ndarray
    continuous_rates: np.ndarray


def fddb_evaluate(
    predictions: Sequence[Mapping],
    ground_truth: Sequence[Mapping],
    *,
    false_positives: Sequence[int] = (284, 1000, 2000),
) -> FddbScores:
    """Discrete and continuous true positive rates of FDDB (UMass technical report UM-CS-2010-009).

    At every score threshold the detections and faces of an image are paired, one to one, so that the sum of their IoU is the
    largest. Regions overlap as sets of pixels, whose centers are at (column + ½, row + ½). Boxes are compared as they are:
    nothing stretches them to ellipses.

    Args:
      predictions, ground_truth: of every image, as the tables in `jaxface.metrics.detection` say; faces have `ellipses`, or
        `boxes` where that is all there is.
      false_positives: over the whole set, at which rates are reported: those of the lowest threshold that allows no more.

    Returns:
      The rates and the curves. Without a detection the rates are 0.

    Raises:
      UserError: the images are not as the tables say, or there is no face.

    Example:
      >>> truth = [{"ellipses": [[20, 10, 0, 50, 40]]}]
      >>> found = [{"boxes": [[30, 30, 50, 70], [0, 0, 8, 8]], "scores": [0.9, 0.3]}]
      >>> scores = fddb_evaluate(found, truth, false_positives=(0, 1))
      >>> scores.discrete, round(scores.continuous[0], 2)
      ({0: 1.0, 1: 1.0}, 0.79)
    """
    predicted = predicted_regions(predictions, num_classes=1, ellipses=True)
    truth = true_regions(ground_truth, num_classes=1, images=len(predicted), ellipses=True)
    faces = sum(len(image.boxes) for image in truth)
    if not faces:
        raise UserError("ground_truth: needs at least one face")
    levels, steps = [np.zeros(0)], [np.zeros((0, 3))]
    for found, real, image in zip(predicted, truth, ground_truth, strict=True):
        order = np.argsort(-found.scores, kind="stable")
        overlap = region_iou(found.boxes[order], real.boxes, image_size=image.get("image_size"))
        levels.append(found.scores[order])
        steps.append(_steps(overlap))
    level, step = np.concatenate(levels), np.concatenate(steps)
    order = np.argsort(-level, kind="stable")
    level, totals = level[order], np.cumsum(step[order], axis=0)
    last = np.flatnonzero(np.diff(level, append=-np.inf))  # of equal scores the last: they come together
    false, discrete, continuous = totals[last].T
    discrete, continuous = discrete / faces, continuous / faces

    def at(rates: np.ndarray) -> dict[int, float]:
        reached = {limit: np.flatnonzero(false <= limit) for limit in false_positives}
        return {limit: float(rates[index[-1]]) if index.size else 0.0 for limit, index in reached.items()}

    return FddbScores(
        discrete=at(discrete),
        continuous=at(continuous),
        thresholds=level[last],
        false_positives=np.rint(false).astype(np.int64),
        discrete_rates=discrete,
        continuous_rates=continuous,
    )


def region_iou(a: np.ndarray, b: np.ndarray, *, image_size: tuple[int, int] | None = None) -> np.ndarray:
    """IoU [N, M] float64 of regions as sets of pixels.

    Args:
      a: [N, 4] boxes or [N, 5] ellipses. b: [M, 4] or [M, 5], as the tables in `jaxface.metrics.detection` say.
      image_size: (height, width) to which they are cut; None does not.
    """
    result = np.zeros((len(a), len(b)))
    if not result.size:
        return result
    windows_a, windows_b = _windows(a, image_size), _windows(b, image_size)
    sides = windows_a[:, 2:] - windows_a[:, :2]
    masks_a = [_mask(*pair) for pair in zip(a, windows_a, strict=True)] if a.shape[1] == 5 else None
    areas_a = sides[:, 0] * sides[:, 1] if masks_a is None else np.array([mask.sum() for mask in masks_a])
    for column, (region, window) in enumerate(zip(b, windows_b, strict=True)):
        mask = _mask(region, window)
        # What the two windows share, in coordinates of the window of `region`; empty where they share nothing.
        first = np.maximum(windows_a[:, :2], window[:2]) - window[:2]
        last = np.maximum(np.minimum(windows_a[:, 2:], window[2:]) - window[:2], first)
        if masks_a is None:  # all pixels of a box's window are in the box: sums over rectangles
            sums = np.pad(mask.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
            first, last = np.minimum(first, mask.shape), np.minimum(last, mask.shape)
            (y0, x0), (y1, x1) = first.T, last.T
            common = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
        else:
            shift = windows_a[:, :2] - window[:2]
            common = np.array(
                [
                    np.sum(_part(mask, *corners) & _part(other, *(corners - by)))
                    for other, by, corners in zip(
                        masks_a, shift, np.stack([first, last], axis=1), strict=True
                    )
                ]
            )
        result[:, column] = common / np.maximum(areas_a + mask.sum() - common, 1)
    return result


def _windows(regions: np.ndarray, image_size: tuple[int, int] | None) -> np.ndarray:
    """[N, 4] integers: the pixels of each box, or some around each ellipse, in the image."""
    if regions.shape[1] == 5:
        major, minor, angle, x, y = regions.T
        height = np.hypot(major * np.sin(angle), minor * np.cos(angle))
        width = np.hypot(major * np.cos(angle), minor * np.sin(angle))
        regions = np.stack([y - height, x - width, y + height, x + width], axis=1)
    windows = np.ceil(regions - 0.5).astype(np.int64)  # the first center at or after a side
    if image_size is not None:
        windows = np.clip(windows, 0, np.tile(np.asarray(image_size, np.int64), 2))
    return windows


def _mask(region: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Which pixels of its window have their center in the region: all, of a box."""
    if region.size == 4:
        return np.ones(window[2:] - window[:2], bool)
    major, minor, angle, x, y = region
    rows = np.arange(window[0], window[2])[:, None] + 0.5 - y
    columns = np.arange(window[1], window[3])[None] + 0.5 - x
    along, across = (
        columns * np.cos(angle) + rows * np.sin(angle),
        rows * np.cos(angle) - columns * np.sin(angle),
    )
    return (along / major) ** 2 + (across / minor) ** 2 <= 1


def _part(mask: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    return mask[first[0] : last[0], first[1] : last[1]]


def _steps(overlap: np.ndarray) -> np.ndarray:
    """What each detection [D], by falling score, adds to (false positives, matched faces, sum of IoU); each [D, 3]."""
    linear_sum_assignment = optional("scipy.optimize", "detection").linear_sum_assignment
    totals = np.zeros((len(overlap) + 1, 3))
    for count in range(1, len(overlap) + 1):
        if overlap[count - 1].any():
            rows, columns = linear_sum_assignment(overlap[:count], maximize=True)
            paired = overlap[rows, columns]
            matched = int(np.sum(paired > 0.5))
            totals[count] = count - matched, matched, paired.sum()
        else:  # it touches no face: the pairs are those of before
            totals[count] = totals[count - 1] + (1, 0, 0)
    return np.diff(totals, axis=0)
