import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxface import interop, models
from jaxface.errors import UserError
from jaxface.interop.architecture import architecture, leaves

SMALL = ("iresnet_pico", "iresnet18", "mobilefacenet", "mobilefacenet_large")


def embed(net, variables):
    return np.asarray(jax.jit(lambda v, x: net.module.apply(v, x, train=False))(variables, net.images))


def file_of(kind, net, write, torch_layout):
    if kind == "onnx":
        return write("model.onnx", net.graph.SerializeToString())
    if kind == "pth":
        return write("backbone.pth", torch_layout.saved(net.state))
    return write("model.safetensors", safetensors.numpy.save(net.state))


@pytest.mark.parametrize("kind", ["pth", "safetensors", "onnx"])
@pytest.mark.parametrize("name", SMALL)
def test_embeddings_are_those_of_the_published_weights(published, write, torch_layout, name, kind):
    net = published(name)
    variables = interop.load_weights(file_of(kind, net, write, torch_layout), net.module, net.shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    assert np.abs(net.embeddings).max() > 0.3
    np.testing.assert_allclose(embed(net, variables), net.embeddings, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_safetensors_and_back_is_bit_for_bit(published, tmp_path, name):
    net = published(name)
    variables = interop.from_state_dict(net.state, net.module, net.shape)
    interop.save_safetensors(tmp_path / "out.safetensors", net.module, variables, net.shape)
    again = interop.load_weights(tmp_path / "out.safetensors", net.module, net.shape)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    # PyTorch's names, order, shapes and values are those of the published file.
    written = interop.to_state_dict(variables, net.module, net.shape)
    assert sorted(written) == sorted(net.state)
    for key, array in net.state.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(written[key], array)
    assert safetensors.numpy.load_file(tmp_path / "out.safetensors").keys() == net.state.keys()


@pytest.mark.parametrize(
    ("name", "embedding", "count"),
    [
        ("iresnet18", 512, 24_025_600),
        ("iresnet34", 512, 34_139_328),
        ("iresnet50", 512, 43_590_848),
        pytest.param("iresnet100", 512, 65_156_160, marks=pytest.mark.slow),
        pytest.param("iresnet200", 512, 118_833_920, marks=pytest.mark.slow),
        ("mobilefacenet", 128, 1_003_264),
        ("mobilefacenet_large", 512, 2_059_520),
        ("iresnet_pico", 128, None),
        ("iresnet_nano", 128, None),
        ("iresnet10", 512, None),
    ],
)
def test_every_variable_has_a_name_and_the_published_number(name, embedding, count):
    module = models.create(name, embedding=embedding)
    found = list(leaves(architecture(module, (112, 112, 3))))
    assert len({leaf.name for leaf in found}) == len(found)
    shapes = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False),
        jax.ShapeDtypeStruct((1, 112, 112, 3), np.float32),
    )
    ours = {tuple(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(shapes)}
    assert {leaf.path for leaf in found} == ours.keys()
    assert all(np.prod(leaf.shape) == ours[leaf.path].size for leaf in found)
    trained = sum(np.prod(leaf.shape) for leaf in found if leaf.path[0] == "params")
    frozen = embedding if name.startswith("iresnet") else 0
    assert count in (None, trained + frozen)


@pytest.mark.parametrize("shape", [(48, 32, 3), (40, 24, 3)])
def test_the_linear_layer_follows_the_plane(shape):
    module = models.create("iresnet_pico", embedding=4)
    layers = architecture(module, shape)
    channels, height, width = layers[-2].plane
    assert channels * height * width == layers[-2].shape[1]
    rng = np.random.default_rng(0)
    state = {leaf.name: rng.uniform(0.5, 1, leaf.shape).astype(np.float32) for leaf in leaves(layers)}
    state["features.weight"] = np.ones(4, np.float32)
    kernel = interop.from_state_dict(state, module, shape)["params"]["head_dense"]["kernel"]
    weight = state["fc.weight"].reshape(4, channels, height, width)
    np.testing.assert_array_equal(kernel.reshape(height, width, channels, 4)[2, 1, 5], weight[:, 5, 2, 1])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_half_precision_and_the_prefixes_of_parallel_and_compiled_training(
    published, write, torch_layout, prefix
):
    net = published("iresnet_pico")
    half = {
        f"{prefix}{name}": array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in net.state.items()
    }
    variables = interop.load_weights(write("x.pth", torch_layout.saved(half)), net.module, net.shape)
    np.testing.assert_allclose(embed(net, variables), net.embeddings, atol=0.02)


def test_a_linear_layer_without_bias_has_a_bias_of_zero(published):
    net = published("mobilefacenet")
    state = {name: array for name, array in net.state.items() if name != "features.layers.2.bias"}
    variables = interop.from_state_dict(state, net.module, net.shape)
    np.testing.assert_array_equal(variables["params"]["head_dense"]["bias"], 0)
    # Every published iResNet has one.
    net = published("iresnet_pico")
    state = {name: array for name, array in net.state.items() if name != "fc.bias"}
    with pytest.raises(UserError, match=r"fc\.bias is nothing, and \(16,\) in the network"):
        interop.from_state_dict(state, net.module, net.shape)


@pytest.mark.parametrize("kind", ["pth", "safetensors", "onnx"])
def test_another_architecture_is_refused_by_the_first_tensor_and_both_shapes(
    published, write, torch_layout, kind
):
    net = published("iresnet18")
    path = file_of(kind, net, write, torch_layout)
    for fields, words in [
        ({"width": 0.25}, "conv1.weight is (8, 3, 3, 3), and (16, 3, 3, 3) in the network"),
        ({"embedding": 32}, "fc.weight is (24, 256), and (32, 256) in the network"),
    ]:
        other = models.create("iresnet18", **{"embedding": 24, "width": 0.125, **fields})
        with pytest.raises(UserError) as caught:
            interop.load_weights(path, other, net.shape)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_surplus_tensors_are_named(published):
    net = published("iresnet18")
    deeper = models.create("iresnet34", embedding=24, width=0.125)
    with pytest.raises(UserError, match=r"layer1\.2\.bn1\.weight is nothing, and \(8,\) in the network"):
        interop.from_state_dict(net.state, deeper, net.shape)
    shallower = models.create("iresnet10", embedding=24, width=0.125)
    with pytest.raises(UserError, match=r"layer1\.1\.bn1\.weight is \(8,\), and nothing in the network"):
        interop.from_state_dict(net.state, shallower, net.shape)
    with pytest.raises(UserError, match=r"layers\.0\.layers\.0\.weight is nothing, and"):
        interop.from_state_dict(net.state, models.create("mobilefacenet"), net.shape)
    with pytest.raises(UserError, match=r"a\?b is \(2,\), and nothing in the network"):
        interop.from_state_dict({**net.state, "a\nb": np.zeros(2)}, net.module, net.shape)
    with pytest.raises(UserError, match=r"conv1\.weight is nothing, and"):
        interop.from_state_dict({}, net.module, net.shape)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("features.weight", 0.5, "features.weight needs ones, at which this network freezes it; got 0.5"),
        ("layer1.0.bn1.bias", np.nan, "layer1.0.bn1.bias needs finite numbers"),
        ("bn2.running_var", -1.0, "bn2.running_var needs variances; got -1"),
    ],
)
def test_values_that_no_such_network_has(published, name, value, words):
    net = published("iresnet_pico")
    state = {**net.state, name: net.state[name].copy()}
    state[name][1] = value
    with pytest.raises(UserError) as caught:
        interop.from_state_dict(state, net.module, net.shape, source="x.pth")
    assert words in str(caught.value) and "x.pth" in str(caught.value)


def test_networks_without_published_names():
    for module in (models.create("convnet"), models.create("iresnet18", block="sface")):
        with pytest.raises(UserError, match="backbone: needs an IResNet with insightface blocks"):
            architecture(module, (112, 112, 3))


def test_variables_of_another_network_are_not_written(published, tmp_path):
    net = published("iresnet_pico")
    variables = interop.from_state_dict(net.state, net.module, net.shape)
    other = models.create("iresnet_nano", embedding=16)
    for save in (interop.save_safetensors, interop.save_onnx, interop.save_stablehlo):
        with pytest.raises(UserError, match=r"is \(.*\), and \(.*\) in the network"):
            save(tmp_path / "out", other, variables, net.shape)
        with pytest.raises(UserError, match=r"out: cannot write .*No such file or directory"):
            save(tmp_path / "nowhere" / "out", net.module, variables, net.shape)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("package", "save"),
    [
        ("safetensors", interop.save_safetensors),
        ("onnx", interop.save_onnx),
        ("flatbuffers", interop.save_stablehlo),
    ],
)
def test_a_package_that_is_not_installed_is_named(published, tmp_path, monkeypatch, package, save):
    net = published("iresnet_pico")
    variables = interop.from_state_dict(net.state, net.module, net.shape)
    for name in [name for name in sys.modules if name.partition(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match=rf"jaxface\[interop\] is needed: the package {package} is not installed; pip install"
    ):
        save(tmp_path / "out", net.module, variables, net.shape)


@pytest.mark.parametrize("name", ["x.safetensors", "x.onnx", "x.pth"])
def test_files_that_are_none(published, write, tmp_path, name):
    net = published("iresnet_pico")
    for path in (
        write(name, b""),
        write(name, b"\xff" * 100),
        write(name, b"\x08\0\0\0\0\0\0\0{"),
        tmp_path,
        tmp_path / name,
    ):
        with pytest.raises(UserError) as caught:
            interop.load_weights(path, net.module, net.shape)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["pth", "safetensors", "onnx"])
def test_flipped_bytes_and_truncation_are_refused_or_read(published, write, torch_layout, kind):
    net = published("iresnet_pico")
    path = file_of(kind, net, write, torch_layout)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    # Names and sizes are at the ends; between them are mostly weights, of which any are as good.
    places = np.concatenate(
        [np.arange(0, 200, 5), rng.integers(0, len(whole), 60), len(whole) - np.arange(1, 2000, 40)]
    )
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        for data in (damaged, whole[:place]):
            path.write_bytes(data)
            try:
                interop.load_weights(path, net.module, net.shape)
            except UserError as error:
                assert "\n" not in str(error)
