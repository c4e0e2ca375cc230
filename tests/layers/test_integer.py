"""Layers on integers give what the same layers on floats give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.layers import IntegerConv, IntegerDense, QuantizedConv, QuantizedDense, calibrate, integer_params

RNG = np.random.default_rng(0)
SIGNED = jnp.asarray(RNG.normal(size=(6, 16)), jnp.float32)


@pytest.mark.parametrize(
    ("x", "bits", "zero_point"),
    [
        (SIGNED, 2, None),
        (SIGNED, 4, "code"),
        (SIGNED, 4, "input"),
        (jnp.abs(SIGNED), 8, None),  # codes up to 255, which int8 does not hold
    ],
)
def test_a_linear_layer(x, bits, zero_point):
    layer = QuantizedDense(5, weight_bits=bits, input_bits=bits, granularity="tensor", zero_point=zero_point)
    variables = calibrate(layer, jax.jit(layer.init)(jax.random.key(1), x), x)
    params = variables["params"]
    params["bias"] = jnp.arange(5.0)
    if zero_point:
        params["input_quantizer"]["zero_point"] = jnp.asarray(0.7)
    params["input_quantizer"]["log_step"] = jnp.asarray(0.2)

    @jax.jit
    def both(variables, x):
        integers = integer_params(layer, variables)
        return layer.apply(variables, x), IntegerDense(5).apply({"params": integers}, x), integers

    floats, found, integers = both(variables, x)
    assert integers["codes"].dtype == jnp.int8 and jnp.unique(integers["codes"]).size <= 2**bits
    np.testing.assert_allclose(found, floats, atol=2e-5)


def test_a_convolution_of_patches():
    image = jnp.asarray(RNG.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)
    layer = QuantizedConv(5, (4, 4), (4, 4), "VALID", granularity="tensor")
    variables = calibrate(layer, jax.jit(layer.init)(jax.random.key(1), image), image)

    @jax.jit
    def both(variables, x):
        integers = {"params": integer_params(layer, variables)}
        return layer.apply(variables, x), IntegerConv(5, (4, 4), (4, 4)).apply(integers, x)

    np.testing.assert_allclose(*both(variables, image), atol=2e-5)
    with pytest.raises(UserError, match="padding: integer convolutions need 'VALID', got 'SAME'"):
        jax.eval_shape(IntegerConv(5, padding="SAME").init, jax.random.key(0), image)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"granularity": "channel"}, "got one per channel"), ({"input_bits": None}, "got none")],
)
def test_refusals(fields, words):
    with pytest.raises(UserError, match=f"granularity: integer products need one step .*{words}"):
        integer_params(QuantizedDense(5, **fields), {})
