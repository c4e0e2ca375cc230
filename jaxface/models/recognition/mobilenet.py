"""MobileNet (arXiv:1704.04861) for aligned faces, as the public MXNet code of InsightFace has it ("m1").

Methods: cloak
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.layers import BatchNorm, DepthwiseConv, PReLU
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS

_STAGES = (
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


class MobileNet(nn.Module):
    """Depthwise-separable convolutions with PReLU behind a plain stem, and a head that keeps the places.

        stem    conv3x3, BN, PReLU
        stages  for each of `stages`: depthwise 3x3 (stride), BN, PReLU, conv1x1, BN, PReLU; the last conv1x1 is linear
        head    BN, dropout, flatten, Dense, BN

    Args:
      embedding: size E of the embedding.
      stages: channels out and stride of the depthwise convolution, of each of the 13 units.
      width: factor on the channels, rounded to multiples of 8.
      dropout: rate before the Dense layer, in [0, 1).
      remat: "block" stores the inputs of the units alone for the backward pass.

    image [B, H, W, C] float in [-1, 1] -> [B, E] float32, not normalized. H and W are free; 112 leaves 7x7 to the head. The
    scales of the BN between the convolutions and of the last one are fixed at 1, as released. `dtype` is that of the
    convolutions; the Dense layer and the last BN are float32. Convolutions start from He's normal initialization (fan out), Dense
    from uniform(±1/sqrt(fan_in)).
    """

    embedding: int = 512
    stages: tuple[tuple[int, int], ...] = _STAGES
    width: float = 1.0
    dropout: float = 0.4
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def activate(x, name):
            x = BatchNorm(use_scale=False, epsilon=1e-3, name=f"{name}_norm", **types)(x, train=train)
            return PReLU(name=f"{name}_activation", **types)(x)

        def conv(features, kernel, name):
            features = max(8, round(features * self.width / 8) * 8)
            return nn.Conv(
                features,
                (kernel, kernel),
                padding=kernel // 2,
                use_bias=False,
                kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
                name=name,
                **types,
            )

        def unit(_, x, *, number, features, stride):
            x = DepthwiseConv((3, 3), stride, padding=1, name=f"unit{number}_depthwise", **types)(x)
            x = conv(features, 1, f"unit{number}_conv")(activate(x, f"unit{number}_depthwise"))
            return activate(x, f"unit{number}_conv") if number < len(self.stages) else x

        x = activate(conv(32, 3, "stem_conv")(image.astype(self.dtype)), "stem")
        for i, (features, stride) in enumerate(self.stages, start=1):
            x = run_block(self, x, remat=self.remat, call=unit, number=i, features=features, stride=stride)
        x = BatchNorm(name="head_norm", **types)(x, train=train)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = nn.Dense(
            self.embedding,
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            param_dtype=self.param_dtype,
            name="head_dense",
        )(x)
        return BatchNorm(use_scale=False, param_dtype=self.param_dtype, name="head_embedding")(x, train=train)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem",), *((f"unit{i}",) for i in range(1, len(self.stages) + 1))


MODELS.update({"mobilenet": MobileNet})
