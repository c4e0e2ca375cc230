"""Distribution alignment: the numbers of the method's specification (checks 1, 2 and 10)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.layers import (
    Attention,
    DistributionAlignment,
    DotProduct,
    QuantizedDotProduct,
    calibrate,
    distribution_alignment,
    query_spread,
)

X = jnp.array([1.0, 2.0, 3.0, 6.0])


@pytest.mark.parametrize(
    ("ddof", "expected"),
    [(1, [-0.925819, -0.462910, 0, 1.388729]), (0, [-1.069043, -0.534522, 0, 1.603565])],
)
def test_check_1_by_hand(ddof, expected):
    np.testing.assert_allclose(distribution_alignment(X, ddof=ddof), expected, atol=2e-5)
    zeros = distribution_alignment(jnp.zeros(4), 2.0, jnp.arange(4.0), ddof=ddof)
    np.testing.assert_array_equal(zeros, jnp.arange(4.0))


def test_check_2_neither_a_scale_nor_a_shift_is_seen():
    np.testing.assert_allclose(distribution_alignment(30 * X - 7), distribution_alignment(X), atol=1e-5)
    assert 0.5 * math.log(2 * math.pi * math.e) == pytest.approx(1.418939, abs=1e-6)
    assert float(jnp.var(distribution_alignment(X), ddof=1)) == pytest.approx(1, abs=1e-4)


def test_gradients_go_through_the_statistics_and_are_finite():
    slope = jax.grad(lambda x: jnp.sum(distribution_alignment(x) * jnp.arange(4.0)))(X)
    assert abs(float(slope.sum())) < 1e-5 and abs(float(slope @ X)) < 1e-5  # neither shift nor scale
    assert np.abs(slope).max() > 0.1
    assert np.isfinite(jax.grad(lambda x: distribution_alignment(x)[0])(jnp.zeros(4))).all()


def test_the_calibrated_scale_gives_queries_of_the_float_networks_length():
    x = 5 * jax.random.normal(jax.random.key(0), (2, 7, 3, 16))
    layer = DistributionAlignment()
    params = {"scale": jnp.full(16, jnp.mean(query_spread(x))), "bias": jnp.zeros(16)}
    spread = query_spread(layer.apply({"params": params}, x))
    np.testing.assert_allclose(spread, jnp.mean(query_spread(x)), rtol=1e-4)


def test_of_a_decoder_the_queries_alone_are_aligned():
    mix = functools.partial(QuantizedDotProduct, bits=8, rectify=DistributionAlignment, rectified=("query",))
    layer, x = Attention(2, mix=mix), jax.random.normal(jax.random.key(0), (2, 5, 8))
    params = layer.init(jax.random.key(1), x, x, x)["params"]
    assert sorted(params) == ["key", "mix", "out", "query", "value"]
    assert sorted(params["mix"]) == [
        "key_quantizer",
        "probability_quantizer",
        "query_quantizer",
        "rectify_query",
        "value_quantizer",
    ]


@pytest.mark.parametrize(
    ("size", "keys", "expected"),
    [(64, 100, 0.021), (32, 100, 0.033), (32, 850, 0.061), (64, 850, 0.053)],
)
def test_check_10_what_eight_bits_cost_an_attention(size, keys, expected):
    """Relative Frobenius error of normal operands of one head, every step the largest value over the largest code."""
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 64 if i == 0 else keys, 1, size)) for i in range(3))
    layer = QuantizedDotProduct(8)
    variables = calibrate(layer, layer.init(jax.random.key(0), q, k, v), q, k, v)
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / size**0.5)
    starts = {
        f"{name}_quantizer": {"signed": jnp.abs(x).max() / 127}
        for name, x in (("query", q), ("key", k), ("value", v))
    }
    starts["probability_quantizer"] = {"unsigned": weights.max() / 255}
    found = layer.apply({**variables, "quantization": starts}, q, k, v)
    exact = DotProduct().apply({}, q, k, v)
    error = float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))
    assert error < 1.3 * expected, error


def test_what_is_refused():
    with pytest.raises(UserError, match=r"^ddof: needs"):
        distribution_alignment(X, ddof=2)
