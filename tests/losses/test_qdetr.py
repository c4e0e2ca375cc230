"""Foreground-aware query matching: the numbers of the method's specification (checks 3 to 9), and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.boxes import boxes_of_normalized
from jaxface.boxes.iou import box_giou
from jaxface.errors import UserError

STUDENT = jnp.array(
    [
        [0.25, 0.25, 0.3, 0.3],
        [0.30, 0.25, 0.3, 0.3],
        [0.7, 0.7, 0.2, 0.2],
        [0.5, 0.5, 0.9, 0.9],
        [0.1, 0.9, 0.1, 0.1],
    ]
)[None]
OBJECTS = jnp.array([[0.25, 0.25, 0.3, 0.3], [0.72, 0.7, 0.2, 0.24]])[None]
REAL = jnp.array([[True, True]])
TEACHER = jnp.array(
    [[0.26, 0.24, 0.3, 0.3], [0.5, 0.5, 0.2, 0.2], [0.71, 0.69, 0.2, 0.22], [0.9, 0.1, 0.1, 0.1]]
)[None]
KEPT = {
    0.0: [1, 1, 1, 1, 0],
    0.5: [1, 1, 1, 0, 0],
    0.6: [1, 1, 1, 0, 0],
    0.9: [1, 0, 1, 0, 0],
    1.0: [0, 0, 0, 0, 0],
}


def test_check_3_overlaps():
    overlaps = box_giou(*(boxes_of_normalized(b[0], (1000, 1000)) for b in (OBJECTS, STUDENT)))
    expected = [
        [1, 0.714286, -0.734694, 0.111111, -0.663866],
        [-0.733796, -0.713930, 0.677156, 0.059259, -0.796420],
    ]
    np.testing.assert_allclose(overlaps, expected, atol=2e-6)


@pytest.mark.parametrize(("tau", "expected"), KEPT.items())
def test_check_4_kept_queries(tau, expected):
    assert losses.foreground_mask(STUDENT, OBJECTS, REAL, tau)[0].tolist() == [bool(k) for k in expected]


def test_check_4_fewer_are_kept_the_larger_tau_is():
    boxes = jax.random.uniform(jax.random.key(0), (8, 20, 4), minval=0.1, maxval=0.6)
    objects = jax.random.uniform(jax.random.key(1), (8, 3, 4), minval=0.1, maxval=0.6)
    masks = [losses.foreground_mask(boxes, objects, jnp.ones((8, 3), bool), t) for t in (0, 0.3, 0.6, 0.9, 1)]
    counts = [int(mask.sum()) for mask in masks]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] == 0
    for more, fewer in itertools.pairwise(masks):
        assert not np.any(fewer & ~more)


def test_an_object_that_nothing_overlaps_keeps_its_best_query_below_tau_1():
    boxes = jnp.array([[[0.1, 0.1, 0.1, 0.1], [0.5, 0.9, 0.1, 0.1], [0.7, 0.7, 0.1, 0.1]]])
    objects = jnp.array([[[0.9, 0.9, 0.1, 0.1]]])
    assert losses.foreground_mask(boxes, objects, REAL[:, :1], 0.6)[0].tolist() == [False, True, False]
    assert not losses.foreground_mask(boxes, objects, REAL[:, :1], 1.0).any()


def test_padding_keeps_nothing():
    for tau in (0.0, 0.6):
        mask = losses.foreground_mask(STUDENT, OBJECTS, jnp.array([[True, False]]), tau)
        np.testing.assert_array_equal(mask, losses.foreground_mask(STUDENT, OBJECTS[:, :1], REAL[:, :1], tau))
    assert not losses.foreground_mask(STUDENT, OBJECTS, ~REAL, 0.0).any()
    assert not losses.foreground_mask(STUDENT, OBJECTS[:, :0], REAL[:, :0]).any()


def test_check_5_the_teachers_queries():
    assert losses.match_teacher(STUDENT[:, :3], TEACHER)[0].tolist() == [0, 0, 2]
    corners = (boxes_of_normalized(b[0], (1000, 1000)) for b in (STUDENT[:, :3], TEACHER))
    distance = jnp.abs(STUDENT[0, :3, None] - TEACHER[0]).sum(-1)
    scores = (2 * box_giou(*corners) - 5 * distance)[jnp.arange(3), jnp.array([0, 0, 2])]
    np.testing.assert_allclose(scores, [1.649748, 1.176502, 1.443516], atol=1e-5)


def distilled(boxes, features, teacher_boxes, teacher_features, mask=REAL, **options):
    return losses.query_distillation_loss(
        boxes, features, teacher_boxes, teacher_features, OBJECTS, mask, **options
    ).loss


@pytest.fixture(scope="module")
def features():
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (1, 5, 8)), jax.random.normal(keys[1], (1, 4, 8))


def test_check_6_a_student_that_is_its_teacher(features):
    assert losses.match_teacher(STUDENT, STUDENT)[0].tolist() == [0, 1, 2, 3, 4]
    value, slope = jax.value_and_grad(lambda d: distilled(STUDENT, d, STUDENT, features[0]))(features[0])
    assert value == 0 and np.all(slope == 0)


def test_check_7_orders_do_not_matter(features):
    student, teacher = features
    plain = distilled(STUDENT, student, TEACHER, teacher)
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        distilled(STUDENT, student, TEACHER[:, order], teacher[:, order]), plain, rtol=1e-6
    )
    order = jnp.array([3, 1, 0, 4, 2])
    np.testing.assert_allclose(
        distilled(STUDENT[:, order], student[:, order], TEACHER, teacher), plain, rtol=1e-6
    )


def test_check_8_only_what_is_kept_of_the_student_has_a_gradient(features):
    student, teacher = features
    boxes, kept, their_boxes, theirs = jax.grad(distilled, argnums=(0, 1, 2, 3))(
        STUDENT, student, TEACHER, teacher
    )
    for slope in (boxes, their_boxes, theirs):
        assert np.all(slope == 0)
    used = losses.foreground_mask(STUDENT, OBJECTS, REAL)[0]
    assert np.all(kept[0, ~used] == 0)
    np.testing.assert_allclose(jnp.linalg.norm(kept[0, used], axis=-1), 1 / 3, rtol=1e-5)


def test_check_8_by_hand():
    def loss(d):
        return losses.drd_loss(d, jnp.zeros((1, 1, 2)), jnp.array([[True]]), jnp.zeros((1, 1), int))

    value, slope = jax.value_and_grad(loss)(jnp.array([[[3.0, 4.0]]]))
    assert value == 5
    np.testing.assert_allclose(slope[0, 0], [0.6, 0.8], rtol=1e-6)


def test_check_9_the_mean_is_over_the_queries_of_the_batch():
    features = jnp.stack([jnp.full((3, 4), 0.5), jnp.full((3, 4), 2.0)])  # lengths 1 and 4
    selected = jnp.array([[True, False, False], [True, True, True]])
    arguments = features, jnp.zeros((2, 1, 4)), selected, jnp.zeros((2, 3), int)
    assert float(losses.drd_loss(*arguments)) == pytest.approx((1 + 3 * 4) / 4)
    nothing = (*arguments[:2], jnp.zeros((2, 3), bool), arguments[3])
    value, slope = jax.value_and_grad(lambda d: losses.drd_loss(d, *nothing[1:]))(features)
    assert value == 0 and np.all(slope == 0)


def test_no_object_is_no_loss_and_no_nan(features):
    for tau in (0.0, 0.6, 1.0):
        value, slope = jax.value_and_grad(
            lambda d, tau=tau: distilled(STUDENT, d, TEACHER, features[1], ~REAL, tau=tau)
        )(features[0])
        assert value == 0 and np.all(slope == 0)


def test_lengths_of_the_teachers_features_may_be_taken_out(features):
    student, teacher = features
    plain = distilled(STUDENT, student, TEACHER, teacher, normalize=True)
    scaled = distilled(STUDENT, 10 * student, TEACHER, 10 * teacher, normalize=True)
    np.testing.assert_allclose(plain, scaled, rtol=1e-5)


def test_all_queries_by_their_place(features):
    student = features[0]
    loss = losses.query_distillation_loss(
        STUDENT, student, STUDENT[:, ::-1], student + 1, OBJECTS, REAL, selection="all"
    )
    assert float(loss.selected) == 1 and float(loss.loss) == pytest.approx(8**0.5, rel=1e-5)


def test_compiled_and_low_precision(features):
    student, teacher = features
    plain = distilled(STUDENT, student, TEACHER, teacher)
    np.testing.assert_allclose(jax.jit(distilled)(STUDENT, student, TEACHER, teacher), plain, rtol=1e-6)
    low = distilled(STUDENT, student.astype(jnp.bfloat16), TEACHER, teacher.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, plain, rtol=2e-2)


def test_what_is_refused(features):
    student, teacher = features
    for tau in (-0.1, 1.1):
        with pytest.raises(UserError, match=r"^tau: needs"):
            losses.foreground_mask(STUDENT, OBJECTS, REAL, tau)
    for boxes, message in (
        (STUDENT.at[0, 0, 2].set(-0.1), "^boxes: needs sizes from 0, got -0.1"),
        (STUDENT.at[0, 0, 0].set(3.0), r"^boxes: needs fractions of the image, within \[-1, 2\]"),
        (STUDENT.at[0, 0, 0].set(jnp.nan), "^boxes: needs finite boxes"),
    ):
        with pytest.raises(UserError, match=message):
            losses.match_teacher(boxes, TEACHER)
    with pytest.raises(AssertionError, match=r"one number of channels"):
        distilled(STUDENT, student, TEACHER, teacher[..., :4])
    with pytest.raises(AssertionError, match=r"target_mask must be"):
        losses.foreground_mask(STUDENT, OBJECTS[:, :0], REAL)
    with pytest.raises(UserError, match=r"^selection: needs 'foreground' or 'all', got 'most'"):
        distilled(STUDENT, student, TEACHER, teacher, selection="most")
    with pytest.raises(UserError, match=r"^selection: 'all' needs a teacher of 5 queries, got 4"):
        distilled(STUDENT, student, TEACHER, teacher, selection="all")
