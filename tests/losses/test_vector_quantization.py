import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.losses import adaptive_weight, hinge_discriminator_loss, hinge_generator_loss, vq_loss

Z = jnp.array([[1.0, 0.0], [0.2, 0.9]])
CODEBOOK = jnp.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
INDEX = jnp.array([0, 2])


def test_by_hand():
    # ((1 + 0) + (.04 + .01)) / 4 = .2625, times 1 + β
    np.testing.assert_allclose(vq_loss(Z, CODEBOOK[INDEX], beta=0.0), 0.2625, rtol=1e-6)
    np.testing.assert_allclose(vq_loss(Z, CODEBOOK[INDEX]), 0.328125, rtol=1e-6)


def test_the_two_parts_move_codes_and_latents_and_only_codes_that_are_used():
    by_z, by_codes = jax.grad(lambda z, codes: vq_loss(z, codes[INDEX], beta=0.5), argnums=(0, 1))(
        Z, CODEBOOK
    )
    np.testing.assert_allclose(by_z, 0.5 * (Z - CODEBOOK[INDEX]) / 2, rtol=1e-6)
    np.testing.assert_allclose(by_codes[INDEX], (CODEBOOK[INDEX] - Z) / 2, rtol=1e-6)
    np.testing.assert_array_equal(by_codes[1], [0, 0])


def test_the_adversarys_weight():
    gradient = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(adaptive_weight(gradient, 2 * gradient), 0.5, rtol=1e-4)
    assert float(adaptive_weight(gradient, 0 * gradient)) == 1e4
    assert float(adaptive_weight(0 * gradient, gradient)) == 0.0
    through = jax.grad(lambda g: adaptive_weight(g, gradient))(gradient)
    np.testing.assert_array_equal(through, [0, 0])


def test_hinges():
    real, made = jnp.array([[3.0, 0.5]]), jnp.array([[-2.0, 0.5]])
    np.testing.assert_allclose(hinge_discriminator_loss(real, made), (0.25 + 0.75) / 2)
    assert float(hinge_generator_loss(made)) == 0.75
    gradient = jax.grad(hinge_discriminator_loss, argnums=(0, 1))(real, made)
    np.testing.assert_allclose(gradient, [[[0, -0.25]], [[0, 0.25]]])


def test_a_negative_weight_is_refused():
    with pytest.raises(UserError, match="beta"):
        vq_loss(Z, Z, beta=-1.0)
