"""Blocks of MetaNet: convolutions that squeeze, and attention of tokens or of channels (arXiv:2111.08687, arXiv:2207.08676).

All take and give maps [B, H, W, C]; with `stride` s the plane becomes ceil(H / s) x ceil(W / s).

Methods: intern
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.activation import exact_gelu
from jaxface.layers.attention import Attention, DotProduct, LayerScale
from jaxface.layers.binary import ChannelBias
from jaxface.layers.depthwise import DepthwiseConv
from jaxface.layers.norm import BatchNorm

_EPSILON = 1e-6
"""Of the layer normalizations."""


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to a number of channels, at least one and never below 0.9 of it.

    Example:
      >>> make_divisible(4), make_divisible(12), make_divisible(33)
      (8, 16, 32)
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class SqueezeChannels(nn.Module):
    """Channels by the mean of the plane: y = x · hard_sigmoid(Dense(relu(Dense(mean(x))))), with a quarter of them inside.

    The quarter is a multiple of 8.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        y = jnp.mean(x, axis=(1, 2))
        y = nn.relu(dense(make_divisible(x.shape[-1] // 4), name="reduce")(y))
        return x * nn.hard_sigmoid(dense(x.shape[-1], name="expand")(y))[:, None, None]


class _Block(nn.Module):
    """What the blocks have in common.

    Args:
      features: channels of the output.
      stride: 1 or 2.
      expansion: hidden channels per input channel.
      drop_path: rate at which an example skips a branch in training, in [0, 1).
    """

    features: int
    stride: int = 1
    expansion: int = 4
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def conv(self, features: int, kernel: int = 1, stride: int = 1, **options) -> nn.Module:
        options["kernel_init"] = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        return nn.Conv(features, (kernel, kernel), stride, padding=kernel // 2, **options, **self.types)

    def pool(self, x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (3, 3), (self.stride, self.stride), padding=((1, 1), (1, 1)))

    def shortcut(self, x: jax.Array) -> jax.Array:
        """The map itself, or where width or plane change its maxima of 3 x 3 places through a linear layer."""
        if self.stride == 1 and x.shape[-1] == self.features:
            return x
        return self.conv(self.features, name="shortcut")(self.pool(x))

    def drop(self, y: jax.Array, train: bool) -> jax.Array:
        axes = tuple(range(1, y.ndim))
        return nn.Dropout(self.drop_path, broadcast_dims=axes)(y, deterministic=not train)

    def last_norm(self, y: jax.Array, train: bool) -> jax.Array:
        """The normalization that ends a branch: its gain starts at 0, and so does the branch."""
        norm = BatchNorm(scale_init=nn.initializers.zeros, name="last_norm", **self.types)
        return self.drop(norm(y, train=train), train)


class MBConv(_Block):
    """An inverted bottleneck with a depthwise filter.

        y   = GELU(BN(conv1x1(BN(x))))                    to h = expansion · C channels; not where h = C and the stride is 1
        y   = squeeze(GELU(BN(depthwise3x3(y))))          with the stride
        out = shortcut(x) + BN(conv1x1(y))                the last BN's gain starts at 0

    The shortcut is x, or a linear layer of its maxima over 3 x 3 places. Fields as `_Block` has them.

    x [B, H, W, C] -> [B, ceil(H / s), ceil(W / s), features].

    Example:
      >>> layer, x = MBConv(12, stride=2), jnp.zeros((1, 9, 9, 8))
      >>> jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x, train=False), x)[0].shape
      (1, 5, 5, 12)
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        hidden = self.expansion * x.shape[-1]
        y = x.astype(self.dtype)
        if hidden != x.shape[-1] or self.stride != 1:
            y = BatchNorm(name="first_norm", **self.types)(y, train=train)
            y = self.conv(hidden, use_bias=False, name="expand")(y)
            y = exact_gelu(BatchNorm(name="expand_norm", **self.types)(y, train=train))
        y = DepthwiseConv((3, 3), self.stride, padding=1, name="depthwise", **self.types)(y)
        y = exact_gelu(BatchNorm(name="depthwise_norm", **self.types)(y, train=train))
        y = SqueezeChannels(name="squeeze", **self.types)(y)
        y = self.conv(self.features, name="project")(y)
        return self.shortcut(x.astype(self.dtype)) + self.last_norm(y, train)


class FusedMBConv(_Block):
    """An inverted bottleneck with one full convolution in place of two layers.

        y   = squeeze(GELU(BN(conv3x3(BN(x)))))           to h = expansion · C channels, with the stride
        out = shortcut(x) + BN(conv1x1(y))                the last BN's gain starts at 0

    and out = shortcut(x) + BN(conv3x3(squeeze(x))), with the stride, where h = C. Otherwise as `MBConv`.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        hidden = self.expansion * x.shape[-1]
        y, kernel, stride = x.astype(self.dtype), 3, self.stride
        if hidden != x.shape[-1]:
            y = BatchNorm(name="first_norm", **self.types)(y, train=train)
            y = self.conv(hidden, 3, self.stride, use_bias=False, name="expand")(y)
            y = exact_gelu(BatchNorm(name="expand_norm", **self.types)(y, train=train))
            kernel, stride = 1, 1
        y = SqueezeChannels(name="squeeze", **self.types)(y)
        y = self.conv(self.features, kernel, stride, name="project")(y)
        return self.shortcut(x.astype(self.dtype)) + self.last_norm(y, train)


class CrossCovariance(nn.Module):
    """Attention of the channels of a head to each other (arXiv:2106.09681): a mixing for `Attention`.

        y = (softmax(t_h · q̂ᵀ k̂) vᵀ)ᵀ,    q̂ and k̂ of length 1 over the tokens

    query, key and value [B, N, h, d] -> [B, N, h, d]; the product is d x d. The temperature t is learned, one per head, and
    starts at 1; weight decay leaves it alone. A channel of zeros stays one (lengths are at least 1e-6, squares 1e-12).
    """

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, *, mask: None = None, train: bool = False
    ) -> jax.Array:
        del train
        if mask is not None:
            raise ValueError("mask: attention of channels has no tokens to leave out")

        def unit(x):
            x = x.astype(jnp.float32)
            squares = jnp.sum(jnp.square(x), axis=1, keepdims=True)
            return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))

        temperature = self.param("temperature", nn.initializers.ones, (query.shape[2], 1, 1))
        scores = jnp.einsum("bnhd,bnhe->bhde", unit(query), unit(key)) * temperature
        return jnp.einsum("bhde,bnhe->bnhd", jax.nn.softmax(scores, axis=-1).astype(value.dtype), value)


class SABlock(_Block):
    """Attention between the places of a map, with a depthwise filter for positions.

        x  += depthwise3x3(x)
        x  += g1 · attention(LN x);   x += g2 · MLP(LN x)                        where neither width nor plane change
        out = conv1x1(maxpool(x)) + g1 · attention(maxpool(LN x))                else, and without an MLP

    The pool is over 3 x 3 places with the stride, also where that is 1. g1 and g2 are learned per channel and start at 1e-6.

    Args:
      head_dim: channels of a head; C has a multiple of it.
      mix: how values are mixed, "tokens" (softmax(q kᵀ / √d) v) or "channels" (`CrossCovariance`).
      window: side of the windows that tokens are mixed in; 0 mixes those of the whole plane.

    Other fields as `_Block` has them. x [B, H, W, C] -> [B, ceil(H / s), ceil(W / s), features].

    Raises:
      UserError: `head_dim` that does not divide C, or a plane that has no whole number of windows.
    """

    head_dim: int = 32
    mix: str = "tokens"
    window: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        channels = x.shape[-1]
        if channels % self.head_dim:
            raise UserError(f"head_dim: needs a divisor of the width, {channels}, got {self.head_dim}")
        x = x.astype(self.dtype)
        taps = DepthwiseConv((3, 3), padding=1, name="positions_filter", **self.types)(x)
        x = x + ChannelBias(name="positions_shift", **self.types)(taps)
        y = nn.LayerNorm(epsilon=_EPSILON, name="norm1", **self.types)(x)
        if self.stride != 1 or channels != self.features:
            return self.shortcut(x) + self._attend(self.pool(y), train)
        x = x + self._attend(y, train)
        y = nn.LayerNorm(epsilon=_EPSILON, name="norm2", **self.types)(x)
        dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), **self.types)
        y = exact_gelu(dense(self.expansion * channels, name="expand")(y))
        y = LayerScale(1e-6, name="scale2", **self.types)(dense(channels, name="project")(y))
        return x + self.drop(y, train)

    def _attend(self, x: jax.Array, train: bool) -> jax.Array:
        batch, height, width, channels = x.shape
        side = self.window
        if side and (height % side or width % side):
            raise UserError(f"window: needs a divisor of the plane, {height} x {width}, got {side}")
        if side:
            x = x.reshape(batch, height // side, side, width // side, side, channels).swapaxes(2, 3)
        tokens = x.reshape(-1, side * side if side else height * width, channels)
        mix = {"tokens": DotProduct, "channels": CrossCovariance}[self.mix]
        attention = Attention(
            channels // self.head_dim, features=self.features, mix=mix, name="attention", **self.types
        )
        y = jnp.asarray(attention(tokens, train=train))
        if side:
            y = y.reshape(batch, height // side, width // side, side, side, self.features).swapaxes(2, 3)
        y = y.reshape(batch, height, width, self.features)
        return self.drop(LayerScale(1e-6, name="scale1", **self.types)(y), train)


class XCABlock(SABlock):
    """`SABlock` with attention of channels: its cost grows with the number of places, not with its square."""

    mix: str = "channels"


class MixerBlock(_Block):
    """Tokens and then channels mixed by perceptrons (arXiv:2105.01601), with a depthwise filter for positions.

        x  += depthwise3x3(x);   x += g1 · MLP over the places (LN x);   x += g2 · MLP over the channels (LN x)

    Where width or plane change, a pooled linear layer comes first (`_Block.shortcut`). The perceptron over the places is of the
    plane that the network was initialized with. Fields as `_Block` has them.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.shortcut(x.astype(self.dtype))
        taps = DepthwiseConv((3, 3), padding=1, name="positions_filter", **self.types)(x)
        x = x + ChannelBias(name="positions_shift", **self.types)(taps)
        batch, height, width, channels = x.shape
        dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), **self.types)

        y = nn.LayerNorm(epsilon=_EPSILON, name="norm1", **self.types)(x)
        y = jnp.swapaxes(y.reshape(batch, height * width, channels), 1, 2)
        y = exact_gelu(dense(2 * height * width, name="expand_places")(y))
        y = jnp.swapaxes(dense(height * width, name="project_places")(y), 1, 2).reshape(x.shape)
        x = x + self.drop(LayerScale(1e-6, name="scale1", **self.types)(y), train)

        y = nn.LayerNorm(epsilon=_EPSILON, name="norm2", **self.types)(x)
        y = exact_gelu(dense(self.expansion * channels, name="expand")(y))
        y = LayerScale(1e-6, name="scale2", **self.types)(dense(channels, name="project")(y))
        return x + self.drop(y, train)


class DownSample(_Block):
    """A map of half the plane before a stage, as architectures of a search may have it.

        conv        y = BN(conv3x3(x)), of stride 2
        conv_query  y + g · attention of y's places to those of x
        global      the same with the mean of 2 x 2 places, through a linear layer, as y

    Args:
      kind: one of the three. head_dim: of the attention.

    x [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), features]. g is learned per channel and starts at 1e-6.
    """

    kind: str = "conv"
    head_dim: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = x.astype(self.dtype)
        if self.kind == "global":
            odd = [(0, 0), *((0, side % 2) for side in x.shape[1:3]), (0, 0)]
            y = self.conv(self.features, name="query")(nn.avg_pool(jnp.pad(x, odd), (2, 2), (2, 2)))
        else:
            y = self.conv(self.features, 3, 2, use_bias=False, name="query")(x)
        y = BatchNorm(name="query_norm", **self.types)(y, train=train)
        if self.kind == "conv":
            return y
        tokens, context = (
            nn.LayerNorm(epsilon=_EPSILON, name=name, **self.types)(z.reshape(len(z), -1, z.shape[-1]))
            for name, z in (("norm1", y), ("norm2", x))
        )
        attention = Attention(self.features // self.head_dim, name="attention", **self.types)
        mixed = jnp.asarray(attention(tokens, context, train=train)).reshape(y.shape)
        return y + self.drop(LayerScale(1e-6, name="scale", **self.types)(mixed), train)
