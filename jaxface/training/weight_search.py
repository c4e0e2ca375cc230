"""A training of twins in stages, one weighting its examples, and the search for its policy (LAW, arXiv:1905.11058).

A call of a step advances both networks by a scan over several batches, so that a stage of the method is one or a few calls. An
episode, which is a whole training, begins with new networks; a search is many episodes of one compiled step.

Methods: law
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface import axes
from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.layers.law import OBSERVED
from jaxface.losses.law import (
    focal_loss,
    sample_features,
    self_paced_weights,
    stage_reward,
    weighted_mean,
    weights_from_action,
)
from jaxface.losses.softmax import cross_entropy
from jaxface.training.ddpg import DDPG, Agent, Replay, Transitions, explore, ou_step
from jaxface.training.recognition import network_variables
from jaxface.training.weight_policies import WeightRule

Weighting = Literal["policy", "focal", "self_paced"]
"""What the first network of a pair does with the losses of a batch: weights by a policy, the focal loss, or the easiest alone."""
Search = Literal["ddpg", "random", "constant"]
"""Who proposes: an agent, or chance, in every stage or once an episode."""
TWINS = 2  # the weighted network, and its reference
_FIRST_LOSS = 2.3
_DECAY = 0.8
_BLOCK = 512


class Twins(flax.struct.PyTreeNode):
    """Two networks, stacked: every leaf of the first three is [2, ...], the weighted network first.

    Attributes:
      params, extra, opt_state: of the networks.
      loss: float32 scalar, running mean of the weighted loss.
      weight: running mean of the weights since the warm-up.
    """

    params: Any
    extra: Any
    opt_state: Any
    loss: jax.Array
    weight: jax.Array


@dataclasses.dataclass(frozen=True)
class StagedTraining:
    """How twins are trained.

    Attributes:
      model: (image [B, H, W, C], train=) -> scores of the classes [B, C].
      image_shape: (H, W, C) of an image.
      optimizer: of either network.
      learning_rates: step of an episode -> learning rate, which the agent sees.
      stages: S of an episode.
      stage_steps: optimization steps of a stage.
      warmup_stages: stages at the beginning with equal weights.
      rule: how an action becomes weights.
      weighting: see `Weighting`.
      gamma: of the focal loss.
      easiest: parts of a batch that self-paced learning keeps at the beginning and at the end.
    """

    model: nn.Module
    image_shape: tuple[int, int, int]
    optimizer: optax.GradientTransformation
    learning_rates: optax.Schedule
    stages: int
    stage_steps: int
    warmup_stages: int
    rule: WeightRule
    weighting: Weighting = "policy"
    gamma: float = 2.0
    easiest: tuple[float, float] = (0.5, 1.0)

    def init(self, rng: jax.Array) -> Twins:
        """Twins of equal weights with fresh optimizers."""
        variables = dict(self.model.init(rng, jnp.zeros((1, *self.image_shape)), train=False))
        params = variables.pop("params")
        one = (params, variables, self.optimizer.init(params))
        both = jax.tree.map(lambda x: jnp.stack([x] * TWINS), one)
        return Twins(*both, jnp.float32(_FIRST_LOSS), jnp.float32(0.0))

    def run_stage(
        self, twins: Twins, action: jax.Array, images: jax.Array, labels: jax.Array, step: jax.Array | int
    ) -> tuple[Twins, dict[str, jax.Array]]:
        """Advances both networks over the same T batches, in one scan: a stage or a part of it.

        Args:
          twins: at `step`.
          action: [A], of the stage; of no effect during the warm-up.
          images: [T, B, H, W, C] in [-1, 1].
          labels: [T, B] int32.
          step: of the episode, before the first of these batches.

        Returns:
          The twins, and means over the batches: `loss`, `reference_loss`, `weight`.
        """
        length = len(labels)

        def advance(twins, inputs):
            images, labels, step = inputs
            warm = step < self.warmup_stages * self.stage_steps
            progress = step / (self.stages * self.stage_steps)
            update = functools.partial(
                self._update, action=action, images=images, labels=labels, warm=warm, progress=progress
            )
            weighted = jnp.arange(TWINS) == 0
            params, extra, opt_state, losses, weights = jax.vmap(update)(
                twins.params, twins.extra, twins.opt_state, weighted
            )
            loss = _DECAY * twins.loss + (1 - _DECAY) * losses[0]
            weight = jnp.where(warm, twins.weight, _DECAY * twins.weight + (1 - _DECAY) * weights[0])
            return Twins(params, extra, opt_state, loss, weight), (losses, weights[0])

        twins, (losses, weights) = jax.lax.scan(advance, twins, (images, labels, step + jnp.arange(length)))
        return twins, {
            "loss": losses[:, 0].mean(),
            "reference_loss": losses[:, 1].mean(),
            "weight": weights.mean(),
        }

    def _update(self, params, extra, opt_state, weighted, *, action, images, labels, warm, progress):
        axis = axes.DATA if axes.bound(axes.DATA) else None
        changes = weighted & ~warm

        def loss_fn(params):
            logits, updated = self.model.apply(
                {"params": params, **extra}, images, train=True, mutable=list(extra)
            )
            losses = cross_entropy(logits, labels)
            if self.weighting == "focal":
                losses = jnp.where(changes, focal_loss(losses, self.gamma), losses)
                weights = jnp.ones_like(losses)
            else:
                weights = jnp.where(changes, self._weights(action, logits, losses, labels, progress), 1.0)
            return weighted_mean(losses, weights, axis_name=axis), (updated, weights.mean())

        (loss, (extra, weight)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        gradients, loss, weight = axes.mean((gradients, loss, weight))
        updates, opt_state = self.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), {**extra}, opt_state, loss, weight

    def _weights(self, action, logits, losses, labels, progress):
        """[B] of this device; what they are relative to is the batch of all devices."""
        logits, losses = jax.lax.stop_gradient((logits, losses))
        count, first = len(losses), 0
        if axes.bound(axes.DATA):
            first = jax.lax.axis_index(axes.DATA) * count
            gather = functools.partial(jax.lax.all_gather, axis_name=axes.DATA, tiled=True)
            logits, losses, labels = gather(logits), gather(losses), gather(labels)
        if self.weighting == "self_paced":
            low, high = self.easiest
            weights = self_paced_weights(losses, low + (high - low) * progress)
        else:
            rule = self.rule
            features = sample_features(
                logits, losses, labels, use_label=rule.use_label, entropy_scale=rule.entropy_scale
            )
            weights = weights_from_action(action, features, rule.num_nodes)
        return jax.lax.dynamic_slice_in_dim(weights, first, count)

    def observation(self, twins: Twins, stage: jax.Array) -> jax.Array:
        """[4], what an agent sees at the beginning of a stage."""
        rate = self.learning_rates(stage * self.stage_steps)
        return jnp.stack([jnp.float32(stage), twins.loss, twins.weight, jnp.float32(rate)])


class Judge:
    """Accuracies in percent of both networks on clean records, inside a compiled step.

    Args:
      model: of the networks.
      source: records, which are all held in memory.
    """

    def __init__(self, model: nn.Module, source: Source):
        count = len(source)
        rows = -(-count // _BLOCK) * _BLOCK if count > _BLOCK else count
        place = np.minimum(np.arange(rows), count - 1)
        images = np.stack([source[i]["image"] for i in range(count)])[place]
        blocks = -(-rows // _BLOCK)
        self._model, self.count = model, count
        self._images = images.reshape(blocks, rows // blocks, *images.shape[1:])
        labels = np.where(np.arange(rows) < count, np.asarray(source.labels, np.int32)[place], -1)
        self._labels = labels.reshape(blocks, -1).astype(np.int32)

    def __call__(self, twins: Twins) -> jax.Array:
        """[2], percent."""

        def correct(block):
            images, labels = block

            def one(params, extra):
                scores = self._model.apply(
                    network_variables(params, extra), normalize_pixels(images), train=False
                )
                return jnp.sum(scores.argmax(axis=1) == labels)

            return jax.vmap(one)(twins.params, twins.extra)

        hits = jax.lax.map(correct, (jnp.asarray(self._images), jnp.asarray(self._labels)))
        return 100.0 * hits.sum(axis=0) / self.count


class Position(NamedTuple):
    """Where a call of a step is in its run."""

    episode: jax.Array
    stage: jax.Array
    step: jax.Array  # of the episode
    begins_episode: jax.Array
    begins_stage: jax.Array
    ends_stage: jax.Array
    ends_episode: jax.Array

    @classmethod
    def of(cls, call: jax.Array, training: StagedTraining, scan: int) -> "Position":
        """Of call number `call`, each of which takes `scan` batches."""
        calls = training.stage_steps // scan
        stage, part = call // calls % training.stages, call % calls
        ends = part == calls - 1
        return cls(
            call // (calls * training.stages),
            stage,
            (stage * calls + part) * scan,
            (part == 0) & (stage == 0),
            part == 0,
            ends,
            ends & (stage == training.stages - 1),
        )


def scanned(batch: dict[str, jax.Array], scan: int) -> tuple[jax.Array, jax.Array]:
    """Images [T, B, ...] and labels [T, B] of a batch in which row r of batch t is at r T + t (`jaxface.data.batches`)."""

    def dealt(x):
        return jnp.swapaxes(x.reshape(len(x) // scan, scan, *x.shape[1:]), 0, 1)

    return dealt(batch["image"]), dealt(batch["label"])


@dataclasses.dataclass(frozen=True)
class Exploration:
    """How an agent tries what it would not do."""

    kind: Literal["additive", "relative"] = "additive"
    """Normal noise added to the action, or that of an Ornstein-Uhlenbeck process relative to its length, as in the authors' code,
    which hardly explores."""
    first: float = 1.5
    """Standard deviation of the additive noise at the beginning of the search; it falls linearly."""
    last: float = 0.1
    """The same at its end."""
    probability: float = 0.3
    """Of relative noise, in each stage."""
    scale: float = 0.5
    """Factor on the relative noise at the beginning."""
    decrease: float = 2e-4
    """Fall of that factor with every decision, down to 0."""


class SearchState(flax.struct.PyTreeNode):
    """A search between two calls of its step.

    Attributes:
      step: int32 scalar, calls taken.
      rng: key of the run.
      twins: the networks.
      agent, replay: of the agent.
      action: [A], of the stage.
      observed: [4], what the agent saw when it chose it.
      noise: [A], of the relative exploration.
      decisions: int32 scalar, taken so far with exploration.
      best_actions: [S, A], those of the episode that ended with the best weighted network on the validation split.
      best_accuracy: of that network, percent; -1 before the first episode has ended.
      actions: [E, S, A], all that were taken.
      accuracies: [E, S, 2], percent, of both networks at the end of every stage.
    """

    step: jax.Array
    rng: jax.Array
    twins: Twins
    agent: Agent | None
    replay: Replay | None
    action: jax.Array
    observed: jax.Array
    noise: jax.Array
    decisions: jax.Array
    best_actions: jax.Array
    best_accuracy: jax.Array
    actions: jax.Array
    accuracies: jax.Array


@dataclasses.dataclass(frozen=True)
class WeightSearch:
    """The search for a policy, as a step of the loop.

    Attributes:
      training: of the twins.
      judge: on the clean validation split.
      scan: T, batches of a call; divides `training.stage_steps`.
      search: who proposes.
      episodes: E trainings.
      greedy_every: every so many episodes one follows the actor alone and teaches it nothing; 0 for none.
      ddpg: the agent.
      capacity: transitions that it remembers.
      exploration: how it explores.
      greedy_actor: which actor the greedy episodes follow, the one that learns or its slow copy.
      update: all that is remembered, several times, or one random mini-batch.
      reward: the twin's accuracy is taken off, or not.
      kappa, scale: of the reward.
      bound: of random actions, and of explored ones where the actor has a bound.
      epoch_steps: optimization steps of an epoch.
    """

    training: StagedTraining
    judge: Judge
    scan: int
    search: Search
    episodes: int
    greedy_every: int
    ddpg: DDPG
    capacity: int = 500
    exploration: Exploration = Exploration()
    greedy_actor: Literal["online", "slow"] = "online"
    update: Literal["full", "minibatch"] = "full"
    reward: Literal["twin", "accuracy"] = "twin"
    kappa: float = 5.0
    scale: float = 2.0
    bound: float | None = 3.0
    epoch_steps: int = 1

    @property
    def calls(self) -> int:
        """Calls of the step that the search takes."""
        return self.episodes * self.training.stages * (self.training.stage_steps // self.scan)

    def init(self, rng: jax.Array) -> SearchState:
        """Before the first episode."""
        size, stages = self.training.rule.size, self.training.stages
        agent = replay = None
        if self.search == "ddpg":
            agent = self.ddpg.init(jax.random.fold_in(rng, 1), OBSERVED, size)
            replay = Replay.empty(self.capacity, OBSERVED, size)
        return SearchState(
            step=jnp.zeros((), jnp.int32),
            rng=rng,
            twins=self.training.init(rng),
            agent=agent,
            replay=replay,
            action=jnp.zeros(size),
            observed=jnp.zeros(OBSERVED),
            noise=jnp.zeros(size),
            decisions=jnp.zeros((), jnp.int32),
            best_actions=jnp.zeros((stages, size)),
            best_accuracy=jnp.float32(-1.0),
            actions=jnp.zeros((self.episodes, stages, size)),
            accuracies=jnp.zeros((self.episodes, stages, TWINS)),
        )

    def step(self, state: SearchState, batch: dict) -> tuple[SearchState, dict]:
        """A stage, or the part of one that `scan` batches make. Of the same state and batch it is always the same."""
        training, at = self.training, Position.of(state.step, self.training, self.scan)
        key = jax.random.fold_in(state.rng, state.step)
        greedy = self._greedy(at.episode)

        # An episode begins with new twins.
        def fresh():
            return training.init(jax.random.fold_in(jax.random.fold_in(state.rng, 2), at.episode))

        twins = jax.lax.cond(at.begins_episode, fresh, lambda: state.twins)
        state = state.replace(twins=twins, noise=jnp.where(at.begins_episode, 0.0, state.noise))

        # A stage begins with an action.
        state = jax.lax.cond(at.begins_stage, lambda: self._decide(state, at, greedy, key), lambda: state)
        twins, report = training.run_stage(twins, state.action, *scanned(batch, self.scan), at.step)
        state = state.replace(twins=twins)

        # It ends with a reward, from which the agent learns.
        state = jax.lax.cond(at.ends_stage, lambda: self._learn(state, at, greedy, key), lambda: state)
        report["accuracy"], report["reference_accuracy"] = state.accuracies[at.episode, at.stage] / 100
        return state.replace(step=state.step + 1), report

    def _greedy(self, episode):
        if self.search != "ddpg" or not self.greedy_every:
            return jnp.zeros((), bool)
        return episode % self.greedy_every == self.greedy_every - 1

    def _decide(self, state: SearchState, at: Position, greedy: jax.Array, key: jax.Array) -> SearchState:
        training, warm = self.training, at.stage < self.training.warmup_stages
        observed, noise = training.observation(state.twins, at.stage), state.noise
        if self.search == "ddpg":
            actor = state.agent.slow_actor if self.greedy_actor == "slow" else state.agent.actor
            own = self.ddpg.act(actor, observed)
            noise, tried = self._explored(state, self.ddpg.act(state.agent.actor, observed), at, key)
            action = jnp.where(greedy, own, tried)
        else:
            number = at.episode if self.search == "constant" else at.episode * training.stages + at.stage
            chance = jax.random.fold_in(jax.random.fold_in(state.rng, 3), number)
            bound = 3.0 if self.bound is None else self.bound
            action = jax.random.uniform(chance, state.action.shape, minval=-bound, maxval=bound)
        action = jnp.where(warm, 0.0, action)
        return state.replace(
            action=action,
            observed=observed,
            noise=jnp.where(warm, state.noise, noise),
            decisions=state.decisions + (~warm & ~greedy),
            actions=state.actions.at[at.episode, at.stage].set(action),
        )

    def _explored(self, state, action, at, key):
        spec = self.exploration
        first, second = jax.random.split(jax.random.fold_in(key, 1))
        if spec.kind == "additive":
            progress = at.episode / max(self.episodes - 1, 1)
            std = spec.first + (spec.last - spec.first) * progress
            tried = action + std * jax.random.normal(first, action.shape)
            return state.noise, tried if self.bound is None else jnp.clip(tried, -self.bound, self.bound)
        explores = jax.random.uniform(second) < spec.probability
        noise = jnp.where(explores, ou_step(state.noise, first), state.noise)
        scale = jnp.maximum(spec.scale - spec.decrease * state.decisions, 0.0)
        return noise, jnp.where(explores, explore(action, noise, scale), action)

    def _learn(self, state: SearchState, at: Position, greedy: jax.Array, key: jax.Array) -> SearchState:
        training = self.training
        accuracies = self.judge(state.twins)
        state = state.replace(accuracies=state.accuracies.at[at.episode, at.stage].set(accuracies))
        better = at.ends_episode & (accuracies[0] > state.best_accuracy)
        state = state.replace(
            best_accuracy=jnp.where(better, accuracies[0], state.best_accuracy),
            best_actions=jnp.where(better, state.actions[at.episode], state.best_actions),
        )
        if self.search != "ddpg":
            return state
        epochs = training.stages * training.stage_steps / self.epoch_steps
        epoch = ((at.stage + 1) * training.stage_steps - 1) // self.epoch_steps
        reference = accuracies[1] if self.reward == "twin" else 0.0
        transition = Transitions(
            state.observed,
            state.action,
            stage_reward(accuracies[0], reference, epoch, epochs, self.kappa, self.scale),
            training.observation(state.twins, at.stage + 1),
            at.ends_episode.astype(jnp.float32),
        )

        def learn():
            replay = state.replay.add(transition)
            update = self.ddpg.full_data_update if self.update == "full" else self.ddpg.minibatch_update
            return state.replace(agent=update(state.agent, replay, jax.random.fold_in(key, 2)), replay=replay)

        return jax.lax.cond(greedy | (at.stage < training.warmup_stages), lambda: state, learn)


class ReplayState(flax.struct.PyTreeNode):
    """A training that follows a policy, between two calls of its step.

    Attributes:
      step: int32 scalar, calls taken.
      twins: the networks.
      actions: [S, A], the policy.
      best_params, best_extra: of both networks, [2, ...], where each was best on the validation split.
      best_accuracies: [2], percent; -1 before the first stage has ended.
      accuracies: [S, 2], percent, at the end of every stage.
    """

    step: jax.Array
    twins: Twins
    actions: jax.Array
    best_params: Any
    best_extra: Any
    best_accuracies: jax.Array
    accuracies: jax.Array


@dataclasses.dataclass(frozen=True)
class PolicyReplay:
    """One training of twins by a policy, as a step of the loop.

    Attributes:
      training: of the twins.
      judge: on the clean validation split, which only says when either network was best.
      scan: T, batches of a call; divides `training.stage_steps`.
    """

    training: StagedTraining
    judge: Judge
    scan: int

    @property
    def calls(self) -> int:
        """Calls of the step that the training takes."""
        return self.training.stages * (self.training.stage_steps // self.scan)

    def init(self, rng: jax.Array, actions: jax.Array) -> ReplayState:
        """Before the first stage; actions [S, A]."""
        twins = self.training.init(rng)
        return ReplayState(
            step=jnp.zeros((), jnp.int32),
            twins=twins,
            actions=jnp.asarray(actions, jnp.float32),
            best_params=jax.tree.map(jnp.copy, twins.params),
            best_extra=jax.tree.map(jnp.copy, twins.extra),
            best_accuracies=jnp.full(TWINS, -1.0),
            accuracies=jnp.zeros((self.training.stages, TWINS)),
        )

    def step(self, state: ReplayState, batch: dict) -> tuple[ReplayState, dict]:
        """A stage, or the part of one that `scan` batches make."""
        at = Position.of(state.step, self.training, self.scan)
        twins, report = self.training.run_stage(
            state.twins, state.actions[at.stage], *scanned(batch, self.scan), at.step
        )
        state = state.replace(twins=twins)

        def judged():
            accuracies = self.judge(twins)
            better = accuracies > state.best_accuracies

            def choose(new, old):
                return jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

            return state.replace(
                best_params=jax.tree.map(choose, twins.params, state.best_params),
                best_extra=jax.tree.map(choose, twins.extra, state.best_extra),
                best_accuracies=jnp.where(better, accuracies, state.best_accuracies),
                accuracies=state.accuracies.at[at.stage].set(accuracies),
            )

        state = jax.lax.cond(at.ends_stage, judged, lambda: state)
        report["accuracy"], report["reference_accuracy"] = state.accuracies[at.stage] / 100
        return state.replace(step=state.step + 1), report
