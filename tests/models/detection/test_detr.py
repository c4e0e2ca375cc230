"""DETR and SMCA: published sizes, what the outputs mean, the loss over a batch, and few bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxface import data, losses
from jaxface.boxes import boxes_of_normalized
from jaxface.errors import UserError
from jaxface.hardware import low_bit_cost
from jaxface.interop.architecture import abstract_variables
from jaxface.layers import calibrate, query_spread
from jaxface.models import parameter_count
from jaxface.models.detection import (
    Detr,
    create_detector,
    describe,
    detector_outputs,
    from_description,
    init_variables,
    published_detector,
    training_pass,
)
from jaxface.models.detection.detr import detr_cost, query_spreads, with_spreads
from jaxface.models.transformers.quantized import matrix_products

SMALL = Detr(num_classes=3, dim=8, heads=2, hidden=8, encoder_layers=1, decoder_layers=2, queries=4)


@pytest.fixture(scope="module")
def batch():
    source = data.object_scenes(3, things="shapes", sizes=(10, 16), noise=0.1, seed=0)
    rows = {name: jnp.stack([source[i][name] for i in range(3)]) for name in source[0]}
    return {**rows, "image": rows["image"] / 127.5 - 1}


@pytest.fixture(scope="module")
def small():
    return init_variables(SMALL, jax.random.key(0), (32, 32))[0]


def test_published_sizes():
    """41.5 million parameters as published: those of the trunk's convolutions, and of the rest by arithmetic."""
    detector = published_detector("detr_resnet50")
    shapes = abstract_variables(detector.module, (64, 64, 3))
    attention, hidden = 4 * (256 * 256 + 256), 2 * 256 * 2048 + 2048 + 256
    encoder, decoder = attention + hidden + 2 * 512, 2 * attention + hidden + 3 * 512
    heads = 256 * 92 + 92 + 2 * (256 * 256 + 256) + 256 * 4 + 4
    rest = 6 * encoder + 6 * decoder + 512 + 2048 * 256 + 256 + 100 * 256 + heads
    assert parameter_count(shapes["params"]["backbone"]) == 23_454_912  # ResNet-50's convolutions
    assert parameter_count(shapes) == 23_454_912 + rest == 41_524_768
    assert shapes["params"]["class"]["kernel"].shape == (256, 92)


def test_smca_has_its_looks_besides():
    shapes = [
        abstract_variables(published_detector(name).module, (64, 64, 3))
        for name in ("detr_resnet50", "smca_resnet50")
    ]
    looks = 6 * (512 + 2 * (256 * 16 + 16)) + 2 * (256 * 256 + 256) + 256 * 2 + 2
    queries, classes = 200 * 256, 256 + 1  # 300 for 100; no "no object"
    assert parameter_count(shapes[1]) - parameter_count(shapes[0]) == looks + queries - classes


@pytest.mark.parametrize(
    "fields",
    [{}, pytest.param({"query_form": "learned"}, marks=pytest.mark.slow), {"gaussian": True, "focal": True}],
)
def test_outputs_loss_and_detections(batch, fields):
    detector = dataclasses.replace(SMALL, **fields)
    params, extra = init_variables(detector, jax.random.key(0), (32, 32))
    assert not extra

    def run(params):
        trained = training_pass(detector, {"params": params}, batch, jax.random.key(0))
        return trained.loss, (trained.outputs, trained.report)

    (loss, (outputs, report)), slope = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    shapes = {name: value.shape for name, value in outputs.items()}
    classes = 3 if detector.focal else 4
    assert shapes == {"class_logits": (3, 2, 4, classes), "boxes": (3, 2, 4, 4), "attended": (3, 2, 4, 8)}
    assert np.all((outputs["boxes"] >= 0) & (outputs["boxes"] <= 1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    assert float(length(slope)) > 0.1

    # The loss is the sum over the layers, each with its own matching.
    target = batch["boxes"], batch["box_label"], batch["box_mask"]
    total = 0.0
    for i in range(2):
        logits, boxes = outputs["class_logits"][:, i], outputs["boxes"][:, i]
        matches = jnp.stack(
            [
                losses.detr_match(a, b, *(t[j] for t in target), (32, 32), focal=detector.focal)
                for j, (a, b) in enumerate(zip(logits, boxes, strict=True))
            ]
        )
        size = jnp.full((3, 2), 32.0)
        terms = losses.detr_loss(logits, boxes, *target, size, matches, focal=detector.focal)
        total += terms.total
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(report["box_loss"], terms.box, rtol=1e-5)

    found = detector.detect(outputs, (32, 32), score_threshold=0.0, max_outputs=4)
    assert found.valid.all() and found.landmarks is None
    scores = jax.nn.sigmoid(outputs["class_logits"][:, -1])
    if not detector.focal:
        scores = jax.nn.softmax(outputs["class_logits"][:, -1])[..., :-1]
    np.testing.assert_allclose(found.scores[:, 0], scores.max((1, 2)), rtol=1e-6)
    assert np.all(np.diff(found.scores, axis=1) <= 0)


def length(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        pytest.param({"query_form": "learned", "weight_bits": 4}, marks=pytest.mark.slow),
        pytest.param({"gaussian": True, "focal": True}, marks=pytest.mark.slow),
    ],
)
def test_padding_is_not_seen(batch, fields):
    """An image says the same whatever it is padded with, and on whichever canvas: boxes are relative to the image."""
    detector = dataclasses.replace(SMALL, **fields)
    whole = batch["image"][:2, :28, :24]
    bounds, size = jnp.array([[28, 24]] * 2), (48, 64)
    noise = jax.random.uniform(jax.random.key(1), (2, *size, 3), minval=-1.0)
    padded = noise.at[:, :28, :24].set(whole)
    params, extra = init_variables(detector, jax.random.key(0), size)
    variables = {"params": params, **extra}
    if detector.weight_bits:
        variables = calibrate(detector.module, variables, whole, train=False)
    run = jax.jit(lambda image, valid: detector_outputs(detector, variables, image, valid))
    alone, there = run(whole, None), run(padded, bounds)
    for name, values in alone.items():
        np.testing.assert_allclose(there[name], values, atol=2e-4, err_msg=name)
    assert np.abs(run(padded, None)["boxes"] - alone["boxes"]).max() > 2e-3
    found = [
        detector.detect(alone, (28, 24), score_threshold=0.0),
        detector.detect(there, size, valid_size=bounds, score_threshold=0.0),
    ]
    np.testing.assert_allclose(found[1].boxes, found[0].boxes, atol=2e-2)
    record = {name: value[:2] for name, value in batch.items()}
    losses_of = [
        detector.loss(outputs, {**record, "image": image, "image_size": bounds})[0]
        for outputs, image in ((alone, whole), (there, padded))
    ]
    assert float(losses_of[1]) == pytest.approx(float(losses_of[0]), rel=1e-4)


def test_a_grid_of_queries_looks_everywhere(small, batch):
    params = jax.tree.map(jnp.zeros_like, small)
    boxes = SMALL.module.apply({"params": params}, batch["image"])["boxes"][0, 0]
    np.testing.assert_allclose(
        boxes[:, :2], [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]], atol=1e-6
    )
    np.testing.assert_allclose(boxes[:, 2:], 0.5)


def test_nothing_is_suppressed_and_the_image_is_the_unit():
    logits = jnp.log(
        jnp.array([[0.7, 0.1, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.2, 0.6, 0.1, 0.1]])
    )
    boxes = jnp.tile(jnp.array([0.5, 0.25, 0.2, 0.5]), (4, 1))
    found = SMALL.detect(
        {"class_logits": logits[None, None], "boxes": boxes[None, None]}, (40, 100), score_threshold=0.3
    )
    assert found.valid[0].sum() == 3 and found.classes[0, :3].tolist() == [0, 0, 1]
    np.testing.assert_allclose(found.boxes[0, 0], boxes_of_normalized(boxes[0], (40, 100)), atol=1e-4)


def test_crowds_are_no_objects(small, batch):
    outputs = SMALL.module.apply({"params": small}, batch["image"])
    crowd = {**batch, "box_crowd": batch["box_mask"]}
    without = {**batch, "box_mask": jnp.zeros_like(batch["box_mask"])}
    assert SMALL.loss(outputs, crowd)[0] == SMALL.loss(outputs, without)[0] != SMALL.loss(outputs, batch)[0]


def test_a_description_is_its_detector():
    detector = dataclasses.replace(SMALL, weight_bits=2, align_query="both", quantized=("decoder",))
    assert from_description(describe(detector)) == detector


BITS = dataclasses.replace(SMALL, weight_bits=2, input_bits=3, attention_bits=8, align_query="cross")


def test_what_has_few_bits():
    """Weights 2, inputs 3, attention 8; the first convolution 8; input, heads, queries and normalizations float."""
    rows = {row.name: (row.weight_bits, row.input_bits) for row in matrix_products(BITS.module, (32, 32, 3))}
    assert rows["backbone/stem_conv"] == (8, 8) and rows["backbone/conv1"] == (2, 3)
    linear = [name for name in rows if name.startswith(("encoder", "decoder")) and "mix" not in name]
    assert len(linear) == 1 * 6 + 2 * 10 and {rows[name] for name in linear} == {(2, 3)}
    assert {bits for name, bits in rows.items() if "mix" in name} == {(8, 8)}
    floats = {name for name, bits in rows.items() if bits == (32, 32)}
    assert floats == {"input", "class", "box/layer1", "box/layer2", "box/layer3"}
    first = dataclasses.replace(BITS, quantized=("backbone",))
    few = {row.name for row in matrix_products(first.module, (32, 32, 3)) if row.weight_bits < 32}
    assert few == {"backbone/stem_conv", "backbone/conv1"}


def test_quantized_parameters_are_the_float_ones_and_the_quantizers():
    shapes = [abstract_variables(d.module, (32, 32, 3))["params"] for d in (SMALL, BITS)]
    names = [
        {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in shapes
    ]
    more = names[1] - names[0]
    assert names[0] < names[1] and all("quantizer" in name or "rectify_query" in name for name in more)
    assert {name.split("']")[1][2:] for name in more if "rectify" in name} == {"cross"}


def test_alignments_start_at_the_spread_of_the_float_queries(small, batch):
    params = init_variables(BITS, jax.random.key(0), (32, 32))[0]
    spreads = query_spreads(SMALL.module, {"params": small}, batch["image"])
    assert len(spreads) == 1 + 2 * 2
    started = with_spreads(params, spreads)
    scale = started["decoder2"]["cross"]["mix"]["rectify_query"]["scale"]
    np.testing.assert_allclose(scale, spreads["decoder2", "cross", "mix"])
    assert np.all(params["decoder2"]["cross"]["mix"]["rectify_query"]["scale"] == 1)
    assert float(scale[0]) != 1 and query_spread(jnp.zeros(4)) > 0


def test_eight_bits_are_nearly_the_float_network(small, batch):
    eight = dataclasses.replace(BITS, weight_bits=8, input_bits=8, align_query="no")
    fresh = init_variables(eight, jax.random.key(0), (32, 32))[0]
    flat = {**flatten_dict(fresh), **flatten_dict(small)}
    variables = calibrate(eight.module, {"params": unflatten_dict(flat)}, batch["image"])
    found = eight.module.apply(variables, batch["image"])
    exact = SMALL.module.apply({"params": small}, batch["image"])
    error = float(jnp.linalg.norm(found["boxes"] - exact["boxes"]) / jnp.linalg.norm(exact["boxes"] - 0.5))
    assert 1e-5 < error < 0.1


@pytest.mark.slow
def test_the_theoretical_speed():
    """Source: 6.6 times with 4-4-8 bits, of operations that count b/32 for a product of b bits. Of the products alone it is 7.3;
    with the elementwise float operations, and one for every activation that is quantized, 6.6."""
    plain = published_detector("detr_resnet50")
    few = dataclasses.replace(plain, weight_bits=4, input_bits=4, align_query="cross")
    costs = [detr_cost(detector, (800, 1088)) for detector in (plain, few)]
    assert costs[0].macs == costs[1].macs == 82_167_910_400
    assert costs[0].operations / costs[1].operations == pytest.approx(6.6, abs=0.05)
    products = low_bit_cost(matrix_products(few.module, (800, 1088, 3)))
    assert costs[0].macs / products.operations == pytest.approx(7.26, abs=0.01)
    assert costs[0].weight_bytes == 4 * (41_524_768 - bare_parameters(plain))
    assert costs[0].weight_bytes / costs[1].weight_bytes == pytest.approx(7.17, abs=0.01)


def bare_parameters(detector):
    """Biases, normalizations and queries: what no product has."""
    params = abstract_variables(detector.module, (64, 64, 3))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in leaves if path[-1].key != "kernel")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queries": 5}, "queries: need a square number for a grid, got 5"),
        ({"dim": 30}, "dim: needs a multiple of 4 and of heads, 4, got 30"),
        ({"weight_bits": 1}, "weight_bits: needs"),
        ({"attention_bits": 9}, "attention_bits: needs"),
        ({"backbone": "vgg"}, "backbone: needs one of patches, resnet18, resnet50, resnet101, got 'vgg'"),
        ({"quantized": ("head",)}, "quantized: needs"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(UserError, match=f"^{message}"):
        create_detector("detr", **fields)
