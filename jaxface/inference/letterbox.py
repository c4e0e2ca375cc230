"""Images of any size in a few sizes: shrunk where they are too large, padded at the bottom and the right."""

from typing import NamedTuple

import cv2
import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.transforms.letterboxing import padded


class Letterboxed(NamedTuple):
    """An image in its bucket.

    Attributes:
      image: [H, W, 3] uint8, H and W of `bucket_side`.
      valid_size: (height, width) of the image in it, at the top left.
      scale: (y, x), by which to multiply places in the image to have them in the original.
    """

    image: np.ndarray
    valid_size: tuple[int, int]
    scale: tuple[float, float]


def bucket_side(side: int, *, stride: int = 32) -> int:
    """The smallest of 32, 64, 96 and {4, 5, 6} · 2^k · 32 pixels that holds a side, rounded up to a multiple of `stride`.

    At most a third of a side is padding from 128 on, and sides up to 4096 fall into 19 buckets.
    """
    check_number("side", side, AtLeast(1))
    for bucket in (32, 64, 96):
        if side <= bucket:
            break
    else:
        unit = 32
        while side > 6 * unit:
            unit *= 2
        bucket = next(n * unit for n in (4, 5, 6) if side <= n * unit)
    return -(-bucket // stride) * stride


def letterbox(image: np.ndarray, longest: int, *, stride: int = 32) -> Letterboxed:
    """Brings an image into its bucket: its longer side to at most `longest` pixels, padded with gray.

    Args:
      image: [H, W, 3] uint8.
      longest: pixels; smaller images stay as they are.
      stride: of which both sides of the result are multiples.

    Raises:
      ValueError: an image of another type or shape, or without pixels.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"image: needs uint8 [H, W, 3], got {image.dtype} {image.shape}")
    check_number("longest", longest, AtLeast(1))
    height, width = image.shape[:2]
    factor = min(1.0, longest / max(height, width))
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    if size != (height, width):
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    bucket = tuple(bucket_side(side, stride=stride) for side in size)
    return Letterboxed(padded(image, bucket), size, (height / size[0], width / size[1]))
