"""Published-looking weights: drawn under PyTorch's names, with the graph that they belong to.

The graphs are written down here once more, layer by layer in PyTorch's terms, and run by ONNX's own reference evaluator
(whose BatchNormalization takes statistics of the batch below opset 14).
"""

import functools
import io
import pathlib
import struct
import zipfile
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from jaxface import models

SIDE = 32
NETWORKS = {
    "iresnet_pico": ("iresnet_pico", {"embedding": 16}),
    "iresnet18": ("iresnet18", {"embedding": 24, "width": 0.125}),
    "mobilefacenet": ("mobilefacenet", {"embedding": 16, "blocks": (1, 0, 2)}),
    "mobilefacenet_large": ("mobilefacenet_large", {"embedding": 24, "blocks": (0, 1, 1)}),
}


class Recorder:
    """Draws weights under PyTorch's names and notes an ONNX graph of what they compute.

    With `fold` a norm that follows a convolution disappears into it and names become numbers, as in PyTorch's exporter.
    """

    def __init__(self, fold: bool, epsilon: float = 1e-5):
        self.rng, self.fold, self.epsilon = np.random.default_rng(7), fold, epsilon
        self.state: dict[str, np.ndarray] = {}
        self.nodes, self.constants = [], {}

    def draw(self, name, *shape, low=-1.0, high=1.0):
        self.state[name] = self.rng.uniform(low, high, shape).astype(np.float32)
        return self.state[name]

    def keep(self, name, array):
        name = str(1000 + len(self.constants)) if self.fold else name
        self.constants[name] = array.astype(np.float32)
        return name

    def node(self, kind, *inputs, **attributes):
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def statistics(self, name, features, ones=False):
        scale = self.draw(f"{name}.weight", features, low=0.6, high=1.4)
        if ones:
            scale[:] = 1
        bias = self.draw(f"{name}.bias", features, low=-0.3, high=0.3)
        mean = self.draw(f"{name}.running_mean", features, low=-0.3, high=0.3)
        var = self.draw(f"{name}.running_var", features, low=0.6, high=1.4)
        self.state[f"{name}.num_batches_tracked"] = np.array(20)
        return scale, bias, mean, var

    def norm(self, x, name, features, ones=False):
        values = self.statistics(name, features, ones)
        kinds = ("weight", "bias", "running_mean", "running_var")
        names = [self.keep(f"{name}.{kind}", value) for kind, value in zip(kinds, values, strict=True)]
        return self.node("BatchNormalization", x, *names, epsilon=self.epsilon)

    def conv_norm(self, x, conv, norm, inputs, outputs, kernel, stride=1, padding=0, groups=1):
        bound = (3 / (inputs // groups * kernel * kernel)) ** 0.5
        shape = (outputs, inputs // groups, kernel, kernel)
        weight = self.draw(f"{conv}.weight", *shape, low=-bound, high=bound)
        options = dict(kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4, group=groups)
        if not self.fold:
            x = self.node("Conv", x, self.keep(f"{conv}.weight", weight), **options)
            return self.norm(x, norm, outputs)
        scale, bias, mean, var = (v.astype(np.float64) for v in self.statistics(norm, outputs))
        factor = scale / np.sqrt(var + self.epsilon)
        folded = self.keep("", weight * factor[:, None, None, None]), self.keep("", bias - mean * factor)
        return self.node("Conv", x, *folded, **options)

    def prelu(self, x, name, features):
        slope = self.draw(f"{name}.weight", features, low=0.1, high=0.4)
        return self.node("PRelu", x, self.keep(f"{name}.weight", slope.reshape(-1, 1, 1)))

    def linear(self, x, name, inputs, outputs, bias=True):
        bound = inputs**-0.5
        weight = self.draw(f"{name}.weight", outputs, inputs, low=-bound, high=bound)
        names = [self.keep(f"{name}.weight", weight)]
        if bias:
            names.append(self.keep(f"{name}.bias", self.draw(f"{name}.bias", outputs)))
        return self.node("Gemm", self.node("Flatten", x, axis=1), *names, transB=1)

    def resnet(self, prefix, caffe=False):
        """[(map, channels)] of the stages 2 to 4 of ResNet-(1, 2, 1, 1) with 4 to 16 channels; strides as PyTorch or as Caffe."""
        x = self.conv_norm("data", f"{prefix}conv1", f"{prefix}bn1", 3, 4, 7, 2, 3)
        x = self.node("MaxPool", self.node("Relu", x), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        inputs, levels = 4, []
        for stage, (blocks, width) in enumerate(zip((1, 2, 1, 1), (4, 8, 8, 16), strict=True), start=1):
            for i in range(blocks):
                name, stride = f"{prefix}layer{stage}.{i}", 2 if i == 0 and stage > 1 else 1
                first, second = (stride, 1) if caffe else (1, stride)
                y = self.node(
                    "Relu", self.conv_norm(x, f"{name}.conv1", f"{name}.bn1", inputs, width, 1, first)
                )
                y = self.node(
                    "Relu", self.conv_norm(y, f"{name}.conv2", f"{name}.bn2", width, width, 3, second, 1)
                )
                y = self.conv_norm(y, f"{name}.conv3", f"{name}.bn3", width, 4 * width, 1)
                if i == 0:
                    names = f"{name}.downsample.0", f"{name}.downsample.1"
                    x = self.conv_norm(x, *names, inputs, 4 * width, 1, stride)
                x, inputs = self.node("Relu", self.node("Add", y, x)), 4 * width
            levels.append((x, inputs))
        return levels[1:]

    def answers(self, ends, pixels, **constants):
        """What ONNX's evaluator finds at some ends for images [B, H, W, 3]; `constants` are arrays of names besides weights."""
        arrays = {**constants, **self.constants}
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("data", TensorProto.FLOAT, [len(pixels), 3, *pixels.shape[1:3]])],
            [helper.make_tensor_value_info(end, TensorProto.FLOAT, None) for end in ends],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        )
        model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 15)])
        return ReferenceEvaluator(model).run(None, {"data": pixels.astype(np.float32).transpose(0, 3, 1, 2)})

    def model(self, end, embedding, channels=3):
        self.nodes[-1].output[0] = end = "683"
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["None", channels, SIDE, SIDE])],
            [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["None", embedding])],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 15)])


def iresnet(t: Recorder, stages, channels, stem_stride, embedding):
    x = t.conv_norm("data", "conv1", "bn1", 3, channels[0], 3, stem_stride, 1)
    x = t.prelu(x, "prelu", channels[0])
    side, inputs = SIDE // stem_stride, channels[0]
    for i, (units, outputs) in enumerate(zip(stages, channels, strict=True), start=1):
        for j in range(units):
            name, stride = f"layer{i}.{j}", 2 if j == 0 else 1
            y = t.norm(x, f"{name}.bn1", inputs)
            y = t.conv_norm(y, f"{name}.conv1", f"{name}.bn2", inputs, outputs, 3, 1, 1)
            y = t.prelu(y, f"{name}.prelu", outputs)
            y = t.conv_norm(y, f"{name}.conv2", f"{name}.bn3", outputs, outputs, 3, stride, 1)
            if j == 0:
                names = f"{name}.downsample.0", f"{name}.downsample.1"
                x = t.conv_norm(x, *names, inputs, outputs, 1, 2)
            x, inputs = t.node("Add", y, x), outputs
        side //= 2
    x = t.norm(x, "bn2", inputs)
    x = t.linear(x, "fc", inputs * side * side, embedding)
    return t.norm(x, "features", embedding, ones=True)


def mobilefacenet(t: Recorder, stem, widths, hidden, blocks, embedding, bias):
    def unit(x, name, inputs, outputs, kernel=1, stride=1, padding=0, groups=1, linear=False):
        names = f"{name}.layers.0", f"{name}.layers.1"
        x = t.conv_norm(x, *names, inputs, outputs, kernel, stride, padding, groups)
        return x if linear else t.prelu(x, f"{name}.layers.2", outputs)

    def bottleneck(x, name, inputs, outputs, middle, stride):
        y = unit(x, f"{name}.layers.0", inputs, middle)
        y = unit(y, f"{name}.layers.1", middle, middle, 3, stride, 1, middle)
        return unit(y, f"{name}.layers.2", middle, outputs, linear=True)

    x = unit("data", "layers.0", 3, stem, 3, 2, 1)
    x = unit(x, "layers.1", stem, stem, 3, 1, 1, 64)
    inputs = stem
    for i, (outputs, (first, rest), count) in enumerate(zip(widths, hidden, blocks, strict=True)):
        x = bottleneck(x, f"layers.{2 * i + 2}", inputs, outputs, first, 2)
        for j in range(count):
            y = bottleneck(x, f"layers.{2 * i + 3}.layers.{j}", outputs, outputs, rest, 1)
            x = t.node("Add", x, y)
        inputs = outputs
    x = unit(x, "conv_sep", inputs, 512)
    x = unit(x, "features.layers.0", 512, 512, SIDE // 16, groups=512, linear=True)
    x = t.linear(x, "features.layers.2", 512, embedding, bias)
    return t.norm(x, "features.layers.3", embedding)


class Published(NamedTuple):
    """A network of ours, weights as they are published, and what they compute."""

    module: object
    shape: tuple[int, int, int]
    state: dict[str, np.ndarray]
    graph: onnx.ModelProto
    images: np.ndarray  # [B, H, W, C]
    embeddings: np.ndarray


def recorded(name: str, fold: bool = False, epsilon: float = 1e-5) -> tuple[dict, onnx.ModelProto]:
    t = Recorder(fold, epsilon)
    embedding = NETWORKS[name][1]["embedding"]
    hidden = ((128, 128), (256, 256), (512, 256))
    match name:
        case "iresnet_pico":
            end = iresnet(t, (1, 1, 1), (16, 32, 64), 2, embedding)
        case "iresnet18":
            end = iresnet(t, (2, 2, 2, 2), (8, 16, 32, 64), 1, embedding)
        case "mobilefacenet":
            end = mobilefacenet(t, 64, (64, 128, 128), hidden, (1, 0, 2), embedding, True)
        case "mobilefacenet_large":
            end = mobilefacenet(t, 128, (128, 256, 256), hidden, (0, 1, 1), embedding, False)
    return t.state, t.model(end, embedding)


@functools.cache
def _published(name: str) -> Published:
    state, graph = recorded(name)
    images = np.random.default_rng(3).uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
    (embeddings,) = ReferenceEvaluator(graph).run(None, {"data": images.transpose(0, 3, 1, 2)})
    backbone, fields = NETWORKS[name]
    return Published(models.create(backbone, **fields), (SIDE, SIDE, 3), state, graph, images, embeddings)


@pytest.fixture(scope="session")
def published():
    """`published(name)` -> Published, for the names of NETWORKS."""
    return _published


@pytest.fixture(scope="session")
def recorded_graph():
    """`recorded_graph(name, fold, epsilon)` -> the graph of the same weights, written in another way."""
    return lambda name, fold=False, epsilon=1e-5: recorded(name, fold, epsilon)[1]


@pytest.fixture(scope="session")
def recorder() -> type[Recorder]:
    """Draws weights and notes the graph that they belong to, for networks that a test writes down itself."""
    return Recorder


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _tuple(numbers) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"


def tensor_pickle(key: str, shape, strides, *, offset=0, count=None, kind="FloatStorage") -> bytes:
    """The instructions with which `torch.save` describes one tensor."""
    count = int(np.prod(shape)) if count is None else count
    number = b"\x8a\x08" + struct.pack("<q", count)
    storage = b"(" + _text("storage") + b"ctorch\n" + kind.encode() + b"\n"
    storage += _text(key) + _text("cpu") + number + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    tensor = storage + b"J" + struct.pack("<i", offset) + _tuple(shape) + _tuple(strides) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + tensor + b"tR"


def state_pickle(tensors: dict[str, bytes]) -> bytes:
    """A whole `data.pkl`: an OrderedDict with its `_metadata`."""
    items = b"".join(_text(name) + tensor for name, tensor in tensors.items())
    metadata = b"}" + _text("_metadata") + b"ccollections\nOrderedDict\n)Rsb"
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u" + metadata + b"."


def archive(pickled: bytes, storages: dict[str, bytes], root="backbone", method=zipfile.ZIP_STORED) -> bytes:
    """The zip archive around them."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr(f"{root}/data.pkl", pickled)
        file.writestr(f"{root}/byteorder", "little")
        for key, data in storages.items():
            file.writestr(f"{root}/data/{key}", data)
        file.writestr(f"{root}/version", "3\n")
    return out.getvalue()


_KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


def saved(state: dict[str, np.ndarray]) -> bytes:
    """What `torch.save(state)` writes."""
    described, storages = {}, {}
    for i, (name, array) in enumerate(state.items()):
        strides = [step // array.itemsize for step in array.strides]
        kind = _KINDS[array.dtype.name]
        described[name] = tensor_pickle(str(i), array.shape, strides, kind=kind)
        storages[str(i)] = array.tobytes()
    return archive(state_pickle(described), storages)


class Torch(NamedTuple):
    """How PyTorch lays out a file, part by part."""

    saved = staticmethod(saved)
    archive = staticmethod(archive)
    state_pickle = staticmethod(state_pickle)
    tensor_pickle = staticmethod(tensor_pickle)


@pytest.fixture(scope="session")
def torch_layout() -> type[Torch]:
    return Torch


@pytest.fixture(scope="session")
def write(tmp_path_factory):
    """`write(name, bytes)` -> path of a new file."""

    def write(name: str, data: bytes) -> pathlib.Path:
        path = tmp_path_factory.mktemp("weights") / name
        path.write_bytes(data)
        return path

    return write
