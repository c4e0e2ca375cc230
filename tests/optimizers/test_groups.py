"""Groups of parameters by name: what a name selects, factors by group and depth, and what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface.errors import UserError
from jaxface.optimizers import check_groups, freeze, scale_groups, selects

PARAMS = {
    "backbone": {
        "stem_conv": {"kernel": jnp.ones((3, 2))},
        "stage1_block1": {"conv1": {"kernel": jnp.ones((2, 2))}},
        "stage1_block2": {"conv1": {"kernel": jnp.ones((2, 2))}},
        "stage10_block1": {"conv1": {"kernel": jnp.ones((2, 2))}},
        "head_dense": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)},
    },
    "prototypes": jnp.ones((5, 4)),
}


@pytest.mark.parametrize(
    ("name", "path", "selected"),
    [
        ("stem", "backbone/stem_conv/kernel", True),
        ("backbone/stem", "backbone/stem_conv/kernel", True),
        ("stem_conv/kernel", "backbone/stem_conv/kernel", True),
        ("backbone", "backbone/stem_conv/kernel", True),
        ("conv", "backbone/stem_conv/kernel", False),
        ("kernel", "backbone/stem_conv/kernel", False),
        ("stage1", "backbone/stage10_block1/conv1/kernel", False),
        ("prototypes", "prototypes", True),
        ("proto", "prototypes", False),
    ],
)
def test_what_a_name_selects(name, path, selected):
    assert selects(name, path) == selected


def test_factors_of_groups_and_of_depth():
    """BEiT's rule by hand: decay^(n - i) for group i of n, times the rate of the longest name."""
    order = (("stem",), ("stage1_block1",), ("stage1_block2", "stage10"))
    rule = scale_groups(
        {"backbone": 0.5, "head": 10.0, "stage1_block2": 3.0}, depth_order=order, layer_decay=0.1
    )
    updates, _ = rule.update(PARAMS, rule.init(PARAMS))
    factors = jax.tree.map(lambda u: np.unique(u).item(), updates)
    expected = {
        "backbone": {
            "stem_conv": {"kernel": 0.5 * 0.1**3},
            "stage1_block1": {"conv1": {"kernel": 0.5 * 0.1**2}},
            "stage1_block2": {"conv1": {"kernel": 3.0 * 0.1}},
            "stage10_block1": {"conv1": {"kernel": 0.5 * 0.1}},
            "head_dense": {"kernel": 10.0, "bias": 10.0},
        },
        "prototypes": 1.0,
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), factors, expected)


def test_frozen_parameters_stay_bit_for_bit_and_cost_no_state():
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.1))
    rule = freeze(inner, ["stem", "stage1", "prototypes"])
    state = rule.init(PARAMS)
    moments = [leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(moments) == 2 * (4 + 8 + 4)  # stage10 and the head
    updates, _ = rule.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    moved = jax.tree.map(lambda p, u: bool(jnp.all(p != p + u)), PARAMS, updates)
    assert moved["backbone"]["stage10_block1"]["conv1"]["kernel"] and moved["backbone"]["head_dense"]["bias"]
    after = optax.apply_updates(PARAMS, updates)
    for name in ("stem_conv", "stage1_block1", "stage1_block2"):
        jax.tree.map(np.testing.assert_array_equal, after["backbone"][name], PARAMS["backbone"][name])
    np.testing.assert_array_equal(after["prototypes"], PARAMS["prototypes"])


def test_refusals_tell_the_nearest():
    for build in (lambda: scale_groups({"stege1": 2.0}), lambda: freeze(optax.sgd(0.1), ["stege1"])):
        with pytest.raises(UserError, match="'stege1' selects no parameter; did you mean 'stage1'") as caught:
            build().init(PARAMS)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"optimizer\.rates: 'prototype' .* 'prototypes'"):
        check_groups("optimizer.rates", ["prototype"], PARAMS)
