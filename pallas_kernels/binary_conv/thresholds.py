"""A sign after batch normalization as one integer comparison per output channel."""

import jax
import jax.numpy as jnp

from pallas_kernels import common
from pallas_kernels.binary_conv import packing

_LIMIT = 1 << 24  # beyond every |dot| that float32 can hold


def fold_batch_norm(
    alpha: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    *,
    epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array]:
    """Scale and shift of `BatchNorm(alpha · dot)`, for `binary_conv2d_block` and `sign_thresholds`.

        scale = γ·α/√(σ² + ε),   shift = β - γ·μ/√(σ² + ε)

    Args:
      alpha: scale of the binary weights, [O] or a scalar.
      gamma, beta, mean, variance: of the normalization, [O].
      epsilon: added to the variance.

    Returns:
      scale and shift, float32 [O].
    """
    alpha, gamma, beta, mean, variance = (
        jnp.asarray(v, jnp.float32) for v in (alpha, gamma, beta, mean, variance)
    )
    factor = gamma / jnp.sqrt(variance + epsilon)
    return factor * alpha, beta - factor * mean


def sign_thresholds(scale: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Integers θ such that scale·dot + shift >= 0 says dot >= θ where scale > 0, and dot <= θ where scale < 0.

    θ is the ceiling (floor) of -shift/scale, then moved to where the float32 expression itself changes sign, so that both
    sides agree at every integer |dot| < 2^24; a dot of exactly -shift/scale gives +1. Where scale is 0, or the change lies
    outside that range, θ is beyond every dot.

    Args:
      scale, shift: float32 [O]; a NaN in either gives a bit that is never set.

    Returns:
      θ int32 [O] and `rising` bool [O], true where scale >= 0.

    Raises:
      KernelError: shapes differ.
    """
    scale, shift = jnp.asarray(scale, jnp.float32), jnp.asarray(shift, jnp.float32)
    if scale.shape != shift.shape:
        raise common.KernelError(
            f"scale, shift: need one shape [O]; got shapes {scale.shape} and {shift.shape}"
        )
    rising = scale >= 0
    direction = jnp.where(rising, 1, -1)
    # With s = ±dot the expression rises in s; bisect for the first s where it is not negative.
    steep = jnp.abs(scale)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        positive = steep * middle.astype(jnp.float32) + shift >= 0
        return jnp.where(positive, low, middle), jnp.where(positive, middle, high)

    bounds = jnp.full(scale.shape, -_LIMIT, jnp.int32), jnp.full(scale.shape, _LIMIT, jnp.int32)
    first = jax.lax.fori_loop(0, 25, halve, bounds)[1]
    # The search never tests its ends: one before the first integer stands for "always".
    first = jnp.where((first == -_LIMIT + 1) & (steep * -_LIMIT + shift >= 0), -_LIMIT, first)
    return direction * first, rising


def threshold_bits(dot: jax.Array, thresholds: jax.Array, rising: jax.Array) -> jax.Array:
    """Packed signs of a normalized convolution from its integers: [dot >= θ] where `rising`, else [dot <= θ].

    Args:
      dot: int32 [..., O].
      thresholds, rising: of `sign_thresholds`, [O].

    Returns:
      uint32 [..., ⌈O/32⌉].
    """
    return packing.pack_bits(jnp.where(rising, dot >= thresholds, dot <= thresholds))
