import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.losses import gan_discriminator_loss, gan_generator_loss, r1_penalty


def test_values_are_the_logarithms_of_the_probabilities():
    real, made = jnp.array([0.3, -2.0, 5.0]), jnp.array([-0.7, 1.0, -4.0])
    probability = lambda x: 1 / (1 + np.exp(-np.asarray(x)))  # noqa: E731
    np.testing.assert_allclose(
        gan_discriminator_loss(real, made),
        -np.log(probability(real)) - np.log(1 - probability(made)),
        rtol=1e-5,
    )
    np.testing.assert_allclose(gan_generator_loss(made), -np.log(probability(made)), rtol=1e-5)
    np.testing.assert_allclose(gan_discriminator_loss(jnp.zeros(1), jnp.zeros(1)), 2 * np.log(2), rtol=1e-6)


def test_the_generator_is_pulled_most_where_it_is_worst():
    slope = jax.vmap(jax.grad(lambda x: gan_generator_loss(x[None])[0]))(jnp.array([-100.0, 0.0, 100.0]))
    np.testing.assert_allclose(slope, [-1.0, -0.5, 0.0], atol=1e-6)
    far = gan_discriminator_loss(jnp.array([-1e4]), jnp.array([1e4]))
    np.testing.assert_allclose(far, 2e4)
    assert gan_generator_loss(jnp.zeros(2, jnp.bfloat16)).dtype == jnp.float32


def test_the_penalty_is_the_squared_gradient():
    images = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))
    weights = jnp.arange(18.0).reshape(3, 3, 2)
    linear = lambda x: jnp.einsum("bhwc,hwc->b", x, weights)  # noqa: E731
    np.testing.assert_allclose(r1_penalty(linear, images), float((weights**2).sum()), rtol=1e-5)
    square = lambda x: jnp.sum(x**2, (1, 2, 3))  # noqa: E731
    np.testing.assert_allclose(
        r1_penalty(square, images), 4 * np.sum(np.asarray(images) ** 2, (1, 2, 3)), rtol=1e-5
    )
    slope = jax.grad(lambda a: r1_penalty(lambda x: a * linear(x), images).sum())(2.0)
    np.testing.assert_allclose(slope, 4 * 4 * float((weights**2).sum()), rtol=1e-5)


def test_wrong_shapes():
    with pytest.raises(AssertionError):
        gan_discriminator_loss(jnp.ones(3), jnp.ones(2))
    with pytest.raises(AssertionError):
        gan_generator_loss(jnp.ones((3, 1)))
