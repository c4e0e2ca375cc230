"""The operations of a cell, each in every form of its convolutions.

    sep_conv, dil_conv   BN, depthwise (dilated), BN, PReLU, 1 x 1 of signs, BN, + x at stride 1, PReLU; sep_conv twice
    conv                 BN, k x k of signs, BN, + x at stride 1, PReLU
    max_pool, avg_pool   3 x 3, BN
    skip_connect         x; at stride 2 two 1 x 1 convolutions of other pixels (`FactorizedReduce`)
    none                 nothing

Methods: dcp_nas
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxface.layers import BatchNorm, PReLU
from jaxface.layers.dcp_nas import Form, OneBitConv, ScaleRule

EPSILON = 1e-3  # of the normalizations inside of operations


class Style(NamedTuple):
    """What all layers of a network have in common.

    Attributes:
      form, scale: of its convolutions (`OneBitConv`).
      affine: whether normalizations have a scale and a bias; those of a supernet have none.
      forward_mode: whether forward derivatives are taken of it.
      dtype, param_dtype: of its layers.
    """

    form: Form = "real"
    scale: ScaleRule = "learned"
    affine: bool = True
    forward_mode: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def conv(self, features: int, kernel_size: int = 1, **fields) -> OneBitConv:
        """A convolution."""
        return OneBitConv(
            features,
            kernel_size,
            form=self.form,
            scale=self.scale,
            forward_mode=self.forward_mode,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            **fields,
        )

    def norm(self, name: str) -> BatchNorm:
        """A batch normalization."""
        return BatchNorm(
            use_scale=self.affine,
            use_bias=self.affine,
            epsilon=EPSILON,
            name=name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def prelu(self, name: str) -> PReLU:
        """A rectifier with a learned slope."""
        return PReLU(name=name, dtype=self.dtype, param_dtype=self.param_dtype)


class DepthwiseSeparable(nn.Module):
    """The dil_conv of a cell; x [B, H, W, C] -> [B, ⌈H / stride⌉, ⌈W / stride⌉, features]."""

    features: int
    stride: int
    style: Style
    kernel_size: int = 3
    dilation: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        style, side = self.style, self.kernel_size
        y = style.norm("norm_in")(x, train=train)
        shape = {"stride": self.stride, "dilation": self.dilation, "depthwise": True, "sign_inputs": False}
        y = style.conv(x.shape[-1], side, name="depthwise", **shape)(y)
        y = style.prelu("prelu")(style.norm("norm")(y, train=train))
        y = style.conv(self.features, name="binary")(y)
        y = style.norm("norm_out")(y, train=train)
        return style.prelu("prelu_out")(y + x if self.stride == 1 else y)


class Separable(nn.Module):
    """The sep_conv of a cell: two depthwise separable convolutions, the first with the stride; shapes as there."""

    features: int
    stride: int
    style: Style
    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for name, stride in (("first", self.stride), ("second", 1)):
            x = DepthwiseSeparable(
                self.features, stride, self.style, self.kernel_size, dilation=1, name=name
            )(x, train=train)
        return x


class FullConv(nn.Module):
    """The conv of a cell; shapes as `DepthwiseSeparable`."""

    features: int
    stride: int
    style: Style
    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        style = self.style
        y = style.norm("norm_in")(x, train=train)
        y = style.conv(self.features, self.kernel_size, stride=self.stride, name="binary")(y)
        y = style.norm("norm_out")(y, train=train)
        return style.prelu("prelu_out")(y + x if self.stride == 1 else y)


class Pool(nn.Module):
    """3 x 3 maximum or mean over the pixels that there are, then a normalization; shapes as `DepthwiseSeparable`."""

    features: int
    stride: int
    style: Style
    kind: str = "max"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.style.norm("norm")(pool(x, self.stride, self.kind), train=train)


class Skip(nn.Module):
    """The input, or at stride 2 a factorized reduction of it; shapes as `DepthwiseSeparable`."""

    features: int
    stride: int
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.stride == 1:
            return x
        return FactorizedReduce(self.features, self.style, name="reduce")(x, train=train)


class FactorizedReduce(nn.Module):
    """BN, two 1 x 1 convolutions of stride 2, the second of the pixels one farther, side by side; BN, PReLU. Inputs are real.

    x [B, H, W, C] -> [B, ⌈H / 2⌉, ⌈W / 2⌉, features].
    """

    features: int
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        style = self.style
        x = style.norm("norm_in")(x, train=train)
        # One pixel farther; at an odd edge there is none.
        farther = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
        half = self.features // 2
        y = [
            style.conv(width, stride=2, sign_inputs=False, name=name)(image)
            for name, width, image in (("even", half, x), ("odd", self.features - half, farther))
        ]
        y = style.norm("norm_out")(jnp.concatenate(y, axis=-1), train=train)
        return style.prelu("prelu")(y)


class Preprocess(nn.Module):
    """BN, 1 x 1 convolution of real inputs, BN, PReLU; [B, H, W, C] -> [B, H, W, features]."""

    features: int
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        style = self.style
        x = style.norm("norm_in")(x, train=train)
        x = style.conv(self.features, sign_inputs=False, name="pointwise")(x)
        return style.prelu("prelu")(style.norm("norm_out")(x, train=train))


OPERATIONS: dict[str, Callable[..., nn.Module]] = {
    "max_pool_3x3": functools.partial(Pool, kind="max"),
    "avg_pool_3x3": functools.partial(Pool, kind="mean"),
    "skip_connect": Skip,
    "sep_conv_3x3": functools.partial(Separable, kernel_size=3),
    "sep_conv_5x5": functools.partial(Separable, kernel_size=5),
    "dil_conv_3x3": functools.partial(DepthwiseSeparable, kernel_size=3),
    "dil_conv_5x5": functools.partial(DepthwiseSeparable, kernel_size=5),
    "conv_3x3": functools.partial(FullConv, kernel_size=3),
    "conv_1x1": functools.partial(FullConv, kernel_size=1),
}
"""Name -> module of (features, stride, style, name=); `none` makes nothing and is not among them."""
WEIGHTLESS = ("none", "skip_connect", "max_pool_3x3", "avg_pool_3x3")
"""Operations that count as without weights, although a strided skip has some."""


def pool(x: jax.Array, stride: int, kind: str) -> jax.Array:
    """3 x 3 maximum ("max") or mean over the pixels that there are; as slices, which XLA vectorizes and differentiates both ways.

    x [B, H, W, C] -> [B, ⌈H / stride⌉, ⌈W / stride⌉, C].
    """
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    join, fill = (jnp.maximum, -jnp.inf) if kind == "max" else (jnp.add, 0.0)
    y = _over_window(x, stride, join, fill)
    return y if kind == "max" else y / _over_window(ones, stride, join, fill)


def _over_window(x, stride, join, fill):
    for axis in (1, 2):
        size = x.shape[axis]
        pads = [(0, 0)] * 4
        pads[axis] = (1, 1)
        padded = jnp.pad(x, pads, constant_values=fill)
        out = (size - 1) // stride + 1
        last = stride * (out - 1) + 1
        slices = [lax.slice_in_dim(padded, i, i + last, stride, axis) for i in range(3)]
        x = functools.reduce(join, slices)
    return x
