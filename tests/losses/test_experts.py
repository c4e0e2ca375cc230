"""Losses of experts: what is unknown costs nothing, weights of sources stay in bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.losses.experts import depth_loss, known_label_loss, pixel_loss, source_weights, squeeze_loss


def test_unknown_concepts_have_no_loss_and_no_gradient():
    logits = jnp.array([[0.3, -2.0, 5.0], [1.0, 1.0, 1.0]])
    target, mask = jnp.array([[1.0, 0.0, 0.0], [0, 1, 0]]), jnp.array([[1.0, 1.0, 0.0], [0, 0, 0]])
    value, gradient = jax.value_and_grad(lambda z: known_label_loss(z, target, mask).sum())(logits)
    by_hand = (np.log1p(np.exp(-0.3)) + np.log1p(np.exp(-2.0))) / 2
    np.testing.assert_allclose(value, by_hand, rtol=1e-6)
    assert (gradient[:, 2] == 0).all() and (gradient[1] == 0).all() and (gradient[0, :2] != 0).all()


def test_pixels_that_are_ignored_do_not_count():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    labels = jnp.full((2, 3, 4), 255).at[0, 0, 0].set(2).at[0, 2, 1].set(4)
    losses, gradient = jax.value_and_grad(lambda z: pixel_loss(z, labels).sum())(logits)
    picked = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(losses, -(picked[0, 0, 0, 2] + picked[0, 2, 1, 4]) / 2, rtol=1e-6)
    assert pixel_loss(logits, labels)[1] == 0 and not np.any(gradient[1])


def test_depth_that_was_not_measured_does_not_count():
    predicted = jnp.array([[[1.0, 50.0], [4.0, 0.0]]])
    depth = jnp.array([[[1.5, 0.0], [1.0, 0.0]]])
    np.testing.assert_allclose(depth_loss(predicted, depth), [(0.125 + 2.5) / 2])
    assert not np.any(jax.grad(lambda p: depth_loss(p, depth).sum())(predicted)[0, :, 1])


def test_squeezed_features_are_compared_by_direction():
    teacher = {"c": jnp.array([[0.0, 1.0]]), "d": jnp.array([[1.0, 0.0, 0.0]])}
    same = {"c": jnp.array([[0.0, 5.0]]), "d": jnp.array([[0.1, 0.0, 0.0]])}
    other = {"c": jnp.array([[1.0, 0.0]]), "d": jnp.array([[-1.0, 0.0, 0.0]])}
    np.testing.assert_allclose(squeeze_loss(same, teacher), [0.0], atol=1e-6)
    np.testing.assert_allclose(squeeze_loss(other, teacher), [2.0 + 4.0], rtol=1e-6)
    gradient = jax.grad(lambda t: squeeze_loss(other, t).sum())(teacher)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_weights_of_sources():
    np.testing.assert_allclose(source_weights(jnp.array([2.0, 2.0])), [1, 1])
    np.testing.assert_allclose(source_weights(jnp.array([1.0, 3.0])), [1.5, 0.5], rtol=1e-6)
    weights = source_weights(jnp.array([1e-9] + [1.0] * 9))
    np.testing.assert_allclose(weights, [5.0] + [0.2] * 9, rtol=1e-6)
    assert not np.any(jax.grad(lambda x: source_weights(x).sum())(jnp.array([1.0, 3.0])))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: squeeze_loss({"c": jnp.ones((1, 2))}, {"d": jnp.ones((1, 2))}),
            "projected: needs the types",
        ),
        (lambda: source_weights(jnp.ones(2), low=2.0), "low: needs bounds around 1"),
        (lambda: source_weights(jnp.ones(2), low=0.0), "low: needs"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()
    for wrong in (
        lambda: known_label_loss(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones((2, 2))),
        lambda: pixel_loss(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 3), int)),
        lambda: depth_loss(jnp.ones((1, 2, 2)), jnp.ones((1, 2, 3))),
    ):
        with pytest.raises(ValueError, match="needs"):
            wrong()
