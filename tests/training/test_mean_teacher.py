"""A teacher that is the mean of its students, inside of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import losses, training


def objective(seen):
    def loss_fn(params, extra, batch, rng):
        seen.append(sorted(extra))
        away = params["w"] - jax.lax.stop_gradient(batch["target"] + 0.1 * extra["teacher"]["w"])
        return jnp.sum(away**2), (extra, {"teacher": extra["teacher"]["w"].sum()})

    return training.Objective(loss_fn, optax.sgd(0.1))


def test_check_6_the_teacher_copies_the_student_and_then_follows_it():
    seen = []
    goal = objective(seen)
    params = {"w": jnp.array([0.3, -1.7])}
    state = training.create_state(jax.random.key(0), params, goal, extra={"batch_stats": {}}, ema=True)
    state = state.replace(ema={"w": jnp.array([5.0, 5.0])})  # something else, to be copied over
    step = jax.jit(training.mean_teacher_step(training.gradient_step(goal), losses.teacher_momentum))
    students = []
    for number in range(4):
        students.append(np.asarray(state.params["w"]))
        state, metrics = step(state, {"target": jnp.array([2.0, 2.0])})
        assert float(metrics["teacher_momentum"]) == pytest.approx(number / (number + 1))
        if number == 0:
            np.testing.assert_array_equal(state.ema["w"], students[0])  # bit for bit
        np.testing.assert_allclose(state.ema["w"], np.mean(students, axis=0), rtol=1e-5)
        assert float(metrics["teacher"]) == pytest.approx(float(state.ema["w"].sum()), rel=1e-5)
        assert sorted(state.extra) == ["batch_stats"]  # a checkpoint holds the teacher once
    assert seen[0] == ["batch_stats", "teacher"]
    np.testing.assert_array_equal(state.averaged_params["w"], state.ema["w"])


def test_a_state_without_an_average_is_refused():
    goal = objective([])
    state = training.create_state(jax.random.key(0), {"w": jnp.zeros(1)}, goal)
    with pytest.raises(ValueError, match="ema: needs a state with a moving average"):
        training.mean_teacher_step(training.gradient_step(goal), losses.teacher_momentum)(state, {})
