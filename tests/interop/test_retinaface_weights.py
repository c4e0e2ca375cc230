"""RetinaFace's published layout, written down once more as an ONNX graph that ONNX's own evaluator runs."""

import functools
from functools import partial

import jax
import numpy as np
import pytest

from jaxface import interop
from jaxface.errors import UserError
from jaxface.interop.state_dict import tensor_layers
from jaxface.models import parameter_count
from jaxface.models.detection import RetinaFace, init_variables
from jaxface.models.detection.pyramid import BACKBONES, ResNetLevels

BACKBONES.update({"resnet_of_tests": partial(ResNetLevels, stages=(1, 2, 1, 1), channels=(4, 8, 8, 16))})
SIZE = (40, 56)  # levels of 5 x 7, 3 x 4 and 2 x 2: sides that are no multiples of each other


def unit(t, x, name, inputs, outputs, kernel, stride=1, groups=1, slope=0.1, numbers=(0, 1)):
    names = [f"{name}.{number}" for number in numbers]
    x = t.conv_norm(x, *names, inputs, outputs, kernel, stride, kernel // 2, groups)
    return x if slope is None else t.node("LeakyRelu", x, alpha=slope)


def mobilenet(t):
    x = unit(t, "data", "body.stage1.0", 3, 8, 3, 2)
    stages = [
        [(8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)],
        [(64, 128, 2)] + [(128, 128, 1)] * 5,
        [(128, 256, 2), (256, 256, 1)],
    ]
    levels = []
    for stage, units in enumerate(stages, start=1):
        for i, (inputs, outputs, stride) in enumerate(units, start=1 if stage == 1 else 0):
            name = f"body.stage{stage}.{i}"
            x = unit(t, x, name, inputs, inputs, 3, stride, groups=inputs)
            x = unit(t, x, name, inputs, outputs, 1, numbers=(3, 4))
        levels.append((x, outputs))
    return levels


def detector(t, levels, features):
    outputs = [unit(t, x, f"fpn.output{i}", n, features, 1) for i, (x, n) in enumerate(levels, start=1)]
    for i in (1, 0):
        size = t.node("Shape", outputs[i])
        size = t.node(
            "Concat", t.node("Shape", outputs[i + 1], end=2), t.node("Slice", size, "two", "four"), axis=0
        )
        mode = dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        larger = t.node("Resize", outputs[i + 1], "", "", size, **mode)
        outputs[i] = unit(t, t.node("Add", outputs[i], larger), f"fpn.merge{i + 1}", features, features, 3)
    heads = {"ClassHead": [], "BboxHead": [], "LandmarkHead": []}
    for i, x in enumerate(outputs):
        ssh, quarter = partial(unit, kernel=3), features // 4
        near = ssh(t, x, f"ssh{i + 1}.conv3X3", features, features // 2, slope=None)
        shared = ssh(t, x, f"ssh{i + 1}.conv5X5_1", features, quarter)
        middle = ssh(t, shared, f"ssh{i + 1}.conv5X5_2", quarter, quarter, slope=None)
        far = ssh(t, shared, f"ssh{i + 1}.conv7X7_2", quarter, quarter)
        far = ssh(t, far, f"ssh{i + 1}.conv7x7_3", quarter, quarter, slope=None)
        x = t.node("Relu", t.node("Concat", near, middle, far, axis=1))
        for name, size in zip(heads, (2, 4, 10), strict=True):
            head = f"{name}.{i}.conv1x1"
            weight = t.keep(
                f"{head}.weight", t.draw(f"{head}.weight", 2 * size, features, 1, 1, low=-0.2, high=0.2)
            )
            bias = t.keep(f"{head}.bias", t.draw(f"{head}.bias", 2 * size))
            y = t.node("Transpose", t.node("Conv", x, weight, bias), perm=[0, 2, 3, 1])
            heads[name].append(t.node("Reshape", y, f"rows{size}"))
    return [t.node("Concat", *parts, axis=1) for parts in heads.values()]


@functools.cache
def published(recorder, backbone, features):
    """(our detector, state dict, RGB images in [0, 255], what the graph says of them)."""
    t = recorder(fold=False)
    levels = mobilenet(t) if backbone.startswith("mobilenet") else t.resnet("body.")
    ends = detector(t, levels, features)
    numbers = {"two": [2], "four": [4], **{f"rows{n}": [2, -1, n] for n in (2, 4, 10)}}
    images = np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3), np.uint8)
    bgr = images[..., ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)
    answers = t.answers(ends, bgr, **{name: np.array(value, np.int64) for name, value in numbers.items()})
    return RetinaFace(backbone, features=features, pixels="bgr"), t.state, images, answers


CASES = [("mobilenet_025", 64), ("resnet_of_tests", 16)]


@pytest.mark.parametrize(("backbone", "features", "kind"), [(*CASES[0], "pth"), (*CASES[1], "safetensors")])
def test_published_weights_compute_what_their_graph_does(
    recorder, write, torch_layout, tmp_path, backbone, features, kind
):
    ours, state, images, answers = published(recorder, backbone, features)
    path = tmp_path / "weights.safetensors"
    if kind == "pth":
        path = write("retinaface.pth", torch_layout.saved({f"module.{k}": v for k, v in state.items()}))
    else:
        from safetensors.numpy import save_file

        save_file(state, path)
    variables = interop.load_weights(path, ours.module, (*SIZE, 3))
    outputs = jax.jit(ours.module.apply)(variables, images / np.float32(127.5) - 1)
    for name, answer in zip(("class_logits", "box_deltas", "point_deltas"), answers, strict=True):
        assert outputs[name].shape == answer.shape
        np.testing.assert_allclose(outputs[name], answer, atol=2e-4 * np.abs(answer).max())


@pytest.mark.parametrize(("backbone", "features"), CASES)
def test_export_is_the_inverse_of_loading(recorder, tmp_path, backbone, features):
    ours, state, _, _ = published(recorder, backbone, features)
    variables = interop.from_state_dict(state, ours.module, (*SIZE, 3))
    interop.save_safetensors(tmp_path / "out.safetensors", ours.module, variables, (*SIZE, 3))
    written = interop.read_tensors(tmp_path / "out.safetensors")
    assert written.keys() == state.keys()
    for name, array in state.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(written[name], array, err_msg=name)


@pytest.mark.parametrize(("backbone", "count"), [("mobilenet_025", 426_608), ("resnet50", 27_293_600)])
def test_every_variable_has_a_name(backbone, count):
    ours = RetinaFace(backbone)
    leaves = [leaf for layer in tensor_layers(ours.module, (64, 64, 3)) for leaf in layer.leaves()]
    assert len({leaf.name for leaf in leaves}) == len({leaf.path for leaf in leaves}) == len(leaves)
    params, _ = jax.eval_shape(lambda: init_variables(ours, jax.random.key(0), (64, 64)))
    assert parameter_count(params) == count
    assert sum(np.prod(leaf.shape) for leaf in leaves if leaf.path[0] == "params") == count


def test_other_networks_are_refused_in_a_line(recorder):
    ours, state, _, _ = published(recorder, *CASES[0])
    with pytest.raises(UserError, match=r"another architecture: .*body.conv1.weight is nothing"):
        interop.from_state_dict(state, RetinaFace("resnet50").module, (64, 64, 3))
    with pytest.raises(UserError, match="context: needs 'ssh'"):
        interop.from_state_dict(state, RetinaFace(context="dilated").module, (64, 64, 3))
    with pytest.raises(UserError, match="needs an IResNet with insightface blocks or a MobileFaceNet"):
        interop.read_onnx("x.onnx", ours.module, (64, 64, 3))
    with pytest.raises(UserError, match=r"ssh2.conv3X3.0.weight"):
        interop.from_state_dict({**state, "ssh2.conv3X3.0.weight": np.zeros((1,))}, ours.module, (64, 64, 3))
