"""A network small enough to train in seconds whose binary layers can be judged on their own.

Methods: rbonn, bamsprod
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers import BatchNorm
from jaxface.layers.binary import BinaryConv, ChannelBias, uniform_init
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS

WEIGHT_INITS: dict[str, Callable] = {
    "normal": nn.initializers.variance_scaling(1.0, "fan_in", "normal"),
    "uniform": uniform_init(1.0),
}


class BinarySmall(nn.Module):
    """A real layer, binary layers with shortcuts, and a linear classifier where it has one.

        x <- flatten(image) W            real
        x <- x + BN(binary(x - t))       for each binary layer, t a learned threshold per channel

    Binary layers are 1 x 1 convolutions on a plane of one pixel, so that every layer for convolutions serves. Where only what is
    called `binary` is trained (`jaxface.optimizers.train_only`), accuracy speaks of the binary layers: with random signs that
    are held and real layers that learn, digits are read with 0.95 anyway.

    Args:
      embedding: features of the last Dense layer; None leaves it out, and the output has `width` features.
      width: features of every layer.
      depth: binary layers.
      weight_init: of latent weights: "normal" with variance 1 / fan_in, or "uniform" on [-1, 1].
      conv: makes a binary layer of (features, kernel_size=, kernel_init=, dtype=, param_dtype=, name=).
      remat: "block" stores the inputs of the binary layers alone for the backward pass.

    image [B, ...] float -> [B, embedding or width] float32.
    """

    embedding: int | None = None
    width: int = 64
    depth: int = 3
    weight_init: str = "normal"
    conv: Callable[..., nn.Module] = BinaryConv
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        if self.weight_init not in WEIGHT_INITS:
            raise UserError(f"weight_init: needs one of {', '.join(WEIGHT_INITS)}, got {self.weight_init!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = image.reshape(image.shape[0], 1, 1, -1)
        x = nn.Dense(self.width, use_bias=False, name="input_dense", **types)(x)
        for i in range(1, self.depth + 1):
            block = SmallBlock(self.width, self.weight_init, self.conv, name=f"block{i}", **types)
            x = run_block(block, x, remat=self.remat, train=train)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        if self.embedding is None:
            return x
        return nn.Dense(self.embedding, param_dtype=self.param_dtype, name="head_dense")(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("input",), *((f"block{i}",) for i in range(1, self.depth + 1))


class SmallBlock(nn.Module):
    """x + BN(binary(x - threshold)), with fields as `BinarySmall`; x [B, 1, 1, width]."""

    width: int
    weight_init: str
    conv: Callable[..., nn.Module]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = ChannelBias(name="threshold", **types)(x)
        y = self.conv(
            self.width,
            kernel_size=(1, 1),
            kernel_init=WEIGHT_INITS[self.weight_init],
            name="binary",
            **types,
        )(y, train=train)
        return x + BatchNorm(name="norm", **types)(y, train=train)


MODELS.update({"binary_small": BinarySmall})
