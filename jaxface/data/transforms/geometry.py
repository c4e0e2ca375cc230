"""Geometry that moves a whole record: pixels, depth, infrared, landmarks and boxes together.

Landmarks are (x, y) with pixel centers at integers. A box is (y0, x0, y1, x1) in the same coordinates.
"""

import cv2
import numpy as np

from jaxface.data.sources.images import Fit, fit_scale_offset, fit_square
from jaxface.data.sources.source import Record

MAPS = ("image", "depth", "infrared")  # the arrays of a record that are sampled over its pixels
# Left and right are image sides: after a flip the eyes and the mouth corners change places.
_MIRRORED = (1, 0, 2, 4, 3)


def flip(record: Record) -> Record:
    """Mirrors left and right; landmarks keep the template's order."""
    record = dict(record)
    width = record["image"].shape[1]
    for name in MAPS:
        if name in record:
            record[name] = cv2.flip(record[name], 1).reshape(record[name].shape)
    if "landmarks" in record:
        points = record["landmarks"][list(_MIRRORED)]
        record["landmarks"] = np.stack([width - 1 - points[:, 0], points[:, 1]], -1).astype(np.float32)
    if "boxes" in record:
        y0, x0, y1, x1 = np.moveaxis(record["boxes"], -1, 0)
        record["boxes"] = np.stack([y0, width - 1 - x1, y1, width - 1 - x0], -1).astype(np.float32)
    return record


def move_points(record: Record, scale: tuple[float, float], offset: tuple[float, float], size: int) -> Record:
    """x' = scale x + offset for landmarks and boxes, (x, y) pairs; boxes are clipped to the new size x size image."""
    record = dict(record)
    if "landmarks" in record:
        record["landmarks"] = (record["landmarks"] * np.float32(scale) + np.float32(offset)).astype(
            np.float32
        )
    if "boxes" in record:
        factors, shifts = np.float32(scale[::-1] * 2), np.float32(offset[::-1] * 2)
        moved = record["boxes"] * factors + shifts
        record["boxes"] = np.clip(moved, 0, size - 1).astype(np.float32)
    return record


def resize_square(record: Record, size: int, *, fit: Fit = "pad") -> Record:
    """`images.fit_square` for a whole record."""
    height, width = record["image"].shape[:2]
    if (height, width) == (size, size):
        return record
    scale_x, scale_y, offset_x, offset_y = fit_scale_offset(height, width, size, fit)
    moved = move_points(record, (scale_x, scale_y), (offset_x, offset_y), size)
    for name in MAPS:
        if name in moved:
            moved[name] = fit_square(moved[name], size, fit=fit)
    return moved


def window(record: Record, top: float, left: float, side: float) -> Record:
    """Cuts the square window [top, top + side) x [left, left + side) and brings it back to the image's size.

    The window may leave the image: the border pixels are repeated there.

    Args:
      record: with a square image [S, S, C].
      top, left, side: pixels; edges, so that (0, 0, S) is the image itself.
    """
    size = record["image"].shape[0]
    scale = size / side
    # A pixel's center lies half a pixel inside its edge.
    offset = tuple(scale * (0.5 - edge) - 0.5 for edge in (left, top))
    moved = move_points(record, (scale, scale), offset, size)
    matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]], np.float64)
    for name in MAPS:
        if name in moved:
            moved[name] = cv2.warpAffine(
                moved[name], matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            ).reshape(moved[name].shape)
    return moved


def rotate(record: Record, degrees: float) -> Record:
    """Turns a record around the center of its image, clockwise as seen; border pixels are repeated, boxes hold the turned ones.

    Args:
      record: with a square image [S, S, C].
      degrees: of either sign.
    """
    record, size = dict(record), record["image"].shape[0]
    center = (size - 1) / 2
    matrix = cv2.getRotationMatrix2D((center, center), -degrees, 1.0)
    for name in MAPS:
        if name in record:
            record[name] = cv2.warpAffine(
                record[name], matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            ).reshape(record[name].shape)
    if "landmarks" in record:
        record["landmarks"] = (record["landmarks"] @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
    if "boxes" in record:
        y0, x0, y1, x1 = np.moveaxis(np.asarray(record["boxes"], np.float64), -1, 0)
        corners = np.stack([np.stack(pair, -1) for pair in ((x0, y0), (x1, y0), (x0, y1), (x1, y1))], -2)
        turned = corners @ matrix[:, :2].T + matrix[:, 2]
        ends = np.concatenate([turned.min(axis=-2)[..., ::-1], turned.max(axis=-2)[..., ::-1]], axis=-1)
        record["boxes"] = np.clip(ends, 0, size - 1).astype(np.float32)
    return record


def shift(record: Record, x: int, y: int) -> Record:
    """Moves a record by whole pixels to the right and down; what comes in is 0, and boxes are clipped to the image.

    Args:
      record: with a square image [S, S, C].
      x, y: pixels, of either sign.
    """
    size = record["image"].shape[0]
    x, y = (min(max(distance, -size), size) for distance in (x, y))
    moved = move_points(record, (1.0, 1.0), (x, y), size)
    for name in MAPS:
        if name in moved:
            values = np.zeros_like(moved[name])
            values[max(y, 0) : size + y, max(x, 0) : size + x] = moved[name][
                max(-y, 0) : size - y, max(-x, 0) : size - x
            ]
            moved[name] = values
    return moved
