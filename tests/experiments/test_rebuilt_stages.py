"""A stage is a function of its configuration and of the states that it is given: one that is built again goes on with them."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import configs, methods
from experiments.recipes.heads import HeadSpec
from experiments.recipes.teachers import TeacherSpec
from jaxface import attacks, data, training
from jaxface.models.detection import Detr, RetinaNet

PEOPLE = data.Procedural(
    identities=24, per_identity=4, held_out_identities=6, held_out_per_identity=4, groups=4
)
TEACHER = TeacherSpec(backbone="mlp_8", embedding=8, steps=4)
STUDENT = {"data": PEOPLE, "backbone": "mlp_4", "embedding": 8, "batch_size": 16, "teacher": TEACHER}
SMALL = {
    "acw": ("digits", {"rgb": TEACHER, "depth": TEACHER, "prototypes": "images", "leave_one_out": 1000}),
    "apvit": (
        "clutter",
        {"data": data.ClutteredDigits(scenes=48, test_scenes=8), "dim": 8, "dense_steps": 2, "batch_size": 8},
    ),
    "cassod": (None, {"data": data.Ellipses(images=20, held_out_images=4), "width": 2, "batch_size": 8}),
    "bamsprod": ("heavy", {"online_steps": 20, "batch_size": 32}),
    "cckd": ("procedural", {**STUDENT, "sampler": "class"}),
    "cloak": (
        "procedural",
        {
            "data": data.ProceduralImages(12, 4, held_out_identities=8, held_out_per_identity=6),
            "image_size": 8,
            "backbone": "mlp_8",
            "embedding": 8,
            "batch_size": 8,
            "targets": (TEACHER,),
            "cloak": attacks.Cloak(steps=2, accumulate=1),
            "people": 5,
            "photos": 3,
        },
    ),
    "coupleface": ("vectors", {**STUDENT, "neighbors": 5}),
    "condensation_net": (None, {"data": data.DigitCanvas(copies=1), "channels": 2, "batch_size": 8}),
    "ddc": (None, {"data": data.DigitCanvas(copies=1), "channels": 2, "batch_size": 8}),
    "fmvit": (
        None,
        {
            "data": data.Presentations(
                identities=8, per_identity=4, development_identities=8, held_out_identities=8
            ),
            "dim": 16,
            "heads": 2,
            "blocks": ("self", "cross"),
            "batch_size": 8,
        },
    ),
    "gabn": ("digits", {"batch_size": 32}),
    "ida": (
        None,
        {
            "data": PEOPLE,
            "augment": data.Augment(flip=0.0),
            "backbone": "mlp_8",
            "embedding": 8,
            "batch_size": 16,
            "candidates": 40,
            "neighbors": 5,
        },
    ),
    "lrfr": ("digits", {}),
    "qdetr": (
        None,
        {
            "data": data.ObjectScenes(things="shapes", scenes=16, held_out_scenes=4, sizes=(10, 16)),
            "detector": Detr(
                dim=4, heads=1, hidden=4, encoder_layers=1, decoder_layers=1, queries=4, weight_bits=2
            ),
            "calibration": 4,
            "batch_size": 8,
            "teacher_steps": 2,
            "steps": 2,
        },
    ),
    "pseco": (
        None,
        {
            "data": data.ObjectScenes(scenes=40, held_out_scenes=4),
            "percent": 10.0,
            "batch_size": 5,
            "start_steps": 2,
            "unlabeled_weight": 0.0,
        },
    ),
    "qvit": (None, {"dim": 4, "depth": 1, "patch": 4, "calibration": 8, "batch_size": 8}),
    "rbonn": (
        None,
        {
            "loss": "distribution",
            "real_weight_steps": 2,
            "teacher": TeacherSpec(backbone="mlp_8", embedding=None, head=HeadSpec(loss="linear"), steps=2),
        },
    ),
    "rco": (
        None,
        {**STUDENT, "augment": data.Augment(flip=0.0), "recorded": 2, "anchors": 2, "validation": 0.2},
    ),
    "rm_pfi": (
        None,
        {
            "data": data.ObjectScenes(scenes=16, held_out_scenes=4),
            "student": RetinaNet.small(widths=(2, 2, 2)),
            "teacher": RetinaNet.small(widths=(2, 2, 4)),
            "batch_size": 4,
        },
    ),
    "sparsevit": (
        None,
        {
            "data": data.ClutteredDigits(scenes=32, test_scenes=8),
            "dim": 8,
            "depth": 3,
            "heads": 2,
            "batch_size": 8,
            "steps": 2,
            "prune_steps": 2,
        },
    ),
    "sface": ("digits", {"label_noise": 0.2}),
}


def small(method):
    preset, changes = SMALL[method]
    config_class = configs.method_module(method).Config
    config = config_class() if preset is None else getattr(config_class, preset)()
    config = dataclasses.replace(config, **changes, seed=3, data_seed=3)
    if method == "ida":  # with every stage that it has
        parts = {
            name: dataclasses.replace(getattr(config, name), steps=2, batch_size=16)
            for name in ("gan", "estimator")
        }
        config = dataclasses.replace(config, **parts)
    return config


def following(stages, outcome):
    """The next stage, or None after the last."""
    try:
        return stages.send(outcome) if hasattr(stages, "send") else next(stages)
    except StopIteration:
        return None


def test_every_method_is_looked_at():
    assert SMALL.keys() == methods.descriptions().keys()


@pytest.mark.parametrize("method", SMALL)
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
