"""A vector-quantized autoencoder and the discriminator of its patches: the VQ-GAN (arXiv:2012.09841).

The defaults are those of the model for ImageNet with a stride of 16 and 1024 codes: 72.1 million parameters, and 2.8 million of
the discriminator. Images are float in [-1, 1].

Methods: ota, intern
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.norm import BatchNorm
from jaxface.layers.vector_quantizer import VectorQuantizer
from jaxface.losses.vector_quantization import vq_loss

_SMALL_NORMAL = nn.initializers.normal(0.02)
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # that of PyTorch, ±1/√(inputs)


def _fitting_groups(groups: int, features: int) -> int:
    if features % groups:
        raise UserError(
            f"groups: needs a number that divides the {features} channels of every level, got {groups}"
        )
    return groups


class _Norm(nn.Module):
    """Group normalization, then x σ(x)."""

    groups: int
    swish: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups = _fitting_groups(self.groups, x.shape[-1])
        x = nn.GroupNorm(groups, epsilon=1e-6, dtype=x.dtype, name="norm")(x)
        return nn.swish(x) if self.swish else x


class _Residual(nn.Module):
    """Norm, conv3x3, norm, conv3x3 beside the identity, or a 1x1 convolution where the channels differ."""

    features: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for i in (1, 2):
            y = _Norm(self.groups, name=f"norm{i}")(y)
            y = nn.Conv(self.features, (3, 3), kernel_init=_UNIFORM, dtype=self.dtype, name=f"conv{i}")(y)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), kernel_init=_UNIFORM, dtype=self.dtype, name="shortcut")(x)
        return x + y


class _SelfAttention(nn.Module):
    """All positions of a plane to each other, one head."""

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, features = x.shape
        y = _Norm(self.groups, swish=False, name="norm")(x).reshape(batch, height * width, features)
        query, key, value = (
            nn.Dense(features, kernel_init=_UNIFORM, dtype=self.dtype, name=name)(y)[:, :, None]
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value)[:, :, 0]
        return x + nn.Dense(features, kernel_init=_UNIFORM, dtype=self.dtype, name="out")(mixed).reshape(
            x.shape
        )


class _Middle(nn.Module):
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _Residual(x.shape[-1], self.groups, self.dtype, name="block1")(x)
        x = _SelfAttention(self.groups, self.dtype, name="attention")(x)
        return _Residual(x.shape[-1], self.groups, self.dtype, name="block2")(x)


class VQEncoder(nn.Module):
    """Images to latents: residual blocks and halvings, attention where the plane is small.

    Args:
      features: channels of the last layer, d_z.
      channels: at full size.
      multipliers: of the channels, level by level; each level but the last halves the plane.
      blocks: residual blocks of a level, ≥ 0.
      middle: whether two residual blocks with attention between them follow the last level.
      attention: numbers of the levels, from 0, whose blocks are followed by attention.
      groups: of the group normalizations.

    images [B, H, W, C] float -> [B, H / s, W / s, features] float32, s = 2^(levels - 1).
    """

    features: int = 256
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    middle: bool = True
    attention: tuple[int, ...] = (4,)
    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(self.channels, (3, 3), kernel_init=_UNIFORM, dtype=self.dtype, name="conv_in")(
            images.astype(self.dtype)
        )
        for level, multiplier in enumerate(self.multipliers):
            for i in range(1, self.blocks + 1):
                width = self.channels * multiplier
                x = _Residual(width, self.groups, self.dtype, name=f"level{level}_block{i}")(x)
                if level in self.attention:
                    x = _SelfAttention(self.groups, self.dtype, name=f"level{level}_attention{i}")(x)
            if level < len(self.multipliers) - 1:
                # The reference code pads below and to the right alone.
                down = nn.Conv(
                    x.shape[-1],
                    (3, 3),
                    (2, 2),
                    padding=((0, 1), (0, 1)),
                    kernel_init=_UNIFORM,
                    dtype=self.dtype,
                    name=f"level{level}_down",
                )
                x = down(x)
        if self.middle:
            x = _Middle(self.groups, self.dtype, name="inside")(x)
        x = _Norm(self.groups, name="norm_out")(x)
        return nn.Conv(self.features, (3, 3), kernel_init=_UNIFORM, dtype=self.dtype, name="conv_out")(
            x
        ).astype(jnp.float32)


class VQDecoder(nn.Module):
    """Latents to images: the encoder in reverse, with one residual block more on each level.

    Args:
      colors: channels of the images.
      channels, multipliers, blocks, middle, attention, groups: as in `VQEncoder`.

    latents [B, h, w, d_z] float -> [B, h s, w s, colors] float32, not clipped: `output(trunk(latents))`. The last convolution
    stands apart, since the adversary's weight is taken from the gradients of its kernel.
    """

    colors: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    middle: bool = True
    attention: tuple[int, ...] = (4,)
    groups: int = 32
    dtype: Any = jnp.float32

    def setup(self):
        last = len(self.multipliers) - 1
        self.conv_in = nn.Conv(
            self.channels * self.multipliers[-1], (3, 3), kernel_init=_UNIFORM, dtype=self.dtype
        )
        if self.middle:
            self.inside = _Middle(self.groups, self.dtype)
        parts = []
        for level in reversed(range(last + 1)):
            width = self.channels * self.multipliers[level]
            for i in range(1, self.blocks + 2):
                parts.append((f"level{level}_block{i}", _Residual(width, self.groups, self.dtype)))
                if level in self.attention:
                    parts.append((f"level{level}_attention{i}", _SelfAttention(self.groups, self.dtype)))
            if level:
                parts.append(
                    (f"level{level}_up", nn.Conv(width, (3, 3), kernel_init=_UNIFORM, dtype=self.dtype))
                )
        for name, part in parts:
            setattr(self, name, part)
        self.order = tuple(name for name, _ in parts)
        self.norm_out = _Norm(self.groups)
        self.conv_out = nn.Conv(self.colors, (3, 3), kernel_init=_UNIFORM, dtype=jnp.float32)

    def trunk(self, latents: jax.Array) -> jax.Array:
        """[B, H, W, channels], what the last convolution takes."""
        x = self.conv_in(latents.astype(self.dtype))
        if self.middle:
            x = self.inside(x)
        for name in self.order:
            if name.endswith("_up"):
                x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = getattr(self, name)(x)
        return self.norm_out(x).astype(jnp.float32)

    def output(self, features: jax.Array) -> jax.Array:
        """[B, H, W, colors] of what `trunk` gives."""
        return self.conv_out(features)

    def __call__(self, latents: jax.Array) -> jax.Array:
        return self.output(self.trunk(latents))


class Quantized(NamedTuple):
    """What `VQGAN.quantize` gives: codes [B, h, w, d] with a straight-through gradient, their numbers, the codebook's loss."""

    codes: jax.Array
    index: jax.Array
    loss: jax.Array


class VQGAN(nn.Module):
    """Encoder, codebook and decoder, with a 1x1 convolution before and after the codebook.

    Args:
      colors: channels of the images.
      codes: K, of the codebook. features: d, numbers of a code. latent: d_z, channels of encoder and decoder around it.
      beta: weight of the encoder's part of the codebook's loss.
      channels, multipliers, blocks, middle, attention, groups: as in `VQEncoder`.

    images [B, H, W, colors] float in [-1, 1], H and W multiples of `stride` -> (reconstructions of their shape, not clipped;
    `Quantized`). `encode`, `quantize` and `decode` are its three steps.

    Raises:
      UserError: images whose sides are no multiples of the stride, or groups that do not divide the channels.

    Example:
      >>> model = VQGAN(colors=1, codes=16, features=4, latent=8, channels=8, multipliers=(1, 2), attention=(), groups=4)
      >>> image = jnp.zeros((2, 8, 8, 1))
      >>> (made, codes), _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), image)
      >>> model.stride, made.shape, codes.index.shape
      (2, (2, 8, 8, 1), (2, 4, 4))
    """

    colors: int = 3
    codes: int = 1024
    features: int = 256
    latent: int = 256
    beta: float = 0.25
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    middle: bool = True
    attention: tuple[int, ...] = (4,)
    groups: int = 32
    dtype: Any = jnp.float32

    def setup(self):
        shared = {
            name: getattr(self, name)
            for name in ("channels", "multipliers", "blocks", "middle", "attention", "groups", "dtype")
        }
        self.encoder = VQEncoder(self.latent, **shared)
        self.before = nn.Conv(self.features, (1, 1), kernel_init=_UNIFORM)
        self.quantizer = VectorQuantizer(self.codes, self.features)
        self.after = nn.Conv(self.latent, (1, 1), kernel_init=_UNIFORM)
        self.decoder = VQDecoder(self.colors, **shared)

    @property
    def stride(self) -> int:
        """Pixels along one side of the patch that a code stands for."""
        return 2 ** (len(self.multipliers) - 1)

    def check_sides(self, height: int, width: int) -> None:
        """Raises UserError for images that have no whole number of codes."""
        if height % self.stride or width % self.stride:
            raise UserError(
                f"image_size: the generator needs multiples of its stride, {self.stride}, got {height}x{width}"
            )

    def encode(self, images: jax.Array) -> jax.Array:
        """[B, h, w, d], the latents of images."""
        self.check_sides(*images.shape[1:3])
        return self.before(self.encoder(images))

    def quantize(self, latents: jax.Array) -> Quantized:
        """Their codes."""
        codes, index = self.quantizer(latents)
        return Quantized(codes, index, vq_loss(latents, self.quantizer.rows(index), beta=self.beta))

    def features_of(self, codes: jax.Array) -> jax.Array:
        """[B, H, W, channels], the decoder up to its last convolution."""
        return self.decoder.trunk(self.after(codes))

    def output(self, features: jax.Array) -> jax.Array:
        """The last convolution."""
        return self.decoder.output(features)

    def decode(self, codes: jax.Array) -> jax.Array:
        """[B, H, W, colors] of codes [B, h, w, d]; not clipped."""
        return self.output(self.features_of(codes))

    def __call__(self, images: jax.Array) -> tuple[jax.Array, Quantized]:
        quantized = self.quantize(self.encode(images))
        return self.decode(quantized.codes), quantized


class PatchDiscriminator(nn.Module):
    """Images to a logit for each of their patches (arXiv:1611.07004): conv4x4, the first without a norm, the last to one channel.

    Batch statistics are always those of the batch; nothing is kept of them, so that `apply` takes the parameters alone with
    `mutable=["batch_stats"]`.

    Args:
      channels: of the first layer; they double with every layer, up to 8 times.
      layers: that halve the plane.

    images [B, H, W, C] float -> logits [B, h, w] float32.
    """

    channels: int = 64
    layers: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        def conv(features, stride, *, bias, name):
            return nn.Conv(
                features,
                (4, 4),
                (stride, stride),
                padding=((1, 1), (1, 1)),
                use_bias=bias,
                kernel_init=_SMALL_NORMAL,
                dtype=self.dtype,
                name=name,
            )

        x = nn.leaky_relu(conv(self.channels, 2, bias=True, name="conv0")(images.astype(self.dtype)), 0.2)
        for i in range(1, self.layers + 1):
            stride = 2 if i < self.layers else 1
            x = conv(self.channels * min(2**i, 8), stride, bias=False, name=f"conv{i}")(x)
            x = nn.leaky_relu(BatchNorm(dtype=self.dtype, name=f"norm{i}")(x, train=True), 0.2)
        return conv(1, 1, bias=True, name="logits")(x)[..., 0].astype(jnp.float32)
