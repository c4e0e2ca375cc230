"""The seven-layer network of CIFAR that methods against wrong labels are compared on (arXiv:1804.06872, arXiv:2003.02752).

Methods: mda
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.layers import BatchNorm
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS


class SmallLossCNN(nn.Module):
    """Six 3x3 convolutions of 64, 64, 128, 128, 196 and 16 channels, max pooling after each two, and a linear layer.

    Every convolution has a bias, and batch normalization and ReLU after it. With 32x32 color images there are 256 features
    before the linear layer.

    Args:
      embedding: features of the last layer, or classes; None leaves it out.
      channels: of the convolutions, an even number of them.
      remat: "block" computes each convolution again in the backward pass.

    image [B, H, W, C] float in [-1, 1], which the network takes to [0, 1], where its source trains -> [B, embedding] float32.

    Example:
      >>> from jaxface import models
      >>> network = models.create("small_loss_cnn", embedding=10)
      >>> models.feature_size(network.clone(embedding=None), (32, 32, 3))
      256
    """

    embedding: int | None = 512
    channels: tuple[int, ...] = (64, 64, 128, 128, 196, 16)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = (image.astype(self.dtype) + 1) / 2
        for i, features in enumerate(self.channels, start=1):
            block = ConvUnit(features, dtype=self.dtype, param_dtype=self.param_dtype, name=f"conv{i}")
            x = run_block(block, x, remat=self.remat, call=lambda block, x: block(x, train=train))
            if i % 2 == 0:
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        if self.embedding is None:
            return x
        return nn.Dense(self.embedding, param_dtype=self.param_dtype, name="head_dense")(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return tuple((f"conv{i}",) for i in range(1, len(self.channels) + 1))


class ConvUnit(nn.Module):
    """relu(norm(conv3x3(x))), the convolution with a bias: [B, H, W, C] -> [B, H, W, features]."""

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(self.features, (3, 3), padding=1, name="conv", **types)(x)
        return nn.relu(BatchNorm(name="norm", **types)(x, train=train))


MODELS.update({"small_loss_cnn": SmallLossCNN})
