"""NCL++ against numbers of the source's released loss, and its properties."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.losses.long_tail import balanced_softmax_loss
from jaxface.losses.nclpp import (
    hard_category_mask,
    moco_nce,
    ncl_loss,
    ncl_pp_loss,
    pairwise_sym_kl,
    partial_cross_entropy,
    queue_push,
)
from jaxface.losses.softmax import cross_entropy

COUNTS = jnp.array([100, 50, 20, 10, 5])
LABELS = jnp.array([4, 1, 4, 1])
LOGITS = jnp.array(
    [
        [[1, 0, -1, 0.5, 2], [0, 1, 0, -1, 1], [0.5, 0.5, -0.5, 0, 1], [0.2, 0.8, 0.1, -0.6, 0.4]],
        [[0, 0.3, -0.2, 0.1, 1], [0.4, -0.4, 0.6, 0, 0.2], [1, 0, 0, 0.5, 0.5], [-0.3, 0.9, 0, 0.2, 0.7]],
    ]
)
SIZES = {"copies": 2, "num_hard": 2}


def loss_of(logits=LOGITS, labels=LABELS, counts=COUNTS, **options):
    return ncl_pp_loss(logits, labels, counts, **{**SIZES, **options})


def test_the_hard_classes_are_those_of_the_first_expert():
    mask = hard_category_mask(LOGITS[0], LABELS, num_hard=2)
    rows = [np.flatnonzero(row).tolist() for row in np.asarray(mask)]
    assert rows == [[0, 4], [1, 4], [0, 4], [1, 4]]
    # Ties take no more than H, and the right class is in however low it scores.
    tied = hard_category_mask(jnp.array([[0.0, 0.0, 0.0, -9.0]]), jnp.array([3]), num_hard=2)
    assert tied.sum() == 2 and tied[0, 3] == 1


@pytest.mark.parametrize(
    ("mode", "hcm", "total", "row"),
    [
        ("zero", 2.739082, 7.688235, (0.528198, -0.127091, -0.024779, 0.001817, -0.380551)),
        ("restrict", 2.688292, 7.637445, (0.530316, -0.127091, -0.024779, 0.001817, -0.380263)),
    ],
)
def test_terms_total_and_gradient(mode, hcm, total, row):
    """The totals are those of the released loss, which has "zero"."""
    (loss, terms), gradient = jax.value_and_grad(lambda z: loss_of(z, hcm_mode=mode), has_aux=True)(LOGITS)
    expected = {"full": 1.738137 + 2.284943, "hcm": hcm, "inter": 0.300631, "intra": 0.625442}
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, atol=2e-6)
    np.testing.assert_allclose(loss, total, atol=2e-6)
    np.testing.assert_allclose(gradient[0, 0], row, atol=2e-6)
    sums = np.asarray(gradient.sum(-1))
    if mode == "restrict":
        np.testing.assert_allclose(sums, 0, atol=1e-6)
    else:
        np.testing.assert_allclose(sums[0, 0], -0.002406, atol=2e-6)


def test_parts_of_the_agreement():
    balanced = LOGITS + jnp.log(COUNTS)
    mask = hard_category_mask(LOGITS[0], LABELS, num_hard=2)
    log_probs = jax.nn.log_softmax(balanced)
    np.testing.assert_allclose(pairwise_sym_kl(log_probs), 0.339170, atol=2e-6)
    np.testing.assert_allclose(pairwise_sym_kl(log_probs, mask), 0.161882, atol=2e-6)
    copies = [
        0.6 * (pairwise_sym_kl(x) + pairwise_sym_kl(x, mask[:2])) for x in log_probs.reshape(2, 2, 2, 5)
    ]
    np.testing.assert_allclose(copies, [0.104102, 0.521339], atol=2e-6)
    for k, (zero, restrict) in enumerate([(1.232367, 1.214577), (1.506716, 1.473715)]):
        for mode, value in (("zero", zero), ("restrict", restrict)):
            loss = partial_cross_entropy(balanced[k], LABELS, mask, mode=mode).mean()
            np.testing.assert_allclose(loss, value, atol=2e-6)


def test_as_first_published():
    np.testing.assert_allclose(ncl_loss(LOGITS, LABELS, COUNTS, num_hard=2)[0], 6.991337, atol=2e-6)


def test_three_experts_agree_half_again_as_much_as_first_published():
    logits = jax.random.normal(jax.random.key(0), (3, 4, 5))
    options = {"num_hard": 5, "hcm_mode": "restrict"}  # both views are the whole
    first = ncl_loss(logits, LABELS, COUNTS, **options)[1]["inter"]
    second = ncl_pp_loss(logits, LABELS, COUNTS, copies=1, **options)[1]["inter"]
    np.testing.assert_allclose(first, 1.5 * second, rtol=1e-5)


def test_logits_of_zero_cost_the_logarithm_of_the_share():
    loss = balanced_softmax_loss(jnp.zeros((5, 5)), jnp.arange(5), COUNTS)
    np.testing.assert_allclose(loss, [0.615186, 1.308333, 2.224624, 2.917771, 3.610918], atol=1e-6)
    prior = jax.nn.softmax(jnp.log(COUNTS.astype(jnp.float32)))
    np.testing.assert_allclose(prior, [0.540541, 0.270270, 0.108108, 0.054054, 0.027027], atol=1e-6)


def test_equal_counts_change_nothing_and_a_factor_neither():
    rows = balanced_softmax_loss(LOGITS[0], LABELS, jnp.full(5, 7))
    np.testing.assert_allclose(rows, cross_entropy(LOGITS[0], LABELS), atol=1e-6)
    for (_, one), (_, other) in zip(
        loss_of()[1].items(), loss_of(counts=10 * COUNTS)[1].items(), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_is_identical_agrees():
    copies = LOGITS.at[:, 2:].set(LOGITS[:, :2])
    assert loss_of(copies)[1]["intra"] == 0 and loss_of(copies)[1]["inter"] > 0
    experts = jnp.stack([LOGITS[0], LOGITS[0]])
    assert loss_of(experts)[1]["inter"] == 0 and loss_of(experts)[1]["intra"] > 0


@pytest.mark.parametrize(("logits", "copies", "gone"), [(LOGITS[:1], 2, "inter"), (LOGITS, 1, "intra")])
def test_one_expert_or_one_copy_has_nobody_to_learn_from(logits, copies, gone):
    (loss, terms), gradient = jax.value_and_grad(lambda z: loss_of(z, copies=copies), has_aux=True)(logits)
    assert terms[gone] == 0 and np.isfinite(loss) and np.isfinite(gradient).all()


def test_all_classes_hard_is_the_full_view():
    terms = loss_of(num_hard=5)[1]
    np.testing.assert_allclose(terms["hcm"], terms["full"], rtol=1e-6)
    full = loss_of(num_hard=5, partial_view=False)[1]
    np.testing.assert_allclose(terms["inter"], 2 * full["inter"], rtol=1e-6)
    np.testing.assert_allclose(terms["intra"], 2 * full["intra"], rtol=1e-6)


def test_sum_over_pairs_without_pairs():
    with jax.enable_x64():
        logits = jax.random.normal(jax.random.key(1), (4, 6, 5), jnp.float64)
        log_probs = jax.nn.log_softmax(logits)
        mask = hard_category_mask(logits[0], jnp.arange(6) % 5, num_hard=3)
        p = np.exp(log_probs)
        for weights in (None, mask):
            pairs = [
                ((p[i] - p[j]) * (log_probs[i] - log_probs[j]) * (1 if weights is None else weights))
                .sum(1)
                .mean()
                for i, j in itertools.combinations(range(4), 2)
            ]
            distance = pairwise_sym_kl(log_probs, weights)
            assert abs(float(distance - np.mean(pairs))) < 1e-12 and distance >= 0
        assert pairwise_sym_kl(log_probs, mask) <= pairwise_sym_kl(log_probs)


def test_the_order_of_experts_counts_for_the_mask_alone():
    flipped = loss_of(LOGITS[::-1])[1]
    terms = loss_of()[1]
    np.testing.assert_allclose(flipped["full"], terms["full"], rtol=1e-6)
    assert abs(float(flipped["hcm"] - terms["hcm"])) > 1e-3
    whole, turned = loss_of(num_hard=5)[0], loss_of(LOGITS[::-1], num_hard=5)[0]
    np.testing.assert_allclose(whole, turned, rtol=1e-6)


@pytest.mark.parametrize("mode", ["restrict", "zero"])
def test_gradients_are_finite_where_probabilities_underflow(mode):
    far = LOGITS.at[0, 0].set(jnp.array([200.0, -200, 0, 100, -100]))
    value, gradient = jax.value_and_grad(lambda z: loss_of(z, hcm_mode=mode)[0])(far)
    assert np.isfinite(value) and np.isfinite(gradient).all() and np.abs(gradient).max() < 1e3
    value, gradient = jax.value_and_grad(lambda z: ncl_loss(z, LABELS, COUNTS, num_hard=2, hcm_mode=mode)[0])(
        far
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_compiled_and_low_precision():
    compiled = jax.jit(lambda z, y, lam: ncl_pp_loss(z, y, COUNTS, lam=lam, **SIZES)[0])
    np.testing.assert_allclose(compiled(LOGITS, LABELS, 0.6), loss_of()[0], rtol=1e-6)
    low = compiled(LOGITS.astype(jnp.bfloat16), LABELS, 0.6)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, loss_of()[0], rtol=2e-2)


def test_no_term_without_its_weight():
    terms = loss_of(lam=0.0, hcm_ratio=0.0)[1]
    assert terms["inter"] == terms["intra"] == terms["hcm"] == 0 < terms["full"]
    plain = loss_of(balanced_distillation=False)[1]
    assert abs(float(plain["inter"] - loss_of()[1]["inter"])) > 1e-3


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"counts": COUNTS.at[1].set(0)}, UserError, "counts: needs examples of every class, got 0"),
        ({"copies": 3}, ValueError, "copies: needs a divisor of the 4 rows, got 3"),
        ({"labels": jnp.array([4, 1, 1, 4])}, ValueError, "labels: needs the same ones for each of 2 copies"),
        ({"labels": jnp.array([5, 1, 5, 1])}, ValueError, "labels"),
        ({"num_hard": 1}, UserError, "num_hard: needs an integer from 2 to 5, got 1"),
        ({"num_hard": 6}, UserError, "num_hard"),
        ({"lam": -1.0}, UserError, "lam"),
        ({"hcm_mode": "none"}, UserError, "mode: needs one of restrict, zero, got 'none'"),
        ({"counts": COUNTS[:4]}, ValueError, "counts: needs one number for each of 5 classes"),
    ],
)  # fmt: skip
def test_refusals(changes, error, words):
    with pytest.raises(error, match=words):
        loss_of(**changes)


def test_contrast_with_a_queue():
    queries = jax.random.normal(jax.random.key(2), (3, 4))
    keys, queue = queries[::-1], jnp.eye(4)[:, :2]
    unit = queries / jnp.linalg.norm(queries, axis=1, keepdims=True)
    same = jnp.exp((unit * unit[::-1]).sum(1) / 0.2)
    others = jnp.exp(unit @ queue / 0.2).sum(1)
    np.testing.assert_allclose(moco_nce(queries, keys, queue), -jnp.log(same / (same + others)), rtol=1e-4)
    gradients = jax.grad(lambda k, u: moco_nce(queries, k, u).sum(), (0, 1))(keys, queue)
    assert not any(np.any(g) for g in gradients)


def test_the_queue_forgets_the_oldest():
    queue, pointer = jnp.zeros((2, 4)), jnp.int32(0)
    for step in range(3):
        keys = jnp.array([[1.0, 0], [0, 1.0]]) * (step + 1) * (-1) ** step
        queue, pointer = queue_push(queue, pointer, keys)
    np.testing.assert_allclose(queue, [[1, 0, -1, 0], [0, 1, 0, -1]])
    assert pointer == 2
    with pytest.raises(UserError, match="queue: needs a length that the batch divides, got 4 for 3 keys"):
        queue_push(queue, pointer, jnp.ones((3, 2)))
