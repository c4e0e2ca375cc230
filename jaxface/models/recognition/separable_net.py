"""A few residual depthwise-separable layers for small images, without anything between their two convolutions.

Methods: ddc
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.ddc import DDCLayer, check_filter
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS


class SeparableNet(nn.Module):
    """Layers that differ in the size and the dilation of their depthwise filters alone (design).

        stem    conv3x3 (stride 2), ReLU
        layers  for each dilation x + ReLU(instance norm(pointwise(depthwise(x))))
        head    maximum over the plane, Dense

    Args:
      embedding: features of the last Dense layer, which has no bias; None leaves it out.
      channels: C of every layer.
      depthwise_kernel: k, odd.
      dilations: d of each layer.
      remat: "block" stores the inputs of the layers alone for the backward pass.

    image [B, H, W, c] -> [B, embedding] or [B, C] float32; `train` changes nothing. 3C² + 52C parameters with three 3x3 layers, a
    gray image and ten classes: 2,976 for 24 channels, and 4,128 with 5x5 filters. `dtype` is that of stem and layers.
    """

    embedding: int | None = 512
    channels: int = 24
    depthwise_kernel: int = 3
    dilations: tuple[int, ...] = (1, 1, 1)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        if self.channels < 1:
            raise UserError(f"channels: needs at least 1, got {self.channels}")
        for dilation in self.dilations:
            check_filter(self.depthwise_kernel, dilation)
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(
            self.channels,
            (3, 3),
            2,
            padding=1,
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            name="stem_conv",
            **types,
        )(image.astype(self.dtype))
        x = nn.relu(x)

        def layer(_, x, *, number, dilation):
            y = DDCLayer(
                self.channels,
                self.depthwise_kernel,
                dilation,
                norm=False,
                middle=False,
                activate=False,
                name=f"layer{number}",
                **types,
            )(x)
            return x + nn.relu(nn.InstanceNorm(epsilon=1e-5, name=f"layer{number}_norm", **types)(y))

        for i, dilation in enumerate(self.dilations, start=1):
            x = run_block(self, x, remat=self.remat, call=layer, number=i, dilation=dilation)
        x = jnp.max(x, axis=(1, 2)).astype(jnp.float32)
        if self.embedding is None:
            return x
        return nn.Dense(self.embedding, use_bias=False, param_dtype=self.param_dtype, name="head_dense")(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem",), *((f"layer{i}",) for i in range(1, len(self.dilations) + 1))


MODELS.update({"separable_net": SeparableNet})
