"""Numbers are those that the method's description computes in float64; its checks are named."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import optimizers
from jaxface.errors import UserError
from jaxface.optimizers import bamsprod, range_bounds
from jaxface.training import Optimizer

MODULE = sys.modules["jaxface.optimizers.bamsprod"]
# P1: c = 4, -1, -1, 4, …; the best fixed weight is -1. P2: one outlier of -10,000, then 1 for ever.
P1_DECAYS = {"b1": 0.0, "b2": 1 / 17}


def p1(steps):
    return jnp.asarray(np.where(np.arange(steps) % 3 == 0, 4.0, -1.0))


def p2(steps):
    return jnp.asarray(np.where(np.arange(steps) == 0, -1e4, 1.0))


def boxed(rule):
    return optax.chain(rule, optimizers.project_box())


def rules(rate, **decays):
    of_one = functools.partial(bamsprod, rate, scale=1.0, **decays)
    return {
        "adam": lambda: boxed(optimizers.uncorrected_adam(rate, **decays)),
        "amsgrad": lambda: boxed(optimizers.amsgrad(rate, **decays)),
        "sgd": lambda: boxed(optax.sgd(rate)),
        "bamsprod 1e-3": lambda: of_one(gamma=1e-3),
        "bamsprod 1e-2": lambda: of_one(gamma=1e-2),
    }


@pytest.fixture
def doubles():
    with jax.enable_x64(True):
        yield


# Check 3: the tables of regret.


@pytest.mark.parametrize(
    ("name", "regrets", "last"),
    [
        ("adam", (1.333333, 1.333333, 1.333333), 1.0),
        ("amsgrad", (0.424242, 0.042042, 0.004200), -0.997428),
        ("sgd", (0.080808, 0.008008, 0.000800), -0.989999),
        ("bamsprod 1e-3", (0.424242, 0.042042, 0.004200), -0.952252),
        ("bamsprod 1e-2", (0.202020, 0.020020, 0.002000), -0.950170),
    ],
)
def test_regret_of_the_first_problem_at_falling_rates(doubles, name, regrets, last):
    rule = rules(lambda count: 0.5 / jnp.sqrt(count + 1.0), **P1_DECAYS)[name]()
    weights, regret = optimizers.simulate_online(p1(9999), 1.0, rule)
    np.testing.assert_allclose(regret[np.array([98, 998, 9998])], regrets, atol=5e-7)
    np.testing.assert_allclose(weights[-1], last, atol=5e-7)


@pytest.mark.parametrize(
    ("name", "regret"),
    [("adam", 1.333333), ("amsgrad", 0.078808), ("bamsprod 1e-3", 0.058806), ("bamsprod 1e-2", 0.035604)],
)
def test_regret_of_the_first_problem_at_a_constant_rate(doubles, name, regret):
    _, by_step = optimizers.simulate_online(p1(9999), 1.0, rules(0.01, **P1_DECAYS)[name]())
    np.testing.assert_allclose(by_step[-1], regret, atol=5e-7)


@pytest.mark.parametrize(
    ("name", "weights", "regret"),
    [
        ("amsgrad", {1000: 0.784921, 10_000: 0.500316, 20_000: 0.184088}, 0.999900),
        ("adam", {10_000: -1.0}, None),
        ("bamsprod 1e-3", {1000: 0.762086, 5000: 0.301114, 10_000: -1.0}, -0.441800),
    ],
)
def test_the_second_problem_stalls_amsgrad_alone(doubles, name, weights, regret):
    by_step, regrets = optimizers.simulate_online(p2(20_000), 0.5, rules(0.01)[name]())
    for step, expected in weights.items():
        np.testing.assert_allclose(by_step[step - 1], expected, atol=5e-7)
    if regret is not None:
        np.testing.assert_allclose(regrets[-1], regret, atol=5e-7)


def test_a_lower_bound_alone_stalls_as_well(doubles, monkeypatch):
    monkeypatch.setattr(MODULE, "range_bounds", lambda *args: (range_bounds(*args)[0], jnp.inf))
    weights, _ = optimizers.simulate_online(p2(20_000), 0.5, rules(0.01)["bamsprod 1e-3"]())
    np.testing.assert_allclose(weights[-1], 0.168134, atol=5e-7)


def test_a_bound_that_never_decays_stalls_as_well(doubles):
    rule = bamsprod(0.01, gamma=1e-3, scale=1.0, beta_l=1 - 1e-15)
    weights, _ = optimizers.simulate_online(p2(20_000), 0.5, rule)
    np.testing.assert_allclose(weights[-1], 0.684787, atol=5e-7)


def test_a_bound_that_decays_like_the_moment_fails_like_adam():
    rule = bamsprod(0.01, gamma=1e-2, scale=1.0, beta_l=1 / 17, **P1_DECAYS)
    _, regret = optimizers.simulate_online(p1(3000).astype(jnp.float32), 1.0, rule)
    np.testing.assert_allclose(regret[-1], 4 / 3, rtol=1e-5)


# Checks 1 and 2: traces of the first problem, step by step.


def second_moments(rule, coefficients, start):
    """(V, weights) after every step, V from the step that a rule with b1 = 0 takes at a rate of 1."""
    weight, state, second, weights = jnp.asarray(start), rule.init(jnp.asarray(start)), [], []
    for gradient in coefficients:
        direction, state = rule.update(gradient, state, weight)
        second.append(float(gradient / direction - 1e-8) ** 2)
        weight = jnp.clip(weight - 0.01 * direction, -1, 1)
        weights.append(float(weight))
    return second, weights


def test_check_1_adam(doubles):
    rule = optimizers.scale_by_uncorrected_adam(**P1_DECAYS)
    second, weights = second_moments(rule, p1(3), 1.0)
    np.testing.assert_allclose(second, [15.058824, 1.826990, 1.048646], atol=5e-7)
    np.testing.assert_allclose(weights, [0.989692, 0.997091, 1.0], atol=5e-7)


def test_check_1_amsgrad(doubles):
    rule = optimizers.scale_by_uncorrected_adam(**P1_DECAYS, largest=True)
    second, weights = second_moments(rule, p1(6), 1.0)
    np.testing.assert_allclose(
        weights, [0.989692, 0.992269, 0.994846, 0.984559, 0.987131, 0.989703], atol=5e-7
    )
    np.testing.assert_allclose(second[3], 15.120509, atol=5e-7)


def test_check_2(doubles):
    rule = optimizers.scale_by_bamsprod(**P1_DECAYS, gamma=1e-2, scale=1.0)
    second, weights = second_moments(rule, p1(6), 1.0)
    np.testing.assert_allclose(
        second, [4.04, 2.035922, 1.367848, 1.04, 0.838321, 0.703844], atol=5e-7
    )  # check 7: V falls
    expected = [0.980099, 0.987108, 0.995658, 0.956435, 0.967357, 0.979276]
    np.testing.assert_allclose(weights, expected, atol=5e-7)
    in_chain, _ = optimizers.simulate_online(p1(6), 1.0, bamsprod(0.01, **P1_DECAYS, gamma=1e-2, scale=1.0))
    np.testing.assert_allclose(in_chain, expected, atol=5e-7)


# Check 4: the scale and the error of binary weights.


@pytest.mark.parametrize(
    ("h", "scale", "squared"), [([1.0, 2.0, 3.0, 4.0], 0.26, 0.164), ([1.0] * 4, 0.25, 0.05)]
)
def test_check_4(h, scale, squared):
    w, h = jnp.array([0.3, -0.2, 0.1, -0.4]), jnp.array(h)
    np.testing.assert_allclose(optimizers.h_norm_scale(w, h), scale, atol=5e-7)
    error = optimizers.h_norm_quant_error(w, h)
    np.testing.assert_allclose(jnp.square(error) * h.sum(), squared, atol=5e-7)
    if squared == 0.164:
        np.testing.assert_allclose(error, 0.128062, atol=5e-7)
    nearby = [optimizers.h_norm_quant_error(w, h, scale=scale + shift) for shift in (-0.01, 0.01)]
    assert min(nearby) > error


def test_a_group_without_gradients_counts_every_weight_alike():
    w, h = jnp.array([0.3, -0.2, 0.1, -0.4]), jnp.zeros(4)
    np.testing.assert_allclose(optimizers.h_norm_scale(w, h), 0.25, rtol=1e-6)
    np.testing.assert_allclose(optimizers.h_norm_quant_error(w, h), np.sqrt(0.05 / 4), rtol=1e-6)


# Check 5: limits.


def gradients(steps=12, shape=(6, 5), seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(steps, *shape)), jnp.float32)


def walk(rule, params, by_step, jit=True):
    """(parameters, state) after every step; `by_step` is a tree of [steps, ...]."""

    def step(carry, gradient):
        params, state = carry
        updates, state = rule.update(gradient, state, params)
        carry = optax.apply_updates(params, updates), state
        return carry, carry

    if jit:
        return jax.jit(lambda start: jax.lax.scan(step, start, by_step)[1])((params, rule.init(params)))
    carry, rows = (params, rule.init(params)), []
    for index in range(len(jax.tree.leaves(by_step)[0])):
        carry, row = step(carry, jax.tree.map(lambda g, i=index: g[i], by_step))
        rows.append(row)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


START = jnp.asarray(np.random.default_rng(9).uniform(-1, 1, (6, 5)), jnp.float32)


def test_check_5_a_range_that_never_closes_is_amsgrad():
    by_step = gradients()
    ours, _ = walk(bamsprod(0.05, gamma=0.0), START, by_step)
    theirs, _ = walk(boxed(optimizers.amsgrad(0.05)), START, by_step)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    nearly, _ = walk(bamsprod(0.05, gamma=1e-12), START, by_step)
    np.testing.assert_allclose(nearly, theirs, rtol=1e-6, atol=1e-7)
    corrected, _ = walk(bamsprod(0.05, gamma=0.0, bias_correction=True), START, by_step)
    of_optax, _ = walk(boxed(optax.amsgrad(0.05)), START, by_step)
    np.testing.assert_allclose(corrected, of_optax, rtol=1e-5, atol=1e-6)


def test_check_5_a_closed_range_is_momentum_sgd():
    rule = optimizers.scale_by_bamsprod(gamma=1.0)
    state = rule.init(START)._replace(count=jnp.int32(2**31 - 3), q_sum=jnp.float32(0.3 * (2**31 - 3)))
    direction, state = rule.update(gradients(1)[0], state, START)
    expected = state.mu / (state.l_inf * state.q_sum / (2**31 - 2))
    np.testing.assert_allclose(direction, expected, rtol=1e-4)


# Checks 6, 7, 7b: the range.


def test_check_6():
    t = jnp.arange(1, 2000)
    lower, upper = range_bounds(t, jnp.float32(0.7), 1e-3)
    assert (lower <= upper).all() and (jnp.diff(lower) >= 0).all() and (jnp.diff(upper) <= 0).all()
    assert [float(bound) for bound in range_bounds(0, 0.7, 1e-3)] == [0.0, np.inf]
    for step, factors in {
        1: (0.000999, 1001), 100: (0.090909, 11), 1000: (0.5, 2), 10_000: (0.909091, 1.1)
    }.items():  # fmt: skip
        np.testing.assert_allclose(range_bounds(step, 1.0, 1e-3), factors, rtol=1e-5, atol=5e-7)
    np.testing.assert_array_equal(range_bounds(3, jnp.zeros(2), 1e-3), 0.0)


def test_check_7_the_maximum_never_falls():
    _, state = walk(bamsprod(0.05), START, gradients())
    assert (jnp.diff(state.nu_max, axis=0) >= 0).all()


@pytest.mark.parametrize(("bound", "free"), [("rms", 4096), ("max", 0)])
def test_check_7b_the_root_mean_square_leaves_the_range_open(bound, free):
    rng = np.random.default_rng(0)
    # Of two magnitudes: the error is 0.3 whatever their weights.
    weights = jnp.asarray(rng.choice([-0.8, -0.2, 0.2, 0.8], 4096), jnp.float32)
    by_step = jnp.asarray(rng.normal(size=(50, 4096)), jnp.float32)
    rule = bamsprod(0.0, gamma=1e-3, gradient_bound=bound)
    state = jax.tree.map(lambda x: x[-1], walk(rule, weights, by_step)[1])
    error = state.q_sum / 50
    np.testing.assert_allclose(error, 0.3, atol=0.003)
    lower, upper = range_bounds(50, jnp.square(state.l_inf * error), 1e-3)
    assert int(jnp.sum((state.nu_max >= lower) & (state.nu_max <= upper))) == free


# Checks 8 to 10: what it is indifferent to.


def test_check_8_multiplied_gradients_change_nothing():
    by_step = gradients()
    plain, _ = walk(bamsprod(0.05, gamma=1e-2), START, by_step)
    large, _ = walk(bamsprod(0.05, gamma=1e-2), START, 1000 * by_step)
    np.testing.assert_allclose(plain, large, rtol=1e-4, atol=1e-5)


def test_check_9_binary_weights_stay_in_the_box():
    params = {"binary": START, "real": START, "one": jnp.float32(0.9)}
    by_step = {"binary": gradients() - 3, "real": gradients() - 3, "one": gradients(shape=())}
    mask = {"binary": True, "real": False, "one": True}
    moved, _ = walk(bamsprod(0.3, binary_mask=mask), params, by_step)
    assert float(jnp.abs(moved["binary"]).max()) == 1.0
    assert float(jnp.abs(moved["real"]).max()) > 1.5
    amsgrad, _ = walk(optimizers.amsgrad(0.3), START, by_step["real"])
    np.testing.assert_allclose(moved["real"], amsgrad, rtol=1e-5)
    by_function, _ = walk(bamsprod(0.3, binary_mask=lambda tree: mask), params, by_step)
    jax.tree.map(np.testing.assert_array_equal, moved, by_function)


def test_check_10_permuted_weights_take_permuted_steps():
    order = np.random.default_rng(1).permutation(30)
    by_step = gradients(shape=(30,))
    plain, _ = walk(bamsprod(0.05), START.ravel(), by_step)
    permuted, _ = walk(bamsprod(0.05), START.ravel()[order], by_step[:, order])
    np.testing.assert_allclose(permuted, plain[:, order], rtol=1e-5, atol=1e-6)


# The whole rule again in numpy.


def in_numpy(by_step, w, *, rate, gamma, bound, target, b1=0.9, b2=0.999, beta_l=0.999, q_min=0.05):
    w, m, v, largest, size, errors = w.astype(np.float64), 0.0, 0.0, 0.0, 0.0, []
    for t, g in enumerate(np.asarray(by_step, np.float64), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        largest = np.maximum(largest, v)
        size = max(beta_l * size, np.abs(g).max() if bound == "max" else np.sqrt((g**2).mean()))
        h = np.sqrt(largest)
        a = (h * np.abs(w)).sum() / h.sum()
        errors.append(np.sqrt((h * (w - a * np.where(w >= 0, 1, -1)) ** 2).sum() / h.sum()))
        goal = 2 * size * sum(errors) if target == "sum" else (size * max(np.mean(errors), q_min)) ** 2
        second = np.clip(largest, goal * (1 - 1 / (gamma * t + 1)), goal * (1 + 1 / (gamma * t)))
        w = np.clip(w - rate * m / (np.sqrt(second) + 1e-8), -1, 1)
    return w


@pytest.mark.parametrize("bound", ["rms", "max"])
@pytest.mark.parametrize("target", ["mean", "sum"])
def test_both_bounds_and_both_targets(bound, target):
    rule = bamsprod(0.05, gamma=0.1, gradient_bound=bound, target=target)
    moved, _ = walk(rule, START, gradients())
    expected = in_numpy(gradients(), np.asarray(START), rate=0.05, gamma=0.1, bound=bound, target=target)
    np.testing.assert_allclose(moved[-1], expected, rtol=1e-4, atol=1e-5)


def test_channels_as_groups_are_leaves_of_their_own():
    by_step = gradients() * jnp.array([1.0, 10.0, 0.1, 1.0, 1.0])
    moved, state = walk(bamsprod(0.05, gamma=0.1, per_channel=True), START, by_step)
    assert state.l_inf.shape == state.q_sum.shape == (12, 5)
    alone = {str(i): START[:, i] for i in range(5)}
    apart, _ = walk(bamsprod(0.05, gamma=0.1), alone, {str(i): by_step[..., i] for i in range(5)})
    together = jnp.stack([apart[str(i)] for i in range(5)], axis=-1)
    np.testing.assert_allclose(moved, together, rtol=1e-5, atol=1e-6)
    bias = bamsprod(0.05, per_channel=True).init(jnp.zeros(5))
    assert bias.l_inf.shape == ()


def test_eager_is_compiled_and_half_precision_keeps_its_state_in_float32():
    by_step = gradients(3)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        walk(bamsprod(0.05), START, by_step),
        walk(bamsprod(0.05), START, by_step, jit=False),
    )
    moved, state = walk(bamsprod(0.05), START.astype(jnp.bfloat16), by_step.astype(jnp.bfloat16))
    assert moved.dtype == jnp.bfloat16 and state.nu_max.dtype == jnp.float32
    assert float(jnp.abs(moved).max()) <= 1.0


# Check 11: what it refuses.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("b1", 1.0), ("b1", -0.1), ("b2", 1.0), ("gamma", -1e-3), ("q_min", 0.0), ("eps", -1.0), ("beta_l", 1.5), ("scale", 0.0),
        ("gradient_bound", "mean"), ("target", "last"),
    ],
)  # fmt: skip
def test_check_11_refuses_numbers_and_names(name, value):
    with pytest.raises(UserError, match=f"^{name}: needs"):
        bamsprod(0.1, **{name: value})


def test_check_11_refuses_parameters_and_masks():
    rule = bamsprod(0.1)
    with pytest.raises(ValueError, match="params: needs"):
        rule.update(START, rule.init(START))
    with pytest.raises(UserError, match=r"params: needs floats.*\['count'\] is int32"):
        rule.init({"w": START, "count": jnp.arange(3)})
    with pytest.raises(UserError, match="binary_mask: needs a bool for every parameter"):
        bamsprod(0.1, binary_mask={"v": True}).init({"w": START})


@pytest.mark.parametrize("bound", ["rms", "max"])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_check_11_what_is_not_finite_is_seen(bound, value):
    rule = bamsprod(0.1, gradient_bound=bound)
    params = {"a": START, "b": START}
    gradient = {"a": jnp.ones_like(START).at[0, 0].set(value), "b": jnp.ones_like(START)}
    updates, state = rule.update(gradient, rule.init(params), params)
    assert jnp.isnan(updates["a"]).all() and jnp.isfinite(updates["b"]).all()
    updates, _ = rule.update(jax.tree.map(jnp.ones_like, params), state, params)
    assert jnp.isnan(updates["a"]).all() and jnp.isfinite(updates["b"]).all()


def test_no_gradient_is_no_step():
    updates, _ = bamsprod(0.1).update(jnp.zeros((6, 5)), bamsprod(0.1).init(START), START)
    np.testing.assert_array_equal(updates, 0.0)


# Online problems.


def test_regret_is_that_of_the_best_fixed_weight():
    regret = optimizers.online_regret(jnp.array([4.0, -1.0, -1.0]), jnp.array([-1.0, 1.0, 1.0]))
    np.testing.assert_allclose(regret, [0.0, -1.0, -4 / 3], rtol=1e-6)
    with pytest.raises(ValueError, match="signs: needs the shape"):
        optimizers.online_regret(jnp.ones(3), jnp.ones(2))


# By name, in the optimizer of a configuration.


def test_a_configuration_names_it():
    kernel, bias = START[None, None], jnp.ones(5)
    params = {
        "block1": {"binary": {"kernel": kernel}, "threshold": {"bias": bias}},
        "head": {"kernel": START},
    }
    assert optimizers.latent_weights(params) == {
        "block1": {"binary": {"kernel": True}, "threshold": {"bias": False}}, "head": {"kernel": False}
    }  # fmt: skip
    chosen = Optimizer(name="bamsprod", learning_rate=0.05, schedule="constant", weight_decay=0.1).build(12)
    g = gradients()
    by_step = {
        "block1": {"binary": {"kernel": g[:, None, None]}, "threshold": {"bias": g[:, 0]}},
        "head": {"kernel": g},
    }
    moved, _ = walk(chosen, params, by_step)
    binary, _ = walk(bamsprod(0.05), START, g)
    decayed = optax.chain(optax.add_decayed_weights(0.1), optimizers.amsgrad(0.05))
    real, _ = walk(decayed, START, g)
    np.testing.assert_allclose(moved["block1"]["binary"]["kernel"][:, 0, 0], binary, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved["head"]["kernel"], real, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="bamsprod needs binary layers among those that train"):
        chosen.init({"head": {"kernel": START}})


@pytest.mark.parametrize("name", ["amsgrad", "uncorrected_adam"])
def test_others_have_names_too(name):
    named = Optimizer(name=name, learning_rate=0.05, schedule="constant", weight_decay=0.0).build(12)
    plain = getattr(optimizers, name)(0.05)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        *(walk(rule, START, gradients())[0] for rule in (named, plain)),
    )


def test_an_unknown_name_is_refused():
    with pytest.raises(
        UserError, match=r"optimizer.name: needs one of .*bamsprod.*, got 'bansprod'; did you mean"
    ):
        Optimizer(name="bansprod").build(1)
