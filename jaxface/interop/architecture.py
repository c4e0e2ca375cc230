"""The layers of iResNet, MobileFaceNet and RetinaFace under PyTorch's names and under ours.

One description serves state dicts, which are its leaves, and for networks that are a chain ONNX graphs, which are read and
written along it.

The names of recognizers are those of InsightFace's arcface_torch, those of the detector biubug6/Pytorch_Retinaface's:

    iResNet         conv1 bn1 prelu, layer{1-4}.{i}.{bn1 conv1 bn2 prelu conv2 bn3 downsample.0 downsample.1}, bn2 fc features
    MobileFaceNet   layers.{0-7}, conv_sep, features, each with ….layers.{0: convolution, 1: norm, 2: PReLU}
    RetinaFace      body (MobileNetV1: stage{1-3}.{i}.{0 1 3 4}; ResNet-50: conv1 bn1 layer{1-4}.{i}.{…}),
                    fpn.{output1-3 merge1-2}.{0 1}, ssh{1-3}.{conv3X3 conv5X5_1 conv5X5_2 conv7X7_2 conv7x7_3}.{0 1},
                    {ClassHead BboxHead LandmarkHead}.{0-2}.conv1x1
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxface.errors import UserError
from jaxface.models import IResNet, MobileFaceNet
from jaxface.models.detection.retinaface import RetinaFaceNet

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
    """`shape` is (out, in per group, height, width); `matrix` says that ours is a linear layer [in, out] at every place."""

    name: str
    path: Path
    shape: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    groups: int = 1
    biased: bool = False
    matrix: bool = False

    def leaves(self) -> list[Leaf]:
        weight = Leaf(f"{self.name}.weight", self.shape, ("params", *self.path, "kernel"))
        bias = Leaf(f"{self.name}.bias", self.shape[:1], ("params", *self.path, "bias"))
        return [weight, bias] if self.biased else [weight]


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


def has_chain(module: nn.Module) -> bool:
    """Whether `architecture` knows the network: an `IResNet` with plain insightface blocks, or a `MobileFaceNet`."""
    return isinstance(module, MobileFaceNet) or (
        isinstance(module, IResNet) and module.block == "insightface" and not module.squeeze
    )


def architecture(module: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
    """The layers of a network, from image to embedding.

    Args:
      module: an `IResNet` with insightface blocks, or a `MobileFaceNet`.
      image_shape: (H, W, C) of its images.

    Raises:
      UserError: another network.
    """
    if has_chain(module):
        return (_mobilefacenet if isinstance(module, MobileFaceNet) else _iresnet)(module, image_shape)
    kind = type(module).__name__
    if isinstance(module, IResNet):
        kind += f" with {module.block} blocks" + (" that squeeze" if module.squeeze else "")
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
        kernel = self._shape(*path, "kernel")
        height, width, inputs, outputs = kernel if len(kernel) == 4 else (1, 1, *kernel)
        shape = (outputs, inputs, height, width)
        # Every 3x3 kernel is padded; 1x1 and the one over the whole plane are not.
        biased = "bias" in functools.reduce(lambda tree, key: tree[key], path, self.params)
        return Convolution(
            name, path, shape, stride, int(height == width == 3), groups, biased, len(kernel) == 2
        )

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


def retinaface_layers(module: RetinaFaceNet, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
    """Every layer with tensors of a detector with the context modules of SSH, in the order of PyTorch's state dict.

    Raises:
      UserError: other context modules.
    """
    if module.context != "ssh":
        raise UserError(f"context: needs 'ssh', which has PyTorch names; got {module.context!r}")
    make = _Builder(module, image_shape)

    def pair(conv: str, norm: str, *ours: str) -> tuple[Layer, ...]:
        *module, start = ours
        return make.convolution(conv, *module, f"{start}conv"), make.norm(norm, *module, f"{start}norm")

    def unit(theirs: str, *ours: str) -> tuple[Layer, ...]:
        return pair(f"{theirs}.0", f"{theirs}.1", *ours)

    layers: list[Layer] = []
    if "stage1_block1" in make.params["backbone"]:
        layers += pair("body.conv1", "body.bn1", "backbone", "stem_")
        for ours in sorted(name for name in make.params["backbone"] if name.startswith("stage")):
            stage, block = re.fullmatch(r"stage(\d+)_block(\d+)", ours).groups()
            theirs = f"body.layer{stage}.{int(block) - 1}"
            for i in (1, 2, 3):
                layers += [
                    make.convolution(f"{theirs}.conv{i}", "backbone", ours, f"conv{i}"),
                    make.norm(f"{theirs}.bn{i}", "backbone", ours, f"norm{i}"),
                ]
            if "shortcut_conv" in make.params["backbone"][ours]:
                layers += pair(
                    f"{theirs}.downsample.0", f"{theirs}.downsample.1", "backbone", ours, "shortcut_"
                )
    else:
        layers += pair("body.stage1.0.0", "body.stage1.0.1", "backbone", "stem_")
        places = [(1, i) for i in range(1, 6)] + [(2, i) for i in range(6)] + [(3, i) for i in range(2)]
        for number, (stage, i) in enumerate(places, start=1):
            theirs, ours = f"body.stage{stage}.{i}", ("backbone", f"unit{number}")
            layers += [
                make.convolution(f"{theirs}.0", *ours, "depthwise"),
                make.norm(f"{theirs}.1", *ours, "depthwise_norm"),
                make.convolution(f"{theirs}.3", *ours, "pointwise"),
                make.norm(f"{theirs}.4", *ours, "pointwise_norm"),
            ]
    fpn = [(f"output{i}", f"lateral{i}_") for i in (1, 2, 3)] + [(f"merge{i}", f"merge{i}_") for i in (1, 2)]
    for theirs, ours in fpn:
        layers += unit(f"fpn.{theirs}", "pyramid", ours)
    branches = {
        "conv3X3": "near",
        "conv5X5_1": "shared",
        "conv5X5_2": "middle",
        "conv7X7_2": "far1",
        "conv7x7_3": "far2",
    }
    for i in (1, 2, 3):
        for theirs, ours in branches.items():
            layers += unit(f"ssh{i}.{theirs}", f"context{i}", ours, "")
    heads = {"ClassHead": "class_logits", "BboxHead": "box_deltas", "LandmarkHead": "point_deltas"}
    for theirs, ours in heads.items():
        layers += [make.convolution(f"{theirs}.{i}.conv1x1", f"{ours}{i + 1}") for i in range(3)]
    return tuple(layers)
