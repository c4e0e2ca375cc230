"""Images of any size in a few shapes: resized to fit, padded at the bottom and the right, and back again."""

from collections.abc import Sequence

import cv2
import numpy as np

from jaxface.checks import AtLeast, Range, check_number

PADDING = 127  # the gray level around an image: about 0 for a network
_STRIDE = 32  # pixels, of which every side is a multiple


def bucket_shapes(image_size: int, aspects: Sequence[float]) -> list[tuple[int, int]]:
    """(height, width) of images whose longer side is `image_size` pixels, one for each width over height.

    The shorter side is rounded up to a multiple of 32 pixels.

    Raises:
      UserError: a size below 1, or an aspect outside [0.1, 10].
    """
    check_number("image_size", image_size, AtLeast(1))
    shapes = []
    for aspect in aspects:
        check_number("aspects", aspect, Range(0.1, 10))
        short = min(-(-round(image_size * min(aspect, 1 / aspect)) // _STRIDE) * _STRIDE, image_size)
        shapes.append((image_size, short) if aspect < 1 else (short, image_size))
    return shapes


def fit_size(size: Sequence[int], shape: Sequence[int]) -> tuple[int, int]:
    """The largest (height, width) of the same aspect as `size` inside `shape`, whole pixels and at least one."""
    height, width = size
    scale = min(shape[0] / height, shape[1] / width)
    return min(max(round(height * scale), 1), shape[0]), min(max(round(width * scale), 1), shape[1])


def nearest_shape(size: Sequence[int], shapes: Sequence[tuple[int, int]]) -> int:
    """Which of the shapes shows an image of `size` largest; of several the one with the least padding."""
    areas = [np.prod(fit_size(size, shape)) for shape in shapes]
    return int(np.lexsort(([np.prod(shape) for shape in shapes], np.negative(areas)))[0])


def place(pixels: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Resizes an image [H, W, 3] to fit and pads it: (image of `shape`, (height, width) of what is valid at its top left)."""
    size = fit_size(pixels.shape[:2], shape)
    if size != pixels.shape[:2]:
        shrinks = size[0] < pixels.shape[0]
        pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return padded(pixels, shape), size


def padded(pixels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """An image [H, W, 3] uint8 at the top left of a gray one of `shape`."""
    canvas = np.full((*shape, 3), PADDING, np.uint8)
    canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
    return canvas


def to_original(boxes: np.ndarray, image_size: Sequence[int], original_size: Sequence[int]) -> np.ndarray:
    """Boxes [..., 4] of a network's image in the pixels of the file.

    Args:
      boxes: (y0, x0, y1, x1), pixels of the padded image.
      image_size, original_size: of the record.

    Example:
      >>> to_original(np.array([0.0, 0.0, 32.0, 64.0]), (32, 64), (320, 640)).tolist()
      [0.0, 0.0, 320.0, 640.0]
    """
    return np.asarray(boxes) * np.tile(np.divide(original_size, image_size), 2).astype(np.float32)
