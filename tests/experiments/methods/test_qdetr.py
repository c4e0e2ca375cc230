"""Q-DETR as an experiment: its stages, the paper's recipe against the source's numbers, its controls, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.methods.qdetr import Config, QueryDistillation, build, float_detector
from jaxface import data, inference, training
from jaxface.errors import UserError
from jaxface.layers.quantization import QUANTIZATION
from jaxface.models.detection import Detr, RetinaFace, init_variables, published_detector, training_pass

SCENES = data.ObjectScenes(things="shapes", scenes=32, held_out_scenes=8, sizes=(10, 16), noise=0.1)
TINY = Config(
    data=SCENES,
    detector=Detr(
        dim=8, heads=2, hidden=8, encoder_layers=1, decoder_layers=1, queries=4, weight_bits=2, input_bits=2,
        align_query="cross",
    ),
    calibration=8,
    batch_size=8,
    teacher_steps=2,
    steps=2,
)  # fmt: skip


def test_the_papers_recipe():
    """Source: 4-4-8 bits, the first convolution 8; AdamW 1e-4, batch 16, 300 epochs of VOC 07+12 with a tenth after 200, in two
    stages; a teacher of ResNet-101. Recalled: λ 2.5, τ 0.6, backbone 1e-5, weight decay 1e-4, gradients cut at 0.1."""
    config = Config.paper()
    detector = config.detector
    assert (detector.weight_bits, detector.input_bits, detector.attention_bits, detector.edge_bits) == (
        4,
        4,
        8,
        8,
    )
    assert (detector.align_query, config.align_start, config.step_rate) == ("cross", "one", 1)
    assert float_detector(detector, granularity="tensor", input_bits=4) == published_detector("detr_resnet50")
    assert config.teacher_backbone == "resnet101"
    for rule in (config.optimizer, config.teacher_optimizer):
        assert (rule.name, rule.learning_rate, rule.weight_decay, rule.clip_norm) == (
            "adamw",
            1e-4,
            1e-4,
            0.1,
        )
        assert rule.decay_at == (200 / 300,) and rule.rates == ("detector/backbone=0.1",)
    epochs = config.steps * config.batch_size / 16_551
    assert epochs == pytest.approx(300, abs=0.1) and config.backbone_steps == config.steps
    assert (config.distillation, config.tau, config.layers, config.selection) == (
        2.5,
        0.6,
        "last",
        "foreground",
    )


def test_smca_is_a_preset():
    """Source: 50 epochs, a tenth after 40, 300 queries, focal loss."""
    config = Config.smca()
    assert (config.detector.gaussian, config.detector.focal, config.detector.queries) == (True, True, 300)
    assert config.steps * 16 / 118_287 == pytest.approx(50, abs=0.1) and config.optimizer.decay_at == (0.8,)


@pytest.fixture(scope="module")
def stages():
    return {stage.name: stage for stage in build(dataclasses.replace(TINY, backbone_steps=2))}


@pytest.fixture(scope="module")
def teacher(stages):
    return stages["teacher"].init(jax.random.key(0), None)


@pytest.fixture(scope="module")
def half(stages, teacher):
    return stages["backbone"].init(jax.random.key(1), teacher)


def test_the_student_has_what_the_teacher_knows(stages, teacher, half):
    assert list(stages) == ["teacher", "backbone", "student"]
    theirs, ours = teacher.params["detector"], half.params["detector"]
    np.testing.assert_array_equal(
        ours["encoder1"]["expand"]["kernel"], theirs["encoder1"]["expand"]["kernel"]
    )
    np.testing.assert_array_equal(half.extra["added"]["teacher"]["params"]["queries"], theirs["queries"])
    assert set(half.extra[QUANTIZATION]) == {"backbone"}


def test_the_second_stage_starts_from_the_first(stages, half):
    moved = jax.tree.map(lambda leaf: leaf + 1.0, half.params)
    state = stages["student"].init(jax.random.key(2), half.replace(params=moved))
    np.testing.assert_array_equal(state.params["detector"]["queries"], moved["detector"]["queries"])
    assert {"backbone", "encoder1", "decoder1"} <= set(state.extra[QUANTIZATION])
    scale = state.params["detector"]["decoder1"]["cross"]["mix"]["rectify_query"]["scale"]
    assert np.all(scale == scale[0]) and scale[0] != 1  # the spread of the float queries


@pytest.fixture(scope="module")
def batch():
    source = SCENES.source(image_size=32, seed=0)
    return {name: jnp.stack([source[i][name] for i in range(4)]) for name in source[0]}


@pytest.mark.slow
def test_a_run_of_all_stages_opens_as_a_detector(tmp_path):
    training.run(build(TINY), seed=0, workdir=tmp_path / "run", cadence=training.Cadence())
    bundle = inference.open_detector(tmp_path / "run")
    assert bundle.detector == dataclasses.replace(TINY.detector, num_classes=3)
    assert bundle.class_names == ("rectangle", "disc", "cross")
    image = np.zeros((40, 60, 3), np.uint8)
    found = inference.PhotoDetector(bundle, threshold=0.0, longest=64)([image])
    assert len(found[0].boxes) > 0 and found[0].landmarks is None


@pytest.mark.slow
def test_tau_1_is_no_distillation_bit_for_bit(batch):
    """Control of the specification, for every arm: what is distilled decides nothing else."""
    config = dataclasses.replace(TINY, detector=dataclasses.replace(TINY.detector, encoder_layers=0))
    states = {}
    for name, fields in {"without": {"distillation": 0.0}, "tau 1": {"tau": 1.0}}.items():
        first, student = build(dataclasses.replace(config, **fields))
        state = student.init(jax.random.key(1), first.init(jax.random.key(0), None))
        step = jax.jit(student.step)
        for _ in range(3):
            state, metrics = step(state, batch)
        states[name] = jax.tree.leaves(state.params["detector"])
        assert ("drd_loss" in metrics) == (name != "without")
        assert name != "tau 1" or metrics["drd_loss"] == metrics["distilled"] == 0
    for left, right in zip(states["without"], states["tau 1"], strict=True):
        np.testing.assert_array_equal(left, right)


def test_all_layers_or_the_last(batch):
    detector = Detr(num_classes=3, dim=8, heads=2, hidden=8, decoder_layers=2, queries=4)
    rows = {**batch, "image": batch["image"] / 127.5 - 1}
    params = init_variables(detector, jax.random.key(0), (32, 32))[0]
    other = init_variables(detector, jax.random.key(1), (32, 32))[0]
    values = {}

    @jax.jit
    def terms(params, other):
        trained = training_pass(detector, {"params": params}, rows, jax.random.key(0))
        for layers in ("last", "all"):
            config = dataclasses.replace(TINY, layers=layers, tau=0.0)
            values[layers] = QueryDistillation(detector, config)(
                {}, {"teacher": {"params": other}}, trained, rows
            )
        return values

    found = terms(params, other)
    assert found["last"][1]["drd_loss"] != found["all"][1]["drd_loss"] > 0
    np.testing.assert_allclose(found["last"][0], 2.5 * found["last"][1]["drd_loss"], rtol=1e-6)


def bundle(path, **fields):
    """A folder with a float detector of random weights."""
    names = fields.pop("class_names", ("rectangle", "disc", "cross"))
    detector = fields.pop("detector", None) or float_detector(TINY.detector, num_classes=len(names), **fields)
    params, extra = init_variables(detector, jax.random.key(0), (32, 32))
    made = inference.DetectorBundle(
        detector=detector, variables={"params": params, **extra}, image_size=32, class_names=names
    )
    inference.save_bundle(path, made)
    return str(path)


def test_a_finished_teacher(tmp_path):
    config = dataclasses.replace(TINY, teacher_run=bundle(tmp_path / "t"))
    first, student = build(config)
    state = student.init(jax.random.key(1), first.init(jax.random.key(0), None))
    opened = inference.open_detector(tmp_path / "t").variables["params"]
    np.testing.assert_array_equal(state.params["detector"]["queries"], opened["queries"])


def test_teachers_that_do_not_fit(tmp_path):
    for name, fields, message in (
        (
            "classes",
            {"class_names": ("a", "b", "c")},
            r"needs the classes of the data \(rectangle, disc, cross\), .* has a, b, c",
        ),
        ("width", {"dim": 12}, "needs dim 8, as the student's, .* has 12"),
        (
            "other",
            {"detector": RetinaFace(), "class_names": ("face",)},
            "needs a float DETR, .* has another detector",
        ),
    ):
        run = bundle(tmp_path / name, **fields)
        with pytest.raises(UserError, match=f"^teacher_run: {message}"):
            build(dataclasses.replace(TINY, teacher_run=run))


def test_more_objects_than_queries():
    scenes = dataclasses.replace(SCENES, objects=(1, 5), sizes=(6, 6))
    with pytest.raises(
        UserError, match=r"^detector.queries: needs at least the 5 objects of an image, got 4"
    ):
        build(dataclasses.replace(TINY, data=scenes))
