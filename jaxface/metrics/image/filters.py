"""Gray planes, Gaussian windows and half sizes, as functions that can be differentiated.

A separable filter is A x Bᵀ with a banded matrix A for the rows and B for the columns, borders included: two products of matrices
on small images, sums of shifted planes on large ones.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, Positive, check_number
from jaxface.errors import UserError

Padding = Literal["valid", "edge", "zero"]
Luma = Literal["matlab", "yiq", "ycbcr"]

_LUMA = {
    "matlab": ((0.2989, 0.5870, 0.1140), 0.0),
    "yiq": ((0.299, 0.587, 0.114), 0.0),
    "ycbcr": ((65.481 / 255, 128.553 / 255, 24.966 / 255), 16 / 255),
}
_LONGEST_PRODUCT = 160  # a side from which shifted sums take less time than products


def luma(image: jax.Array, *, standard: Luma = "matlab", peak: float = 1.0) -> jax.Array:
    """Brightness of colors.

        matlab   0.2989 R + 0.5870 G + 0.1140 B, MATLAB's rgb2gray
        yiq      0.299 R + 0.587 G + 0.114 B
        ycbcr    (65.481 R + 128.553 G + 24.966 B + 16 L) / 255, BT.601 with its foot room

    Args:
      image: [..., H, W, 3] float, or [..., H, W, 1], which is taken as it is.
      standard: which weights.
      peak: L, 1 or 255.

    Returns:
      [..., H, W], in the image's range.

    Raises:
      ValueError: another number of channels. UserError: an unknown standard.

    Example:
      >>> round(float(luma(jnp.full((1, 1, 3), 255.0), standard="ycbcr", peak=255.0)[0, 0]), 3)
      235.0
    """
    if standard not in _LUMA:
        raise UserError(f"standard: needs one of {', '.join(_LUMA)}, got {standard!r}")
    if image.ndim < 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"image: needs [..., H, W, 3] or [..., H, W, 1], got {image.shape}")
    if image.shape[-1] == 1:
        return image[..., 0]
    (red, green, blue), offset = _LUMA[standard]
    return red * image[..., 0] + green * image[..., 1] + blue * image[..., 2] + offset * peak


@functools.lru_cache(maxsize=32)
def gaussian_window(taps: int, sigma: float) -> np.ndarray:
    """[taps] weights exp(-i² / 2σ²) that sum to one, in float64.

    Example:
      >>> round(float(gaussian_window(11, 1.5)[5] ** 2), 7)
      0.0707622
    """
    check_number("taps", taps, AtLeast(1))
    check_number("sigma", sigma, Positive)
    at = np.arange(taps) - (taps - 1) / 2
    window = np.exp(-(at**2) / (2 * sigma**2))
    return window / window.sum()


@functools.lru_cache(maxsize=64)
def _filter_matrix(length: int, taps: int, sigma: float, padding: str) -> np.ndarray:
    """[out, length]: what filters a line of pixels, its border included."""
    window = gaussian_window(taps, sigma)
    reach = 0 if padding == "valid" else taps // 2
    rows = length - taps + 1 if padding == "valid" else length
    matrix = np.zeros((rows, length), np.float32)
    for row in range(rows):
        for tap, weight in enumerate(window):
            at = row + tap - reach
            if padding == "edge":
                at = min(max(at, 0), length - 1)
            if 0 <= at < length:
                matrix[row, at] += weight
    return matrix


def gaussian_filter(plane: jax.Array, *, taps: int, sigma: float, padding: Padding = "valid") -> jax.Array:
    """Correlation of planes with a normalized Gaussian window.

    Args:
      plane: [..., H, W] float.
      taps: side of the window, odd.
      sigma: its standard deviation, pixels.
      padding: "valid" for H - taps + 1 rows, "edge" repeats the border, "zero" has nothing beyond it.

    Returns:
      [..., H', W'].

    Raises:
      UserError: an even window, an unknown padding, or a plane smaller than the window where it is not padded.

    Example:
      >>> gaussian_filter(jnp.ones((12, 20)), taps=11, sigma=1.5).shape
      (2, 10)
    """
    if padding not in ("valid", "edge", "zero"):
        raise UserError(f"padding: needs one of valid, edge, zero, got {padding!r}")
    if taps % 2 == 0:
        raise UserError(f"taps: needs an odd number, got {taps}")
    height, width = plane.shape[-2:]
    need_side("plane", height, width, taps if padding == "valid" else 1)
    if max(height, width) <= _LONGEST_PRODUCT:
        down, right = (
            jnp.asarray(_filter_matrix(n, taps, sigma, padding), plane.dtype) for n in (height, width)
        )
        # In full precision: variances are differences of what is filtered.
        high = jax.lax.Precision.HIGHEST
        return jnp.einsum("ih,...hw,jw->...ij", down, plane, right, precision=high)
    return _shifted_sums(plane, taps, sigma, padding)


def _shifted_sums(plane, taps, sigma, padding):
    window = gaussian_window(taps, sigma).tolist()
    if padding != "valid":
        borders = [(0, 0)] * (plane.ndim - 2) + [(taps // 2, taps // 2)] * 2
        plane = jnp.pad(plane, borders, mode="edge" if padding == "edge" else "constant")
    for axis in (-2, -1):
        length = plane.shape[axis] - taps + 1
        plane = sum(
            jax.lax.slice_in_dim(plane, i, i + length, axis=plane.ndim + axis) * weight
            for i, weight in enumerate(window)
        )
    return plane


@functools.lru_cache(maxsize=32)
def _halving_matrix(length: int, antialias: bool) -> np.ndarray:
    """[⌊length / 2⌋ or ⌈length / 2⌉, length]: a line of pixels to half of them, by a cubic."""
    out = -(-length // 2) if antialias else length // 2
    matrix = np.zeros((out, length), np.float32)
    for row in range(out):
        if (
            antialias
        ):  # MATLAB: the cubic of a = -0.5 over twice the width, pixels by their centers, mirrored borders
            center = 2 * row + 0.5
            taps = np.arange(int(np.floor(center - 4)), int(np.ceil(center + 4)) + 1)
            weights = _cubic((center - taps) / 2, -0.5)
            weights /= weights.sum()
            taps = np.where(taps < 0, -1 - taps, taps)
            taps = np.where(taps >= length, 2 * length - 1 - taps, taps)
        else:  # PyTorch: the cubic of a = -0.75, the corners' centers on each other, repeated borders
            center = row * (length - 1) / max(out - 1, 1)
            taps = int(np.floor(center)) + np.arange(-1, 3)
            weights = _cubic(center - taps, -0.75)
        for tap, weight in zip(np.clip(taps, 0, length - 1), weights, strict=True):
            matrix[row, tap] += weight
    return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def halve(plane: jax.Array, *, antialias: bool = False) -> jax.Array:
    """Planes of half the size by bicubic interpolation.

    Args:
      plane: [..., H, W] float.
      antialias: MATLAB's imresize with ⌈H / 2⌉ rows; otherwise PyTorch's with aligned corners and ⌊H / 2⌋ rows, which BRISQUE's
        port has.

    Returns:
      [..., H', W'].

    Raises:
      UserError: a side below 2.

    Example:
      >>> [round(float(x), 4) for x in halve(jnp.arange(8.0)[None] * jnp.ones((8, 1)))[1]]
      [0.0, 2.3704, 4.6296, 7.0]
    """
    height, width = plane.shape[-2:]
    need_side("plane", height, width, 2)
    down, right = (jnp.asarray(_halving_matrix(n, antialias), plane.dtype) for n in (height, width))
    return jnp.einsum("ih,...hw,jw->...ij", down, plane, right, precision=jax.lax.Precision.HIGHEST)


def need_side(name: str, height: int, width: int, least: int, *, of: str = "") -> None:
    """Raises UserError where a side is shorter than `least`; `of` says what needs it."""
    if min(height, width) < least:
        whose = f"{of} needs" if of else "needs"
        raise UserError(f"{name}: {whose} sides of at least {least} pixels, got {width}x{height}")
