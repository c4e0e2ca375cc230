"""Dead leaves: overlapping discs of any size and color, whose statistics are those of photographs in many ways.

Methods: edic
"""

import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.sources.bundled import ArraySource

_SMALLEST = 2.0  # radius, pixels


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
    down, right = np.mgrid[:side, :side].astype(np.float32) + 0.5
    images = np.empty((count, side, side, 3), np.uint8)
    near, far = _SMALLEST**-2, (side / 2) ** -2
    for number in range(count):
        rng = np.random.default_rng([seed, 0x1EAF, first + number])
        radii = (near - rng.random(leaves) * (near - far)) ** -0.5
        centers = rng.random((leaves, 2)) * side
        colors = (rng.random((leaves, 3)) * 255).astype(np.float32)
        canvas = np.broadcast_to((rng.random(3) * 255).astype(np.float32), (side, side, 3)).copy()
        for radius, (y, x), color in zip(radii, centers, colors, strict=True):
            cover = np.clip(radius - np.hypot(down - y, right - x) + 0.5, 0, 1)[..., None]
            canvas += cover * (color - canvas)
        images[number] = np.rint(canvas)
    return ArraySource(images, np.zeros(count, np.int32), ["image"])
