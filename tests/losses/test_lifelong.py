import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface.errors import UserError
from jaxface.losses import seen_bce_loss, slice_bce_loss

LOGITS = jax.random.normal(jax.random.key(0), (6, 8))
LABELS = jnp.array([0, 1, 2, 3, 6, 7])


def test_closed_form():
    """(log(1 + e^-2) + log(1 + e^-1)) / 2."""
    value = slice_bce_loss(jnp.array([[2.0, -1.0]]), jnp.array([0]), 0, size=2)
    np.testing.assert_allclose(value, 0.220095, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_columns_outside_the_slice_have_no_gradient(dtype):
    slope = jax.grad(lambda z: slice_bce_loss(z, LABELS, 1, size=2).sum())(LOGITS.astype(dtype))
    assert slope.dtype == dtype and not np.asarray(slope, np.float32)[:, [0, 1, 4, 5, 6, 7]].any()
    assert np.asarray(slope, np.float32)[:, 2:4].all()
    slope = jax.grad(lambda z: seen_bce_loss(z, LABELS % 4, 4).sum())(LOGITS.astype(dtype))
    assert not np.asarray(slope, np.float32)[:, 4:].any()


def test_a_traced_task_is_the_same_as_a_static_one():
    traced = jax.jit(lambda z, t: slice_bce_loss(z, LABELS, t, size=2))
    for task in range(4):
        np.testing.assert_allclose(
            traced(LOGITS, task), slice_bce_loss(LOGITS, LABELS, task, size=2), rtol=1e-6
        )
    traced = jax.jit(lambda z, n: seen_bce_loss(z, LABELS, n))
    np.testing.assert_allclose(traced(LOGITS, 8), slice_bce_loss(LOGITS, LABELS, 0, size=8), rtol=1e-6)


def test_all_columns_are_plain_binary_cross_entropy():
    expected = optax.sigmoid_binary_cross_entropy(LOGITS, jax.nn.one_hot(LABELS, 8)).mean(axis=1)
    np.testing.assert_allclose(seen_bce_loss(LOGITS, LABELS, 8), expected, rtol=1e-6)


def test_gradients_are_bounded_far_out():
    for scale in (1e4, -1e4):
        slope = jax.grad(lambda z: slice_bce_loss(z, LABELS, 0, size=2).sum())(scale * jnp.ones((6, 8)))
        assert np.isfinite(slope).all() and np.abs(slope).max() <= 0.5


def test_refusals():
    with pytest.raises(UserError, match=r"^task: needs an integer from 0 to 3, got 4"):
        slice_bce_loss(LOGITS, LABELS, 4, size=2)
    with pytest.raises(ValueError, match="size: needs a divisor of the 8 classes, got 3"):
        slice_bce_loss(LOGITS, LABELS, 0, size=3)
    with pytest.raises(UserError, match=r"^seen: needs an integer from 1 to 8, got 9"):
        seen_bce_loss(LOGITS, LABELS, 9)
    with pytest.raises(ValueError, match="labels: needs values in"):
        slice_bce_loss(LOGITS, LABELS + 1, 0, size=2)
