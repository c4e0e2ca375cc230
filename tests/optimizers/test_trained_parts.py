"""Training by name, and the count of changed signs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import optimizers
from jaxface.errors import UserError

PARAMS = {"block": {"binary": {"kernel": jnp.array([0.5, -0.5, 0.1])}, "norm": {"scale": jnp.ones(2)}}}


def test_only_what_is_named_moves_and_keeps_state():
    tx = optimizers.train_only(optax.adam(0.1), ("binary",))
    state = tx.init(PARAMS)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * 3 + 1  # both moments and the count
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    np.testing.assert_allclose(updates["block"]["binary"]["kernel"], -0.1, rtol=1e-5)
    assert updates["block"]["norm"]["scale"].tolist() == [0, 0]


def test_nothing_named_holds_everything():
    tx = optimizers.train_only(optax.adam(0.1), ())
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, PARAMS), tx.init(PARAMS), PARAMS)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="train_only: needs names of layers or parameters, got binray"):
        optimizers.train_only(optax.sgd(1.0), ("binary", "binray")).init(PARAMS)


def test_flips_are_counted_over_the_window():
    tx = optimizers.track_sign_flips(optimizers.name_mask(("kernel",)), window=2)
    state, params = tx.init(PARAMS), PARAMS
    assert float(optimizers.flip_rate(state)) == 0
    rates = []
    for step in ([-1.0, 0.0, 0.0], [0.0, 0.0, -0.05], [2.0, 2.0, 0.0]):
        updates = jax.tree.map(jnp.zeros_like, params)
        updates["block"]["binary"]["kernel"] = jnp.array(step)
        given, state = tx.update(updates, state, params)
        assert given is updates
        params = optax.apply_updates(params, given)
        rates.append(float(optimizers.flip_rate({"inside": (state, None)})))
    np.testing.assert_allclose(rates, [1 / 3, 1 / 6, 1 / 3], rtol=1e-6)  # the first step has left the window


def test_a_window_below_one_is_refused():
    with pytest.raises(UserError, match="window: needs an integer from 1"):
        optimizers.track_sign_flips(optimizers.name_mask(("kernel",)), window=0)
