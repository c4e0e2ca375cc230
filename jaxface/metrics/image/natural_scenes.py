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
    return _ggd(x, lookup)


def _ggd(x, lookup):
    ratio, variance = _ggd_moments(x)
    return _shape_of(ratio, lookup)[0], variance


def _ggd_moments(x):
    """(E[|x|]² / E[x²], E[x²])."""
    variance = jnp.mean(jnp.square(x), axis=-1)
    return jnp.square(jnp.mean(jnp.abs(x), axis=-1)) / jnp.maximum(variance, _LEAST_ENERGY), variance


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
    return _aggd(x, lookup)


def _aggd(x, lookup):
    return _aggd_of(*_aggd_moments(x), lookup)


def _aggd_of(ratio, left, right, lookup):
    alpha, within = _shape_of(ratio, lookup)
    spread = jnp.exp(0.5 * (gammaln(1 / alpha) - gammaln(3 / alpha)))
    eta = (right - left) * jnp.sqrt(within)
    return AsymmetricGaussian(alpha, left, right, left * spread, right * spread, eta)


def _aggd_moments(x):
    """(r(α), s_l, s_r)."""
    squares = jnp.square(x)

    def side(members):
        mean = jnp.sum(squares * members, axis=-1) / jnp.maximum(jnp.sum(members, axis=-1), 1)
        return jnp.sqrt(jnp.maximum(mean, _LEAST_ENERGY))

    left, right = side((x < 0).astype(x.dtype)), side((x > 0).astype(x.dtype))
    energy = jnp.maximum(jnp.mean(squares, axis=-1), _LEAST_ENERGY)
    # γ is a ratio that may be of any size; the sides over their length are at most 1.
    length = jnp.sqrt(left**2 + right**2)
    p, q = left / length, right / length
    return jnp.square(jnp.mean(jnp.abs(x), axis=-1)) / energy * (p**3 + q**3) * (p + q), left, right


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
      >>> image = jax.random.uniform(jax.random.key(0), (24, 24, 3))
      >>> jax.jit(brisque_features)(image).shape
      (36,)
    """
    need_side("image", *image.shape[-3:-1], 2 * TAPS, of="BRISQUE")
    _refuse_constant("image", image, (-3, -2, -1), "pixels")
    plane = luma(image, standard=standard, peak=peak) * (255 / peak)
    flat = lambda x: x.reshape(*x.shape[:-2], -1)  # noqa: E731
    rows, ratios = [], []
    for coefficients in (mscn(plane), mscn(halve(plane))):
        products = [flat(coefficients * jnp.roll(coefficients, shift, axis=(-2, -1))) for shift in SHIFTS]
        ratio, variance = _ggd_moments(flat(coefficients))
        pair_ratios, left, right = _aggd_moments(jnp.stack(products, axis=-2))
        ratios.append(jnp.concatenate([ratio[..., None], pair_ratios], axis=-1))
        rows.append((variance, left, right))
    alphas, within = _shape_of(jnp.stack(ratios, axis=-2), lookup)  # one look into the table for all
    features = []
    for scale, (variance, left, right) in enumerate(rows):
        alpha, eta = alphas[..., scale, :], (right - left) * jnp.sqrt(within[..., scale, 1:])
        pairs = jnp.stack([alpha[..., 1:], eta, left**2, right**2], axis=-1)
        features += [alpha[..., :1], variance[..., None], pairs.reshape(*pairs.shape[:-2], 16)]
    return jnp.concatenate(features, axis=-1)


# NIQE.

_BLOCK = 96
_BLOCK_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SHARP = 0.75  # of the sharpest block of an image


class NiqeModel(NamedTuple):
    """A Gaussian of the features of blocks of good images.

    Attributes:
      mean: [36]. covariance: [36, 36].
    """

    mean: jax.Array
    covariance: jax.Array


def _blocks(plane: jax.Array, side: int) -> jax.Array:
    """[..., N, side, side] of [..., H, W] whose sides are multiples."""
    *lead, height, width = plane.shape
    cut = plane.reshape(*lead, height // side, side, width // side, side)
    return jnp.swapaxes(cut, -3, -2).reshape(*lead, -1, side, side)


def _block_moments(coefficients: jax.Array) -> tuple[jax.Array, ...]:
    """r(α), s_l and s_r, [..., 5] each, of MSCN coefficients [..., side, side] and of their products with neighbors."""
    flat = lambda x: x.reshape(*x.shape[:-2], -1)  # noqa: E731
    maps = [coefficients, *(coefficients * jnp.roll(coefficients, s, axis=(-2, -1)) for s in _BLOCK_SHIFTS)]
    return _aggd_moments(jnp.stack([flat(x) for x in maps], axis=-2))


def _block_features(moments: tuple[jax.Array, ...]) -> jax.Array:
    """[..., 36] of `_block_moments` at two scales, [..., 2, 5] each."""
    fit = _aggd_of(*moments, "interpolate")
    first = jnp.stack([fit.alpha[..., 0], (fit.beta_left[..., 0] + fit.beta_right[..., 0]) / 2], axis=-1)
    pairs = jnp.stack([fit.alpha, fit.eta, fit.beta_left, fit.beta_right], axis=-1)[..., 1:, :]
    scales = jnp.concatenate([first, pairs.reshape(*pairs.shape[:-2], 16)], axis=-1)
    return scales.reshape(*scales.shape[:-2], 36)


def niqe_features(
    image: jax.Array, *, peak: float = 1.0, standard: Luma = "ycbcr", block: int = _BLOCK
) -> tuple[jax.Array, jax.Array]:
    """The 36 features of every block of NIQE (Mittal, Soundararajan and Bovik, 2013), and how sharp each block is.

    The image is cut to multiples of the block. Of its brightness in [0, 255] and of half its size (bicubic with antialiasing,
    blocks half as large): of the MSCN coefficients α and (β_l + β_r) / 2, and of their products with four neighbors in the block
    α, η, β_l and β_r (`aggd_fit`).

    Args:
      image: [..., H, W, 3 or 1] float in [0, L].
      peak: L, 1 or 255.
      standard: of `luma`; ports of NIQE differ in it.
      block: side of a block, even and at least 16.

    Returns:
      (features [..., N, 36]; the blocks' mean local deviation [..., N]).

    Raises:
      UserError: an impossible block, or an image with fewer than two of them.

    Example:
      >>> features, sharpness = jax.eval_shape(niqe_features, jnp.zeros((192, 100, 3)))
      >>> features.shape, sharpness.shape
      ((2, 36), (2,))
    """
    if block % 2 or block < 16:
        raise UserError(f"block: needs an even number from 16, got {block}")
    height, width = (side // block * block for side in image.shape[-3:-1])
    if height * width < 2 * block**2:
        raise UserError(
            f"image: NIQE needs at least two blocks of {block}x{block} pixels, got {image.shape[-2]}x{image.shape[-3]}"
        )
    plane = luma(image[..., :height, :width, :], standard=standard, peak=peak) * (255 / peak)
    first, deviation = _normalized(plane, "edge")
    second, _ = _normalized(halve(plane, antialias=True), "edge")
    scales = [_block_moments(_blocks(x, side)) for x, side in ((first, block), (second, block // 2))]
    moments = tuple(jnp.stack(pair, axis=-2) for pair in zip(*scales, strict=True))
    return _block_features(moments), jnp.mean(_blocks(deviation, block), axis=(-2, -1))


def _gaussian_of(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean [..., D] and covariance [..., D, D] of rows [..., N, D], over N - 1."""
    mean = jnp.mean(rows, axis=-2)
    centered = rows - mean[..., None, :]
    high = jax.lax.Precision.HIGHEST
    return mean, jnp.einsum("...nd,...ne->...de", centered, centered, precision=high) / (rows.shape[-2] - 1)


def fit_niqe(images, *, peak: float = 1.0, standard: Luma = "ycbcr", block: int = _BLOCK) -> NiqeModel:
    """The Gaussian of sharp blocks of good images, to which NIQE compares.

    Of each image the blocks whose mean local deviation exceeds 0.75 of its sharpest block's are taken.

    Args:
      images: an iterable of [H, W, 3 or 1] float, of any sizes with at least two blocks.
      peak, standard, block: as in `niqe_features`.

    Returns:
      The model, of at least two blocks.

    Raises:
      UserError: no image, or one without two blocks.

    Example:
      >>> model = fit_niqe([jax.random.uniform(jax.random.key(n), (64, 64, 3)) for n in range(2)], block=32)
      >>> model.covariance.shape
      (36, 36)
    """
    rows = []
    read = jax.jit(functools.partial(niqe_features, peak=peak, standard=standard, block=block))
    for image in images:
        features, sharpness = read(jnp.asarray(image))
        rows.append(np.asarray(features)[np.asarray(sharpness) > _SHARP * float(sharpness.max())])
    found = np.concatenate(rows) if rows else np.zeros((0, 36), np.float32)
    if len(found) < 2:
        raise UserError(f"images: needs at least two sharp blocks, got {len(found)}")
    return NiqeModel(*_gaussian_of(jnp.asarray(found)))


def niqe(
    image: jax.Array, model: NiqeModel, *, peak: float = 1.0, standard: Luma = "ycbcr", block: int = _BLOCK
) -> jax.Array:
    """How far the blocks of an image are from those of good images; larger is worse.

        √((ν_p - ν)ᵀ ((Σ_p + Σ) / 2)⁺ (ν_p - ν)),   ν and Σ of the image's blocks, all of them

    Args:
      image: [..., H, W, 3 or 1] float in [0, L].
      model: ν_p and Σ_p (`fit_niqe`), of the same brightness and block.
      peak, standard, block: as in `niqe_features`.

    Returns:
      [...] ≥ 0.

    Raises:
      UserError: as `niqe_features`.

    Example:
      >>> model = NiqeModel(jnp.zeros(36), jnp.eye(36))
      >>> jax.eval_shape(niqe, jnp.zeros((5, 192, 100, 3)), model).shape
      (5,)
    """
    features, _ = niqe_features(image, peak=peak, standard=standard, block=block)
    return gaussian_distance(model, NiqeModel(*_gaussian_of(features)))


def gaussian_distance(first: NiqeModel, second: NiqeModel) -> jax.Array:
    """The distance of `niqe` between two Gaussians, of any number of features.

    Example:
      >>> first = NiqeModel(jnp.zeros(2), jnp.diag(jnp.array([1.0, 4.0])))
      >>> round(float(gaussian_distance(first, NiqeModel(jnp.array([1.0, 2.0]), jnp.diag(jnp.array([3.0, 4.0]))))), 6)
      1.224745
    """
    difference = first.mean - second.mean
    inverse = jnp.linalg.pinv((first.covariance + second.covariance) / 2, hermitian=True)
    squared = jnp.einsum("...d,...de,...e->...", difference, inverse, difference)
    return jnp.sqrt(jnp.maximum(squared, _LEAST_ENERGY))
