"""ResNets for ImageNet and CIFAR (arXiv:1512.03385), as classifiers or embedding networks, and one for faces."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers import BatchNorm, FrozenBatchNorm
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder, stage_blocks
from jaxface.models.registry import MODELS

BLOCKS = ("basic", "bottleneck")


class ResNet(nn.Module):
    """ResNet of four stages after a strided stem (ImageNet), or of three after a plain one (CIFAR).

        stem    conv7x7 (stride 2), BN, ReLU, 3x3 max-pool (stride 2);  with `small_images` conv3x3, BN, ReLU
        stages  residual units; every stage but the first halves the plane
        head    mean over the plane (or `pooling`), Dense

    Args:
      embedding: features of the last Dense layer: the size of an embedding, or the number of classes; None leaves it out.
      stages: residual units per stage.
      channels: channels of the 3x3 convolutions per stage.
      block: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1 to four times the channels; the stride sits in the 3x3,
        known as v1.5).
      small_images: the CIFAR form: plain stem, and shortcuts without parameters (subsampling, new channels zero).
      plain_shortcut: such shortcuts; as `small_images` unless given.
      pooling: makes the layer [B, H, W, C] -> [B, D] in the place of the mean, such as `jaxface.layers.BilinearPool`.
      remat: "block" stores the inputs of the residual units alone for the backward pass.

    image [B, H, W, C] -> [B, E] float32. `dtype` is that of stem and stages; the head is float32.
    Convolutions start from He's normal initialization (fan out), as published for ReLU.
    """

    embedding: int | None = 512
    stages: tuple[int, ...] = (2, 2, 2, 2)
    channels: tuple[int, ...] = (64, 128, 256, 512)
    block: str = "basic"
    small_images: bool = False
    plain_shortcut: bool | None = None
    pooling: Callable[..., nn.Module] | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        if self.block not in BLOCKS:
            raise UserError(f"block: needs one of {', '.join(BLOCKS)}, got {self.block!r}")
        _check_stages(self.stages, self.channels)
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kernel, stride = (3, 1) if self.small_images else (7, 2)
        x = _conv(self.channels[0], kernel=kernel, stride=stride, name="stem_conv", **types)(
            image.astype(self.dtype)
        )
        x = nn.relu(BatchNorm(name="stem_norm", **types)(x, train=train))
        if not self.small_images:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for i, (units, features) in enumerate(zip(self.stages, self.channels, strict=True), start=1):
            for j in range(units):
                stride = 2 if j == 0 and i > 1 else 1
                unit = Block(
                    features,
                    stride,
                    bottleneck=self.block == "bottleneck",
                    plain_shortcut=self.small_images if self.plain_shortcut is None else self.plain_shortcut,
                    name=f"stage{i}_block{j + 1}",
                    **types,
                )
                x = run_block(unit, x, remat=self.remat, train=train)
        if self.pooling is None:
            x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        else:
            x = self.pooling(name="head_pool")(x).astype(jnp.float32)
        if self.embedding is None:
            return x
        return nn.Dense(self.embedding, param_dtype=self.param_dtype, name="head_dense")(x)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem",), *stage_blocks(self.stages)


class FaceResNet(nn.Module):
    """ResNet with basic units for aligned faces of 112 x 112: a plain stem and a head that keeps the places (arXiv:2302.05621).

        stem    conv3x3, BN, ReLU, 3x3 max-pool (stride 2)
        stages  residual units; every stage but the first halves the plane
        head    BN, dropout, flatten, Dense, BN

    Args:
      embedding: size E of the embedding.
      stages, channels: residual units, and channels of their convolutions, per stage.
      dropout: rate before the Dense layer, in [0, 1).
      remat: "block" stores the inputs of the residual units alone for the backward pass.

    image [B, H, W, C] -> [B, E] float32, not normalized. H and W are free; `dtype` is that of stem and stages, the Dense layer
    and the last BN are float32. Convolutions start from He's normal initialization (fan out), Dense from
    uniform(±1/sqrt(fan_in)).
    """

    embedding: int = 512
    stages: tuple[int, ...] = (3, 4, 6, 3)
    channels: tuple[int, ...] = (64, 128, 256, 512)
    dropout: float = 0.4
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        _check_stages(self.stages, self.channels)
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = _conv(self.channels[0], kernel=3, name="stem_conv", **types)(image.astype(self.dtype))
        x = nn.relu(BatchNorm(name="stem_norm", **types)(x, train=train))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for i, (units, features) in enumerate(zip(self.stages, self.channels, strict=True), start=1):
            for j in range(units):
                stride = 2 if j == 0 and i > 1 else 1
                unit = Block(features, stride, name=f"stage{i}_block{j + 1}", **types)
                x = run_block(unit, x, remat=self.remat, train=train)
        x = BatchNorm(name="head_norm", **types)(x, train=train)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = nn.Dense(
            self.embedding,
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            param_dtype=self.param_dtype,
            name="head_dense",
        )(x.reshape(x.shape[0], -1).astype(jnp.float32))
        return BatchNorm(param_dtype=self.param_dtype, name="head_embedding")(x, train=train)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem",), *stage_blocks(self.stages)


class Block(nn.Module):
    """One residual unit: relu(shortcut(x) + branch(x)).

        basic       conv3x3 (stride), BN, ReLU, conv3x3, BN
        bottleneck  conv1x1, BN, ReLU, conv3x3 (stride), BN, ReLU, conv1x1 to 4 · features, BN

    Where plane or channels change the shortcut is conv1x1 (stride) and BN; with `plain_shortcut` it subsamples and pads the
    channels with zeros, half on either side.

    Args:
      stride_first: the stride sits in the first convolution of a bottleneck, as Caffe's ResNets have it.
      frozen: the normalizations are constants (`FrozenBatchNorm`). epsilon: of the normalizations.
      conv: makes each convolution, as `flax.linen.Conv` does.

    x [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features or 4 · features].
    """

    features: int
    stride: int = 1
    bottleneck: bool = False
    plain_shortcut: bool = False
    stride_first: bool = False
    frozen: bool = False
    epsilon: float = 1e-5
    conv: Callable[..., nn.Module] = nn.Conv
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        out = 4 * self.features if self.bottleneck else self.features
        norm = partial(FrozenBatchNorm if self.frozen else BatchNorm, epsilon=self.epsilon)
        conv = partial(_conv, layer=self.conv, **types)
        if self.bottleneck:
            strides = (self.stride, 1) if self.stride_first else (1, self.stride)
            convs = [(self.features, 1, strides[0]), (self.features, 3, strides[1]), (out, 1, 1)]
        else:
            convs = [(self.features, 3, self.stride), (out, 3, 1)]

        y = x
        for i, (features, kernel, stride) in enumerate(convs, start=1):
            y = conv(features, kernel=kernel, stride=stride, name=f"conv{i}")(y)
            y = norm(name=f"norm{i}", **types)(y, train=train)
            y = nn.relu(y) if i < len(convs) else y

        if self.stride == 1 and x.shape[-1] == out:
            shortcut = x
        elif self.plain_shortcut:
            new = out - x.shape[-1]
            shortcut = jnp.pad(
                x[:, :: self.stride, :: self.stride], [(0, 0)] * 3 + [(new // 2, new - new // 2)]
            )
        else:
            shortcut = conv(out, kernel=1, stride=self.stride, name="shortcut_conv")(x)
            shortcut = norm(name="shortcut_norm", **types)(shortcut, train=train)
        return nn.relu(y + shortcut)


def _check_stages(stages: tuple[int, ...], channels: tuple[int, ...]) -> None:
    if len(stages) != len(channels):
        raise UserError(f"stages, channels: need the same length, got {stages} and {channels}")


def _conv(
    features: int, *, kernel: int, stride: int = 1, layer: Callable[..., Any] = nn.Conv, **options
) -> Any:
    # Padding is the same on both sides; "SAME" would pad a strided convolution on one side only.
    options["kernel_init"] = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return layer(features, (kernel, kernel), stride, padding=kernel // 2, use_bias=False, **options)


_small_images = partial(ResNet, channels=(16, 32, 64), small_images=True)

MODELS.update(
    {
        "resnet18": partial(ResNet, stages=(2, 2, 2, 2)),
        "resnet34": partial(ResNet, stages=(3, 4, 6, 3)),
        "resnet50": partial(ResNet, stages=(3, 4, 6, 3), block="bottleneck"),
        "resnet101": partial(ResNet, stages=(3, 4, 23, 3), block="bottleneck"),
        "face_resnet34": FaceResNet,
        "cifar_resnet20": partial(_small_images, stages=(3, 3, 3)),
        "cifar_resnet32": partial(_small_images, stages=(5, 5, 5)),
        "cifar_resnet44": partial(_small_images, stages=(7, 7, 7)),
        "cifar_resnet56": partial(_small_images, stages=(9, 9, 9)),
        "cifar_resnet110": partial(_small_images, stages=(18, 18, 18)),
        # ImageNet's ResNet-50 behind a plain stem, as CIFAR papers use it.
        "cifar_resnet50": partial(
            ResNet, stages=(3, 4, 6, 3), block="bottleneck", small_images=True, plain_shortcut=False
        ),
    }
)
