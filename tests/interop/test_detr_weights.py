"""DETR and SMCA under the names of their published weights: a file of random tensors in, a network, and the file again."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxface import inference, interop
from jaxface.errors import UserError
from jaxface.interop.architecture import abstract_variables
from jaxface.models.detection import Detr, published_detector

SMALL = dict(dim=8, heads=2, hidden=6, queries=5, encoder_layers=2, decoder_layers=2, num_classes=4)


@pytest.fixture(scope="module", params=["detr_resnet50", "smca_resnet50"])
def given(request):
    """(detector, state dict): a small transformer behind a ResNet-18, random tensors."""
    detector = published_detector(request.param, backbone="resnet18", **SMALL)
    shapes = abstract_variables(detector.module, (32, 32, 3))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) ** 2, shapes)
    return detector, variables, interop.to_state_dict(variables, detector.module, (32, 32, 3))


def test_names_and_shapes_are_the_published_ones(given):
    detector, _, state = given
    shapes = {name: array.shape for name, array in state.items()}
    expected = {
        "transformer.encoder.layers.1.self_attn.in_proj_weight": (24, 8),
        "transformer.decoder.layers.0.multihead_attn.in_proj_bias": (24,),
        "transformer.decoder.layers.1.self_attn.out_proj.weight": (8, 8),
        "transformer.encoder.layers.0.linear1.weight": (6, 8),
        "transformer.decoder.layers.1.norm3.weight": (8,),
        "transformer.decoder.norm.bias": (8,),
        "class_embed.weight": (4 if detector.focal else 5, 8),
        "bbox_embed.layers.2.weight": (4, 8),
        "query_embed.weight": (5, 8),
        "input_proj.weight": (8, 512, 1, 1),
        "backbone.0.body.layer2.0.downsample.1.running_var": (128,),
        "backbone.0.body.conv1.weight": (64, 3, 7, 7),
    }
    assert {name: shapes[name] for name in expected} == expected
    looks = {name for name in shapes if "point" in name or "norm4" in name}
    assert len(looks) == (2 * 6 + 6 if detector.gaussian else 0)


def test_out_and_in_again(given):
    detector, variables, state = given
    again = interop.from_state_dict(state, detector.module, (32, 32, 3))
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_what_each_row_of_a_projection_is(given):
    detector, variables, state = given
    stacked = state["transformer.decoder.layers.0.multihead_attn.in_proj_weight"]
    for rows, name in zip(np.split(stacked, 3), ("query", "key", "value"), strict=True):
        np.testing.assert_array_equal(rows.T, variables["params"]["decoder1"]["cross"][name]["kernel"])


def test_another_architecture_is_named(given):
    detector, _, state = given
    name = "transformer.encoder.layers.0.self_attn.in_proj_weight"
    with pytest.raises(UserError, match=r"self_attn\.q_proj\.weight"):
        interop.from_state_dict({**state, name: state[name][:, :4]}, detector.module, (32, 32, 3))
    with pytest.raises(UserError, match="class_embed"):
        interop.from_state_dict(
            {k: v for k, v in state.items() if k != "class_embed.bias"}, detector.module, (32, 32, 3)
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "patches"}, "backbone: needs a resnet"),
        ({"query_form": "grid", "queries": 4}, "weights: need a float network with learned queries"),
        ({"weight_bits": 4}, "weights: need a float network with learned queries"),
    ],
)
def test_what_has_no_names(fields, message):
    module = published_detector("detr_resnet50", **{**SMALL, "backbone": "resnet18", **fields}).module
    with pytest.raises(UserError, match=f"^{message}"):
        interop.from_state_dict({}, module, (32, 32, 3))


def test_bundles_of_few_bits_open_again(tmp_path):
    detector = Detr(num_classes=1, dim=8, heads=2, hidden=8, decoder_layers=1, queries=4, weight_bits=2)
    shapes = abstract_variables(detector.module, (32, 32, 3))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    starts = interop.state_dict.quantizer_starts(
        {
            ("params", *(key.key for key in path)): 0
            for path, _ in jax.tree_util.tree_leaves_with_path(shapes["params"])
        },
        {},
    )
    assert len(starts) > 20
    for path in starts:
        tree = variables
        for key in path[:-1]:
            tree = tree.setdefault(key, {})
        tree[path[-1]] = np.float32(0.5)
    bundle = inference.DetectorBundle(
        detector=detector, variables=variables, image_size=32, class_names=("shape",)
    )
    inference.save_bundle(tmp_path / "b", bundle)
    opened = inference.open_detector(tmp_path / "b")
    assert opened.detector == detector
    jax.tree.map(np.testing.assert_array_equal, dict(opened.variables), variables)
    del variables["quantization"]["decoder1"]["cross"]["mix"]["key_quantizer"]
    broken = dataclasses.replace(bundle, variables=variables)
    inference.save_bundle(tmp_path / "c", broken)
    with pytest.raises(UserError, match=r"key_quantizer"):
        inference.open_detector(tmp_path / "c")
