"""The rules of large batches equal optax's own optimizers, step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxface.training import Optimizer, decay_mask

RNG = np.random.default_rng(0)
SHAPES = {
    "block": {"conv": {"kernel": (3, 3, 4, 6)}, "dense": {"kernel": (6, 5), "bias": (5,)}},
    "depthwise": {"kernel": (3, 3, 1, 4)},
    "norm": {"scale": (6,)},
    "head_dense": {"kernel": (5, 4)},
    "prototypes": (7, 4),
}


def draw():
    return jax.tree.map(
        lambda shape: jnp.asarray(RNG.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PARAMS, GRADIENTS = draw(), [draw() for _ in range(3)]


def two_axes(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def dimensions(params):
    """Hidden kernels as matrices; None takes Adam."""

    def of(path, leaf):
        hidden = path[0].key == "block" and path[-1].key == "kernel"
        axes = tuple(range(leaf.ndim))
        return contrib.MuonDimensionNumbers(axes[:-1], axes[-1]) if hidden else None

    return jax.tree_util.tree_map_with_path(of, params)


OPTAX = {
    "lion": optax.lion(0.1, b1=0.9, b2=0.99, weight_decay=0.05, mask=decay_mask),
    "lars": optax.lars(
        0.1, weight_decay=0.05, weight_decay_mask=decay_mask, trust_ratio_mask=two_axes, momentum=0.9
    ),
    "lamb": optax.lamb(0.1, b1=0.9, weight_decay=0.05, mask=decay_mask),
    "muon": contrib.muon(
        0.1,
        beta=0.9,
        weight_decay=0.05,
        weight_decay_mask=decay_mask,
        adam_b1=0.9,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=0.2,
    ),
    # Its own weight decay is not multiplied by the rate.
    "adafactor": optax.adafactor(
        0.1,
        multiply_by_parameter_scale=False,
        momentum=0.9,
        dtype_momentum=jnp.bfloat16,
        weight_decay_rate=0.1 * 0.05,
        weight_decay_mask=decay_mask,
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_a_rule_is_optaxs_optimizer(name):
    rule = Optimizer(name=name, learning_rate=0.1, schedule="constant", weight_decay=0.05).build(3)
    expected, ours, theirs = OPTAX[name], PARAMS, PARAMS
    states = [rule.init(PARAMS), expected.init(PARAMS)]
    steps = [jax.jit(rule.update), jax.jit(expected.update)]
    for gradients in GRADIENTS:
        updates, states[0] = steps[0](gradients, states[0], ours)
        wanted, states[1] = steps[1](gradients, states[1], theirs)
        if name == "muon":  # optax has no decay mask for what Adam takes; ours decays it by the same mask
            for part in ("head_dense", "depthwise", "prototypes"):
                decayed = jax.tree.map(lambda u, p: u - 0.1 * 0.05 * p, wanted[part], theirs[part])
                wanted = {**wanted, part: decayed}
        # The mean in bfloat16 is rounded before it is multiplied by the rate, in optax after.
        close = dict(rtol=4e-3, atol=1e-4) if name == "adafactor" else dict(rtol=2e-4, atol=1e-6)
        jax.tree.map(functools.partial(np.testing.assert_allclose, **close), updates, wanted)
        ours, theirs = (optax.apply_updates(p, u) for p, u in ((ours, updates), (theirs, wanted)))
        assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(updates))


def test_a_step_of_muon_has_the_size_of_one_of_adam():
    """Orthogonalized: singular values near 1, so that a root mean square of 0.2 is sqrt(max(n, m)) · 0.2 of each."""
    rule = Optimizer(name="muon", learning_rate=1.0, schedule="constant", weight_decay=0.0).build(1)
    params = {"hidden": {"kernel": jnp.asarray(RNG.normal(size=(16, 16)), jnp.float32)}}
    updates, _ = rule.update(params, rule.init(params), params)
    singular = np.linalg.svd(updates["hidden"]["kernel"], compute_uv=False) / (0.2 * 4)
    assert singular.min() > 0.3 and singular.max() < 1.3


def test_adafactor_keeps_rows_and_columns_alone():
    params = {"dense": {"kernel": jnp.zeros((256, 512))}}
    for momentum, expected in ((0.0, 256 + 512), (0.9, 256 + 512 + 256 * 512)):
        rule = Optimizer(name="adafactor", learning_rate=0.1, momentum=momentum).build(3)
        sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(rule.init, params)) if leaf.size > 1]
        assert sum(sizes) == expected
