import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface.errors import UserError
from jaxface.optimizers import bop, project_box, simulate_online


def test_weights_flip_where_gradients_have_long_pointed_against_them():
    # m = 0.5 g, then 0.5 m + 0.5 g
    rule, w = bop(0.5, threshold=0.3), jnp.array([1.0, -1.0, 0.4, -0.4, 0.0])
    updates, state = rule.update(jnp.array([0.5, 0.5, 1.0, -1.0, 1.0]), rule.init(w), w)
    w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(state.mu, [0.25, 0.25, 0.5, -0.5, 0.5])
    np.testing.assert_allclose(w, [1.0, -1.0, -0.4, 0.4, 0.0], rtol=1e-6, atol=1e-37)
    assert w[4] < 0  # sgn(0) = +1 has flipped
    updates, _ = rule.update(jnp.array([0.5, 0.5, 1.0, -1.0, 1.0]), state, w)
    w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(w[:4], [-1.0, -1.0, -0.4, 0.4], rtol=1e-6)


def test_the_rate_may_be_a_schedule():
    rule = bop(lambda count: 0.5**count, threshold=0.0)
    _, state = rule.update(jnp.float32(2.0), rule.init(jnp.float32(1.0)), jnp.float32(1.0))
    _, state = rule.update(jnp.float32(4.0), state, jnp.float32(1.0))
    assert float(state.mu) == 3.0  # 0.5 · 2 + 0.5 · 4


def test_it_solves_the_problem_that_adam_does_not():
    coefficients = jnp.where(jnp.arange(999) % 3 == 0, 4.0, -1.0)
    weights, regret = simulate_online(coefficients, 1.0, bop(1e-2, threshold=1e-3))
    assert weights[-1] == -1.0 and regret[-1] < 0.05


def test_what_is_not_a_number_is_seen_and_what_is_impossible_refused():
    rule, w = bop(0.5), jnp.ones(2)
    updates, _ = rule.update(jnp.array([jnp.nan, 1.0]), rule.init(w), w)
    np.testing.assert_array_equal(updates, [np.nan, -2.0])
    with pytest.raises(ValueError, match="params: needs"):
        rule.update(w, rule.init(w))
    for name, value in (("gamma", 0.0), ("gamma", 1.1), ("threshold", -1.0)):
        with pytest.raises(UserError, match=f"^{name}: needs"):
            bop(**{name: value})


def test_the_box_cuts_what_it_is_given():
    params = {"a": jnp.array([0.5, -0.9]), "b": jnp.array([0.5])}
    updates = {"a": jnp.array([1.0, -0.05]), "b": jnp.array([9.0])}
    rule = project_box({"a": True, "b": False})
    cut, _ = rule.update(updates, rule.init(params), params)
    np.testing.assert_allclose(cut["a"], [0.5, -0.05], rtol=1e-6)
    assert cut["b"] == 9.0
    with pytest.raises(ValueError, match="params: needs"):
        rule.update(updates, rule.init(params))
