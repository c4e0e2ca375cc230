import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from object_batch import SIZE, batch

from jaxface import boxes, losses
from jaxface.errors import UserError
from jaxface.models.detection import RetinaNet, describe, from_description, init_variables, training_pass

TWO = RetinaNet.small(
    num_classes=3, strides=(4, 8), widths=(4, 6, 8), steps=(2, 2, 2), features=5, head_convs=1, head_kernel=3
)


@pytest.fixture(scope="module")
def trained():
    params, extra = init_variables(TWO, jax.random.key(0), SIZE)
    variables = {"params": params, **extra}
    return variables, jax.jit(lambda v, b: training_pass(TWO, v, b, jax.random.key(0)))(variables, batch())


def test_levels_outputs_and_their_order(trained):
    variables, result = trained
    assert [level.shape for level in result.levels] == [(2, 6, 8, 5), (2, 3, 4, 5)]
    count = (6 * 8 + 3 * 4) * 4
    assert TWO.anchors(SIZE).shape == (count, 4)
    assert {name: value.shape for name, value in result.outputs.items()} == {
        "class_logits": (2, count, 3),
        "box_deltas": (2, count, 4),
    }
    # A change at a cell of the finer level changes the anchors of that cell and its neighbors alone.
    changed = (result.levels[0].at[0, 2, 5].add(1.0), result.levels[1])
    moved = TWO.module.apply(variables, changed, method="heads")["box_deltas"] - result.outputs["box_deltas"]
    rows = np.flatnonzero(np.abs(moved[0]).max(-1) > 0)
    cells = {(int(row) // 4 // 8, int(row) // 4 % 8) for row in rows}
    assert (2, 5) in cells and all(abs(y - 2) <= 2 and abs(x - 5) <= 2 for y, x in cells)
    fine, coarse = TWO.split_levels(result.outputs["box_deltas"], SIZE)
    assert fine.shape == (2, 6, 8, 4, 4) and coarse.shape == (2, 3, 4, 4, 4)
    np.testing.assert_array_equal(fine[1, 2, 3, 1], result.outputs["box_deltas"][1, (2 * 8 + 3) * 4 + 1])


def test_every_class_begins_at_the_prior(trained):
    scores = jax.nn.sigmoid(trained[1].outputs["class_logits"])
    assert np.allclose(scores, 0.01, atol=0.004)


def test_the_loss_is_the_librarys_on_the_detectors_own_targets(trained):
    _, result = trained
    assigned, labels, deltas = TWO.targets(batch())
    expected = boxes.max_iou_assign(
        jnp.asarray(TWO.anchors(SIZE)), batch()["boxes"][0], batch()["box_mask"][0]
    )
    np.testing.assert_array_equal(assigned[0], expected)
    assert set(np.unique(assigned[0])) >= {0, 1, 2} and (assigned[1] == 0).all()
    np.testing.assert_array_equal(labels[0], np.select([expected == 1, expected == 2], [3, 1], expected))
    outputs = result.outputs
    terms = losses.retinanet_loss(outputs["class_logits"], labels, outputs["box_deltas"], deltas)
    np.testing.assert_allclose(result.loss, terms.total, rtol=1e-6)
    assert result.report["positives"] * 2 == (labels > 0).sum()
    # Padding of an image and regions to ignore count neither way.
    narrow = {**batch(), "image_size": jnp.array([[24, 16], [24, 32]])}
    _, labels, _ = TWO.targets(narrow)
    fine = TWO.split_levels(labels, SIZE)[0]
    assert (fine[0, :, 4:] == -1).all() and (fine[0, :, :4] != -1).any()


def test_detections_are_the_best_boxes_of_each_class():
    detector = RetinaNet.small(num_classes=2)
    anchors = detector.anchors((32, 32))
    logits = np.full((1, len(anchors), 2), -9.0, np.float32)
    middle = [(row * 8 + column) * 4 for row, column in ((3, 3), (3, 3), (6, 6))]
    logits[0, middle[0] + 1, 0], logits[0, middle[1] + 2, 0], logits[0, middle[2], 1] = 3.0, 2.0, 1.0
    outputs = {"class_logits": logits, "box_deltas": np.zeros((1, len(anchors), 4), np.float32)}
    found = jax.jit(detector.detect, static_argnums=1)(outputs, (32, 32))
    assert found.valid[0].sum() == 2  # the second overlaps the first
    np.testing.assert_array_equal(found.classes[0, :2], [0, 1])
    np.testing.assert_allclose(found.scores[0, :2], jax.nn.sigmoid(jnp.array([3.0, 1.0])), rtol=1e-6)
    np.testing.assert_allclose(found.boxes[0, 0], np.clip(anchors[middle[0] + 1], 0, 32), atol=1e-4)


def test_a_description_and_back():
    assert from_description(describe(TWO)) == TWO


def test_torchvisions_anchors_are_whole():
    spec = boxes.AnchorSpec(strides=(8,), whole=True)
    first = boxes.make_anchors([(1, 1)], spec)
    # 32, 40 and 50 pixels; height over width 0.5, 1 and 2, as torchvision rounds them.
    expected = [(11, 23), (14, 28), (18, 35), (16, 16), (20, 20), (25, 25), (23, 11), (28, 14), (35, 18)]
    np.testing.assert_array_equal(first, [(-h, -w, h, w) for h, w in expected])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"trunk": "vgg"}, "trunk: needs one of plain, resnet18, resnet50, resnet101.*, got 'vgg'"),
        ({"pixels": "lab"}, "pixels: needs one of centered, imagenet, caffe, got 'lab'"),
        ({"strides": (4, 16)}, r"strides: needs each twice the one before, got \(4, 16\)"),
        ({"strides": (16, 32)}, "strides: needs a first one of 2, 4, got 16"),
        ({"strides": (4, 8)}, "features: needs channels where levels go beyond the trunk's 4"),
        ({"steps": (2, 2)}, "steps: needs one for each of the 3 widths, got 2"),
        ({"head_kernel": 2}, "head_kernel: needs an odd number, got 2"),
        ({"background_iou": 0.6}, "background_iou: needs at most match_iou 0.5, got 0.6"),
        ({"extra_from": "stem"}, "extra_from: needs one of trunk, pyramid, pool, got 'stem'"),
    ],
)
def test_refusals(fields, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(RetinaNet.small(), **fields)
