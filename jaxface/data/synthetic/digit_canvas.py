"""Digits somewhere on a canvas with clutter: what a claim about fields of view and feature maps needs, in a minute.

Methods: ddc, condensation_net
"""

import functools

import numpy as np

from jaxface.checks import AtLeast, NonNegative, check_number
from jaxface.data.sources.bundled import ArraySource, digits
from jaxface.data.transforms.pixels import to_bytes

_TRAIN, _TEST_COPIES, _PATCHES, _PATCH, _BRIGHTEST = 1297, 2, 4, 3, 0.8


def digit_canvas(
    *, copies: int = 6, side: int = 24, noise: float = 0.08, seed: int
) -> tuple[ArraySource, ArraySource]:
    """scikit-learn's digits on cluttered canvases (design).

    A digit of 8x8 pixels, as it is or with every pixel repeated 2x2, lies somewhere; four patches of 3x3 pixels drawn from
    [0, 0.8] are added anywhere, over the digit too, and Gaussian noise everywhere. Black is 0 and white 1 of the [-1, 1] that a
    network sees, and what lies beyond that is clipped.

    Args:
      copies: canvases of each of the 1297 digits to train on, ≥ 1; of the other 500 there are two each.
      side: of a canvas, pixels, ≥ 16.
      noise: standard deviation, ≥ 0.
      seed: of the split of the digits and of everything drawn, ≥ 0.

    Returns:
      (1297 · copies canvases to train on, 1000 to test): uint8 [side, side, 1], ten classes; no digit is in both.

    Raises:
      UserError: a number out of its range.
    """
    for name, value, allowed in (
        ("copies", copies, AtLeast(1)),
        ("side", side, AtLeast(16)),
        ("noise", noise, NonNegative),
        ("seed", seed, AtLeast(0)),
    ):
        check_number(name, value, allowed)
    return _drawn(copies, side, noise, seed)


@functools.lru_cache(maxsize=2)
def _drawn(copies: int, side: int, noise: float, seed: int) -> tuple[ArraySource, ArraySource]:
    rng = np.random.default_rng([seed, 4])
    plain = digits()
    images = np.stack([plain[i]["image"][..., 0] for i in range(len(plain))]) / 255
    order = rng.permutation(len(plain))
    rows = np.repeat(order[:_TRAIN], copies), np.repeat(order[_TRAIN:], _TEST_COPIES)
    first, second = (
        ArraySource(_canvases(images[part], side, noise, rng), plain.labels[part], plain.class_names)
        for part in rows
    )
    return first, second


def _canvases(images: np.ndarray, side: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    canvas = noise * rng.normal(size=(len(images), side, side))
    for target, digit in zip(canvas, images, strict=True):
        scale = int(rng.integers(1, 3))
        digit = digit.repeat(scale, axis=0).repeat(scale, axis=1)
        y, x = rng.integers(0, side - len(digit) + 1, 2)
        target[y : y + len(digit), x : x + len(digit)] += digit
        for y, x in rng.integers(0, side - _PATCH + 1, (_PATCHES, 2)):
            target[y : y + _PATCH, x : x + _PATCH] += rng.uniform(0, _BRIGHTEST, (_PATCH, _PATCH))
    return to_bytes(canvas)[..., None]
