"""Feature pyramids of general detectors: a trunk, lateral connections, extra coarse levels (arXiv:1612.03144).

Methods: rm_pfi, pseco
"""

import dataclasses
import itertools
from functools import partial
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import boxes
from jaxface.checks import AtLeast, Integers, NonNegative
from jaxface.errors import UserError
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder, depth_order
from jaxface.models.detection.pyramid import ResNetLevels

Trunk = Literal["plain", "resnet18", "resnet50", "resnet101"]
Pixels = Literal["centered", "imagenet", "caffe"]
ExtraFrom = Literal["trunk", "pyramid", "pool"]
Maps = tuple[jax.Array, ...]

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of red, green and blue, in levels from 0 to 255."""

_RESNETS = {
    "resnet18": {"stages": (2, 2, 2, 2), "bottleneck": False},
    "resnet50": {"stages": (3, 4, 6, 3)},
    "resnet101": {"stages": (3, 4, 23, 3)},
}
_RESNET_STRIDES = (4, 8, 16, 32)


def stem_pixels(image: jax.Array, pixels: Pixels) -> jax.Array:
    """What a trunk sees of RGB in [-1, 1]: that, ImageNet's normalization of it, or as Caffe's weights BGR levels less a mean."""
    if pixels == "centered":
        return image
    mean, std = jnp.array(IMAGENET_MEAN, image.dtype), jnp.array(IMAGENET_STD, image.dtype)
    centered = (image + 1) * 127.5 - mean
    return centered / std if pixels == "imagenet" else centered[..., ::-1]


class PlainLevels(nn.Module):
    """A trunk of 3x3 convolutions with bias and ReLU, for small images.

    Args:
      widths: channels of each convolution. steps: their strides, 1 or 2.

    image [B, H, W, C] -> the last map of each stride from 2 on.
    """

    widths: tuple[int, ...] = (16, 32, 32)
    steps: tuple[int, ...] = (2, 2, 1)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def all_levels(self, image: jax.Array, *, train: bool) -> Maps:
        """Maps at every stride."""
        del train
        maps, stride, x = {}, 1, image
        for i, (width, step) in enumerate(zip(self.widths, self.steps, strict=True), start=1):
            x = nn.Conv(
                width,
                (3, 3),
                step,
                padding=1,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"conv{i}",
            )(x)
            x, stride = nn.relu(x), stride * step
            maps[stride] = x
        return tuple(value for stride, value in maps.items() if stride > 1)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on."""
        return tuple((f"conv{i}",) for i in range(1, len(self.widths) + 1))


class FeaturePyramidNetwork(nn.Module):
    """Lateral connections, a top-down path and extra levels (arXiv:1612.03144, arXiv:1708.02002).

        m_i = conv1x1(c_i) + nearest upsampling of m_{i+1},   p_i = conv3x3(m_i)

    Args:
      features: of every output.
      extra: levels beyond the coarsest input, each a 3x3 convolution of stride 2 of the one before, or every second cell of it.
      extra_from: what the first of them reads: "trunk" (the coarsest input), "pyramid" (the coarsest output), or "pool", every
        second cell of that output.
      extra_relu: a ReLU before the second of those convolutions, as the paper and torchvision have it.

    (maps, fine before coarse, each of half the size of the one before) -> as many and `extra` of `features` channels.
    """

    features: int = 256
    extra: int = 0
    extra_from: ExtraFrom = "trunk"
    extra_relu: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Maps, *, train: bool = False) -> Maps:
        del train
        conv = partial(
            nn.Conv,
            self.features,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        merged = [conv((1, 1), name=f"lateral{i}")(level) for i, level in enumerate(maps, start=1)]
        for i in reversed(range(len(merged) - 1)):
            _, height, width, _ = merged[i].shape
            # A side of 2n or 2n - 1 lies over one of n: the nearest of place k is k // 2.
            coarse = jnp.repeat(jnp.repeat(merged[i + 1], 2, axis=1), 2, axis=2)[:, :height, :width]
            merged[i] = merged[i] + coarse
        outputs = [conv((3, 3), padding=1, name=f"output{i}")(x) for i, x in enumerate(merged, start=1)]
        x = maps[-1] if self.extra_from == "trunk" else outputs[-1]
        for i in range(1, self.extra + 1):
            if self.extra_from == "pool":
                x = x[:, ::2, ::2]
            else:
                x = nn.relu(x) if self.extra_relu and i > 1 else x
                x = conv((3, 3), 2, padding=1, name=f"extra{i}")(x)
            outputs.append(x)
        return tuple(outputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PyramidFields:
    """What detectors on feature pyramids have in common."""

    num_classes: Annotated[int, AtLeast(1)] = 80
    """Classes of objects."""
    trunk: Trunk = "resnet50"
    """What the maps come from: plain (a few convolutions, for small images), resnet18, resnet50 or resnet101."""
    widths: Annotated[tuple[int, ...], AtLeast(1)] = (16, 32, 32)
    """plain: channels of the convolutions."""
    steps: Annotated[tuple[int, ...], Integers(1, 2)] = (2, 2, 1)
    """plain: their strides."""
    strides: Annotated[tuple[int, ...], AtLeast(2)] = (8, 16, 32, 64, 128)
    """Of the levels with anchors, each twice the one before; what the trunk does not have is convolved further."""
    features: Annotated[int | None, AtLeast(1)] = 256
    """Channels of the pyramid; none leaves it out, and the trunk's maps are the levels."""
    extra_from: ExtraFrom = "trunk"
    """What the levels beyond the trunk are made from: trunk (its coarsest map), pyramid (the coarsest output) or pool (every
    second cell of that)."""
    extra_relu: bool = False
    """A ReLU between the convolutions that make them."""
    caffe: bool = False
    """resnet50, resnet101: strides sit in the first convolution of a unit, as Caffe's weights have it."""
    frozen_norm: bool = True
    """resnet: batch normalizations are constants, those of the weights to start from."""
    norm_epsilon: Annotated[float, NonNegative] = 1e-5
    """resnet: what the normalizations add to the variance; 0 of some of torchvision's weights."""
    pixels: Pixels = "centered"
    """What the trunk sees: RGB in [-1, 1], ImageNet's normalization, or as Caffe's weights BGR in [0, 255] less the mean."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters, statistics, outputs and the loss stay float32."""
    remat: Remat = "none"
    """What the backward pass computes again instead of storing it: nothing, or each block."""

    def __post_init__(self):
        if self.trunk not in (*_RESNETS, "plain"):
            raise UserError(f"trunk: needs one of plain, {', '.join(_RESNETS)}, got {self.trunk!r}")
        if self.pixels not in ("centered", "imagenet", "caffe"):
            raise UserError(f"pixels: needs one of centered, imagenet, caffe, got {self.pixels!r}")
        if self.extra_from not in ("trunk", "pyramid", "pool"):
            raise UserError(f"extra_from: needs one of trunk, pyramid, pool, got {self.extra_from!r}")
        if len(self.widths) != len(self.steps):
            raise UserError(
                f"steps: needs one for each of the {len(self.widths)} widths, got {len(self.steps)}"
            )
        levels, available = self.level_strides, self.trunk_strides
        if not levels or any(b != 2 * a for a, b in itertools.pairwise(levels)):
            raise UserError(f"strides: needs each twice the one before, got {levels}")
        if levels[0] not in available:
            raise UserError(
                f"strides: needs a first one of {', '.join(map(str, available))}, got {levels[0]}"
            )
        if self.features is None and levels[-1] not in available:
            raise UserError(f"features: needs channels where levels go beyond the trunk's {available[-1]}")

    @property
    def trunk_strides(self) -> tuple[int, ...]:
        """Of the maps that the trunk has."""
        if self.trunk != "plain":
            return _RESNET_STRIDES
        strides, stride = [], 1
        for step in self.steps:
            stride *= step
            strides.append(stride)
        return tuple(dict.fromkeys(value for value in strides if value > 1))

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Of all maps of the pyramid; those with anchors unless a detector has more."""
        return self.strides

    @property
    def stride(self) -> int:
        """Sides of images are multiples of it: the coarsest stride of trunk and levels that is no extra one."""
        return min(self.level_strides[-1], self.trunk_strides[-1])

    def level_shapes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(rows, columns) of every level with anchors, of images (H, W)."""
        height, width = image_size
        return [(-(-height // stride), -(-width // stride)) for stride in self.strides]

    @property
    def anchor_spec(self) -> boxes.AnchorSpec:
        """Its anchors, by the `scales`, `ratios` and `whole_anchors` of the detector."""
        return boxes.AnchorSpec(self.strides, self.scales, self.ratios, self.whole_anchors)

    @property
    def per_cell(self) -> int:
        """Anchors of a cell."""
        return self.anchor_spec.per_cell

    def anchors(self, image_size: tuple[int, int]) -> np.ndarray:
        """[A, 4] float32 pixels, level by level from the finest."""
        return boxes.make_anchors(self.level_shapes(image_size), self.anchor_spec)


class PyramidNet(nn.Module):
    """The maps of a detector on a feature pyramid; detectors add their heads.

    Args:
      spec: the detector's description.
      remat: "block" stores the inputs of the trunk's units alone for the backward pass.

    `pyramid(image [B, H, W, 3] float in [-1, 1], train)` -> maps at `spec.level_strides`, fine before coarse.
    """

    spec: Any
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def setup_pyramid(self) -> None:
        """Makes trunk and pyramid, inside of `setup`."""
        spec, types = self.spec, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.trunk = make_trunk(spec, remat=self.remat, **types)
        beyond = [stride for stride in spec.level_strides if stride > spec.trunk_strides[-1]]
        self.fpn = spec.features and FeaturePyramidNetwork(
            spec.features, len(beyond), spec.extra_from, spec.extra_relu, **types
        )

    def pyramid(self, image: jax.Array, *, train: bool = False) -> Maps:
        """Maps of all levels."""
        image = stem_pixels(image, self.spec.pixels).astype(self.dtype)
        available = dict(zip(self.spec.trunk_strides, self.trunk.all_levels(image, train=train), strict=True))
        maps = tuple(available[stride] for stride in self.spec.level_strides if stride in available)
        return run_block(self.fpn, maps, remat=self.remat, train=train) if self.fpn else maps

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on: those of the trunk, then the pyramid."""
        inside = depth_order(make_trunk(self.spec, parent=None))
        trunk = (tuple(f"trunk/{name}" for name in names) for names in inside)
        return (*trunk, ("fpn",)) if self.spec.features else tuple(trunk)


def make_trunk(spec: PyramidFields, **options) -> nn.Module:
    """The trunk of a detector, by itself; `options` are further fields of the module."""
    if spec.trunk == "plain":
        return PlainLevels(spec.widths, spec.steps, **options)
    return ResNetLevels(
        **_RESNETS[spec.trunk],
        stride_first=spec.caffe,
        frozen=spec.frozen_norm,
        epsilon=spec.norm_epsilon,
        **options,
    )
