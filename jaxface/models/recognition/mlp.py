"""Multi-layer perceptron, for images as small as digits."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.models.registry import MODELS


class MLP(nn.Module):
    """Flatten, then Dense and ReLU per hidden layer, then Dense.

    Args:
      embedding: features of the last layer; None leaves it out.
      hidden: features of the hidden layers.

    image [B, H, W, C] (or [B, ...]) float -> [B, embedding] float32; `train` changes nothing.
    """

    embedding: int | None = 512
    hidden: tuple[int, ...] = (256, 256)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = image.reshape(image.shape[0], -1)
        for i, features in enumerate(self.hidden, start=1):
            x = nn.relu(
                nn.Dense(features, dtype=self.dtype, param_dtype=self.param_dtype, name=f"hidden{i}")(x)
            )
        if self.embedding is None:
            return x.astype(jnp.float32)
        return nn.Dense(self.embedding, dtype=jnp.float32, param_dtype=self.param_dtype, name="head_dense")(x)


MODELS.update({"mlp": MLP})
