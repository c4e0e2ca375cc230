"""Networks of learned image codecs: analysis, synthesis, hyperprior and what a latent's distribution is told by.

One network has them all, each part a switch: the mixture, channel attention and enhancer of EDIC (arXiv:2002.03370); the scale
and mean-scale hyperpriors (arXiv:1802.01436, arXiv:1809.02736); the auto-regressive context model (arXiv:1809.02736).

Methods: edic
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, Positive, check_number
from jaxface.errors import UserError
from jaxface.layers.edic import ChannelAttention, Enhancer, FactorizedPrior
from jaxface.layers.gdn import GDN, lower_bound
from jaxface.layers.one_draw import drawn
from jaxface.losses.edic import (
    LEAST_PROBABILITY,
    LEAST_SCALE,
    laplace_bin_prob,
    mixture_bin_logprob,
    mixture_bin_prob,
)

Entropy = Literal["laplace", "scale", "mean_scale", "mixture", "autoregressive"]
"""What a latent is coded under: a zero-mean Laplace or Gaussian whose scale is told, a Gaussian around a told mean, a mixture of
Gaussians, or the same mixture told by the latents decoded before it besides."""
ENTROPIES: tuple[str, ...] = get_args(Entropy)
CENTERED = ("mean_scale",)
"""Under these what is coded is round(y - μ); under the others round(y)."""
_LAPLACE_LOG = (-23.0, 23.0)
_LOG_SCALE = 8.0
_CONTEXT = 5
_FIRST_BIAS = 0.01


class Parameters(NamedTuple):
    """What a latent is coded under; [B, h, w, M, K] each, K = 1 but for mixtures."""

    logits: jax.Array
    mu: jax.Array
    scale: jax.Array
    """σ of Gaussians, b of a Laplace distribution."""


@dataclasses.dataclass(frozen=True)
class CodecSpec:
    """A codec's network; hashable, and JSON-like through `dataclasses.asdict`."""

    channels: int = 128
    """N, channels of all hidden layers."""
    latents: int = 192
    """M, channels of what is coded."""
    entropy: Entropy = "mixture"
    """What a latent is coded under."""
    components: int = 3
    """K, Gaussians of a mixture."""
    attention: float | None = 2.0
    """Gain of the channel attention; None for none."""
    enhance: bool = True
    """A network behind the decoder refines the picture."""
    enhancer_width: int = 64
    """Channels of that network."""
    enhancer_blocks: int = 3
    """Residual blocks of it."""
    decoder_width: int | None = None
    """Channels before the decoder's last layer; N unless given."""
    halvings: int = 4
    """How often the analysis halves the picture; 2 at least."""
    hyper_halvings: int = 2
    """How often the hyper-analysis halves the latents."""

    def __post_init__(self):
        for name, low in (("channels", 1), ("latents", 1), ("components", 1), ("halvings", 2), ("hyper_halvings", 1),
                          ("enhancer_width", 1), ("enhancer_blocks", 0)):  # fmt: skip
            check_number(name, getattr(self, name), AtLeast(low))
        if self.decoder_width is not None:
            check_number("decoder_width", self.decoder_width, AtLeast(1))
        if self.attention is not None:
            check_number("attention", self.attention, Positive)
        if self.entropy not in ENTROPIES:
            raise UserError(f"entropy: needs one of {', '.join(ENTROPIES)}, got {self.entropy!r}")

    @property
    def multiple(self) -> int:
        """Sides of a picture are padded to multiples of it."""
        return 2 ** (self.halvings + self.hyper_halvings)

    @property
    def is_mixture(self) -> bool:
        """Whether there are several components and logits."""
        return self.entropy in ("mixture", "autoregressive")

    @property
    def outputs(self) -> int:
        """Channels that the hyper-decoder says per latent: b or σ alone, (μ, σ), or K of (w, μ, σ)."""
        return {"laplace": 1, "scale": 1, "mean_scale": 2}.get(self.entropy, 3 * self.components)

    @property
    def signed(self) -> bool:
        """Whether the hyper-analysis sees y instead of |y|: where a mean is told, the sign matters."""
        return self.entropy not in ("laplace", "scale")


def _init(gain: float) -> nn.initializers.Initializer:
    """Normal, variance 2 gain² / (fan in + fan out)."""
    return drawn(
        nn.initializers.variance_scaling(gain**2, "fan_avg", "normal"), scale=gain**2, mode="fan_avg"
    )


_plain, _wide = _init(1.0), _init(2.0**0.5)
_bias = nn.initializers.constant(_FIRST_BIAS)


def _down(features: int, name: str) -> nn.Conv:
    """Half the size."""
    return nn.Conv(features, (5, 5), (2, 2), ((2, 2), (2, 2)), kernel_init=_wide, bias_init=_bias, name=name)


def _up(features: int, name: str, *, size: int = 5) -> nn.ConvTranspose:
    """Twice the size, exactly: an output padding of 1."""
    pad = size // 2
    padding = (size - 1 - pad, size - pad)
    return nn.ConvTranspose(
        features, (size, size), (2, 2), (padding, padding), kernel_init=_wide, bias_init=_bias, name=name
    )


def _same(features: int, name: str, *, size: int = 3) -> nn.Conv:
    return nn.Conv(features, (size, size), padding="SAME", kernel_init=_wide, bias_init=_bias, name=name)


class Analysis(nn.Module):
    """g_a: a picture as latents."""

    spec: CodecSpec

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, H / 2^halvings, W / 2^halvings, M]."""
        x = image
        for i in range(1, self.spec.halvings + 1):
            last = i == self.spec.halvings
            x = _down(self.spec.latents if last else self.spec.channels, f"conv{i}")(x)
            x = x if last else GDN(name=f"gdn{i}")(x)
            if self.spec.attention is not None:
                x = ChannelAttention(self.spec.attention, name=f"attention{i}")(x)
        return x


class Synthesis(nn.Module):
    """g_s: latents as a picture, not clipped; without the enhancer."""

    spec: CodecSpec

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """[B, h, w, M] -> [B, 2^halvings h, 2^halvings w, 3]."""
        x, count = latents, self.spec.halvings
        for i in range(1, count):
            width = self.spec.decoder_width if i == count - 1 else None
            x = _up(width or self.spec.channels, f"deconv{i}")(x)
            x = GDN(inverse=True, name=f"gdn{i}")(x)
            if self.spec.attention is not None:
                x = ChannelAttention(self.spec.attention, name=f"attention{i}")(x)
        return _up(3, f"deconv{count}")(x)


class HyperAnalysis(nn.Module):
    """h_a: what is told of the latents."""

    spec: CodecSpec

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """[B, h, w, M] -> [B, h / 2^hyper_halvings, w / 2^hyper_halvings, N]."""
        x = latents if self.spec.signed else jnp.abs(latents)
        x = _same(self.spec.channels, "conv1")(x)
        for i in range(2, self.spec.hyper_halvings + 2):
            x = _down(self.spec.channels, f"conv{i}")(nn.relu(x))
        return x


class HyperSynthesis(nn.Module):
    """h_s: ẑ as what the latents are coded under, or as features for a context model."""

    spec: CodecSpec

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """[B, a, b, N] -> [B, 2^hyper_halvings a, 2^hyper_halvings b, `outputs` M], or 2 M features."""
        x = z
        for i in range(1, self.spec.hyper_halvings + 1):
            x = nn.relu(_up(self.spec.channels, f"deconv{i}")(x))
        if self.spec.entropy == "autoregressive":
            return nn.relu(_same(2 * self.spec.latents, "conv")(x))
        outputs = self.spec.outputs * self.spec.latents
        bias = functools.partial(_spread, self.spec) if self.spec.is_mixture else _bias
        return nn.Conv(outputs, (3, 3), padding="SAME", kernel_init=_plain, bias_init=bias, name="conv")(x)


def _spread(spec: CodecSpec, rng, shape, dtype=jnp.float32) -> jax.Array:
    """Biases at the start: the means of the components apart, at -2, 0, 2 for three, or they would stay tied."""
    del rng
    k, m = spec.components, spec.latents
    means = np.repeat(2.0 * (np.arange(k) - (k - 1) / 2), m)
    return jnp.asarray(np.concatenate([np.zeros(k * m), means, np.zeros(k * m)]), dtype).reshape(shape)


def context_mask() -> np.ndarray:
    """[5, 5] of 0 and 1: what comes before the middle in raster order."""
    before = np.arange(_CONTEXT * _CONTEXT).reshape(_CONTEXT, _CONTEXT) < _CONTEXT * _CONTEXT // 2
    return before.astype(np.float32)


class ContextModel(nn.Module):
    """What the latents decoded before say beside the hyperprior: a masked convolution, and layers 1x1 over both."""

    spec: CodecSpec

    @nn.compact
    def __call__(self, latents: jax.Array, features: jax.Array) -> jax.Array:
        """[B, h, w, M] and [B, h, w, 2 M] -> [B, h, w, `outputs` M]."""
        m = self.spec.latents
        kernel = self.param("kernel", _wide, (_CONTEXT, _CONTEXT, m, 2 * m))
        bias = self.param("bias", _bias, (2 * m,))
        seen = jax.lax.conv_general_dilated(
            latents,
            kernel * context_mask()[..., None, None],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jnp.concatenate([features, nn.relu(seen + bias)], axis=-1)
        for i, width in enumerate((10 * m // 3, 8 * m // 3), start=1):
            x = nn.relu(nn.Conv(width, (1, 1), kernel_init=_wide, bias_init=_bias, name=f"layer{i}")(x))
        bias = functools.partial(_spread, self.spec)
        return nn.Conv(self.spec.outputs * m, (1, 1), kernel_init=_plain, bias_init=bias, name="layer3")(x)


def split_parameters(spec: CodecSpec, raw: jax.Array) -> Parameters:
    """What a network says, as distributions.

        σ = max(exp(clip(raw, -8, 8)), 0.11);   a Laplace's b = clip(exp(raw), 1e-10, 1e10)

    Args:
      spec: the network.
      raw: [B, h, w, `outputs` M], laid out as [w | μ | σ], each K M with the component first.
    """
    shape = (*raw.shape[:3], spec.outputs, spec.latents)
    raw = jnp.moveaxis(raw.reshape(shape), -2, -1)
    if spec.entropy == "laplace":
        scale = jnp.exp(jnp.clip(raw, *_LAPLACE_LOG))
        return Parameters(jnp.zeros_like(scale), jnp.zeros_like(scale), scale)
    k = spec.components if spec.is_mixture else 1
    scale = lower_bound(jnp.exp(jnp.clip(raw[..., -k:], -_LOG_SCALE, _LOG_SCALE)), LEAST_SCALE)
    if spec.entropy == "scale":
        return Parameters(jnp.zeros_like(scale), jnp.zeros_like(scale), scale)
    logits = raw[..., :k] if spec.is_mixture else jnp.zeros_like(scale)
    return Parameters(logits, raw[..., -2 * k : -k], scale)


def quantize(values: jax.Array, rng: jax.Array | None = None) -> jax.Array:
    """Whole numbers, or in training values + U(-½, ½), whose density is that of the whole numbers between them.

    Args:
      values: [...] float.
      rng: key of the noise; None rounds.
    """
    if rng is None:
        return jnp.round(values)
    return values + jax.random.uniform(rng, values.shape, values.dtype, -0.5, 0.5)


class EDIC(nn.Module):
    """A learned image codec, all parts of which are switches of its `CodecSpec`.

    Attributes:
      spec: the network.
      log_space: the rate of latents in training in logarithms, which keeps the slope of what is far; else from probabilities.
    """

    spec: CodecSpec = CodecSpec()
    log_space: bool = True

    def setup(self):
        spec = self.spec
        self.g_a, self.g_s = Analysis(spec), Synthesis(spec)
        self.h_a, self.h_s = HyperAnalysis(spec), HyperSynthesis(spec)
        self.prior = FactorizedPrior(spec.channels)
        if spec.entropy == "autoregressive":
            self.context = ContextModel(spec)
        if spec.enhance:
            self.enhancer = Enhancer(spec.enhancer_width, spec.enhancer_blocks)

    def analyze(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(y [B, h, w, M], z [B, a, b, N]), neither rounded, of pictures [B, H, W, 3] in [0, 1]."""
        y = self.g_a(image)
        return y, self.h_a(y)

    def synthesize(self, y_hat: jax.Array) -> jax.Array:
        """Pictures [B, H, W, 3], not clipped, of latents [B, h, w, M]."""
        decoded = self.g_s(y_hat)
        return self.enhancer(decoded) if self.spec.enhance else decoded

    def parameters(self, z_hat: jax.Array, y_hat: jax.Array | None = None) -> Parameters:
        """What the latents are coded under; an auto-regressive model needs ŷ, of which each sees what comes before."""
        raw = self.h_s(z_hat)
        if self.spec.entropy == "autoregressive":
            raw = self.context(y_hat, raw)
        return split_parameters(self.spec, raw)

    def latent_bits(self, y_hat: jax.Array, parameters: Parameters, *, training: bool) -> jax.Array:
        """[B, h, w, M] bits of every latent under its distribution."""
        if self.spec.entropy == "laplace":
            prob = laplace_bin_prob(y_hat, parameters.scale[..., 0])
        elif training and self.log_space:
            return -mixture_bin_logprob(y_hat, *parameters) / jnp.log(2.0)
        else:
            prob = mixture_bin_prob(y_hat, *parameters)
        return -jnp.log2(lower_bound(prob, LEAST_PROBABILITY))

    def __call__(self, image: jax.Array, *, rng: jax.Array | None = None) -> dict[str, jax.Array]:
        """A picture through the codec.

        Args:
          image: [B, H, W, 3] in [0, 1], sides multiples of `spec.multiple`.
          rng: key of the noise of training; None rounds.

        Returns:
          {"x_rec" [B, H, W, 3] not clipped, "bits_y", "bits_z" [B], "y_hat", "z_hat"}.

        Raises:
          ValueError: other channels, or sides that are no multiples.
        """
        height, width, channels = image.shape[1:]
        if channels != 3 or height % self.spec.multiple or width % self.spec.multiple:
            raise ValueError(
                f"image: needs [B, H, W, 3] with sides of multiples of {self.spec.multiple}, got {image.shape}"
            )
        y, z = self.analyze(image)
        of_y, of_z = (None, None) if rng is None else jax.random.split(rng)
        z_hat = quantize(z, of_z)
        if self.spec.entropy in CENTERED and rng is None:
            parameters = self.parameters(z_hat)
            y_hat = jnp.round(y - parameters.mu[..., 0]) + parameters.mu[..., 0]
        else:
            y_hat = quantize(y, of_y)
            parameters = self.parameters(z_hat, y_hat)
        bits_y = self.latent_bits(y_hat, parameters, training=rng is not None)
        bits_z = -jnp.log2(lower_bound(self.prior(z_hat), LEAST_PROBABILITY))
        return {
            "x_rec": self.synthesize(y_hat),
            "bits_y": bits_y.sum((1, 2, 3)),
            "bits_z": bits_z.sum((1, 2, 3)),
            "y_hat": y_hat,
            "z_hat": z_hat,
        }


def decoder_macs(spec: CodecSpec) -> float:
    """Multiply-accumulates per pixel of what makes the picture of the latents: synthesis and enhancer, attention left out."""
    total, before = 0.0, spec.latents
    for i in range(1, spec.halvings + 1):
        inside = 4.0 ** -(spec.halvings - i + 1)  # positions of the layer's input, per pixel
        last = i == spec.halvings
        width = (
            3 if last else (spec.decoder_width or spec.channels) if i == spec.halvings - 1 else spec.channels
        )
        total += inside * 25 * before * width + (0 if last else 4 * inside * width**2)
        before = width
    if spec.enhance:
        width = spec.enhancer_width
        total += 9 * (6 * width + 2 * spec.enhancer_blocks * width**2)
    return total


def equal_macs(spec: CodecSpec) -> CodecSpec:
    """The codec without its enhancer, its last decoder stage widened until the decoder costs as much: the enhancer's control."""
    target = decoder_macs(spec)
    plain = dataclasses.replace(spec, enhance=False)
    widths = range(spec.channels, 1 << 14)
    costs = (decoder_macs(dataclasses.replace(plain, decoder_width=width)) for width in widths)
    width = next(width for width, cost in zip(widths, costs, strict=False) if cost >= target)
    return dataclasses.replace(plain, decoder_width=width)


def from_description(described: Any) -> CodecSpec:
    """The inverse of `dataclasses.asdict`.

    Raises:
      UserError: something else, or a field of another type or out of its range.
    """
    fields = {field.name: field for field in dataclasses.fields(CodecSpec)}
    if not isinstance(described, dict) or described.keys() - fields.keys():
        raise UserError(f"network: needs fields of a codec, {', '.join(fields)}")
    default = CodecSpec()
    for name, value in described.items():
        if name == "decoder_width" or name == "attention":
            right = value is None or (
                type(value) in (int, float) if name == "attention" else type(value) is int
            )
        else:
            right = type(value) is type(getattr(default, name))
        if not right:
            raise UserError(f"network: {name} cannot be {value!r}")
    return CodecSpec(**described)
