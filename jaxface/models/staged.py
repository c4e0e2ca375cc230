"""Backbones in stages, whose maps may be added to on the way, and a small one of plain convolutions.

Methods: intern
"""

from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.norm import BatchNorm

Features = Mapping[str, Any]
"""`taps`, the maps [B, h, w, c] of all stages from fine to coarse, and `pooled` [B, D]."""


class StagedBackbone(Protocol):
    """A Flax module that is computed stage by stage.

    Attributes:
      widths, strides: channels of the map of every stage, and pixels of the image from one of its cells to the next.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]

    def segment(self, index: int, x: jax.Array, train: bool = False) -> jax.Array:
        """The map of stage `index` from 0, of the image or the map of the stage before."""

    def pool(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, D] float32 of the last map."""

    def __call__(self, image: jax.Array, *, train: bool = False) -> Features:
        """All stages, one after the other."""


def run_stages(backbone: StagedBackbone, image: jax.Array, *, train: bool = False) -> Features:
    """What the `__call__` of a staged backbone is."""
    taps, x = [], image
    for index in range(len(backbone.strides)):
        x = backbone.segment(index, x, train)
        taps.append(x)
    return {"taps": tuple(taps), "pooled": backbone.pool(x, train)}


class PlainStages(nn.Module):
    """A stage for each convolution: conv3x3, BN, ReLU; the mean over the plane at the end.

    Args:
      widths: channels of every stage. steps: their strides, 1 or 2.
      norm: batch normalization behind each convolution, which then has no bias.

    image [B, H, W, C] -> {"taps": one map for each stage, "pooled": [B, widths[-1]]}.
    """

    widths: tuple[int, ...] = (16, 32, 32)
    steps: tuple[int, ...] = (2, 2, 1)
    norm: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        if len(self.widths) != len(self.steps):
            raise UserError(
                f"steps: needs one for each of the {len(self.widths)} widths, got {len(self.steps)}"
            )
        super().__post_init__()

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the maps."""
        strides, stride = [], 1
        for step in self.steps:
            stride *= step
            strides.append(stride)
        return tuple(strides)

    def setup(self):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.conv = [
            nn.Conv(
                width,
                (3, 3),
                step,
                padding=1,
                use_bias=not self.norm,
                kernel_init=nn.initializers.he_normal(),
                **types,
            )
            for width, step in zip(self.widths, self.steps, strict=True)
        ]
        if self.norm:
            self.norms = [BatchNorm(**types) for _ in self.widths]

    def segment(self, index: int, x: jax.Array, train: bool = False) -> jax.Array:
        """The map of stage `index`, from 0."""
        x = self.conv[index](x.astype(self.dtype))
        return nn.relu(self.norms[index](x, train=train) if self.norm else x)

    def pool(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The mean over the plane."""
        del train
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)

    def __call__(self, image: jax.Array, *, train: bool = False) -> Features:
        return run_stages(self, image, train=train)
