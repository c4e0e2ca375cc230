"""RetinaNet and Faster R-CNN under published names: what an independent graph computes of the tensors, and both ways."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import boxes, inference, interop
from jaxface.errors import UserError
from jaxface.interop.architecture import abstract_variables
from jaxface.models import parameter_count
from jaxface.models.detection import FasterRCNN, RetinaNet, feature_pyramid, published_detector

SIZE = (64, 96)
feature_pyramid._RESNETS["resnet_of_tests"] = {"stages": (1, 2, 1, 1), "channels": (4, 8, 8, 16)}
SMALL = dict(trunk="resnet_of_tests", features=8, num_classes=3)


def conv(t, x, name, inputs, outputs, kernel, stride=1):
    bound = (3 / (inputs * kernel * kernel)) ** 0.5
    weight = t.draw(f"{name}.weight", outputs, inputs, kernel, kernel, low=-bound, high=bound)
    weight = t.keep(f"{name}.weight", weight)
    bias = t.keep(f"{name}.bias", t.draw(f"{name}.bias", outputs, low=-0.2, high=0.2))
    options = dict(kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4)
    return t.node("Conv", x, weight, bias, **options)


@functools.cache
def mmdetection(recorder, caffe):
    """(state dict, images, [logits, deltas]) of a RetinaNet under MMDetection's names."""
    t = recorder(fold=False)
    levels = t.resnet("backbone.", caffe)
    merged = [conv(t, x, f"neck.lateral_convs.{i}.conv", n, 8, 1) for i, (x, n) in enumerate(levels)]
    for i in (1, 0):
        options = dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        larger = t.node("Resize", merged[i + 1], "", "two_of_each", **options)
        merged[i] = t.node("Add", merged[i], larger)
    maps = [conv(t, x, f"neck.fpn_convs.{i}.conv", 8, 8, 3) for i, x in enumerate(merged)]
    maps.append(conv(t, levels[-1][0], "neck.fpn_convs.3.conv", levels[-1][1], 8, 3, 2))
    maps.append(conv(t, maps[-1], "neck.fpn_convs.4.conv", 8, 8, 3, 2))
    ends = []
    for tower, last, size in (("cls_convs", "retina_cls", 3), ("reg_convs", "retina_reg", 4)):
        rows, drawn = [], None
        for x in maps:
            state = dict(t.state)
            t.rng = np.random.default_rng(size)  # the same head on every level
            for i in range(4):
                x = t.node("Relu", conv(t, x, f"bbox_head.{tower}.{i}.conv", 8, 8, 3))
            x = conv(t, x, f"bbox_head.{last}", 8, 9 * size, 3)
            rows.append(t.node("Reshape", t.node("Transpose", x, perm=[0, 2, 3, 1]), f"rows{size}"))
            assert drawn is None or all((t.state[k] == state[k]).all() for k in state)
            drawn = state
        ends.append(t.node("Concat", *rows, axis=1))
    images = np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3), np.uint8).astype(np.float32)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    pixels = (images - mean)[..., ::-1] if caffe else (images - mean) / std
    rows = {f"rows{n}": np.array([2, -1, n], np.int64) for n in (3, 4)}
    return t.state, images, t.answers(ends, pixels, two_of_each=np.array([1, 1, 2, 2], np.float32), **rows)


@pytest.mark.parametrize("caffe", [False, True])
def test_a_retinanet_of_mmdetection_computes_what_its_graph_does(recorder, caffe):
    state, images, answers = mmdetection(recorder, caffe)
    detector = RetinaNet(**SMALL, caffe=caffe, pixels="caffe" if caffe else "imagenet")
    variables = interop.from_state_dict(state, detector.module, (*SIZE, 3))
    outputs = jax.jit(detector.module.apply)(variables, images / 127.5 - 1)
    for name, answer in zip(("class_logits", "box_deltas"), answers, strict=True):
        assert outputs[name].shape == answer.shape
        np.testing.assert_allclose(outputs[name], answer, atol=3e-4 * np.abs(answer).max())
    back = interop.to_state_dict(variables, detector.module, (*SIZE, 3), layout="mmdetection")
    assert back.keys() == state.keys()
    for name, array in back.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(array, state[name], err_msg=name)


def drawn(detector, seed=0):
    """Variables that are not the initial ones."""
    rng = np.random.default_rng(seed)
    expected = abstract_variables(detector.module, (*SIZE, 3))
    return jax.tree.map(lambda x: rng.uniform(0.1, 0.5, x.shape).astype(np.float32), expected)


@pytest.fixture(scope="module")
def faster():
    detector = FasterRCNN(**SMALL, hidden=(6, 5), region_size=2, proposals=8, candidates=(16, 16))
    return detector, drawn(detector)


def test_torchvision_has_the_background_first_and_flattens_channels_first(faster):
    detector, variables = faster
    state = interop.to_state_dict(variables, detector.module, (*SIZE, 3))
    assert state["roi_heads.box_predictor.cls_score.weight"].shape == (4, 5)
    assert state["roi_heads.box_predictor.bbox_pred.weight"].shape == (16, 5)
    rng = np.random.default_rng(3)
    maps = [jnp.asarray(rng.normal(size=(1, 64 // s, 96 // s, 8)), jnp.float32) for s in detector.strides]
    regions = jnp.array([[[2.0, 4, 40, 60], [0, 0, 20, 24]]])
    logits, deltas = detector.module.apply(variables, maps, regions, method="regions")
    pooled = boxes.roi_align(
        maps[:4], regions, boxes.roi_levels(regions), strides=detector.strides[:4], output_size=2
    )
    x = np.asarray(pooled[0]).transpose(0, 3, 1, 2).reshape(2, -1)  # as PyTorch's planes lie in memory
    for name in ("roi_heads.box_head.fc6", "roi_heads.box_head.fc7"):
        x = np.maximum(x @ state[f"{name}.weight"].T + state[f"{name}.bias"], 0)
    for name, ours in (("cls_score", logits[0]), ("bbox_pred", deltas[0].reshape(2, -1))):
        name = f"roi_heads.box_predictor.{name}"
        theirs = x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        theirs = np.roll(theirs, -1, axis=1) if "cls" in name else theirs[:, 4:]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["torchvision", "mmdetection"])
def test_both_ways(faster, layout):
    detector, variables = faster
    state = interop.to_state_dict(variables, detector.module, (*SIZE, 3), layout=layout)
    back = interop.from_state_dict({f"module.{k}": v for k, v in state.items()}, detector.module, (*SIZE, 3))
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    changed = {
        **state,
        next(name for name in state if name.endswith("fc6.weight") or "shared_fcs.0.w" in name): np.zeros(
            (7, 32), np.float32
        ),
    }
    with pytest.raises(UserError, match=r"^weights: .* has another architecture: .*\(7, 32\)"):
        interop.from_state_dict(changed, detector.module, (*SIZE, 3))


def test_names_of_earlier_releases_of_torchvision(faster):
    for detector, variables in (faster, (small := RetinaNet(**SMALL), drawn(small))):
        state = interop.to_state_dict(variables, detector.module, (*SIZE, 3))
        old = {}
        for name, array in state.items():
            name = name.replace("rpn.head.conv.0.0", "rpn.head.conv")
            if "_blocks" in name and "extra" not in name:
                name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
            if "_head.conv." in name:
                head, number, _, kind = name.rsplit(".", 3)
                name = f"{head}.{2 * int(number)}.{kind}"
            old[name] = array
        assert old.keys() != state.keys()
        back = interop.from_state_dict(old, detector.module, (*SIZE, 3))
        jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_a_trunk_from_weights_of_imagenet():
    detector = RetinaNet(**SMALL)
    variables = drawn(detector)
    state = interop.to_state_dict(variables, detector.module, (*SIZE, 3))
    prefix = "backbone.body."
    plain = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
    plain |= {"fc.weight": np.zeros((10, 64), np.float32), "fc.bias": np.zeros(10, np.float32)}
    trunk = feature_pyramid.make_trunk(detector)
    read = interop.read_trunk(plain, trunk, (*SIZE, 3), source="resnet.pth")
    flat, whole = (flax.traverse_util.flatten_dict(dict(tree)) for tree in (read, variables))
    assert flat.keys() == {(path[0], *path[2:]) for path in whole if path[1] == "trunk"}
    for path, leaf in flat.items():
        np.testing.assert_array_equal(leaf, whole[(path[0], "trunk", *path[1:])])
    del plain["layer2.1.bn2.running_var"]
    with pytest.raises(
        UserError, match=r"resnet.pth has another architecture: layer2.1.bn2.running_var is nothing"
    ):
        interop.read_trunk(plain, trunk, (*SIZE, 3), source="resnet.pth")


def test_a_plain_trunk_has_no_published_names():
    detector = RetinaNet.small()
    with pytest.raises(UserError, match="trunk: needs a resnet with a feature pyramid"):
        interop.to_state_dict(abstract_variables(detector.module, (32, 32, 3)), detector.module, (32, 32, 3))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # torchvision's own counts; 4 · 1025 of its Faster R-CNN's are deltas of the background, which ours leaves out.
        ("retinanet_torchvision", 34_014_999),
        ("faster_rcnn_torchvision", 41_755_286 - 4 * 1025),
        # ResNet's convolutions, pyramid, heads: 23,454,912 or 42,394,816; 3,344,384 or 7,997,952 with two extra levels; …
        ("retinanet_resnet50", 23_454_912 + 918_272 + 1_770_240 + (2048 + 256) * 256 * 9 + 512 + 4_720_640 + 1_742_580),
        ("retinanet_resnet101", 42_394_816 + 918_272 + 1_770_240 + (2048 + 256) * 256 * 9 + 512 + 4_720_640 + 1_742_580),
        ("faster_rcnn_resnet50", 23_454_912 + 3_344_384 + 593_935 + 13_895_680 + 401 * 1025),
        ("retinanet_resnet18", 11_166_912 + 896 * 256 + 768 + 1_770_240 + (512 + 256) * 256 * 9 + 512 + 4_720_640 + 1_742_580),
    ],
)  # fmt: skip
def test_published_sizes(name, parameters):
    module = published_detector(name).module
    assert parameter_count(abstract_variables(module, (64, 64, 3))) == parameters


def test_a_published_file_becomes_a_bundle(monkeypatch, tmp_path, faster):
    from safetensors.numpy import save_file

    from jaxface.models.detection import published

    detector, variables = faster
    fields = {
        name: getattr(detector, name)
        for name in ("trunk", "features", "hidden", "region_size", "proposals", "candidates")
    }
    monkeypatch.setitem(published._PUBLISHED, "faster_of_tests", (FasterRCNN, fields, 3))
    path = tmp_path / "weights.safetensors"
    save_file(interop.to_state_dict(variables, detector.module, (*SIZE, 3), layout="mmdetection"), path)
    with pytest.raises(
        UserError,
        match=r"is of a detector, whose tensors do not say its pixels and anchors; .* --network NAME",
    ):
        inference.open_bundle(path)
    bundle = inference.import_detector(path, "faster_of_tests", class_names=("cat", "dog", "cow"))
    assert bundle.class_names == ("cat", "dog", "cow") and bundle.detector == detector
    inference.save_bundle(tmp_path / "bundle", bundle)
    again = inference.open_detector(tmp_path / "bundle")
    assert again.detector == detector
    jax.tree.map(np.testing.assert_array_equal, again.variables, variables)
    with pytest.raises(UserError, match=r"has another architecture: .*cls_score.weight is \(4, 5\)"):
        inference.import_detector(path, "faster_of_tests", class_names=("cat", "dog"))
    with pytest.raises(UserError, match=r"^network: needs one of .*, got 'yolo'"):
        inference.import_detector(path, "yolo")


def test_names_of_cocos_classes():
    from jaxface.inference.bundle import coco_class_names

    assert coco_class_names(80)[0] == "person" and coco_class_names(80)[-1] == "toothbrush"
    assert coco_class_names(90)[0] == "person" and coco_class_names(91)[1] == "person"
    assert coco_class_names(91)[17] == "cat" and coco_class_names(91)[90] == "toothbrush"
    assert len(set(coco_class_names(91))) == 91 and coco_class_names(2) == ("0", "1")
