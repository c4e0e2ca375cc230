import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from object_batch import SIZE, batch

from jaxface import boxes
from jaxface.errors import UserError
from jaxface.models.detection import (
    FasterRCNN,
    Proposals,
    describe,
    from_description,
    init_variables,
    training_pass,
)

SMALL = FasterRCNN.small(
    num_classes=3,
    widths=(4, 6, 8, 8),
    features=6,
    finer=1,
    hidden=(8,),
    region_size=2,
    proposals=8,
    candidates=(12, 10),
    region_samples=8,
    proposal_samples=16,
)


@pytest.fixture(scope="module")
def variables():
    params, extra = init_variables(SMALL, jax.random.key(0), SIZE)
    return {"params": params, **extra}


@pytest.fixture(scope="module")
def trained(variables):
    run = jax.jit(lambda v, b, key: training_pass(SMALL, v, b, key))
    return run(variables, batch(), jax.random.key(1))


def test_levels_and_the_grid_of_half_the_size(variables, trained):
    assert [level.shape[1:] for level in trained.levels] == [(12, 16, 6), (6, 8, 6), (3, 4, 6)]
    half = SMALL.module.apply(variables, batch()["image"][:, ::2, ::2], method="pyramid")
    # One level earlier: the maps of half the size have the shapes of those with anchors, and both heads take them.
    assert [level.shape for level in half[:2]] == [level.shape for level in trained.levels[1:]]
    logits, deltas = SMALL.module.apply(variables, half[:2], method="proposals")
    assert logits.shape == (2, len(SMALL.anchors(SIZE))) and deltas.shape == (*logits.shape, 4)
    with pytest.raises(ValueError, match="levels: needs 2 maps, got 3"):
        SMALL.module.apply(variables, half, method="proposals")


def test_proposals_are_those_of_the_definition(trained):
    """Level by level: the best anchors, decoded, cut, suppressed; then the best of all levels."""
    logits, deltas = trained.outputs["proposal_logits"], trained.outputs["proposal_deltas"]
    logits = logits + jax.random.normal(jax.random.key(3), logits.shape)
    found = jax.jit(SMALL.propose, static_argnums=2)(logits, deltas, SIZE)
    anchors = SMALL.anchors(SIZE)
    rows, start = [], 0
    for count in (48, 12):
        part = slice(start, start + count)
        best = np.argsort(-np.asarray(logits[0, part]), kind="stable")[: min(10, count)] + start
        decoded = boxes.decode_boxes(jnp.asarray(anchors[best]), deltas[0, best], image_size=SIZE)
        stays: list[int] = []
        for i in range(len(best)):
            if all(float(boxes.box_iou(decoded[i : i + 1], decoded[j : j + 1])[0, 0]) <= 0.7 for j in stays):
                stays.append(i)
        rows += [(float(logits[0, best[i]]), np.asarray(decoded[i])) for i in stays]
        start += count
    rows = sorted(rows, key=lambda row: -row[0])[:8]
    assert int(found.valid[0].sum()) == len(rows)
    np.testing.assert_allclose(found.boxes[0, : len(rows)], [box for _, box in rows], atol=1e-4)
    np.testing.assert_allclose(
        found.scores[0, : len(rows)], jax.nn.sigmoid(jnp.array([score for score, _ in rows])), rtol=1e-5
    )


def test_the_sample_has_objects_first_and_no_more_than_a_quarter(trained):
    sample = trained.outputs["sample"]
    truth = batch()
    for image in range(2):
        labels = np.asarray(sample.labels[image])
        assert (labels > 0).sum() <= 2 and (np.diff((labels > 0).astype(int)) <= 0).all()
        for i in np.flatnonzero(labels > 0):
            k = int(sample.assigned[image, i]) - 1
            assert labels[i] == truth["box_label"][image, k] + 1
            overlap = boxes.box_iou(sample.boxes[image, i : i + 1], truth["boxes"][image, k : k + 1])
            assert float(overlap[0, 0]) >= 0.5
    assert (sample.labels[0] > 0).sum() == 2  # the objects are proposals themselves
    assert (sample.labels[1] <= 0).all()
    unseen = Proposals(*(trained.outputs["proposals"]))
    alone = SMALL.sample_regions(unseen, truth, jax.random.key(0), add_objects=False)
    assert not any(bool((box == truth["boxes"][0, 0]).all()) for box in alone.boxes[0])


def test_targets_of_regions_by_hand():
    truth = batch()
    regions = jnp.stack([truth["boxes"][:, 0], truth["boxes"][:, 0] + 100.0], axis=1)
    targets = SMALL.region_targets(regions, jnp.array([[True, True], [True, False]]), truth)
    np.testing.assert_array_equal(targets.labels, [[3, 0], [0, -1]])
    np.testing.assert_allclose(targets.deltas[0, 0], 0.0, atol=1e-6)


@pytest.mark.slow
def test_gradients_reach_both_heads_and_the_trunk_and_no_proposal(variables):
    @jax.jit
    def gradients(variables):
        return jax.grad(
            lambda params: (
                training_pass(SMALL, {**variables, "params": params}, batch(), jax.random.key(1)).loss
            )
        )(variables["params"])

    sizes = {
        name: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))
        for name, tree in gradients(variables).items()
    }
    assert all(size > 0 for size in sizes.values()) and np.isfinite(list(sizes.values())).all()

    def of_boxes(regions):
        levels = [jnp.ones((1, 6, 8, 6)), jnp.ones((1, 3, 4, 6))]
        return SMALL.module.apply(variables, levels, regions, method="regions")[1].sum()

    assert (jax.grad(of_boxes)(jnp.array([[[0.0, 0, 9, 9]]])) == 0).all()


def test_detections_decode_the_boxes_of_their_class(variables):
    outputs = {
        "boxes": jnp.array([[[4.0, 4, 14, 14], [4, 4, 14, 14], [0, 0, 8, 8]]]),
        "valid": jnp.array([[True, True, False]]),
        "class_logits": jnp.array([[[5.0, 0, 0, 0], [0, 0, 6.0, 0], [9.0, 0, 0, 0]]]),
        "box_deltas": jnp.zeros((1, 3, 3, 4)).at[0, 1, 2, 0].set(2.0),  # 0.2 widths to the right
    }
    found = SMALL.detect(outputs, SIZE, score_threshold=0.5)
    assert found.valid[0].sum() == 2  # what is no proposal is no detection
    np.testing.assert_array_equal(found.classes[0, :2], [2, 0])
    np.testing.assert_allclose(found.boxes[0, :2], [[4, 6, 14, 16], [4, 4, 14, 14]], atol=1e-5)


@pytest.mark.slow
def test_the_module_is_its_parts(variables):
    image = batch()["image"]
    outputs = jax.jit(SMALL.module.apply)(variables, image)
    levels = SMALL.anchor_levels(SMALL.module.apply(variables, image, method="pyramid"))
    found = SMALL.propose(*SMALL.module.apply(variables, levels, method="proposals"), SIZE)
    np.testing.assert_allclose(outputs["boxes"], found.boxes, atol=1e-4)
    logits, _ = SMALL.module.apply(variables, levels, found.boxes, method="regions")
    np.testing.assert_allclose(outputs["class_logits"], logits, atol=1e-4)
    assert outputs["class_logits"].shape[-1] == 4
    loss, _ = SMALL.loss(outputs, batch())
    assert np.isfinite(loss)


def test_the_focal_head_has_no_background(variables):
    focal = dataclasses.replace(SMALL, focal=True, class_weight=10.0)
    params, _ = init_variables(focal, jax.random.key(0), SIZE)
    assert params["class_logits"]["kernel"].shape == (8, 3)
    np.testing.assert_allclose(jax.nn.sigmoid(params["class_logits"]["bias"]), 0.01, rtol=1e-5)


def test_a_description_and_back():
    assert from_description(describe(SMALL)) == SMALL


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"region_levels": 3}, "region_levels: needs at most the 2 levels with anchors, got 3"),
        ({"proposal_iou": (0.7, 0.3)}, r"proposal_iou: needs low <= high, got \(0.7, 0.3\)"),
        ({"candidates": (5,)}, r"candidates: needs two numbers, got \(5,\)"),
        ({"finer": 2}, "strides: needs a first one of 2, 4, 8, got 1"),
    ],
)
def test_refusals(fields, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(SMALL, **fields)
