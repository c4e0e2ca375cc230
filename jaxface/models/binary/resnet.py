"""ResNets whose inner convolutions are binary, each with a shortcut of its own (arXiv:1808.00278, 2003.03488).

Methods: rbonn, bamsprod
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers import BatchNorm, PReLU
from jaxface.layers.binary import BinaryConv, ChannelBias
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder, stage_blocks
from jaxface.models.registry import MODELS


class BinaryResNet(nn.Module):
    """ResNet of units with one binary convolution each.

        stem    conv7x7 (stride 2), BN, 3x3 max-pool (stride 2), real;   with `small_images` conv3x3, BN
        stages  units; every stage but the first halves the plane
        head    mean over the plane, Dense, real

    Args:
      embedding: features of the last Dense layer: the size of an embedding, or the number of classes; None leaves it out.
      stages: units per stage; ResNet-18's basic blocks have two convolutions, so it has four to a stage.
      channels: per stage.
      small_images: the plain stem.
      conv: makes a binary layer of (features, kernel_size=, strides=, dtype=, param_dtype=, name=), such as
        `functools.partial(BinaryConv, scale="learned")`.
      remat: "block" stores the inputs of the units alone for the backward pass.

    image [B, H, W, C] -> [B, E] float32; `dtype` is that of stem and stages, the head is float32.
    """

    embedding: int | None = 512
    stages: tuple[int, ...] = (4, 4, 4, 4)
    channels: tuple[int, ...] = (64, 128, 256, 512)
    small_images: bool = False
    conv: Callable[..., nn.Module] = BinaryConv
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        if len(self.stages) != len(self.channels):
            raise UserError(f"stages, channels: need the same length, got {self.stages} and {self.channels}")
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kernel, stride = (3, 1) if self.small_images else (7, 2)
        x = _conv(self.channels[0], kernel, stride, name="stem_conv", **types)(image.astype(self.dtype))
        x = BatchNorm(name="stem_norm", **types)(x, train=train)
        if not self.small_images:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for name, features, stride in self.units():
            unit = BinaryUnit(features, stride, self.conv, name=name, **types)
            x = run_block(unit, x, remat=self.remat, train=train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        if self.embedding is None:
            return x
        return nn.Dense(self.embedding, param_dtype=self.param_dtype, name="head_dense")(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem",), *stage_blocks(self.stages, "unit")

    def units(self) -> list[tuple[str, int, int]]:
        """(name, features, stride) of every unit, in order."""
        return [
            (f"stage{i}_unit{j}", features, 2 if j == 1 and i > 1 else 1)
            for i, (units, features) in enumerate(zip(self.stages, self.channels, strict=True), start=1)
            for j in range(1, units + 1)
        ]


class BinaryUnit(nn.Module):
    """bias, sign, binary conv3x3 (stride), BN, + shortcut, bias, PReLU, bias.

    The shortcut is x; where plane or channels change, the mean over 2x2 (stride 2), a real conv1x1 and BN.

    x [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    stride: int = 1
    conv: Callable[..., nn.Module] = BinaryConv
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = ChannelBias(name="bias_before_sign", **types)(x)
        strides = (self.stride, self.stride)
        y = self.conv(self.features, kernel_size=(3, 3), strides=strides, name="binary", **types)(
            y, train=train
        )
        y = BatchNorm(name="norm", **types)(y, train=train)
        if self.stride > 1 or x.shape[-1] != self.features:
            x = mean_pool(x, self.stride)
            x = _conv(self.features, 1, name="shortcut_conv", **types)(x)
            x = BatchNorm(name="shortcut_norm", **types)(x, train=train)
        y = ChannelBias(name="bias_before_prelu", **types)(y + x)
        y = PReLU(name="prelu", **types)(y)
        return ChannelBias(name="bias_after_prelu", **types)(y)


def mean_pool(x: jax.Array, stride: int) -> jax.Array:
    """Mean over stride x stride pixels, and over those that there are at an odd edge; [B, H, W, C]."""
    if stride == 1:
        return x
    return nn.avg_pool(x, (stride, stride), (stride, stride), "SAME", count_include_pad=False)


def _conv(features: int, kernel: int, stride: int = 1, **options) -> nn.Conv:
    options["kernel_init"] = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return nn.Conv(features, (kernel, kernel), stride, padding=kernel // 2, use_bias=False, **options)


MODELS.update(
    {
        "binary_resnet18": BinaryResNet,
        "binary_resnet34": partial(BinaryResNet, stages=(6, 8, 12, 6)),
        "cifar_binary_resnet18": partial(BinaryResNet, small_images=True),
        "cifar_binary_resnet34": partial(BinaryResNet, stages=(6, 8, 12, 6), small_images=True),
        # Four units of 16 channels, for images as small as digits.
        "binary_resnet_pico": partial(BinaryResNet, stages=(4,), channels=(16,), small_images=True),
    }
)
