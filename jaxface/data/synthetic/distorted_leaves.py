"""Dead leaves that something happened to, and how good they still are: for quality models, nothing to download.

Methods: niqa_attack
"""

import cv2
import numpy as np

from jaxface.checks import Fraction, check_number
from jaxface.data.sources.bundled import ArraySource
from jaxface.data.sources.opinions import RatedSource
from jaxface.data.synthetic.dead_leaves import textured_leaves

DISTORTIONS = ("blur", "noise", "blocks")
"""What happens to an image: a Gaussian blur, white noise, or quantized cosines of 8 x 8 pixels; the label of a record."""
_BLUR, _NOISE, _STEP = 3.0, 60.0, 120.0  # at a severity of 1: pixels, gray levels, gray levels
_BLOCK = 8
_BEST = 10.0  # of an opinion


def distort(image: np.ndarray, kind: str, severity: float, *, rng: np.random.Generator) -> np.ndarray:
    """One image that was blurred, got noise, or was coded coarsely; at a severity of 0 as it was.

        blur     a Gaussian of 3 s pixels
        noise    normal of 60 s gray levels
        blocks   cosines of 8 x 8 pixels rounded to multiples of 1 + 120 s gray levels (orthonormal), as coders of blocks do

    Args:
      image: uint8 [H, W, C].
      kind: one of `DISTORTIONS`.
      severity: s in [0, 1].
      rng: of the noise.

    Returns:
      uint8 [H, W, C].

    Raises:
      UserError: a severity out of its range. ValueError: another kind.
    """
    check_number("severity", severity, Fraction)
    if kind not in DISTORTIONS:
        raise ValueError(f"kind: needs one of {', '.join(DISTORTIONS)}, got {kind!r}")
    if severity == 0:
        return image
    pixels = image.astype(np.float32)
    if kind == "blur":
        pixels = cv2.GaussianBlur(pixels, (0, 0), _BLUR * severity, borderType=cv2.BORDER_REFLECT)
        pixels = pixels.reshape(image.shape)
    elif kind == "noise":
        pixels = pixels + _NOISE * severity * rng.standard_normal(pixels.shape, np.float32)
    else:
        pixels = _quantized(pixels, 1 + _STEP * severity)
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


def _quantized(pixels: np.ndarray, step: float) -> np.ndarray:
    height, width, channels = pixels.shape
    more = ((0, -height % _BLOCK), (0, -width % _BLOCK), (0, 0))
    padded = np.pad(pixels, more, mode="edge")
    n = np.arange(_BLOCK)
    basis = np.sqrt(2 / _BLOCK) * np.cos(np.pi * n[:, None] * (2 * n + 1) / (2 * _BLOCK))
    basis[0] /= np.sqrt(2)
    blocks = padded.reshape(padded.shape[0] // _BLOCK, _BLOCK, padded.shape[1] // _BLOCK, _BLOCK, channels)
    cosines = np.einsum("ki,yixjc,lj->ykxlc", basis, blocks, basis, optimize=True)
    cosines = step * np.rint(cosines / step)
    back = np.einsum("ki,ykxlc,lj->yixjc", basis, cosines, basis, optimize=True)
    return back.reshape(padded.shape)[:height, :width].astype(np.float32)


def distorted_leaves(
    count: int,
    *,
    side: int = 48,
    leaves: int = 60,
    texture: float = 0.05,
    severity: tuple[float, float] = (0.0, 1.0),
    seed: int,
    first: int = 0,
) -> RatedSource:
    """`textured_leaves`, each with one distortion (`distort`) of random severity.

        opinion = 10 (1 - severity)

    Image i depends on (seed, `first` + i, its size) alone.

    Args:
      count: images, ≥ 1.
      side: of an image, pixels, ≥ 8.
      leaves: discs of an image, ≥ 1.
      texture: of the discs, ≥ 0.
      severity: (least, greatest), of [0, 1].
      seed: ≥ 0. first: number of the first image, ≥ 0.

    Returns:
      A source whose label is the distortion (`DISTORTIONS`) and whose records have `opinion` besides.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> source = distorted_leaves(2, side=16, seed=0)
      >>> source[1]["image"].shape, bool(0 <= source[1]["opinion"] <= 10)
      ((16, 16, 3), True)
    """
    low, high = severity
    check_number("severity", high, Fraction)
    check_number("severity", low, Fraction)
    clean = textured_leaves(count, side=side, leaves=leaves, texture=texture, seed=seed, first=first)
    images, labels = np.empty((count, side, side, 3), np.uint8), np.empty(count, np.int32)
    opinions = np.empty(count, np.float32)
    for row in range(count):
        rng = np.random.default_rng([seed, 0xD157, first + row])
        labels[row] = rng.integers(len(DISTORTIONS))
        strength = rng.uniform(min(low, high), max(low, high))
        images[row] = distort(clean[row]["image"], DISTORTIONS[labels[row]], strength, rng=rng)
        opinions[row] = _BEST * (1 - strength)
    return RatedSource(ArraySource(images, labels, DISTORTIONS), opinions, np.arange(first, first + count))
