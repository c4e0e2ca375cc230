import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.attacks import background_attack, background_mask
from jaxface.errors import UserError


def plane(values):
    return jnp.array(values).reshape(1, 1, -1, 1)


def attack(x, start, slope, attention, **options):
    return background_attack(
        lambda x: ((x * slope).sum(), slope), x, background_mask(attention), start, **options
    )


def test_the_worked_example():
    x, start, slope = plane([0.5, 0.5, 0.99]), plane([0.01, -0.02, 0.03]), plane([1.0, -2.0, 3.0])
    changed, other = attack(x, start, slope, plane([0.0, 0.5, 1.0]), epsilon=0.03, low=0.0, high=1.0)
    np.testing.assert_allclose(changed.ravel(), [0.53, 0.47, 0.99], atol=1e-6)
    np.testing.assert_array_equal(other, slope)


@pytest.mark.parametrize("epsilon", [0.1, jnp.array([0.05, 0.1])])
def test_what_is_looked_at_stays_and_nothing_moves_farther_than_epsilon(epsilon):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.uniform(keys[0], (3, 4, 4, 2), minval=-1)
    start = epsilon * jax.random.uniform(keys[1], x.shape, minval=-1)
    slope = jax.random.normal(keys[2], x.shape)
    looked, plain = (
        attack(x, start, slope, jnp.full((3, 4, 4, 1), w), epsilon=epsilon)[0] for w in (1.0, 0.0)
    )
    np.testing.assert_array_equal(looked, x)
    expected = np.clip(x + np.clip(start + epsilon * np.sign(slope), -epsilon, epsilon), -1, 1)
    np.testing.assert_allclose(plain, expected, atol=1e-6)
    some = attack(x, start, slope, jax.random.uniform(keys[3], (3, 4, 4, 1)), epsilon=epsilon)[0]
    assert (np.abs(some - x) <= np.asarray(epsilon) + 1e-6).all() and np.abs(some).max() <= 1


def test_nothing_is_differentiated_through_an_attack():
    def through(x):
        changed, _ = attack(x, 0 * x, jnp.ones_like(x), x, epsilon=0.1)
        return (changed * background_mask(x)).sum()

    assert not np.asarray(jax.grad(through)(plane([0.2, 0.4]))).any()


def test_a_negative_epsilon_is_refused():
    with pytest.raises(UserError, match=r"^epsilon: needs a finite number from 0, got -0\.1"):
        attack(plane([0.0]), plane([0.0]), plane([1.0]), plane([0.0]), epsilon=-0.1)
