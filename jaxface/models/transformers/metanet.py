"""MetaNet: convolutions and attention in stages, as found by a search over both (arXiv:2111.08687, arXiv:2207.08676).

Methods: intern
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.activation import exact_gelu
from jaxface.layers.metanet import DownSample, FusedMBConv, MBConv, MixerBlock, SABlock, XCABlock
from jaxface.layers.norm import BatchNorm
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS

OPERATORS = {
    "mbconv": MBConv,
    "fused": FusedMBConv,
    "sa": SABlock,
    "xca": XCABlock,
    "local": SABlock,
    "mixer": MixerBlock,
}
"""What a stage is made of, by name; "local" attends inside windows."""
DOWNSAMPLING = ("block", "conv", "conv_query", "global")
"""How a stage of stride 2 begins: its first block has the stride, or a `DownSample` stands before it."""
_ATTENDS = ("sa", "xca", "local")


class Repeated(nn.Module):
    """Blocks of one kind and width, one after the other, whose parameters are stacked on a first axis: they are compiled once.

    Args:
      block: makes one. count: of them. remat: "block" stores the inputs of the blocks alone for the backward pass.
    """

    block: Callable[..., nn.Module]
    count: int
    remat: Remat = "none"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        def step(module, x, _):
            return run_block(module.block(name="blocks"), x, remat=module.remat, train=train), None

        scan = nn.scan(
            step,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.count,
        )
        return scan(self, x, None)[0]


class MetaNet(nn.Module):
    """Six stages behind a strided stem, each of one kind of block.

        stem    conv3x3 of stride 2, BN, GELU
        stages  `repeats` blocks of an operator, the first with the stage's stride
        head    conv1x1 to `head_features`, BN, GELU, mean over the plane; Dense

    Args:
      embedding: features of the last Dense layer: the size of an embedding, or the number of classes; None leaves it out and
        gives the pooled features.
      stem: channels of the stem.
      channels, repeats: of each stage.
      operators: of each stage, names of `OPERATORS`.
      strides, expansions: of each stage; hidden channels per channel.
      head_dim: channels of a head of the stages with attention.
      window: side of the windows of "local" stages.
      downsampling: of each stage, one of `DOWNSAMPLING`; "block" of all unless given.
      head_features: pooled features.
      drop_path: rate at which an example skips a branch in the last block; it grows linearly from 0 in the first.
      remat: "block" stores the inputs of the blocks alone for the backward pass.
      scan: the blocks behind the first of a stage are stacked and compiled once (`Repeated`), which a hundred of them need; their
        rates of `drop_path` are then the last one's.

    image [B, H, W, C] float -> [B, embedding] float32. `taps` gives maps of every level besides; a level is what has one stride,
    4, 8, 16 and 32 with the strides as published, and `level` computes one of them. `dtype` is that of the blocks; the last
    Dense layer is float32.

    Raises:
      UserError: lists of different lengths, an unknown operator, or `head_dim` that does not divide the width which an attending
        stage gets or has.

    Example:
      >>> network, image = MODELS["metanet_tiny"](embedding=10), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
      >>> taps, _ = jax.eval_shape(
      ...     lambda x: network.init_with_output(jax.random.key(0), x, method="taps"), image)
      >>> taps["stride4"].shape, taps["stride32"].shape, taps["pooled"].shape
      ((1, 16, 16, 24), (1, 2, 2, 64), (1, 1280))
    """

    embedding: int | None = 512
    stem: int = 32
    channels: tuple[int, ...] = (32, 64, 128, 192, 192, 384)
    repeats: tuple[int, ...] = (2, 3, 6, 6, 6, 12)
    operators: tuple[str, ...] = ("mbconv", "mbconv", "mbconv", "mbconv", "sa", "sa")
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2)
    expansions: tuple[int, ...] = (1, 4, 6, 3, 2, 5)
    head_dim: int = 48
    window: int = 7
    downsampling: tuple[str, ...] | None = None
    head_features: int = 1280
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"
    scan: bool = False

    def __post_init__(self):
        for name in ("repeats", "operators", "strides", "expansions"):
            if len(getattr(self, name)) != len(self.channels):
                raise UserError(
                    f"{name}: needs one for each of {len(self.channels)} stages, got {len(getattr(self, name))}"
                )
        down = self.downsampling or ("block",) * len(self.channels)
        if len(down) != len(self.channels) or set(down) - set(DOWNSAMPLING):
            raise UserError(
                f"downsampling: needs one of {', '.join(DOWNSAMPLING)} for each of {len(self.channels)} stages, got {down}"
            )
        unknown = [name for name in self.operators if name not in OPERATORS]
        if unknown or not self.operators:
            got = repr(unknown[0]) if unknown else "none"
            raise UserError(f"operators: needs some of {', '.join(OPERATORS)}, got {got}")
        for (before, after), operator in zip(
            itertools.pairwise((self.stem, *self.channels)), self.operators, strict=True
        ):
            widths = (before, after) if operator in _ATTENDS else ()
            if wrong := [width for width in widths if width % self.head_dim]:
                raise UserError(f"head_dim: needs a divisor of the width {wrong[0]}, got {self.head_dim}")
        super().__post_init__()

    def setup(self):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        start = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = partial(nn.Conv, use_bias=False, kernel_init=start, **types)
        self.stem_conv = conv(self.stem, (3, 3), 2, padding=1)
        self.stem_norm = BatchNorm(**types)
        count, number = sum(self.repeats), 0
        for i, operator in enumerate(self.operators):
            attends = {"head_dim": self.head_dim} if operator in _ATTENDS else {}
            if operator == "local":
                attends["window"] = self.window
            stride, kind = self.strides[i], "block" if self.downsampling is None else self.downsampling[i]
            if stride == 2 and kind != "block":
                down = DownSample(self.channels[i], 2, kind=kind, head_dim=self.head_dim, **types)
                setattr(self, f"stage{i + 1}_down", down)
                stride = 1
            block = partial(
                OPERATORS[operator], self.channels[i], expansion=self.expansions[i], **attends, **types
            )
            for j in range(self.repeats[i]):
                rate = self.drop_path * (number + j) / max(count - 1, 1)
                if self.scan and j == 1:
                    rate = self.drop_path * (number + self.repeats[i] - 1) / max(count - 1, 1)
                    rest = Repeated(partial(block, drop_path=rate), self.repeats[i] - 1, self.remat)
                    setattr(self, f"stage{i + 1}_rest", rest)
                    break
                made = block(stride=stride if j == 0 else 1, drop_path=rate)
                setattr(self, f"stage{i + 1}_block{j + 1}", made)
            number += self.repeats[i]
        self.head_conv = conv(self.head_features, (1, 1))
        self.head_norm = BatchNorm(**types)
        if self.embedding is not None:
            self.head_dense = nn.Dense(self.embedding, param_dtype=self.param_dtype)

    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = image
        for i in range(len(self.level_strides)):
            x = self.level(i, x, train=train)
        pooled = self.pool(x, train=train)
        return pooled if self.embedding is None else self.head_dense(pooled)

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Strides of the levels, 4 and up; what has stride 2 belongs to the first."""
        return tuple(2 ** (i + 2) for i in range(len(self._levels())))

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of the levels."""
        return tuple(self.channels[stages[-1]] for stages in self._levels())

    def level(self, i: int, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Level i from 0 on: the stages that lead from the level before, of i = 0 from the image, to its map."""
        if i == 0:
            x = self.stem_conv(x.astype(self.dtype))
            x = exact_gelu(self.stem_norm(x, train=train))
        for stage in self._levels()[i]:
            down = getattr(self, f"stage{stage + 1}_down", None)
            x = x if down is None else run_block(down, x, remat=self.remat, train=train)
            for j in range(1 if self.scan else self.repeats[stage]):
                block = getattr(self, f"stage{stage + 1}_block{j + 1}")
                x = run_block(block, x, remat=self.remat, train=train)
            if self.scan and self.repeats[stage] > 1:
                x = getattr(self, f"stage{stage + 1}_rest")(x, train=train)
        return x

    def pool(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Features [B, head_features] float32 of the last level's map."""
        x = exact_gelu(self.head_norm(self.head_conv(x.astype(self.dtype)), train=train))
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))

    def taps(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """The map of every level, as `stride4` and on, and `pooled`."""
        maps = self.all_levels(image, train=train)
        named = {f"stride{stride}": level for stride, level in zip(self.level_strides, maps, strict=True)}
        return {**named, "pooled": self.pool(maps[-1], train=train)}

    def all_levels(self, image: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
        """Maps at strides 4, 8, 16 and 32, as trunks of detectors give them."""
        maps = [image]
        for i in range(len(self.level_strides)):
            maps.append(self.level(i, maps[-1], train=train))
        return tuple(maps[1:])

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        order = [("stem",)]
        for i, blocks in enumerate(self.repeats, start=1):
            if (
                self.downsampling is not None
                and self.downsampling[i - 1] != "block"
                and self.strides[i - 1] == 2
            ):
                order.append((f"stage{i}_down",))
            order += [(f"stage{i}_block{j}",) for j in range(1, (1 if self.scan else blocks) + 1)]
            order += [(f"stage{i}_rest",)] if self.scan and blocks > 1 else []
        return tuple(order)

    def _levels(self) -> list[list[int]]:
        """The stages of each level."""
        levels: list[list[int]] = [[]]
        halved = 0
        for stage, stride in enumerate(self.strides):
            halved += stride > 1
            if halved > len(levels):
                levels.append([])
            levels[-1].append(stage)
        return levels


_B15 = {
    "stem": 96,
    "channels": (128, 256, 512, 768, 768, 1536),
    "repeats": (4, 6, 12, 12, 12, 24),
    "operators": ("fused", "fused", "mbconv", "mbconv", "xca", "xca"),
    "head_dim": 64,
}
_TINY = {
    "stem": 16,
    "channels": (16, 24, 32, 48, 48, 64),
    "repeats": (1, 1, 2, 2, 2, 2),
    "head_dim": 16,
}

MODELS.update(
    {
        "metanet_tiny": partial(MetaNet, **_TINY),
        "metanet_b4": MetaNet,
        "metanet_b15": partial(MetaNet, **_B15),
    }
)
