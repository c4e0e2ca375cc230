"""Multi-scale structural similarity and the peak signal-to-noise ratio."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import Integers, Positive, check_number
from jaxface.errors import UserError

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_TAPS, _SIGMA = 11, 1.5


def psnr(image: jax.Array, decoded: jax.Array, *, peak: float = 1.0) -> jax.Array:
    """Peak signal-to-noise ratio of each image over its channels together.

        20 log10 peak - 10 log10 mean((a - b)²)

    Args:
      image, decoded: [B, H, W, C] float.
      peak: L, 1 or 255.

    Returns:
      [B] dB, infinite where both are equal.

    Raises:
      ValueError: two shapes.

    Example:
      >>> round(float(psnr(jnp.zeros((1, 2, 2, 3)), jnp.full((1, 2, 2, 3), 0.1))[0]), 4)
      20.0
    """
    _check(image, decoded)
    check_number("peak", peak, Positive)
    error = jnp.mean(jnp.square(image - decoded), axis=(1, 2, 3))
    return 20 * jnp.log10(peak) - 10 * jnp.log10(error)


def _check(image, decoded) -> None:
    if image.shape != decoded.shape or image.ndim != 4:
        raise ValueError(f"decoded: needs [B, H, W, C] as the image, got {decoded.shape} and {image.shape}")


def _blur(x: jax.Array) -> jax.Array:
    """Gaussian of 11 taps over [B, H, W, C], without padding."""
    at = np.arange(_TAPS) - _TAPS // 2
    window = np.exp(-(at**2) / (2 * _SIGMA**2))
    window = window / window.sum()
    for axis in (1, 2):
        length = x.shape[axis] - _TAPS + 1
        x = sum(
            jax.lax.slice_in_dim(x, i, i + length, axis=axis) * weight
            for i, weight in enumerate(window.tolist())
        )
    return x


def _halve(x: jax.Array) -> jax.Array:
    """Means of 2 x 2; an odd side gets a zero before it, which counts."""
    pads = [(0, 0), *((side % 2, side % 2) for side in x.shape[1:3]), (0, 0)]
    x = jnp.pad(x, pads)
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :height, :width]
    return x.reshape(x.shape[0], height // 2, 2, width // 2, 2, x.shape[3]).mean((2, 4))


def ms_ssim(image: jax.Array, decoded: jax.Array, *, peak: float = 1.0, scales: int = 5) -> jax.Array:
    """Multi-scale structural similarity over five scales (Wang et al. 2003), by channel and then averaged.

        Π_{l<5} mean(cs_l)^{w_l} · mean(ssim_5)^{w_5},   cs = (2 σ_12 + C_2) / (σ_1² + σ_2² + C_2),
        ssim = cs (2 μ_1 μ_2 + C_1) / (μ_1² + μ_2² + C_1),   C_1 = (0.01 L)², C_2 = (0.03 L)²

    The last scale's term counts once; older public code of learned codecs multiplies it four times.

    Args:
      image, decoded: [B, H, W, C] float, sides of at least 161, or 10 · 2^(scales - 1) + 1.
      peak: L, 1 or 255.
      scales: the first of the five alone, for small images; their weights then sum to one.

    Returns:
      [B] in [0, 1].

    Raises:
      ValueError: two shapes. UserError: a side that is too small, or other numbers of scales.

    Example:
      >>> a = jnp.ones((1, 176, 176, 1)) * jnp.linspace(0, 1, 176)[:, None]
      >>> round(float(jax.jit(ms_ssim)(a, a)[0]), 5)
      1.0
    """
    _check(image, decoded)
    check_number("peak", peak, Positive)
    check_number("scales", scales, Integers(1, len(WEIGHTS)))
    smallest = (_TAPS - 1) * 2 ** (scales - 1) + 1
    if min(image.shape[1:3]) < smallest:
        raise UserError(
            f"image: MS-SSIM needs sides of at least {smallest} pixels, got {image.shape[2]}x{image.shape[1]}"
        )
    weights = WEIGHTS if scales == len(WEIGHTS) else np.array(WEIGHTS[:scales]) / sum(WEIGHTS[:scales])
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    total = jnp.ones(())
    for level, weight in enumerate(weights):
        maps = jnp.concatenate([image, decoded, image**2, decoded**2, image * decoded])
        mean1, mean2, square1, square2, product = jnp.split(_blur(maps), 5)
        var1, var2 = square1 - mean1**2, square2 - mean2**2
        covariance = product - mean1 * mean2
        term = (2 * covariance + c2) / (var1 + var2 + c2)
        if level == scales - 1:
            term = term * (2 * mean1 * mean2 + c1) / (mean1**2 + mean2**2 + c1)
        # A mean of 0 has no slope under a broken power.
        total = total * jnp.maximum(term.mean((1, 2)), 1e-6) ** float(weight)
        if level < scales - 1:
            image, decoded = _halve(image), _halve(decoded)
    return total.mean(-1)
