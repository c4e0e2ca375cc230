import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs, launch
from experiments.methods import coupleface
from experiments.recipes import recognition as recipe
from experiments.recipes.teachers import TeacherSpec
from experiments.studies import coupleface as studies
from jaxface import data, losses, models, training
from jaxface.errors import UserError
from jaxface.training import class_banks

# Plain gradient descent: Adam's division makes rounding errors of small gradients as large as steps.
SGD = training.Optimizer(learning_rate=0.05, schedule="constant", weight_decay=0.0)
TINY = dataclasses.replace(
    coupleface.Config.vectors(),
    data=data.Procedural(identities=130, per_identity=2, held_out_identities=4, held_out_per_identity=3),
    backbone="mlp_8",
    embedding=8,
    teacher=TeacherSpec(backbone="mlp_16", embedding=8, steps=2, optimizer=SGD),
    optimizer=SGD,
    batch_size=16,
    steps=3,
    neighbors=5,
)
ALONE = {"devices": jax.devices()[:1]}


def run(config, mode="jit", **how):
    """State after each stage, and the metrics of the run."""
    kept = {}

    def stages():
        for stage in coupleface.build(config):
            outcome = yield stage
            kept[stage.name] = jax.tree.map(
                lambda x: (
                    jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)
                ),
                outcome.state,
            )

    outcome = training.run(stages(), parallel=training.make_parallel(mode, **how))
    return kept, outcome.metrics


def images(source):
    pixels = np.stack([source[i]["image"] for i in range(len(source))])
    return (pixels.astype(np.float32) - 127.5) / 127.5


@pytest.fixture(scope="module")
def alone():
    return run(TINY, **ALONE)


def test_the_stages_are_prototypes_neighbors_and_a_student(alone):
    kept, metrics = alone
    assert list(kept) == ["teacher", "prototypes", "neighbors", "student"]
    split = recipe.load(TINY)
    model = recipe.network(TINY, backbone="mlp_16")
    embeddings = model.apply({"params": kept["teacher"].params["backbone"]}, images(split.train))
    # 260 images are 16.25 batches of 16: the last one runs over into images that were counted before.
    expected = class_banks.class_prototypes(embeddings, split.train.labels, 130)
    rows = training.prototype_rows(130)
    np.testing.assert_allclose(kept["neighbors"].extra["memory"][:130], expected, atol=1e-5)
    neighbors = kept["neighbors"].extra["neighbors"]
    assert neighbors.shape == (rows, 5) and neighbors.dtype == np.int32
    np.testing.assert_array_equal(neighbors[:130], class_banks.mine_neighbors(expected, 5))
    assert 0 <= metrics["student/verification/accuracy"] <= 1
    assert "prototypes" not in kept["student"].params and "projection" not in kept["student"].params


def test_the_memory_holds_the_newest_teacher_features(alone):
    kept, _ = alone
    before, after = (kept[name].extra for name in ("neighbors", "student"))
    batches = recipe.training_batches(TINY, recipe.load(TINY).train)()
    seen = [next(batches) for _ in range(3)]
    labels = np.concatenate([batch["label"] for batch in seen])
    model = recipe.network(TINY, backbone="mlp_16")
    pixels = (np.concatenate([batch["image"] for batch in seen]).astype(np.float32) - 127.5) / 127.5
    embeddings = model.apply({"params": kept["teacher"].params["backbone"]}, pixels)
    expected = class_banks.update_memory(before["memory"], embeddings, labels)
    np.testing.assert_allclose(after["memory"], expected, atol=1e-5)
    unseen = np.setdiff1d(np.arange(130), labels)
    np.testing.assert_array_equal(after["memory"][unseen], before["memory"][unseen])
    np.testing.assert_array_equal(after["neighbors"], before["neighbors"])
    jax.tree.map(
        np.testing.assert_array_equal, after["teacher"]["params"], kept["teacher"].params["backbone"]
    )


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"mode": "jit", "model_shards": 2}, id="mesh"),
        pytest.param({"mode": "pmap"}, id="pmap", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_are_one(alone, how):
    kept, _ = run(TINY, **how)
    for name, state in kept.items():
        want = alone[0][name]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
            (state.params, {k: v for k, v in state.extra.items() if k != "neighbors"}),
            (want.params, {k: v for k, v in want.extra.items() if k != "neighbors"}),
        )
    same = kept["student"].extra["neighbors"] == alone[0]["student"].extra["neighbors"]
    assert same.mean() > 0.99  # but for two that are equally near


def test_a_student_of_another_size_has_a_map_in_training_only():
    config = dataclasses.replace(TINY, embedding=6, classification_weight=0.1, memory="ema")
    kept, _ = run(config, **ALONE)
    params = kept["student"].params
    assert params["projection"].shape == (6, 8) and params["prototypes"].shape == (
        training.prototype_rows(130),
        6,
    )
    assert kept["student"].extra["memory"].shape[1] == 8


def test_the_loss_is_the_one_of_the_library(alone):
    config = dataclasses.replace(TINY, relation_weight=3.0, norm="l2")
    stage = coupleface.build(config)[-1]
    previous = alone[0]["neighbors"]  # the stages before the student do not depend on its loss
    state = jax.jit(stage.init)(jax.random.key(7), previous)
    batch = next(stage.batches(state))
    batch = {"image": (batch["image"].astype(np.float32) - 127.5) / 127.5, "label": batch["label"]}
    student, teacher = (
        recipe.network(config, backbone=name).apply({"params": backbone}, batch["image"])
        for name, backbone in (("mlp_8", state.params["backbone"]), ("mlp_16", previous.params["backbone"]))
    )
    memory, neighbors = (previous.extra[name] for name in ("memory", "neighbors"))
    relations = losses.mined_relations(student, teacher, batch["label"], memory, neighbors)
    expected, _ = losses.coupleface_loss(student, teacher, relations, relation_weight=3.0, norm="l2")
    _, metrics = jax.jit(stage.step)(state, batch)
    np.testing.assert_allclose(metrics["loss"], expected.mean(), rtol=1e-4)


@pytest.mark.parametrize("relations", ["random", "batch", "none"])
def test_controls(alone, relations):
    config = dataclasses.replace(TINY, relations=relations, steps=2)
    kept, metrics = run(config, **ALONE)
    assert np.isfinite(metrics["student/verification/accuracy"])
    if relations == "random":
        neighbors = kept["student"].extra["neighbors"][:130]
        assert (neighbors != alone[0]["neighbors"].extra["neighbors"][:130]).mean() > 0.8
        assert all(len(set(row)) == 5 and own not in row for own, row in enumerate(neighbors))
    else:
        assert list(kept) == ["teacher", "student"] and "memory" not in kept["student"].extra


def test_pairs_of_a_batch_are_those_of_all_replicas():
    student, teacher = (jax.random.normal(jax.random.key(i), (16, 4)) for i in range(2))

    def loss(scale, student, teacher):
        relations = coupleface.batch_relations(student * scale, teacher)
        return losses.relation_aware_loss(*relations, norm="l2").mean()

    scale = jnp.array([1.0, 0.5, 2.0, 1.0])
    expected = jax.value_and_grad(loss)(scale, student, teacher)
    parts = student.reshape(8, 2, 4), teacher.reshape(8, 2, 4)
    found = jax.pmap(jax.value_and_grad(loss), axis_name="data", in_axes=(None, 0, 0))(scale, *parts)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got.mean(axis=0), want, rtol=1e-4, atol=1e-6)


def test_people_that_are_known_are_classified_by_their_mean_embedding():
    config = dataclasses.replace(TINY, data=data.Digits(), neighbors=100, batch_size=64)
    kept, metrics = run(config, **ALONE)
    assert kept["student"].extra["neighbors"].shape == (10, 9)  # 100 asked for, 9 others there
    assert 0.1 < metrics["student/classification/accuracy"] <= 1
    judged = coupleface.build(config)[-1].evaluate
    assert isinstance(judged, coupleface.NearestMean)
    with_prototypes = dataclasses.replace(config, classification_weight=1.0)
    assert isinstance(coupleface.build(with_prototypes)[-1].evaluate, training.NearestPrototype)


def test_launched_on_images(tiny, tmp_path):
    flags = "--teacher.steps 2 --teacher.backbone mlp_16 --teacher.embedding 12 --neighbors 4"
    workdir = tmp_path / "run"
    launch.main(["coupleface", *tiny, *flags.split(), "--workdir", str(workdir)])
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.is_dir()) == [
        "00-teacher", "01-prototypes", "02-neighbors", "03-student",
    ]  # fmt: skip
    metrics = json.loads((workdir / "results.json").read_text())["metrics"]
    assert {"teacher/verification/accuracy", "student/verification/accuracy"} <= metrics.keys()
    rows = training.read_records(workdir / "metrics.jsonl")
    student = [row for row in rows if row["kind"] == "train" and "relation" in row]
    assert len(student) == 5
    for row in student:
        assert row["loss"] == pytest.approx(row["consistency"] + 5 * row["relation"], rel=1e-5)
    # The student is a network that other programs read; the finished teacher serves another student.
    backbone, _ = training.backbone_checkpoint(workdir)
    assert backbone
    again = ["--teacher.run", str(workdir), "--workdir", str(tmp_path / "again"), "--relations", "none"]
    launch.main(["coupleface", *tiny, *again])
    assert (tmp_path / "again" / "checkpoints" / "01-student").is_dir()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--neighbors 0", "neighbors: needs an integer from 1, got 0"),
        ("--relation-weight=-1", "relation_weight: needs a finite number from 0"),
        ("--classification-weight=-1", "classification_weight: needs a finite number from 0"),
        ("--memory-decay 1.5", "memory_decay: needs a number from 0 to 1"),
        ("--classification-weight 1 --head.scale 0", "scale: needs a finite number above 0"),
        ("--teacher.run nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(refusal, tiny, tmp_path, flags, words):
    arguments = ["coupleface", *tiny, "--workdir", str(tmp_path / "run"), *flags.split()]
    assert words in refusal(launch.main, arguments)


def test_data_that_has_no_relations_or_too_many_pairs(monkeypatch):
    split = recipe.load(TINY)
    few = data.Subset(split.train, np.flatnonzero(split.train.labels == 0))
    few.class_names = ["somebody"]
    monkeypatch.setattr(coupleface, "load", lambda config: split._replace(train=few))
    with pytest.raises(UserError, match=r"^data: relations need at least two people"):
        coupleface.build(TINY)
    monkeypatch.setattr(coupleface, "load", lambda config: split)
    monkeypatch.setattr(coupleface, "MOST_FOR_ALL", 11)
    with pytest.raises(UserError, match=r"^pairs: 'all' needs at most 11 records to verify, got 12"):
        coupleface.build(TINY)


def test_the_configuration_of_the_paper_survives_its_file():
    paper = coupleface.Config.paper()
    assert (paper.teacher.backbone, paper.backbone, paper.embedding) == ("iresnet100", "mobilefacenet", 512)
    assert (paper.neighbors, paper.batch_size, paper.relations, paper.memory) == (
        100,
        512,
        "mined",
        "replace",
    )
    rate = paper.optimizer.learning_rates(paper.steps)
    rates = [float(rate(step)) for step in (0, 99_999, 100_001, 140_001, 160_001)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.001, 0.0001], rtol=1e-5)
    for config in (paper, coupleface.Config.vectors(), coupleface.Config()):
        written = json.loads(json.dumps(configs.to_dict("coupleface", config, configs.Run())))
        assert configs.from_dict(written)[1] == config


def test_the_studies_are_runs():
    for study in studies.STUDIES.values():
        for overrides in study.arms.values():
            config = dataclasses.replace(study.base, **overrides)
            coupleface.check(config)
            assert config.teacher == study.base.teacher and config.data == study.base.data  # shared
        assert study.metric.startswith("student/verification/")


@pytest.mark.slow
def test_the_networks_of_the_paper_fit_together():
    faces = data.RenderedFaces(64, 8, held_out_identities=4, held_out_per_identity=2)
    config = dataclasses.replace(coupleface.Config.paper(), data=faces)
    state, counts = None, {}
    rng = jax.eval_shape(lambda: jax.random.key(0))
    image = jax.ShapeDtypeStruct((512, 112, 112, 3), jnp.float32)
    for stage in coupleface.build(config):
        state = jax.eval_shape(stage.init, rng, state)
        counts[stage.name] = models.parameter_count(state.params["backbone"])
        if stage.name == "neighbors":
            continue
        batch = {"image": image, "label": jax.ShapeDtypeStruct((512,), jnp.int32)}
        after, metrics = jax.eval_shape(stage.step, state, batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )
    assert (counts["teacher"], counts["student"]) == (65_156_160 - 512, 1_201_024)
    assert {"loss", "consistency", "relation"} <= metrics.keys()
    assert state.extra["neighbors"].shape == (64, 63) and state.extra["memory"].shape == (64, 512)
