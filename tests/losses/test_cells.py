import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses


def test_the_definition():
    rng = np.random.default_rng(0)
    logits, cells = rng.normal(size=(3, 4, 5)), rng.random((3, 4, 5)) < 0.2
    p = 1 / (1 + np.exp(-logits))
    expected = -(11 * cells * np.log(p) + (1 - cells) * np.log(1 - p)).mean((1, 2))
    for truth in (cells, cells.astype(np.uint8), cells.astype(np.float32)):
        np.testing.assert_allclose(losses.cell_loss(jnp.float32(logits), truth), expected, rtol=1e-5)
    low = losses.cell_loss(jnp.bfloat16(logits), cells)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, expected, rtol=2e-2)


def test_gradients_stay_bounded_where_logits_do_not():
    logits = jnp.array([[[-1e4, 1e4, 0.0, 1e4]]])
    cells = jnp.array([[[1, 0, 1, 1]]])
    gradient = jax.jit(jax.grad(lambda z: losses.cell_loss(z, cells).sum()))(logits)
    np.testing.assert_allclose(gradient, np.array([[[-11, 1, -5.5, 0]]]) / 4, atol=1e-6)


def test_shapes_must_agree():
    with pytest.raises(AssertionError):
        losses.cell_loss(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 3)))
