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
    def slope(x, sign):
        return float(jax.grad(lambda x: sign * lower_bound(x, 0.11))(x))

    assert float(lower_bound(jnp.float32(0.05), 0.11)) == np.float32(0.11)
    assert slope(0.05, -1.0) == -1 and slope(0.05, 1.0) == 0
    assert slope(0.5, -1.0) == -1 and slope(0.5, 1.0) == 1


def test_gdn_by_hand():
    x = jnp.array([3.0, -4.0])
    module = GDN()
    params = module.init(jax.random.key(0), x)
    np.testing.assert_allclose(module.apply(params, x), [2.176429, -2.480695], atol=2e-6)
    np.testing.assert_allclose(GDN(inverse=True).apply(params, x), [4.135215, -6.449806], atol=4e-6)
    gamma = jnp.array([[0.1, 0.2], [0.05, 0.3]])
    beta = jnp.array([1.0, 2.0])
    np.testing.assert_allclose(
        gdn(x, beta, gamma), [1.328422, -1.485563], atol=2e-6
    )  # the transposed gives others
    assert abs(float(gdn(x, beta, gamma.T)[0]) - 1.328422) > 0.1
    with pytest.raises(ValueError, match=r"gamma: needs \[2, 2\]"):
        gdn(x, jnp.ones(3), gamma)


def test_channel_attention_by_hand():
    means = jnp.array([0.15, 0.55, 0.95, 1.35])
    w1 = jnp.array([[0.1, 0.2, -0.1, 0.3], [-0.2, 0.1, 0.4, 0.0]])
    w2 = jnp.array([[0.5, -0.5], [1.0, 0.2], [-0.3, 0.8], [0.0, 0.0]])
    pad = lambda w: jnp.zeros((4, 4)).at[: w.shape[0], : w.shape[1]].set(w)  # noqa: E731 - four hidden units, two at 0
    params = {
        "squeeze": {"kernel": pad(w1.T), "bias": jnp.array([0.05, -0.1, 0.0, 0.0])},
        "excite": {"kernel": pad(w2.T), "bias": jnp.array([0.0, 0.1, -0.1, 0.0])},
    }
    features = jnp.broadcast_to(means, (1, 2, 2, 4))
    out = ChannelAttention(gain=1.0).apply({"params": params}, features)
    np.testing.assert_allclose(out[0, 0, 0] / means, [0.522485, 0.656109, 0.499625, 0.5], atol=1e-6)


def test_attention_of_gain_two_starts_as_the_identity_and_that_of_gain_one_does_not():
    features = jax.random.normal(jax.random.key(0), (1, 2, 2, 8))
    variables = ChannelAttention().init(jax.random.key(1), features)
    np.testing.assert_allclose(ChannelAttention().apply(variables, features), features, rtol=1e-6)
    literal = ChannelAttention(gain=1.0)
    half = literal.apply(literal.init(jax.random.key(1), features), features)
    assert float(jnp.abs(half).max()) < 0.9 * float(jnp.abs(features).max())
    with pytest.raises(UserError, match="gain: needs a finite number above 0"):
        ChannelAttention(gain=0.0).init(jax.random.key(0), features)


def test_an_enhancer_whose_last_layer_is_zero_is_the_identity():
    image = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3))
    module = Enhancer(4, 1)
    params = module.init(jax.random.key(1), image)["params"]
    params["last"] = jax.tree.map(jnp.zeros_like, params["last"])
    np.testing.assert_array_equal(module.apply({"params": params}, image), image)


def test_the_factorized_prior_by_hand():
    values = factorized_prob(prior(), jnp.array([[0.0], [1.0], [5.0]]))[:, 0]
    np.testing.assert_allclose(values, [0.057645, 0.056886, 0.042063], atol=1e-6)
    slope = factorized_logits(prior(), np.ones((1, 1)))
    np.testing.assert_allclose(slope, 0.230835, atol=1e-6)
    wide = factorized_prob(prior(), np.arange(-200.0, 201.0)[:, None])
    np.testing.assert_allclose(np.asarray(wide).sum(), 1, atol=1e-5)


def test_the_prior_rises_and_keeps_its_tail():
    rng = np.random.default_rng(0)
    parts = {
        name: [rng.normal(size=4) for _ in range(count)] for name, count in (("h", 4), ("b", 4), ("a", 3))
    }
    logits = factorized_logits(parts, np.linspace(-8, 8, 99)[:, None] + np.zeros(4))
    assert logits.dtype == np.float64 and (np.diff(logits, axis=0) > 0).all()
    # 1 - 1 would be 0 far out on the upper side.
    assert float(factorized_prob(prior(), jnp.float32([[80.0]]))[0, 0]) > 0
