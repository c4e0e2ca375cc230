import jax
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from jaxface import interop, models
from jaxface.errors import UserError

SMALL = ("iresnet_pico", "iresnet18", "mobilefacenet", "mobilefacenet_large")


def embed(net, variables):
    return np.asarray(jax.jit(lambda v, x: net.module.apply(v, x, train=False))(variables, net.images))


def load(net, graph, write):
    return interop.load_weights(write("m.onnx", graph.SerializeToString()), net.module, net.shape)


@pytest.mark.parametrize("name", SMALL)
def test_norms_folded_into_convolutions_and_numbers_for_names(published, recorded_graph, write, name):
    net, graph = published(name), recorded_graph(name, fold=True)
    assert all(tensor.name.isdecimal() for tensor in graph.graph.initializer)
    np.testing.assert_allclose(embed(net, load(net, graph, write)), net.embeddings, atol=1e-5)


def test_another_epsilon_moves_into_the_variance(published, recorded_graph, write):
    net, graph = published("iresnet_pico"), recorded_graph("iresnet_pico", epsilon=0.3)
    (expected,) = ReferenceEvaluator(graph).run(None, {"data": net.images.transpose(0, 3, 1, 2)})
    assert np.abs(expected - net.embeddings).max() > 0.05
    np.testing.assert_allclose(embed(net, load(net, graph, write)), expected, atol=1e-5)


def test_other_spellings_of_the_same_graph(published, recorded_graph, write):
    """Copies, casts and Dropout between layers, a bias before a norm, MatMul and Add for Gemm, weights as Constant."""
    net, model = published("iresnet_pico"), recorded_graph("iresnet_pico")
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def constant(name, array):
        graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    nodes = []
    for node in graph.node:
        if node.op_type == "Gemm":
            x, weight, bias = node.input
            transposed = constant("w", np.ascontiguousarray(values[weight].T))
            nodes.append(helper.make_node("Dropout", [x], ["kept"]))
            nodes.append(helper.make_node("MatMul", ["kept", transposed], ["product"]))
            nodes.append(helper.make_node("Add", [bias, "product"], node.output))
        elif node.op_type == "Conv" and node.input[1] == "conv1.weight":
            bias = np.linspace(-1, 1, 16, dtype=np.float32)
            nodes.append(helper.make_node("Identity", ["data"], ["same"]))
            node.input[0] = "same"
            node.input.append(constant("late", bias))
            values["bn1.running_mean"] = values["bn1.running_mean"] + bias
            nodes.append(node)
        elif node.op_type == "PRelu":
            stored = numpy_helper.from_array(values[node.input[1]])
            nodes.append(helper.make_node("Constant", [], [f"c{len(nodes)}"], value=stored))
            node.input[1] = nodes[-1].output[0]
            nodes.append(helper.make_node("Cast", [node.input[0]], [f"d{len(nodes)}"], to=1))
            node.input[0] = nodes[-1].output[0]
            nodes.append(node)
        elif node.op_type == "BatchNormalization" and node.input[1] == "bn2.weight":
            nodes.append(helper.make_node("Identity", ["bn2.weight"], ["copied"]))
            node.input[1] = "copied"
            nodes.append(node)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        if tensor.name == "bn1.running_mean":
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    (expected,) = ReferenceEvaluator(model).run(None, {"data": net.images.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(expected, net.embeddings, atol=1e-5)
    np.testing.assert_allclose(embed(net, load(net, model, write)), net.embeddings, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_written_graphs_compute_the_same_and_read_back(published, tmp_path, name):
    net = published(name)
    variables = interop.from_state_dict(net.state, net.module, net.shape)
    path = tmp_path / "out.onnx"
    interop.save_onnx(path, net.module, variables, net.shape)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    names = {tensor.name for tensor in model.graph.initializer}
    assert names == {key for key in net.state if not key.endswith("num_batches_tracked")}
    (embeddings,) = ReferenceEvaluator(model).run(["embedding"], {"data": net.images.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(embeddings, net.embeddings, atol=1e-5)
    again = interop.load_weights(path, net.module, net.shape)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_data_outside_the_file(published, recorded_graph, tmp_path):
    net, model = published("iresnet_pico"), recorded_graph("iresnet_pico")
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.onnx.data", size_threshold=100)
    assert (tmp_path / "m.onnx.data").stat().st_size > 1e5
    variables = interop.load_weights(path, net.module, net.shape)
    np.testing.assert_allclose(embed(net, variables), net.embeddings, atol=1e-5)

    moved = tmp_path / "elsewhere" / "m.onnx"
    moved.parent.mkdir()

    def refused(**changes) -> str:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = str(changes.get(entry.key, entry.value))
        moved.write_bytes(model.SerializeToString())
        with pytest.raises(UserError) as caught:
            interop.load_weights(moved, net.module, net.shape)
        return str(caught.value)

    assert "damaged or missing" in refused()
    assert "not in its own folder" in refused(location="../m.onnx.data")
    assert "not in its own folder" in refused(location=str(tmp_path / "m.onnx.data"))
    (moved.parent / "link").symlink_to(tmp_path / "m.onnx.data")
    assert "not in its own folder" in refused(location="link")
    (moved.parent / "data").write_bytes((tmp_path / "m.onnx.data").read_bytes())
    assert "damaged or missing" in refused(location="data", length=10**15)
    assert "damaged or missing" in refused(location="data", offset=-8)
    assert "damaged or missing" in refused(location="data", length="many")


def change(model, index, **attributes):
    """A copy in which the `index`-th convolution has other attributes."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    node = [node for node in model.graph.node if node.op_type == "Conv"][index]
    kept = [a for a in node.attribute if a.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in attributes.items())])
    return model


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"strides": [1, 1]}, "strides of conv1 is [1, 1], and [2, 2] in the network"),
        ({"pads": [0, 0, 1, 1]}, "pads of conv1 is [0, 0, 1, 1], and [1, 1, 1, 1] in the network"),
        ({"dilations": [2, 2]}, "dilations of conv1 is [2, 2], and [1, 1] in the network"),
        ({"auto_pad": "SAME_UPPER"}, "auto_pad of conv1 is SAME_UPPER, and NOTSET in the network"),
    ],
)
def test_the_same_weights_in_other_layers_are_refused(published, recorded_graph, write, attributes, words):
    net = published("iresnet_pico")
    with pytest.raises(UserError) as caught:
        load(net, change(recorded_graph("iresnet_pico"), 0, **attributes), write)
    assert words in str(caught.value)


def test_other_graphs_are_refused_where_they_part(published, recorded_graph, write):
    graph = recorded_graph("iresnet18")
    net = published("iresnet18")
    for name, words in [
        ("iresnet34", "layer1.2.conv1.weight is (16, 8, 3, 3), and (8, 8, 3, 3) in the network"),
        ("iresnet10", "layer2.0.conv1.weight is (8, 8, 3, 3), and (16, 8, 3, 3) in the network"),
    ]:
        other = net._replace(module=models.create(name, embedding=24, width=0.125))
        with pytest.raises(UserError) as caught:
            load(other, graph, write)
        assert words in str(caught.value)

    def edited(change):
        model = onnx.ModelProto.FromString(graph.SerializeToString())
        change(model.graph)
        with pytest.raises(UserError) as caught:
            load(net, model, write)
        return str(caught.value)

    def no_sum(g):
        next(node for node in g.node if node.op_type == "Add").op_type = "Mul"

    def transposed(g):
        next(node for node in g.node if node.op_type == "Flatten").op_type = "Transpose"

    def normalized(g):
        g.node.append(helper.make_node("LpNormalization", ["683"], ["unit"], axis=1))
        g.output[0].name = "unit"

    def relu(g):
        node = next(node for node in g.node if node.op_type == "PRelu")
        node.op_type = "Relu"
        del node.input[1]

    def another_input(g):
        g.input.append(g.input[0])
        g.input[1].name = "mask"

    def extra_layer(g):
        g.node.append(helper.make_node("Gemm", ["683", "fc.weight"], ["logits"]))

    def scaled(g):
        node = next(node for node in g.node if node.op_type == "Gemm")
        node.attribute.append(helper.make_attribute("alpha", 2.0))

    def computed(g):
        g.node.insert(0, helper.make_node("Exp", ["conv1.weight"], ["computed"]))
        next(node for node in g.node if node.op_type == "Conv").input[1] = "computed"

    def training(g):
        node = next(node for node in g.node if node.op_type == "BatchNormalization")
        node.attribute.append(helper.make_attribute("training_mode", 1))

    def short(g):
        tensor = next(tensor for tensor in g.initializer if tensor.name == "conv1.weight")
        tensor.raw_data = tensor.raw_data[:-4]

    assert "sum after layer1.0.bn3 is nothing, and Add" in edited(no_sum)
    assert "fc.weight is Transpose, and Gemm or MatMul (24, 256) in the network" in edited(transposed)
    assert "what follows the last norm is LpNormalization, and nothing in the network" in edited(normalized)
    assert "conv1.weight is a?b, and" in edited(lambda g: setattr(g.node[0], "op_type", "a\nb"))
    assert "is no valid ONNX" in edited(lambda g: g.node[0].ClearField("output"))
    assert "is no valid ONNX" in edited(lambda g: g.node[1].input.pop())
    assert "prelu.weight is Relu, and PRelu (8,) in the network" in edited(relu)
    assert "one input; got 2" in edited(another_input)
    assert "Gemm logits is (24, 256), and nothing in the network" in edited(extra_layer)
    assert "options of fc" in edited(scaled)
    assert "training_mode of bn1 is 1, and 0 in the network" in edited(training)
    assert "'computed' is computed" in edited(computed)
    assert "the data of 'conv1.weight' are damaged" in edited(short)
    assert "one input; got 0" in edited(lambda g: g.Clear())
