"""The layers of iResNet and MobileFaceNet in the order of their computation, under PyTorch's names and under ours.

One description serves state dicts, which are its leaves, and ONNX graphs, which are read and written along it.

The names are those of InsightFace's arcface_torch:

    iResNet         conv1 bn1 prelu, layer{1-4}.{i}.{bn1 conv1 bn2 prelu conv2 bn3 downsample.0 downsample.1}, bn2 fc features
    MobileFaceNet   layers.{0-7}, conv_sep, features, each with ….layers.{0: convolution, 1: norm, 2: PReLU}
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxface.errors import UserError
from jaxface.models import IResNet, MobileFaceNet

EPSILON = 1e-5  # of every norm, in PyTorch and in ours

Path = tuple[str, ...]
Plane = tuple[int, int, int]


class Leaf(NamedTuple):
    """One tensor: its name and shape in PyTorch, and where it is in `variables`."""

    name: str
    shape: tuple[int, ...]
    path: Path


@dataclasses.dataclass(frozen=True)
class Convolution:
    """Without bias; `shape` is (out, in per group, height, width)."""

    name: str
    path: Path
    shape: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    groups: int = 1

    def leaves(self) -> list[Leaf]:
        return [Leaf(f"{self.name}.weight", self.shape, ("params", *self.path, "kernel"))]


@dataclasses.dataclass(frozen=True)
class Norm:
    """Batch normalization. Where it is not `scaled`, its weight in PyTorch is frozen at one and ours has none."""

    name: str
    path: Path
    features: int
    scaled: bool = True

    def leaves(self) -> list[Leaf]:
        rows = [("bias", "params", "bias"), ("running_mean", "batch_stats", "mean")]
        rows += [("running_var", "batch_stats", "var")]
        if self.scaled:
            rows.insert(0, ("weight", "params", "scale"))
        return [
            Leaf(f"{self.name}.{theirs}", (self.features,), (collection, *self.path, ours))
            for theirs, collection, ours in rows
        ]


@dataclasses.dataclass(frozen=True)
class Activation:
    """PReLU."""

    name: str
    path: Path
    features: int

    def leaves(self) -> list[Leaf]:
        return [Leaf(f"{self.name}.weight", (self.features,), ("params", *self.path, "slope"))]


@dataclasses.dataclass(frozen=True)
class Dense:
    """The linear layer over a flattened plane (C, H, W): `shape` is (out, C·H·W).

    `biased` is ours; `lenient` says that the published ones may have no bias, as InsightFace's MobileFaceNet of any width.
    """

    name: str
    path: Path
    shape: tuple[int, int]
    plane: Plane
    biased: bool
    lenient: bool = False

    def leaves(self) -> list[Leaf]:
        weight = Leaf(f"{self.name}.weight", self.shape, ("params", *self.path, "kernel"))
        bias = Leaf(f"{self.name}.bias", self.shape[:1], ("params", *self.path, "bias"))
        return [weight, bias] if self.biased else [weight]


@dataclasses.dataclass(frozen=True)
class Residual:
    """The sum of a branch and a shortcut; an empty shortcut is the identity."""

    branch: tuple["Layer", ...]
    shortcut: tuple["Layer", ...] = ()


Layer = Convolution | Norm | Activation | Dense | Residual


@functools.lru_cache(maxsize=8)
def abstract_variables(module: nn.Module, image_shape: tuple[int, int, int]) -> dict:
    """{"params", "batch_stats"} of a network as ShapeDtypeStruct; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    return jax.eval_shape(
        lambda rng, image: module.init(rng, image, train=False),
        jax.eval_shape(lambda: jax.random.key(0)),
        image,
    )


def architecture(module: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
    """The layers of a network, from image to embedding.

    Args:
      module: an `IResNet` with insightface blocks, or a `MobileFaceNet`.
      image_shape: (H, W, C) of its images.

    Raises:
      UserError: another network.
    """
    if isinstance(module, IResNet) and module.block == "insightface":
        return _iresnet(module, image_shape)
    if isinstance(module, MobileFaceNet):
        return _mobilefacenet(module, image_shape)
    kind = type(module).__name__ + (f" with {module.block} blocks" if isinstance(module, IResNet) else "")
    raise UserError(
        f"backbone: needs an IResNet with insightface blocks or a MobileFaceNet; got {kind}, which has no PyTorch names"
    )


def leaves(layers: tuple[Layer, ...]) -> Iterator[Leaf]:
    """Every tensor, in the order of PyTorch's state dict."""
    for layer in plain_layers(layers):
        yield from layer.leaves()


def plain_layers(layers: tuple[Layer, ...]) -> Iterator[Layer]:
    """Every layer that is not a sum, in order, branches before shortcuts."""
    for layer in layers:
        if isinstance(layer, Residual):
            yield from plain_layers((*layer.branch, *layer.shortcut))
        else:
            yield layer


class _Builder:
    """Makes layers whose sizes are those of the module's own variables."""

    def __init__(self, module: nn.Module, image_shape: tuple[int, int, int]):
        self.params = abstract_variables(module, image_shape)["params"]

    def _shape(self, *path: str) -> tuple[int, ...]:
        return functools.reduce(lambda tree, key: tree[key], path, self.params).shape

    def convolution(self, name: str, *path: str, stride: int = 1, groups: int = 1) -> Convolution:
        height, width, inputs, outputs = self._shape(*path, "kernel")
        shape = (outputs, inputs, height, width)
        # Every 3x3 kernel is padded; 1x1 and the one over the whole plane are not.
        return Convolution(name, path, shape, stride, int(height == width == 3), groups)

    def norm(self, name: str, *path: str) -> Norm:
        scaled = "scale" in functools.reduce(lambda tree, key: tree[key], path, self.params)
        return Norm(name, path, *self._shape(*path, "bias"), scaled)

    def activation(self, name: str, *path: str) -> Activation:
        return Activation(name, path, *self._shape(*path, "slope"))

    def dense(self, name: str, *path: str, plane: Plane, lenient: bool = False) -> Dense:
        inputs, outputs = self._shape(*path, "kernel")
        return Dense(name, path, (outputs, inputs), plane, "bias" in self.params[path[0]], lenient)


def _iresnet(module: IResNet, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
    make = _Builder(module, image_shape)
    layers: list[Layer] = [
        make.convolution("conv1", "stem_conv", stride=module.stem_stride),
        make.norm("bn1", "stem_norm"),
        make.activation("prelu", "stem_activation"),
    ]
    for stage, units in enumerate(module.stages, start=1):
        for unit in range(units):
            theirs, ours = f"layer{stage}.{unit}", f"stage{stage}_block{unit + 1}"
            stride = 2 if unit == 0 else 1
            branch = (
                make.norm(f"{theirs}.bn1", ours, "norm1"),
                make.convolution(f"{theirs}.conv1", ours, "conv1"),
                make.norm(f"{theirs}.bn2", ours, "norm2"),
                make.activation(f"{theirs}.prelu", ours, "activation"),
                make.convolution(f"{theirs}.conv2", ours, "conv2", stride=stride),
                make.norm(f"{theirs}.bn3", ours, "norm3"),
            )
            shortcut = ()
            if "shortcut_conv" in make.params[ours]:
                shortcut = (
                    make.convolution(f"{theirs}.downsample.0", ours, "shortcut_conv", stride=stride),
                    make.norm(f"{theirs}.downsample.1", ours, "shortcut_norm"),
                )
            layers.append(Residual(branch, shortcut))
    halvings = len(module.stages) + (module.stem_stride == 2)
    height, width = (-(-side // 2**halvings) for side in image_shape[:2])
    tail = make.norm("bn2", "head_norm")
    return (
        *layers,
        tail,
        make.dense("fc", "head_dense", plane=(tail.features, height, width)),
        make.norm("features", "head_embedding"),
    )


def _mobilefacenet(module: MobileFaceNet, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
    make = _Builder(module, image_shape)

    def unit(theirs: str, *ours: str, **options) -> tuple[Layer, ...]:
        convolution = make.convolution(f"{theirs}.layers.0", *ours, "conv", **options)
        norm = make.norm(f"{theirs}.layers.1", *ours, "norm")
        if "activation" not in functools.reduce(lambda tree, key: tree[key], ours, make.params):
            return convolution, norm
        return convolution, norm, make.activation(f"{theirs}.layers.2", *ours, "activation")

    def bottleneck(theirs: str, ours: str, hidden: int, stride: int) -> tuple[Layer, ...]:
        return (
            *unit(f"{theirs}.layers.0", ours, "expand"),
            *unit(f"{theirs}.layers.1", ours, "depthwise", stride=stride, groups=hidden),
            *unit(f"{theirs}.layers.2", ours, "project"),
        )

    layers: list[Layer] = [*unit("layers.0", "stem1", stride=2), *unit("layers.1", "stem2", groups=64)]
    for stage, ((first, rest), blocks) in enumerate(zip(module.hidden, module.blocks, strict=True), start=1):
        index = 2 * stage
        layers += bottleneck(f"layers.{index}", f"stage{stage}_block1", first, 2)
        layers += [
            Residual(bottleneck(f"layers.{index + 1}.layers.{i}", f"stage{stage}_block{i + 2}", rest, 1))
            for i in range(blocks)
        ]
    pool = unit("features.layers.0", "head_pool", groups=512)
    return (
        *layers,
        *unit("conv_sep", "head_conv"),
        *pool,
        make.dense("features.layers.2", "head_dense", plane=(512, 1, 1), lenient=True),
        make.norm("features.layers.3", "head_embedding"),
    )
