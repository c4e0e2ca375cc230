"""DeiT and Swin from random files of the published shapes, against PyTorch's code in float64, and out again."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import onnx
import onnxruntime
import published_transformers as published
import pytest
import safetensors.numpy
from onnx import helper, numpy_helper

from jaxface import interop, models
from jaxface.errors import UserError
from jaxface.interop.state_dict import tensor_layers
from jaxface.layers import Attention, DotProduct, RelativePositions
from jaxface.models.transformers.vit import Block


class Learned(nn.Module):
    """A mixing with a parameter of its own."""

    @nn.compact
    def __call__(self, query, key, value, **options):
        return self.param("gain", nn.initializers.ones, ()) * DotProduct()(query, key, value, **options)


IMAGES = np.random.default_rng(3).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
SHAPE = IMAGES.shape[1:]
VIT = {"embedding": 5, "dim": 12, "depth": 2, "heads": 2, "patch": 8}
SWIN = {"embedding": 5, "dim": 8, "blocks": (2, 1), "heads": (2, 4), "patch": 2, "window": 4}
NETWORKS = {
    "deit": (models.create("vit_tiny", **VIT), published.deit_state(), published.deit),
    "distilled": (
        models.create("deit_tiny_distilled", **VIT),
        published.deit_state(distilled=True),
        published.deit,
    ),
    "swin": (models.create("swin_tiny", **SWIN), published.swin_state(), published.swin),
}


@pytest.fixture(scope="module")
def apply():
    """The jitted network of each name."""
    return {name: jax.jit(network.apply) for name, (network, _, _) in NETWORKS.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_published_code(apply, name):
    module, state, oracle = NETWORKS[name]
    variables = interop.from_state_dict(state, module, SHAPE)
    expected = oracle(state, IMAGES)
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(apply[name](variables, IMAGES), expected, atol=2e-5)
    # Tokens of small variance, in which another epsilon shows.
    scale = {"patch_embed.proj.weight": 1e-3, "patch_embed.proj.bias": 1e-3}
    scale |= dict.fromkeys(("cls_token", "dist_token", "pos_embed"), 1e-3)
    small = {key: array * np.float32(scale.get(key, 1)) for key, array in state.items()}
    found = apply[name](interop.from_state_dict(small, module, SHAPE), IMAGES)
    np.testing.assert_allclose(found, oracle(small, IMAGES), atol=1e-3)
    other = oracle(small, IMAGES, epsilon=1e-5 if oracle is published.deit else 1e-6)
    assert np.abs(other - found).max() > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_file_and_back(write, torch_layout, tmp_path, name):
    module, state, oracle = NETWORKS[name]
    variables = interop.from_state_dict(state, module, SHAPE)
    written = interop.to_state_dict(variables, module, SHAPE)
    assert written.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(written[key], array)

    interop.save_safetensors(tmp_path / "m.safetensors", module, variables, SHAPE)
    assert safetensors.numpy.load_file(tmp_path / "m.safetensors").keys() == state.keys()
    interop.save_onnx(tmp_path / "m.onnx", module, variables, SHAPE)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for images in (IMAGES, IMAGES[:1]):
        (outputs,) = session.run(["embedding"], {"data": images.transpose(0, 3, 1, 2)})
        np.testing.assert_allclose(outputs, oracle(state, images), atol=2e-5)
    torch = write("m.pth", torch_layout.saved(state))
    for path in (tmp_path / "m.safetensors", tmp_path / "m.onnx", torch):
        jax.tree.map(np.testing.assert_array_equal, interop.load_weights(path, module, SHAPE), variables)


def test_swin_of_the_first_release():
    module, state, _ = NETWORKS["swin"]
    earlier = published.first_release(state)
    assert "layers.0.downsample.norm.weight" in earlier and "head.weight" in earlier
    found = interop.from_state_dict(earlier, module, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, found, interop.from_state_dict(state, module, SHAPE))
    index = "layers.0.blocks.0.attn.relative_position_index"
    with pytest.raises(UserError, match="relative_position_index needs the offsets of square windows"):
        interop.from_state_dict({**earlier, index: earlier[index].T}, module, SHAPE)


def test_the_wrapper_of_a_published_file_is_opened(write, torch_layout):
    module, state, _ = NETWORKS["deit"]
    described, storages = {}, {}
    for i, (name, array) in enumerate(state.items()):
        strides = [step // 4 for step in array.strides]
        described[name] = torch_layout.tensor_pickle(str(i), array.shape, strides)
        storages[str(i)] = array.tobytes()
    inside = torch_layout.state_pickle(described)
    # {"model": …} around the dictionary: its own opcodes, less the first and the last, with PROTO before.
    pickled = b"\x80\x02}X\x05\0\0\0model" + inside[2:-1] + b"s."
    found = interop.load_weights(write("x.pth", torch_layout.archive(pickled, storages)), module, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, found, interop.from_state_dict(state, module, SHAPE))


def exported(path, state, module, tmp_path, *, tables=False):
    """A graph of ours as PyTorch's exporter names things: matrices transposed and without a name, biases looked up."""
    interop.save_onnx(tmp_path / "m.onnx", module, interop.from_state_dict(state, module, SHAPE), SHAPE)
    model = onnx.load(tmp_path / "m.onnx")
    graph, number = model.graph, 0
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes, aliases = [], {}
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in constants:
            number += 1
            constants[f"onnx::MatMul_{1000 - number}"] = constants.pop(node.input[0]).T.copy()
            aliases[node.output[0]] = f"onnx::MatMul_{1000 - number}"
        elif tables and node.op_type == "Gather" and node.input[0].endswith("_table"):
            bias = constants.pop(node.input[0])[constants[node.input[1]]].reshape(16, 16, -1)
            constants[f"folded_{len(nodes)}"] = bias.transpose(2, 0, 1)[None]
            aliases[node.output[0]] = f"folded_{len(nodes)}"
        elif node.input and node.op_type in ("Reshape", "Transpose") and node.input[0] in aliases:
            aliases[node.output[0]] = aliases[node.input[0]]
        else:
            node.input[:] = [aliases.get(name, name) for name in node.input]
            nodes.append(node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    path.write_bytes(model.SerializeToString())
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_graphs_whose_matrices_have_no_names(tmp_path, name):
    module, state, oracle = NETWORKS[name]
    path = tmp_path / "exported.onnx"
    exported(path, state, module, tmp_path, tables=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"data": IMAGES.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(outputs, oracle(state, IMAGES), atol=2e-5)  # the same network still
    expected = interop.from_state_dict(state, module, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, interop.load_weights(path, module, SHAPE), expected)


def test_a_matrix_as_pytorch_multiplies_by_it(tmp_path):
    """Gemm with transB, as heads are exported."""
    module, state, _ = NETWORKS["deit"]
    model = exported(tmp_path / "x.onnx", state, module, tmp_path)
    last = [node for node in model.graph.node if node.op_type == "MatMul"][-1]
    (stored,) = (t for t in model.graph.initializer if t.name == last.input[1])
    stored.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored).T.copy(), stored.name))
    last.op_type = "Gemm"
    last.attribute.append(helper.make_attribute("transB", 1))
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    expected = interop.from_state_dict(state, module, SHAPE)
    found = interop.load_weights(tmp_path / "x.onnx", module, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("deit", {"dim": 16}, r"cls_token is \(1, 1, 12\), and \(1, 1, 16\) in the network"),
        ("deit", {"depth": 3}, r"blocks.2.norm1.weight is nothing, and \(12,\) in the network"),
        ("deit", {"depth": 1}, r"blocks.1.\S+ is \(.*\), and nothing in the network"),
        ("deit", {"distilled": True}, r"pos_embed is \(1, 5, 12\), and \(1, 6, 12\) in the network"),
        ("swin", {"window": 2}, r"relative_position_bias_table is \(49, 2\), and \(9, 2\) in the network"),
        ("swin", {"embedding": 7}, r"head.fc.weight is \(5, 16\), and \(7, 16\) in the network"),
    ],
)
def test_weights_of_another_architecture(tmp_path, name, other, words):
    module, state, _ = NETWORKS[name]
    variables = interop.from_state_dict(state, module, SHAPE)
    with pytest.raises(UserError, match=words) as caught:
        interop.from_state_dict(state, module.clone(**other), SHAPE, source="x.pth")
    assert "x.pth has another architecture" in str(caught.value) and "\n" not in str(caught.value)
    interop.save_onnx(tmp_path / "m.onnx", module, variables, SHAPE)
    with pytest.raises(UserError, match=r"weights: .*m\.onnx has another architecture"):
        interop.load_weights(tmp_path / "m.onnx", module.clone(**other), SHAPE)


def test_a_graph_of_another_network(tmp_path):
    module, state, _ = NETWORKS["swin"]
    exported(tmp_path / "x.onnx", state, module, tmp_path, tables=True)
    with pytest.raises(UserError, match="another architecture"):
        interop.load_weights(tmp_path / "x.onnx", NETWORKS["deit"][0], SHAPE)
    (tmp_path / "y.onnx").write_bytes((tmp_path / "x.onnx").read_bytes()[:-7])
    with pytest.raises(UserError, match=r"weights: .*y\.onnx"):
        interop.load_weights(tmp_path / "y.onnx", module, SHAPE)


def test_networks_without_published_names():
    unit = partial(Block, attention=partial(Attention, bias=partial(RelativePositions, window=(1, 5))))
    for fields, words in (
        ({"pool": "mean"}, "needs a ViT with pool 'class' or a Swin"),
        (
            {"unit": partial(Block, attention=partial(Attention, qkv_bias=True, mix=Learned))},
            "mix/gain has no PyTorch name",
        ),
    ):
        with pytest.raises(UserError, match=words):
            tensor_layers(models.create("vit_tiny", **VIT, **fields), SHAPE)
    # What timm has names for may have them, whatever makes it.
    names = {
        leaf.name
        for layer in tensor_layers(models.create("vit_tiny", **VIT, unit=unit), SHAPE)
        for leaf in layer.leaves()
    }
    assert "blocks.1.attn.relative_position_bias_table" in names


@pytest.mark.parametrize("name", ["vit_tiny", "deit_tiny_distilled", "swin_tiny"])
def test_every_parameter_of_a_published_network_has_a_name(name):
    module = models.create(name, embedding=1000)
    found = [leaf for layer in tensor_layers(module, (224, 224, 3)) for leaf in layer.leaves()]
    counts = {"vit_tiny": 5_717_416, "deit_tiny_distilled": 5_910_800, "swin_tiny": 28_288_354}
    assert sum(int(np.prod(leaf.shape)) for leaf in found) == counts[name]
    assert len({leaf.name for leaf in found}) == len(found)


def test_images_that_were_normalized_by_channel():
    module, state, oracle = NETWORKS["swin"]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    variables = interop.fold_normalization(interop.from_state_dict(state, module, SHAPE), mean, std)
    expected = oracle(state, ((IMAGES.astype(np.float64) + 1) / 2 - mean) / std)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, IMAGES), expected, atol=1e-4)
