"""Parts of learned codecs: channel attention, an enhancer and a factorized prior (arXiv:2002.03370)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, Positive, check_number
from jaxface.layers.one_draw import drawn, kernel, near_zero

_REDUCTION, _LEAST_HIDDEN = 16, 4
PRIOR_LAYERS = 4
"""Scalar layers of the factorized prior."""


class ChannelAttention(nn.Module):
    """Channels weighed by what they hold on average.

        α = sigmoid(W_2 relu(W_1 mean_{h,w} f + b_1) + b_2),   out = g f α

    With g = 2 the last layer starts at 0, so that the block starts as the identity; with g = 1 and an ordinary start it halves
    what goes through it, four times in an encoder.

    Attributes:
      gain: g > 0.
    """

    gain: float = 2.0

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        check_number("gain", self.gain, Positive)
        channels = features.shape[-1]
        last = nn.initializers.zeros if self.gain == 2 else kernel
        hidden = nn.relu(
            nn.Dense(max(channels // _REDUCTION, _LEAST_HIDDEN), kernel_init=kernel, name="squeeze")(
                features.mean((1, 2))
            )
        )
        weights = nn.sigmoid(nn.Dense(channels, kernel_init=last, name="excite")(hidden))
        return self.gain * features * weights[:, None, None]


class Enhancer(nn.Module):
    """x + E(x): a refinement of the decoded picture, behind the decoder.

    E is a convolution 3x3, ReLU, residual blocks (two convolutions 3x3 each) and a last convolution, which starts near 0.

    Attributes:
      width: channels.
      blocks: residual blocks.
    """

    width: int = 64
    blocks: int = 3

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, H, W, 3]."""
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding="SAME", kernel_init=kernel)
        x = nn.relu(conv(self.width, name="first")(image))
        for i in range(1, self.blocks + 1):
            inner = nn.relu(conv(self.width, name=f"block{i}_conv1")(x))
            x = x + conv(self.width, name=f"block{i}_conv2")(inner)
        last = conv(image.shape[-1], kernel_init=near_zero, name="last")
        return image + last(x)


class FactorizedPrior(nn.Module):
    """The distribution of values that nothing else is known of, learned for each channel (arXiv:1802.01436, as released for
    arXiv:2002.03370).

        t <- t softplus(h_i) + b_i;   t <- t + tanh(t) tanh(a_i)  for i = 1 … 3;   c(t) = sigmoid(t softplus(h_4) + b_4)
        P(z) = c(z + ½) - c(z - ½)

    c rises for any parameters.

    Attributes:
      channels: C.
    """

    channels: int

    def setup(self):
        check_number("channels", self.channels, AtLeast(1))
        small = drawn(nn.initializers.normal(0.01), scale=0.01, mode="none")
        layers = range(1, PRIOR_LAYERS + 1)
        self.h = [self.param(f"h{i}", small, (self.channels,)) for i in layers]
        self.b = [self.param(f"b{i}", small, (self.channels,)) for i in layers]
        self.a = [self.param(f"a{i}", small, (self.channels,)) for i in layers[:-1]]

    def __call__(self, z: jax.Array) -> jax.Array:
        """P(z) [..., C] in [0, 1] of z [..., C]."""
        parts = {"h": self.h, "b": self.b, "a": self.a}
        return factorized_prob(parts, z)


def factorized_logits(parts: dict, t: jax.Array) -> jax.Array:
    """logit c(t) [..., C] of a `FactorizedPrior`.

    Args:
      parts: {"h": four of [C], "b": four, "a": three}, arrays of numpy or of JAX, whose type decides.
      t: [..., C].
    """
    xp = np if isinstance(t, np.ndarray) else jnp
    slopes = [xp.logaddexp(h, 0.0) for h in parts["h"]]
    for slope, b, a in zip(slopes[:-1], parts["b"][:-1], parts["a"], strict=True):
        t = t * slope + b
        t = t + xp.tanh(t) * xp.tanh(a)
    return t * slopes[-1] + parts["b"][-1]


def factorized_prob(parts: dict, z: jax.Array) -> jax.Array:
    """P(z) = c(z + ½) - c(z - ½) [..., C] of a `FactorizedPrior`, from the side where both are small.

    Args:
      parts: as `factorized_logits` takes them.
      z: [..., C].
    """
    upper, lower = factorized_logits(parts, z + 0.5), factorized_logits(parts, z - 0.5)
    side = -jax.lax.stop_gradient(jnp.sign(upper + lower))
    side = jnp.where(side == 0, 1.0, side)
    return jnp.abs(nn.sigmoid(side * upper) - nn.sigmoid(side * lower))
