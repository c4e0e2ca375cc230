"""Rank mimicking and prediction-guided feature imitation by hand: values, gradients, and what they cannot see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.boxes import paired_iou
from jaxface.errors import UserError
from jaxface.losses import (
    feature_imitation_loss,
    pfi_loss,
    prediction_imitation_loss,
    rank_mimic_box_loss,
    rank_mimic_loss,
    soft_label_loss,
)

TEACHER, STUDENT = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([[0.0, 2.0, -1.0]])  # logits of three anchors
ONE = jnp.array([[1, 1, 1]]), jnp.array([[True]])  # all of one object


def of_logits(student, teacher=TEACHER, assigned=ONE[0], mask=ONE[1], **options):
    return rank_mimic_loss(jax.nn.sigmoid(student), jax.nn.sigmoid(teacher), assigned, mask, **options)


def test_one_object_by_hand():
    np.testing.assert_allclose(of_logits(STUDENT), [0.054183], atol=1e-6)
    p, q = (jax.nn.softmax(jax.nn.sigmoid(x[0])) for x in (TEACHER, STUDENT))
    np.testing.assert_allclose(p, [0.449305, 0.307017, 0.243678], atol=1e-6)
    np.testing.assert_allclose(of_logits(STUDENT)[0], jnp.sum(p * jnp.log(p / q)), rtol=1e-5)
    sharp = of_logits(STUDENT, temperature=0.1)  # which anchor comes first
    p, q = (jax.nn.softmax(10 * jax.nn.sigmoid(x[0])) for x in (TEACHER, STUDENT))
    np.testing.assert_allclose(sharp[0], jnp.sum(p * jnp.log(p / q)), rtol=1e-5)
    assert sharp[0] > 60 * of_logits(STUDENT)[0]


def test_sorted_scores_forget_whose_rank_it_is():
    np.testing.assert_array_equal(of_logits(STUDENT, sort=True), [0.0])
    raw = rank_mimic_loss(STUDENT, TEACHER, *ONE, space="logit")
    np.testing.assert_allclose(raw, [1.459199], atol=1e-5)
    # Of two objects each is sorted for itself.
    assigned, mask = jnp.array([[1, 2, 1, 2, 0]]), jnp.array([[True, True]])
    teacher = jnp.array([[0.9, 0.2, 0.1, 0.6, 0.5]])
    swapped = jnp.array([[0.1, 0.6, 0.9, 0.2, 0.7]])  # within each object
    np.testing.assert_allclose(rank_mimic_loss(swapped, teacher, assigned, mask, sort=True), 0, atol=1e-7)
    mixed = jnp.array([[0.9, 0.1, 0.2, 0.6, 0.5]])  # between the two
    assert rank_mimic_loss(mixed, teacher, assigned, mask, sort=True) > 1e-4


@pytest.mark.parametrize(("space", "largest"), [("sigmoid", 0.036), ("logit", 0.730)])
def test_gradients_by_hand(space, largest):
    def loss(scores, teacher):
        return rank_mimic_loss(scores, teacher, *ONE, space=space)[0]

    scores, teacher = STUDENT, TEACHER
    if space == "sigmoid":
        scores, teacher = jax.nn.sigmoid(scores), jax.nn.sigmoid(teacher)
        np.testing.assert_allclose(jax.grad(loss)(scores, teacher)[0], [-0.142287, 0.142287, 0.0], atol=1e-6)
        of_student = jax.grad(lambda z: of_logits(z)[0])(STUDENT)[0]
        np.testing.assert_allclose(of_student, [-0.035572, 0.014939, 0.0], atol=1e-6)
    else:
        of_student = jax.grad(loss)(scores, teacher)[0]
    np.testing.assert_allclose(jnp.abs(of_student).max(), largest, atol=1e-3)
    np.testing.assert_array_equal(jax.grad(loss, argnums=1)(scores, teacher), 0)  # the teacher is a constant
    by_temperature = jax.grad(lambda s: rank_mimic_loss(s, teacher, *ONE, space=space, temperature=0.5)[0])(
        scores
    )[0]
    q, p = jax.nn.softmax(scores[0] / 0.5), jax.nn.softmax(teacher[0] / 0.5)
    np.testing.assert_allclose(by_temperature, (q - p) / 0.5, atol=1e-6)


def test_every_object_counts():
    pad = functools.partial(jnp.pad, pad_width=((0, 0), (0, 1)))
    second = jnp.array([[1, 1, 1, 2]])  # one anchor of a second object
    two = jnp.array([[True, True]])
    np.testing.assert_allclose(of_logits(pad(STUDENT), pad(TEACHER), second, two), [0.027091], atol=1e-6)
    without = of_logits(pad(STUDENT), pad(TEACHER), jnp.array([[1, 1, 1, 0]]), two)
    np.testing.assert_allclose(without, [0.027091], atol=1e-6)
    ignored = of_logits(pad(STUDENT), pad(TEACHER), second, jnp.array([[True, False]]))
    np.testing.assert_allclose(ignored, [0.054183], atol=1e-6)


def test_levels_and_order_of_anchors_do_not_matter():
    scores, teacher = jax.nn.sigmoid(STUDENT), jax.nn.sigmoid(TEACHER)
    raised = rank_mimic_loss(scores * 0.5 + 0.1, teacher, *ONE)
    np.testing.assert_allclose(raised, rank_mimic_loss(scores * 0.5, teacher, *ONE), rtol=1e-4)
    order = jnp.array([2, 0, 1])
    permuted = rank_mimic_loss(scores[:, order], teacher[:, order], *ONE)
    np.testing.assert_allclose(permuted, of_logits(STUDENT), rtol=1e-4)


def test_images_do_not_mix():
    """Segments over a batch are what one image gives for itself, and what masks with [G, N] give."""
    rng = np.random.default_rng(0)
    student, teacher = jnp.asarray(rng.random((2, 3, 40), np.float32))
    assigned, mask = jnp.asarray(rng.integers(-1, 5, (3, 40))), jnp.asarray(rng.random((3, 4)) < 0.7)
    together = rank_mimic_loss(student, teacher, assigned, mask, temperature=0.3)
    expected = []
    for b in range(3):
        total = 0.0
        for j in np.flatnonzero(mask[b]):
            of = np.asarray(assigned[b]) == j + 1
            p, q = (jax.nn.log_softmax(x[b][of] / 0.3) for x in (teacher, student))
            total += float(jnp.sum(jnp.exp(p) * (p - q))) if of.any() else 0.0
        expected.append(total / max(int(mask[b].sum()), 1))
    np.testing.assert_allclose(together, expected, rtol=1e-4)
    jitted = jax.jit(functools.partial(rank_mimic_loss, temperature=0.3))
    np.testing.assert_allclose(jitted(student, teacher, assigned, mask), together, rtol=1e-6)
    half = rank_mimic_loss(student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16), assigned, mask)
    assert half.dtype == jnp.float32 and jnp.isfinite(half).all()


@pytest.mark.parametrize(
    ("assigned", "mask"),
    [
        ([[0, 0, 0]], [[True]]),
        ([[1, 1, 1]], [[False]]),
        ([[0, -1, 0]], [[False, False]]),
        ([[1, 0, 0]], [[True]]),
    ],
)
def test_nothing_to_order(assigned, mask):
    """No object, none that is not padding, or one with one anchor: zero with zero gradients, whatever the scores."""
    arrays = jnp.array(assigned), jnp.array(mask)
    extreme = jnp.array([[1.0, 0.0, 1.0]])
    value, gradient = jax.value_and_grad(
        lambda s: rank_mimic_loss(s, 1 - extreme, *arrays, temperature=1e-3).sum()
    )(extreme)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_gradients_stay_finite_at_the_ends():
    scores = jnp.array([[1.0, 0.0, 0.0]])
    gradient = jax.grad(lambda s: rank_mimic_loss(s, 1 - scores, *ONE, temperature=1e-3)[0])(scores)
    assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() <= 1e3 + 1e-2


def test_the_order_of_fits():
    boxes = jnp.array([[[10.0, 10.0, 30.0, 30.0]]])
    student = boxes[0] + jnp.array([[0.0, 0, 0, 0], [4, 0, 4, 0], [8, 0, 8, 0]])
    teacher = student[jnp.array([1, 0, 2])]
    loss = functools.partial(rank_mimic_box_loss, boxes=boxes, assigned=ONE[0], box_mask=ONE[1])
    value = loss(student[None], teacher[None], temperature=0.1)
    scores = [paired_iou(x, boxes[0])[None] for x in (student, teacher)]
    np.testing.assert_allclose(value, rank_mimic_loss(*scores, *ONE, temperature=0.1), rtol=1e-6)
    gradient = jax.grad(lambda b: loss(b[None], teacher[None])[0])(student)
    # The best box must become worse, the second better: its upper and lower edges go up.
    assert gradient[1, 0] > 0 and jnp.isfinite(gradient).all()
    np.testing.assert_allclose(loss(teacher[None], teacher[None]), 0, atol=1e-7)


# Two places, two features, two predictions.
P_T, P_S = jnp.array([[[[1.0, 2], [0, 0]]]]), jnp.array([[[[0.0, 2], [0, 1]]]])
F_T, F_S = jnp.array([[[[1.0, 1], [2, 0]]]]), jnp.array([[[[0.0, 1], [0, 0]]]])


def pfi(features=F_S, predictions=P_S, teacher_features=F_T, **options):
    arguments = ([features], [teacher_features], [predictions], [P_T])
    return pfi_loss(*arguments, **{"score_space": "logit", **options})


@pytest.mark.parametrize(("form", "value"), [("mean", 0.625), ("l2", 0.515388), ("squared", 0.53125)])
def test_imitation_by_hand(form, value):
    """D_p = (.5, .5), D_f = (.5, 2); of the absolute differences D_p = (.5, .5) as well."""
    np.testing.assert_allclose(pfi(form=form), [value], atol=1e-6)
    zero = jnp.zeros_like(F_S)
    gradient = jax.grad(lambda f: pfi_loss([f], [F_T], [P_T], [P_T], form=form).sum())(zero)
    np.testing.assert_array_equal(gradient, 0)  # no NaN where the predictions agree


def test_gradients_of_imitation_by_hand():
    of_features, of_predictions = jax.grad(lambda f, p: pfi(f, p)[0], argnums=(0, 1))(F_S, P_S)
    np.testing.assert_allclose(of_features[0, 0], [[-0.25, 0], [-0.5, 0]], atol=1e-6)
    np.testing.assert_allclose(of_predictions[0, 0], [[-0.25, 0], [0, 1]], atol=1e-6)
    for options in ({"detach_weight": True}, {"weight_norm": "mean"}):
        gradients = jax.grad(lambda f, p, o=options: pfi(f, p, **o)[0], argnums=(0, 1))(F_S, P_S)
        np.testing.assert_array_equal(gradients[1], 0)
        assert jnp.any(gradients[0] != 0)


def test_imitation_where_predictions_agree():
    agreeing = P_S.at[0, 0, 0].set(P_T[0, 0, 0])
    gradient = jax.grad(lambda f: pfi(1e3 * f, agreeing)[0])(F_S + 1)
    np.testing.assert_array_equal(gradient[0, 0, 0], 0)
    assert jnp.any(gradient[0, 0, 1] != 0)
    root = jnp.sqrt(2.0)
    np.testing.assert_allclose(pfi(root * F_S, teacher_features=root * F_T), 2 * pfi(), rtol=1e-6)


def test_matched_imitation_has_the_weight_of_the_plain():
    """D_p divided by its mean: where it is the same everywhere, it is plain imitation; its mean is 1 in any case."""
    np.testing.assert_allclose(pfi(weight_norm="mean"), feature_imitation_loss([F_S], [F_T]), rtol=1e-6)
    flat = jnp.ones_like(F_T)  # D_f = 1 everywhere
    uneven = P_S.at[0, 0, 1, 1].set(7.0)
    for space in ("logit", "sigmoid"):
        value = pfi(flat - 1, uneven, flat, weight_norm="mean", score_space=space)
        np.testing.assert_allclose(value, [1.0], rtol=1e-5)
    same = pfi_loss([F_S], [F_T], [P_T], [P_T], weight_norm="mean")
    np.testing.assert_array_equal(same, 0)


def test_a_student_that_is_its_teacher():
    levels, tops = [F_T, F_T[:, :, :1]], [P_T, P_T[:, :, :1]]
    for form in ("mean", "l2", "squared"):
        loss = functools.partial(pfi_loss, teacher_features=levels, teacher_logits=tops, form=form)
        value, gradients = jax.value_and_grad(
            lambda f, p, loss=loss: loss(student_features=f, student_logits=p).sum(), argnums=(0, 1)
        )(levels, tops)
        assert value == 0 and all(jnp.all(g == 0) for g in jax.tree.leaves(gradients))
    value, gradient = jax.value_and_grad(lambda z: of_logits(z)[0])(TEACHER)
    assert abs(value) < 1e-7
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_levels_weigh_the_same_whatever_their_size():
    large = [jnp.tile(x, (1, 5, 3, 1)) for x in (F_S, F_T, P_S, P_T)]
    small = [F_S, F_T, P_S, P_T]
    x = pfi_loss(*([a] for a in large), score_space="logit", detach_weight=True)
    y = pfi_loss(*([a] for a in (2 * F_S, F_T, P_S, P_T)), score_space="logit")
    both = pfi_loss(*zip(large, [2 * F_S, *small[1:]], strict=True), score_space="logit")
    np.testing.assert_allclose(both, (x + y) / 2, rtol=1e-6)


def test_an_adapter_between_widths():
    kernel = jnp.array([[1.0], [2.0]])
    wide = [F_S @ kernel]
    adapted = pfi_loss([F_S], [F_T @ kernel], [P_S], [P_T], adapter=lambda x: x @ kernel)
    np.testing.assert_allclose(adapted, pfi_loss(wide, [F_T @ kernel], [P_S], [P_T]), rtol=1e-6)
    with pytest.raises(UserError, match="adapter: needed from 2 to 1 features, got none"):
        pfi_loss([F_S], [F_T @ kernel], [P_S], [P_T])
    with pytest.raises(ValueError, match="adapter: needs to give"):
        feature_imitation_loss([F_S], [F_T @ kernel], adapter=lambda x: x)


def test_soft_labels_and_the_other_controls():
    student, teacher = STUDENT[..., None], TEACHER[..., None]
    loss = soft_label_loss(student, teacher, jnp.array([[1, 0, -1]]))  # the first anchor alone
    t = jax.nn.sigmoid(2.0)
    expected = jnp.log(2.0) + t * jnp.log(t) + (1 - t) * jnp.log(1 - t)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)
    np.testing.assert_array_equal(soft_label_loss(student, teacher, jnp.zeros((1, 3), jnp.int32)), 0)
    gradient = jax.grad(lambda z: soft_label_loss(z, teacher, ONE[0])[0])(student)[0, :, 0]
    np.testing.assert_allclose(
        gradient, (jax.nn.sigmoid(STUDENT) - jax.nn.sigmoid(TEACHER))[0] / 3, atol=1e-6
    )
    np.testing.assert_allclose(feature_imitation_loss([F_S], [F_T]), [1.25])
    masked = feature_imitation_loss([F_S, F_S], [F_T, F_T], [jnp.array([[[0.0, 3.0]]]), jnp.zeros((1, 1, 2))])
    np.testing.assert_allclose(masked, [1.0])  # 2 of the one level, nothing of the other
    np.testing.assert_allclose(prediction_imitation_loss([P_S], [P_T], score_space="logit"), [0.5])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: of_logits(STUDENT, temperature=0.0),
            UserError,
            "temperature: needs a finite number above 0",
        ),
        (lambda: of_logits(STUDENT, space="raw"), UserError, "space: needs one of sigmoid, logit, got 'raw'"),
        (
            lambda: rank_mimic_loss(STUDENT, TEACHER, *ONE),
            UserError,
            r"student_scores: needs scores in \[0, 1\]",
        ),
        (lambda: of_logits(STUDENT[:, :2]), ValueError, "assigned: needs one for each of"),
        (lambda: of_logits(STUDENT, TEACHER[:, :2]), ValueError, "teacher_scores: needs the student's"),
        (
            lambda: of_logits(STUDENT, assigned=jnp.ones((1, 3))),
            ValueError,
            "assigned: needs an integer dtype",
        ),
        (lambda: of_logits(STUDENT, mask=jnp.ones((2, 1), bool)), ValueError, "box_mask: needs"),
        (lambda: pfi(form="max"), UserError, "form: needs one of mean, l2, squared, got 'max'"),
        (lambda: pfi(score_space="raw"), UserError, "score_space: needs one of"),
        (lambda: pfi(weight_norm="max"), UserError, "weight_norm: needs one of none, mean"),
        (lambda: pfi(F_S[:, :, :1]), ValueError, "features: level 0 needs one shape for both"),
        (lambda: pfi(predictions=P_S[..., :1]), ValueError, "logits: level 0 needs one shape for both"),
        (
            lambda: pfi_loss([F_S] * 2, [F_T], [P_S], [P_T]),
            ValueError,
            "features: need as many levels of both",
        ),
        (
            lambda: pfi_loss([F_S], [F_T], [P_S] * 2, [P_T] * 2),
            ValueError,
            "features and logits: need as many",
        ),
        (lambda: feature_imitation_loss([F_S], [F_T], [jnp.ones((1, 2, 1))]), ValueError, "masks: need"),
        (lambda: soft_label_loss(STUDENT, TEACHER, ONE[0]), ValueError, "logits: need one shape"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
