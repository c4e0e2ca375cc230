import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.errors import UserError
from jaxface.losses.yolo import responsible_anchors

SIZES, STRIDE = ((20.0, 10.0), (40.0, 60.0)), 32


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def iou(a, b):
    shared = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def by_loops(outputs, boxes, labels, *, ignore=0.6, rescore=True):
    """The four terms of one image in float64, one cell and one anchor after the other, as darknet goes."""
    height, width, anchors = outputs.shape[:3]
    predicted = np.zeros((height, width, anchors, 4))
    for i, j, n in np.ndindex(height, width, anchors):
        tx, ty, tw, th = outputs[i, j, n, :4]
        y, x = (sigmoid(ty) + i) * STRIDE, (sigmoid(tx) + j) * STRIDE
        h, w = SIZES[n][0] * np.exp(th), SIZES[n][1] * np.exp(tw)
        predicted[i, j, n] = y - h / 2, x - w / 2, y + h / 2, x + w / 2
    owner = {}
    for k, box in enumerate(boxes):
        center, extent = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        i, j = np.clip((center // STRIDE).astype(int), 0, [height - 1, width - 1])
        shapes = [iou(np.r_[0, 0, extent], np.r_[0, 0, size]) for size in SIZES]
        owner[i, j, int(np.argmax(shapes))] = k
    terms = np.zeros(4)
    for cell in np.ndindex(height, width, anchors):
        out, score = outputs[cell], sigmoid(outputs[cell][4])
        if cell not in owner:
            if max((iou(predicted[cell], box) for box in boxes), default=0) < ignore:
                terms[2] += score**2
            continue
        box = boxes[owner[cell]]
        center, extent = (box[:2] + box[2:]) / 2 / STRIDE, box[2:] - box[:2]
        wanted = [center[1] - cell[1], center[0] - cell[0]]
        wanted += [np.log(extent[1] / SIZES[cell[2]][1]), np.log(extent[0] / SIZES[cell[2]][0])]
        given = [sigmoid(out[0]), sigmoid(out[1]), out[2], out[3]]
        terms[0] += np.sum((np.array(given) - wanted) ** 2)
        terms[1] += 5 * (score - (iou(predicted[cell], box) if rescore else 1)) ** 2
        terms[3] -= out[5 + labels[owner[cell]]] - np.log(np.sum(np.exp(out[5:])))
    return terms


@pytest.fixture(scope="module")
def example():
    """Two images of 3 x 4 cells: one with three objects, two of which share a responsible anchor, and one with none."""
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(2, 3, 4, 2, 7))
    # The second object is the prediction of a neighboring cell, nearly: it is no background there.
    boxes = np.array([[10, 70, 30, 80], [34, 30, 74, 96], [12, 66, 33, 77], [0, 0, 1, 1]], float)
    y, x = (np.array([54, 63]) / STRIDE) - [1, 2]
    outputs[0, 1, 2, 1, :4] = np.log(max(x, 0.02) / (1 - max(x, 0.02))), np.log(y / (1 - y)), 0.1, 0
    return (
        outputs,
        np.stack([boxes, boxes]),
        np.array([[True] * 3 + [False], [False] * 4]),
        np.array([[0, 1, 1, 0]] * 2),
    )


@functools.partial(jax.jit, static_argnames=("rescore", "object_weight", "background_weight", "ignore_iou"))
def compiled(outputs, boxes, mask, labels, **options):
    return losses.yolo_loss(outputs, boxes, mask, labels, anchor_sizes=SIZES, stride=STRIDE, **options)


def terms_of(example, **options):
    outputs, *rest = (jnp.asarray(x) for x in example)
    return compiled(outputs.astype(jnp.float32), *rest, **options)


def test_is_the_sum_over_cells_and_anchors(example):
    outputs, boxes, mask, labels = example
    for options in ({}, {"rescore": False}):
        expected = np.mean(
            [
                by_loops(o, b[m], l, **options)
                for o, b, m, l in zip(outputs, boxes, mask, labels, strict=True)
            ],
            axis=0,
        )
        terms = terms_of(example, **options)
        np.testing.assert_allclose(terms[1:5], expected, rtol=1e-5)
        np.testing.assert_allclose(terms.total, expected.sum(), rtol=1e-5)
    # A prediction that overlaps an object is no background.
    assert expected[2] < np.mean(
        [by_loops(outputs[0], boxes[0][:3], labels[0], ignore=1.1)[2], expected_empty(outputs)]
    )


def expected_empty(outputs):
    return np.sum(sigmoid(outputs[1, ..., 4]) ** 2)


def test_who_is_responsible(example):
    """Row 0, column 2, the small anchor twice; then row 1, column 1, the large one; a center on the far edge is inside."""
    centers = np.concatenate([example[1][0][:3], [[86.0, 118, 106, 138]]])
    rows = jax.jit(lambda boxes: responsible_anchors(boxes, SIZES, (3, 4), STRIDE))(centers)
    np.testing.assert_array_equal(rows[:3], [4, (1 * 4 + 1) * 2 + 1, 4])
    assert rows[3] // 2 == 11


def test_what_the_right_answer_costs():
    """Outputs that are the object cost nothing but what is far from 0 elsewhere."""
    box = np.array([30.0, 40, 62, 88])
    center, extent = (box[:2] + box[2:]) / 2 / STRIDE, box[2:] - box[:2]
    outputs = np.full((1, 3, 4, 2, 6), -30.0)
    y, x = center - [1, 2]
    outputs[0, 1, 2, 1] = [
        np.log(x / (1 - x)) if x else -30, np.log(y / (1 - y)), np.log(extent[1] / 60), np.log(extent[0] / 40), 30, 0
    ]  # fmt: skip
    example = outputs, box[None, None], np.array([[True]]), np.array([[0]])
    terms = terms_of(example)
    np.testing.assert_allclose(terms[:5], 0, atol=1e-6)
    assert terms.overlap == pytest.approx(1, abs=1e-5)
    decoded = jax.jit(lambda o: losses.decode_yolo(o, SIZES, STRIDE))(jnp.asarray(outputs, jnp.float32))
    np.testing.assert_allclose(decoded.boxes[0, 1, 2, 1], box, atol=1e-3)


def test_regions_and_margins_that_count_neither_way(example):
    outputs, boxes, mask, labels = example
    everything = np.array([[[0.0, 0, 96, 128]]])
    empty = outputs[:1] * 0.1, everything, np.array([[True]]), labels[:1, :1]
    assert terms_of(empty, box_crowd=jnp.array([[True]])).total == 0
    none = (outputs[:1], everything, np.array([[False]]), labels[:1, :1])
    whole, part = (terms_of(none, image_size=jnp.array([size])).background for size in ((96, 128), (96, 64)))
    np.testing.assert_allclose(whole, np.sum(sigmoid(outputs[0, ..., 4]) ** 2), rtol=1e-5)
    np.testing.assert_allclose(part, np.sum(sigmoid(outputs[0, :, :2, :, 4]) ** 2), rtol=1e-5)


def test_gradients_are_finite_and_stop_at_the_target(example):
    outputs, boxes, mask, labels = (jnp.asarray(x) for x in example)
    extreme = outputs.astype(jnp.float32).at[0, 0, 2, 0].set(100.0).at[0, 1, 1].set(-100.0)
    degenerate = boxes.at[0, 2].set(jnp.array([20.0, 20, 20, 20]))

    def loss(outputs, terms=slice(0, 1)):
        return losses.yolo_loss(outputs, degenerate, mask, labels, anchor_sizes=SIZES, stride=STRIDE)[terms][
            0
        ]

    assert np.isfinite(jax.jit(jax.grad(loss))(extreme)).all()
    objects = jax.jit(jax.grad(lambda o: loss(o, slice(2, 3))))(outputs.astype(jnp.float32))
    assert not objects[..., :4].any() and objects[..., 4].any()


def test_anchors_of_a_set_of_boxes():
    rng = np.random.default_rng(3)
    true = np.array([(12.0, 10.0), (40.0, 30.0), (50.0, 120.0), (160.0, 130.0)])
    sizes = np.concatenate([size * rng.uniform(0.9, 1.1, (60, 2)) for size in true])
    np.testing.assert_allclose(losses.cluster_anchors(rng.permutation(sizes), 4), true, rtol=0.05)
    alone = losses.cluster_anchors(sizes, 1)
    np.testing.assert_allclose(alone[0], sizes.mean(axis=0))
    np.testing.assert_array_equal(losses.cluster_anchors([(3, 4)] * 3, 2), [(3, 4)] * 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: losses.cluster_anchors([(1, 1)], 2),
            "sizes: needs at least as many boxes as anchors, 2; got 1",
        ),
        (lambda: losses.cluster_anchors([(1, 0)], 1), "sizes: needs positive heights and widths"),
        (lambda: losses.cluster_anchors([(1, 1)], 0), "count: needs an integer from 1, got 0"),
        (
            lambda: losses.decode_yolo(jnp.ones((1, 2, 2, 1, 6)), SIZES, 32),
            "outputs: needs .B, h, w, 2, 5 . C. for 2",
        ),
        (lambda: losses.decode_yolo(jnp.ones((1, 2, 2, 2, 5)), SIZES, 32), "outputs: needs"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize("name", ["object_weight", "background_weight", "ignore_iou"])
def test_refused_weights(example, name):
    with pytest.raises(UserError, match=f"{name}: needs a"):
        terms_of(example, **{name: -1.0})
