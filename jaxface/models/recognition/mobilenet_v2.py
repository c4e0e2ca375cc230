"""MobileNetV2 (arXiv:1801.04381) in its form for images of 32 x 32, the student of RCO (arXiv:1904.09149)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers import BatchNorm, DepthwiseConv
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder, stage_blocks
from jaxface.models.registry import MODELS

# expansion, channels at width 1, blocks, stride of the first
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """Inverted bottlenecks with ReLU; two strides fewer than the ImageNet form, so that 32 x 32 becomes 2 x 2 before the mean.

        stem    conv3x3 (stride 2), BN, ReLU
        stages  17 inverted bottlenecks
        head    conv1x1 to 1280, BN, ReLU, mean over the plane, Dense

    Args:
      embedding: features of the last Dense layer: the size of an embedding, or the number of classes; None leaves it out.
      width: factor of every number of channels (the integer part is taken); the 1280 of the head grow above 1 but do not
        shrink below. 0.5 is the paper's student: 812,836 parameters with 100 classes.
      remat: "block" stores the inputs of the bottlenecks alone for the backward pass.

    image [B, H, W, C] -> [B, E] float32. `dtype` is that of stem, stages and the head's convolution. Convolutions start from
    normal(sqrt(2 / (k² · channels out))), the Dense layer from normal(0.01).
    """

    embedding: int | None = 512
    width: float = 1.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        if int(_STAGES[0][1] * self.width) < 1:
            raise UserError(f"width: needs at least 1/16, got {self.width}")
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = _conv(int(32 * self.width), kernel=3, stride=2, name="stem_conv", **types)(
            image.astype(self.dtype)
        )
        x = nn.relu(BatchNorm(name="stem_norm", **types)(x, train=train))
        for i, (expansion, channels, blocks, first) in enumerate(_STAGES, start=1):
            for j in range(blocks):
                block = InvertedBottleneck(
                    int(channels * self.width),
                    expansion,
                    first if j == 0 else 1,
                    name=f"stage{i}_block{j + 1}",
                    **types,
                )
                x = run_block(block, x, remat=self.remat, train=train)
        x = _conv(max(1280, int(1280 * self.width)), name="head_conv", **types)(x)
        x = nn.relu(BatchNorm(name="head_norm", **types)(x, train=train))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        if self.embedding is None:
            return x
        return nn.Dense(
            self.embedding,
            kernel_init=nn.initializers.normal(0.01),
            param_dtype=self.param_dtype,
            name="head_dense",
        )(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem",), *stage_blocks([blocks for _, _, blocks, _ in _STAGES])


class InvertedBottleneck(nn.Module):
    """conv1x1 to `expansion` times the channels, BN, ReLU, depthwise 3x3 (stride), BN, ReLU, conv1x1 to `features`, BN.

    A residual where stride and channels allow one. x [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    expansion: int
    stride: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = _conv(self.expansion * x.shape[-1], name="conv1", **types)(x)
        y = nn.relu(BatchNorm(name="norm1", **types)(y, train=train))
        y = DepthwiseConv((3, 3), self.stride, padding=1, name="conv2", **types)(y)
        y = nn.relu(BatchNorm(name="norm2", **types)(y, train=train))
        y = _conv(self.features, name="conv3", **types)(y)
        y = BatchNorm(name="norm3", **types)(y, train=train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


def _conv(features: int, *, kernel: int = 1, stride: int = 1, **options) -> nn.Conv:
    # Padding is the same on both sides; "SAME" would pad a strided convolution on one side only.
    options["kernel_init"] = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return nn.Conv(features, (kernel, kernel), stride, padding=kernel // 2, use_bias=False, **options)


MODELS.update(
    {
        "mobilenet_v2": MobileNetV2,
        "mobilenet_v2_half": partial(MobileNetV2, width=0.5),
        "mobilenet_v2_quarter": partial(MobileNetV2, width=0.25),
    }
)
