"""Non-maximum suppression against a greedy loop, and what must not change it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.boxes import nms

CHAIN = jnp.array([[0.0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16]])  # IoU 7 / 13, 4 / 16, 7 / 13


def greedy(boxes, scores, classes, threshold):
    """Indices that stay, best first; all in float32, as what is tested, so that ties are equal."""
    order = [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] > -np.inf]
    area = np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)
    stays = []
    for i in order:
        sides = np.minimum(boxes[i, 2:], boxes[stays, 2:]) - np.maximum(boxes[i, :2], boxes[stays, :2])
        common = np.maximum(sides, 0).prod(axis=1)
        union = area[i] + area[stays] - common
        overlapping = (common > 0) & (common / np.maximum(union, 1e-6) > threshold)
        if not (overlapping & (classes[stays] == classes[i])).any():
            stays.append(i)
    return stays


def random_set(seed, count, *, clusters=12):
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 300, (clusters, 2)), rng.uniform(10, 80, (clusters, 2))
    which = rng.integers(0, clusters, count)
    boxes = np.concatenate([corner, corner + side], axis=1)[which]
    boxes = boxes + rng.normal(0, 0.12, (count, 4)) * np.tile(side[which], 2)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    scores = rng.uniform(size=count).astype(np.float32)
    return boxes.astype(np.float32), scores, rng.integers(0, 3, count)


@functools.cache
def compiled(max_outputs, threshold=0.5):
    return jax.jit(jax.vmap(functools.partial(nms, iou_threshold=threshold, max_outputs=max_outputs)))


def staying(indices, valid):
    return np.asarray(indices)[np.asarray(valid)].tolist()


def test_what_is_suppressed_suppresses_nothing():
    indices, valid = nms(CHAIN, jnp.array([0.9, 0.8, 0.7]), iou_threshold=0.5, max_outputs=4)
    assert indices.tolist() == [0, 2, 0, 0] and valid.tolist() == [True, True, False, False]
    # In one pass over the matrix, box 1 would have suppressed box 2.
    indices, valid = nms(CHAIN, jnp.array([0.8, 0.9, 0.7]), iou_threshold=0.5, max_outputs=4)
    assert staying(indices, valid) == [1]


def test_the_threshold_itself_stays():
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # IoU ½, exactly
    given = {"scores": jnp.array([0.9, 0.8]), "max_outputs": 2}
    assert staying(*nms(boxes, iou_threshold=0.5, **given)) == [0, 1]
    assert staying(*nms(boxes, iou_threshold=0.49, **given)) == [0]


def test_classes_do_not_suppress_each_other():
    boxes = jnp.tile(CHAIN[:1], (4, 1))
    scores = jnp.array([0.5, 0.9, 0.7, 0.8])
    indices, valid = nms(boxes, scores, jnp.array([0, 1, 0, 1]), iou_threshold=0.5, max_outputs=4)
    assert staying(indices, valid) == [1, 2]


def test_random_sets_are_those_of_the_greedy_loop():
    """100 sets of 200 boxes of three classes, a tenth of them padding: two tiles."""
    sets = [random_set(seed, 200) for seed in range(100)]
    boxes, scores, classes = (np.stack(column) for column in zip(*sets, strict=True))
    scores = np.where(np.random.default_rng(0).uniform(size=scores.shape) < 0.1, -np.inf, scores)
    indices, valid = compiled(200)(boxes, scores, classes)
    for row in range(100):
        expected = greedy(boxes[row], scores[row], classes[row], 0.5)
        assert staying(indices[row], valid[row]) == expected
    assert 20 < np.asarray(valid).sum(axis=1).mean() < 80


def test_a_longer_set_over_several_tiles():
    boxes, scores, classes = random_set(7, 500, clusters=60)
    indices, valid = compiled(500)(boxes[None], scores[None], classes[None])
    assert staying(indices[0], valid[0]) == greedy(boxes, scores, classes, 0.5)


def test_equal_scores_go_by_position():
    boxes, scores, classes = random_set(3, 200)
    scores = np.round(scores, 1)
    indices, valid = compiled(200)(boxes[None], scores[None], classes[None])
    assert staying(indices[0], valid[0]) == greedy(boxes, scores, classes, 0.5)


def test_an_order_of_the_inputs_changes_the_indices_alone():
    boxes, scores, classes = random_set(5, 200)
    order = np.random.default_rng(1).permutation(200)
    run = compiled(200)
    first, second = (
        staying(*(value[0] for value in run(b[None], s[None], c[None])))
        for b, s, c in ((boxes, scores, classes), (boxes[order], scores[order], classes[order]))
    )
    assert order[second].tolist() == first


def test_what_stayed_stays():
    boxes, scores, classes = random_set(6, 200)
    run = compiled(200)
    indices, valid = (value[0] for value in run(boxes[None], scores[None], classes[None]))
    index = np.asarray(indices)
    again = run(boxes[index][None], np.where(valid, scores[index], -np.inf)[None], classes[index][None])
    assert staying(again[0][0], again[1][0]) == list(range(int(np.sum(valid))))


def test_only_the_best_are_returned():
    boxes, scores, classes = random_set(8, 200)
    every = staying(*(value[0] for value in compiled(200)(boxes[None], scores[None], classes[None])))
    few, valid = nms(boxes, jnp.asarray(scores), jnp.asarray(classes), iou_threshold=0.5, max_outputs=5)
    assert few.tolist() == every[:5] and valid.all()


def test_scores_that_are_none_and_empty_boxes():
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 10], [3, 3, 3, 3], [3, 3, 3, 3]])
    scores = jnp.array([jnp.nan, 0.5, 0.4, 0.3])
    indices, valid = nms(boxes, scores, iou_threshold=0.5, max_outputs=4)
    assert staying(indices, valid) == [1, 2, 3]  # empty boxes overlap nothing
    indices, valid = nms(boxes, jnp.full(4, -jnp.inf), iou_threshold=0.5, max_outputs=4)
    assert not valid.any() and indices.tolist() == [0, 0, 0, 0]


def test_low_precision_is_compared_in_float32():
    boxes, scores, _ = random_set(2, 60)
    low = jnp.asarray(boxes, jnp.bfloat16)
    given = {"iou_threshold": 0.5, "max_outputs": 60}
    for got, expected in zip(
        nms(low, jnp.asarray(scores), **given),
        nms(low.astype(jnp.float32), jnp.asarray(scores), **given),
        strict=True,
    ):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nms(CHAIN[:, ::-1], jnp.ones(3), iou_threshold=0.5, max_outputs=1), "boxes: needs"),
        (lambda: nms(CHAIN, jnp.ones(2), iou_threshold=0.5, max_outputs=1), "boxes, scores, classes: needs"),
        (lambda: nms(CHAIN, jnp.ones(3), iou_threshold=1.5, max_outputs=1), "iou_threshold: needs a number"),
        (lambda: nms(CHAIN, jnp.ones(3), iou_threshold=0.5, max_outputs=0), "max_outputs: needs an integer"),
        (lambda: nms(CHAIN * jnp.nan, jnp.ones(3), iou_threshold=0.5, max_outputs=1), "boxes: needs finite"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ValueError, match=f"^{words}") as refused:
        call()
    assert "\n" not in str(refused.value)
