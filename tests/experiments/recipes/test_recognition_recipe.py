"""The parts that the methods share: the plain stage, and the teacher that is trained or read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_configs

from experiments import configs, methods
from experiments.recipes import recognition as recipe
from experiments.recipes.gan import GanSpec
from experiments.recipes.heads import HeadSpec
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from jaxface import data, losses, training
from jaxface.errors import UserError

TINY = recipe.Recipe(
    data=data.Procedural(identities=6, held_out_identities=4, per_identity=4),
    augment=data.Augment(flip=0.0),
    backbone="mlp_16",
    embedding=8,
    batch_size=8,
    steps=4,
)
TEACHER = TeacherSpec(backbone="mlp_32", embedding=8, steps=3)


@pytest.mark.parametrize("loss", ["softmax", "cosface", "arcface"])
def test_a_head_is_the_loss_of_its_name(loss):
    cosines = jnp.asarray(np.random.default_rng(0).uniform(-0.9, 0.9, (6, 5)), jnp.float32)
    labels = jnp.arange(6) % 5
    margin = {} if loss == "softmax" else {"margin": 0.25}
    expected = getattr(losses, f"{loss}_loss")(cosines, labels, scale=20.0, **margin)
    np.testing.assert_array_equal(HeadSpec(loss, 20.0, 0.25).build().loss(cosines, labels), expected)


def test_images_with_boxes_are_for_detectors():
    scenes = data.Scenes(scenes=2, held_out_scenes=2, people=1, held_out_people=1, per_person=1)
    with pytest.raises(
        UserError, match=r"^data: needs one person or class per image, scenes 2 is for detectors$"
    ):
        recipe.load(dataclasses.replace(TINY, data=scenes))


def test_the_plain_stage_learns_and_is_evaluated():
    split = recipe.load(TINY)
    stage = recipe.recognition_stage(
        "plain", TINY, split, recipe.network(TINY), HeadSpec().build(), steps=60,
        optimizer=dataclasses.replace(TINY.optimizer, learning_rate=1e-2),
    )  # fmt: skip
    outcome = training.run([stage])
    assert outcome.metrics["verification/accuracy"] > 0.6
    state = outcome.state
    assert int(state.step) == 60 and state.params["prototypes"].shape == (6, 8)
    assert not stage.evaluate.flip  # nothing was mirrored in training, so nothing is in the test


def test_an_unknown_protocol_is_answered_by_the_nearest_prototype():
    digits = dataclasses.replace(TINY, data=data.Digits(), image_size=8)
    split = recipe.load(digits)
    assert isinstance(recipe.evaluation(digits, recipe.network(digits), split), training.NearestPrototype)


LINEAR = dataclasses.replace(
    TINY,
    data=data.Digits(),
    image_size=8,
    embedding=None,
    batch_size=64,
    optimizer=training.adam(1e-2),
    steps=60,
)


def test_a_linear_classifier_on_pooled_features():
    split, head = recipe.load(LINEAR), HeadSpec(loss="linear").build()
    model = recipe.network(LINEAR)
    stage = recipe.recognition_stage("plain", LINEAR, split, model, head)
    outcome = training.run([stage])
    params = jax.device_get(outcome.state.params)
    assert params["backbone"].keys() == {"hidden1"} and params["prototypes"].shape == (10, 16)
    assert params["bias"].shape == (10,) and params["bias"].any()
    assert outcome.metrics["classification/accuracy"] > 0.8
    # The evaluation and the loss are those of scores computed by hand.
    pixels = np.stack([split.held_out[i]["image"] for i in range(100)]).astype(np.float32) / 127.5 - 1
    hidden = params["backbone"]["hidden1"]
    features = np.maximum(pixels.reshape(100, -1) @ hidden["kernel"] + hidden["bias"], 0)
    scores = features @ params["prototypes"].T + params["bias"]
    np.testing.assert_allclose(training.class_scores(params, features), scores, rtol=1e-4, atol=1e-4)
    labels = np.asarray(split.held_out.labels[:100])
    expected = np.log(np.exp(scores).sum(1)) - scores[np.arange(100), labels]
    recognition = recipe.Recognition(LINEAR, model, 10, split.train.image_shape, head)
    answer = recognition.classify(params, jnp.asarray(features), labels, jax.random.key(0))
    np.testing.assert_allclose(answer.loss, expected.mean(), rtol=1e-4)
    assert answer.report().keys() == {"accuracy"}
    np.testing.assert_allclose(answer.report()["accuracy"], (scores.argmax(1) == labels).mean(), rtol=1e-6)
    evaluation = training.NearestPrototype(model, data.Subset(split.held_out, np.arange(100)))
    assert evaluation(outcome.state)["classification/accuracy"] == pytest.approx(
        (scores.argmax(1) == labels).mean()
    )


def test_what_a_linear_classifier_cannot_do():
    model = recipe.network(LINEAR)
    for fields, classes in (({}, recipe.LARGE), ({"sample_rate": 0.5}, 10)):
        config = dataclasses.replace(LINEAR, **fields)
        with pytest.raises(UserError, match=r"^loss: 'linear' needs fewer than 16384 classes, all of them"):
            recipe.Recognition(config, model, classes, (8, 8, 1), losses.Linear())
    with pytest.raises(UserError, match=r"^loss: 'linear' has no fused form"):
        losses.Linear().fused()


@pytest.mark.parametrize("name", ["sface", "arcface"])
def test_the_terms_that_are_watched_are_those_of_whole_cosines(name):
    """With sampling allowed to take all classes or with every [B, C] made: the same cosines and terms are reported."""
    head = losses.create_head(name, scale=16.0)
    model = recipe.network(TINY)
    whole = recipe.Recognition(TINY, model, 6, (1, 96, 1), head)
    fused = recipe.Recognition(TINY, model, 6, (1, 96, 1), head)
    fused.whole = False
    rng = np.random.default_rng(0)
    params = {"prototypes": jnp.asarray(rng.normal(size=(6, 8)), jnp.float32)}
    embeddings, labels = jnp.asarray(rng.normal(size=(5, 8)), jnp.float32), jnp.arange(5)
    reports = [r.classify(params, embeddings, labels, jax.random.key(0)).report("_x") for r in (whole, fused)]
    names = {"target_cosine_x"}
    if name == "sface":
        names |= {"other_cosine_x", "intra_loss_x", "inter_loss_x"}
    assert reports[1].keys() == names and reports[0].keys() == names | {"accuracy_x", "other_cosine_x"}
    for key in names:
        np.testing.assert_allclose(reports[0][key], reports[1][key], rtol=1e-4, atol=1e-5)
    unit = [
        np.asarray(x / jnp.linalg.norm(x, axis=1, keepdims=True)) for x in (embeddings, params["prototypes"])
    ]
    cosines = unit[0] @ unit[1].T
    np.testing.assert_allclose(reports[0]["target_cosine_x"], cosines[range(5), range(5)].mean(), rtol=1e-4)
    cosines[range(5), range(5)] = 0
    np.testing.assert_allclose(reports[0]["other_cosine_x"], cosines.mean(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("loss", "margin"), [("arcface", 0.3), ("cosface", 0.35)])
def test_a_margin_that_is_not_given_is_the_losses_own(loss, margin):
    assert HeadSpec(loss=loss).build().margin == margin
    assert HeadSpec(loss=loss, margin=0.1).build().margin == 0.1


def test_a_trained_teacher_is_the_plain_stage():
    split = recipe.load(TINY)
    stage, teacher = teacher_stage(TINY, TEACHER, split, embedding=8, prototypes=True)
    assert stage.name == "teacher" and stage.steps == 3
    state = training.run([stage]).state
    extra = teacher.installed({}, state)
    assert teacher.embeddings(extra, jnp.zeros((2, 1, 96, 1))).shape == (2, 8)
    assert extra["teacher"]["prototypes"].shape == (6, 8)


def test_a_teacher_is_read_from_a_run(finished):
    split = data.load(data.RenderedFaces(identities=8, per_identity=4, held_out_identities=4), image_size=16)
    config = dataclasses.replace(TINY, data=data.RenderedFaces(), image_size=16)
    stage, teacher = teacher_stage(
        config, TeacherSpec(run=str(finished)), split, embedding=16, prototypes=True
    )
    state = training.run([stage]).state
    params, _ = training.run_checkpoint(finished)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert teacher.installed({}, state)["teacher"]["prototypes"].shape == (8, 16)


def test_teachers_that_do_not_fit(finished, tmp_path):
    def refused(match, shape=16, classes=8, teacher=None, **wanted):
        faces = data.RenderedFaces(identities=classes, per_identity=4, held_out_identities=4)
        split = data.load(faces, image_size=shape)
        with pytest.raises(UserError, match=match):
            teacher_stage(TINY, teacher or TeacherSpec(run=str(finished)), split, **wanted)

    refused("teacher.run: needs an embedding of 32, as the student's, .* has 16", embedding=32)
    refused("does not take images of shape", shape=24)
    refused("teacher.run: needs the 9 classes of the data, .* has 8", classes=9, prototypes=True)
    refused("teacher.embedding: needs 32, as the student's, got 8", teacher=TEACHER, embedding=32)
    refused("holds no bundle.json", teacher=TeacherSpec(run=str(tmp_path)))


def test_a_margin_out_of_range_is_refused_before_anything_runs():
    split = recipe.load(TINY)
    with pytest.raises(UserError, match="margin"):
        recipe.recognition_stage("x", TINY, split, recipe.network(TINY), HeadSpec(margin=9.0).build())
    with pytest.raises(UserError, match=r"^seed: needs an integer from 0, got -1"):
        recipe.load(dataclasses.replace(TINY, data_seed=-1))


FACES = data.RenderedFaces(
    identities=6, per_identity=4, held_out_identities=6, held_out_per_identity=4, first_identity=50
)
OVERRIDES = {
    "acw": {
        "data": dataclasses.replace(FACES, modality="rgbd"),
        "rgb_data": FACES,
        "depth_data": dataclasses.replace(FACES, modality="depth"),
    },
    "cckd": {"sampler": "uniform", "congruence_weight": 0.0},
    "cloak": {"people": 2, "photos": 2, "tests": 2},
    "gabn": {
        "cells": 2,
        "erase": 1,
        "data": data.TonedFaces(identities=(4, 4), per_identity=4, held_out_identities=8),
    },
    "ida": {"gan": GanSpec(steps=0), "score": "cosine"},
    "lrfr": {"probe_sizes": (8, 16)},
}


SMALLEST_BATCHES = {
    method: small_configs.of(method, "SMALLEST_BATCH", 2) for method in methods.descriptions()
}


@pytest.mark.parametrize("method", [method for method, least in SMALLEST_BATCHES.items() if least == 1])
def test_one_image_trains_a_network_without_batch_statistics_of_one_value(method):
    config = configs.method_module(method).Config()
    assert any(stage.steps for stage in configs.build(method, dataclasses.replace(config, batch_size=1)))


@pytest.mark.parametrize("method", [method for method, least in SMALLEST_BATCHES.items() if least == 2])
def test_images_one_by_one_are_refused_by_every_other_method_before_anything_is_computed(method):
    module = configs.method_module(method)
    fields = {"data": FACES, "image_size": 16, "batch_size": 8, **OVERRIDES.get(method, {})}
    config = dataclasses.replace(module.Config(), **fields)
    with pytest.raises(
        UserError, match=r"^accumulate: needs at least 2 images at a time .*, got 8 images in 8"
    ):
        configs.build(method, dataclasses.replace(config, accumulate=8))
    with pytest.raises(UserError, match=r"^batch_size: needs at least 2 images at a time .*, got 1"):
        configs.build(method, dataclasses.replace(config, batch_size=1))
    configs.build(method, dataclasses.replace(config, accumulate=4))


def test_a_teacher_too_sees_no_images_one_by_one():
    config = dataclasses.replace(TINY, data=FACES, image_size=16, accumulate=8)
    split = recipe.load(config)
    recipe.recognition_stage(
        "plain", config, split, recipe.network(config), HeadSpec().build()
    )  # no batch norm
    teacher_stage(config, TEACHER, split)
    with pytest.raises(UserError, match=r"^accumulate: .* for the batch normalization of IResNet"):
        teacher_stage(config, dataclasses.replace(TEACHER, backbone="iresnet_pico"), split)
