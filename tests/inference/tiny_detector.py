"""A RetinaFace of few layers, which compiles in a second: three strided convolutions and one as context."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxface.layers import BatchNorm
from jaxface.layers.context import CONTEXTS, PlainConv
from jaxface.models.detection import RetinaFace
from jaxface.models.detection.pyramid import BACKBONES


class _ThreeConvs(nn.Module):
    remat: str = "none"  # has no blocks to compute again
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def levels(self, image, *, train):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x, levels = nn.avg_pool(image, (4, 4), (4, 4)), []
        for i, features in enumerate((8, 16, 16)):
            x = nn.Conv(features, (3, 3), 2, padding=1, use_bias=False, name=f"conv{i}", **types)(x)
            x = nn.relu(BatchNorm(name=f"norm{i}", **types)(x, train=train))
            levels.append(x)
        return tuple(levels)


BACKBONES.update({"three_convs_of_tests": _ThreeConvs})
CONTEXTS.update({"one_conv_of_tests": PlainConv})

FIELDS = dict(
    backbone="three_convs_of_tests",
    context="one_conv_of_tests",
    features=8,
    anchor_sizes=(16.0, 24.0, 32.0, 40.0, 48.0, 60.0),
)
TINY = RetinaFace(**FIELDS)
