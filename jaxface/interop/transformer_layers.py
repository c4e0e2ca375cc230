"""The layers of ViT, DeiT and Swin under timm's names and under ours.

    ViT, DeiT   cls_token pos_embed dist_token, patch_embed.proj, blocks.{i}.{norm1 attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2},
                ls1.gamma and ls2.gamma of scaled branches, norm, head, head_dist
    Swin        patch_embed.{proj norm}, layers.{i}.downsample.{norm reduction} before stage i's blocks,
                layers.{i}.blocks.{j}.{norm1 attn.relative_position_bias_table attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2},
                norm, head.fc

The rows of attn.qkv are those of all queries, all keys and all values, head by head, as our columns are. Swin's first release and
timm before 0.9, have the merging layer behind the blocks of the stage before (layers.{i-1}.downsample), the head as `head`, and
buffers with the windows' indices and masks: `renamed` makes the names above of them.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import numpy as np

from jaxface.errors import UserError
from jaxface.interop.architecture import Convolution, Dense, Leaf, Path, abstract_variables
from jaxface.layers.attention import relative_index
from jaxface.models.transformers.swin import Swin
from jaxface.models.transformers.vit import ViT

_BUFFERS = ("relative_position_index", "attn_mask")


@dataclasses.dataclass(frozen=True)
class LayerNorm:
    """Normalization of each token."""

    name: str
    path: Path
    features: int

    def leaves(self) -> list[Leaf]:
        rows = (("weight", "scale"), ("bias", "bias"))
        return [
            Leaf(f"{self.name}.{theirs}", (self.features,), ("params", *self.path, ours))
            for theirs, ours in rows
        ]


@dataclasses.dataclass(frozen=True)
class Table:
    """A parameter without a layer: tokens, positions, scales of branches, numbers per offset."""

    name: str
    path: Path
    shape: tuple[int, ...]

    def leaves(self) -> list[Leaf]:
        return [Leaf(self.name, self.shape, ("params", *self.path))]


TransformerLayer = Convolution | Dense | LayerNorm | Table


def is_transformer(module: nn.Module) -> bool:
    """Whether a network is one that timm has names for, up to what its blocks are made of."""
    return isinstance(module, Swin) or (isinstance(module, ViT) and module.pool == "class")


def has_names(module: nn.Module) -> bool:
    """Whether `transformer_layers` knows the network and computes what plain blocks do: none of its parts is a method's."""
    fields = ("unit", "attention", "merging", "encoder", "conv", "dense", "stem", "select")
    plain = all(getattr(module, name, None) is getattr(type(module), name, None) for name in fields)
    return is_transformer(module) and plain


def transformer_layers(module: nn.Module, image_shape: tuple[int, int, int]) -> tuple[TransformerLayer, ...]:
    """Every layer with tensors, in the order of PyTorch's state dict.

    Args:
      module: a `ViT` with pool "class", or a `Swin`, whose blocks have no other parameters than plain ones.
      image_shape: (H, W, C) of its images.

    Raises:
      UserError: another network.
    """
    if not is_transformer(module):
        raise UserError(
            f"backbone: needs a ViT with pool 'class' or a Swin; got {type(module).__name__}, which has no PyTorch names"
        )
    make = _Builder(module, image_shape)
    try:
        layers = _swin(module, make) if isinstance(module, Swin) else _vit(module, make)
    except KeyError as error:
        raise UserError(
            f"backbone: needs a {type(module).__name__} of plain blocks; it has no {'/'.join(error.args[0])}"
        ) from None
    named = {leaf.path[1:] for layer in layers for leaf in layer.leaves()}
    given = set(make.shapes)
    if named != given:
        name = "/".join(min(named ^ given))
        raise UserError(
            f"backbone: needs a {type(module).__name__} of plain blocks; {name} has no PyTorch name"
        )
    return tuple(layers)


def renamed(state: Mapping[str, Any], module: nn.Module) -> Mapping[str, Any]:
    """A state dict of a Swin without buffers, under the names of this module whatever release it is of; others as they are.

    Raises:
      UserError: an index of offsets that is not ours.
    """
    if not isinstance(module, Swin):
        return state
    earlier = "layers.0.downsample.reduction.weight" in state or "head.weight" in state
    names = {}
    for name, array in state.items():
        if name.endswith("relative_position_index"):
            side = round(np.shape(array)[0] ** 0.5) if np.ndim(array) == 2 else 0
            if not np.array_equal(array, relative_index((side, side))):
                raise UserError(f"weights: {name} needs the offsets of square windows row by row")
        if name.endswith(_BUFFERS):
            continue
        if earlier:
            name = re.sub(
                r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name
            )
            name = re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)
        names[name] = array
    return names


def fold_normalization(variables: Mapping[str, Any], mean: np.ndarray, std: np.ndarray) -> dict[str, Any]:
    """Weights that give for images in [-1, 1] what these give for images normalized by channel.

        (level - mean) / std = image / (2 std) + (1/2 - mean) / std,    level = (image + 1) / 2

    Args:
      variables: of a `ViT` or a `Swin`; their first layer alone changes.
      mean, std: [C] of levels in [0, 1].
    """
    params = dict(variables["params"])
    kernel = np.asarray(params["patches"]["kernel"], np.float64)
    shift = np.einsum("hwcd,c->d", kernel, (0.5 - mean) / std)
    bias = (np.asarray(params["patches"]["bias"], np.float64) + shift).astype(np.float32)
    kernel = (kernel / (2 * np.asarray(std)[:, None])).astype(np.float32)
    params["patches"] = {**params["patches"], "kernel": kernel, "bias": bias}
    return {**variables, "params": params}


class _Builder:
    """Makes layers whose sizes are those of the module's own variables."""

    def __init__(self, module: nn.Module, image_shape: tuple[int, int, int]):
        params = abstract_variables(module, image_shape)["params"]
        self.shapes = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(params).items()}

    def table(self, name: str, *path: str) -> list[TransformerLayer]:
        return [Table(name, path, self.shapes[path])] if path in self.shapes else []

    def norm(self, name: str, *path: str) -> LayerNorm:
        return LayerNorm(name, path, *self.shapes[(*path, "bias")])

    def linear(self, name: str, *path: str) -> Dense:
        inputs, outputs = self.shapes[(*path, "kernel")]
        return Dense(name, path, (outputs, inputs), (inputs, 1, 1), (*path, "bias") in self.shapes)

    def patches(self, patch: int) -> Convolution:
        height, width, inputs, outputs = self.shapes["patches", "kernel"]
        return Convolution(
            "patch_embed.proj", ("patches",), (outputs, inputs, height, width), stride=patch, biased=True
        )

    def block(self, theirs: str, ours: str) -> list[TransformerLayer]:
        return [
            self.norm(f"{theirs}.norm1", ours, "norm1"),
            *self.table(f"{theirs}.attn.relative_position_bias_table", ours, "attention", "bias", "table"),
            self.linear(f"{theirs}.attn.qkv", ours, "attention", "qkv"),
            self.linear(f"{theirs}.attn.proj", ours, "attention", "out"),
            *self.table(f"{theirs}.ls1.gamma", ours, "scale1", "scale"),
            self.norm(f"{theirs}.norm2", ours, "norm2"),
            self.linear(f"{theirs}.mlp.fc1", ours, "expand"),
            self.linear(f"{theirs}.mlp.fc2", ours, "project"),
            *self.table(f"{theirs}.ls2.gamma", ours, "scale2", "scale"),
        ]


def _vit(module: ViT, make: _Builder) -> list[TransformerLayer]:
    layers = [
        *make.table("cls_token", "class_token"),
        *make.table("pos_embed", "positions"),
        *make.table("dist_token", "distillation_token"),
        make.patches(module.patch),
    ]
    for i in range(module.depth):
        layers += make.block(f"blocks.{i}", f"block{i + 1}")
    layers.append(make.norm("norm", "head_norm"))
    if module.embedding is not None:
        layers.append(make.linear("head", "head_dense"))
        if module.distilled:
            layers.append(make.linear("head_dist", "distillation_dense"))
    return layers


def _swin(module: Swin, make: _Builder) -> list[TransformerLayer]:
    layers = [make.patches(module.patch), make.norm("patch_embed.norm", "patch_norm")]
    for stage, blocks in enumerate(module.blocks):
        if stage:
            layers += [
                make.norm(f"layers.{stage}.downsample.norm", f"merge{stage}", "norm"),
                make.linear(f"layers.{stage}.downsample.reduction", f"merge{stage}", "reduce"),
            ]
        for i in range(blocks):
            layers += make.block(f"layers.{stage}.blocks.{i}", f"stage{stage + 1}_block{i + 1}")
    layers.append(make.norm("norm", "head_norm"))
    if module.embedding is not None:
        layers.append(make.linear("head.fc", "head_dense"))
    return layers
