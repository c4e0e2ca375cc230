import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.losses import soft_target_loss
from jaxface.losses.ota import (
    feature_statistics,
    mode_seeking_loss,
    proximity_loss,
    statistics_loss,
)

FEATURES = jax.random.normal(jax.random.key(0), (12, 5)) * jnp.array([1.0, 2.0, 0.5, 3.0, 0.0])


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1.150421), (2.0, 1.280627)])
def test_the_distillation_of_three_classes(temperature, expected):
    teacher, student = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    value = soft_target_loss(student, teacher, temperature=temperature)
    np.testing.assert_allclose(value, [expected], rtol=1e-6)
    np.testing.assert_allclose(
        soft_target_loss(student + 3, teacher - 7, temperature=temperature), value, rtol=1e-5
    )
    np.testing.assert_allclose(soft_target_loss(teacher, teacher, temperature=temperature), [0], atol=1e-7)


def test_a_batch_that_is_the_data_has_its_statistics():
    """The last channel is constant, narrower than what counts as a width."""
    target = feature_statistics(FEATURES)
    assert float(statistics_loss(FEATURES, target)) == 0.0
    # All means one deviation off, all deviations doubled.
    moved = target.mean + 2 * (FEATURES - target.mean) + target.deviation
    expected = (target.deviation[:4] ** 2 / target.deviation[:4] ** 2).sum() / 5 + 4 / 5
    np.testing.assert_allclose(statistics_loss(moved, target), expected, rtol=1e-2)


def test_statistics_of_planes_are_over_positions():
    planes = FEATURES.reshape(3, 2, 2, 5)
    np.testing.assert_allclose(feature_statistics(planes).mean, FEATURES.mean(0), rtol=1e-6)


def test_gradients_are_finite_where_features_are_constant():
    target = feature_statistics(FEATURES)
    gradient = jax.grad(statistics_loss)(jnp.ones((4, 5)), target)
    assert jnp.all(jnp.isfinite(gradient))
    by_target = jax.grad(lambda t: statistics_loss(FEATURES, t))(target)
    assert not any(jnp.any(x) for x in by_target)


def test_nearness_is_of_pixels_from_black_to_white():
    np.testing.assert_allclose(proximity_loss(jnp.ones((2, 4, 4, 1)), -jnp.ones((2, 4, 4, 1))), [1, 1])


def test_diversity_is_bounded_where_latents_meet():
    images = jnp.array([[0.0], [1.0], [1.0]])
    latents = jnp.array([[0.0], [1.0], [1.0]])
    np.testing.assert_allclose(mode_seeking_loss(images, latents), -2 / 3, rtol=1e-4)
    assert float(mode_seeking_loss(images, 0 * latents, largest=3.0)) == -2.0
    gradient = jax.grad(mode_seeking_loss, argnums=1)(images, 0 * latents)
    assert jnp.all(jnp.isfinite(gradient))


def test_one_image_has_no_statistics():
    with pytest.raises(UserError, match="at least 2 at a time, got 1"):
        statistics_loss(FEATURES[:1], feature_statistics(FEATURES))
    with pytest.raises(UserError, match="at least 2 at a time, got 1"):
        mode_seeking_loss(FEATURES[:1], FEATURES[:1])
    with pytest.raises(UserError, match="at least one image"):
        feature_statistics(FEATURES[:0])
