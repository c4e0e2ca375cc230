"""PseCo as a method: its parts on a small detector, a run that resumes, the paper's numbers, and what is refused."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.methods import pseco
from jaxface import boxes, data, inference, losses, training
from jaxface.data.transforms.pixels import device_batch
from jaxface.errors import UserError
from jaxface.models.detection import FasterRCNN
from jaxface.models.detection.base import Detections
from jaxface.models.detection.faster_rcnn import RegionSample

SCENES = data.ObjectScenes(scenes=40, held_out_scenes=4)
TINY = pseco.Config(data=SCENES, percent=10.0, batch_size=5, steps=4, start_steps=0)


def lesson(**changes):
    config = dataclasses.replace(TINY, **changes)
    return pseco.Lesson(config, pseco.network(config, 1))


def shapes(detector, side, half=False):
    """Sides of the maps with anchors, of an image or of its second view."""
    image = jnp.zeros((1, side, side, 3))
    if half:
        image = losses.halve_nearest(image, multiple=detector.stride)
    maps, _ = jax.eval_shape(
        functools.partial(detector.module.init_with_output, method="pyramid"), jax.random.key(0), image
    )
    used = maps[detector.finer - 1 : -1] if half else detector.anchor_levels(maps)
    return [level.shape[1] for level in used]


def test_check_7_the_second_view_has_the_maps_of_the_first():
    paper = pseco.network(pseco.Config.paper(), 80)
    for side, expected in ((256, [32, 16, 8, 4, 2]), (96, [12, 6, 3, 2, 1])):
        assert shapes(paper, side) == expected == shapes(paper, side, half=True)
    small = pseco.network(TINY, 1)
    assert shapes(small, 32) == [8, 4] == shapes(small, 32, half=True)


def test_check_7_a_constant_image_has_the_same_maps_at_half_the_size():
    detector = pseco.network(TINY, 1)
    image = jnp.full((1, 128, 128, 3), 0.3)
    run = functools.partial(detector.module.apply, method="pyramid")
    variables = jax.jit(functools.partial(detector.module.init, method="pyramid"))(
        jax.random.key(0), image[:, :32, :32]
    )
    run = jax.jit(run)
    for whole, half in zip(
        run(variables, image), run(variables, losses.halve_nearest(image, multiple=8)), strict=True
    ):
        middles = [level[0, level.shape[1] // 2, level.shape[2] // 2] for level in (whole, half)]
        np.testing.assert_allclose(*middles, atol=1e-5)
        assert np.abs(middles[0]).max() > 1e-3


def test_batches_are_groups_of_one_image_with_labels_and_the_others():
    with_labels, without = lesson().split({"x": jnp.arange(10), "y": jnp.zeros((10, 2))})
    assert with_labels["x"].tolist() == [0, 5] and without["x"].tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
    assert without["y"].shape == (8, 2)


def found():
    """Pseudo boxes of one image: one box, four proposals, of which the last has left the view."""
    objects = jnp.array([[[0.0, 0, 10, 10], [0, 0, 1, 1]]])
    regions = jnp.array([[[0.0, 0, 10, 9], [0, 0, 10, 6], [0, 0, 10, 4], [0, 0, 0, 0]]])
    predicted = jnp.array([[[0.0, 0, 10, 5], [0, 0, 10, 10], [0, 0, 10, 9.5], [0, 0, 10, 10]]])
    batch = {
        "boxes": objects,
        "box_mask": jnp.array([[True, False]]),
        "box_label": jnp.zeros((1, 2), int),
        "box_crowd": jnp.zeros((1, 2), bool),
        "scores": jnp.array([[0.8, 0.0]]),
        "spread": jnp.array([[0.015, 1.0]]),
    }
    return pseco.PseudoBoxes(batch, regions, predicted, jnp.full((1, 4, 1), 0.9))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("predictions", [0, 1, 1, -1]),  # ⌊0.5 + 1 + 0.95 + 1⌋ = 3, of which one is gone
        ("overlap", [1, 1, 0, -1]),
        ("overlap_as_few", [1, 1, 0, -1]),
    ],
)
def test_who_finds_a_pseudo_box(rule, expected):
    assert jax.jit(lesson(assign=rule).assign)(found())[0].tolist() == expected


def test_as_few_overlaps_as_predictions_choose():
    pseudo = found()
    one = pseudo._replace(predicted=pseudo.predicted.at[0, 1:].set(0))  # one prediction is left, of half
    assert lesson(assign="overlap_as_few").assign(one)[0].tolist() == [1, 0, 0, -1]


def sampled():
    regions = found().regions[:, :3]
    return RegionSample(
        regions, jnp.array([[1, 1, 0]]), jnp.array([[1, 1, 0]]), jnp.zeros((1, 3, 4)), jnp.ones((1, 3), bool)
    )


@pytest.mark.parametrize("vote", ["agreement", "mean", "score"])
def test_votes_have_one_sum_and_background_has_none(vote):
    weights = jax.jit(lesson(vote=vote).weights)(sampled(), jnp.zeros((1, 3, 1, 4)), found().batch)
    assert float(weights.sum()) == pytest.approx(0.9 + 0.6, rel=1e-5)  # two proposals as they are: 0.75 each
    assert weights[0].tolist() == pytest.approx([0.75, 0.75, 0.0], rel=1e-5)
    assert lesson(vote="none").weights(sampled(), jnp.zeros((1, 3, 1, 4)), found().batch) is None


@pytest.mark.parametrize(("limit", "expected"), [(0.02, [1.0, 1.0, 0.0]), (0.01, [0.0, 0.0, 0.0])])
def test_a_box_counts_where_the_teacher_finds_it_again(limit, expected):
    weights = lesson(vote="steady", steady_below=limit).weights(
        sampled(), jnp.zeros((1, 3, 1, 4)), found().batch
    )
    assert weights[0].tolist() == expected


def records(config, count=1):
    split = data.load(config.data, image_size=config.image_size, seed=0)
    stream = pseco.streams(config, split)()
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


@pytest.fixture(scope="module")
def taught():
    """What a teacher of random weights says of four images whose two views are one."""
    plain = data.ViewSpec(scales=(1.0, 1.0), flip=0.0)
    taught = lesson(
        views=data.TeacherStudentViews(labeled=plain, weak=plain, strong=plain),
        threshold=0.0,
        vote="steady",
        second_view="none",
    )
    init = jax.jit(functools.partial(taught.detector.module.init, train=False))
    variables = init(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
    variables["params"]["class_logits"]["bias"] += 4.5
    _, batch = taught.split(device_batch(records(taught.config)[0]))
    return taught, variables, batch, jax.jit(taught.pseudo_boxes)(variables, batch, jax.random.key(2))


def test_pseudo_boxes_are_the_teacher_s_detections(taught):
    teaching, variables, batch, pseudo = taught
    detector = teaching.detector
    outputs = jax.jit(functools.partial(detector.module.apply, train=False))(variables, batch["image"])
    expected = detector.detect(outputs, (32, 32), valid_size=batch["image_size"])
    for i in range(4):
        mask, real = pseudo.batch["box_mask"][i], expected.valid[i]
        assert int(mask.sum()) == int(real.sum()) > 0
        np.testing.assert_allclose(pseudo.batch["boxes"][i][mask], expected.boxes[i][real], atol=1e-3)
    np.testing.assert_allclose(pseudo.regions, outputs["boxes"] * outputs["valid"][..., None], atol=1e-3)


def test_another_view_moves_all_of_it(taught):
    teaching, variables, batch, pseudo = taught
    matrix = jnp.tile(jnp.array([[0.5, 0, 0], [0, 0.5, 4], [0, 0, 1]]), (4, 1, 1))
    moved = jax.jit(teaching.pseudo_boxes)(variables, {**batch, "matrix": matrix}, jax.random.key(2))
    real = pseudo.regions[..., 2] > 0
    expected = boxes.transform_boxes(pseudo.regions, matrix, (32, 32))
    np.testing.assert_allclose(moved.regions[real], expected[real], atol=1e-3)
    mask = pseudo.batch["box_mask"]
    expected = boxes.transform_boxes(pseudo.batch["boxes"], matrix, (32, 32))
    np.testing.assert_allclose(moved.batch["boxes"][mask], expected[mask], atol=1e-3)


def test_how_far_the_teacher_s_boxes_spread(taught):
    """A head whose deltas are 0 finds the moved boxes themselves: the spread is that of the moves."""
    teaching, variables, batch, pseudo = taught
    real = pseudo.batch["box_mask"]
    assert (np.asarray(pseudo.batch["spread"])[real] > 0).all()
    still = {"params": {**variables["params"]}}
    head = still["params"]["box_deltas"]
    still["params"]["box_deltas"] = jax.tree.map(jnp.zeros_like, head)
    detections = Detections(
        jnp.array([[[8.0, 8, 24, 24]]] * 4),
        jnp.ones((4, 1)),
        jnp.zeros((4, 1), int),
        None,
        jnp.ones((4, 1), bool),
    )
    levels = jax.jit(functools.partial(teaching.detector.module.apply, method="pyramid"))(
        still, batch["image"]
    )
    args = teaching.detector.anchor_levels(levels), detections, batch["image_size"], jax.random.key(3)
    spread = teaching.spread(still, *args)
    moved = losses.jittered_boxes(jax.random.key(3), detections.boxes)
    np.testing.assert_allclose(spread, losses.relative_spread(moved), rtol=1e-4)
    assert 0.03 < float(spread.mean()) < 0.09


def test_the_paper_s_recipe():
    config = pseco.Config.paper()
    detector = pseco.network(config, 80)
    assert (config.percent, config.fold, config.unlabeled_ratio, config.batch_size) == (10.0, 1, 4, 40)
    assert (config.threshold, config.unlabeled_weight, config.momentum) == (0.5, 2.0, 0.999)
    assert (config.assign_iou, config.assign_top, config.vote_power) == (0.4, 12, 2.0)
    assert (config.assign, config.vote, config.second_view) == ("predictions", "agreement", "half")
    assert (config.steps, config.start_steps) == (180_000, 0)
    assert config.optimizer.name == "sgd" and config.optimizer.weight_decay == 1e-4
    rates = config.optimizer.learning_rates(config.steps)
    at = [float(rates(step)) for step in (500, 100_000, 119_999, 120_001)]
    assert at == pytest.approx([0.01, 0.01, 0.01, 0.001], rel=1e-3) and float(rates(0)) < 1e-4
    assert detector.level_strides == (4, 8, 16, 32, 64, 128) and detector.strides == (8, 16, 32, 64, 128)
    assert (detector.scales, detector.ratios, detector.per_cell) == ((4.0,), (0.5, 1.0, 2.0), 3)
    assert (detector.region_levels, detector.finest, detector.region_size) == (4, 56.0, 7)
    assert (detector.region_samples, detector.region_positives, detector.proposals) == (512, 0.25, 1000)
    assert detector.focal and detector.class_weight == 10.0 and detector.candidates[0] == 2000
    assert detector.caffe and detector.pixels == "caffe" and detector.frozen_norm
    strong = config.views.strong
    assert (strong.shift, strong.degrees, strong.erased, strong.erased_side) == (0.1, 30.0, (1, 4), 0.2)
    assert config.views.weak == data.ViewSpec(scales=(0.4, 1.2), flip=0.5)
    assert config.optimizer.frozen == ("trunk/stem", "trunk/stage1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"percent": 1.0}, "percent: needs at least 2.5 for one of 40 images to have labels, got 1"),
        ({"percent": 100.0}, "percent: needs less than 100"),
        ({"batch_size": 8}, "batch_size: needs a multiple of 5"),
        ({"data": data.Digits()}, "data: needs images with boxes"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        pseco.build(dataclasses.replace(TINY, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 3}, "init_from: needs a teacher of 1 classes, as the data have, got one of 3"),
        ({"scales": (2.0,)}, "init_from: needs a teacher with the anchors of the student"),
        ({"strides": (4,), "region_levels": 1}, "init_from: needs a teacher with the anchors of the student"),
    ],
)
def test_a_teacher_of_another_kind_is_refused(changes, message, monkeypatch):
    other = FasterRCNN.small(**{**pseco.SMALL, **changes})
    bundle = type("Bundle", (), {"detector": other})
    monkeypatch.setattr(inference, "open_detector", lambda path: bundle)
    with pytest.raises(UserError, match=message):
        pseco.build(dataclasses.replace(TINY, init_from="elsewhere"))


@pytest.fixture(scope="module")
def trained():
    """The stage with pseudo boxes, its compiled step, a state that is sure of what it sees, and batches."""
    config = dataclasses.replace(TINY, threshold=0.01)
    (stage,) = pseco.build(config)
    state = jax.jit(lambda key: stage.init(key, None))(jax.random.key(0))
    step = jax.jit(lambda state, batch: stage.step(state, device_batch(batch)))
    return stage, step, state, records(config, 3)


@pytest.mark.slow
def test_a_step_trains_the_student_and_copies_it_to_the_teacher(trained):
    stage, step, start, batches = trained
    state, metrics = step(start, batches[0])
    for student, teacher in zip(
        jax.tree.leaves(start.params), jax.tree.leaves(state.ema), strict=True
    ):  # check 6
        np.testing.assert_array_equal(student, teacher)
    assert all(np.isfinite(v) for v in metrics.values()) and float(metrics["gradient_norm"]) > 0
    expected = metrics["labeled_loss"] + 2.0 * metrics["unlabeled_loss"]
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert 0 <= float(metrics["pseudo_precision"]) <= 1 and 0 <= float(metrics["vote"]) <= 1
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start.params, state.params)
    assert all(distance > 0 for distance in jax.tree.leaves(moved))
    for batch in batches:
        state, _ = step(state, batch)
    assert step._cache_size() == 1  # no batch compiles the step again


@pytest.mark.slow
def test_training_resumes_bit_for_bit(trained):
    stage, step, state, _ = trained

    def run(state, stream, count):
        for _ in range(count):
            state, _ = step(state, next(stream))
        return state

    stream = stage.batches(state)
    whole = run(state, stream, 4)
    stream.close()
    first = stage.batches(state)
    middle = run(state, first, 2)
    second = stage.batches(state)
    second.set_state(first.get_state())
    resumed = run(middle, second, 2)
    for opened in (first, second):
        opened.close()
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_nothing_flows_into_the_teacher(trained):
    stage, _, state, batches = trained
    taught = pseco.Lesson(dataclasses.replace(TINY, threshold=0.01), pseco.network(TINY, 1))
    _, batch = taught.split(device_batch(batches[0]))
    gradient = jax.jit(
        jax.grad(
            lambda teacher: taught.unlabeled(
                {"params": state.params["detector"]}, {"params": teacher}, batch, jax.random.key(0)
            )[0]
        )
    )(state.params["detector"])
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_assignments_are_measured_with_moved_boxes():
    config = dataclasses.replace(
        pseco.Config.assignment(), data=SCENES, teacher_steps=40, student_steps=2, jitter=0.2, batch_size=8
    )
    first, second = pseco.build(config)
    state = first.init(jax.random.key(0), None)
    stream, step = first.batches(state), jax.jit(lambda s, b: first.step(s, device_batch(b)))
    for _ in range(40):
        state, _ = step(state, next(stream))
    stream.close()
    state = second.init(jax.random.key(1), state)
    threshold = training.AssignmentNoise(
        *(pseco.RetinaNet.small(widths=w) for w in ((16, 32, 32), (4, 8, 8))),
        data.load(SCENES, image_size=32, seed=0).held_out,
        jitter=0.2,
        score_threshold=0.05,
    )
    report = threshold(state)
    for rule in ("overlap", "predictions", "overlap_as_few"):
        assert 0 <= report[f"assignment/{rule}/precision"] <= 1
    assert report["assignment/overlap_as_few/positives"] <= report["assignment/predictions/positives"] + 1e-6
    assert report["assignment/overlap_as_few/positives"] <= report["assignment/overlap/positives"] + 1e-6
