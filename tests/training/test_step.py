import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import axes, training
from jaxface.errors import UserError

BATCH = {"x": jnp.arange(12.0).reshape(6, 2), "label": jnp.arange(6)}


def quadratic(params, extra, batch, rng):
    error = batch["x"] @ params["w"] - batch["label"]
    return jnp.mean(error**2), (extra, {"error": jnp.mean(error)})


def start(*objectives, **options):
    return training.create_state(
        jax.random.key(0), {"w": jnp.ones(2), "v": jnp.ones(3)}, *objectives, **options
    )


def test_one_step_of_descent_by_hand():
    goal = training.Objective(quadratic, optax.sgd(0.01))
    state, metrics = training.gradient_step(goal)(start(goal), BATCH)
    x, y = np.array(BATCH["x"]), np.array(BATCH["label"])
    gradient = 2 * x.T @ (x @ np.ones(2) - y) / 6
    np.testing.assert_allclose(state.params["w"], 1 - 0.01 * gradient, rtol=1e-5)
    np.testing.assert_array_equal(state.params["v"], np.ones(3))
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean((x @ np.ones(2) - y) ** 2), rtol=1e-5)
    assert state.step == 1


@pytest.mark.parametrize("count", [2, 3, 6])
def test_accumulation_gives_the_gradient_of_the_whole_batch(count):
    goal = training.Objective(quadratic, optax.sgd(0.01))
    whole, metrics = training.gradient_step(goal)(start(goal), BATCH)
    parts, part_metrics = jax.jit(training.gradient_step(goal, accumulate=count))(start(goal), BATCH)
    np.testing.assert_allclose(parts.params["w"], whole.params["w"], rtol=1e-5)
    for key in metrics:
        np.testing.assert_allclose(part_metrics[key], metrics[key], rtol=1e-5)


def test_accumulation_must_divide_the_batch():
    goal = training.Objective(quadratic, optax.sgd(0.01))
    with pytest.raises(UserError, match="accumulate: 4 does not divide the batch of 6"):
        training.gradient_step(goal, accumulate=4)(start(goal), BATCH)


def test_objectives_in_turn_train_their_own_parameters():
    """The second objective sees what the first has done, and neither touches the other's parameters."""

    def follow(params, extra, batch, rng):  # pulls v towards the current w
        return jnp.sum((params["v"][:2] - params["w"]) ** 2), (extra, {})

    first = training.Objective(quadratic, optax.sgd(0.01), trains=("w",), name="first")
    second = training.Objective(follow, optax.sgd(0.25), trains=("v",), name="second")
    state, metrics = training.gradient_step(first, second)(start(first, second), BATCH)
    alone = training.Objective(quadratic, optax.sgd(0.01))
    w = training.gradient_step(alone)(start(alone), BATCH)[0].params["w"]
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-6)
    np.testing.assert_allclose(state.params["v"][:2], 1 - 0.25 * 2 * (1 - w), rtol=1e-5)
    assert set(metrics) == {
        "first/loss", "first/error", "first/gradient_norm", "second/loss", "second/gradient_norm",
    }  # fmt: skip


def test_objectives_need_names_and_known_parameters():
    goal = training.Objective(quadratic, optax.sgd(0.01))
    with pytest.raises(ValueError, match="objectives"):
        training.gradient_step(goal, goal)
    with pytest.raises(ValueError, match=r"trains: \['u'\] not in params"):
        start(training.Objective(quadratic, optax.sgd(0.01), trains=("u",)))


def test_moving_average():
    goal = training.Objective(quadratic, optax.sgd(0.01))
    step = training.gradient_step(goal, ema_decay=0.75)
    state = start(goal, ema=True)
    expected = np.ones(2)
    for _ in range(3):
        state, _ = step(state, BATCH)
        expected = 0.75 * expected + 0.25 * np.array(state.params["w"])
    np.testing.assert_allclose(state.averaged_params["w"], expected, rtol=1e-5)


def test_randomness_is_that_of_the_step_alone():
    def noisy(params, extra, batch, rng):
        return jnp.sum(params["w"] * 0), (extra, {"draw": jax.random.uniform(rng)})

    goal = training.Objective(noisy, optax.sgd(0.1))
    step = training.gradient_step(goal)
    first, a = step(start(goal), BATCH)
    _, b = step(first, BATCH)
    _, again = step(start(goal), BATCH)
    assert a["draw"] == again["draw"] != b["draw"]


def test_every_example_of_every_step_has_a_key():
    """The same keys whether a batch is on one device or on two."""
    state = start()

    def data_of(state, count):
        return jax.random.key_data(training.example_keys(state, count))

    whole, later = data_of(state, 6), data_of(state.replace(step=jnp.int32(1)), 6)
    assert len(np.unique(np.concatenate([whole, later]), axis=0)) == 12
    split = jax.pmap(lambda _: data_of(state, 3), axis_name=axes.DATA, devices=jax.devices()[:2])(
        jnp.zeros(2)
    )
    np.testing.assert_array_equal(np.concatenate(split), whole)
