"""Dead leaves: overlapping discs of any size and color, whose statistics are those of photographs in many ways.

Methods: edic
"""

import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.sources.bundled import ArraySource

_SMALLEST = 2.0  # radius, pixels
_TOGETHER = 64  # images that are drawn at once


def dead_leaves(count: int, *, side: int = 32, leaves: int = 60, seed: int, first: int = 0) -> ArraySource:
    """Images of random discs, each over those before it (Lee, Mumford and Huang, 2001).

    Radii have a density of r^-3 from 2 pixels to half the side, centers and colors are uniform; an edge is a pixel wide. Image i
    depends on (seed, `first` + i, its size) alone.

    Args:
      count: images, ≥ 1.
      side: of an image, pixels, ≥ 8.
      leaves: discs of an image, ≥ 1.
      seed: ≥ 0. first: number of the first image, ≥ 0.

    Returns:
      A source of images uint8 [side, side, 3] of one class.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> dead_leaves(2, seed=0)[1]["image"].shape
      (32, 32, 3)
    """
    for name, value, least in (("count", count, 1), ("side", side, 8), ("leaves", leaves, 1), ("seed", seed, 0),
                               ("first", first, 0)):  # fmt: skip
        check_number(name, value, AtLeast(least))
    images = np.empty((count, side, side, 3), np.uint8)
    for start in range(0, count, _TOGETHER):
        numbers = range(first + start, first + min(start + _TOGETHER, count))
        images[start : start + len(numbers)] = _drawn(numbers, side, leaves, seed)
    return ArraySource(images, np.zeros(count, np.int32), ["image"])


def _drawn(numbers: range, side: int, leaves: int, seed: int) -> np.ndarray:
    """Some images [N, side, side, 3], leaf after leaf over all of them."""
    near, far = _SMALLEST**-2, (side / 2) ** -2
    draws = np.stack([np.random.default_rng([seed, 0x1EAF, n]).random((leaves + 1, 6)) for n in numbers])
    draws = draws.astype(np.float32)[..., None, None]
    at = np.arange(side, dtype=np.float32) + 0.5
    down, right = at[:, None], at[None, :]
    colors = 255 * draws[:, :, :3]
    radii = (near - draws[:, :, 3] * (near - far)) ** -0.5
    y, x = side * draws[:, :, 4], side * draws[:, :, 5]
    canvas = np.repeat(np.repeat(colors[:, 0], side, axis=2), side, axis=3)
    for leaf in range(1, leaves + 1):
        distance = np.sqrt((down - y[:, leaf]) ** 2 + (right - x[:, leaf]) ** 2)
        cover = np.clip(radii[:, leaf] - distance + 0.5, 0, 1)[:, None]
        canvas += cover * (colors[:, leaf] - canvas)
    return np.rint(canvas).transpose(0, 2, 3, 1)
