"""Wide residual networks for images of 32 pixels (arXiv:1605.07146), as classifiers or embedding networks.

Methods: law
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers import BatchNorm
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder, stage_blocks
from jaxface.models.registry import MODELS


def _conv(features: int, kernel: int, stride: int, **options) -> nn.Conv:
    options["kernel_init"] = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return nn.Conv(features, (kernel, kernel), stride, padding=kernel // 2, use_bias=False, **options)


class WideBlock(nn.Module):
    """One residual unit that normalizes first: shortcut(x) + conv3x3(dropout(relu(BN(conv3x3(relu(BN(x))))))).

    The stride sits in the first convolution. Where plane or channels change, the shortcut is a conv1x1 of relu(BN(x)).

    x [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    stride: int = 1
    dropout: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        active = nn.relu(BatchNorm(name="norm1", **types)(x, train=train))
        y = _conv(self.features, 3, self.stride, name="conv1", **types)(active)
        y = nn.relu(BatchNorm(name="norm2", **types)(y, train=train))
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        y = _conv(self.features, 3, 1, name="conv2", **types)(y)
        if self.stride > 1 or x.shape[-1] != self.features:
            x = _conv(self.features, 1, self.stride, name="shortcut_conv", **types)(active)
        return x + y


class WideResNet(nn.Module):
    """WRN: a plain stem, stages of wide units that normalize first, BN, ReLU, and the mean over the plane.

        stem    conv3x3
        stages  residual units; every stage but the first halves the plane
        head    BN, ReLU, mean over the plane, Dense

    Args:
      embedding: features of the last Dense layer: the size of an embedding, or the number of classes; None leaves it out.
      stages, channels: residual units, and channels of their convolutions, per stage. WRN-d-k has (d - 4) / 6 units in each of
        three stages of 16 k, 32 k and 64 k channels.
      stem: channels of the stem.
      dropout: rate between the convolutions of a unit, in [0, 1).
      remat: "block" stores the inputs of the residual units alone for the backward pass.

    image [B, H, W, C] -> [B, E] float32. `dtype` is that of stem and stages; the head is float32.
    Convolutions start from He's normal initialization (fan out).
    """

    embedding: int | None = 512
    stages: tuple[int, ...] = (4, 4, 4)
    channels: tuple[int, ...] = (160, 320, 640)
    stem: int = 16
    dropout: float = 0.0
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
        x = _conv(self.stem, 3, 1, name="stem_conv", **types)(image.astype(self.dtype))
        for i, (units, features) in enumerate(zip(self.stages, self.channels, strict=True), start=1):
            for j in range(units):
                stride = 2 if j == 0 and i > 1 else 1
                unit = WideBlock(features, stride, self.dropout, name=f"stage{i}_block{j + 1}", **types)
                x = run_block(unit, x, remat=self.remat, train=train)
        x = nn.relu(BatchNorm(name="head_norm", **types)(x, train=train))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        if self.embedding is None:
            return x
        return nn.Dense(self.embedding, param_dtype=self.param_dtype, name="head_dense")(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem",), *stage_blocks(self.stages)


MODELS.update(
    {
        "wrn28_10": WideResNet,
        "wrn16_4": partial(WideResNet, stages=(2, 2, 2), channels=(64, 128, 256)),
    }
)
