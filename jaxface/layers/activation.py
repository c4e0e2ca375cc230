"""Activations: with parameters, and exact forms."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class PReLU(nn.Module):
    """Rectifier with one learned slope per channel (arXiv:1502.01852).

        y = max(x, 0) + a · min(x, 0)

    Input and output: [..., C]; the parameter `slope` is [C] and starts at `initial`.

    Example:
      >>> layer, x = PReLU(), jnp.array([[-4.0, 4.0]])
      >>> layer.init_with_output(jax.random.key(0), x)[0].tolist()
      [[-1.0, 4.0]]
    """

    initial: float = 0.25
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = self.param("slope", nn.initializers.constant(self.initial), (x.shape[-1],), self.param_dtype)
        x = x.astype(self.dtype)
        return jnp.where(x >= 0, x, x * slope.astype(self.dtype))


def exact_gelu(x: jax.Array) -> jax.Array:
    """x Φ(x), without the approximation by tanh."""
    return nn.gelu(x, approximate=False)
