"""LAW's features, weights, loss and reward against numbers worked out by hand, and what they promise for any input."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.errors import UserError
from jaxface.losses.law import action_size

LOSSES = jnp.array([0.1, 0.5, 2.3, 4.0])
PROBABILITIES = jnp.array([[0.9, 0.05, 0.05], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.018, 0.5, 0.482]])
LABELS = jnp.array([0, 1, 2, 0])
FIRST = [-0.906159, -0.683104, 0.320641, 1.268622]  # (ℓ - 1.725) / (1.793274 + 1e-5)


def features(**options):
    return losses.sample_features(jnp.log(PROBABILITIES), LOSSES, LABELS, **options)


@pytest.mark.parametrize(
    ("scale", "second"),
    [
        ("loss", [-0.156757, 0.124039, -0.020340, 0.053058]),
        ("entropy", [-1.306438, 1.033765, -0.169519, 0.442192]),
    ],
)
def test_features_with_either_divisor(scale, second):
    expected = np.stack([FIRST, second], axis=1)
    np.testing.assert_allclose(features(entropy_scale=scale), expected, atol=1e-5)


def test_the_class_is_a_feature_where_it_is_asked_for():
    both = features(use_label=True)
    np.testing.assert_array_equal(both[:, 2], LABELS)
    np.testing.assert_array_equal(both[:, :2], features())


def test_weights_and_loss_of_an_action():
    weights = losses.weights_from_action(jnp.array([-0.8, 0.5, 0.2]), features())
    np.testing.assert_allclose(weights, [1.689262, 1.668764, 0.933416, 0.342516], atol=1e-5)
    np.testing.assert_allclose(losses.weighted_mean(LOSSES, weights), 0.975458, atol=1e-5)
    np.testing.assert_allclose(weights.mean(), 1.158489, atol=1e-5)


def test_a_rule_with_hidden_nodes():
    action = jnp.array([0.5, -1.0, 0.25, 2.0, 0.1, -1.5, 0.75, 0.3])  # W0 [2, 2], b0, w1 [2], b1
    first = np.array([[0.5, -1.0], [0.25, 2.0]])
    scores = np.tanh(np.asarray(features()) @ first + 0.1) @ np.array([-1.5, 0.75]) + 0.3
    np.testing.assert_allclose(
        losses.weights_from_action(action, features(), num_nodes=2), 1 + np.tanh(scores), atol=1e-6
    )
    assert action_size(2, 2) == 8


@hypothesis.given(st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3))
@hypothesis.settings(deadline=None, max_examples=25)
def test_weights_are_between_0_and_2_and_the_loss_is_finite(action):
    weights = losses.weights_from_action(jnp.array(action, jnp.float32), features())
    assert bool(jnp.all((weights >= 0) & (weights <= 2)))
    assert np.isfinite(losses.weighted_mean(LOSSES, weights))


def test_no_weight_at_all_is_no_division_by_0():
    value, gradient = jax.value_and_grad(losses.weighted_mean)(LOSSES, jnp.zeros(4))
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("constant", [0.25, 1.0, 2.0])
def test_constant_weights_give_the_mean(constant):
    np.testing.assert_allclose(losses.weighted_mean(LOSSES, jnp.full(4, constant)), 1.725, rtol=1e-6)


def test_the_gradient_is_the_share_of_the_weight_and_none_passes_through_it():
    weights = jnp.array([0.5, 1.5, 1.0, 0.0])
    np.testing.assert_allclose(jax.grad(losses.weighted_mean)(LOSSES, weights), weights / 3.0, rtol=1e-6)
    action = jnp.array([-0.8, 0.5, 0.2])

    def loss(logits, fixed=None):
        values = losses.cross_entropy(logits, LABELS)
        seen = losses.sample_features(logits, values, LABELS)
        return losses.weighted_mean(
            values, losses.weights_from_action(action, seen) if fixed is None else fixed
        )

    logits = jnp.log(PROBABILITIES)
    values = losses.cross_entropy(logits, LABELS)
    fixed = losses.weights_from_action(action, losses.sample_features(logits, values, LABELS))
    np.testing.assert_allclose(jax.grad(loss)(logits), jax.grad(loss)(logits, fixed), atol=1e-7)


def test_replicas_average_to_the_loss_of_the_whole():
    weights = jnp.array([0.5, 1.5, 1.0, 0.2])
    both = jax.vmap(lambda x, w: losses.weighted_mean(x, w, axis_name="data"), axis_name="data")(
        LOSSES.reshape(2, 2), weights.reshape(2, 2)
    )
    np.testing.assert_allclose(both.mean(), losses.weighted_mean(LOSSES, weights), rtol=1e-6)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.002695), (12, 0.007326), (30, 0.032834), (48, 0.147152), (59, 0.368018), (60, 0.4)],
)
def test_rewards(epoch, expected):
    np.testing.assert_allclose(losses.stage_reward(62.0, 60.0, epoch, 60), expected, atol=1e-6)
    assert losses.stage_reward(60.0, 62.0, epoch, 60) == -losses.stage_reward(62.0, 60.0, epoch, 60)


@pytest.mark.parametrize(
    ("images", "epochs", "stages", "steps"),
    [(20_000, 60, 40, 300), (50_000, 60, 40, 750), (40_000, 100, 20, 2000), (50_000, 100, 20, 2500)],
)
def test_steps_of_a_stage(images, epochs, stages, steps):
    assert losses.stage_steps(images, epochs, stages) == steps


def test_self_paced_weights_take_the_easiest():
    np.testing.assert_array_equal(losses.self_paced_weights(LOSSES[::-1], 0.5), [0, 0, 1, 1])
    np.testing.assert_array_equal(losses.self_paced_weights(LOSSES, 0.0), [1, 0, 0, 0])
    np.testing.assert_array_equal(losses.self_paced_weights(jnp.zeros(4), 0.5), [1, 1, 0, 0])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_and_its_bounded_gradient(gamma):
    values = jnp.array([0.0, 0.1, 3.0])
    p = np.exp(-np.asarray(values))
    np.testing.assert_allclose(losses.focal_loss(values, gamma), (1 - p) ** gamma * values, rtol=1e-5)
    slopes = jax.vmap(jax.grad(lambda x: losses.focal_loss(x[None], gamma)[0]))(values)
    assert np.isfinite(slopes).all() and np.abs(slopes).max() < 10


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: losses.sample_features(jnp.zeros((1, 3)), jnp.zeros(1), jnp.zeros(1, int)), "at least 2 examples"),
        (lambda: losses.sample_features(jnp.zeros((2, 3)), jnp.array([0.0, jnp.nan]), jnp.zeros(2, int)), "losses"),
        (lambda: losses.weights_from_action(jnp.zeros(4), jnp.zeros((2, 2))), "2 features and 1 nodes need 3"),
        (lambda: losses.weighted_mean(LOSSES, LOSSES, 0.0), "eps"),
        (lambda: losses.stage_reward(1.0, 0.0, 0, 0), "epochs"),
        (lambda: losses.stage_steps(50, 60, 40), "images: needs an integer from 100, got 50"),
        (lambda: losses.stage_steps(100, 1, 2), "stages: 1 steps are not enough for 2 stages"),
        (lambda: losses.stage_steps(100, 1, 0), "stages: needs an integer from 1"),
    ],
)  # fmt: skip
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()
