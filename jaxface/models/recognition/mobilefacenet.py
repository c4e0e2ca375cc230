"""MobileFaceNet: inverted bottlenecks with PReLU and a global depthwise convolution (arXiv:1804.07573)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.layers import BatchNorm, DepthwiseConv, PReLU
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder, stage_blocks
from jaxface.models.registry import MODELS


class ConvNorm(nn.Module):
    """Convolution without bias, BN and, unless `linear`, PReLU. [B, H, W, C] -> [B, H', W', features].

    `groups` equal to the number of features makes it depthwise. `padding` is applied alike on both sides.
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: int = 0
    groups: int = 1
    linear: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.groups == self.features == x.shape[-1]:
            x = DepthwiseConv(self.kernel, self.stride, self.padding, name="conv", **types)(x)
        else:
            x = nn.Conv(
                self.features,
                self.kernel,
                self.stride,
                padding=self.padding,
                feature_group_count=self.groups,
                use_bias=False,
                kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
                name="conv",
                **types,
            )(x)
        x = BatchNorm(name="norm", **types)(x, train=train)
        return x if self.linear else PReLU(name="activation", **types)(x)


class Bottleneck(nn.Module):
    """1x1 expansion to `hidden`, 3x3 depthwise (stride), linear 1x1 projection; a residual when stride = 1."""

    features: int
    hidden: int
    stride: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        depthwise = {"kernel": (3, 3), "padding": 1, "groups": self.hidden, "stride": self.stride}
        y = ConvNorm(self.hidden, name="expand", **types)(x, train=train)
        y = ConvNorm(self.hidden, name="depthwise", **depthwise, **types)(y, train=train)
        y = ConvNorm(self.features, linear=True, name="project", **types)(y, train=train)
        return x + y if self.stride == 1 else y


class MobileFaceNet(nn.Module):
    """MobileFaceNet (arXiv:1804.07573) and the wider "mbf" of InsightFace.

        stem        conv3x3 (stride 2), conv3x3 in 64 groups
        stages      three, each one Bottleneck of stride 2 and then `blocks` of stride 1
        head        conv1x1 to 512, depthwise convolution over all that is left of the plane, Dense, BN

    Args:
      embedding: size E of the embedding.
      channels: output channels of stem and the three stages.
      hidden: expanded channels: first block of stage 1, rest of stage 1, and so on for the three stages.
      blocks: stride-1 blocks per stage.
      use_bias: whether the Dense layer has a bias (the original has, the wider one has not).
      remat: "block" stores the inputs of the bottlenecks alone for the backward pass.

    image [B, H, W, C] float in [-1, 1] -> [B, E] float32, not normalized. H and W are free; 112 leaves 7x7 to the head.
    `dtype` is that of the convolutions; the last two layers are float32.
    """

    embedding: int = 512
    channels: tuple[int, int, int, int] = (64, 64, 128, 128)
    hidden: tuple[tuple[int, int], ...] = ((128, 128), (256, 256), (512, 256))
    blocks: tuple[int, int, int] = (4, 6, 2)
    use_bias: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        stem, *stages = self.channels
        x = ConvNorm(stem, (3, 3), stride=2, padding=1, name="stem1", **types)(
            image.astype(self.dtype), train=train
        )
        # 64 groups in both sizes: depthwise in the original, two channels to a group in the wider one.
        x = ConvNorm(stem, (3, 3), padding=1, groups=64, name="stem2", **types)(x, train=train)
        for i, (features, (first, rest), blocks) in enumerate(
            zip(stages, self.hidden, self.blocks, strict=True), start=1
        ):
            for j in range(1, blocks + 2):
                hidden, stride = (first, 2) if j == 1 else (rest, 1)
                block = Bottleneck(features, hidden, stride, name=f"stage{i}_block{j}", **types)
                x = run_block(block, x, remat=self.remat, train=train)
        x = ConvNorm(512, name="head_conv", **types)(x, train=train)
        x = ConvNorm(512, x.shape[1:3], groups=512, linear=True, name="head_pool", **types)(x, train=train)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        x = nn.Dense(
            self.embedding,
            use_bias=self.use_bias,
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            param_dtype=self.param_dtype,
            name="head_dense",
        )(x)
        return BatchNorm(param_dtype=self.param_dtype, name="head_embedding")(x, train=train)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem1",), ("stem2",), *stage_blocks([1 + count for count in self.blocks])


MODELS.update(
    {
        "mobilefacenet": MobileFaceNet,
        "mobilefacenet_large": partial(MobileFaceNet, channels=(128, 128, 256, 256), use_bias=False),
    }
)
