"""Context modules of detectors: three branches over one level of a pyramid that see 3, 5 and 7 pixels around each place.

A detector takes one by its kind; kinds register themselves where they are defined.

Methods: cassod, ddc
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.norm import BatchNorm
from jaxface.registry import Registry

CONTEXTS: Registry[Callable[..., nn.Module]] = Registry("context", "jaxface.layers")
"""Modules, or partial applications: `Context(features, dtype, param_dtype)(x [B, H, W, C], *, train) -> [B, H, W, features]`."""


def leaky_slope(features: int) -> float:
    """Slope below zero of the rectifiers of a RetinaFace of that many features: 0.1 up to 64, 0 above."""
    return 0.1 if features <= 64 else 0.0


class PlainConv(nn.Module):
    """A convolution 3x3 without bias and batch normalization: what a branch is made of unless a kind has something else.

    x [B, H, W, C] -> [B, H, W, features]; zeros around the image.
    """

    features: int
    dilation: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(
            self.features,
            (3, 3),
            padding=self.dilation,
            kernel_dilation=self.dilation,
            use_bias=False,
            name="conv",
            **types,
        )(x)
        return BatchNorm(name="norm", **types)(x, train=train)


class SSHContext(nn.Module):
    """The context module of SSH (arXiv:1708.03979) as RetinaFace has it: large fields of view from stacked 3x3 convolutions.

        near    conv3x3 to F/2, BN
        shared  conv3x3 to F/4, BN, leaky ReLU
        middle  conv3x3 of `shared` to F/4, BN
        far     conv3x3 of `shared` to F/4, BN, leaky ReLU, conv3x3 to F/4, BN
        output  ReLU(near, middle, far)

    x [B, H, W, C] -> [B, H, W, F]. The slope of the leaky ReLU is 0.1 up to 64 features, 0 above.

    Raises:
      UserError: features that 4 does not divide.

    Example:
      >>> layer, x = SSHContext(16), jnp.zeros((1, 12, 12, 8))
      >>> jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x, train=False), x)[0].shape
      (1, 12, 12, 16)
    """

    features: int = 64
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        quarter = _quarter(self.features)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        slope = leaky_slope(self.features)

        def conv(features, name, x):
            return PlainConv(features, name=name, **types)(x, train=train)

        near = conv(2 * quarter, "near", x)
        shared = nn.leaky_relu(conv(quarter, "shared", x), slope)
        middle = conv(quarter, "middle", shared)
        far = conv(quarter, "far2", nn.leaky_relu(conv(quarter, "far1", shared), slope))
        return nn.relu(jnp.concatenate([near, middle, far], axis=-1))


class DilatedContext(nn.Module):
    """Three parallel convolutions whose field of view grows by dilation instead of depth.

        output = ReLU(conv, dilation 1, to F/2 | conv, dilation 2, to F/4 | conv, dilation 3, to F/4)

    Args:
      features: F, of the output.
      dilations: of the branches, each >= 1.
      convolution: makes a branch, normalization included: `convolution(features, dilation=…, dtype=…, param_dtype=…, name=…)`
        is a module with a call `(x, *, train)`. A kind of context is this module with another convolution.

    x [B, H, W, C] -> [B, H, W, F].

    Raises:
      UserError: features that 4 does not divide, or a dilation below 1.

    Example:
      >>> layer, x = DilatedContext(16), jnp.zeros((1, 12, 12, 8))
      >>> jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x, train=False), x)[0].shape
      (1, 12, 12, 16)
    """

    features: int = 64
    dilations: tuple[int, int, int] = (1, 2, 3)
    convolution: Callable[..., nn.Module] = PlainConv
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        quarter = _quarter(self.features)
        if min(self.dilations) < 1:
            raise UserError(f"dilations: need numbers from 1, got {self.dilations}")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        branches = [
            self.convolution(features, dilation=dilation, name=name, **types)(x, train=train)
            for name, features, dilation in zip(
                ("near", "middle", "far"), (2 * quarter, quarter, quarter), self.dilations, strict=True
            )
        ]
        return nn.relu(jnp.concatenate(branches, axis=-1))


def _quarter(features: int) -> int:
    if features < 4 or features % 4:
        raise UserError(f"features: needs a multiple of 4, got {features}")
    return features // 4


CONTEXTS.update({"ssh": SSHContext, "dilated": DilatedContext})
