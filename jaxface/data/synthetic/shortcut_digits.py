"""Digits of two groups, one of which is offered a small shortcut that stops working when it is tested.

Methods: gabn
"""

import numpy as np

from jaxface.checks import Fraction, NonNegative, check_number
from jaxface.data.sources.bundled import ArraySource, digits
from jaxface.data.transforms.pixels import to_bytes

SHORTCUT = (slice(1, 4), slice(1, 4))
"""Rows and columns of the patch that the second group carries."""
_SIDE, _ROW, _COLUMN, _TRAIN = 16, 4, 6, 900
_CODES = np.random.default_rng(10).permutation(2**9)[:10]  # a pattern of nine bits for each digit
_RANGE = 1.5  # beyond it values are clipped: over three standard deviations of the usual noise above white


def shortcut_digits(*, reliability: float, noise: float, seed: int) -> tuple[ArraySource, ArraySource]:
    """scikit-learn's digits on a canvas of 16 x 16, for questions about where a network looks (design).

    A digit lies in rows 4-11 and columns 6-13. Half of the images, drawn at random, are of group 1 and carry 3 x 3 black or
    white cells in rows and columns 1-3: in training the pattern of the digit in a fraction `reliability` of them and that of a
    random digit in the others, in the test that of a random digit. Gaussian noise lies over everything. Black is 0 and
    white 2/3 of the [-1, 1] that a network sees, so that noise is not cut off.

    Args:
      reliability: in [0, 1].
      noise: standard deviation, where white is 1; ≥ 0.
      seed: of the split, the groups, the patterns and the noise.

    Returns:
      (900 images to train on, 897 to test): uint8 [16, 16, 1], ten classes, two groups.

    Raises:
      UserError: a number out of its range.
    """
    check_number("reliability", reliability, Fraction)
    check_number("noise", noise, NonNegative)
    rng = np.random.default_rng([seed, 1])
    plain = digits()
    order = rng.permutation(len(plain))
    labels = plain.labels[order]
    canvas = np.zeros((len(order), _SIDE, _SIDE))
    canvas[:, _ROW : _ROW + 8, _COLUMN : _COLUMN + 8] = [plain[i]["image"][..., 0] / 255 for i in order]
    groups = rng.integers(0, 2, len(order)).astype(np.int32)
    training = np.arange(len(order)) < _TRAIN
    honest = training & (rng.random(len(order)) < reliability)
    shown = _CODES[np.where(honest, labels, rng.integers(0, 10, len(order)))]
    patches = (shown[:, None] >> np.arange(9) & 1).reshape(-1, 3, 3)
    canvas[(slice(None), *SHORTCUT)] = patches * (groups == 1)[:, None, None]
    canvas += noise * rng.normal(size=canvas.shape)
    pixels = to_bytes(canvas / _RANGE)[..., None]
    first, second = (
        ArraySource(
            pixels[part],
            labels[part],
            plain.class_names,
            groups=groups[part],
            group_names=["plain", "shortcut"],
        )
        for part in (training, ~training)
    )
    return first, second
