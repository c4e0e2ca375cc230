"""MDA's loss against closed forms, and against what it must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.errors import UserError

Z1 = jnp.array([[2.0, 0, -1], [0.5, 1.5, 0]])
Z2 = jnp.array([[1.0, 1, 0], [-0.5, 0.5, 2]])
LABELS = jnp.array([0, 2])


def agreement(z1, z2):
    return losses.mean_point_loss(jnp.stack([z1, z2]))


def test_mean_point_loss_by_hand():
    assert agreement(Z1, Z2) == 0.75
    np.testing.assert_allclose(agreement(Z1, Z2), 0.5 * np.mean((Z1 - Z2) ** 2))
    first, second = jax.grad(agreement, argnums=(0, 1))(Z1, Z2)
    expected = np.array([[1, -1, -1], [1, 1, -2]]) / 6
    np.testing.assert_allclose(first, expected, atol=1e-6)
    np.testing.assert_allclose(second, -expected, atol=1e-6)

    def held(z1, z2):
        mean = jax.lax.stop_gradient((z1 + z2) / 2)
        return ((z1 - mean) ** 2).mean() + ((z2 - mean) ** 2).mean()

    np.testing.assert_allclose(first, jax.grad(held)(Z1, Z2), atol=1e-6)


def test_equal_networks_agree():
    value, gradient = jax.value_and_grad(agreement)(Z1, Z1)
    assert value == 0 and (gradient == 0).all()


def test_it_is_about_logits_and_not_about_probabilities():
    shift = jnp.array([[3.0], [-7.0]])
    np.testing.assert_allclose(agreement(Z1 + shift, Z2 + shift), agreement(Z1, Z2), rtol=1e-5)
    assert abs(agreement(Z1 + shift, Z2) - agreement(Z1, Z2)) > 1
    before, after = (losses.jocor_scores(z, Z2, LABELS, agreement=0.65) for z in (Z1, Z1 + shift))
    np.testing.assert_allclose(before, after, rtol=1e-5)


def test_three_networks():
    logits = jnp.stack([Z1, Z2, jnp.zeros_like(Z1)])
    mean = np.mean(logits, axis=0)
    np.testing.assert_allclose(losses.mean_point_loss(logits), sum(np.mean((z - mean) ** 2) for z in logits))


def test_labels_of_what_is_not_selected_count_for_nothing():
    selected = jnp.array([True, False])

    def loss(z1, labels):
        return losses.mda_loss(z1, Z2, labels, selected)[0]

    (value, gradient), (other, other_gradient) = (
        jax.value_and_grad(loss)(Z1, jnp.array([0, k])) for k in (2, 1)
    )
    assert value == other
    np.testing.assert_array_equal(gradient, other_gradient)
    np.testing.assert_allclose(value, 1.031841 + 0.75, atol=1e-6)
    alone, terms = losses.mda_loss(Z1[:1], Z2[:1], LABELS[:1], selected[:1])
    assert terms.agreement == 0.5 and abs(alone - value) > 0.1, "examples that are not selected agree too"


def test_without_a_selected_example_the_agreement_is_left():
    loss, terms = losses.mda_loss(Z1, Z2, LABELS, jnp.zeros(2, bool), agreement_weight=2.0)
    assert loss == 1.5 and terms.supervised == 0 and terms.agreement == 0.75


def test_mirror():
    images = jax.random.uniform(jax.random.key(0), (2, 4, 5, 3))
    np.testing.assert_array_equal(losses.mirror(losses.mirror(images)), images)
    pixel = jnp.zeros((4, 5, 3)).at[0, 0, 0].set(1)
    assert losses.mirror(pixel)[0, 4, 0] == 1 and losses.mirror(pixel).sum() == 1
    with pytest.raises(ValueError, match=r"^images: needs"):
        losses.mirror(jnp.zeros((4, 5)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: losses.mda_loss(Z1, Z2[:, :2], LABELS, jnp.ones(2, bool)), ValueError, "logits: need two"),
        (lambda: losses.mda_loss(Z1, Z2, LABELS, jnp.ones(3, bool)), ValueError, "logits: need two"),
        (lambda: losses.mda_loss(Z1, Z2, jnp.array([0, 3]), jnp.ones(2, bool)), ValueError, "labels: "),
        (
            lambda: losses.mda_loss(Z1, Z2, LABELS, jnp.ones(2, bool), agreement_weight=-1.0),
            UserError,
            "agreement_weight: needs a finite number from 0, got -1",
        ),
        (lambda: losses.mean_point_loss(Z1), ValueError, "logits: needs"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()
