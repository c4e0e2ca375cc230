import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface.errors import UserError
from jaxface.optimizers import sampled_rows
from jaxface.training import Optimizer

ROWS, FEATURES, STEPS = 24, 5, 6
RATE, MOMENTUM, DECAY = 0.1, 0.9, 0.05
SGD = Optimizer(learning_rate=RATE, schedule="constant", momentum=MOMENTUM, weight_decay=DECAY)
CHOSEN = {"backbone": False, "prototypes": True}


def build(name: str) -> optax.GradientTransformation:
    return Optimizer(
        name=name, learning_rate=RATE, schedule="cosine", weight_decay=DECAY, clip_norm=3.0
    ).build(STEPS)


def problem(seed: int = 0):
    """(parameters, sampled rows of every step, gradients of every step: 0 in the prototypes' other rows)."""
    rng = np.random.default_rng(seed)
    params = {
        "backbone": {"kernel": rng.normal(size=(ROWS, 3))},
        "prototypes": rng.normal(size=(ROWS, FEATURES)),
    }
    drawn = [np.sort(rng.permutation(ROWS)[: rng.integers(1, ROWS // 2)]) for _ in range(STEPS)]
    gradients = []
    for rows in drawn:
        table = np.zeros((ROWS, FEATURES))
        table[rows] = rng.normal(size=(len(rows), FEATURES))
        gradients.append({"backbone": {"kernel": rng.normal(size=(ROWS, 3))}, "prototypes": table})
    params, gradients = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, gradients))
    return params, drawn, gradients


def walk(optimizer, params, gradients, *, jit=True, extras=None):
    """(params, state) before the first step and after every one."""

    def step(params, state, gradient, extra):
        updates, state = optimizer.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    found = [(params, optimizer.init(params))]
    for gradient, extra in zip(gradients, extras or [{}] * len(gradients), strict=True):
        found.append(step(*found[-1], gradient, extra))
    return found


def close(found, expected):
    """Equal up to roundings: what a compiler fuses depends on what stands around it."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7), found, expected)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_sgd_is_that_of_gathered_rows():
    params, drawn, gradients = problem()
    weights = np.asarray(params["prototypes"], np.float64)
    momentum = np.zeros_like(weights)
    found = walk(sampled_rows(SGD.build(STEPS), CHOSEN), params, gradients)
    for rows, gradient, (after, state) in zip(drawn, gradients, found[1:], strict=True):
        part = weights[rows]
        velocity = MOMENTUM * momentum[rows] + np.asarray(gradient["prototypes"])[rows] + DECAY * part
        weights[rows], momentum[rows] = part - RATE * velocity, velocity
        np.testing.assert_allclose(after["prototypes"], weights, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state[1].trace["prototypes"], momentum, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_other_rows_and_their_statistics_keep_their_bits(name):
    params, drawn, gradients = problem()
    params["prototypes"] = params["prototypes"].at[0].set(-0.0)
    found = walk(sampled_rows(build(name), CHOSEN), params, gradients)
    for rows, (before, old), (after, new) in zip(drawn, found, found[1:], strict=False):
        still = np.setdiff1d(np.arange(ROWS), rows)
        tables = [
            [leaf for leaf in jax.tree.leaves(tree) if leaf.shape == (ROWS, FEATURES)]
            for tree in ((before, old), (after, new))
        ]
        assert len(tables[0]) == (2 if name == "sgd" else 3)
        for one, other in zip(*tables, strict=True):
            assert bits(one[still]) == bits(other[still])
            assert (one[rows] != other[rows]).all()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_everything_else_is_the_plain_optimizer(name):
    params, drawn, gradients = problem()
    wrapped = walk(sampled_rows(build(name), CHOSEN), params, gradients)
    plain = walk(build(name), params, gradients)
    assert jax.tree.structure(wrapped) == jax.tree.structure(plain)
    for (one, _), (other, _) in zip(wrapped, plain, strict=True):
        close(one["backbone"], other["backbone"])
    # The first step, before any row was left behind, is the same in sampled rows; without the wrapper the others decay.
    first = [walked[1][0]["prototypes"] for walked in (wrapped, plain)]
    close(*(table[drawn[0]] for table in first))
    others = np.setdiff1d(np.arange(ROWS), drawn[0])
    assert (first[1][others] != params["prototypes"][others]).all()


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_no_table_or_all_sampled_is_the_plain_optimizer(name):
    params, _, gradients = problem()
    expected = walk(build(name), params, gradients)
    nothing = {"backbone": False, "prototypes": False}
    close(walk(sampled_rows(build(name), nothing), params, gradients), expected)
    everyone = [{"sampled": jnp.ones(ROWS, bool)}] * STEPS
    close(walk(sampled_rows(build(name), lambda _: CHOSEN), params, gradients, extras=everyone), expected)


def test_adam_counts_steps_and_not_samples():
    params = {"prototypes": jnp.zeros((2, 1))}
    rule = sampled_rows(optax.scale_by_adam(b1=0.5, b2=0.75, eps=0.0))
    _, state = rule.update({"prototypes": jnp.array([[1.0], [0.0]])}, rule.init(params), params)
    updates, state = rule.update({"prototypes": jnp.array([[0.0], [1.0]])}, state, params)
    assert state.count == 2
    np.testing.assert_array_equal(state.mu["prototypes"], [[0.5], [0.5]])
    # The row's first moments, corrected as the second: (1/2) / (1 - 1/4) over the root of (1/4) / (1 - 9/16).
    np.testing.assert_allclose(updates["prototypes"][1, 0], (2 / 3) / np.sqrt(4 / 7), rtol=1e-6)


def test_a_mask_takes_along_rows_whose_gradient_is_zero():
    params = {"prototypes": jnp.ones((3, 2))}
    rule = sampled_rows(SGD.build(STEPS))
    zero = {"prototypes": jnp.zeros((3, 2))}
    updates, state = rule.update(zero, rule.init(params), params, sampled=jnp.array([True, False, False]))
    np.testing.assert_allclose(updates["prototypes"][0], -RATE * DECAY, rtol=1e-6)
    np.testing.assert_array_equal(updates["prototypes"][1:], 0.0)
    np.testing.assert_allclose(state[1].trace["prototypes"][:, 0], [DECAY, 0.0, 0.0], rtol=1e-6)
    unasked, _ = rule.update(zero, rule.init(params), params)
    np.testing.assert_array_equal(unasked["prototypes"], 0.0)


def test_a_mask_passes_through_a_chain():
    params = {"prototypes": jnp.ones((2, 2))}
    rule = optax.chain(optax.clip(1.0), sampled_rows(SGD.build(STEPS)))
    updates, _ = rule.update(
        jax.tree.map(jnp.ones_like, params), rule.init(params), params, sampled=jnp.array([False, True])
    )
    assert (updates["prototypes"][0] == 0).all() and (updates["prototypes"][1] != 0).all()


def test_inside_a_partition_and_for_a_bare_array():
    params, _, gradients = problem()
    labels = {"backbone": "plain", "prototypes": "table"}
    parts = optax.partition({"plain": SGD.build(STEPS), "table": sampled_rows(SGD.build(STEPS))}, labels)
    expected = walk(sampled_rows(SGD.build(STEPS), CHOSEN), params, gradients)[-1][0]
    close(walk(parts, params, gradients)[-1][0], expected)
    tables = [gradient["prototypes"] for gradient in gradients]
    alone = walk(sampled_rows(SGD.build(STEPS)), params["prototypes"], tables)[-1][0]
    close(alone, expected["prototypes"])


def test_a_parameter_of_the_same_name_elsewhere_is_left_alone():
    table = jnp.ones((3, 2))
    params = {"prototypes": table, "teacher": {"prototypes": table}}
    rule = sampled_rows(SGD.build(STEPS), {"prototypes": True, "teacher": False})
    _, state = rule.update(jax.tree.map(jnp.zeros_like, params), rule.init(params), params)
    np.testing.assert_array_equal(state[1].trace["prototypes"], 0.0)
    np.testing.assert_allclose(state[1].trace["teacher"]["prototypes"], DECAY, rtol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_jit_equals_eager(seed):
    params, _, gradients = problem(seed)
    rule = sampled_rows(SGD.build(STEPS), CHOSEN)
    jitted, eager = (walk(rule, params, gradients[:2], jit=jit)[-1] for jit in (True, False))
    close(jitted, eager)


def test_under_vmap_every_table_has_its_own_rows():
    tables = jnp.ones((2, 3, 1))
    gradients = jnp.array([[[1.0], [0.0], [0.0]], [[0.0], [1.0], [1.0]]])
    rule = sampled_rows(SGD.build(STEPS))
    states = jax.vmap(rule.init)(tables)
    updates, _ = jax.vmap(rule.update)(gradients, states, tables)
    np.testing.assert_array_equal(updates != 0, gradients != 0)


def test_sharded_rows_need_no_communication():
    params, _, gradients = problem()
    params, gradients = params["prototypes"], [gradient["prototypes"] for gradient in gradients]
    rule = sampled_rows(SGD.build(STEPS))
    expected = walk(rule, params, gradients)[-1][0]
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("model",)), P("model"))
    params, gradients = jax.device_put((params, gradients), rows)
    program = jax.jit(rule.update).lower(gradients[0], jax.device_put(rule.init(params)), params).compile()
    assert not any(
        word in program.as_text() for word in ("all-gather", "all-reduce", "all-to-all", "permute")
    )
    found = walk(rule, params, gradients)[-1][0]
    assert found.sharding.is_equivalent_to(rows, 2)
    close(found, expected)


@pytest.mark.parametrize(
    ("shape", "sampled", "words"),
    [
        ((), None, r"tables: needs parameters with rows; got the scalar \['w'\]"),
        ((3, 2), (4,), r"sampled: needs shape \(3,\), the rows of \['w'\]; got \(4,\)"),
        ((3, 2), (), r"sampled: needs shape \(3,\), the rows of \['w'\]; got \(\)"),
    ],
)
def test_refusals_in_one_line(shape, sampled, words):
    params = {"w": jnp.ones(shape)}
    rule = sampled_rows(SGD.build(STEPS))
    extra = {} if sampled is None else {"sampled": jnp.ones(sampled, bool)}
    with pytest.raises(UserError, match=words) as caught:
        rule.update(params, rule.init(params), params, **extra)
    assert "\n" not in str(caught.value)
