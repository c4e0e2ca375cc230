"""Ellipses with three dark discs, some of which are faces: where the centers of the faces are, cell by cell.

Whether an ellipse is a face shows in its discs alone, which lie as far apart as a dilated filter sees and a plain one does not.

Methods: cassod
"""

import numpy as np

from jaxface.checks import AtLeast, NonNegative, check_number
from jaxface.data.sources.bundled import ArraySource
from jaxface.data.sources.source import WithFields
from jaxface.data.transforms.pixels import to_bytes

SIDE, CELLS = 40, 20
_MOST = 3  # ellipses of an image
_CENTER, _HALF_RANGE = (
    0.5,
    2.0,
)  # of the values that bytes hold: a white ellipse over another, a black disc, and the noise
# Discs of a face and of what is none, in radii (down, right) from the center of the ellipse.
_FACE = ((-0.4, -0.4), (-0.4, 0.4), (0.5, 0.0))
_OTHERS = (
    _FACE[1:],
    (_FACE[0], _FACE[2]),
    _FACE[:2],
    tuple((-down, right) for down, right in _FACE),
    ((0.5, -0.4), (-0.4, 0.4), (0.5, 0.4)),
)


def ellipses(count: int, *, seed: int, first: int = 0, noise: float = 0.25) -> WithFields:
    """Images of one to three upright ellipses, half of which are faces (design).

    An ellipse has half axes 1.2 r and r, r ~ U(8, 10) pixels, a center ~ U(9, 31) and a brightness ~ U(0.4, 1) that is added.
    Dark discs of squared radius (0.2 r)² + 0.5 take 1 from it: those of a face 0.4 r up and 0.4 r to the left and the right, and
    0.5 r down. One that is no face lacks a disc, has them upside down, or has them left below, right above and right below, a
    third each. Normal noise lies over everything.

    Args:
      count: images, ≥ 1.
      seed: ≥ 0. first: number of the first image, ≥ 0; images of different numbers are others.
      noise: its standard deviation, ≥ 0.

    Returns:
      A source of images uint8 [40, 40, 1], values of [-1.5, 2.5] on 256 levels. Records have `cells` [20, 20] uint8, 1 where a
      cell of 2×2 pixels holds the center of a face; the label is the number of faces.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> source = ellipses(2, seed=0)
      >>> source[0]["image"].shape, source[0]["cells"].shape
      ((40, 40, 1), (20, 20))
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0), ("first", first, 0)):
        check_number(name, value, AtLeast(least))
    check_number("noise", noise, NonNegative)
    images = np.empty((count, SIDE, SIDE), np.uint8)
    cells = np.zeros((count, CELLS, CELLS), np.uint8)
    labels = np.zeros(count, np.int32)
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(float)
    for image in range(count):
        rng = np.random.default_rng([seed, 4, first + image])
        values = noise * rng.normal(size=(SIDE, SIDE))
        for _ in range(rng.integers(1, _MOST + 1)):
            radius, brightness = rng.uniform(8, 10), rng.uniform(0.4, 1)
            y, x = rng.uniform(9, 31, 2)
            values += brightness * (((rows - y) / 1.2) ** 2 + (columns - x) ** 2 <= radius**2)
            is_face = rng.random() < 0.5
            kind = rng.integers(0, 3)
            discs = _FACE if is_face else _OTHERS[rng.integers(0, 3) if kind == 0 else kind + 2]
            for down, right in discs:
                distance = (rows - y - down * radius) ** 2 + (columns - x - right * radius) ** 2
                values -= distance <= (0.2 * radius) ** 2 + 0.5
            if is_face:
                cells[image, int(y) // 2, int(x) // 2] = 1
                labels[image] += 1
        images[image] = to_bytes((values - _CENTER) / _HALF_RANGE)
    names = [f"{faces} faces" for faces in range(_MOST + 1)]
    return WithFields(ArraySource(images[..., None], labels, names), cells=cells)
