"""Inception-ResNet-v2 (arXiv:1602.07261) for aligned faces, as the public MXNet code of InsightFace has it ("i1").

Methods: cloak
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers import BatchNorm
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS

# Branches of a residual unit: (channels, kernel, padding) of each convolution in turn.
_UNIT35 = (
    ((32, (1, 1), (0, 0)),),
    ((32, (1, 1), (0, 0)), (32, (3, 3), (1, 1))),
    ((32, (1, 1), (0, 0)), (48, (3, 3), (1, 1)), (64, (3, 3), (1, 1))),
)
# 129 where the paper has 128, and a padding of (1, 2) and (2, 1) where the plane would be kept by (0, 3) and (3, 0): as released.
_UNIT17 = (
    ((192, (1, 1), (0, 0)),),
    ((129, (1, 1), (0, 0)), (160, (1, 7), (1, 2)), (192, (7, 1), (2, 1))),
)
_UNIT8 = (
    ((192, (1, 1), (0, 0)),),
    ((192, (1, 1), (0, 0)), (224, (1, 3), (0, 1)), (256, (3, 1), (1, 0))),
)


class InceptionResNet(nn.Module):
    """Residual units of parallel convolutions, 35, 17 and 8 by the planes that they had in the paper; here 25, 12 and 5 of 112.

        stem    conv3x3 (stride 2), conv3x3, conv3x3, conv1x1, conv3x3, 3x3 max-pool (stride 2), four branches to 320 channels
        stages  10 units, reduction to 1088 channels, 20 units, reduction to 2080, 10 units of which the last is not rectified
        head    conv1x1 to 1536, mean over the plane, dropout, Dense

    A convolution has a bias, BN with its scale fixed at 1, and ReLU, as released; a unit adds `share` of its branches.

    Args:
      embedding: size E of the embedding, or the number of classes.
      stages: residual units per stage.
      dropout: rate before the Dense layer, in [0, 1).
      remat: "block" stores the inputs of the residual units alone for the backward pass.

    image [B, H, W, C] float in [-1, 1] -> [B, E] float32, not normalized; H and W from 75 on. `dtype` is that of all before the
    mean. Convolutions start from He's normal initialization (fan out), Dense from uniform(±1/sqrt(fan_in)).
    """

    embedding: int = 512
    stages: tuple[int, int, int] = (10, 20, 10)
    dropout: float = 0.2
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        if min(image.shape[1:3]) < 75:
            raise UserError(f"image_size: needs at least 75, got {min(image.shape[1:3])}")
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def conv(features, name, *, kernel=3, stride=1, padding=0):
            return ConvNorm(features, (kernel, kernel), stride, (padding, padding), name=name, **options)

        def chain(x, name, *layers):
            for i, (features, fields) in enumerate(layers, start=1):
                x = conv(features, f"{name}_conv{i}", **fields)(x, train=train)
            return x

        def units(x, name, count, branches, share, *, last_linear=False):
            for i in range(1, count + 1):
                linear = last_linear and i == count
                unit = Unit(branches, 1.0 if linear else share, linear, name=f"{name}_unit{i}", **options)
                x = run_block(unit, x, remat=self.remat, train=train)
            return x

        point, same, half = {"kernel": 1}, {"padding": 1}, {"stride": 2}
        x = chain(image.astype(self.dtype), "stem", (32, half), (32, {}), (64, same), (80, point), (192, {}))
        x = nn.max_pool(x, (3, 3), (2, 2))
        pooled = nn.avg_pool(x, (3, 3), (1, 1), padding=((1, 1), (1, 1)))
        branches = (
            chain(x, "stem_a", (96, point)),
            chain(x, "stem_b", (48, point), (64, {"kernel": 5, "padding": 2})),
            chain(x, "stem_c", (64, point), (96, same), (96, same)),
            chain(pooled, "stem_d", (64, point)),
        )
        x = units(jnp.concatenate(branches, axis=-1), "stage1", self.stages[0], _UNIT35, 0.17)
        branches = (
            chain(x, "reduce1_a", (384, half)),
            chain(x, "reduce1_b", (256, point), (256, same), (384, half)),
            nn.max_pool(x, (3, 3), (2, 2)),
        )
        x = units(jnp.concatenate(branches, axis=-1), "stage2", self.stages[1], _UNIT17, 0.1)
        branches = (
            chain(x, "reduce2_a", (256, point), (384, half)),
            chain(x, "reduce2_b", (256, point), (288, half)),
            chain(x, "reduce2_c", (256, point), (288, same), (320, half)),
            nn.max_pool(x, (3, 3), (2, 2)),
        )
        x = jnp.concatenate(branches, axis=-1)
        x = units(x, "stage3", self.stages[2], _UNIT8, 0.2, last_linear=True)
        x = jnp.mean(chain(x, "head", (1536, point)), axis=(1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(
            self.embedding,
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            param_dtype=self.param_dtype,
            name="head_dense",
        )(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        stages = [[(f"stage{i}_unit{j}",) for j in range(1, n + 1)] for i, n in enumerate(self.stages, 1)]
        return ("stem",), *stages[0], ("reduce1",), *stages[1], ("reduce2",), *stages[2]


class ConvNorm(nn.Module):
    """Convolution with bias, BN of scale 1 and, unless `linear`, ReLU. [B, H, W, C] -> [B, H', W', features]."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    linear: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(
            self.features,
            self.kernel,
            self.stride,
            padding=tuple((p, p) for p in self.padding),
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            name="conv",
            **types,
        )(x)
        x = BatchNorm(use_scale=False, epsilon=1e-3, name="norm", **types)(x, train=train)
        return x if self.linear else nn.relu(x)


class Unit(nn.Module):
    """relu(x + share · conv1x1(branches side by side)), without the relu where `linear`. [B, H, W, C] -> [B, H, W, C]."""

    branches: tuple
    share: float
    linear: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        ends = []
        for i, layers in enumerate(self.branches, start=1):
            y = x
            for j, (features, kernel, padding) in enumerate(layers, start=1):
                y = ConvNorm(features, kernel, padding=padding, name=f"branch{i}_conv{j}", **types)(
                    y, train=train
                )
            ends.append(y)
        y = jnp.concatenate(ends, axis=-1)
        y = ConvNorm(x.shape[-1], (1, 1), linear=True, name="out", **types)(y, train=train)
        x = x + self.share * y
        return x if self.linear else nn.relu(x)


MODELS.update({"inception_resnet": InceptionResNet})
