"""A compact generative adversarial network (arXiv:1406.2661) for aligned faces of any size, and for vectors.

In the manner of DCGAN (arXiv:1511.06434) without batch statistics: an example depends on its latent alone, so that the batch may
be split over devices at will. What keeps the training stable is the gradient penalty (`jaxface.losses.r1_penalty`).

Methods: ida
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError

_SMALLEST = 4  # side of the plane at which a generator starts, at least
_WIDEST = 8  # times `channels`


def doublings(image_shape: tuple[int, int, int]) -> int:
    """How often the plane that a generator starts from is doubled; 0 for vectors, which are no images.

    Raises:
      UserError: neither a vector [1, D, C] nor a square whose side is a multiple of 8.
    """
    height, width, _ = image_shape
    if height == 1:
        return 0
    if height != width or height % 8:
        raise UserError(f"image_size: the generator needs squares of a multiple of 8, got {height}x{width}")
    count = 1
    while height % 2 ** (count + 1) == 0 and height >> (count + 1) >= _SMALLEST:
        count += 1
    return count


def _pixel_norm(x: jax.Array) -> jax.Array:
    """Every position to features of mean square 1."""
    squares = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(squares + 1e-8)).astype(x.dtype)


def _activation(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, 0.2)


class Generator(nn.Module):
    """Latents to images: Dense to a small plane, then doubling, conv3x3, leaky ReLU and a norm per position, to tanh.

    The channels are `channels` at full size and double with every halving of the plane, up to 8 times. Vectors [1, D, C] are
    made by two Dense layers of 4 · `channels` instead.

    Args:
      image_shape: (H, W, C): squares of a multiple of 8, or (1, D, C).
      channels: width of the last layers.

    latents [B, L] float, standard normal -> [B, H, W, C] float32 in [-1, 1].
    """

    image_shape: tuple[int, int, int]
    channels: int = 16
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        layer = dict(dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=nn.initializers.he_normal())
        height, width, colors = self.image_shape
        times = doublings(self.image_shape)
        x = _pixel_norm(latents.astype(self.dtype))
        if not times:
            for i in (1, 2):
                x = _activation(nn.Dense(4 * self.channels, name=f"hidden{i}", **layer)(x))
            x = nn.Dense(math.prod(self.image_shape), param_dtype=self.param_dtype, name="head_dense")(x)
            return jnp.tanh(x.astype(jnp.float32)).reshape(-1, *self.image_shape)
        side, widest = height >> times, self.channels * min(2**times, _WIDEST)
        x = nn.Dense(side * side * widest, name="stem", **layer)(x).reshape(-1, side, side, widest)
        x = _pixel_norm(_activation(x))
        for i in reversed(range(times)):
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            features = self.channels * min(2**i, _WIDEST)
            x = nn.Conv(features, (3, 3), name=f"stage{times - i}", **layer)(x)
            x = _pixel_norm(_activation(x))
        x = nn.Conv(colors, (1, 1), dtype=jnp.float32, param_dtype=self.param_dtype, name="colors")(x)
        return jnp.tanh(x)


class Discriminator(nn.Module):
    """Images to how real they look: conv3x3 and leaky ReLU with halvings down to the generator's first plane, then Dense.

    Args:
      image_shape, channels: as in `Generator`.

    images [B, H, W, C] float in [-1, 1] -> logits [B] float32.
    """

    image_shape: tuple[int, int, int]
    channels: int = 16
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        layer = dict(dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=nn.initializers.he_normal())
        times = doublings(self.image_shape)
        x = images.astype(self.dtype)
        if not times:
            x = x.reshape(len(x), -1)
            for i in (1, 2):
                x = _activation(nn.Dense(4 * self.channels, name=f"hidden{i}", **layer)(x))
        else:
            x = _activation(nn.Conv(self.channels, (3, 3), name="stem", **layer)(x))
            for i in range(1, times + 1):
                features = self.channels * min(2**i, _WIDEST)
                x = _activation(nn.Conv(features, (4, 4), (2, 2), name=f"stage{i}", **layer)(x))
            x = x.reshape(len(x), -1)
        x = nn.Dense(1, dtype=jnp.float32, param_dtype=self.param_dtype, name="head_dense")(x)
        return x[:, 0]
