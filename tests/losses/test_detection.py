"""Losses of detectors: published examples, normalizers by hand, gradients at the edges, and set matching."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linear_sum_assignment

from jaxface import axes, losses
from jaxface.boxes import normalized_boxes

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


# Parts.


def test_smooth_l1_by_hand():
    errors = jnp.array([0.05, 2.0, -2.0, 0.0])
    zeros = jnp.zeros(4)
    np.testing.assert_allclose(
        losses.smooth_l1_loss(errors, zeros, beta=1 / 9), [0.01125, 1.944444, 1.944444, 0], atol=1e-6
    )
    np.testing.assert_allclose(losses.smooth_l1_loss(errors, zeros), [0.00125, 1.5, 1.5, 0], atol=1e-6)
    np.testing.assert_allclose(losses.smooth_l1_loss(errors, zeros, beta=0), [0.05, 2, 2, 0], atol=1e-6)
    assert losses.smooth_l1_loss(errors.astype(jnp.bfloat16), zeros.astype(jnp.bfloat16)).dtype == jnp.float32


def test_smooth_l1_of_the_face_detectors_example():
    deltas = jnp.array([3.5, 2, 0.911608, 0.911608])  # of tests/boxes, an anchor and a face
    total = losses.smooth_l1_loss(jnp.zeros(4), deltas).sum()
    assert float(total) == pytest.approx(5.331029, abs=1e-5)


def test_smooth_l1_has_bounded_gradients():
    errors = jnp.array([0.0, 1.0, -1.0, 3e38, -3e38])
    for beta in (0.0, 1 / 9, 1.0):
        gradient = jax.grad(lambda e, beta=beta: losses.smooth_l1_loss(e, jnp.zeros(5), beta=beta).sum())(
            errors
        )
        assert np.abs(gradient).max() <= 1 and gradient[0] == 0


@pytest.mark.parametrize(
    ("logit", "target", "expected"),
    [(0.0, 1, 0.043322), (2.0, 1, 0.000450891), (2.0, 0, 1.237559), (-4.59512, 0, 7.537749e-07)],
)
def test_focal_loss_by_hand(logit, target, expected):
    loss = losses.sigmoid_focal_loss(jnp.array([[logit]]), jnp.array([target]))
    assert float(loss[0, 0]) == pytest.approx(expected, rel=2e-5)
    chance = 1 / (1 + np.exp(-logit))
    right = chance if target else 1 - chance
    assert expected == pytest.approx((0.25 if target else 0.75) * (1 - right) ** 2 * -np.log(right), rel=1e-5)


def test_focal_loss_has_no_background_channel_and_ignores():
    logits = normal(4, 3)
    loss = losses.sigmoid_focal_loss(logits, jnp.array([-1, 0, 2, 3]))
    targets = jnp.array([[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]], jnp.float32)
    expected = optax.sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0)
    np.testing.assert_allclose(loss[1:], expected[1:], rtol=1e-6)
    np.testing.assert_array_equal(loss[0], 0)


def test_focal_gradients_are_bounded_at_100():
    logits = jnp.array([[100.0], [-100.0], [100.0], [-100.0]])
    labels = jnp.array([1, 1, 0, 0])
    gradient = jax.grad(lambda x: losses.sigmoid_focal_loss(x, labels).sum())(logits)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() < 1.01


def test_the_largest_background_counts():
    logits = jnp.array([[0.5, 2.0, -1.0, 0.7]])
    np.testing.assert_allclose(losses.max_out_background(logits), [[2.0, 0.7]])
    with pytest.raises(ValueError, match=r"^backgrounds: needs 1 to 3 of the 4 logits, got 4"):
        losses.max_out_background(logits, backgrounds=4)


# Multibox.

LOGITS = jnp.array([[[0.0, 2], [1, 0], [0, 0], [0, 1], [3, 0], [0.5, 0]]])
LABELS = jnp.array([[1, 0, 0, 0, 0, 0]])
NOTHING = jnp.zeros((1, 6, 4))


@pytest.mark.parametrize(("ratio", "expected"), [(1, 1.440190), (3, 2.607413), (7, 2.969263)])
def test_hard_negatives_by_hand(ratio, expected):
    terms = losses.multibox_loss(LOGITS, LABELS, NOTHING, NOTHING, negatives_per_positive=ratio)
    assert float(terms.classification) == pytest.approx(expected, abs=2e-6)
    assert (float(terms.positives), float(terms.negatives)) == (1, min(ratio, 5))
    logits, kinds = np.asarray(LOGITS[0], np.float64), [1, 0, 0, 0, 0, 0]
    entropies = [np.log(np.exp(x).sum()) - x[kind] for x, kind in zip(logits, kinds, strict=True)]
    assert entropies[0] + np.sort(entropies[1:])[::-1][:ratio].sum() == pytest.approx(expected, abs=2e-6)


def test_which_negatives_are_hard():
    scores = jnp.array([[5.0, 1, 3, 3, 3, 9], [1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1]])
    labels = jnp.array([[1, 0, 0, 0, 0, -1], [0, 0, 0, 0, 0, 0], [2, 1, 0, 0, -1, -1]])
    hard = losses.hard_negatives(scores, labels, negatives_per_positive=2)
    # Of equal ones the first; none without a positive; no more than there are.
    np.testing.assert_array_equal(hard, [[0, 0, 1, 1, 0, 0], [0] * 6, [0, 0, 1, 1, 0, 0]])
    assert not losses.hard_negatives(scores, labels, negatives_per_positive=0).any()


@pytest.fixture(scope="module")
def face_batch():
    """Two images of 40 anchors, some ignored, with landmarks for some."""
    rng = np.random.default_rng(1)
    labels = rng.choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=(2, 40))
    return {
        "logits": jnp.asarray(rng.normal(size=(2, 40, 2)), jnp.float32),
        "labels": jnp.asarray(labels),
        "deltas": jnp.asarray(rng.normal(size=(2, 40, 4)), jnp.float32),
        "target_deltas": jnp.asarray(rng.normal(size=(2, 40, 4)), jnp.float32),
        "points": jnp.asarray(rng.normal(size=(2, 40, 5, 2)), jnp.float32),
        "target_points": jnp.asarray(rng.normal(size=(2, 40, 5, 2)), jnp.float32),
        "point_mask": jnp.asarray(rng.uniform(size=(2, 40)) < 0.5),
    }


def multibox64(logits, labels, deltas, target_deltas, points, target_points, point_mask, *, ratio, weight):
    def smooth(error):
        size = np.abs(np.asarray(error, np.float64))
        return np.where(size < 1, size**2 / 2, size - 0.5).sum()

    labels = np.asarray(labels)
    logits = np.asarray(logits, np.float64)
    chosen = np.maximum(labels, 0)
    entropy = np.log(np.exp(logits).sum(axis=-1)) - np.take_along_axis(logits, chosen[..., None], -1)[..., 0]
    classification = entropy[labels > 0].sum()
    for row, kinds in zip(entropy, labels, strict=True):
        classification += np.sort(row[kinds == 0])[::-1][: ratio * (kinds > 0).sum()].sum()
    positive = labels > 0
    known = positive & np.asarray(point_mask)
    count, with_points = max(positive.sum(), 1), max(known.sum(), 1)
    return (
        classification / count
        + weight * smooth((np.asarray(deltas) - np.asarray(target_deltas))[positive]) / count
        + smooth((np.asarray(points) - np.asarray(target_points))[known]) / with_points
    )


@pytest.mark.parametrize(("ratio", "weight"), [(7, 2.0), (3, 1.0)])
def test_both_variants_against_float64(face_batch, ratio, weight):
    terms = jax.jit(lambda b: losses.multibox_loss(**b, negatives_per_positive=ratio, box_weight=weight))(
        face_batch
    )
    expected = multibox64(**face_batch, ratio=ratio, weight=weight)
    assert float(terms.total) == pytest.approx(expected, rel=1e-5)
    parts = terms.classification + weight * terms.box + terms.points
    assert float(terms.total) == pytest.approx(float(parts), rel=1e-6)
    assert terms.positives == (face_batch["labels"] > 0).sum()


def test_what_is_not_positive_has_no_box_gradient(face_batch):
    positive = np.asarray(face_batch["labels"] > 0)
    broken = face_batch | {  # what stands at the others is no matter, not even NaN
        "target_deltas": jnp.where(positive[..., None], face_batch["target_deltas"], jnp.nan),
        "target_points": jnp.where(
            (positive & face_batch["point_mask"])[..., None, None], face_batch["target_points"], jnp.nan
        ),
    }

    def loss(predicted):
        return losses.multibox_loss(**(broken | predicted)).total

    gradients = jax.jit(jax.grad(loss))({name: broken[name] for name in ("logits", "deltas", "points")})
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert (np.abs(gradients["deltas"]).sum(axis=-1) > 0).tolist() == positive.tolist()
    ignored = np.asarray(face_batch["labels"] < 0)
    assert (np.asarray(gradients["logits"])[ignored] == 0).all()


def test_a_batch_without_a_face_gives_zero(face_batch):
    empty = face_batch | {"labels": jnp.minimum(face_batch["labels"], 0)}
    value, gradient = jax.value_and_grad(lambda x: losses.multibox_loss(**(empty | {"logits": x})).total)(
        empty["logits"]
    )
    assert value == 0 and (np.asarray(gradient) == 0).all()


def test_replicas_average_to_the_whole(face_batch):
    whole = jax.jit(lambda batch: losses.multibox_loss(**batch))(face_batch)
    halves = jax.jit(
        jax.vmap(lambda b: losses.multibox_loss(**jax.tree.map(lambda x: x[None], b)), axis_name=axes.DATA)
    )(face_batch)
    for name in ("total", "classification", "box", "points"):
        np.testing.assert_allclose(getattr(halves, name).mean(), getattr(whole, name), rtol=1e-5)


def test_low_precision_logits_and_labels_of_any_type(face_batch):
    low = face_batch | {
        "logits": face_batch["logits"].astype(jnp.bfloat16),
        "labels": face_batch["labels"].astype(jnp.int8),
    }
    again = low | {"logits": low["logits"].astype(jnp.float32)}
    assert losses.multibox_loss(**low) == losses.multibox_loss(**again)


# General detectors.


def test_retinanet_by_hand():
    logits, deltas, targets = normal(2, 5, 3), normal(2, 5, 4), normal(2, 5, 4)
    labels = jnp.array([[2, 1, 0, -1, 3], [0, 0, 0, 0, 0]])  # 3 positives and none: 3 + 1
    terms = losses.retinanet_loss(logits, labels, deltas, targets)
    assert float(terms.classification) == pytest.approx(
        float(losses.sigmoid_focal_loss(logits, labels).sum()) / 4, rel=1e-6
    )
    error = np.abs(np.asarray(deltas - targets))[np.asarray(labels) > 0].sum()
    assert float(terms.box) == pytest.approx(error / 4, rel=1e-6)
    assert (float(terms.positives), float(terms.negatives)) == (3, 6)


def test_proposals_are_divided_by_the_sample():
    logits, deltas, targets = normal(1, 6), normal(1, 6, 4), normal(1, 6, 4)
    labels = jnp.array([[1, 1, 0, 0, -1, 0]])
    sampled = jnp.array([[True, False, True, True, True, False]])  # the ignored one never counts
    terms = losses.rpn_loss(logits, labels, deltas, targets, sampled)
    x = np.asarray(logits[0], np.float64)
    entropy = np.log1p(np.exp(-x[0])) + np.log1p(np.exp(x[2])) + np.log1p(np.exp(x[3]))
    assert float(terms.classification) == pytest.approx(entropy / 3, rel=1e-5)
    assert float(terms.box) == pytest.approx(
        float(np.abs(np.asarray(deltas - targets))[0, 0].sum()) / 3, rel=1e-5
    )
    nothing = losses.rpn_loss(logits, labels, deltas, targets, jnp.zeros_like(sampled))
    assert nothing.total == 0


def test_regions_have_the_background_last_and_four_deltas_of_a_class():
    logits, deltas, targets = normal(1, 4, 3), normal(1, 4, 8), normal(1, 4, 4)
    labels = jnp.array([[2, 1, 0, 1]])
    sampled = jnp.array([[True, True, True, False]])
    terms = losses.rcnn_loss(logits, labels, deltas, targets, sampled)
    logs = np.asarray(jax.nn.log_softmax(logits[0]))
    assert float(terms.classification) == pytest.approx(-(logs[0, 1] + logs[1, 0] + logs[2, 2]) / 3, rel=1e-5)
    error = np.abs(deltas[0, 0, 4:] - targets[0, 0]).sum() + np.abs(deltas[0, 1, :4] - targets[0, 1]).sum()
    assert float(terms.box) == pytest.approx(float(error) / 3, rel=1e-5)  # the sample, not its 2 positives
    assert (float(terms.positives), float(terms.negatives)) == (2, 1)
    one_box = losses.rcnn_loss(logits, labels, deltas[..., :4], targets, sampled)
    assert one_box.classification == terms.classification and one_box.box != terms.box


# Sets.


def test_matching_is_the_optimum():
    """48 random problems of three shapes, against SciPy."""
    for shape in ((100, 20), (20, 20), (30, 7)):
        costs = RNG.normal(size=(16, *shape)).astype(np.float32)
        matches = jax.jit(jax.vmap(losses.match_sets))(costs, np.ones((16, shape[1]), bool))
        for cost, match in zip(costs, np.asarray(matches), strict=True):
            rows, columns = linear_sum_assignment(cost)
            assert len(set(match.tolist())) == shape[1]
            best = cost[rows, columns].sum()
            assert cost[match, np.arange(shape[1])].sum() == pytest.approx(best, abs=1e-4)


def test_padding_does_not_change_the_matching():
    costs = RNG.normal(size=(20, 6)).astype(np.float32)
    alone = np.asarray(losses.match_sets(costs[:, :4], np.ones(4, bool)))
    for padding in (0.0, 1e9, np.nan, -np.inf):
        padded = costs.copy()
        padded[:, 4:] = padding
        match = np.asarray(losses.match_sets(padded, np.arange(6) < 4))
        np.testing.assert_array_equal(match[:4], alone)
        assert len(set(match.tolist())) == 6


def test_a_cost_that_is_no_number_is_a_large_one():
    cost = jnp.array([[jnp.nan, 1.0], [2.0, jnp.inf], [3.0, 3.0]])
    assert losses.match_sets(cost, jnp.array([True, True])).tolist() == [1, 0]


def test_sets_that_are_refused():
    with pytest.raises(
        ValueError, match=r"^cost: needs at least as many predictions as objects, got \(2, 3\)"
    ):
        losses.match_sets(jnp.zeros((2, 3)), jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"^cost: needs \[N, M\] and mask \[M\]"):
        losses.match_sets(jnp.zeros((3, 2)), jnp.ones(3, bool))


@pytest.fixture(scope="module")
def sets():
    """Two images of 5 predictions and 3 objects, the last ones padding; sizes differ from the batch's."""
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 60, (2, 3, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (2, 3, 2))], axis=-1).astype(np.float32)
    mask = np.array([[True, True, False], [True, False, False]])
    boxes[~mask] = [0, 0, 1, 1]
    return {
        "logits": jnp.asarray(rng.normal(size=(2, 5, 4)), jnp.float32),
        "boxes": jnp.asarray(rng.uniform(0.1, 0.6, (2, 5, 4)), jnp.float32),
        "target_boxes": jnp.asarray(boxes),
        "target_labels": jnp.array([[0, 2, 0], [1, 0, 0]]),
        "target_mask": jnp.asarray(mask),
        "image_size": jnp.array([[100, 120], [90, 80]]),
    }


def giou64(a, b):
    common = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common
    around = (np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2])).prod()
    return common / union - (around - union) / around


def pair64(sets, image, query, number):
    """(L1, giou) of a prediction and an object in float64; giou over the normalized boxes, as published."""
    cx, cy, w, h = np.asarray(sets["boxes"][image, query], np.float64)
    height, width = np.asarray(sets["image_size"][image])
    y0, x0, y1, x1 = np.asarray(sets["target_boxes"][image, number], np.float64) / np.tile([height, width], 2)
    target = np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
    predicted = np.array([cy - h / 2, cx - w / 2, cy + h / 2, cx + w / 2])
    return np.abs(np.array([cx, cy, w, h]) - target).sum(), giou64(predicted, np.array([y0, x0, y1, x1]))


def test_detr_against_float64(sets):
    given = {name: sets[name] for name in sets}
    matches = jax.jit(jax.vmap(losses.detr_match))(*given.values())
    terms = jax.jit(losses.detr_loss)(*given.values(), matches)
    logs = np.asarray(jax.nn.log_softmax(sets["logits"].astype(jnp.float32)), np.float64)
    classes, box, giou = np.full((2, 5), 3), 0.0, 0.0
    for image, count in enumerate((2, 1)):
        cost = np.zeros((5, count))
        for query, number in np.ndindex(5, count):
            distance, overlap = pair64(sets, image, query, number)
            label = int(sets["target_labels"][image, number])
            cost[query, number] = 5 * distance - np.exp(logs[image, query, label]) - 2 * overlap
        rows, columns = linear_sum_assignment(cost)
        for query, number in zip(rows, columns, strict=True):
            assert int(matches[image, number]) == query
            classes[image, query] = sets["target_labels"][image, number]
            distance, overlap = pair64(sets, image, query, number)
            box, giou = box + distance / 3, giou + (1 - overlap) / 3
    weights = np.where(classes == 3, 0.1, 1.0)
    entropy = -np.take_along_axis(logs, classes[..., None], axis=-1)[..., 0]
    assert float(terms.classification) == pytest.approx((weights * entropy).sum() / weights.sum(), rel=1e-5)
    assert float(terms.box) == pytest.approx(box, rel=1e-5)
    assert float(terms.giou) == pytest.approx(giou, rel=1e-5)
    total = terms.classification + 5 * terms.box + 2 * terms.giou
    assert float(terms.total) == pytest.approx(float(total), rel=1e-6)


def test_detr_gradients_are_finite_and_padding_has_none(sets):
    nothing = jnp.zeros_like(sets["target_mask"])
    collapsed = sets["boxes"].at[0, 0].set(0.0).at[0, 1, 2:].set(-0.1)  # no size, a negative one

    def loss(logits, boxes, mask):
        given = sets | {"logits": logits, "boxes": boxes, "target_mask": mask}
        matches = jax.vmap(losses.detr_match)(*given.values())
        return losses.detr_loss(*given.values(), matches).total

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for mask in (sets["target_mask"], nothing):
        gradients = gradient(sets["logits"], collapsed, mask)
        assert all(np.isfinite(g).all() and np.abs(g).max() < 1e3 for g in gradients)
    assert (np.asarray(gradients[1]) == 0).all()  # without an object boxes learn nothing


def test_a_perfect_set_has_no_box_loss(sets):
    perfect = normalized_boxes(sets["target_boxes"], sets["image_size"][:, None])
    given = sets | {"boxes": jnp.concatenate([perfect, sets["boxes"][:, :2]], axis=1)}
    logits = (
        jnp.full((2, 5, 4), -9.0).at[jnp.arange(2)[:, None], jnp.arange(3), sets["target_labels"]].set(9.0)
    )
    given["logits"] = logits.at[:, 3:, 3].set(9.0)
    matches = jax.jit(jax.vmap(losses.detr_match))(*given.values())
    terms = jax.jit(losses.detr_loss)(*given.values(), matches)
    assert float(terms.box) < 1e-6 and float(terms.giou) < 1e-6


# Refusals.


def multibox(labels, **options):
    return losses.multibox_loss(LOGITS, labels, NOTHING, NOTHING, **options)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: multibox(LABELS + 1), r"labels: needs values in \[-1, 1\], got 1..2"),
        (lambda: multibox(LABELS - 2), r"labels: needs values in \[-1, 1\], got -2..-1"),
        (lambda: multibox(LABELS * 1.0), "labels: needs an integer dtype, got float32"),
        (lambda: multibox(LABELS, box_weight=-1), "box_weight: needs a finite number from 0, got -1"),
        (lambda: multibox(LABELS, points=NOTHING), "target_points, point_mask: needs both"),
        (lambda: losses.smooth_l1_loss(NOTHING, NOTHING, beta=-1.0), "beta: needs a finite number from 0"),
        (lambda: losses.sigmoid_focal_loss(LOGITS, LABELS, alpha=2.0), "alpha: needs a number from 0 to 1"),
        (
            lambda: losses.rcnn_loss(LOGITS, LABELS + 1, NOTHING, NOTHING, LABELS > 0),
            r"labels: needs values in \[-1, 1\]",
        ),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ValueError, match=f"^{words}") as refused:
        call()
    assert "\n" not in str(refused.value)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(AssertionError, match=r"predictions and targets must be of one shape"):
        losses.multibox_loss(LOGITS, LABELS, NOTHING, NOTHING[:, :5])
    with pytest.raises(AssertionError, match=r"logits must be \[B, A, 1 \+ C\]"):
        losses.multibox_loss(LOGITS[:, :5], LABELS, NOTHING, NOTHING)


def test_traced_labels_out_of_range_give_nan(face_batch):
    run = jax.jit(lambda labels: losses.multibox_loss(**(face_batch | {"labels": labels})).total)
    assert np.isfinite(run(face_batch["labels"]))
    assert np.isnan(run(face_batch["labels"].at[0, 0].set(2)))


def test_detr_with_a_focal_loss_by_hand():
    """Logits of 0: 0.043322 for the class that is there, 0.129965 for each of the five that are not."""
    logits, boxes = jnp.zeros((1, 2, 3)), jnp.array([[[0.5, 0.5, 1.0, 1.0], [0.2, 0.2, 0.1, 0.1]]])
    target = jnp.array([[[0.0, 0.0, 10.0, 10.0]]]), jnp.array([[1]]), jnp.array([[True]])
    size = jnp.array([[10, 10]])
    terms = losses.detr_loss(logits, boxes, *target, size, jnp.array([[0]]), focal=True)
    assert float(terms.classification) == pytest.approx(0.043322 + 5 * 0.129965, abs=2e-6)
    assert float(terms.box) == 0 and float(terms.giou) == pytest.approx(0, abs=1e-6)


def test_detr_matches_the_surer_of_two_boxes_with_a_focal_cost():
    logits = jnp.array([[-2.0, 3.0], [2.0, 3.0], [3.0, -3.0]])
    boxes = jnp.tile(jnp.array([0.5, 0.5, 1.0, 1.0]), (3, 1))
    target = jnp.array([[0.0, 0.0, 10.0, 10.0]]), jnp.array([0]), jnp.array([True])
    assert losses.detr_match(logits, boxes, *target, (10, 10), focal=True).tolist() == [2]
    flipped = (target[0], jnp.array([1]), target[2])
    assert losses.detr_match(logits[1:], boxes[1:], *flipped, (10, 10), focal=True).tolist() == [0]
