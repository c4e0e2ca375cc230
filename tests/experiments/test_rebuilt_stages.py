"""A stage is a function of its configuration and of the states that it is given: one that is built again goes on with them."""

import dataclasses

import jax
import numpy as np
import pytest
import small_configs

from experiments import configs, methods
from jaxface import training


def small(method):
    return dataclasses.replace(small_configs.of(method, "CONFIG"), seed=3, data_seed=3)


def following(stages, outcome):
    """The next stage, or None after the last."""
    try:
        return stages.send(outcome) if hasattr(stages, "send") else next(stages)
    except StopIteration:
        return None


@pytest.mark.parametrize("method", methods.descriptions())
def test_a_stage_that_was_never_initialized_resumes_another(method):
    config = small(method)
    first, second = (iter(configs.build(method, config)) for _ in range(2))
    outcome, trained = None, 0
    while (stage := following(first, outcome)) is not None:
        again = following(second, outcome)
        assert again.name == stage.name and again.steps == stage.steps
        rng, previous = stage.rng(jax.random.key(3)), outcome and outcome.state
        state = (jax.jit(stage.init) if stage.compile_init else stage.init)(rng, previous)
        if stage.steps:
            # As the loop resumes: the second opens the batches of the state and goes to where the first had come.
            batches = stage.batches(state)
            next(batches)
            position = batches.get_state()
            resumed = again.batches(state)
            resumed.set_state(position)
            batch = next(batches)
            jax.tree.map(np.testing.assert_array_equal, batch, next(resumed))
            if batch.get("image", np.zeros(0)).dtype == np.uint8:
                batch["image"] = (batch["image"].astype(np.float32) - 127.5) / 127.5
            # The same program, constants in it included.
            programs = [jax.jit(built.step).lower(state, batch).as_text() for built in (stage, again)]
            assert programs[0] == programs[1]
            trained += 1
        outcome = training.Outcome(stage.name, state, {})
    assert following(second, outcome) is None and trained
