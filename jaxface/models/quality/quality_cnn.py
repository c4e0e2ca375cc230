"""A few convolutions and the moments of their maps: the smallest network that tells how good an image looks.

Methods: niqa_attack
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.pooling import moment_pool
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.recognition.convnet import ConvSilu
from jaxface.models.registry import MODELS


class QualityCNN(nn.Module):
    """Convolutions 3x3 with SiLU, means and standard deviations over the plane, then Dense; no normalization.

    Args:
      embedding: outputs, 1 for a score; None gives the pooled moments.
      channels: channels of the convolutions `stage1`, `stage2`, …
      strides: their strides.
      remat: "block" stores the inputs of the convolutions alone for the backward pass.

    image [B, H, W, C] float -> [B, embedding] float32; `train` changes nothing. H and W are free.
    """

    embedding: int | None = 1
    channels: tuple[int, ...] = (16, 32, 32)
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
        x = moment_pool(x)
        if self.embedding is None:
            return x
        return nn.Dense(self.embedding, param_dtype=self.param_dtype, name="head_dense")(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return tuple((f"stage{i}",) for i in range(1, len(self.channels) + 1))


MODELS.update({"quality_cnn": QualityCNN})
