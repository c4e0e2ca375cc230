import jax
import jax.numpy as jnp
import numpy as np

from jaxface.layers import PReLU


def test_slope_per_channel_starts_at_a_quarter():
    x = jnp.array([[-4.0, 8.0, -1.0]])
    y, variables = PReLU().init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, [[-1.0, 8.0, -0.25]])
    assert variables["params"]["slope"].shape == (3,)


def test_gradients():
    x = jnp.array([[-4.0, 8.0], [-2.0, -3.0]])

    def total(slope, x):
        return jnp.sum(PReLU().apply({"params": {"slope": slope}}, x))

    slope = jnp.array([0.5, 0.1])
    d_slope, d_x = jax.grad(total, argnums=(0, 1))(slope, x)
    np.testing.assert_allclose(d_slope, [-6.0, -3.0])
    np.testing.assert_allclose(d_x, [[0.5, 1.0], [0.5, 0.1]])


def test_computes_in_its_dtype_with_float32_parameters():
    y, variables = PReLU(dtype=jnp.bfloat16).init_with_output(jax.random.key(0), jnp.ones((2, 3)))
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["slope"].dtype == jnp.float32
