"""Frozen parts of a network: bit for bit as they were, without gradients, with or without their statistics."""

import jax
import numpy as np
import pytest
import toy

from jaxface import training
from jaxface.training import Optimizer

STATISTICS = [False, True]


@pytest.fixture(scope="module", params=STATISTICS, ids=["moving", "held"])
def trained(request):
    """(state before, state after two steps, metrics of the last) with the hidden layer and its normalization frozen."""
    rule = Optimizer(
        learning_rate=0.1, frozen=("hidden", "norm"), frozen_statistics=request.param, weight_decay=0.1
    )
    goal = toy.objective(rule.build(2, network=("net", toy.Net())), wrap="net")
    variables = toy.Net().init(jax.random.key(1), np.zeros((1, 4, 4, 3), np.float32), train=False)
    params = {"net": variables.pop("params")}
    first = training.create_state(jax.random.key(0), params, goal, extra=variables)
    step = jax.jit(training.gradient_step(goal, frozen=rule.held))
    state, cycle = first, toy.Cycle()
    for _ in range(2):
        state, metrics = step(state, {**(batch := next(cycle)), "image": batch["image"] / np.float32(255)})
    return request.param, first, state, metrics


def test_frozen_parameters_stay_and_the_others_move(trained):
    _, before, after, _ = trained
    old, new = before.params["net"], after.params["net"]
    for name in ("hidden", "norm"):
        jax.tree.map(np.testing.assert_array_equal, new[name], old[name])
    assert np.all(np.asarray(new["prototypes"]["kernel"]) != old["prototypes"]["kernel"])


def test_statistics_stay_where_that_is_asked(trained):
    held, before, after, _ = trained
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before.extra, after.extra)
    assert jax.tree.leaves(same) == [held, held]


def test_no_gradient_enters_a_frozen_part(trained):
    held, before, _, _ = trained
    frozen = training.Frozen(("hidden", "norm"), held)

    def loss(params):
        return sum(leaf.sum() for leaf in jax.tree.leaves(frozen.stopped(params)))

    gradients = jax.grad(loss)(before.params)["net"]
    sums = {name: float(sum(abs(g).sum() for g in jax.tree.leaves(gradients[name]))) for name in gradients}
    assert sums["hidden"] == sums["norm"] == 0 < sums["prototypes"]
