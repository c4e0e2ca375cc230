"""Twins trained in stages: equal under equal weights, weighed by hand, and a search that is one compiled step and resumes."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from jaxface import losses, training
from jaxface.data.pipeline.batches import batches
from jaxface.data.sources.bundled import ArraySource
from jaxface.data.sources.source import InMemory
from jaxface.layers.law import Actor, Critic
from jaxface.training.ddpg import DDPG
from jaxface.training.weight_policies import WeightRule
from jaxface.training.weight_search import (
    Exploration,
    Judge,
    PolicyReplay,
    Position,
    StagedTraining,
    WeightSearch,
)

SOURCE = InMemory(ArraySource(toy.IMAGES, toy.LABELS, list("abcde")))
RATES = optax.constant_schedule(0.1)
TWINS = StagedTraining(
    model=toy.Net(),
    image_shape=(4, 4, 3),
    optimizer=optax.sgd(RATES, momentum=0.9),
    learning_rates=RATES,
    stages=4,
    stage_steps=4,
    warmup_stages=1,
    rule=WeightRule(),
)
HIDDEN = (8,)
SEARCH = WeightSearch(
    TWINS,
    Judge(toy.Net(), SOURCE),
    scan=2,
    search="ddpg",
    episodes=4,
    greedy_every=3,
    ddpg=DDPG(Actor(3, 4, HIDDEN), Critic(4, HIDDEN), actor_rate=1e-2, batch_size=4, passes=2),
    capacity=8,
    epoch_steps=4,
)


def open_batches(state=None):
    return batches(SOURCE, batch_size=16, seed=0, consecutive=2)


def some(count):
    images = jnp.asarray(toy.IMAGES.reshape(4, 16, 4, 4, 3)[:count] / 127.5 - 1, jnp.float32)
    return images, jnp.asarray(toy.LABELS.reshape(4, 16)[:count])


@pytest.fixture(scope="module")
def advance():
    return jax.jit(TWINS.run_stage)


@pytest.fixture(scope="module")
def twins():
    return TWINS.init(jax.random.key(0))


def both(tree):
    return (jax.tree.map(lambda x, i=i: x[i], tree) for i in (0, 1))


def test_equal_weights_are_equal_networks_to_the_last_bit(advance, twins):
    after, report = advance(twins, jnp.zeros(3), *some(4), 4)
    first, second = both((after.params, after.extra, after.opt_state))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert report["loss"] == report["reference_loss"] and report["weight"] == 1
    accuracies = SEARCH.judge(after)
    assert losses.stage_reward(*accuracies, 3, 4) == 0
    assert not np.array_equal(*(jax.tree.leaves(t.params)[0] for t in (twins, after)))


def test_the_warm_up_weighs_nothing_and_stages_after_it_do(advance, twins):
    action = jnp.array([-2.0, 0.5, 0.3])
    plain, _ = advance(twins, jnp.zeros(3), *some(4), 0)
    warm, _ = advance(twins, action, *some(4), 0)
    jax.tree.map(np.testing.assert_array_equal, warm.params, plain.params)
    assert warm.weight == 0  # its running mean begins after the warm-up
    after, report = advance(twins, action, *some(4), 4)
    first, second = both(after.params)
    assert any(bool(jnp.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True))
    jax.tree.map(np.testing.assert_array_equal, second, next(both(plain.params)))
    assert report["weight"] != 1


def test_a_weighted_step_is_the_gradient_of_the_public_loss(advance, twins):
    action = jnp.array([-2.0, 0.5, 0.3])
    (images, labels), (start, _) = some(1), both(twins.params)
    extra, _ = both(twins.extra)

    def loss(params):
        logits, _ = toy.Net().apply(
            {"params": params, **extra}, images[0], train=True, mutable=["batch_stats"]
        )
        values = losses.cross_entropy(logits, labels[0])
        features = losses.sample_features(logits, values, labels[0])
        return losses.weighted_mean(values, losses.weights_from_action(action, features))

    value, gradient = jax.jit(jax.value_and_grad(loss))(start)
    after, report = advance(twins, action, images, labels, 4)
    first, _ = both(after.params)
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - 0.1 * g, atol=1e-6), first, start, gradient
    )
    np.testing.assert_allclose(report["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(after.loss, 0.8 * 2.3 + 0.2 * value, rtol=1e-5)


def test_the_running_mean_of_the_loss():
    mean = 2.3
    for loss in (2.0, 1.5, 1.0):
        mean = 0.8 * mean + 0.2 * loss
    np.testing.assert_allclose(mean, 1.8736)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["policy", "focal", "self_paced"])
def test_replicas_train_as_one_device(weighting):
    training_ = dataclasses.replace(TWINS, weighting=weighting, easiest=(0.4, 0.8))
    replay = PolicyReplay(training_, SEARCH.judge, scan=2)
    actions = jnp.tile(jnp.array([-2.0, 0.5, 0.3]), (4, 1))
    stage = training.Stage(
        "train", lambda rng, previous: replay.init(rng, actions), replay.step, open_batches, steps=4
    )
    ends = []
    for parallel in (
        training.JitParallel(devices=jax.devices()[:1]),
        training.JitParallel(devices=jax.devices()[:2]),
        training.PmapParallel(devices=jax.devices()[:2]),
    ):
        ends.append(training.run([stage], parallel=parallel).state.twins)
    for end in ends[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-5),
            (ends[0].params, ends[0].loss),
            (end.params, end.loss),
        )


def test_positions():
    at = [Position.of(jnp.int32(i), TWINS, 2) for i in range(17)]
    assert [int(p.stage) for p in at[:10]] == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0]
    assert [int(p.step) for p in at[:10]] == [0, 2, 4, 6, 8, 10, 12, 14, 0, 2]
    assert [i for i, p in enumerate(at) if p.begins_episode] == [0, 8, 16]
    assert [i for i, p in enumerate(at) if p.ends_episode] == [7, 15]
    assert [i for i, p in enumerate(at) if p.begins_stage] == list(range(0, 17, 2))
    assert [i for i, p in enumerate(at) if p.ends_stage] == list(range(1, 17, 2))
    assert [int(p.episode) for p in at] == [0] * 8 + [1] * 8 + [2]


def test_the_judge_counts_every_record_once(twins):
    for count in (64, 61):
        source = InMemory(ArraySource(toy.IMAGES[:count], toy.LABELS[:count], list("abcde")))
        expected = []
        for params, extra in zip(both(twins.params), both(twins.extra), strict=True):
            images = jnp.asarray(toy.IMAGES[:count] / 127.5 - 1, jnp.float32)
            scores = toy.Net().apply({"params": params, **extra}, images, train=False)
            expected.append(100 * np.mean(scores.argmax(axis=1) == toy.LABELS[:count]))
        np.testing.assert_allclose(Judge(toy.Net(), source)(twins), expected, rtol=1e-6)


def stage(search=SEARCH, name="search"):
    counted = types.SimpleNamespace(traces=0)

    def step(state, batch):
        counted.traces += 1
        return search.step(state, batch)

    made = training.Stage(name, lambda rng, previous: search.init(rng), step, open_batches, search.calls)
    return made, counted


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted search, and how often its step was traced."""
    folder = tmp_path_factory.mktemp("whole")
    made, counted = stage()
    outcome = training.run([made], parallel=toy.parallel(1), workdir=folder, cadence=CADENCE)
    return outcome.state, counted.traces, (folder / "metrics.jsonl").read_bytes()


CADENCE = training.Cadence(log_every=4, checkpoint_every=3)


def test_one_program_for_all_episodes_and_stages(whole):
    state, traces, _ = whole
    assert SEARCH.calls == 4 * 4 * 2 == int(state.step)
    assert traces == 1


def test_what_a_search_remembers(whole):
    state, _, _ = whole
    accuracies = np.asarray(state.accuracies)
    assert accuracies.shape == (4, 4, 2) and (accuracies > 0).all()
    best = int(accuracies[:, -1, 0].argmax())
    np.testing.assert_array_equal(state.best_actions, state.actions[best])
    assert state.best_accuracy == accuracies[:, -1, 0].max()
    actions = np.asarray(state.actions)
    assert not actions[:, 0].any()  # the warm-up
    assert np.abs(actions[:, 1:]).min() > 0 and np.abs(actions).max() <= 3
    # Three stages of three episodes taught something; the greedy one did not, and the ring has room for eight.
    assert int(state.replay.added) == 9 and int(state.replay.size) == 8 and int(state.decisions) == 9
    rows = state.replay.rows
    assert float(rows.done.sum()) == 3 and set(np.asarray(rows.state[:, 0])) == {1, 2, 3}
    np.testing.assert_allclose(rows.state[:, 3], 0.1, rtol=1e-6)
    # Nine transitions in the ring, from the fourth on one mini-batch of four or two, twice: 4 x 1 + 2 x 2 passes.
    assert int(state.agent.actor_optimizer[-1][0].count) == 2 * sum(min(n, 8) // 4 for n in range(1, 10))


def test_rewards_are_those_of_the_recorded_accuracies(whole):
    state, _, _ = whole
    accuracies, rows = np.asarray(state.accuracies), state.replay.rows
    explored = [episode for episode in range(4) if episode != 2]
    expected = {}
    for number, (episode, number_of_stage) in enumerate((e, s) for e in explored for s in (1, 2, 3)):
        expected[number % 8] = losses.stage_reward(
            *accuracies[episode, number_of_stage], number_of_stage, 4.0
        )  # four epochs of four steps
    np.testing.assert_allclose(rows.reward, [expected[i] for i in range(8)], rtol=1e-5)


class Killed(Exception):
    """Instead of a kill: nothing is saved on the way out."""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [4, 13, 30])  # within the first, second and fourth episode
def test_a_search_killed_in_any_episode_ends_as_if_it_had_not_been(whole, tmp_path, killed):
    state, _, records = whole
    made, _ = stage()

    class Dying:
        def __init__(self):
            self.batches, self.taken = open_batches(), 0

        def __getattr__(self, name):
            return getattr(self.batches, name)

        def __next__(self):
            if self.taken == killed:
                raise Killed
            self.taken += 1
            return next(self.batches)

    with pytest.raises(Killed):
        training.run(
            [dataclasses.replace(made, batches=lambda state: Dying())],
            parallel=toy.parallel(1),
            workdir=tmp_path,
            cadence=CADENCE,
        )
    resumed = training.run([made], parallel=toy.parallel(1), workdir=tmp_path, cadence=CADENCE)
    a, b = (jax.device_get(s.replace(rng=jax.random.key_data(s.rng))) for s in (resumed.state, state))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (tmp_path / "metrics.jsonl").read_bytes() == records


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["constant", "random"])
def test_chance_proposes_once_an_episode_or_in_every_stage(kind):
    search = dataclasses.replace(SEARCH, search=kind, episodes=2)
    made, _ = stage(search)
    state = training.run([made], parallel=toy.parallel(1)).state
    actions = np.asarray(state.actions)[:, 1:]
    assert state.agent is None and np.abs(actions).max() <= 3
    assert np.array_equal(actions[0, 0], actions[0, 1]) == (kind == "constant")
    assert not np.array_equal(actions[0], actions[1])


@pytest.mark.slow
def test_controls_of_the_search():
    """The release's relative noise, the slow actor, one mini-batch, and the accuracy alone as reward."""
    search = dataclasses.replace(
        SEARCH,
        exploration=Exploration("relative", probability=1.0, decrease=0.2),
        greedy_actor="slow",
        update="minibatch",
        reward="accuracy",
        bound=None,
        ddpg=dataclasses.replace(SEARCH.ddpg, actor=Actor(3, 4, HIDDEN, None)),
    )
    made, _ = stage(search)
    state = training.run([made], parallel=toy.parallel(1)).state
    assert int(state.agent.actor_optimizer[-1][0].count) == 6  # from the fourth of nine transitions on
    assert (np.asarray(state.replay.rows.reward) > 0).all()
    assert state.noise.any() and np.isfinite(np.asarray(state.actions)).all()


@pytest.mark.slow
def test_a_replay_keeps_either_network_where_it_was_best():
    replay = PolicyReplay(TWINS, SEARCH.judge, scan=2)
    made = training.Stage(
        "train", lambda rng, _: replay.init(rng, jnp.ones((4, 3))), replay.step, open_batches, replay.calls
    )
    state = training.run([made], parallel=toy.parallel(1)).state
    accuracies = np.asarray(state.accuracies)
    np.testing.assert_array_equal(state.best_accuracies, accuracies.max(axis=0))
    best = state.twins.replace(params=state.best_params, extra=state.best_extra)
    np.testing.assert_allclose(SEARCH.judge(best), state.best_accuracies, rtol=1e-6)
