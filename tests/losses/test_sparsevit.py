import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.losses import budget_loss


def test_the_distance_by_hand_and_its_gradient():
    macs = jnp.array([2.0, 3.0, 5.5])  # mean 3.5
    np.testing.assert_allclose(budget_loss(macs, 2.8), 0.25, rtol=1e-6)
    np.testing.assert_allclose(budget_loss(macs, 7.0), 0.5, rtol=1e-6)
    for target, sign in ((2.8, 1), (7.0, -1)):
        gradient = jax.grad(budget_loss)(macs, target)
        np.testing.assert_allclose(gradient, sign / (3 * target), rtol=1e-6)


def test_a_batch_over_devices_has_one_mean():
    """One device over the target and one below meet it together."""
    macs = jnp.array([[1.0, 2.0], [3.0, 2.0]])
    spread = jax.vmap(lambda row: budget_loss(row, 2.0, axis_name="data"), axis_name="data")
    np.testing.assert_allclose(spread(macs), 0.0, atol=1e-6)


def test_refusals():
    with pytest.raises(ValueError, match="macs: needs"):
        budget_loss(jnp.zeros((0,)), 1.0)
    with pytest.raises(UserError, match="target: needs a finite number above 0, got 0"):
        budget_loss(jnp.ones(2), 0.0)
