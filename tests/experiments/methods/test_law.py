"""LAW as an experiment: its stages, the paper's recipe against the source's numbers, a policy replayed, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.methods.law import AgentSpec, Config, build, clean_split, divided, scan_length, staged
from jaxface import data, models, training
from jaxface.data.sources.bundled import ArraySource
from jaxface.errors import UserError
from jaxface.training.ddpg import DDPG
from jaxface.training.weight_policies import WeightPolicy, WeightRule

TINY = Config(
    backbone="mlp_8",
    steps=16,
    stages=4,
    warmup_stages=1,
    episodes=3,
    validation=20,
    agent=AgentSpec(hidden=(8,), batch_size=4, passes=1),
    batch_size=20,
)


def test_the_papers_recipe():
    """Source: the authors' configuration for label noise of 40 %; the constants of their agent."""
    config = Config.paper()
    model = models.create(config.backbone, embedding=10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert models.parameter_count(shapes) == 36_479_194  # WRN-28-10
    assert config.data == data.Cifar10("cifar10", noise=data.LabelNoise("uniform", 0.4))
    assert (config.batch_size, config.stages, config.warmup_stages) == (100, 40, 5)
    assert (config.steps // 40, config.train_steps // 40) == (300, 750)
    assert (config.search_images, config.validation, config.train_on) == (20_000, 5000, "all")
    rates = config.optimizer.learning_rates(config.steps)
    at = [float(rates(stage * 300)) for stage in (0, 29, 30, 34, 35, 39)]
    np.testing.assert_allclose(at, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 5e-4)
    assert (config.kappa, config.reward_scale, config.reward) == (5, 2, "twin")
    assert (config.episodes, config.greedy_every) == (1000, 5)
    agent = config.agent
    assert (agent.hidden, agent.bound, agent.greedy_actor) == ((256, 512, 256), None, "slow")
    assert (agent.actor_rate, agent.critic_rate, agent.follow, agent.discount) == (1e-5, 1e-3, 1e-3, 0.99)
    assert (agent.update, agent.passes, agent.batch_size, agent.capacity) == ("full", 8, 32, 500)
    noise = agent.exploration
    assert (noise.kind, noise.probability, noise.scale, noise.decrease) == ("relative", 0.3, 0.5, 2e-4)
    plain = {field.name: field.default for field in dataclasses.fields(DDPG)}
    assert (plain["clip_norm"], plain["weight_decay"], plain["size_penalty"]) == (5.0, 1e-5, 1e-3)
    assert config.rule == WeightRule(use_label=False, entropy_scale="loss", num_nodes=1)
    assert scan_length(config) == 50


@pytest.mark.slow
def test_the_papers_twins_fit_the_scan():
    """Traced, not run: two networks of 36.5 million parameters over fifty batches of a hundred images."""
    config = Config.paper()
    model = models.create(config.backbone, embedding=10)
    twins = staged(config, model, (32, 32, 3), config.steps, config.rule)
    start = jax.eval_shape(twins.init, jax.random.key(0))
    scan = scan_length(config)
    images = jax.ShapeDtypeStruct((scan, config.batch_size, 32, 32, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((scan, config.batch_size), jnp.int32)
    after, report = jax.eval_shape(twins.run_stage, start, jnp.zeros(3), images, labels, 0)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), start
    )
    assert models.parameter_count(after.params) == 2 * 36_479_194 and set(report) >= {"loss", "weight"}


def test_the_recipe_for_long_tails():
    """Source: factor 100, ResNet-32, 100 epochs, 20 stages, 4 of them warm-up, drops at 14 and 17, the class as a feature."""
    config = Config.imbalanced()
    assert config.data.tail.imbalance == 100 and config.backbone == "cifar_resnet32"
    assert (config.stages, config.warmup_stages, config.rule.size) == (20, 4, 4)
    assert (config.steps // 20, config.train_steps // 20) == (2000, 2500)
    assert (config.search_images, config.validation) == (40_000, 2000)
    rates = config.optimizer.learning_rates(config.steps)
    at = [float(rates(stage * 2000)) for stage in (13, 14, 16, 17)]
    np.testing.assert_allclose(at, [0.1, 0.01, 0.01, 0.001], rtol=1e-6)


def source(labels):
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    return ArraySource(images, np.array(labels), ["a", "b"])


def first_pixels(part):
    return [int(part[i]["image"][0, 0, 0]) for i in range(len(part))]


def test_the_first_of_each_class_are_searched_on_and_the_last_judge():
    records = source([0, 1, 0, 1, 0, 1, 0, 1])
    searched, clean = clean_split(records, 2, None)
    assert (first_pixels(searched), first_pixels(clean)) == ([0, 1, 2, 3, 4, 5], [6, 7])
    searched, clean = clean_split(records, 4, 2)
    assert (first_pixels(searched), first_pixels(clean)) == ([0, 1], [4, 5, 6, 7])
    with pytest.raises(UserError, match="validation: needs an image of each of the 2 classes, got 1"):
        clean_split(records, 1, None)
    with pytest.raises(UserError, match="validation: class a has 4 images, too few for 3 clean ones and 2"):
        clean_split(records, 6, 4)


def test_clean_images_are_clean_and_in_no_other_part():
    config = dataclasses.replace(TINY, data=data.Digits(noise=data.LabelNoise("uniform", 0.4)))
    split, searched, clean = divided(config)
    truth = data.load(data.Digits(), seed=0).train
    by_pixels = {truth[i]["image"].tobytes(): int(truth.labels[i]) for i in range(len(truth))}
    judged = [clean[i]["image"].tobytes() for i in range(len(clean))]
    assert [by_pixels[image] for image in judged] == clean.labels.tolist()
    assert np.bincount(clean.labels).tolist() == [2] * 10
    learned = {searched[i]["image"].tobytes() for i in range(len(searched))}
    assert not learned & set(judged) and len(searched) == len(truth) - 20
    wrong = np.mean(searched.labels != searched.true_labels)
    assert 0.3 < wrong < 0.42  # 0.4 · 9 / 10
    assert len(split.train) == len(truth) and len(split.held_out) == 797


def test_a_long_tail_leaves_the_clean_images_their_number():
    tail = data.Digits(tail=data.LongTail(10, largest=60))
    _, searched, clean = divided(dataclasses.replace(TINY, data=tail, validation=200))
    assert np.bincount(clean.labels).tolist() == [20] * 10
    assert np.bincount(searched.labels).tolist() == [60, 46, 35, 27, 21, 16, 12, 10, 7, 6]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("law")
    return training.run(build(TINY), seed=0, workdir=folder), folder


@pytest.mark.slow
def test_a_search_a_training_and_a_network(run):
    outcome, folder = run
    metrics = outcome.metrics
    assert metrics["train/target/accuracy"] == metrics["network/classification/accuracy"]
    for name in ("target", "reference", "target_stopped", "reference_stopped"):
        assert 0.05 < metrics[f"train/{name}/accuracy"] <= 1
    gap = metrics["train/target/accuracy"] - metrics["train/reference_stopped/accuracy"]
    assert metrics["train/gap/stopped"] == pytest.approx(gap)
    assert metrics["train/validation/reference"] <= metrics["train/validation/reference_stopped"]
    assert metrics["search/policy/episode"] in (0, 1, 2)
    policy = WeightPolicy.load(folder)
    assert policy.actions.shape == (4, 3) and policy.warmup_stages == 1 and policy.title == "digits"
    assert np.abs(policy.actions[1:]).min() > 0
    for name in ("policy.png", "search.png", "training.png"):
        assert (folder / name).stat().st_size > 1000


@pytest.mark.slow
def test_a_policy_is_replayed_on_other_data_and_other_stages(run):
    _, folder = run
    config = dataclasses.replace(
        TINY, data=data.Digits(), policy=str(folder), stages=8, warmup_stages=2, steps=16
    )
    train, network = build(config)
    assert (train.name, network.name) == ("train", "network")
    state = jax.eval_shape(train.init, jax.random.key(0), None)
    assert state.actions.shape == (8, 3)
    replayed = train.init(jax.random.key(0), None).actions
    np.testing.assert_array_equal(replayed, np.repeat(WeightPolicy.load(folder).actions, 2, axis=0))


@pytest.mark.parametrize(
    "changes",
    [
        {"search": "none"},
        {"weighting": "focal"},
        {"weighting": "self_paced"},
    ],
)
def test_rules_need_no_search(changes):
    stages = build(dataclasses.replace(TINY, **changes))
    assert [stage.name for stage in stages] == ["train", "network"]


@pytest.mark.slow
def test_the_small_loss_rule_helps_where_labels_are_wrong():
    config = dataclasses.replace(
        Config(), search="none", action=(-3.0, -3.0, -3.0), backbone="mlp_64", steps=360, stages=6
    )
    metrics = training.run(build(config), seed=0).metrics
    assert metrics["train/gap/accuracy"] > 0.05


def test_classes_out_of_order_are_warned_of():
    with pytest.warns(UserWarning, match="classes are not ordered by their frequency"):
        build(dataclasses.replace(TINY, search="random", rule=WeightRule(use_label=True)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warmup_stages": 4}, "warmup_stages: needs fewer than the 4 stages, got 4"),
        ({"steps": 15}, "steps: needs a multiple of the 4 stages, got 15"),
        ({"train_steps": 10}, "train_steps: needs a multiple of the 4 stages, got 10"),
        ({"scan": 3}, "scan: needs a divisor of the 4 steps"),
        ({"train_steps": 24, "scan": 4}, "scan: needs a divisor of the 2 steps"),
        ({"search": "none", "action": (1.0,)}, "action: the rule needs 3 numbers, got 1"),
        ({"policy": "nowhere"}, "policy: needs a policy.json"),
        ({"accumulate": 2}, "accumulate: twins are trained whole"),
        ({"ema_decay": 0.9}, "ema_decay: twins are trained whole"),
        ({"init_from": "run"}, "init_from: twins are trained whole"),
        ({"data": data.Procedural()}, "data: needs classes to be told apart"),
        ({"validation": 2000}, "validation: class 0 has .* images, too few"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(UserError, match=words):
        build(dataclasses.replace(TINY, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": 0}, "stages: needs an integer from 1, got 0"),
        ({"batch_size": 1}, "batch_size: needs an integer from 2, got 1"),
        ({"easiest": (0.8, 0.5)}, "easiest: needs least <= greatest"),
    ],
)
def test_ranges(changes, words):
    from experiments import configs

    with pytest.raises(UserError, match=words):
        configs.build("law", dataclasses.replace(TINY, **changes))


@pytest.mark.slow
def test_the_policy_file_says_what_it_is_of(run):
    _, folder = run
    written = json.loads((folder / "policy.json").read_text())
    assert written["method"] == "law" and written["data"] == "digits" and len(written["actions"]) == 4
