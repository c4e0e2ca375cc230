"""JoCoR and Co-teaching against closed forms in float64 (numpy), and the schedule against the released numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import axes, losses
from jaxface.errors import UserError
from jaxface.losses.small_loss import batch_small_loss_mask

Z1 = jnp.array([[2.0, 0, -1], [0.5, 1.5, 0]])
Z2 = jnp.array([[1.0, 1, 0], [-0.5, 0.5, 2]])
LABELS = jnp.array([0, 2])


def scores(z1, z2, agreement, labels=LABELS):
    return losses.jocor_scores(z1, z2, labels, agreement=agreement)


def test_scores_of_two_examples():
    np.testing.assert_allclose(losses.cross_entropy(Z1, LABELS), [0.169846, 1.964369], atol=1e-6)
    np.testing.assert_allclose(losses.cross_entropy(Z2, LABELS), [0.861995, 0.266368], atol=1e-6)
    both = np.array([0.463214, 0.996473]) + [0.379738, 0.881266]
    np.testing.assert_allclose(losses.symmetric_divergence(Z1, Z2), both, atol=2e-6)
    np.testing.assert_allclose(scores(Z1, Z2, 0.65), [0.909063, 2.001288], atol=1e-6)
    np.testing.assert_allclose(scores(Z1, Z2, 0.0), [1.031841, 2.230737], atol=1e-6)
    np.testing.assert_array_equal(scores(Z1, Z2, 0.65), scores(Z2, Z1, 0.65))
    np.testing.assert_allclose(scores(Z1, Z1, 0.65), 2 * 0.35 * losses.cross_entropy(Z1, LABELS), rtol=1e-6)


def test_a_number_added_to_all_classes_changes_no_score():
    shift = jnp.array([[3.0], [-7.0]])
    np.testing.assert_allclose(scores(Z1 + shift, Z2, 0.65), scores(Z1, Z2, 0.65), rtol=1e-5)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_scores_and_gradients_stay_finite(size):
    z1, z2 = jnp.array([[size, -size, 0.0]]), jnp.array([[-size, size, 0.0]])
    value, gradient = jax.value_and_grad(lambda z: scores(z, z2, 0.65, jnp.array([1])).sum())(z1)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert np.isfinite(losses.jocor_loss(z1.astype(jnp.bfloat16), z2, jnp.array([1]), 1, agreement=0.5)[0])


def test_the_schedule_of_the_release():
    rates = [losses.forget_rate(epoch, 0.8) for epoch in range(11)]
    expected = [0, 0.088889, 0.177778, 0.266667, 0.355556, 0.444444, 0.533333, 0.622222, 0.711111, 0.8, 0.8]
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    assert losses.small_loss_count(50_000, rates[9]) == 10_000 and int((1 - 0.8) * 50_000) == 9_999
    np.testing.assert_allclose(losses.forget_rate(9, 0.5, exponent=2.0), 0.25)
    assert losses.forget_rate(10, 0.5, exponent=2.0) == 0.5


def test_masks():
    assert losses.small_loss_mask(jnp.array([3.0, 1, 2, 1]), 2).tolist() == [False, True, False, True]
    assert losses.small_loss_mask(jnp.ones(3), 2).tolist() == [True, True, False]
    none = losses.small_loss_mask(jnp.ones(3), 0)
    assert not none.any() and losses.masked_mean(jnp.ones(3), none) == 0
    traced = jax.jit(losses.small_loss_mask)
    for count in range(5):
        assert traced(jnp.arange(4.0)[::-1], count).sum() == min(count, 4)
    assert traced._cache_size() == 1


def test_jocor_learns_the_examples_that_it_chooses():
    loss, selected = losses.jocor_loss(Z1, Z2, LABELS, 1, agreement=0.65)
    np.testing.assert_allclose(loss, 0.909063, atol=1e-6)
    assert selected.tolist() == [True, False]
    gradient = jax.grad(lambda z: losses.jocor_loss(z, Z2, LABELS, 1, agreement=0.65)[0])(Z1)
    assert (gradient[1] == 0).all() and (gradient[0] != 0).any()


def test_co_teaching_hands_over():
    first = jnp.array([[2.0, 0], [0.0, 0], [1.0, 0]])
    second = jnp.array([[0.0, 0], [3.0, 0], [1.0, 0]])
    labels = jnp.zeros(3, int)
    loss, (learned1, learned2) = losses.coteaching_loss(first, second, labels, 1)
    assert learned1.tolist() == [False, True, False] and learned2.tolist() == [True, False, False]
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=1e-6)
    gradient = jax.grad(lambda z: losses.coteaching_loss(z, second, labels, 1)[0])(first)
    assert (gradient[0] == 0).all() and (gradient[1] != 0).any(), (
        "the first learns what is easy for the second"
    )


def test_replicas_choose_and_average_as_one_device():
    rng = np.random.default_rng(0)
    values, mask = jnp.asarray(rng.random((8, 2)), jnp.float32), jnp.asarray(rng.random((8, 2)) < 0.3)

    def on_replica(values, mask):
        chosen = batch_small_loss_mask(values, 5)
        return axes.mean(losses.masked_mean(values, mask)), chosen

    means, chosen = jax.pmap(on_replica, axis_name=axes.DATA)(values, mask)
    np.testing.assert_allclose(means, np.asarray(values)[np.asarray(mask)].mean(), rtol=1e-6)
    np.testing.assert_array_equal(chosen.ravel(), losses.small_loss_mask(values.ravel(), 5))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: scores(Z1, Z2, 1.1), UserError, "agreement: needs a number from 0 to 1, got 1.1"),
        (lambda: scores(Z1, Z2[:, :2], 0.5), ValueError, "logits: need two"),
        (lambda: scores(Z1, Z2, 0.5, jnp.array([0, 3])), ValueError, "labels: needs values in"),
        (lambda: losses.forget_rate(0, 1.0), UserError, "rate: needs a number from 0 and below 1, got 1"),
        (lambda: losses.forget_rate(-1, 0.5), UserError, "epoch: needs an integer from 0"),
        (lambda: losses.small_loss_count(10, 1.0), UserError, "forgotten: needs a number from 0 and below 1"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()
