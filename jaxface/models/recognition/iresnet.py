"""iResNet: the residual network of face recognition (arXiv:1801.07698 and its public implementations)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers import BatchNorm, PReLU
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder, stage_blocks
from jaxface.models.registry import MODELS

BLOCKS = ("insightface", "sface")


class IResNet(nn.Module):
    """iResNet-18/34/50/100/200, and small ones for a laptop.

        stem    conv3x3 (stem_stride), BN, PReLU
        stages  residual units; the first unit of each stage halves the plane and sets the channels
        head    BN, flatten, dropout, Dense, BN

    Args:
      embedding: size E of the embedding.
      stages: residual units per stage.
      channels: channels per stage at `width` 1; the stem has the first.
      width: factor on the channels, rounded to multiples of 8.
      stem_stride: 1 as published; 2 quarters the work for a CPU.
      block: residual unit, "insightface" or "sface" (see `Block`). With "insightface" the scale of the last BN is fixed
        at 1, as published; the published parameter counts include those E ones, `parameters` here does not.
        With "sface" it is learned.
      dropout: rate before the Dense layer, in [0, 1); 0 in recent recipes, 0.5 in that of SFace (arXiv:2205.12010).
      squeeze: channels per hidden unit of a `SqueezeExcite` that ends every branch (16 as published); 0 has none.
      remat: "block" stores the inputs of the residual units alone for the backward pass.

    image [B, H, W, C] float in [-1, 1] -> [B, E] float32, not normalized. H and W are free (112 as published): whatever
    plane is left is flattened in the order height, width, channel, where PyTorch weights expect channel, height, width.
    `dtype` is that of stem and stages; the Dense layer and the last BN are float32.

    Convolutions start from normal(0, 0.1), those of "sface" from normal(0, 2 sqrt(2 / fan_out)) as in its release; Dense from
    uniform(±1/sqrt(fan_in)), PReLU from 0.25.
    """

    embedding: int = 512
    stages: tuple[int, ...] = (2, 2, 2, 2)
    channels: tuple[int, ...] = (64, 128, 256, 512)
    width: float = 1.0
    stem_stride: int = 1
    block: str = "insightface"
    dropout: float = 0.0
    squeeze: int = 0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        _check(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = _features(self, image, train=train)

        x = BatchNorm(name="head_norm", **types)(x, train=train)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = nn.Dense(
            self.embedding,
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            param_dtype=self.param_dtype,
            name="head_dense",
        )(x)
        scaled = self.block == "sface"
        return BatchNorm(use_scale=scaled, param_dtype=self.param_dtype, name="head_embedding")(
            x, train=train
        )

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem",), *stage_blocks(self.stages)


class IResNetStages(nn.Module):
    """Stem and stages of an iResNet without its head, such as the first three of iResNet-50: a stem for other networks.

    Fields, layers and their names are those of `IResNet`; weights of one go into the other by name.

    image [B, H, W, C] float in [-1, 1] -> map [B, h, w, F]; each stage halves the plane, rounding up: 112 pixels to 14 behind
    three stages of a stem of stride 1.
    """

    stages: tuple[int, ...] = (3, 4, 14)
    channels: tuple[int, ...] = (64, 128, 256)
    width: float = 1.0
    stem_stride: int = 1
    block: str = "insightface"
    squeeze: int = 0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        _check(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        return _features(self, image, train=train)


def _check(network: IResNet | IResNetStages) -> None:
    if network.block not in BLOCKS:
        raise UserError(f"block: needs one of {', '.join(BLOCKS)}, got {network.block!r}")
    if len(network.stages) != len(network.channels):
        raise UserError(
            f"stages, channels: need the same length, got {network.stages} and {network.channels}"
        )


def _features(network: IResNet | IResNetStages, image: jax.Array, *, train: bool) -> jax.Array:
    """Stem and stages, as submodules of the network in whose compact method this stands."""
    types = {"dtype": network.dtype, "param_dtype": network.param_dtype}
    channels = [max(8, round(c * network.width / 8) * 8) for c in network.channels]
    x = _conv(channels[0], network.block, stride=network.stem_stride, name="stem_conv", **types)(
        image.astype(network.dtype)
    )
    x = BatchNorm(name="stem_norm", **types)(x, train=train)
    x = PReLU(name="stem_activation", **types)(x)
    for i, (units, features) in enumerate(zip(network.stages, channels, strict=True), start=1):
        for j in range(units):
            stride = 2 if j == 0 else 1
            name = f"stage{i}_block{j + 1}"
            unit = Block(features, stride, network.block, network.squeeze, name=name, **types)
            x = run_block(unit, x, remat=network.remat, train=train)
    return x


class Block(nn.Module):
    """One residual unit; no activation follows the sum.

        insightface   x -> BN, conv3x3, BN, PReLU, conv3x3 (stride), BN -> + shortcut
        sface         x -> BN, conv3x3, PReLU, conv3x3 (stride), BN     -> + shortcut

    The shortcut of a unit with stride 1 that keeps the channels is the identity; any other is conv1x1 (stride) and BN.
    The sface unit (the PyTorch release of arXiv:2205.12010) subsamples instead where the channels stay, which is what a
    1x1 max-pool with a stride does. With `squeeze` a `SqueezeExcite` follows the last BN of the branch.

    x [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features].
    """

    features: int
    stride: int = 1
    kind: str = "insightface"
    squeeze: int = 0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = BatchNorm(name="norm1", **types)(x, train=train)
        y = _conv(self.features, self.kind, name="conv1", **types)(y)
        if self.kind == "insightface":
            y = BatchNorm(name="norm2", **types)(y, train=train)
        y = PReLU(name="activation", **types)(y)
        y = _conv(self.features, self.kind, stride=self.stride, name="conv2", **types)(y)
        y = BatchNorm(name="norm3", **types)(y, train=train)
        if self.squeeze:
            y = SqueezeExcite(self.squeeze, name="squeeze", **types)(y)

        if x.shape[-1] == self.features and (self.stride == 1 or self.kind == "sface"):
            shortcut = x[:, :: self.stride, :: self.stride]
        else:
            shortcut = _conv(
                self.features, self.kind, kernel=1, stride=self.stride, name="shortcut_conv", **types
            )(x)
            shortcut = BatchNorm(name="shortcut_norm", **types)(shortcut, train=train)
        return y + shortcut


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole plane says of them (arXiv:1709.01507), with PReLU as the release of iResNet has it.

        y = x · σ( V PReLU( W mean_hw(x) + a ) + b ),      W: [C, C // ratio]

    x [B, H, W, C] -> [B, H, W, C].
    """

    ratio: int = 16
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options = {"kernel_init": nn.initializers.normal(0.1), **types}
        weights = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        weights = nn.Dense(max(1, x.shape[-1] // self.ratio), name="reduce", **options)(weights)
        weights = PReLU(name="activation", **types)(weights)
        weights = nn.sigmoid(nn.Dense(x.shape[-1], name="expand", **options)(weights))
        return x * weights[:, None, None, :]


def _conv(features: int, kind: str, *, kernel: int = 3, stride: int = 1, **options) -> nn.Conv:
    # Padding is the same on both sides; "SAME" would pad a strided convolution on one side only.
    options["kernel_init"] = (
        nn.initializers.normal(0.1)
        if kind == "insightface"
        else nn.initializers.variance_scaling(8.0, "fan_out", "normal")
    )
    return nn.Conv(features, (kernel, kernel), stride, padding=kernel // 2, use_bias=False, **options)


MODELS.update(
    {
        # Three stages behind a strided stem: made to train on two CPU cores, on images of 48 to 64 pixels.
        "iresnet_pico": partial(IResNet, stages=(1, 1, 1), channels=(16, 32, 64), stem_stride=2),
        "iresnet_nano": partial(IResNet, stages=(1, 1, 1), channels=(32, 64, 128), stem_stride=2),
        "iresnet10": partial(IResNet, stages=(1, 1, 1, 1)),
        "iresnet18": partial(IResNet, stages=(2, 2, 2, 2)),
        "iresnet34": partial(IResNet, stages=(3, 4, 6, 3)),
        "iresnet50": partial(IResNet, stages=(3, 4, 14, 3)),
        "se_iresnet50": partial(IResNet, stages=(3, 4, 14, 3), squeeze=16),
        "iresnet100": partial(IResNet, stages=(3, 13, 30, 3)),
        "iresnet200": partial(IResNet, stages=(6, 26, 60, 6)),
    }
)
