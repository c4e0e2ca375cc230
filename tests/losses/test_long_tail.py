"""Losses for classes of unequal size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.losses.long_tail import (
    balanced_logits,
    balanced_softmax_loss,
    effective_number_weights,
    ldam_loss,
)
from jaxface.losses.softmax import cross_entropy


def test_ldam_by_hand():
    """Margins 0.5 (5 / n)^(1/4); the target's logit is s (cos θ - Δ)."""
    counts = jnp.array([80, 5])
    margins = 0.5 * np.array([(5 / 80) ** 0.25, 1.0])
    cosines = jnp.array([[0.3, -0.2], [0.3, -0.2]])
    expected = [
        np.log1p(np.exp(30 * (-0.2 - 0.3 + margins[0]))),
        np.log1p(np.exp(30 * (0.3 + 0.2 + margins[1]))),
    ]
    np.testing.assert_allclose(ldam_loss(cosines, jnp.array([0, 1]), counts), expected, rtol=1e-5, atol=1e-6)


def test_equal_counts_are_one_margin():
    cosines = jnp.array([[0.1, 0.4, -0.3]])
    loss = ldam_loss(cosines, jnp.array([1]), jnp.array([9, 9, 9]), scale=4.0, largest_margin=0.2)
    margins = jnp.array([0.0, 0.2, 0.0])
    np.testing.assert_allclose(loss, cross_entropy(4 * (cosines - margins), jnp.array([1])), rtol=1e-6)


def test_effective_numbers():
    counts = np.array([5000, 50])
    expected = (1 - 0.9999) / (1 - 0.9999 ** counts.astype(np.float64))
    expected *= 2 / expected.sum()
    weights = effective_number_weights(jnp.asarray(counts))
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(effective_number_weights(counts, beta=1e-6), 1, rtol=1e-5)


def test_a_head_class_is_the_answer_of_balanced_logits_alone():
    counts = jnp.array([9, 3, 1])
    assert int(balanced_logits(jnp.zeros(3), counts).argmax()) == 0
    np.testing.assert_allclose(jnp.diff(balanced_logits(jnp.zeros(3), counts)), -np.log(3), rtol=1e-6)


def test_gradients_and_types():
    counts, labels = jnp.array([9, 3, 1]), jnp.array([0, 2])
    logits = jnp.array([[300.0, 0, -300], [300.0, 0, -300]])
    for loss in (balanced_softmax_loss, lambda z, y, n: ldam_loss(jnp.sign(z), y, n)):
        gradient = jax.grad(lambda z, loss=loss: loss(z, labels, counts).sum())(logits)
        assert np.isfinite(gradient).all()
    assert balanced_softmax_loss(logits.astype(jnp.bfloat16), labels, counts).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: balanced_logits(jnp.zeros(2), jnp.array([1, 0])), "counts: needs examples of every class"),
        (lambda: ldam_loss(jnp.zeros((1, 2)), jnp.array([0]), jnp.ones(2), scale=0.0), "scale"),
        (lambda: ldam_loss(jnp.zeros((1, 2)), jnp.array([0]), jnp.ones(2), largest_margin=0.0), "margin"),
        (lambda: effective_number_weights(jnp.ones(2), beta=1.0), "beta"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()
