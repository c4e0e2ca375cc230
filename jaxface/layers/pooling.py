"""Maps to vectors of one length, whatever their size: means and deviations, spatial pyramids, and products of channels.

Methods: niqa_attack
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError

_LEAST_VARIANCE = 1e-6
_LEAST_PRODUCT = 1e-8  # under the signed root
_LEAST_LENGTH = 1e-12


def moment_pool(x: jax.Array) -> jax.Array:
    """Means over the plane, then standard deviations.

    Args:
      x: [B, H, W, C] float.

    Returns:
      [B, 2C] float32.

    Example:
      >>> [round(float(v), 3) for v in moment_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))[0]]
      [1.5, 1.118]
    """
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=(1, 2))
    variance = jnp.mean(jnp.square(x - mean[:, None, None]), axis=(1, 2))
    return jnp.concatenate([mean, jnp.sqrt(variance + _LEAST_VARIANCE)], axis=-1)


class SpatialPyramidPool(nn.Module):
    """The largest values of each cell of several grids over a map (arXiv:1406.4729).

        cell (i, j) of n x n    rows ⌊i H / n⌋ … ⌈(i + 1) H / n⌉, columns alike, as PyTorch's adaptive pooling

    Attributes:
      levels: n of each grid.

    x [B, H, W, C] -> [B, C Σ n²], grid by grid, its rows, its columns, then channels.
    """

    levels: tuple[int, ...] = (1, 2, 3)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        if min(height, width) < max(self.levels):
            raise UserError(
                f"image: needs maps of at least {max(self.levels)} places for the pyramid, got {width}x{height}"
            )
        cells = [
            x[:, _span(i, height, n), _span(j, width, n)].max(axis=(1, 2))
            for n in self.levels
            for i in range(n)
            for j in range(n)
        ]
        return jnp.concatenate(cells, axis=-1)


def _span(index: int, length: int, count: int) -> slice:
    return slice(index * length // count, -(-(index + 1) * length // count))


class BilinearPool(nn.Module):
    """Products of all pairs of channels, averaged over the plane, as a unit vector (arXiv:1504.07889).

        G = X Xᵀ / (H W),   z = sign(G) √(|G| + ε),   z / |z|,   ε = 1e-8

    x [B, H, W, C] -> [B, C²] float32.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
        products = jnp.einsum("bnc,bnd->bcd", x, x) / x.shape[1]
        rooted = jnp.sign(products) * jnp.sqrt(jnp.abs(products) + _LEAST_PRODUCT)
        flat = rooted.reshape(x.shape[0], -1)
        # A root has no slope at 0, where nothing answers.
        energy = jnp.maximum(jnp.sum(jnp.square(flat), axis=-1, keepdims=True), _LEAST_LENGTH**2)
        return flat / jnp.sqrt(energy)
