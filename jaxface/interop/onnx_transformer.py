"""ViT, DeiT and Swin as ONNX graphs: written under timm's names, and read whatever their exporter called the matrices.

PyTorch's exporter keeps the names of parameters, up to a prefix, but for the matrices that it has transposed beforehand and the
bias of a window that it has looked up beforehand. These have no names and are told by their order: a transformer is a chain.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np

from jaxface.interop.architecture import Dense
from jaxface.interop.files import optional
from jaxface.interop.onnx_graph import OnnxGraph, graph_model
from jaxface.interop.state_dict import difference, to_state_dict
from jaxface.interop.transformer_layers import renamed, transformer_layers
from jaxface.layers.attention import relative_index
from jaxface.models import Swin, ViT
from jaxface.models.transformers.swin import EPSILON as SWIN_EPSILON
from jaxface.models.transformers.swin import window_mask

_OPSET = 17  # LayerNormalization
_EPSILON = 1e-6  # of ViT and DeiT
_MASKED = -1e9
_TABLE = "relative_position_bias_table"


def transformer_graph(module: ViT | Swin, variables: Mapping, image_shape: tuple[int, int, int]):
    """A transformer as an `onnx.ModelProto` (opset 17) whose weights have timm's names, shapes and layout.

        data [batch, C, H, W] float32 in [-1, 1] -> embedding [batch, E] float32, not normalized

    Raises:
      UserError: another network, or variables of one.
    """
    state = to_state_dict(jax.device_get(variables), module, image_shape)
    writer = _Writer(state, SWIN_EPSILON if isinstance(module, Swin) else _EPSILON)
    output = (
        writer.swin(module, image_shape[:2]) if isinstance(module, Swin) else writer.vit(module, image_shape)
    )
    features = module.embedding or state["norm.weight"].size
    return graph_model(writer.nodes, writer.constants, image_shape, output, features, opset=_OPSET)


class _Writer:
    """Notes nodes and the constants that they use."""

    def __init__(self, state: Mapping[str, np.ndarray], epsilon: float):
        self.state, self.epsilon = state, epsilon
        self.nodes: list = []
        self.constants: dict[str, np.ndarray] = dict(state)
        self.make = optional("onnx.helper").make_node

    def node(self, kind: str, *inputs: str, **attributes) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self.make(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, value) -> str:
        value = np.asarray(value)
        value = value.astype(np.float32 if value.dtype.kind == "f" else np.int64)
        name = next(
            (
                name
                for name, known in self.constants.items()
                if name not in self.state and known.dtype == value.dtype and np.array_equal(known, value)
            ),
            f"constant_{len(self.constants)}",
        )
        self.constants[name] = value
        return name

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", x, self.constant(shape))

    def norm(self, x: str, name: str) -> str:
        return self.node(
            "LayerNormalization", x, f"{name}.weight", f"{name}.bias", axis=-1, epsilon=self.epsilon
        )

    def linear(self, x: str, name: str) -> str:
        x = self.node("MatMul", x, self.node("Transpose", f"{name}.weight", perm=[1, 0]))
        return self.node("Add", x, f"{name}.bias") if f"{name}.bias" in self.state else x

    def patches(self, patch: int) -> str:
        """[B, N, D]."""
        weights = "patch_embed.proj.weight", "patch_embed.proj.bias"
        x = self.node("Conv", "data", *weights, kernel_shape=[patch] * 2, strides=[patch] * 2)
        return self.node("Transpose", self.reshape(x, 0, 0, -1), perm=[0, 2, 1])

    def attention(self, x: str, name: str, heads: int, dim: int, biases: Sequence[str] = ()) -> str:
        """Of tokens [B, N, D]; `biases` broadcast to [B, heads, N, N]."""
        qkv = self.reshape(self.linear(x, f"{name}.qkv"), 0, -1, 3, heads, dim // heads)
        qkv = self.node("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        query, key, value = (self.node("Gather", qkv, self.constant(i), axis=0) for i in range(3))
        query = self.node("Mul", query, self.constant((dim // heads) ** -0.5))
        scores = self.node("MatMul", query, self.node("Transpose", key, perm=[0, 1, 3, 2]))
        for bias in biases:
            scores = self.node("Add", scores, bias)
        y = self.node("MatMul", self.node("Softmax", scores, axis=-1), value)
        y = self.reshape(self.node("Transpose", y, perm=[0, 2, 1, 3]), 0, -1, dim)
        return self.linear(y, f"{name}.proj")

    def added(self, x: str, y: str, scale: str) -> str:
        return self.node("Add", x, self.node("Mul", y, scale) if scale in self.state else y)

    def perceptron(self, x: str, name: str) -> str:
        y = self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        erf = self.node("Erf", self.node("Mul", y, self.constant(1 / math.sqrt(2))))
        half = self.node("Mul", y, self.constant(0.5))
        y = self.node("Mul", half, self.node("Add", erf, self.constant(1.0)))
        return self.added(x, self.linear(y, f"{name}.mlp.fc2"), f"{name}.ls2.gamma")

    def vit(self, module: ViT, image_shape: tuple[int, int, int]) -> str:
        x = self.patches(module.patch)
        tokens = [name for name in ("cls_token", "dist_token") if name in self.state]
        batch = self.node("Shape", x, start=0, end=1)
        shape = self.node("Concat", batch, self.constant([1, module.dim]), axis=0)
        x = self.node("Concat", *(self.node("Expand", token, shape) for token in tokens), x, axis=1)
        x = self.node("Add", x, "pos_embed")
        for i in range(module.depth):
            name = f"blocks.{i}"
            y = self.attention(self.norm(x, f"{name}.norm1"), f"{name}.attn", module.heads, module.dim)
            x = self.perceptron(self.added(x, y, f"{name}.ls1.gamma"), name)
        x = self.norm(x, "norm")
        outputs = [self.node("Gather", x, self.constant(i), axis=1) for i in range(len(tokens))]
        if module.embedding is not None:
            heads = ("head", "head_dist")
            outputs = [self.linear(y, name) for y, name in zip(outputs, heads, strict=False)]
        if len(outputs) == 1:
            return outputs[0]
        return self.node("Mul", self.node("Add", *outputs), self.constant(0.5))

    def swin(self, module: Swin, image_size: tuple[int, int]) -> str:
        x = self.norm(self.patches(module.patch), "patch_embed.norm")
        planes = module.planes(image_size)
        for stage, (plane, window) in enumerate(planes):
            dim = module.dim * 2**stage
            if stage:
                x = self.merging(x, f"layers.{stage}.downsample", planes[stage - 1][0], dim // 2)
            for i in range(module.blocks[stage]):
                name = f"layers.{stage}.blocks.{i}"
                shift = module.shift(i, plane, window)
                y = self.windows(
                    self.norm(x, f"{name}.norm1"), name, module.heads[stage], dim, plane, window, shift
                )
                x = self.perceptron(self.added(x, y, f"{name}.ls1.gamma"), name)
        x = self.node("ReduceMean", self.norm(x, "norm"), axes=[1], keepdims=0)
        return x if module.embedding is None else self.linear(x, "head.fc")

    def merging(self, x: str, name: str, plane: tuple[int, int], dim: int) -> str:
        height, width = plane
        x = self.reshape(x, -1, height // 2, 2, width // 2, 2, dim)
        x = self.node("Transpose", x, perm=[0, 1, 3, 4, 2, 5])
        x = self.reshape(x, -1, height * width // 4, 4 * dim)
        return self.linear(self.norm(x, f"{name}.norm"), f"{name}.reduction")

    def windows(self, x: str, name: str, heads: int, dim: int, plane, window, shift) -> str:
        (height, width), (rows, columns) = plane, window
        grid, count = (height // rows, width // columns), rows * columns
        x = self.roll(self.reshape(x, -1, height, width, dim), [-s for s in shift])
        x = self.reshape(x, -1, grid[0], rows, grid[1], columns, dim)
        x = self.reshape(self.node("Transpose", x, perm=[0, 1, 3, 2, 4, 5]), -1, count, dim)
        index = self.constant(relative_index(window).reshape(-1))
        bias = self.reshape(self.node("Gather", f"{name}.attn.{_TABLE}", index, axis=0), count, count, heads)
        biases = [self.node("Transpose", bias, perm=[2, 0, 1])]
        if any(shift):  # one mask per window, for every image
            mask = np.where(window_mask(plane, window, shift), 0.0, _MASKED)[:, None]
            images = self.node("Div", self.node("Shape", x, start=0, end=1), self.constant([len(mask)]))
            repeats = self.node("Concat", images, self.constant([1, 1, 1]), axis=0)
            biases.append(self.node("Tile", self.constant(mask), repeats))
        y = self.attention(x, f"{name}.attn", heads, dim, biases)
        y = self.reshape(y, -1, *grid, rows, columns, dim)
        y = self.reshape(self.node("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), -1, height, width, dim)
        return self.reshape(self.roll(y, shift), -1, height * width, dim)

    def roll(self, x: str, shift: Sequence[int]) -> str:
        for axis, moved in enumerate(shift, start=1):
            if moved:
                cut, last, at = self.constant([-moved]), self.constant([2**31]), self.constant([axis])
                tail = self.node("Slice", x, cut, last, at)
                x = self.node("Concat", tail, self.node("Slice", x, self.constant([0]), cut, at), axis=axis)
        return x


def read_transformer(
    path: str | pathlib.Path, module: nn.Module, image_shape: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """The weights of an exported ViT, DeiT or Swin as a state dict under timm's names.

    Raises:
      UserError: the file cannot be read, or its graph is another architecture.
    """
    layers, graph = transformer_layers(module, image_shape), OnnxGraph(path)
    expected = {leaf.name: (layer, leaf.shape) for layer in layers for leaf in layer.leaves()}
    named = renamed({name.removeprefix("model."): name for name in graph.constants}, module)
    aliases = {theirs: ours for ours, theirs in named.items() if ours in expected}
    state = {ours: graph.constant(theirs) for theirs, ours in aliases.items()}

    matrices, biases, softmaxes = [], [], 0
    transposed = {
        node.output[0]: graph.name(node.input[0])
        for node in graph.nodes
        if node.op_type == "Transpose" and graph.name(node.input[0]) in graph.constants
    }
    for node in graph.nodes:
        softmaxes += node.op_type == "Softmax"
        stored = [(graph.name(name), False) for name in node.input]
        stored = [(transposed[name], True) if name in transposed else (name, False) for name, _ in stored]
        stored = [(name, flipped) for name, flipped in stored if name in graph.constants]
        unknown = [(name, flipped) for name, flipped in stored if name not in aliases]
        match node.op_type:
            case "MatMul" | "Gemm" if unknown and len(graph.constants[unknown[0][0]].dims) == 2:
                name, flipped = unknown[0]
                flipped ^= any(a.name == "transB" and a.i for a in node.attribute)
                value = graph.constant(name)
                matrices.append(value if flipped else value.T)
            case "Add" if unknown:
                shape = tuple(size for size in graph.constants[unknown[0][0]].dims if size != 1)
                if len(shape) == 3 and shape[1] == shape[2] and not _is_mask(graph.constant(unknown[0][0])):
                    biases.append(graph.constant(unknown[0][0]).reshape(shape))
            case "Conv" | "LayerNormalization" if unknown:
                name = unknown[0][0]
                raise difference(
                    str(path), f"{node.op_type} of {name}", tuple(graph.constants[name].dims), "nothing"
                )
            case _:
                pass
        if node.op_type == "Conv":
            strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [1, 1])
            if strides != [module.patch] * 2:
                raise difference(str(path), "strides of patch_embed.proj", strides, [module.patch] * 2)

    for name, (layer, shape) in expected.items():
        if name in state:
            continue
        if isinstance(layer, Dense) and len(shape) == 2 and matrices:
            state[name] = matrices.pop(0)
        elif name.endswith(_TABLE) and biases:
            state[name] = _table(biases.pop(0), shape, str(path), name)
        else:
            raise difference(str(path), name, "nothing", shape)
    if matrices:
        raise difference(str(path), "a matrix after the last layer", matrices[0].shape, "nothing")
    blocks = sum(module.blocks) if isinstance(module, Swin) else module.depth
    if softmaxes != blocks:
        raise difference(str(path), "number of attentions", softmaxes, blocks)
    return state


def _is_mask(values: np.ndarray) -> bool:
    """Whether it is what keeps tokens of a window apart: nothing, and one large negative number."""
    return values.size > 0 and values.max() == 0 and bool(np.isin(values, (0.0, values.min())).all())


def _table(bias: np.ndarray, shape: tuple[int, ...], source: str, name: str) -> np.ndarray:
    """[offsets, heads] of a bias [heads, N, N] that an exporter has looked up in it."""
    side = round(bias.shape[1] ** 0.5)
    index = relative_index((side, side))
    if (int(index.max()) + 1, bias.shape[0]) != shape or index.shape != bias.shape[1:]:
        raise difference(source, f"bias of {name}", bias.shape, f"of a table {shape}")
    table = np.zeros(shape, np.float32)
    table[index.reshape(-1)] = bias.reshape(bias.shape[0], -1).T
    return table
