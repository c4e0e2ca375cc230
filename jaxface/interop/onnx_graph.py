"""iResNet and MobileFaceNet as ONNX graphs: read whatever their exporter called things, and written under PyTorch's names.

Initializers may have any names, and a norm after a convolution may be folded into it, as PyTorch's exporter does. So a graph
is read along its edges, beside the layers of the network that it should be.
"""

import os
import pathlib
from collections import defaultdict
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np

from jaxface.errors import UserError
from jaxface.interop.architecture import (
    EPSILON,
    Activation,
    Convolution,
    Dense,
    Layer,
    Norm,
    Residual,
    architecture,
)
from jaxface.interop.files import optional
from jaxface.interop.state_dict import difference, to_state_dict
from jaxface.paths import local_path

_COMPUTES_NOTHING = {"Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze"}
_HAS_WEIGHTS = {"Conv", "BatchNormalization", "PRelu", "Gemm", "MatMul"}
_OPSET, _IR_VERSION = 15, 8


def read_chain(
    path: str | pathlib.Path, module: nn.Module, image_shape: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """The weights of an exported iResNet or MobileFaceNet as a state dict under PyTorch's names, for `from_state_dict`.

    A norm that the graph has not is the identity: mean 0, variance 1 - 1e-5, weight 1, bias that of the layer before. Its
    embeddings are those of the graph; but statistics of the training are gone with the norm, so fine-tuning starts without
    them. Another epsilon than ours is moved into the variance, a bias before a norm into its mean.

    Raises:
      UserError: the file cannot be read, or its graph is another architecture (names the first tensor that differs and both
        shapes, or the first layer that is not where it should be).
    """
    layers = architecture(module, image_shape)
    reader = _Reader(OnnxGraph(local_path("weights", path)))
    end, _ = reader.walk(layers, reader.graph.input, None)
    reader.finish(end)
    return reader.state


def chain_graph(module: nn.Module, variables: Mapping, image_shape: tuple[int, int, int]):
    """A network of the published families as an `onnx.ModelProto` (opset 15) with PyTorch's names and layout.

        data [batch, C, H, W] float32 in [-1, 1] -> embedding [batch, E] float32, not normalized

    Raises:
      UserError: another network, or variables of one.
    """
    helper = optional("onnx.helper")
    layers = architecture(module, image_shape)
    state = to_state_dict(jax.device_get(variables), module, image_shape)
    nodes, constants = [], {}

    def node(kind: str, inputs: list[str], output: str, **attributes) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def weights(layer: Layer, *names: str) -> list[str]:
        full = [f"{layer.name}.{name}" for name in names if f"{layer.name}.{name}" in state]
        constants.update({name: state[name] for name in full})
        return full

    def emit(layers: tuple[Layer, ...], x: str) -> str:
        for layer in layers:
            match layer:
                case Convolution():
                    options = {
                        "kernel_shape": layer.shape[2:],
                        "strides": [layer.stride] * 2,
                        "pads": [layer.padding] * 4,
                        "group": layer.groups,
                    }
                    x = node("Conv", [x, *weights(layer, "weight")], f"{layer.name}.out", **options)
                case Norm():
                    inputs = [x, *weights(layer, "weight", "bias", "running_mean", "running_var")]
                    x = node("BatchNormalization", inputs, f"{layer.name}.out", epsilon=EPSILON)
                case Activation():
                    (slope,) = weights(layer, "weight")
                    constants[slope] = state[slope].reshape(-1, 1, 1)
                    x = node("PRelu", [x, slope], f"{layer.name}.out")
                case Dense():
                    x = node("Flatten", [x], f"{layer.name}.in", axis=1)
                    x = node("Gemm", [x, *weights(layer, "weight", "bias")], f"{layer.name}.out", transB=1)
                case Residual():
                    sides = [emit(layer.branch, x), emit(layer.shortcut, x)]
                    x = node("Add", sides, f"{sides[0]}.sum")
        return x

    output = emit(layers, "data")
    return graph_model(nodes, constants, image_shape, output, module.embedding, opset=_OPSET)


def graph_model(
    nodes: list,
    constants: Mapping[str, np.ndarray],
    image_shape: tuple[int, int, int],
    output: str,
    features: int,
    *,
    opset: int,
):
    """Nodes that make `output` of "data" as an `onnx.ModelProto`: data [batch, C, H, W] -> embedding [batch, features]."""
    helper, numpy_helper = optional("onnx.helper"), optional("onnx.numpy_helper")
    height, width, channels = image_shape
    float32 = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
    (last,) = (node for node in nodes if output in node.output)
    last.output[0] = "embedding"
    graph = helper.make_graph(
        nodes,
        "backbone",
        [helper.make_tensor_value_info("data", float32, ["batch", channels, height, width])],
        [helper.make_tensor_value_info("embedding", float32, ["batch", features])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(
        graph,
        producer_name="jaxface",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", opset)],
    )


class OnnxGraph:
    """The edges of a graph, with nodes that compute nothing taken out."""

    def __init__(self, path: pathlib.Path):
        self.path, self.onnx = path, optional("onnx")
        failure = optional("google.protobuf.message").DecodeError
        try:
            graph = self.onnx.ModelProto.FromString(path.read_bytes()).graph
        except OSError as error:
            raise UserError(f"weights: cannot read {path}: {error.strerror or error}") from None
        except failure:
            raise UserError(f"weights: {path} is not an ONNX model") from None
        self.nodes = list(graph.node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.canonical: dict[str, str] = {}
        self.users = defaultdict(list)
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
            elif node.op_type in _COMPUTES_NOTHING and node.input:
                self.canonical[node.output[0]] = self.name(node.input[0])
            else:
                for name in {self.name(name) for name in node.input} - self.constants.keys():
                    self.users[name].append(node)
        inputs = [value.name for value in graph.input if value.name not in self.constants]
        if len(inputs) != 1:
            raise UserError(f"weights: {path}: needs a graph with one input; got {len(inputs)}")
        self.input = inputs[0]
        self.outputs = {self.name(value.name) for value in graph.output}

    def name(self, tensor: str) -> str:
        """The tensor that this one is a copy of."""
        return self.canonical.get(tensor, tensor)

    def constant(self, tensor: str) -> np.ndarray:
        """The value of an initializer as float32."""
        name = self.name(tensor)
        if name not in self.constants:
            raise UserError(f"weights: {self.path}: needs stored weights; {tensor!r} is computed")
        proto = self.constants[name]
        try:
            if proto.data_location == self.onnx.TensorProto.EXTERNAL:
                proto = self._embedded(proto)
            return self.onnx.numpy_helper.to_array(proto).astype(np.float32)
        except UserError:
            raise
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError):
            raise UserError(f"weights: {self.path}: the data of {name!r} are damaged or missing") from None

    def _embedded(self, proto):
        """A tensor whose data are outside the file as one whose data are inside."""
        where = {entry.key: entry.value for entry in proto.external_data}
        file = self.path.parent / where["location"]
        # Nothing but a neighbor is read, and no more than it holds.
        if pathlib.PurePath(where["location"]).name != where["location"] or file.is_symlink():
            raise UserError(
                f"weights: {self.path}: keeps data in {where['location']!r}, not in its own folder"
            )
        offset = int(where.get("offset", 0))
        length = int(where.get("length", -1))
        with file.open("rb") as data:
            size = os.fstat(data.fileno()).st_size
            if length < 0:
                length = size - offset
            if not 0 <= offset <= offset + length <= size:
                raise ValueError("past the end")
            data.seek(offset)
            raw = data.read(length)
        inside = self.onnx.TensorProto(data_type=proto.data_type, dims=proto.dims, name=proto.name)
        inside.raw_data = raw
        return inside


class _Reader:
    """Walks a graph beside the layers it should have and notes the weights under PyTorch's names."""

    def __init__(self, graph: OnnxGraph):
        self.graph = graph
        self.state: dict[str, np.ndarray] = {}
        self.visited: set[int] = set()

    def walk(
        self, layers: tuple[Layer, ...], x: str, bias: np.ndarray | None
    ) -> tuple[str, np.ndarray | None]:
        """From tensor `x` through layers: the tensor after them, and a bias that waits for its norm."""
        for layer in layers:
            match layer:
                case Convolution():
                    x, bias = self._convolution(layer, x)
                case Norm():
                    x, bias = self._norm(layer, x, bias), None
                case Activation():
                    node = self._next(x, ("PRelu",), f"{layer.name}.weight", (layer.features,))
                    slope = self.graph.constant(node.input[1])
                    x = self._note(f"{layer.name}.weight", slope.reshape(-1), (layer.features,), node)
                case Dense():
                    x, bias = self._dense(layer, x)
                case Residual():
                    branch, _ = self.walk(layer.branch, x, None)
                    shortcut, _ = self.walk(layer.shortcut, x, None)
                    last = layer.branch[-1].name
                    x = self.graph.name(self._sum({branch, shortcut}, last).output[0])
        return x, bias

    def finish(self, end: str) -> None:
        """Whether the graph ends where the layers do."""
        for node in self.graph.nodes:
            if node.op_type in _HAS_WEIGHTS and id(node) not in self.visited:
                raise self._differs(
                    f"{node.op_type} {node.name or node.output[0]}", self._size(node), "nothing"
                )
        if end not in self.graph.outputs:
            after = ", ".join(sorted({node.op_type for node in self.graph.users[end]})) or "nothing"
            raise self._differs("what follows the last norm", after, "nothing")

    def _convolution(self, layer: Convolution, x: str) -> tuple[str, np.ndarray | None]:
        name = f"{layer.name}.weight"
        node = self._next(x, ("Conv",), name, layer.shape)
        options = {a.name: a.i or list(a.ints) or a.s.decode() for a in node.attribute}
        expected = {
            "strides": [layer.stride] * 2,
            "pads": [layer.padding] * 4,
            "dilations": [1, 1],
            "group": layer.groups,
            "auto_pad": "NOTSET",
        }
        usual = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1, "auto_pad": "NOTSET"}
        after = self._note(name, self.graph.constant(node.input[1]), layer.shape, node)
        for option, value in expected.items():
            given = options.get(option, usual[option])
            if given != value:
                raise self._differs(f"{option} of {layer.name}", given, value)
        return after, self._optional(node, 2, layer.shape[:1], layer.name)

    def _norm(self, layer: Norm, x: str, bias: np.ndarray | None) -> str:
        shape, names = (layer.features,), ("weight", "bias", "running_mean", "running_var")
        names = [f"{layer.name}.{name}" for name in names]
        before = np.zeros(shape, np.float32) if bias is None else bias
        norms = [node for node in self.graph.users[x] if node.op_type == "BatchNormalization"]
        if not norms:
            ones = np.ones(shape, np.float32)
            self.state.update(zip(names, (ones, before, 0 * ones, ones - np.float32(EPSILON)), strict=True))
            return x
        node = norms[0]
        if any(a.name == "training_mode" and a.i for a in node.attribute):
            raise self._differs(f"training_mode of {layer.name}", 1, 0)
        values = [self.graph.constant(name) for name in node.input[1:5]]
        after = x
        for name, value in zip(names, values, strict=True):
            after = self._note(name, value, shape, node)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), EPSILON)
        self.state[names[2]] = values[2] - before
        if not np.isclose(epsilon, EPSILON, rtol=1e-6, atol=0):
            self.state[names[3]] = (values[3].astype(np.float64) + epsilon - EPSILON).astype(np.float32)
        return after

    def _dense(self, layer: Dense, x: str) -> tuple[str, np.ndarray | None]:
        name = f"{layer.name}.weight"
        node = self._next(x, ("Gemm", "MatMul"), name, layer.shape)
        options = {a.name: a.f if a.name in ("alpha", "beta") else a.i for a in node.attribute}
        if {options.get("alpha", 1), options.get("beta", 1)} != {1} or options.get("transA"):
            raise self._differs(f"options of {layer.name}", options, {"transB": 1})
        weight = self.graph.constant(node.input[1])
        if not options.get("transB"):
            weight = weight.T
        after = self._note(name, weight, layer.shape, node)
        bias = self._optional(node, 2, layer.shape[:1], layer.name)
        sums = [user for user in self.graph.users[after] if user.op_type == "Add"]
        if node.op_type == "MatMul" and sums:
            constants = [i for i in sums[0].input if self.graph.name(i) in self.graph.constants]
            bias = self.graph.constant(constants[0]) if constants else None
            after = self.graph.name(sums[0].output[0])
        if not layer.biased:
            return after, bias
        bias = np.zeros(layer.shape[0], np.float32) if bias is None else bias
        self.state[f"{layer.name}.bias"] = bias
        return after, None

    def _next(self, x: str, kinds: tuple[str, ...], name: str, shape: tuple[int, ...]):
        """The node of a kind that uses `x`; of two convolutions (a shortcut's is the other) that with our kernel size."""
        users = self.graph.users[x]
        nodes = [node for node in users if node.op_type in kinds]
        if len(nodes) > 1:
            nodes = [node for node in nodes if self._size(node)[2:] == shape[2:]] or nodes
        if not nodes:
            given = ", ".join(sorted({node.op_type for node in users})) or "nothing"
            raise self._differs(name, given, f"{' or '.join(kinds)} {shape}")
        return nodes[0]

    def _sum(self, sides: set[str], last: str):
        for node in self.graph.users[next(iter(sides))]:
            if node.op_type == "Add" and {self.graph.name(name) for name in node.input} == sides:
                return node
        raise self._differs(f"sum after {last}", "nothing", "Add of branch and shortcut")

    def _note(self, name: str, value: np.ndarray, shape: tuple[int, ...], node) -> str:
        if value.shape != shape:
            raise self._differs(name, value.shape, shape)
        self.state[name] = value
        self.visited.add(id(node))
        return self.graph.name(node.output[0])

    def _optional(self, node, index: int, shape: tuple[int, ...], name: str) -> np.ndarray | None:
        if len(node.input) <= index or not node.input[index]:
            return None
        bias = self.graph.constant(node.input[index])
        if bias.shape != shape:
            raise self._differs(f"{name}.bias", bias.shape, shape)
        return bias

    def _size(self, node) -> tuple[int, ...]:
        stored = [self.graph.constants.get(self.graph.name(name)) for name in node.input[1:2]]
        return tuple(stored[0].dims) if stored and stored[0] is not None else ()

    def _differs(self, name: str, given, expected) -> UserError:
        return difference(str(self.graph.path), name, given, expected)
