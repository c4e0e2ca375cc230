"""PseCo's functions against the numbers of its specification, which are worked out by hand there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.boxes import box_area, transform_boxes
from jaxface.errors import UserError
from jaxface.losses.pseco import (
    filter_pseudo,
    halve_nearest,
    jittered_boxes,
    limit_assigned,
    pcv_weights,
    pla_assign,
    relative_spread,
    reliability_weights,
    sharpened_weights,
    teacher_momentum,
)

PRIOR = -float(np.log(99.0))


compiled = jax.jit(pla_assign)
head_loss = functools.partial(losses.rcnn_loss, focal=True, class_weight=10.0)


def overlapping(values, top=0.0, left=0.0):
    """Boxes [n, 4] whose IoU with (top, left, top + 10, left + 10) has the values: as high, but narrower."""
    return np.array([[top, left, top + 10, left + 10 * u] for u in values], np.float32)


def one_box(u, scores, *, areas=None, **changes):
    """Positives of one pseudo box of class 0, as a set."""
    scores = np.asarray(scores, np.float32).reshape(len(u), -1)
    arrays = (
        overlapping(u),
        scores,
        np.ones(len(u), np.float32) if areas is None else np.asarray(areas, np.float32),
        overlapping([1.0]),
        np.zeros(1, np.int32),
        np.ones(1, bool),
    )
    assigned = compiled(*arrays, **changes) if not changes else pla_assign(*arrays, **changes)
    return set(np.flatnonzero(np.asarray(assigned)))


U = (0.9, 0.85, 0.6, 0.5, 0.45, 0.30)
S = (0.2, 0.8, 0.9, 0.6, 0.1, 0.95)


def test_check_1_positives_are_the_best_of_overlap_and_score():
    quality = np.sqrt(np.multiply(U, S))[:5]
    np.testing.assert_allclose(quality, [0.424264, 0.824621, 0.734847, 0.547723, 0.212132], atol=1e-6)
    assert one_box(U, S) == {1, 2, 3}  # k = ⌊0.9 + 0.85 + 0.6 + 0.5 + 0.45⌋ = 3
    assert one_box(U, S, score_power=0.0) == {0, 1, 2}  # the overlaps alone
    assert one_box(U, S, score_power=1.0) == {1, 2, 3}
    assert one_box(U, S, top=1) == {1}  # of one overlap, ⌊0.9⌋: at least one
    assert one_box(U, S, iou_threshold=0.55) == {1, 2}  # three candidates of 2.35


def test_check_2_how_many_positives():
    assert len(one_box([0.45], [0.9])) == 1
    assert len(one_box([0.9] * 12 + [0.8] * 8, [0.9] * 20)) == 10
    assert len(one_box([0.9] * 12 + [0.8] * 8, [0.9] * 20, top=20)) == 17
    assert one_box([0.39, 0.2], [0.9, 0.9]) == set()


def test_quality_looks_at_the_class_of_the_pseudo_box():
    scores = [[0.1, 0.9], [0.6, 0.0], [0.5, 0.0]]
    assert one_box([0.7, 0.7, 0.7], scores) == {1, 2}


def test_check_8_a_positive_that_left_the_view_has_no_substitute():
    away = transform_boxes(overlapping([1.0]), np.array([[1.0, 0, -20], [0, 1, 0], [0, 0, 1]]), (32, 32))
    areas = np.concatenate([[1.0], np.asarray(box_area(away)), [1.0, 1, 1, 1]])
    assert one_box(U, S, areas=areas) == {2, 3}


def test_check_11_a_proposal_belongs_to_the_box_that_it_overlaps_most():
    # Two boxes 10 wide that share their upper edge; the third proposal has 0.5 and 0.6.
    boxes = np.array([[0, 0, 10, 10], [0, 0, 12, 10]], np.float32)
    found = np.array([[0, 0, 10, 10], [0, 0, 12, 10], [2.0, 0, 9.2, 10]], np.float32)
    overlaps = np.array(
        [[np.prod(np.minimum(f, b)[2:] - np.maximum(f, b)[:2]) for b in boxes] for f in found]
    )
    assert overlaps[2, 0] == overlaps[2, 1] == pytest.approx(72)
    found[2] = [3.0, 0, 11.4, 10]  # 70 of 114 and 84 of 120
    assigned = pla_assign(found, np.full((3, 1), 0.9), np.ones(3), boxes, np.zeros(2, int), np.ones(2, bool))
    assert assigned.tolist() == [1, 2, 0]  # box 2 has ⌊1 + 0.7⌋ = 1
    assigned = pla_assign(
        found, np.array([[0.9], [0.2], [0.9]]), np.ones(3), boxes, np.zeros(2, int), np.ones(2, bool)
    )
    assert assigned.tolist() == [1, 0, 2]
    masked = pla_assign(
        found, np.full((3, 1), 0.9), np.ones(3), boxes, np.zeros(2, int), np.array([True, False])
    )
    assert masked.tolist() == [1, 1, 0]  # ⌊1 + 10/12 + 70/114⌋ = 2


def test_the_assignment_is_one_under_vmap_and_against_a_plain_loop():
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 7, (2, 40, 2)).astype(np.float32)
    found = np.concatenate([corners, corners + rng.uniform(8, 12, (2, 40, 2))], -1).astype(np.float32)
    boxes, labels = found[:, :4] + 0.5, rng.integers(0, 3, (2, 4))
    mask = np.array([[True] * 4, [True, False, True, False]])
    scores = rng.uniform(size=(2, 40, 3)).astype(np.float32)
    areas = rng.integers(0, 4, (2, 40))
    together = jax.jit(jax.vmap(pla_assign))(found, scores, areas, boxes, labels, mask)
    for i in range(2):
        expected = plain_assignment(found[i], scores[i], areas[i], boxes[i], labels[i], mask[i])
        assert together[i].tolist() == expected
        assert sum(n > 0 for n in expected) > 2


def plain_assignment(found, scores, areas, boxes, labels, mask):
    """The rule word by word."""

    def iou(a, b):
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        both = max(sides[0], 0) * max(sides[1], 0)
        return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)

    bags = {g: [] for g in range(len(boxes))}
    for n, box in enumerate(found):
        overlaps = [iou(box, b) if real else -1 for b, real in zip(boxes, mask, strict=True)]
        g = int(np.argmax(overlaps))
        if overlaps[g] >= 0.4:
            bags[g].append((n, overlaps[g]))
    result = [0] * len(found)
    for g, bag in bags.items():
        count = max(1, int(np.floor(sum(sorted((u for _, u in bag), reverse=True)[:12]))))
        ranked = sorted(bag, key=lambda pair: -np.sqrt(pair[1] * scores[pair[0], labels[g]]))
        for n, _ in ranked[:count]:
            result[n] = g + 1 if areas[n] > 0 else 0
    return result


def test_as_many_positives_of_each_box_whatever_chose_them():
    assigned = jnp.array([1, 2, 1, 0, 2, 1, -1])
    priority = jnp.array([0.5, 0.9, 0.7, 1.0, 0.9, 0.6, 1.0])
    assert limit_assigned(assigned, priority, jnp.array([2, 1]), most=3).tolist() == [0, 2, 1, 0, 0, 1, -1]
    assert limit_assigned(assigned, priority, jnp.array([9, 0]), most=2).tolist() == [0, 0, 1, 0, 0, 1, -1]


def test_check_3_weights_are_sharpened_and_keep_their_total():
    weights = jnp.array([0.8, 0.8, 0.8, 0.4, 0.4])
    assert float(weights.sum() / (weights**2).sum()) == pytest.approx(1.428571, abs=1e-6)
    sharp = sharpened_weights(weights)
    np.testing.assert_allclose(sharp, [0.914286] * 3 + [0.228571] * 2, atol=1e-6)
    assert float(sharp.sum()) == pytest.approx(3.2, abs=1e-6)
    np.testing.assert_allclose(sharpened_weights(weights, power=1.0), weights, rtol=1e-6)


@pytest.mark.parametrize("constant", [1.0, 0.3])
def test_check_4_equal_weights_multiply_the_box_loss(constant):
    np.testing.assert_allclose(sharpened_weights(jnp.full((2, 3), constant)), constant, rtol=1e-6)
    rng = np.random.default_rng(0)
    logits, labels, sampled = jnp.zeros((1, 4, 2)), jnp.array([[1, 2, 0, 1]]), jnp.ones((1, 4), bool)
    deltas, targets = rng.normal(size=(2, 1, 4, 4))
    plain = head_loss(logits, labels, deltas, targets, sampled)
    weights = sharpened_weights(jnp.where(labels > 0, constant, 0.0))
    voted = head_loss(logits, labels, deltas, targets, sampled, box_weights=weights)
    assert float(voted.box) == pytest.approx(constant * float(plain.box), rel=1e-5)
    assert float(plain.box) == pytest.approx(np.abs(deltas - targets)[0, [0, 1, 3]].sum() / 4, rel=1e-5)


def test_votes_are_those_of_sampled_positives_of_the_same_box():
    found = overlapping([0.9, 0.7, 0.2, 1.0, 0.5])
    boxes = np.concatenate([overlapping([1.0]), overlapping([1.0], top=40.0)])
    weights = pcv_weights(found, np.array([1, 1, 1, 0, 2]), boxes, np.array([True, True, False, True, True]))
    np.testing.assert_allclose(
        weights, [0.8, 0.8, 0, 0, 0], atol=1e-6
    )  # 0.9 and 0.7; box 2 is not overlapped


def test_check_5_what_decides_has_no_gradient():
    boxes, mask, labels = overlapping([1.0]), np.ones(1, bool), np.zeros(1, int)
    deltas = jnp.zeros((1, 6, 4))

    def total(teacher_boxes, scores, student_boxes, weights):
        assigned = pla_assign(teacher_boxes, scores, jnp.ones(6), boxes, labels, mask)
        votes = pcv_weights(student_boxes, assigned, boxes, jnp.ones(6, bool)) + weights
        terms = head_loss(
            jnp.zeros((1, 6, 1)),
            jnp.minimum(assigned, 1)[None],
            deltas + 0.3,
            deltas,
            jnp.ones((1, 6), bool),
            box_weights=sharpened_weights(votes)[None],
        )
        return terms.total

    arguments = overlapping(U), jnp.array(S)[:, None], overlapping(U), jnp.full(6, 0.1)
    for gradient in jax.grad(total, argnums=(0, 1, 2, 3))(*arguments):
        assert (np.asarray(gradient) == 0).all()


def test_check_6_the_teacher_is_the_mean_of_its_students():
    momentum = teacher_momentum(jnp.array([0, 1, 9, 999, 5000]))
    np.testing.assert_allclose(momentum, [0, 0.5, 0.9, 0.999, 0.999], rtol=1e-6)
    assert float(momentum[0]) == 0.0  # bit for bit the student
    students, teacher = [3.0, -1.0, 4.0, 10.0], 7.0
    for step, student in enumerate(students):
        m = float(teacher_momentum(step))
        teacher = m * teacher + (1 - m) * student
    assert teacher == pytest.approx(np.mean(students))


def test_check_9_without_pseudo_boxes_all_is_background():
    none = np.zeros(2, bool)
    boxes = np.tile(np.array([0.0, 0, 1, 1], np.float32), (2, 1))
    assigned = pla_assign(overlapping(U), np.array(S)[:, None], np.ones(6), boxes, np.zeros(2, int), none)
    assert (np.asarray(assigned) == 0).all()
    weights = pcv_weights(overlapping(U), assigned, boxes, np.ones(6, bool))
    assert (np.asarray(sharpened_weights(weights)) == 0).all()

    def loss(logits, deltas):
        terms = head_loss(
            logits,
            assigned[None],
            deltas,
            jnp.full((1, 6, 4), jnp.inf),
            jnp.ones((1, 6), bool),
            box_weights=sharpened_weights(weights)[None],
        )
        return terms.total, terms

    (_, terms), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        jnp.zeros((1, 6, 1)), jnp.ones((1, 6, 4))
    )
    assert float(terms.box) == 0 and float(terms.classification) > 0 and float(terms.negatives) == 6
    assert all(np.isfinite(g).all() for g in gradients) and (np.asarray(gradients[1]) == 0).all()


@pytest.mark.parametrize("classes", [1, 80])
def test_check_10_a_head_that_has_learned_nothing(classes):
    logits, sampled = jnp.full((1, 3, classes), PRIOR), jnp.array([[True, True, False]])
    zeros = jnp.zeros((1, 3, 4 * classes))
    terms = head_loss(logits, jnp.zeros((1, 3), int), zeros, zeros[..., :4], sampled)
    assert float(terms.total) == pytest.approx(10 * classes * 7.537752e-07, rel=1e-5)
    assert 0.75e-4 * -np.log(0.99) == pytest.approx(7.537752e-07, rel=1e-6)


def test_a_head_s_box_loss_reads_the_deltas_of_the_region_s_class():
    deltas = jnp.arange(24.0).reshape(1, 2, 12)
    labels = jnp.array([[3, 1]])
    terms = head_loss(jnp.zeros((1, 2, 3)), labels, deltas, jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool))
    assert float(terms.box) == pytest.approx((8 + 9 + 10 + 11 + 12 + 13 + 14 + 15) / 2)


def test_soft_teacher_s_moves_are_of_so_many_sides():
    boxes = np.array([[[0, 0, 10, 100], [5, 5, 5.5, 5.5]]], np.float32)
    moved = np.asarray(jittered_boxes(jax.random.key(0), boxes, count=4000))
    assert moved.shape == (4000, 1, 2, 4) and (moved[..., 2:] >= moved[..., :2]).all()
    np.testing.assert_allclose(moved[:, 0, 0].std(axis=0), [0.6, 6, 0.6, 6], rtol=0.05)
    np.testing.assert_allclose(moved[:, 0, 1].std(axis=0), 0.06, rtol=0.05)  # a side of one pixel at least
    np.testing.assert_allclose(moved.mean(axis=0)[0, 0], boxes[0, 0], atol=0.4)


def test_soft_teacher_s_spread_is_relative_to_the_sides():
    copies = np.array([[0.0, 0, 10, 20], [0, 0, 10, 20], [3, 0, 10, 20]])
    assert float(relative_spread(copies)) == pytest.approx(
        np.sqrt(3) / 9 / 4, rel=1e-5
    )  # of 0, 0, 3: variance 3
    np.testing.assert_allclose(relative_spread(5 * copies), relative_spread(copies), rtol=1e-5)
    both = np.stack([copies, np.tile(copies[:1], (3, 1))], axis=1)
    np.testing.assert_allclose(relative_spread(both), [np.sqrt(3) / 36, 0.0], rtol=1e-5)
    small = np.array([[0.0, 0, 0.1, 0.1], [0, 0, 0.3, 0.1]])  # sides of less than a pixel count as one
    assert float(relative_spread(small)) == pytest.approx(0.2 / np.sqrt(2) / 4, rel=1e-5)
    with pytest.raises(ValueError, match=r"boxes: needs \[T, ..., 4\] with T >= 2"):
        relative_spread(copies[:1])


def test_background_counts_as_far_as_the_teacher_sees_it():
    scores = np.array([[0.9, 0.0], [0.5, 0.2], [0.0, 0.0], [1.0, 0.0], [0.1, 0.1]], np.float32)
    assigned, sampled = np.array([1, 0, 0, 0, 0]), np.array([True] * 4 + [False])
    weights = reliability_weights(scores, assigned, sampled)
    np.testing.assert_allclose(weights, [1.0, 0.4, 1.0, 0.0, 0.0], atol=1e-6)
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(1, 5, 2)), assigned[None]
    zeros = jnp.zeros((1, 5, 4))
    each = losses.sigmoid_focal_loss(jnp.asarray(logits), jnp.asarray(labels)).sum(-1)[0]
    terms = head_loss(logits, labels, zeros, zeros, sampled[None], class_weights=weights[None])
    expected = 10 * np.sum(np.asarray(weights) * np.asarray(each)) / 2.4
    assert float(terms.classification) == pytest.approx(float(expected), rel=1e-5)
    alone = head_loss(logits, labels, zeros, zeros, sampled[None])
    ones = head_loss(logits, labels, zeros, zeros, sampled[None], class_weights=jnp.ones((1, 5)))
    assert float(ones.total) == pytest.approx(float(alone.total), rel=1e-6)
    nothing = head_loss(logits, labels, zeros, zeros, sampled[None], class_weights=jnp.zeros((1, 5)))
    assert float(nothing.total) == 0.0
    with pytest.raises(UserError, match=r"scores: needs scores in \[0, 1\], got 0 to 2"):
        reliability_weights(2 * scores.clip(0, 1), assigned, sampled)


def test_pseudo_boxes_are_sure_and_have_an_area():
    boxes = np.array([[0, 0, 4, 4]] * 3 + [[4, 0, 4, 4], [0, 0, 4, 4]], np.float32)
    scores = np.array([0.7, 0.6, 0.5, 0.9, 0.9], np.float32)
    valid = np.array([True] * 4 + [False])
    assert filter_pseudo(boxes, scores, valid, threshold=0.5).tolist() == [True, True, False, False, False]
    assert filter_pseudo(boxes, scores, valid, threshold=0.6).tolist() == [True, False, False, False, False]


def test_the_second_view_is_every_second_pixel():
    image = jax.random.normal(jax.random.key(0), (2, 64, 32, 3))
    half = halve_nearest(image)
    assert half.shape == (2, 32, 16, 3) and (np.asarray(half) == np.asarray(image)[:, ::2, ::2]).all()
    nearest = jax.image.resize(image[:, ::1], (2, 32, 16, 3), "nearest")
    assert half.shape == nearest.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_box(U, np.multiply(S, 2), top=12), r"teacher_scores: needs scores in \[0, 1\]"),
        (lambda: one_box(U, S, top=0), "top: needs an integer from 1, got 0"),
        (lambda: one_box(U, S, iou_threshold=1.0), "iou_threshold: "),
        (lambda: one_box(U, S, iou_threshold=0.0), "iou_threshold: "),
        (lambda: halve_nearest(jnp.zeros((1, 48, 32, 3))), "image: needs sides that 32 divides"),
        (lambda: sharpened_weights(jnp.ones(2), power=0.0), "power: "),
        (
            lambda: filter_pseudo(overlapping(U), jnp.array(S), jnp.ones(6, bool), threshold=1.5),
            "threshold: ",
        ),
    ],
)
def test_check_12_refuses(call, message):
    with pytest.raises(UserError, match=message):
        call()
