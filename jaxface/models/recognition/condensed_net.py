"""Three convolutions for small images, whose maps are pooled over groups of channels.

Methods: condensation_net
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import AtLeast, check_number
from jaxface.layers.condensation import CondensationConv, condensation_gain
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS


class CondensedNet(nn.Module):
    """Networks of one memory for feature maps whatever the number of filters per map (design).

        layers  conv3x3 of R·M, R·2M, R·2M filters, strides 2, 2, 1, pooled to M, 2M, 2M maps; leaky ReLU
        head    maximum over the plane, Dense

    Args:
      embedding: features of the last Dense layer, which has no bias; None leaves it out.
      channels: M, maps that the first layer stores.
      groups: R, filters of each stored map.
      reduce: max, or mean before the activation, which makes one filter of the R (a control: R times the weights for nothing).
      corrected: weights start with the variance that keeps the signal's power under the maximum, else with He's.
      quantized: binary weights and 2-bit activations in the second and third layer, behind batch normalization.
      remat: "block" stores the inputs of the layers alone for the backward pass.

    image [B, H, W, c] -> [B, embedding] or [B, 2M] float32. `train` changes nothing but batch normalization. With ten classes and
    gray images 2,148 parameters for M = 6 and R = 1, 4,176 for R = 2, 8,232 for R = 4, and 8,184 for M = 12 and R = 1 (without
    normalization). `dtype` is that of the layers.
    """

    embedding: int | None = 512
    channels: int = 6
    groups: int = 2
    reduce: Literal["max", "mean"] = "max"
    corrected: bool = True
    quantized: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        check_number("channels", self.channels, AtLeast(1))
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = image.astype(self.dtype)
        for i, (width, stride) in enumerate(((1, 2), (2, 2), (2, 1)), start=1):
            mean = self.reduce == "mean"
            quantized = self.quantized and i > 1
            layer = CondensationConv(
                width * self.channels,
                self.groups,
                stride=stride,
                norm=quantized,
                reduce=self.reduce,
                negative_slope=1.0 if mean else 0.1,
                quantized=quantized,
                gain=self._gain(mean),
                name=f"layer{i}",
                **types,
            )
            x = run_block(layer, x, remat=self.remat, train=train)
            x = nn.leaky_relu(x, 0.1) if mean else x
        x = jnp.max(x, axis=(1, 2)).astype(jnp.float32)
        if self.embedding is None:
            return x
        return nn.Dense(self.embedding, use_bias=False, param_dtype=self.param_dtype, name="head_dense")(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("layer1",), ("layer2",), ("layer3",)

    def _gain(self, mean: bool) -> float | None:
        if not self.corrected:
            return 2.0
        # The mean of R filters of R times the variance is a filter as a plain convolution starts with.
        return self.groups * condensation_gain(1) if mean else None


MODELS.update({"condensed_net": CondensedNet})
