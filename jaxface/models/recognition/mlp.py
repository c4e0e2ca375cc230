"""Multi-layer perceptron, for images as small as digits."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS


class MLP(nn.Module):
    """Flatten, then Dense and ReLU per hidden layer, then Dense.

    Args:
      embedding: features of the last layer; None leaves it out.
      hidden: features of the hidden layers.
      remat: "block" computes the hidden layers again in the backward pass, which saves nothing that ReLU keeps anyway.

    image [B, H, W, C] (or [B, ...]) float -> [B, embedding] float32; `train` changes nothing.
    """

    embedding: int | None = 512
    hidden: tuple[int, ...] = (256, 256)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = image.reshape(image.shape[0], -1)
        for i, features in enumerate(self.hidden, start=1):
            layer = nn.Dense(features, dtype=self.dtype, param_dtype=self.param_dtype, name=f"hidden{i}")
            x = run_block(layer, x, remat=self.remat, call=lambda layer, x: nn.relu(layer(x)))
        if self.embedding is None:
            return x.astype(jnp.float32)
        return nn.Dense(self.embedding, dtype=jnp.float32, param_dtype=self.param_dtype, name="head_dense")(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return tuple((f"hidden{i}",) for i in range(1, len(self.hidden) + 1))


MODELS.update({"mlp": MLP})
