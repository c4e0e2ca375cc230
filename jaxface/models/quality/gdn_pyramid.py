"""Convolutions with divisive normalization and a pyramid of maxima, as Ma et al. (2018 and 2019) judge images.

Methods: niqa_attack
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.gdn import GDN
from jaxface.layers.pooling import SpatialPyramidPool
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS


class GDNPyramid(nn.Module):
    """Four convolutions 3x3 with GDN, halved after each but the last; the maxima of three grids; two Dense layers.

    Args:
      embedding: outputs; of two the first is the mean score and the second the logarithm of its variance. None gives the hidden
        features.
      channels: channels of the convolutions `stage1`, `stage2`, …
      hidden: features of the first Dense layer.
      levels: cells on a side of the pyramid's grids.
      remat: "block" stores the inputs of the stages alone for the backward pass.

    image [B, H, W, C] float -> [B, embedding] float32; `train` changes nothing. H and W are free from 24 pixels on. GDN starts
    from γ = I and β = 1e-4. With the default sizes the pyramid has 14 cells, 672 features.
    """

    embedding: int | None = 2
    channels: tuple[int, ...] = (48, 48, 48, 48)
    hidden: int = 128
    levels: tuple[int, ...] = (1, 2, 3)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        least = max(self.levels) * 2 ** (len(self.channels) - 1)
        if min(image.shape[1:3]) < least:
            raise UserError(
                f"image: the pyramid needs sides of at least {least} pixels, got {image.shape[2]}x{image.shape[1]}"
            )
        x = image.astype(self.dtype)
        for i, features in enumerate(self.channels, start=1):
            stage = NormalizedStage(features, i < len(self.channels), name=f"stage{i}", **types)
            x = run_block(stage, x, remat=self.remat)
        x = SpatialPyramidPool(self.levels, name="pyramid")(x).astype(jnp.float32)
        x = nn.relu(nn.Dense(self.hidden, param_dtype=self.param_dtype, name="hidden_dense")(x))
        if self.embedding is None:
            return x
        return nn.Dense(self.embedding, param_dtype=self.param_dtype, name="head_dense")(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return tuple((f"stage{i}",) for i in range(1, len(self.channels) + 1))


class NormalizedStage(nn.Module):
    """gdn(conv3x3(x)), and the largest of 2 x 2 where it is halved: [B, H, W, C] -> [B, H or ⌊H / 2⌋, …, features]."""

    features: int
    halved: bool
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(self.features, (3, 3), padding=1, name="conv", **types)(x)
        x = GDN(beta=1e-4, gamma=1.0, name="norm")(x)
        return nn.max_pool(x, (2, 2), (2, 2)) if self.halved else x


MODELS.update({"gdn_pyramid": GDNPyramid})
