"""Backbones in stages, whose maps may be added to on the way, and a small one of plain convolutions.

Methods: intern
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.norm import BatchNorm
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS

Features = Mapping[str, Any]
"""`taps`, the maps [B, h, w, c] of all levels from fine to coarse, and `pooled` [B, D]."""


class StagedBackbone(Protocol):
    """A Flax module that is computed level by level, such as MetaNet.

    Attributes:
      level_channels, level_strides: of the map of every level; a stride is in pixels of the image.
    """

    level_channels: tuple[int, ...]
    level_strides: tuple[int, ...]

    def level(self, i: int, x: jax.Array, *, train: bool = False) -> jax.Array:
        """The map of level i from 0, of the image or the map of the level before."""

    def pool(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """[B, D] float32 of the last map."""


def features(backbone: Any, image: jax.Array, *, train: bool = False, **options) -> Features:
    """Maps of all levels of a backbone and what it pools; to be a `method` of `backbone.init` and `backbone.apply`.

    A module that has `features` of its own, such as `Generalist`, gives those; `options` are theirs.
    """
    if hasattr(backbone, "features"):
        return backbone.features(image, train=train, **options)
    taps, x = [], image
    for i in range(len(backbone.level_strides)):
        x = backbone.level(i, x, train=train)
        taps.append(x)
    return {"taps": tuple(taps), "pooled": backbone.pool(x, train=train)}


class PlainStages(nn.Module):
    """A level for each convolution: conv3x3, BN, ReLU; the mean over the plane, Dense.

    Args:
      embedding: features of the last Dense layer: the size of an embedding, or the number of classes; None leaves it out.
      channels: of every level. steps: their strides, 1 or 2.
      norm: batch normalization behind each convolution, which then has no bias.

    image [B, H, W, C] -> [B, embedding] float32; `features` gives the maps.
    """

    embedding: int | None = 512
    channels: tuple[int, ...] = (16, 32, 32)
    steps: tuple[int, ...] = (2, 2, 1)
    norm: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        if len(self.channels) != len(self.steps):
            raise UserError(
                f"steps: needs one for each of the {len(self.channels)} channels, got {len(self.steps)}"
            )
        super().__post_init__()

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Of the maps."""
        return tuple(self.channels)

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Of the maps."""
        strides, stride = [], 1
        for step in self.steps:
            stride *= step
            strides.append(stride)
        return tuple(strides)

    def setup(self):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i, (width, step) in enumerate(zip(self.channels, self.steps, strict=True), start=1):
            conv = nn.Conv(
                width,
                (3, 3),
                step,
                padding=1,
                use_bias=not self.norm,
                kernel_init=nn.initializers.he_normal(),
                **types,
            )
            setattr(self, f"conv{i}", conv)
            if self.norm:
                setattr(self, f"norm{i}", BatchNorm(**types))
        if self.embedding is not None:
            self.head_dense = nn.Dense(self.embedding, param_dtype=self.param_dtype)

    def level(self, i: int, x: jax.Array, *, train: bool = False) -> jax.Array:
        """The map of level i, from 0."""
        return run_block(self, x.astype(self.dtype), remat=self.remat, call=_level, train=train, number=i + 1)

    def pool(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """The mean over the plane."""
        del train
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)

    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        pooled = features(self, image, train=train)["pooled"]
        return pooled if self.embedding is None else self.head_dense(pooled)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return tuple(
            (f"conv{i}", f"norm{i}") if self.norm else (f"conv{i}",) for i in range(1, len(self.channels) + 1)
        )


def _level(net: PlainStages, x: jax.Array, *, train: bool, number: int) -> jax.Array:
    x = getattr(net, f"conv{number}")(x)
    return nn.relu(getattr(net, f"norm{number}")(x, train=train) if net.norm else x)


MODELS.update(
    {
        "plain_stages": PlainStages,
        "plain_stages_small": partial(PlainStages, channels=(8, 16, 16)),
        "plain_stages_wide": partial(PlainStages, channels=(24, 48, 64, 96), steps=(2, 2, 2, 1), norm=True),
    }
)
