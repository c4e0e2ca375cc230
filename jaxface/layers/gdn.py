"""Generalized divisive normalization, and a bound that still learns.

Methods: edic, niqa_attack
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import NonNegative, Range, check_number

PEDESTAL = 2.0**-36
"""Added under the square root in which GDN stores its parameters."""
_LEAST_BETA = 1e-6


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def lower_bound(x: jax.Array, bound: float) -> jax.Array:
    """max(x, bound), whose gradient still raises what lies below the bound (arXiv:1611.01704's code).

        ∂L/∂x = g where x ≥ bound or g < 0, else 0

    Args:
      x: [...] float.
      bound: a static number.

    Returns:
      [...], as `x`.

    Example:
      >>> float(lower_bound(jnp.float32(0.05), 0.11))
      0.10999999940395355
      >>> [float(jax.grad(lambda x, s=s: s * lower_bound(x, 0.11))(0.05)) for s in (-1.0, 1.0)]
      [-1.0, 0.0]
    """
    return jnp.maximum(x, bound)


def _lower_bound_forward(x, bound):
    return jnp.maximum(x, bound), x


def _lower_bound_backward(bound, x, g):
    return (jnp.where((x >= bound) | (g < 0), g, jnp.zeros_like(g)),)


lower_bound.defvjp(_lower_bound_forward, _lower_bound_backward)


def gdn(x: jax.Array, beta: jax.Array, gamma: jax.Array, *, inverse: bool = False) -> jax.Array:
    """Generalized divisive normalization over channels (arXiv:1511.06281, equation 4 at ε = ½, α = 2).

        y_i = x_i / sqrt(β_i + Σ_j γ_ij x_j²);   the inverse form multiplies instead

    Args:
      x: [..., C] float.
      beta: [C], positive.
      gamma: [C, C], non-negative; row i is of output i.
      inverse: multiply, as decoders do.

    Returns:
      [..., C].

    Raises:
      ValueError: `beta` or `gamma` of another number of channels.

    Example:
      >>> y = gdn(jnp.array([3.0, -4.0]), jnp.ones(2), 0.1 * jnp.eye(2))
      >>> [round(float(v), 4) for v in y]
      [2.1764, -2.4807]
    """
    channels = x.shape[-1]
    if beta.shape != (channels,) or gamma.shape != (channels, channels):
        raise ValueError(
            f"gamma: needs [{channels}, {channels}] and beta [{channels}], got {gamma.shape}, {beta.shape}"
        )
    energy = beta + jnp.einsum("...j,ij->...i", jnp.square(x), gamma)
    return x * (jnp.sqrt(energy) if inverse else jax.lax.rsqrt(energy))


class GDN(nn.Module):
    """`gdn` whose parameters are stored as square roots, so that they stay positive.

        β = max(β', sqrt(1e-6 + p))² - p,   γ = max(γ', 2^-18)² - p,   p = 2^-36

    Attributes:
      inverse: multiply instead of divide.
      beta: β at the start, ≥ 1e-6. gamma: γ = gamma · I at the start, ≥ 0.
    """

    inverse: bool = False
    beta: float = 1.0
    gamma: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., C]."""
        channels = x.shape[-1]
        check_number("beta", self.beta, Range(_LEAST_BETA))
        check_number("gamma", self.gamma, NonNegative)
        root = lambda value: lambda rng, shape: jnp.sqrt(value(shape) + PEDESTAL)  # noqa: E731
        beta = self.param("beta", root(lambda shape: self.beta * jnp.ones(shape)), (channels,))
        gamma = self.param("gamma", root(lambda shape: self.gamma * jnp.eye(shape[0])), (channels, channels))
        beta = jnp.square(lower_bound(beta, (_LEAST_BETA + PEDESTAL) ** 0.5)) - PEDESTAL
        gamma = jnp.square(lower_bound(gamma, PEDESTAL**0.5)) - PEDESTAL
        return gdn(x, beta, gamma, inverse=self.inverse)
