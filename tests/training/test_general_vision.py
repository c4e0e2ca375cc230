"""Probes, heads on frozen backbones, several sources in one step, and the benchmark's table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.recipes.general_vision import make_head, stand_in_tasks
from jaxface import data, training
from jaxface.data.pipeline.joined_batches import JoinedBatches, stream_batch
from jaxface.data.sources.label_graph import DataSource, label_graph
from jaxface.data.sources.source import Subset
from jaxface.errors import UserError
from jaxface.models.staged import PlainStages
from jaxface.training import experts
from jaxface.training.evaluations.task_answers import METRICS, check_metric
from jaxface.training.general_vision import FrozenBackbone, GvbSpec, GvbTask, gvb_evaluate, gvb_table
from jaxface.training.probe import ProbeSpec, linear_probe, pooled_features

MODEL = PlainStages(None, (4, 8, 8))


@pytest.fixture(scope="module")
def backbone():
    variables = experts.init_backbone(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), module=MODEL)
    return FrozenBackbone(MODEL, variables)


@pytest.fixture(scope="module")
def tasks():
    return stand_in_tasks(("digits", "squares"), image_size=16, scenes=60)


def test_a_probe_separates_what_is_linear():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = np.eye(3)[labels] * 2 + 0.1 * rng.normal(size=(60, 3))
    probe = linear_probe(x, labels, ProbeSpec(steps=50, learning_rate=0.1), num_classes=3)
    assert (probe.predict(x) == labels).all()
    # Standardized features may have any scale and offset.
    small = dataclasses.replace(ProbeSpec.small(), steps=50)
    moved = linear_probe(x * 1e3 + 5e4, labels, small, num_classes=3)
    assert (moved.predict(x * 1e3 + 5e4) == labels).all()
    again = linear_probe(x, labels, ProbeSpec(steps=50, learning_rate=0.1), num_classes=3)
    np.testing.assert_array_equal(probe.weights, again.weights)


def test_the_published_probe():
    spec = ProbeSpec()
    assert (spec.learning_rate, spec.momentum, spec.weight_decay) == (0.01, 0.9, 1e-3)
    assert (spec.batch_size, spec.steps) == (64, 10_000)
    assert [at * spec.steps for at in spec.decay_at] == [3000, 6000, 9000]
    assert GvbSpec().fraction == 0.1


def test_a_probe_is_in_evaluation_mode_and_on_other_images(backbone, tasks):
    with pytest.raises(UserError, match="train: needs False"):
        pooled_features(*backbone, tasks[0].train, train=True)
    names = data.WithFields(tasks[0].train)
    names.__class__ = type("Named", (data.WithFields,), {"record_names": [str(i) for i in range(60)]})
    part = Subset(names, np.arange(5))
    with pytest.raises(UserError, match="train: needs other records than the test"):
        GvbTask("x", "classification", "accuracy", names, part, 5)


def test_a_row_has_every_task_and_their_mean(backbone, tasks):
    spec = GvbSpec(fraction=0.5, probe=dataclasses.replace(ProbeSpec.small(), steps=5), steps=2)
    row = gvb_evaluate(backbone, tasks, spec)
    assert row["classification"] == pytest.approx((row["digits"] + row["squares"]) / 2)
    table = gvb_table({"one": row, "other": {**row, "digits": 0.0}}, tasks)
    assert "digits (accuracy)" in table and table.splitlines()[2].count("**") == 6


@pytest.mark.slow
def test_heads_of_every_kind_learn_on_a_frozen_backbone(backbone):
    tasks = stand_in_tasks(("shapes", "pedestrians", "pixels", "depth"), image_size=16, scenes=80)
    few, many = (
        gvb_evaluate(backbone, tasks, GvbSpec(fraction=1.0, steps=steps, learning_rate=1e-2))
        for steps in (1, 60)
    )
    assert few.keys() == {"shapes", "pedestrians", "pixels", "depth"}
    assert many["pixels"] > few["pixels"] and many["depth"] < few["depth"]
    assert all(np.isfinite(value) for value in many.values())


def opened(task, name, digits=(0, 3), classes=(), seed=0):
    spec = data.TaskCanvas(scenes=24, test_scenes=8, digits=digits)
    return DataSource(name, data.load(spec, image_size=16, seed=seed).train, task, classes=classes)


@pytest.fixture(scope="module")
def step():
    """(sources with heads, states before and after steps, reports) of one trunk on three sources of one head."""
    entries = [opened("classification", "a"), opened("classification", "b", (1, 5), seed=1)]
    heads = experts.unified_heads(
        entries, label_graph(entries), lambda task, classes: make_head(task, classes, MODEL.level_strides)
    )
    loss = experts.multi_source_loss(experts.expert_forward(MODEL), heads, experts.SourceWeighting())
    objective = training.Objective(loss, optax.sgd(0.1))
    image = jnp.zeros((1, 16, 16, 3))
    variables = experts.init_backbone(jax.random.key(0), image, module=MODEL)
    maps = MODEL.apply(variables, image, method=experts.features)
    params = {
        "backbone": variables["params"],
        "heads": {"classification": heads[0].head.module.init(jax.random.key(1), maps, (16, 16))["params"]},
    }
    extra = {"batch_stats": variables["batch_stats"], "scales": jnp.zeros(2)}
    states = [training.create_state(jax.random.key(2), params, objective, extra=extra)]
    batches = JoinedBatches({e.name: data.batches(e.source, batch_size=8, seed=0) for e in entries})
    run, reports = jax.jit(training.gradient_step(objective)), []
    for _ in range(3):
        state, report = run(states[-1], next(batches))
        states.append(state)
        reports.append(report)
    return heads, states, reports


def test_all_sources_are_in_every_step_and_weigh_alike_at_first(step):
    heads, states, reports = step
    assert [h.columns for h in heads] == [(0, 1, 2), (1, 2, 3, 4)]
    # Each loss over its first value: 2 in the first step.
    assert reports[0]["loss"] == pytest.approx(2.0, rel=1e-5)
    first = [reports[0]["a_loss"], reports[0]["b_loss"]]
    np.testing.assert_allclose(states[1].extra["scales"], first, rtol=1e-6)
    np.testing.assert_allclose(states[3].extra["scales"], first, rtol=1e-6)
    assert reports[2]["loss"] < reports[0]["loss"]


def test_classes_that_a_source_does_not_annotate_take_no_part():
    entries = [
        opened("segmentation", "a", classes=("nothing", "digit", "square")),
        opened("segmentation", "b", classes=("nothing", "thing")),
    ]
    one, two = experts.unified_heads(
        entries, label_graph(entries), lambda task, classes: make_head(task, classes, (2, 4, 4))
    )
    assert (one.columns, two.columns, one.head.num_classes) == ((0, 1, 2), (0, 3), 4)
    labels = jnp.array([[[0, 1], [1, 255]]], jnp.uint8)
    batch = two.prepared({"pixel_label": labels})
    assert batch["known"].tolist() == [1, 0, 0, 1] and batch["pixel_label"].tolist() == [[[0, 3], [3, 255]]]
    outputs = (jax.random.normal(jax.random.key(0), (1, 2, 2, 4)),) * 2
    gradient = jax.grad(lambda o: two.head.loss(o, batch))(outputs)
    assert not np.any(gradient[0][..., 1:3]) and np.any(gradient[0][..., 3])


def test_positions_of_joined_streams():
    source = opened("classification", "a").source

    def fresh():
        return JoinedBatches({n: data.batches(source, batch_size=4, seed=s) for s, n in enumerate("xy")})

    first = fresh()
    next(first)
    position = first.get_state()
    wanted, resumed = next(first), fresh()
    resumed.set_state(position)
    jax.tree.map(np.testing.assert_array_equal, wanted, next(resumed))
    assert set(stream_batch(wanted, "x")) == set(source[0])
    with pytest.raises(UserError, match="sources: the saved data position is of x, y, this run has z"):
        JoinedBatches({"z": data.batches(source, batch_size=4, seed=0)}).set_state(position)
    with pytest.raises(UserError, match="sources: needs at least one"):
        JoinedBatches({})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: check_metric("poses", "accuracy"), "task: needs one of classification"),
        (lambda: check_metric("depth", "miou"), "metric: depth has rmse, got 'miou'"),
        (
            lambda: experts.multi_source_loss(None, [], experts.SourceWeighting()),
            "sources: needs at least one",
        ),
        (lambda: linear_probe(np.ones((2, 3)), np.ones(3, int), num_classes=2), "features: needs one row"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_every_task_has_a_metric():
    assert set(METRICS) == {"classification", "detection", "cells", "segmentation", "depth"}
