"""The layers of DETR under the names of its published weights and under ours.

    backbone.0.body.{conv1 bn1 layer{1-4}.{i}.{…}}, input_proj, query_embed, class_embed, bbox_embed.layers.{0-2},
    transformer.encoder.layers.{i}.{self_attn linear1 linear2 norm1 norm2},
    transformer.decoder.{layers.{i}.{self_attn multihead_attn linear1 linear2 norm1 norm2 norm3} norm}

of SMCA besides transformer.decoder.layers.{i}.{norm4 point2 point3} and point1.layers.{0-2} of the first layer. The rows of an
attention's in_proj are those of its queries, keys and values, which are three layers here.

Methods: qdetr
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxface.errors import UserError
from jaxface.interop.architecture import Convolution, Dense, Layer, abstract_variables
from jaxface.interop.pyramid_layers import LayerBuilder, trunk_layers
from jaxface.interop.transformer_layers import LayerNorm, Table
from jaxface.models.detection.detr import DetrNet

_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}


def detr_layers(module: DetrNet, image_shape: tuple[int, int, int]) -> tuple[Layer | LayerNorm | Table, ...]:
    """Every layer with tensors, in the order of PyTorch's state dict but for the projections of attentions.

    Raises:
      UserError: a network without published names: another backbone than a ResNet, queries of a grid, or quantizers.
    """
    variables = abstract_variables(module, image_shape)
    make = LayerBuilder(variables)
    params: Any = make.params
    if "stage1_block1" not in params["backbone"]:
        raise UserError("backbone: needs a resnet, which has PyTorch names, got patches")
    if module.query_form != "learned" or "kernel_quantizer" in params["backbone"]["stem_conv"]:
        raise UserError("weights: need a float network with learned queries, which has PyTorch names")

    def at(path: tuple[str, ...]) -> Any:
        tree = params
        for key in path:
            tree = tree[key]
        return tree

    def linear(name: str, *path: str) -> Dense:
        inputs, outputs = at(path)["kernel"].shape
        return Dense(name, path, (outputs, inputs), (inputs, 1, 1), "bias" in at(path))

    def norm(name: str, *path: str) -> LayerNorm:
        return LayerNorm(name, path, *at(path)["bias"].shape)

    def attention(name: str, *path: str) -> list[Layer]:
        made = [linear(f"{name}.{theirs}", *path, ours) for theirs, ours in _PROJECTIONS.items()]
        return [*made, linear(f"{name}.out_proj", *path, "out")]

    def perceptron(name: str, *path: str) -> list[Layer]:
        return [linear(f"{name}.layers.{i}", *path, f"layer{i + 1}") for i in range(len(at(path)))]

    layers: list[Any] = []
    for kind, count in (("encoder", module.encoder_layers), ("decoder", module.decoder_layers)):
        for i in range(count):
            name, ours = f"transformer.{kind}.layers.{i}", f"{kind}{i + 1}"
            layers += attention(f"{name}.self_attn", ours, "attention" if kind == "encoder" else "self")
            if kind == "decoder":
                layers += attention(f"{name}.multihead_attn", ours, "cross")
            layers += [linear(f"{name}.linear1", ours, "expand"), linear(f"{name}.linear2", ours, "project")]
            layers += [
                norm(f"{name}.norm{n}", ours, f"norm{n}") for n in (1, 2, 3) if f"norm{n}" in params[ours]
            ]
            if kind == "decoder" and module.gaussian:
                look = f"{ours}_look"
                layers.append(norm(f"{name}.norm4", look, "norm"))
                layers += perceptron(f"{name}.point1", look, "center") if i == 0 else []
                layers += [linear(f"{name}.point2", look, "offset"), linear(f"{name}.point3", look, "scale")]
    layers.append(norm("transformer.decoder.norm", "decoder_norm"))
    layers.append(linear("class_embed", "class"))
    layers += perceptron("bbox_embed", "box")
    layers.append(Table("query_embed.weight", ("queries",), params["queries"].shape))
    inputs, outputs = params["input"]["kernel"].shape
    layers.append(Convolution("input_proj", ("input",), (outputs, inputs, 1, 1), biased=True, matrix=True))
    return (*layers, *trunk_layers(make, "backbone.0.body.", "backbone"))


def split_projections(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A published state dict whose stacked projections are three layers each, without what wraps it (`model`)."""
    result = {}
    for name, array in state.items():
        stacked = re.fullmatch(r"(.+)\.in_proj_(weight|bias)", name)
        if stacked is None or np.ndim(array) < 1 or len(array) % 3:
            result[name] = array
            continue
        for theirs, rows in zip(_PROJECTIONS, np.split(np.asarray(array), 3), strict=True):
            result[f"{stacked[1]}.{theirs}.{stacked[2]}"] = rows
    return result


def joined_projections(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `split_projections`."""
    result = {}
    for name, array in state.items():
        one = re.fullmatch(r"(.+)\.([qkv]_proj)\.(weight|bias)", name)
        if one is None:
            result[name] = array
        elif one[2] == "q_proj":
            rows = [state[f"{one[1]}.{theirs}.{one[3]}"] for theirs in _PROJECTIONS]
            result[f"{one[1]}.in_proj_{one[3]}"] = np.concatenate(rows)
    return result
