import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.losses import branch_loss

LOGITS = np.array([[2.0, -1.0], [0.0, 3.0], [-100.0, 100.0]], np.float32)
LIVE = np.array([1, 0])


def test_by_hand():
    chance = 1 / (1 + np.exp(-LOGITS[:2].astype(np.float64)))
    expected = -np.where(LIVE == 1, np.log(chance), np.log(1 - chance))
    np.testing.assert_allclose(branch_loss(LOGITS[:2], LIVE), expected.sum(0), rtol=1e-6)
    np.testing.assert_allclose(branch_loss(LOGITS[2:], LIVE), [100, 100], rtol=1e-6)
    there = np.array([True, False, False])
    np.testing.assert_allclose(branch_loss(LOGITS, LIVE, jnp.asarray(there)), expected[0], rtol=1e-6)
    rows = jnp.array([[True, False, False], [False, True, False]])
    np.testing.assert_allclose(branch_loss(LOGITS, LIVE, rows), [expected[0, 0], expected[1, 1]], rtol=1e-6)
    np.testing.assert_array_equal(branch_loss(LOGITS, LIVE, jnp.zeros(3, bool)), 0)
    np.testing.assert_array_equal(branch_loss(LOGITS, LIVE.astype(bool)), branch_loss(LOGITS, LIVE))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_bounded_and_stop_at_what_is_missing(dtype):
    there = jnp.array([True, False, True])
    gradient = jax.grad(lambda x: branch_loss(x, LIVE, there).sum())(jnp.asarray(LOGITS, dtype))
    assert (jnp.abs(gradient) <= 1).all() and (gradient[1] == 0).all()
    np.testing.assert_array_equal(gradient[2], [-1, 1])
    with pytest.raises(AssertionError):
        branch_loss(jnp.zeros((3, 2)), jnp.zeros(3))
