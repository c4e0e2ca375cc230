"""Scenes of one digit on clutter: what a claim about which parts of an image a network needs to see needs, in a minute.

Methods: sparsevit
"""

import numpy as np

from jaxface.checks import AtLeast, Fraction, check_number
from jaxface.data.sources.bundled import ArraySource, digits
from jaxface.data.sources.source import WithFields
from jaxface.data.transforms.pixels import to_bytes
from jaxface.errors import UserError

_TRAIN, _DIGIT, _GRID = 1300, 8, 4


def cluttered_digits(
    *,
    scenes: int = 8000,
    test_scenes: int = 1000,
    side: int = 24,
    scales: tuple[int, ...] = (1, 2),
    noise: tuple[float, float] = (0.5, 0.5),
    test_noise: tuple[float, float] | None = None,
    seed: int,
) -> tuple[WithFields, WithFields]:
    """scikit-learn's digits on canvases of uniform noise (design).

    A scene of amplitude a has pixels from U(0, a); a digit of 8x8 pixels, each repeated scale x scale, is pasted over them on a
    grid of 4 pixels. Scales and digits come in equal shares. Black is 0 and white 1 of the [-1, 1] that a network sees.

    Args:
      scenes: to train on, ≥ 1, of 1300 of the digits.
      test_scenes: to test, ≥ 1, of the other 497.
      side: of a canvas, pixels, ≥ 8 times the largest scale.
      scales: of the digits, each ≥ 1.
      noise: (low, high) in [0, 1] of the amplitude, which is drawn for each scene.
      test_noise: that of the test scenes, whose digits, places and noise up to its amplitude stay the same; `noise` unless given.
      seed: of the split of the digits and of everything drawn, ≥ 0.

    Returns:
      (train, test): uint8 [side, side, 1], ten classes. Records have besides `scale` int32, `box` int32 [4], the digit's
      (y0, x0, y1, x1) in pixels, and `noise` float32, the amplitude. No digit is in both.

    Raises:
      UserError: a number out of its range, no scale, or a digit that the canvas cannot hold.
    """
    for name, value, allowed in (
        ("scenes", scenes, AtLeast(1)),
        ("test_scenes", test_scenes, AtLeast(1)),
        ("seed", seed, AtLeast(0)),
        *(("scales", scale, AtLeast(1)) for scale in scales),
    ):
        check_number(name, value, allowed)
    if not scales:
        raise UserError("scales: needs at least one, got none")
    if _DIGIT * max(scales) > side:
        raise UserError(f"scales: needs at most {side // _DIGIT} on {side} pixels, got {max(scales)}")
    amplitudes = {"noise": noise, "test_noise": noise if test_noise is None else test_noise}
    for name, pair in amplitudes.items():
        for value in pair:
            check_number(name, value, Fraction)
        if len(pair) != 2 or pair[0] > pair[1]:
            raise UserError(f"{name}: needs low <= high, got {', '.join(f'{value:g}' for value in pair)}")
    plain = digits()
    order = np.random.default_rng([seed, 6]).permutation(len(plain))
    parts = ((order[:_TRAIN], scenes, "noise"), (order[_TRAIN:], test_scenes, "test_noise"))
    first, second = (
        _scenes(
            plain, np.resize(rows, count), side, scales, amplitudes[name], np.random.default_rng([seed, 6, i])
        )
        for i, (rows, count, name) in enumerate(parts)
    )
    return first, second


def _scenes(
    plain: ArraySource,
    rows: np.ndarray,
    side: int,
    scales: tuple[int, ...],
    noise: tuple[float, float],
    rng: np.random.Generator,
) -> WithFields:
    scale = rng.permutation(np.resize(np.asarray(scales, np.int32), len(rows)))
    places = (side - _DIGIT * scale) // _GRID + 1
    corner = _GRID * np.floor(places[:, None] * rng.random((len(rows), 2))).astype(np.int32)
    amplitude = (noise[0] + (noise[1] - noise[0]) * rng.random(len(rows))).astype(np.float32)
    canvas = amplitude[:, None, None] * rng.random((len(rows), side, side), np.float32)
    for target, row, times, (y, x) in zip(canvas, rows, scale, corner, strict=True):
        size = _DIGIT * times
        digit = plain[int(row)]["image"][..., 0] / 255
        target[y : y + size, x : x + size] = digit.repeat(times, axis=0).repeat(times, axis=1)
    box = np.concatenate([corner, corner + _DIGIT * scale[:, None]], axis=1).astype(np.int32)
    images = ArraySource(to_bytes(canvas)[..., None], plain.labels[rows], plain.class_names)
    return WithFields(images, scale=scale, box=box, noise=amplitude)
