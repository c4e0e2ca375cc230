"""Parts of codecs against numbers worked out in float64 by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.layers import GDN, ChannelAttention, Enhancer, gdn, lower_bound
from jaxface.layers.edic import factorized_logits, factorized_prob


def prior(channels=1, value=0.0):
    one = np.full(channels, value)
    return {"h": [one] * 4, "b": [one] * 4, "a": [one] * 3}


def test_a_bound_lets_a_gradient_pass_that_raises_what_is_below():
    both = jax.jit(jax.value_and_grad(lambda x, sign: sign * lower_bound(x, 0.11)))

    def slope(x, sign):
        return float(both(np.float32(x), sign)[1])

    assert float(both(np.float32(0.05), 1.0)[0]) == np.float32(0.11)
    assert slope(0.05, -1.0) == -1 and slope(0.05, 1.0) == 0
    assert slope(0.5, -1.0) == -1 and slope(0.5, 1.0) == 1


def test_gdn_by_hand():
    x = np.float32([3.0, -4.0])

    @jax.jit
    def both():
        params = GDN().init(jax.random.key(0), x)
        return GDN().apply(params, x), GDN(inverse=True).apply(params, x)

    plain, inverse = both()
    np.testing.assert_allclose(plain, [2.176429, -2.480695], atol=2e-6)
    np.testing.assert_allclose(inverse, [4.135215, -6.449806], atol=4e-6)
    gamma, beta = np.float32([[0.1, 0.2], [0.05, 0.3]]), np.float32([1.0, 2.0])
    divide = jax.jit(gdn)
    np.testing.assert_allclose(divide(x, beta, gamma), [1.328422, -1.485563], atol=2e-6)
    assert abs(float(divide(x, beta, gamma.T)[0]) - 1.328422) > 0.1  # the transposed gives others
    with pytest.raises(ValueError, match=r"gamma: needs \[2, 2\]"):
        gdn(x, jnp.ones(3), gamma)


def test_channel_attention_by_hand():
    means = np.float32([0.15, 0.55, 0.95, 1.35])
    w1 = np.float32([[0.1, 0.2, -0.1, 0.3], [-0.2, 0.1, 0.4, 0.0]])
    w2 = np.float32([[0.5, -0.5], [1.0, 0.2], [-0.3, 0.8], [0.0, 0.0]])
    # Four hidden units, two at 0.
    params = {
        "squeeze": {"kernel": np.pad(w1.T, ((0, 0), (0, 2))), "bias": np.float32([0.05, -0.1, 0.0, 0.0])},
        "excite": {"kernel": np.pad(w2.T, ((0, 2), (0, 0))), "bias": np.float32([0.0, 0.1, -0.1, 0.0])},
    }
    features = np.tile(means, (1, 2, 2, 1))
    out = jax.jit(ChannelAttention(gain=1.0).apply)({"params": params}, features)
    np.testing.assert_allclose(out[0, 0, 0] / means, [0.522485, 0.656109, 0.499625, 0.5], atol=1e-6)


def test_attention_of_gain_two_starts_as_the_identity_and_that_of_gain_one_does_not():
    features = np.random.default_rng(0).normal(size=(1, 2, 2, 8)).astype(np.float32)

    @jax.jit
    def both(key):
        modules = (ChannelAttention(), ChannelAttention(gain=1.0))
        return [module.init_with_output(key, features)[0] for module in modules]

    same, half = both(jax.random.key(1))
    np.testing.assert_allclose(same, features, rtol=1e-6)
    assert np.abs(half).max() < 0.9 * np.abs(features).max()
    with pytest.raises(UserError, match="gain: needs a finite number above 0"):
        ChannelAttention(gain=0.0).init(jax.random.key(0), features)


def test_an_enhancer_whose_last_layer_is_zero_is_the_identity():
    image = np.random.default_rng(0).random((1, 8, 8, 3)).astype(np.float32)
    module = Enhancer(4, 1)

    @jax.jit
    def refined(key):
        params = module.init(key, image)["params"]
        params["last"] = jax.tree.map(jnp.zeros_like, params["last"])
        return module.apply({"params": params}, image)

    np.testing.assert_array_equal(refined(jax.random.key(1)), image)


def test_the_factorized_prior_by_hand():
    probability = jax.jit(factorized_prob)
    wide = np.asarray(probability(prior(), np.arange(-200.0, 201.0, dtype=np.float32)[:, None]))[:, 0]
    np.testing.assert_allclose(wide[[200, 201, 205]], [0.057645, 0.056886, 0.042063], atol=1e-6)
    slope = factorized_logits(prior(), np.ones((1, 1)))
    np.testing.assert_allclose(slope, 0.230835, atol=1e-6)
    np.testing.assert_allclose(wide.sum(), 1, atol=1e-5)


def test_the_prior_rises_and_keeps_its_tail():
    rng = np.random.default_rng(0)
    parts = {
        name: [rng.normal(size=4) for _ in range(count)] for name, count in (("h", 4), ("b", 4), ("a", 3))
    }
    logits = factorized_logits(parts, np.linspace(-8, 8, 99)[:, None] + np.zeros(4))
    assert logits.dtype == np.float64 and (np.diff(logits, axis=0) > 0).all()
    # 1 - 1 would be 0 far out on the upper side.
    assert float(jax.jit(factorized_prob)(prior(), np.float32([[80.0]]))[0, 0]) > 0
