"""The agent: targets, noise, memory, updates over all of it, and a bandit that it solves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.layers.law import Actor, Critic
from jaxface.training import ddpg
from jaxface.training.ddpg import DDPG, Replay, Transitions

HIDDEN = (16, 16, 16)
AGENT = DDPG(Actor(1, 1, HIDDEN, 3.0), Critic(1, HIDDEN), actor_rate=1e-3, follow=0.02, size_penalty=0.0)


def memory(count, capacity=100, reward=lambda action: -((action - 0.5) ** 2)):
    """Transitions of one stage whose actions are spread over [-2, 2]."""
    replay = Replay.empty(capacity, 4, 1)
    for action in np.random.default_rng(0).uniform(-2, 2, count):
        done = jnp.ones(())
        row = Transitions(
            jnp.zeros(4), jnp.float32([action]), jnp.float32(reward(action)), jnp.zeros(4), done
        )
        replay = replay.add(row)
    return replay


@pytest.fixture(scope="module")
def agent():
    return jax.jit(AGENT.init, static_argnums=(1, 2))(jax.random.key(0), 4, 1)


def test_targets_and_noise():
    target = ddpg.td_target(jnp.array([0.1, 0.2]), jnp.array([0.0, 1.0]), jnp.array([1.5, 3.0]), 0.99)
    np.testing.assert_allclose(target, [1.585, 0.2], rtol=1e-6)
    action = jnp.array([3.0, 4.0, 0.0])
    tried = ddpg.explore(action, jnp.array([0.1, -0.2, 0.05]), 0.5)
    np.testing.assert_allclose(tried, [3.25, 3.5, 0.125], rtol=1e-6)
    np.testing.assert_array_equal(ddpg.explore(action, jnp.ones(3), 0.0), action)
    x, key = jnp.array([1.0, -2.0]), jax.random.key(0)
    noise = jax.random.normal(key, (2,))
    np.testing.assert_allclose(ddpg.ou_step(x, key), x - 0.15 * x * 0.01 + 0.2 * 0.1 * noise, rtol=1e-6)


def test_the_memory_is_a_ring():
    replay = memory(0, capacity=3)
    for i in range(5):
        row = Transitions(jnp.full(4, i), jnp.zeros(1), jnp.float32(i), jnp.zeros(4), jnp.zeros(()))
        replay = replay.add(row)
    assert (int(replay.size), int(replay.added)) == (3, 5)
    assert sorted(replay.rows.reward.tolist()) == [2, 3, 4]


@pytest.mark.parametrize(("rows", "steps"), [(31, 0), (32, 8), (70, 16)])
def test_an_update_on_everything_takes_whole_minibatches_only(agent, rows, steps):
    updated = jax.jit(AGENT.full_data_update)(agent, memory(rows), jax.random.key(1))
    counts = [int(s[-1][0].count) for s in (updated.actor_optimizer, updated.critic_optimizer)]
    assert counts == [steps, steps]
    order = AGENT._order(memory(rows), jax.random.key(2))
    assert sorted(order[:rows].tolist()) == list(range(rows))


@pytest.mark.parametrize(("rows", "steps"), [(31, 0), (70, 1)])
def test_the_control_takes_one_minibatch(agent, rows, steps):
    updated = jax.jit(AGENT.minibatch_update)(agent, memory(rows), jax.random.key(1))
    assert int(updated.actor_optimizer[-1][0].count) == steps


@pytest.mark.slow
@pytest.mark.parametrize("follow", [0.0, 1.0])
def test_slow_copies_stay_or_follow_at_once(agent, follow):
    one = dataclasses.replace(AGENT, follow=follow)
    batch = jax.tree.map(lambda x: x[:32], memory(40).rows)
    updated = jax.jit(one.step)(agent, batch)
    expected = agent if follow == 0 else updated
    jax.tree.map(np.testing.assert_array_equal, updated.slow_actor, expected.actor)
    jax.tree.map(np.testing.assert_array_equal, updated.slow_critic, expected.critic)
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), agent.actor, updated.actor)
    assert any(jax.tree.leaves(changed))


@pytest.mark.slow
def test_the_rules_of_adam_with_decay_in_the_gradient(agent):
    batch = jax.tree.map(lambda x: x[:32], memory(40).rows)

    def loss(params):
        value = AGENT.critic.apply({"params": params}, batch.state, batch.action)
        return jnp.mean((value - batch.reward) ** 2)  # every transition ends its episode

    gradient = jax.tree.map(lambda g, p: g + 1e-5 * p, jax.jit(jax.grad(loss))(agent.critic), agent.critic)
    updated = jax.jit(AGENT.step)(agent, batch).critic
    # Adam's first step is the learning rate times the sign, wherever ε = 1e-8 does not count.
    for old, new, g in zip(*map(jax.tree.leaves, (agent.critic, updated, gradient)), strict=True):
        large = np.abs(g) > 1e-5
        np.testing.assert_allclose((new - old)[large], -1e-3 * np.sign(g)[large], rtol=2e-3)


@pytest.mark.slow
def test_a_bandit_is_solved(agent):
    replay = memory(100)
    update = jax.jit(AGENT.full_data_update)
    first = abs(float(AGENT.act(agent.actor, jnp.zeros(4))[0]) - 0.5)
    for i in range(120):
        agent = update(agent, replay, jax.random.key(i))
    last = abs(float(AGENT.act(agent.actor, jnp.zeros(4))[0]) - 0.5)
    assert first > 0.3 and last < first / 2


@pytest.mark.slow
def test_networks_of_the_release():
    actor, critic = Actor(3, 40, bound=None), Critic(40)
    state, action = jnp.ones((2, 4)), jnp.ones((2, 3))
    params = jax.jit(actor.init)(jax.random.key(0), state)["params"]
    assert params["stage"]["embedding"].shape == (50, 16)
    shapes = [params["perceptron"][f"dense{i}"]["kernel"].shape for i in (1, 2, 3, 4)]
    assert shapes == [(19, 256), (256, 512), (512, 256), (256, 3)]
    kernel = params["perceptron"]["dense2"]["kernel"]
    np.testing.assert_allclose(kernel.std(), 0.05, rtol=0.02)
    assert np.abs(params["perceptron"]["dense2"]["bias"]).max() <= 256**-0.5
    values, params = jax.jit(critic.init_with_output)(jax.random.key(0), state, action)
    assert values.shape == (2,)
    np.testing.assert_allclose(params["params"]["perceptron"]["dense2"]["kernel"].std(), 0.01, rtol=0.02)
    bounded = Actor(3, 40, HIDDEN, 3.0)
    huge = jax.tree.map(lambda x: 1e3 * x, jax.jit(bounded.init)(jax.random.key(0), state))
    assert np.abs(bounded.apply(huge, state)).max() <= 3
