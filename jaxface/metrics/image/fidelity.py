"""How far an image is from another, as pure functions of both: structural similarity and the largest change."""

import jax
import jax.numpy as jnp

from jaxface.checks import Positive, check_number
from jaxface.errors import UserError
from jaxface.metrics.image.filters import Padding, gaussian_filter, luma, need_side

_TAPS, _SIGMA = 11, 1.5


def check_pair(image: jax.Array, other: jax.Array) -> None:
    """Raises ValueError unless both are [..., H, W, C] of one shape."""
    if image.shape != other.shape or image.ndim < 3:
        raise ValueError(f"other: needs [..., H, W, C] as the image, got {other.shape} and {image.shape}")


def chebyshev(image: jax.Array, other: jax.Array) -> jax.Array:
    """The largest change of a value: max over pixels and channels of |a - b|.

    Its subgradient is of the largest changes alone.

    Args:
      image, other: [..., H, W, C] float.

    Returns:
      [...], 0 where both are equal.

    Raises:
      ValueError: two shapes.

    Example:
      >>> float(chebyshev(jnp.zeros((2, 2, 3)), jnp.zeros((2, 2, 3)).at[1, 0, 2].set(-0.25)))
      0.25
    """
    check_pair(image, other)
    return jnp.max(jnp.abs(image - other), axis=(-3, -2, -1))


def ssim(
    image: jax.Array,
    other: jax.Array,
    *,
    peak: float = 1.0,
    color: str = "gray",
    padding: Padding = "valid",
    clamp: bool = False,
    shrink: bool = False,
) -> jax.Array:
    """Structural similarity (Wang, Bovik, Sheikh and Simoncelli, 2004), over a Gaussian window of 11 x 11 with σ = 1.5.

        mean over the map of  (2 μ_a μ_b + C_1) / (μ_a² + μ_b² + C_1) · (2 σ_ab + C_2) / (σ_a² + σ_b² + C_2),
        C_1 = (0.01 L)²,  C_2 = (0.03 L)²

    At two equal images it is 1 and its gradient 0.

    Args:
      image, other: [..., H, W, C] float in [0, L].
      peak: L, 1 or 255.
      color: "gray" compares brightness (`luma`), through which gradients reach the colors; "channels" compares each channel and
        takes the mean.
      padding: "valid" has a map of H - 10 rows, as MATLAB has it; "edge" repeats the border by 5 pixels, as the release of
        arXiv:2210.00933 does; "zero".
      clamp: hold the second factor to at least 0, as IQA-PyTorch does.
      shrink: average squares of f = max(1, round(min(H, W) / 256)) pixels first, as MATLAB's script does.

    Returns:
      [...], at most 1.

    Raises:
      ValueError: two shapes. UserError: an unknown choice, or sides below 11 without padding.

    Example:
      >>> round(float(ssim(jnp.full((16, 16, 3), 0.2), jnp.full((16, 16, 3), 0.5), color="channels")), 5)
      0.68976
    """
    check_pair(image, other)
    check_number("peak", peak, Positive)
    if color not in ("gray", "channels"):
        raise UserError(f"color: needs gray or channels, got {color!r}")
    if color == "gray":
        planes = [luma(x, peak=peak) for x in (image, other)]
    else:
        planes = [jnp.moveaxis(x, -1, -3) for x in (image, other)]
    if shrink and (factor := max(1, round(min(planes[0].shape[-2:]) / 256))) > 1:
        planes = [_averaged(x, factor) for x in planes]
    if padding == "valid":
        need_side("image", *planes[0].shape[-2:], _TAPS, of="SSIM")
    a, b = planes
    # About the middle of the range, which is the same and keeps more digits of a variance; nothing is beyond a border of zeros.
    middle = 0.0 if padding == "zero" else peak / 2
    a, b = a - middle, b - middle
    maps = gaussian_filter(jnp.stack([a, b, a * a, b * b, a * b]), taps=_TAPS, sigma=_SIGMA, padding=padding)
    mean_a, mean_b, square_a, square_b, product = maps
    var_a, var_b, covariance = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
    mean_a, mean_b = mean_a + middle, mean_b + middle
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    contrast = (2 * covariance + c2) / (var_a + var_b + c2)
    contrast = jnp.maximum(contrast, 0) if clamp else contrast
    similarity = contrast * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return jnp.mean(similarity, axis=(-2, -1) if color == "gray" else (-3, -2, -1))


def _averaged(plane: jax.Array, factor: int) -> jax.Array:
    height, width = (side // factor for side in plane.shape[-2:])
    plane = plane[..., : height * factor, : width * factor]
    return plane.reshape(*plane.shape[:-2], height, factor, width, factor).mean((-3, -1))
