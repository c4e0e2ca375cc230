"""The layers of ResNet trunks, RetinaNet and Faster R-CNN under torchvision's and MMDetection's names and under ours.

    trunk        torchvision backbone.body.{conv1 bn1 layer{1-4}.{i}.{conv1 bn1 … downsample.0 downsample.1}}, MMDetection
                 backbone.{…}; weights of ImageNet have the same names without a prefix
    pyramid      torchvision backbone.fpn.{inner_blocks layer_blocks}.{i}.0, extra_blocks.p{6 7};
                 MMDetection neck.{lateral_convs fpn_convs}.{i}.conv
    RetinaNet    torchvision head.{classification_head.{conv.{i}.0 cls_logits} regression_head.{conv.{i}.0 bbox_reg}};
                 MMDetection bbox_head.{cls_convs.{i}.conv retina_cls reg_convs.{i}.conv retina_reg}
    Faster R-CNN torchvision rpn.head.{conv.0.0 cls_logits bbox_pred}, roi_heads.{box_head.fc{6 7} box_predictor.{cls_score
                 bbox_pred}}; MMDetection rpn_head.{rpn_conv rpn_cls rpn_reg}, roi_head.bbox_head.{shared_fcs.{0 1} fc_cls fc_reg}

torchvision's Faster R-CNN has the background first, and deltas of it that nothing reads; ours and MMDetection's have it last.

Methods: pseco, qdetr, rm_pfi
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import numpy as np

from jaxface.errors import UserError
from jaxface.interop.architecture import Layer, Leaf, Path, _Builder, abstract_variables
from jaxface.models.detection.faster_rcnn import FasterRCNNNet
from jaxface.models.detection.feature_pyramid import PyramidNet
from jaxface.models.detection.retinanet import RetinaNetNet

Layout = Literal["torchvision", "mmdetection"]

_CLASSES, _DELTAS = "roi_heads.box_predictor.cls_score.", "roi_heads.box_predictor.bbox_pred."


@dataclasses.dataclass(frozen=True)
class FrozenNorm:
    """Batch normalization as a constant: four buffers in PyTorch, `batch_stats` here."""

    name: str
    path: Path
    features: int

    def leaves(self) -> list[Leaf]:
        names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
        return [
            Leaf(f"{self.name}.{theirs}", (self.features,), ("batch_stats", *self.path, ours))
            for theirs, ours in names.items()
        ]


class LayerBuilder(_Builder):
    """Makes layers whose sizes are those of a module's own variables, frozen normalizations among them."""

    def __init__(self, variables: Mapping[str, Any]):
        self.params, self.statistics = variables.get("params", {}), variables.get("batch_stats", {})

    def norm(self, name: str, *path: str) -> Any:
        tree: Any = self.statistics
        for key in path:
            tree = tree[key]
        if "scale" in tree:
            return FrozenNorm(name, path, *tree["scale"].shape)
        return super().norm(name, *path)


def trunk_layers(make: LayerBuilder, theirs: str = "backbone.body.", *ours: str) -> list[Layer]:
    """Those of a `ResNetLevels` at the path `ours`, in the order of PyTorch's state dict, before whose names is `theirs`."""
    tree: Any = make.params
    for key in ours:
        tree = tree[key]
    layers = [
        make.convolution(f"{theirs}conv1", *ours, "stem_conv"),
        make.norm(f"{theirs}bn1", *ours, "stem_norm"),
    ]
    blocks = [re.fullmatch(r"stage(\d+)_block(\d+)", name) for name in tree]
    for match in sorted((b for b in blocks if b), key=lambda b: (int(b[1]), int(b[2]))):
        block, name = match[0], f"{theirs}layer{match[1]}.{int(match[2]) - 1}"
        for i in range(1, 1 + sum(key.startswith("conv") for key in tree[block])):
            layers += [
                make.convolution(f"{name}.conv{i}", *ours, block, f"conv{i}"),
                make.norm(f"{name}.bn{i}", *ours, block, f"norm{i}"),
            ]
        if "shortcut_conv" in tree[block]:
            layers += [
                make.convolution(f"{name}.downsample.0", *ours, block, "shortcut_conv"),
                make.norm(f"{name}.downsample.1", *ours, block, "shortcut_norm"),
            ]
    return layers


def pyramid_layers(module: PyramidNet, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
    """Every layer with tensors of a RetinaNet or a Faster R-CNN, under torchvision's names.

    Raises:
      UserError: a trunk or a pyramid without published names.
    """
    spec = module.spec
    if spec.trunk == "plain" or spec.features is None:
        raise UserError(
            "trunk: needs a resnet with a feature pyramid, which has PyTorch names; got a plain one"
        )
    make = LayerBuilder(abstract_variables(module, image_shape))
    layers = trunk_layers(make, "backbone.body.", "trunk")
    inner = sum(name.startswith("lateral") for name in make.params["fpn"])
    for theirs, ours in (("inner_blocks", "lateral"), ("layer_blocks", "output")):
        layers += [
            make.convolution(f"backbone.fpn.{theirs}.{i}.0", "fpn", f"{ours}{i + 1}") for i in range(inner)
        ]
    extra = sum(name.startswith("extra") for name in make.params["fpn"])
    layers += [
        make.convolution(f"backbone.fpn.extra_blocks.p{i + 5}", "fpn", f"extra{i}")
        for i in range(1, extra + 1)
    ]
    if isinstance(module, RetinaNetNet):
        for theirs, tower, last, ours in (
            ("classification_head", "class_tower", "cls_logits", "class_logits"),
            ("regression_head", "box_tower", "bbox_reg", "box_deltas"),
        ):
            layers += [
                make.convolution(f"head.{theirs}.conv.{i}.0", f"{tower}_{i}") for i in range(spec.head_convs)
            ]
            layers.append(make.convolution(f"head.{theirs}.{last}", ours))
    elif isinstance(module, FasterRCNNNet):
        layers += [
            make.convolution("rpn.head.conv.0.0", "proposal_conv"),
            make.convolution("rpn.head.cls_logits", "proposal_logits"),
            make.convolution("rpn.head.bbox_pred", "proposal_deltas"),
        ]
        plane = (spec.features, spec.region_size, spec.region_size)
        for i, size in enumerate(spec.hidden):
            layers.append(make.dense(f"roi_heads.box_head.fc{i + 6}", f"hidden_{i}", plane=plane))
            plane = (size, 1, 1)
        layers += [
            make.dense(_CLASSES[:-1], "class_logits", plane=plane),
            make.dense(_DELTAS[:-1], "box_deltas", plane=plane),
        ]
    return tuple(layers)


def mmdetection_name(name: str, lateral: int) -> str:
    """What MMDetection calls a tensor that torchvision calls `name`, in a pyramid of so many lateral connections."""
    rules = (
        (r"backbone\.body\.", "backbone."),
        (r"backbone\.fpn\.inner_blocks\.(\d+)\.0\.", r"neck.lateral_convs.\1.conv."),
        (r"backbone\.fpn\.layer_blocks\.(\d+)\.0\.", r"neck.fpn_convs.\1.conv."),
        (r"head\.classification_head\.conv\.(\d+)\.0\.", r"bbox_head.cls_convs.\1.conv."),
        (r"head\.regression_head\.conv\.(\d+)\.0\.", r"bbox_head.reg_convs.\1.conv."),
        (r"head\.classification_head\.cls_logits\.", "bbox_head.retina_cls."),
        (r"head\.regression_head\.bbox_reg\.", "bbox_head.retina_reg."),
        (r"rpn\.head\.conv\.0\.0\.", "rpn_head.rpn_conv."),
        (r"rpn\.head\.cls_logits\.", "rpn_head.rpn_cls."),
        (r"rpn\.head\.bbox_pred\.", "rpn_head.rpn_reg."),
        (re.escape(_CLASSES), "roi_head.bbox_head.fc_cls."),
        (re.escape(_DELTAS), "roi_head.bbox_head.fc_reg."),
    )
    if extra := re.fullmatch(r"backbone\.fpn\.extra_blocks\.p(\d+)\.(\w+)", name):
        return f"neck.fpn_convs.{lateral + int(extra[1]) - 6}.conv.{extra[2]}"
    if dense := re.fullmatch(r"roi_heads\.box_head\.fc(\d+)\.(\w+)", name):
        return f"roi_head.bbox_head.shared_fcs.{int(dense[1]) - 6}.{dense[2]}"
    for pattern, replacement in rules:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    return name


def _earlier_name(name: str) -> str:
    """What releases of torchvision before 0.13 called a tensor."""
    name = re.sub(r"((?:inner|layer)_blocks\.\d+)\.0\.", r"\1.", name)
    name = re.sub(
        r"(head\.(?:classification|regression)_head\.conv)\.(\d+)\.0\.",
        lambda m: f"{m[1]}.{2 * int(m[2])}.",
        name,
    )
    return name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")


def to_layout(state: Mapping[str, np.ndarray], module: PyramidNet, layout: Layout) -> dict[str, np.ndarray]:
    """A state dict of `pyramid_layers` as it is published: other names, or another place of the background."""
    if layout == "mmdetection":
        lateral = sum(
            re.fullmatch(r"backbone\.fpn\.inner_blocks\.\d+\.0\.weight", name) is not None for name in state
        )
        renamed = {mmdetection_name(name, lateral): array for name, array in state.items()}
        for name in list(renamed):
            if name.endswith("running_var"):
                tracked = name.replace("running_var", "num_batches_tracked")
                renamed.setdefault(tracked, np.zeros((), np.int64))
        return renamed
    result = dict(state)
    for name, array in state.items():
        if name.startswith(_CLASSES) and not module.spec.focal:
            result[name] = np.roll(array, 1, axis=0)
        elif name.startswith(_DELTAS):
            result[name] = np.concatenate([np.zeros_like(array[:4]), array])
    return result


def from_layout(
    state: Mapping[str, np.ndarray], module: PyramidNet, layers: tuple[Layer, ...]
) -> dict[str, np.ndarray]:
    """The inverse of `to_layout`, of whichever layout the names are, those of torchvision before 0.13 too."""
    names = [leaf.name for layer in layers for leaf in layer.leaves()]
    lateral = sum(
        re.fullmatch(r"backbone\.fpn\.inner_blocks\.\d+\.0\.weight", name) is not None for name in names
    )
    is_torchvision = any(name.startswith("backbone.body.") for name in state)
    known = {
        (_earlier_name(name) if is_torchvision else mmdetection_name(name, lateral)): name for name in names
    }
    result = {known.get(name, name): array for name, array in state.items()}
    if not is_torchvision or not isinstance(module, FasterRCNNNet):
        return result
    for name, array in result.items():
        if name.startswith(_CLASSES) and not module.spec.focal:
            result[name] = np.roll(array, -1, axis=0)
        elif name.startswith(_DELTAS) and len(array) == 4 * (module.spec.num_classes + 1):
            result[name] = array[4:]
    return result


def read_trunk(
    state: Mapping[str, np.ndarray], trunk: nn.Module, image_shape: tuple[int, int, int], *, source: str
) -> dict:
    """Variables of a `ResNetLevels` from weights of ImageNet under torchvision's names, which Caffe's converted ones have too.

    Args:
      state: name -> array; the classifier `fc` is left out.
      trunk: the module. image_shape: (H, W, 3) of images that it takes.
      source: what to call the tensors in a refusal.

    Returns:
      {"params", "batch_stats"} of float32 numpy arrays.

    Raises:
      UserError: another architecture (names the first tensor that differs and both shapes).
    """
    from jaxface.interop.state_dict import read_layers  # the two modules know each other

    variables = abstract_variables(TrunkOnly(trunk), image_shape)
    layers = trunk_layers(LayerBuilder(variables), "", "trunk")
    wanted = {name: array for name, array in state.items() if not name.startswith("fc.")}
    read = read_layers(wanted, tuple(layers), source)
    return {name: tree["trunk"] for name, tree in read.items()}


class TrunkOnly(nn.Module):
    """A trunk as a network of its own, its maps summed up; so that its variables are known without a detector."""

    trunk: nn.Module

    def __call__(self, image, *, train: bool = False):
        return sum(level.mean() for level in self.trunk.all_levels(image, train=train))
