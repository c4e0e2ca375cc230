"""A small actor-critic agent for few rewards (DDPG, arXiv:1509.02971), updated on all that it remembers (arXiv:1905.11058).

Everything has one shape from the first transition to the last, so that an agent can live inside a compiled step.

Methods: law
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

Params = Any


class Transitions(NamedTuple):
    """States [N, O], actions [N, A], rewards [N], next states [N, O] and whether they ended an episode [N], all float32."""

    state: jax.Array
    action: jax.Array
    reward: jax.Array
    next_state: jax.Array
    done: jax.Array


class Replay(flax.struct.PyTreeNode):
    """The last transitions, the oldest of which makes room.

    Attributes:
      rows: a ring of N transitions.
      added: int32 scalar, transitions added so far.
    """

    rows: Transitions
    added: jax.Array

    @classmethod
    def empty(cls, capacity: int, observed: int, size: int) -> "Replay":
        """For `capacity` transitions of states [observed] and actions [size]."""
        one = Transitions(
            jnp.zeros(observed), jnp.zeros(size), jnp.zeros(()), jnp.zeros(observed), jnp.zeros(())
        )
        return cls(jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape)), one), jnp.zeros((), jnp.int32))

    @property
    def capacity(self) -> int:
        return len(self.rows.reward)

    @property
    def size(self) -> jax.Array:
        """int32 scalar, transitions held."""
        return jnp.minimum(self.added, self.capacity)

    def add(self, transition: Transitions) -> "Replay":
        """With one more transition, whose arrays lack the first axis."""
        place = self.added % self.capacity
        rows = jax.tree.map(lambda ring, x: ring.at[place].set(x), self.rows, transition)
        return Replay(rows, self.added + 1)


class Agent(flax.struct.PyTreeNode):
    """Parameters of actor, critic and of their slow copies, and the optimizers' states."""

    actor: Params
    critic: Params
    slow_actor: Params
    slow_critic: Params
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState


def td_target(rewards: jax.Array, done: jax.Array, next_values: jax.Array, discount: float) -> jax.Array:
    """τ = r + γ (1 - done) Q'(s', π'(s')), [N] each, without a gradient.

    Example:
      >>> print(td_target(jnp.array([0.1, 0.2]), jnp.array([0.0, 1.0]), jnp.array([1.5, 3.0]), 0.99).round(3))
      [1.585 0.2  ]
    """
    return jax.lax.stop_gradient(rewards + discount * (1.0 - done) * next_values)


@dataclasses.dataclass(frozen=True)
class DDPG:
    """How an agent learns. Both optimizers are Adam on gradients of a global norm of at most `clip_norm`, to which
    `weight_decay` times the parameters is added.

    Attributes:
      actor: module, state [N, O] -> [N, A].
      critic: module, (state [N, O], action [N, A]) -> [N].
      actor_rate, critic_rate: learning rates.
      discount: γ.
      follow: τ, by which the slow copies follow after every mini-batch: θ' <- (1 - τ) θ' + τ θ.
      size_penalty: of the mean length of the actions.
      batch_size: of a mini-batch.
      passes: over all transitions in `full_data_update`.
    """

    actor: nn.Module
    critic: nn.Module
    actor_rate: float = 1e-5
    critic_rate: float = 1e-3
    discount: float = 0.99
    follow: float = 1e-3
    size_penalty: float = 1e-3
    clip_norm: float = 5.0
    weight_decay: float = 1e-5
    batch_size: int = 32
    passes: int = 8

    def _optimizer(self, rate: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.add_decayed_weights(self.weight_decay),
            optax.adam(rate),
        )

    def init(self, rng: jax.Array, observed: int, size: int) -> Agent:
        """A new agent for states [observed] and actions [size]; the slow copies begin as the networks do."""
        first, second = jax.random.split(rng)
        state, action = jnp.zeros((1, observed)), jnp.zeros((1, size))
        actor = self.actor.init(first, state)["params"]
        critic = self.critic.init(second, state, action)["params"]
        return Agent(
            actor,
            critic,
            jax.tree.map(jnp.copy, actor),
            jax.tree.map(jnp.copy, critic),
            self._optimizer(self.actor_rate).init(actor),
            self._optimizer(self.critic_rate).init(critic),
        )

    def act(self, params: Params, state: jax.Array) -> jax.Array:
        """The action [A] of an actor's parameters in a state [O]."""
        return self.actor.apply({"params": params}, state[None])[0]

    def step(self, agent: Agent, batch: Transitions) -> Agent:
        """One mini-batch: the critic, the actor by the new critic, then the slow copies.

        critic   mean (Q(s, a) - τ)²
        actor    -mean Q(s, π(s)) + λ mean ‖π(s)‖₂
        """
        next_action = self.actor.apply({"params": agent.slow_actor}, batch.next_state)
        next_values = self.critic.apply({"params": agent.slow_critic}, batch.next_state, next_action)
        targets = td_target(batch.reward, batch.done, next_values, self.discount)

        def critic_loss(params):
            return jnp.mean((self.critic.apply({"params": params}, batch.state, batch.action) - targets) ** 2)

        critic, critic_optimizer = self._updated(
            critic_loss, agent.critic, agent.critic_optimizer, self.critic_rate
        )

        def actor_loss(params):
            action = self.actor.apply({"params": params}, batch.state)
            length = jnp.sqrt(jnp.sum(action**2, axis=1) + 1e-12)
            value = self.critic.apply({"params": critic}, batch.state, action)
            return -value.mean() + self.size_penalty * length.mean()

        actor, actor_optimizer = self._updated(
            actor_loss, agent.actor, agent.actor_optimizer, self.actor_rate
        )
        return Agent(
            actor,
            critic,
            optax.incremental_update(actor, agent.slow_actor, self.follow),
            optax.incremental_update(critic, agent.slow_critic, self.follow),
            actor_optimizer,
            critic_optimizer,
        )

    def _updated(self, loss: Callable, params: Params, state: optax.OptState, rate: float):
        updates, state = self._optimizer(rate).update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def full_data_update(self, agent: Agent, replay: Replay, key: jax.Array) -> Agent:
        """Several passes over all that is remembered, in whole mini-batches of a new order each; the rest of a pass is left out.

        With fewer transitions than a mini-batch nothing happens.
        """
        count = replay.size // self.batch_size

        def one(index, agent):
            part, within = index // jnp.maximum(count, 1), index % jnp.maximum(count, 1)
            order = self._order(replay, jax.random.fold_in(key, part))
            rows = jax.lax.dynamic_slice_in_dim(order, within * self.batch_size, self.batch_size)
            return self.step(agent, jax.tree.map(lambda x: x[rows], replay.rows))

        return jax.lax.fori_loop(0, self.passes * count, one, agent)

    def minibatch_update(self, agent: Agent, replay: Replay, key: jax.Array) -> Agent:
        """One random mini-batch, what `full_data_update` is compared with; nothing with fewer transitions than that."""
        order = self._order(replay, key)[: self.batch_size]
        full = replay.size >= self.batch_size
        return jax.lax.cond(
            full, lambda: self.step(agent, jax.tree.map(lambda x: x[order], replay.rows)), lambda: agent
        )

    def _order(self, replay: Replay, key: jax.Array) -> jax.Array:
        """A permutation whose first `size` entries are the rows that are held."""
        scores = jax.random.uniform(key, (replay.capacity,))
        return jnp.argsort(jnp.where(jnp.arange(replay.capacity) < replay.size, scores, 2.0))


def ou_step(
    x: jax.Array, key: jax.Array, theta: float = 0.15, sigma: float = 0.2, dt: float = 0.01
) -> jax.Array:
    """A step of an Ornstein-Uhlenbeck process that falls back to 0: x - θ x dt + σ √dt N(0, I)."""
    return x - theta * x * dt + sigma * dt**0.5 * jax.random.normal(key, x.shape)


def explore(action: jax.Array, noise: jax.Array, scale: jax.Array | float) -> jax.Array:
    """An action with noise relative to its length: (a / ‖a‖ + ε n) ‖a‖ = a + ε ‖a‖ n.

    Example:
      >>> tried = explore(jnp.array([3.0, 4.0, 0.0]), jnp.array([0.1, -0.2, 0.05]), 0.5)
      >>> [round(x, 3) for x in tried.tolist()]
      [3.25, 3.5, 0.125]
    """
    return action + scale * jnp.linalg.norm(action) * noise
