"""OTA as an experiment: matched budgets, what each stage hands on, the preset against the source's numbers, and refusals."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_configs.ota import CONFIG

from experiments.methods.ota import Config, blurred, build, network, pixels
from experiments.recipes import recognition as recipe
from experiments.reproduce import sharing
from jaxface import data, models, training
from jaxface.errors import UserError
from jaxface.training.re_representation import ReRepresented


def changed(**changes):
    return dataclasses.replace(CONFIG, **changes)


def outcomes_of(stages, until=None, **options):
    """Outcomes of stages by name, through the loop, up to the stage `until`."""
    outcomes = {}

    def noted():
        source, outcome = iter(stages), None
        while True:
            try:
                stage = source.send(outcome) if outcome is not None else next(source)
            except StopIteration:
                return
            outcome = yield stage
            outcomes[stage.name] = outcome
            if stage.name == until:
                return

    training.run(noted(), seed=CONFIG.seed, **options)
    return outcomes


def test_what_the_preset_says_of_its_sources():
    """VQ-GAN f16 of 1024 codes; ResNet-50 and 18; 10,000 steps halved, drops at 3, 6 and 9 thousand; 20 images for a real one."""
    config = Config.paper()
    generator = config.generator.model((224, 224, 3))
    assert (generator.codes, generator.features, generator.stride) == (1024, 256, 16)
    for name, expected in ((config.foundation.backbone, 25_557_032), (config.backbone, 11_689_512)):
        shapes = jax.eval_shape(
            models.create(name, embedding=1000).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
        )
        assert models.parameter_count(shapes) == expected
    optimizer = config.task_optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (
        "sgd",
        0.01,
        0.9,
        1e-3,
    )
    rates = optimizer.learning_rates(config.task_steps)
    np.testing.assert_allclose([rates(s) for s in (0, 3001, 6001, 9001)], [1e-2, 1e-3, 1e-4, 1e-5], rtol=1e-5)
    assert config.task_steps == 10_000 and config.share == 0.5 and optimizer.rates == ("backbone=0.1",)
    assert (config.digg.steps, config.digg.mixing, config.digg.noise) == (30, 0.3, 0.2)
    assert (config.digg.statistics, config.digg.proximity, config.digg.task, config.digg.diversity) == (
        1,
        6.4,
        0,
        0,
    )
    assert config.temperature == 2 and config.feature_weight == config.label_weight == 0
    assert config.data.few.fraction == 0.1 and config.generated == 20 * 5000
    assert isinstance(network(config), models.recognition.resnet.ResNet)


def test_the_styles_share_no_class_and_no_image():
    config = Config()
    down, up = (data.load(spec, seed=4) for spec in (config.data, config.upstream))
    assert not {*down.train.class_names} & {*up.train.class_names}
    assert np.bincount(down.train.labels).tolist() == [3] * 5 and len(down.held_out) > 400
    plain, smooth = (
        data.load(dataclasses.replace(config.data, grain=0.0, **style), seed=4)
        for style in ({"smear": 0.0, "contrast": 1.0}, {})
    )
    clean, even, styled = (pixels(split.held_out) / 255 for split in (plain, smooth, down))
    np.testing.assert_array_equal(plain.held_out.labels, down.held_out.labels)
    sides = np.pad(clean, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
    smeared = 0.5 * clean + 0.25 * (sides[:, :, :-2] + sides[:, :, 2:])
    np.testing.assert_allclose(even, 0.5 + 0.8 * (smeared - 0.5), atol=0.5 / 255 + 1e-6)
    middle = np.abs(even - 0.5) < 0.1  # what little is cut off there: beyond ±1.2 deviations
    assert 0.2 < (styled - even)[middle].std() < 0.35 and abs((styled - even)[middle].mean()) < 0.05
    np.testing.assert_array_equal(styled, pixels(data.load(config.data, seed=4).held_out) / 255)


def test_the_control_is_as_far_from_the_images_as_r():
    source = data.load(Config().data, seed=0).train
    said = np.clip(
        pixels(source).astype(int) + np.random.default_rng(0).integers(-40, 40, (15, 8, 8, 1)), 0, 255
    )
    like = ReRepresented(source, [said.astype(np.uint8)])
    made = blurred(source, like)
    errors = [np.abs(pixels(x).astype(float) - pixels(source)).mean() for x in (made, like)]
    np.testing.assert_allclose(*errors, rtol=0.05)
    assert made[3]["label"] == source[3]["label"]


@pytest.fixture(scope="module")
def whole():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return outcomes_of(build(CONFIG))


def after(whole, stage, config, until=None, **options):
    """Outcomes of a run whose stages before `stage` are those of the whole one."""
    done = list(whole.values())[: list(whole).index(stage)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return outcomes_of(sharing(build(config), len(done), list(done)), until, **options)


@pytest.mark.slow
def test_the_stages_hand_on_what_they_learned(whole):
    assert list(whole) == [
        "foundation",
        "generator",
        "representation",
        "re_represented",
        "originals",
        "images",
        "student",
    ]
    generator = whole["generator"].state.params["generator"]
    for name in ("representation", "re_represented", "originals", "images"):
        state = whole[name].state
        kept = state.params if name == "representation" else state.extra
        jax.tree.map(np.testing.assert_array_equal, kept["generator"], generator)
    # The student learns from the fine-tuned model.
    teacher, tuned = whole["student"].state.extra["teacher"], whole["originals"].state.params
    jax.tree.map(np.testing.assert_array_equal, teacher["params"], tuned["backbone"])
    np.testing.assert_array_equal(teacher["prototypes"], tuned["prototypes"])
    images = np.asarray(whole["images"].state.extra["images"])
    assert images.shape == (16, 8, 8, 1) and images.dtype == np.uint8 and len(np.unique(images)) > 8
    found = whole["representation"].metrics
    assert {"probe/original", "probe/re_represented", "downstream/perplexity"} <= found.keys()


@pytest.mark.slow
def test_a_share_of_zero_is_direct_fine_tuning_bit_for_bit(whole):
    ends = {
        name: after(whole, "re_represented", changed(**changes, distill=False))
        for name, changes in {
            "direct": {"mode": "direct"},
            "zero": {"share": 0.0},
            "restart": {"mode": "restart"},
        }.items()
    }
    direct, zero, restart = (ends[name]["originals"] for name in ("direct", "zero", "restart"))
    jax.tree.map(np.testing.assert_array_equal, direct.state.params, zero.state.params)
    assert direct.metrics == zero.metrics
    steps = [int(ends["restart"][name].state.step) for name in ("originals_first", "originals")]
    assert steps == [2, 2] and int(direct.state.step) == 4
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), direct.state.params, restart.state.params)
    assert any(jax.tree.leaves(differs)), "the optimizer began anew"


class Stop(Exception):
    """Stands for the end of the process."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), [("generator", 1), ("originals", 3), ("images", 1)])
def test_a_run_that_was_killed_ends_where_the_whole_one_does(whole, name, step, tmp_path):
    done = list(whole.values())[: list(whole).index(name)]
    killed = []

    def stages():
        source, outcome = sharing(build(CONFIG), len(done), list(done)), None
        while outcome is None or outcome.name != name:
            stage = source.send(outcome) if outcome is not None else next(source)
            if stage.name == name and not killed:

                def batches(state, opened=stage.batches):
                    inside = opened(state)

                    class Trap(type(inside)):
                        def __next__(self):
                            if self._step == step:
                                killed.append(name)
                                raise Stop
                            return super().__next__()

                    inside.__class__ = Trap
                    return inside

                stage = dataclasses.replace(stage, batches=batches)
            outcome = yield stage

    options = {"workdir": tmp_path, "cadence": training.Cadence(checkpoint_every=1), "seed": CONFIG.seed}
    with pytest.raises(Stop):
        training.run(stages(), **options)
    resumed = training.run(stages(), **options)
    assert killed == [name]
    expected = whole[name].state
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params, expected.params)
    if name == "images":
        np.testing.assert_array_equal(resumed.state.extra["images"], expected.extra["images"])


@pytest.mark.slow
def test_what_the_images_may_be(whole):
    few = pixels(data.load(CONFIG.data, seed=0).train)
    made = {
        kind: np.asarray(
            after(whole, "images", changed(images=kind), until="images")["images"].state.extra["images"]
        )
        for kind in ("real", "noise", "random", "re_represented")
    }
    assert all(any(np.array_equal(image, x) for x in few) for image in made["real"])
    apart = np.abs(made["noise"].astype(int) - made["real"]).mean()
    assert 0.03 * 255 < apart < 0.2 * 255
    assert len(np.unique(made["random"], axis=0)) > len(np.unique(made["re_represented"], axis=0)) <= 15


@pytest.mark.slow
def test_another_generator_is_a_control(whole):
    config = changed(represent_with="untrained", distill=False)
    outcomes = after(whole, "re_represented", config)
    used = outcomes["originals"].state.extra["generator"]
    control = outcomes["control_generator"].state.params["generator"]
    jax.tree.map(np.testing.assert_array_equal, used, control)
    assert (
        outcomes["control_representation"].metrics["downstream/error"]
        > whole["representation"].metrics["downstream/error"]
    )


@pytest.mark.slow
def test_guidance_that_does_nothing_is_said(whole):
    config = changed(digg=dataclasses.replace(CONFIG.digg, reach=1e-4))
    done = list(whole.values())[:5]
    with pytest.warns(UserWarning, match=r"digg: 0\.00% of the codes changed in 2 steps"):
        outcomes_of(sharing(build(config), 5, done), "images")


@pytest.mark.slow
def test_features_and_labels_count_where_they_have_a_weight(whole):
    outcomes = after(whole, "student", changed(feature_weight=0.5, label_weight=0.5))
    assert outcomes["student"].state.params["regressor"].shape == (4, 8)
    assert np.isfinite(outcomes["student"].metrics["classification/accuracy"])


def test_what_cannot_be_is_refused():
    digits = Config().data
    for changes, message in (
        ({"data": dataclasses.replace(digits, classes=(4, 5, 6))}, "upstream: needs a run of other classes"),
        ({"upstream": data.ProceduralImages(identities=8, held_out_identities=2)}, "upstream: needs classes"),
        ({"data": data.ProceduralImages(identities=8, held_out_identities=2)}, "data: needs classes to be"),
        ({"generated": 0}, "generated: needs at least 1 image"),
        ({"batch_size": 9}, "batch_size: needs an even number"),
        ({"init_from": "x", "distill": False}, "init_from: needs a student"),
        ({"data": dataclasses.replace(digits, classes=(5, 5))}, r"data\.classes: needs two digits or more"),
        ({"unrelated": data.LfwSubset(), "represent_with": "unrelated"}, "unrelated: needs images of"),
        ({"validate_packs": "x"}, "a classifier tells no pairs"),
    ):
        with pytest.raises(UserError, match=message):
            list(zip(build(changed(**changes)), range(1), strict=False))


def test_the_upstream_images_are_all_that_a_generator_sees():
    """Its stage opens batches of the upstream training images; downstream ones are in no argument of it."""
    stages = build(CONFIG)
    next(stages)
    stage = stages.send(training.Outcome("foundation", None, {}))
    upstream = recipe.load(dataclasses.replace(CONFIG, data=CONFIG.upstream)).train
    assert stage.description["classes"] == list(upstream.class_names) == list("01234")
    batch = next(stage.batches(None))
    known = {image.tobytes() for image in pixels(upstream)}
    assert all(image.tobytes() in known for image in batch["image"])
