"""A few convolutions for images as small as digits, smooth enough for second derivatives."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS


class ConvNet(nn.Module):
    """Convolutions 3x3 with SiLU, then the map flattened, then Dense; no normalization.

    Args:
      embedding: features of the last layer; None leaves it out.
      channels: channels of the convolutions `stage1`, `stage2`, …
      strides: their strides.
      remat: "block" stores the inputs of the convolutions alone for the backward pass.

    image [B, H, W, C] float -> [B, embedding] float32; `train` changes nothing. SiLU has second derivatives everywhere, which
    a loss over gradients needs. `dtype` is that of the convolutions.
    """

    embedding: int | None = 512
    channels: tuple[int, ...] = (12, 24, 24)
    strides: tuple[int, ...] = (1, 2, 1)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        if len(self.channels) != len(self.strides):
            raise UserError(
                f"channels, strides: need the same length, got {self.channels} and {self.strides}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = image.astype(self.dtype)
        for i, (features, stride) in enumerate(zip(self.channels, self.strides, strict=True), start=1):
            x = run_block(ConvSilu(features, stride, name=f"stage{i}", **types), x, remat=self.remat)
        x = self._pooled(x)
        if self.embedding is None:
            return x
        return nn.Dense(self.embedding, param_dtype=self.param_dtype, name="head_dense")(x)

    def _pooled(self, x: jax.Array) -> jax.Array:
        """[B, features] float32 of the last map."""
        return x.reshape(x.shape[0], -1).astype(jnp.float32)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return tuple((f"stage{i}",) for i in range(1, len(self.channels) + 1))


class ConvSilu(nn.Module):
    """silu(conv3x3(x)): [B, H, W, C] -> [B, ⌈H / stride⌉, ⌈W / stride⌉, features]."""

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return nn.silu(nn.Conv(self.features, (3, 3), self.stride, padding=1, name="conv", **types)(x))


MODELS.update({"convnet": ConvNet})
