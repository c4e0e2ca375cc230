"""Parts of learned codecs: divisive normalization, channel attention, an enhancer and a factorized prior (arXiv:2002.03370)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, Positive, check_number
from jaxface.layers.one_draw import drawn, kernel, near_zero

PEDESTAL = 2.0**-36
"""Added under the square root in which GDN stores its parameters."""
_LEAST_BETA = 1e-6
_REDUCTION, _LEAST_HIDDEN = 16, 4
PRIOR_LAYERS = 4
"""Scalar layers of the factorized prior."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def lower_bound(x: jax.Array, bound: float) -> jax.Array:
    """max(x, bound), whose gradient still raises what lies below the bound (arXiv:1611.01704's code).

        ∂L/∂x = g where x ≥ bound or g < 0, else 0

    Args:
      x: [...] float.
      bound: a static number.

    Returns:
      [...], as `x`.

    Example:
      >>> float(lower_bound(jnp.float32(0.05), 0.11))
      0.10999999940395355
      >>> [float(jax.grad(lambda x, s=s: s * lower_bound(x, 0.11))(0.05)) for s in (-1.0, 1.0)]
      [-1.0, 0.0]
    """
    return jnp.maximum(x, bound)


def _lower_bound_forward(x, bound):
    return jnp.maximum(x, bound), x


def _lower_bound_backward(bound, x, g):
    return (jnp.where((x >= bound) | (g < 0), g, jnp.zeros_like(g)),)


lower_bound.defvjp(_lower_bound_forward, _lower_bound_backward)


def gdn(x: jax.Array, beta: jax.Array, gamma: jax.Array, *, inverse: bool = False) -> jax.Array:
    """Generalized divisive normalization over channels (arXiv:1511.06281, equation 4 at ε = ½, α = 2).

        y_i = x_i / sqrt(β_i + Σ_j γ_ij x_j²);   the inverse form multiplies instead

    Args:
      x: [..., C] float.
      beta: [C], positive.
      gamma: [C, C], non-negative; row i is of output i.
      inverse: multiply, as decoders do.

    Returns:
      [..., C].

    Raises:
      ValueError: `beta` or `gamma` of another number of channels.

    Example:
      >>> y = gdn(jnp.array([3.0, -4.0]), jnp.ones(2), 0.1 * jnp.eye(2))
      >>> [round(float(v), 4) for v in y]
      [2.1764, -2.4807]
    """
    channels = x.shape[-1]
    if beta.shape != (channels,) or gamma.shape != (channels, channels):
        raise ValueError(
            f"gamma: needs [{channels}, {channels}] and beta [{channels}], got {gamma.shape}, {beta.shape}"
        )
    energy = beta + jnp.einsum("...j,ij->...i", jnp.square(x), gamma)
    return x * (jnp.sqrt(energy) if inverse else jax.lax.rsqrt(energy))


class GDN(nn.Module):
    """`gdn` whose parameters are stored as square roots, so that they stay positive.

        β = max(β', sqrt(1e-6 + p))² - p,   γ = max(γ', 2^-18)² - p,   p = 2^-36;   β = 1, γ = 0.1 I at the start

    Attributes:
      inverse: multiply instead of divide.
    """

    inverse: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., C]."""
        channels = x.shape[-1]
        root = lambda value: lambda rng, shape: jnp.sqrt(value(shape) + PEDESTAL)  # noqa: E731
        beta = self.param("beta", root(jnp.ones), (channels,))
        gamma = self.param("gamma", root(lambda shape: 0.1 * jnp.eye(shape[0])), (channels, channels))
        beta = jnp.square(lower_bound(beta, (_LEAST_BETA + PEDESTAL) ** 0.5)) - PEDESTAL
        gamma = jnp.square(lower_bound(gamma, PEDESTAL**0.5)) - PEDESTAL
        return gdn(x, beta, gamma, inverse=self.inverse)


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
