"""MobileNetV1 (arXiv:1704.04861) as a classifier and as the backbone of a detector, with depthwise filters of any odd size.

Methods: ddc
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers import BatchNorm
from jaxface.layers.ddc import DDCLayer, check_filter
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS

# channels at width 1, stride
_UNITS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
_LEVELS = (5, 11, 13)  # the last units of strides 8, 16 and 32


class MobileNetV1(nn.Module):
    """Thirteen depthwise-separable units behind a strided stem.

        stem    conv3x3 (stride 2), BN, φ
        units   `unit1` to `unit13`: depthwise kxk (stride), BN, φ, conv1x1, BN, φ  (`jaxface.layers.DDCLayer`)
        head    mean over the plane, Dense

    Args:
      embedding: features of the last Dense layer: the size of an embedding, or the number of classes; None leaves it out.
      width: factor of every number of channels (the integer part is taken).
      depthwise_kernel: k, odd; 5 is the large-kernel network of arXiv:2104.14125, the strides and the planes stay.
      negative_slope: of φ below zero: 0 is ReLU; 0.1 is what RetinaFace's MobileNetV1-0.25 has.
      remat: "block" stores the inputs of the units alone for the backward pass.

    image [B, H, W, C] -> [B, E] float32. `dtype` is that of stem and units; the head is float32. Without normalizations, with
    1000 classes at width 1: 4,209,088 weights and 568.7 million multiply-accumulates at 224², with 5x5 filters 4,288,448 and
    599.6 million.
    """

    embedding: int | None = 512
    width: float = 1.0
    depthwise_kernel: int = 3
    negative_slope: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        if int(32 * self.width) < 1:
            raise UserError(f"width: needs at least 1/32, got {self.width}")
        check_filter(self.depthwise_kernel)
        super().__post_init__()

    def setup(self):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.stem_conv = nn.Conv(
            int(32 * self.width),
            (3, 3),
            2,
            padding=1,  # "SAME" would pad on one side only
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            **types,
        )
        self.stem_norm = BatchNorm(**types)
        for i, (features, stride) in enumerate(_UNITS, start=1):
            unit = DDCLayer(
                int(features * self.width),
                self.depthwise_kernel,
                stride=stride,
                negative_slope=self.negative_slope,
                **types,
            )
            setattr(self, f"unit{i}", unit)
        if self.embedding is not None:
            self.head_dense = nn.Dense(self.embedding, param_dtype=self.param_dtype)

    def levels(self, image: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The maps of strides 8, 16 and 32: [B, ⌈H/8⌉, ⌈W/8⌉, 256·width], 512·width and 1024·width channels."""
        x = self.stem_norm(self.stem_conv(image.astype(self.dtype)), train=train)
        x = nn.leaky_relu(x, self.negative_slope) if self.negative_slope else nn.relu(x)
        maps = []
        for i in range(1, len(_UNITS) + 1):
            x = run_block(getattr(self, f"unit{i}"), x, remat=self.remat, train=train)
            if i in _LEVELS:
                maps.append(x)
        return tuple(maps)

    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = jnp.mean(self.levels(image, train=train)[-1], axis=(1, 2), dtype=jnp.float32)
        return x if self.embedding is None else self.head_dense(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem",), *((f"unit{i}",) for i in range(1, len(_UNITS) + 1))


MODELS.update(
    {
        "mobilenet_v1": MobileNetV1,
        "mobilenet_v1_half": partial(MobileNetV1, width=0.5),
        "mobilenet_v1_quarter": partial(MobileNetV1, width=0.25),
    }
)
