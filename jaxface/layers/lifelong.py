"""Where an image is worth looking at, and a pooling between mean and maximum (ARI, arXiv:2208.12967)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import Positive, check_number
from jaxface.layers.norm import MaskedBatchNorm


class SpatialAttention(nn.Module):
    """A map over the plane of features, from their mean and maximum over the channels (CBAM, arXiv:1807.06521).

        W = σ( BN( σ( conv7x7 [mean_c h, max_c h] ) ) )

    The two sigmoids with a normalization between are as released; `normalize=False` leaves out the second and the
    normalization, as the released network for MNIST does.

    x [B, H, W, C] -> [B, H, W, 1] in (0, 1), float32; `where` [B] bool are the rows that count for the statistics in training.

    Example:
      >>> layer, x = SpatialAttention(), jnp.zeros((2, 8, 8, 4))
      >>> layer.init_with_output(jax.random.key(0), x, train=False)[0].shape
      (2, 8, 8, 1)
    """

    normalize: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, where: jax.Array | None = None) -> jax.Array:
        pooled = jnp.concatenate([x.mean(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)], axis=-1)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        weights = nn.sigmoid(nn.Conv(1, (7, 7), use_bias=False, name="conv", **types)(pooled))
        if self.normalize:
            weights = nn.sigmoid(MaskedBatchNorm(name="norm", **types)(weights, train=train, where=where))
        return weights.astype(jnp.float32)


def gem_pool(x: jax.Array, *, power: float = 3.0, least: float = 1e-6) -> jax.Array:
    """Generalized mean over the plane (GeM, arXiv:1711.02512).

        ( mean max(x, least)^p )^{1/p}

    Args:
      x: [B, H, W, C] float. power: p > 0; 1 is the mean, infinity the maximum. least: > 0.

    Returns:
      [B, C] float32.

    Raises:
      UserError: a number that is not positive.

    Example:
      >>> round(float(gem_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))[0, 0]), 6)
      2.080084
    """
    check_number("power", power, Positive)
    check_number("least", least, Positive)
    powers = jnp.maximum(x.astype(jnp.float32), least) ** power
    return powers.mean(axis=(1, 2)) ** (1 / power)
