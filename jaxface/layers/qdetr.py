"""Distribution alignment of Q-DETR (arXiv:2304.00253): the object queries of a decoder are standardized before they are
quantized, so that the one step of a head fits all of them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import Integers, check_number

EPSILON = 1e-5


def query_spread(q: jax.Array, *, eps: float = EPSILON, ddof: int = 1) -> jax.Array:
    """√(var + ε) of every head's query over its channels: what `distribution_alignment` divides by; [..., d] -> [...] float32.

    Example:
      >>> round(float(query_spread(jnp.array([1.0, 2.0, 3.0, 6.0]))), 4)  # with d - 1 in the variance
      2.1602
    """
    check_number("ddof", ddof, Integers(0, 1))
    precise = q.astype(jnp.promote_types(q.dtype, jnp.float32))
    centered = precise - jnp.mean(precise, axis=-1, keepdims=True)
    return jnp.sqrt(jnp.sum(jnp.square(centered), axis=-1) / max(q.shape[-1] - ddof, 1) + eps)


def distribution_alignment(
    q: jax.Array,
    gamma: jax.Array | float = 1.0,
    beta: jax.Array | float = 0.0,
    *,
    eps: float = EPSILON,
    ddof: int = 1,
) -> jax.Array:
    """Queries of one mean and spread (arXiv:2304.00253, the inner level of its bi-level problem).

        q* = γ (q - μ(q)) / √(var(q) + ε) + β,        entropy of a Gaussian of unit variance: ½ log(2πe) = 1.4189 nats

    Statistics are those of each query and head over its channels. A learned step absorbs the scale of a whole head; what this
    changes is that all queries of a head have the same length, and that the temperature of the softmax is γ's. Gradients go
    through μ and var.

    Args:
      q: [..., d] float; the statistics are float32 at least.
      gamma, beta: scalars or [d].
      eps: ε > 0.
      ddof: 1 for the unbiased variance, as released; 0 for that of a LayerNorm.

    Returns:
      As q; zeros give β.

    Raises:
      UserError: ddof.

    Example:
      >>> [round(v, 4) for v in distribution_alignment(jnp.array([1.0, 2.0, 3.0, 6.0])).tolist()]
      [-0.9258, -0.4629, 0.0, 1.3887]
    """
    precise = q.astype(jnp.promote_types(q.dtype, jnp.float32))
    centered = precise - jnp.mean(precise, axis=-1, keepdims=True)
    return (gamma * centered / query_spread(q, eps=eps, ddof=ddof)[..., None] + beta).astype(q.dtype)


class DistributionAlignment(nn.Module):
    """`distribution_alignment` with parameters `scale` γ, 1 at the start, and `bias` β, 0, of [d], shared by all heads.

    x [..., d] -> [..., d].

    Example:
      >>> layer, x = DistributionAlignment(), jnp.ones((1, 3, 2, 4))
      >>> {name: leaf.shape for name, leaf in layer.init(jax.random.key(0), x)["params"].items()}
      {'scale': (4,), 'bias': (4,)}
    """

    eps: float = EPSILON
    ddof: int = 1
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        beta = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        return distribution_alignment(x, gamma, beta, eps=self.eps, ddof=self.ddof)
