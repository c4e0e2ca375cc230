"""Digits before a background that tells the class in training and nothing in the test.

Methods: lifelong
"""

import functools

import numpy as np

from jaxface.checks import AtLeast, Fraction, check_number
from jaxface.data.sources.bundled import ArraySource, digits
from jaxface.data.transforms.pixels import to_bytes

_TRAIN, _TILE = 1078, 4
_TEXTURES = np.random.default_rng(12).integers(0, 2, (10, _TILE, _TILE))  # a tile for each digit


def textured_digits(
    *, correlation: float = 0.9, contrast: float = 0.5, anywhere: bool = True, side: int = 16, seed: int
) -> tuple[ArraySource, ArraySource]:
    """scikit-learn's digits before tiles of 4 x 4 pixels (design).

        pixel = digit + (1 - digit) · contrast · texture

    Every digit has a tile of its own, which fills the canvas from a random offset on. A fraction `correlation` of the training
    images have that of their digit; the others, and all images of the test, that of a random digit. Black is 0 and white 1 of
    the [-1, 1] that a network sees.

    Args:
      correlation: in [0, 1].
      contrast: brightness of the tiles, in [0, 1]; 0 for plain digits.
      anywhere: digits lie anywhere on the canvas, or else in its middle.
      side: of a canvas, pixels, ≥ 8.
      seed: of the split and of everything drawn, ≥ 0.

    Returns:
      (1078 images to train on, the 719 others to test): uint8 [side, side, 1], ten classes.

    Raises:
      UserError: a number out of its range.
    """
    for name, value, allowed in (
        ("correlation", correlation, Fraction),
        ("contrast", contrast, Fraction),
        ("side", side, AtLeast(8)),
        ("seed", seed, AtLeast(0)),
    ):
        check_number(name, value, allowed)
    return _drawn(correlation, contrast, anywhere, side, seed)


@functools.lru_cache(maxsize=2)
def _drawn(correlation: float, contrast: float, anywhere: bool, side: int, seed: int):
    rng = np.random.default_rng([seed, 12])
    plain = digits()
    order = rng.permutation(len(plain))
    labels, training = plain.labels[order], np.arange(len(order)) < _TRAIN
    honest = training & (rng.random(len(order)) < correlation)
    shown = np.where(honest, labels, rng.integers(0, 10, len(order)))
    offsets = rng.integers(0, _TILE, (len(order), 2))
    places = rng.integers(0, side - 8 + 1, (len(order), 2))
    if not anywhere:
        places[:] = (side - 8) // 2
    canvas = np.zeros((len(order), side, side))
    for target, row, texture, (top, left), (y, x) in zip(
        canvas, order, _TEXTURES[shown], offsets, places, strict=True
    ):
        digit = plain[int(row)]["image"][..., 0] / 255
        rows, columns = ((start + np.arange(side)) % _TILE for start in (top, left))
        target[:] = contrast * texture[np.ix_(rows, columns)]
        window = target[y : y + 8, x : x + 8]
        window[:] = digit + (1 - digit) * window
    pixels = to_bytes(canvas)[..., None]
    first, second = (
        ArraySource(pixels[part], labels[part], plain.class_names) for part in (training, ~training)
    )
    return first, second
