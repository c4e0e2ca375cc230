import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import configs, launch
from experiments.methods import cassod
from experiments.recipes import detection
from experiments.studies.cassod import STUDIES
from jaxface import data, losses, models, training

SMALL = cassod.Config(data=data.Ellipses(images=24, held_out_images=8), width=4, batch_size=8, steps=3)

WEIGHTS = {  # tests/models/detection/test_cell_net.py counts them
    "pointwise": 256, "dense": 2304, "separable": 400, "bottleneck": 1120, "ddp": 384, "dc": 1088, "cc": 2048,
}  # fmt: skip


def test_a_step_is_the_loss_of_the_library():
    config = dataclasses.replace(SMALL, positive_weight=5.0)
    (stage,) = cassod.build(config)
    state = jax.jit(stage.init)(jax.random.key(0), None)
    batch = next(stage.batches(state))
    assert batch["image"].shape == (8, 40, 40, 1) and batch["cells"].shape == (8, 20, 20)

    @jax.jit
    def both(state, batch):
        logits = cassod.network(config).apply({"params": state.params["backbone"]}, batch["image"])
        return losses.cell_loss(logits, batch["cells"], positive_weight=5.0).mean(), stage.step(state, batch)[
            1
        ]

    image = (batch["image"].astype(np.float32) - 127.5) / 127.5
    expected, report = both(state, {**batch, "image": image})
    np.testing.assert_allclose(report["loss"], expected, rtol=1e-5)
    # The ratio of lengths that nothing holds is watched, where there are two stages.
    context = state.params["backbone"]["context"]
    np.testing.assert_allclose(
        report["stage_ratio"], np.linalg.norm(context["a"]) / np.linalg.norm(context["b"]), rtol=1e-5
    )
    (plain,) = cassod.build(dataclasses.replace(config, structure="separable"))
    state = jax.eval_shape(plain.init, jax.random.key(0), None)
    assert "stage_ratio" not in jax.eval_shape(plain.step, state, {**batch, "image": image})[1]


@pytest.mark.slow
def test_a_run_from_the_launcher(tmp_path):
    flags = """cassod --data.images 24 --data.held-out-images 8 --width 2 --batch-size 8 --steps 2 --structure cc --quiet
        --cadence.log-every 1"""
    launch.main([*flags.split(), "--workdir", str(tmp_path / "run")])
    found = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert 0 < found["cells/average_precision"] <= 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--data digits", "data: needs records with cells or boxes, such as ellipses or scenes, got digits"),
        ("--structure cassod", "--structure"),
        ("--dilation 0", "dilation: needs an integer from 1, got 0"),
        ("--positive-weight 0", "positive_weight: needs a finite number above 0, got 0"),
        ("--batch-size 48", "batch_size: needs at most the 24 records"),
        ("--data.noise -1", "data.noise: needs a finite number from 0, got -1"),
    ],
)
def test_refusals_before_anything_is_compiled(refusal, tmp_path, flags, words):
    fixed = [
        "cassod",
        *["--data.images", "24", "--data.held-out-images", "8", "--batch-size", "8", "--quiet", "--workdir"],
    ]
    if "--data " in flags:
        fixed = ["cassod", "--quiet", "--workdir"]
    assert words in refusal(launch.main, [*fixed, tmp_path / "run", *flags.split()])


def test_the_arms_of_the_study_have_the_weights_that_they_are_named_for():
    study = STUDIES["ellipses"]
    assert STUDIES["structures"].base == study.base
    for name, changes in {**study.arms, **STUDIES["structures"].arms}.items():
        config = dataclasses.replace(study.base, **changes)
        assert WEIGHTS[config.structure] == int(name.rpartition(" ")[2])
        written = json.loads(json.dumps(configs.to_dict("cassod", config, configs.Run())))
        assert configs.from_dict(written)[1] == config
    # The protocol of the specification, but for the length of a run and its learning rate.
    assert cassod.Config() == dataclasses.replace(study.base, steps=1200, optimizer=training.adam(3e-3))
    default = cassod.Config()
    assert (default.data.images, default.data.held_out_images, default.data.noise) == (4000, 600, 0.25)
    assert (default.batch_size, default.positive_weight, default.dilation, default.width) == (32, 11.0, 2, 16)
    assert default.optimizer == training.adam(3e-3) and default.optimizer.schedule == "cosine"


def test_the_detector_is_the_recipes_with_cascaded_context_modules():
    laptop = detection.DetectionRecipe()
    config = cassod.Config.detector()
    for field in dataclasses.fields(laptop):
        if field.name != "context":
            assert getattr(config, field.name) == getattr(laptop, field.name)
    (stage,) = cassod.build(dataclasses.replace(config, data=data.Scenes(scenes=32, held_out_scenes=2)))
    assert (stage.name, stage.best) == ("detector", "detection/ap50")
    state = jax.eval_shape(stage.init, jax.random.key(0), None)
    module = state.params["detector"]["context1"]
    assert module["middle"]["b"].shape == (2, 2, 64, 16) and module["near"]["conv"]["kernel"].shape == (
        3,
        3,
        64,
        32,
    )


def test_the_configuration_of_the_paper():
    """The host's recipe, of its most-used public implementation: the paper's own could not be read."""
    paper = cassod.Config.paper()
    written = json.loads(json.dumps(configs.to_dict("cassod", paper, configs.Run())))
    assert configs.from_dict(written)[1] == paper
    assert (paper.backbone, paper.context, paper.image_size, paper.batch_size) == (
        "mobilenet_025",
        "cassod",
        1024,
        32,
    )
    augment = paper.augment
    assert (augment.side, augment.crop, augment.scales, augment.tries) == (
        640,
        "square",
        (0.3, 0.45, 0.6, 0.8, 1.0),
        250,
    )
    assert (augment.keep, augment.flip, augment.distortion, augment.brightness) == ("center", 0.5, 0.5, 32.0)
    assert (augment.contrast, augment.saturation, augment.hue) == ((0.5, 1.5), (0.5, 1.5), 18.0)
    assert (paper.match_iou, paper.negative_ratio) == (0.35, 7.0)
    assert (paper.optimizer.name, paper.optimizer.momentum, paper.optimizer.weight_decay) == (
        "sgd",
        0.9,
        5e-4,
    )
    epoch = 12_880 // 32
    assert paper.steps == 250 * epoch
    rates = paper.optimizer.learning_rates(paper.steps)
    np.testing.assert_allclose(
        [float(rates(e * epoch)) for e in (0, 189, 191, 221)], [1e-3, 1e-3, 1e-4, 1e-5], rtol=1e-5
    )
    detector = detection.retinaface(paper)
    assert detector.anchors((640, 640)).shape == (16_800, 4)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(detector.module.init, jax.random.key(0), image)
    # Of the published 426,608 the convolutions of its context modules, and 64 scales and shifts of each, are other ones.
    assert models.parameter_count(shapes) == 426_608 - 419_824 + 397_552 - 3 * 64


@pytest.mark.slow
def test_what_is_seen_through_dilated_cascades_and_not_without_dilation():
    """One seed, an eighth of the steps: a layer of less than half the weights finds what a 3×3 filter next to it cannot."""
    base = dataclasses.replace(
        STUDIES["ellipses"].base,
        data=data.Ellipses(images=1600, held_out_images=200),
        steps=250,
        seed=1,
        data_seed=1,
    )
    precision = {}
    for name, changes in (("dc", {}), ("near", {"structure": "dense", "dilation": 1})):
        metrics = training.run(cassod.build(dataclasses.replace(base, **changes)), seed=1).metrics
        precision[name] = metrics["cells/average_precision"]
    assert precision["dc"] > 1.3 * precision["near"], precision
