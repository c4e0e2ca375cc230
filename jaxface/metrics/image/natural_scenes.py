"""Statistics of natural scenes: normalized brightness, generalized Gaussians fitted to it, and the 36 features of BRISQUE.

Shape parameters come from a table by linear interpolation, so that gradients pass through them; the nearest entry of the table,
as published code has it, is a step function whose gradient is zero.
"""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from jaxface.errors import UserError
from jaxface.metrics.image.filters import Luma, Padding, gaussian_filter, halve, luma, need_side

Lookup = Literal["interpolate", "nearest"]

TAPS, SIGMA = 7, 7 / 6
"""Of the window of MSCN coefficients."""
SHIFTS = ((0, 1), (1, 0), (1, 1), (-1, 1))
"""Neighbors whose products BRISQUE looks at: rows down, columns to the right."""
_LEAST_VARIANCE = 1e-6  # under a root, so that flat places have a gradient; of 255²
_LEAST_ENERGY = 1e-12
_FIRST, _STEP = 0.2, 0.001  # of the table of shapes


def mscn(plane: jax.Array, *, padding: Padding = "zero") -> jax.Array:
    """Mean-subtracted, contrast-normalized coefficients of brightness.

        (I - μ) / (σ + 1),   μ = w * I,   σ² = |w * I² - μ²|,   w a Gaussian of 7 x 7 with σ = 7/6

    Args:
      plane: I [..., H, W] float in [0, 255].
      padding: "zero" as BRISQUE, "edge" as NIQE.

    Returns:
      [..., H, W].

    Raises:
      UserError: a side below 7, or an unknown padding.

    Example:
      >>> float(jnp.abs(mscn(jnp.full((9, 9), 80.0), padding="edge")).max())
      0.0
    """
    return _normalized(plane, padding)[0]


def _normalized(plane, padding):
    """(MSCN coefficients, σ) of planes [..., H, W]."""
    if padding not in ("zero", "edge"):
        raise UserError(f"padding: needs zero or edge, got {padding!r}")
    need_side("plane", *plane.shape[-2:], TAPS, of="MSCN")
    reach = TAPS // 2
    borders = [(0, 0)] * (plane.ndim - 2) + [(reach, reach)] * 2
    padded = jnp.pad(plane, borders, mode="edge" if padding == "edge" else "constant")
    # A variance is the same about any value, and about the mean it keeps its digits.
    middle = jax.lax.stop_gradient(jnp.mean(plane, axis=(-2, -1), keepdims=True))
    padded = padded - middle
    mean, square = gaussian_filter(jnp.stack([padded, padded**2]), taps=TAPS, sigma=SIGMA)
    deviation = jnp.sqrt(jnp.maximum(jnp.abs(square - mean**2), _LEAST_VARIANCE))
    return (plane - middle - mean) / (deviation + 1), deviation


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """(r(α) of α from 0.2 to 10 in steps of 0.001, which rises, and the slopes dα / dr between), float64."""
    alpha = _FIRST + _STEP * np.arange(9801)
    ratio = [
        math.exp(2 * math.lgamma(2 / a) - math.lgamma(1 / a) - math.lgamma(3 / a)) for a in alpha.tolist()
    ]
    return np.array(ratio), _STEP / np.diff(ratio)


def gaussian_ratio(alpha: jax.Array) -> jax.Array:
    """r(α) = Γ(2/α)² / (Γ(1/α) Γ(3/α)) of a generalized Gaussian: E[|x|]² / E[x²] of one of shape α.

    Args:
      alpha: [...] float, positive.

    Returns:
      [...] in (0, 3/4).

    Example:
      >>> [round(float(gaussian_ratio(jnp.float32(a))), 5) for a in (1.0, 2.0)]
      [0.5, 0.63662]
    """
    return jnp.exp(2 * gammaln(2 / alpha) - gammaln(1 / alpha) - gammaln(3 / alpha))


def _shape_of(ratio: jax.Array, lookup: Lookup) -> tuple[jax.Array, jax.Array]:
    """(α, r(α)) of E[|x|]² / E[x²] [...], within the table."""
    if lookup not in ("interpolate", "nearest"):
        raise UserError(f"lookup: needs interpolate or nearest, got {lookup!r}")
    ratios, slopes = (jnp.asarray(column, jnp.float32) for column in _table())
    within = jnp.clip(ratio, ratios[0], ratios[-1])
    below = jnp.clip(jnp.searchsorted(ratios, within, side="right") - 1, 0, len(slopes) - 1)
    past = within - ratios[below]
    if lookup == "interpolate":
        return _FIRST + _STEP * below + slopes[below] * past, within
    entry = jnp.where(past <= ratios[below + 1] - within, below, below + 1)
    return jax.lax.stop_gradient((_FIRST + _STEP * entry, ratios[entry]))


def _refuse_constant(name: str, values: jax.Array, axes: tuple[int, ...], what: str) -> None:
    if not isinstance(values, jax.core.Tracer) and not bool(
        np.all(np.ptp(np.asarray(values), axis=axes) > 0)
    ):
        raise UserError(f"{name}: needs {what} that vary, got a constant one")


def ggd_fit(x: jax.Array, *, lookup: Lookup = "interpolate") -> tuple[jax.Array, jax.Array]:
    """A generalized Gaussian of mean 0 by its moments.

        r(α) = E[|x|]² / E[x²],   σ² = E[x²]      (`gaussian_ratio`; α in [0.2, 10])

    Args:
      x: [..., N] float.
      lookup: "interpolate" for a gradient of α, or "nearest" of a table with steps of 0.001, whose gradient is 0.

    Returns:
      (α, σ²), [...] each.

    Raises:
      UserError: values that are all alike, where they are known.

    Example:
      >>> alpha, variance = ggd_fit(jnp.array([-3.0, -1, -0.2, -0.1, 0.1, 0.2, 1, 4]), lookup="nearest")
      >>> round(float(alpha), 3), float(variance)
      (0.757, 3.387500047683716)
    """
    _refuse_constant("x", x, (-1,), "values")
    variance = jnp.mean(jnp.square(x), axis=-1)
    ratio = jnp.square(jnp.mean(jnp.abs(x), axis=-1)) / jnp.maximum(variance, _LEAST_ENERGY)
    return _shape_of(ratio, lookup)[0], variance


class AsymmetricGaussian(NamedTuple):
    """Parameters of asymmetric generalized Gaussians, [...] each.

    Attributes:
      alpha: shape, 2 for Gaussian sides.
      std_left, std_right: root mean squares of the negative and of the positive values.
      beta_left, beta_right: scales, s √(Γ(1/α) / Γ(3/α)).
      eta: mean, (β_r - β_l) Γ(2/α) / Γ(1/α).
    """

    alpha: jax.Array
    std_left: jax.Array
    std_right: jax.Array
    beta_left: jax.Array
    beta_right: jax.Array
    eta: jax.Array


def aggd_fit(x: jax.Array, *, lookup: Lookup = "interpolate") -> AsymmetricGaussian:
    """An asymmetric generalized Gaussian by its moments (Lasmar, Stitou and Berthoumieu, 2009).

        s_l² = E[x² | x < 0],  s_r² = E[x² | x > 0],  γ = s_l / s_r,
        r(α) = E[|x|]² / E[x²] · (γ³ + 1)(γ + 1) / (γ² + 1)²      (`gaussian_ratio`; α in [0.2, 10])

    Args:
      x: [..., N] float; a side without values has a standard deviation near 0.
      lookup: as in `ggd_fit`.

    Returns:
      `AsymmetricGaussian` of [...].

    Raises:
      UserError: values that are all alike, where they are known.

    Example:
      >>> fit = aggd_fit(jnp.array([-3.0, -1, -0.2, -0.1, 0.1, 0.2, 1, 4]), lookup="nearest")
      >>> [round(float(v), 4) for v in fit]
      [0.776, 1.5851, 2.0646, 0.6667, 0.8683, 0.3152]
    """
    _refuse_constant("x", x, (-1,), "values")
    squares = jnp.square(x)

    def side(members):
        mean = jnp.sum(squares * members, axis=-1) / jnp.maximum(jnp.sum(members, axis=-1), 1)
        return jnp.sqrt(jnp.maximum(mean, _LEAST_ENERGY))

    left, right = side((x < 0).astype(x.dtype)), side((x > 0).astype(x.dtype))
    energy = jnp.maximum(jnp.mean(squares, axis=-1), _LEAST_ENERGY)
    # γ is a ratio that may be of any size; the sides over their length are at most 1.
    length = jnp.sqrt(left**2 + right**2)
    p, q = left / length, right / length
    ratio = jnp.square(jnp.mean(jnp.abs(x), axis=-1)) / energy * (p**3 + q**3) * (p + q)
    alpha, within = _shape_of(ratio, lookup)
    spread = jnp.exp(0.5 * (gammaln(1 / alpha) - gammaln(3 / alpha)))
    return AsymmetricGaussian(
        alpha, left, right, left * spread, right * spread, (right - left) * jnp.sqrt(within)
    )


def _scale_features(coefficients: jax.Array, lookup: Lookup) -> jax.Array:
    """[..., 18] of MSCN coefficients [..., H, W]."""
    flat = lambda x: x.reshape(*x.shape[:-2], -1)  # noqa: E731
    alpha, variance = ggd_fit(flat(coefficients), lookup=lookup)
    products = jnp.stack(
        [flat(coefficients * jnp.roll(coefficients, shift, axis=(-2, -1))) for shift in SHIFTS], axis=-2
    )
    fit = aggd_fit(products, lookup=lookup)
    pairs = jnp.stack([fit.alpha, fit.eta, fit.std_left**2, fit.std_right**2], axis=-1)
    return jnp.concatenate([jnp.stack([alpha, variance], -1), pairs.reshape(*pairs.shape[:-2], 16)], axis=-1)


def brisque_features(
    image: jax.Array,
    *,
    peak: float = 1.0,
    standard: Luma = "matlab",
    lookup: Lookup = "interpolate",
) -> jax.Array:
    """The 36 features of BRISQUE (Mittal, Moorthy and Bovik, 2012).

    For the brightness in [0, 255] and for half its size (bicubic, `halve`): shape and variance of the MSCN coefficients
    (`ggd_fit`), and for their products with each of four neighbors, around the borders, α, η, s_l² and s_r² (`aggd_fit`).

    Args:
      image: [..., H, W, 3 or 1] float in [0, L].
      peak: L, 1 or 255.
      standard: of `luma`.
      lookup: "interpolate" for gradients that are right; "nearest" as published.

    Returns:
      [..., 36] float.

    Raises:
      UserError: sides below 14, or a constant image, where it is known.

    Example:
      >>> waves = 0.5 + 0.3 * jnp.sin(jnp.arange(24.0)[:, None] * jnp.arange(24.0)[None] / 7)
      >>> brisque_features(waves[..., None]).shape
      (36,)
    """
    need_side("image", *image.shape[-3:-1], 2 * TAPS, of="BRISQUE")
    _refuse_constant("image", image, (-3, -2, -1), "pixels")
    plane = luma(image, standard=standard, peak=peak) * (255 / peak)
    scales = [_scale_features(mscn(x), lookup) for x in (plane, halve(plane))]
    return jnp.concatenate(scales, axis=-1)
