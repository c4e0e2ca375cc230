import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments import configs, launch
from experiments.methods import rco
from experiments.recipes import recognition as recipe
from experiments.recipes.heads import HeadSpec
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from experiments.reproduce import sharing
from experiments.studies import rco as studies
from jaxface import data, losses, models, training
from jaxface.data.sources.bundled import ArraySource
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines

CLASSES = data.Procedural(
    identities=8, per_identity=12, held_out_identities=0, held_out_per_identity=4, groups=4
)
PEOPLE = data.Procedural(
    identities=8, per_identity=12, held_out_identities=6, held_out_per_identity=4, groups=2
)
TINY = rco.Config(
    data=CLASSES,
    augment=data.Augment(flip=0.0),
    backbone="mlp_4",
    embedding=8,
    form="logits",
    label_weight=0.5,
    teacher=TeacherSpec(backbone="mlp_16", embedding=8, steps=8),
    recorded=4,
    optimizer=training.Optimizer(learning_rate=0.05, schedule="cosine"),
    batch_size=16,
    steps=4,
    validation=0.2,
)
MIMIC = dataclasses.replace(TINY, data=PEOPLE, form="mimic", label_weight=0.0)
HINT = dataclasses.replace(TINY, form="hint", hint_layers=("hidden1", "hidden1"))


def changed(config=TINY, **fields):
    return dataclasses.replace(config, **fields)


@functools.cache
def run_once(config):
    """Outcomes on one device, for all tests that look at this configuration."""
    return run(config)


def run(config, **options):
    """Outcomes of all stages by name."""
    outcomes = {}

    def watched():
        stages, outcome = rco.build(config), None
        while True:
            try:
                stage = stages.send(outcome)
            except StopIteration:
                return
            outcome = yield stage
            outcomes[stage.name] = outcome

    training.run(watched(), seed=config.seed, **{"parallel": one_device(), **options})
    return outcomes


def one_device():
    return training.make_parallel(devices=jax.devices()[:1])


def plain(state):
    return jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


def names(config):
    return [name for name in run_once(config) if name.startswith("student")]


@pytest.mark.parametrize("by", ["hand", "the same loss"])
def test_one_anchor_is_plain_distillation(by):
    """Two plain stages give the same student: bit for bit with the same loss, up to rounding with one written by hand."""
    config = changed(anchors=1, recorded=1)
    split, _ = rco.set_aside(config, recipe.load(config))
    first, teacher = teacher_stage(config, config.teacher, split, prototypes=True)
    model = recipe.network(config)
    student = training.Recognizer(model, 8, (1, 96, 1))

    def loss(params, extra, batch, rng):
        embeddings, extra = student.train_embeddings(params, extra, batch["image"], rng)
        scores = cosines(embeddings, params["prototypes"][:8])
        soft = cosines(teacher.embeddings(extra, batch["image"]), extra["teacher"]["prototypes"][:8])
        value = losses.soft_target_loss(16 * scores, 16 * soft, temperature=4.0).mean()
        return value + 0.5 * config.head.build().loss(scores, batch["label"]).mean(), (extra, {})

    if by == "the same loss":
        recognition = recipe.Recognition(config, model, 8, (1, 96, 1), config.head.build())
        loss = rco.Distillation(config, recognition, teacher, None).objective
    objective = training.Objective(loss, config.optimizer.build(4))

    def init(rng, previous):
        params, extra = student.init(rng)
        return training.create_state(rng, params, objective, extra=teacher.installed(extra, previous))

    batches = recipe.training_batches(config, split.train)
    second = training.Stage(
        "student", init, training.gradient_step(objective), lambda state: batches(), steps=4
    )
    outcomes = run_once(config)
    assert list(outcomes) == ["teacher", "student"]
    plain_state = training.run([first, second], parallel=one_device()).state
    if by == "the same loss":
        equal(outcomes["student"].state, plain_state)
    else:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            outcomes["student"].state.params,
            plain_state.params,
        )


def test_one_anchor_again_and_again_without_a_restart_is_plain_distillation():
    repeated = run(changed(selection="final", anchors=3, restart=False, steps=7))
    single = run(changed(anchors=1, steps=7))
    assert list(repeated)[4:] == ["student1_on_8", "student2_on_8", "student"]
    equal(repeated["student"].state, single["student"].state)


@pytest.mark.slow
def test_recording_the_teacher_does_not_change_it():
    often, never = run(changed(recorded=8, anchors=1)), run_once(changed(recorded=1, anchors=1))
    assert [name for name in often if name.startswith("teacher")][:3] == [
        "teacher_1",
        "teacher_2",
        "teacher_3",
    ]
    equal(often["teacher"].state, never["teacher"].state)
    assert often["teacher"].metrics == never["teacher"].metrics


def test_every_anchor_starts_from_the_last_student_with_a_fresh_optimizer():
    stages = rco.build(TINY)
    outcome, anchors, before = None, [], None
    parallel = training.make_parallel(devices=jax.devices()[:1])
    rng, index = jax.random.key(5), 0
    while True:
        try:
            stage = stages.send(outcome)
        except StopIteration:
            break
        init = stage.init if not stage.compile_init else jax.jit(stage.init)
        state = init(jax.random.fold_in(rng, index), before)
        if stage.name.startswith("student"):
            jax.tree.map(
                np.testing.assert_array_equal,
                state.extra["teacher"]["params"],
                anchors[index - 4].params["backbone"],
            )
            assert state.step == 0 and all((x == 0).all() for x in jax.tree.leaves(state.opt_state))
            if index > 4:
                jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
                assert any((x != 0).any() for x in jax.tree.leaves(before.opt_state))
        state = parallel.create(lambda rng, previous, s=state: s, rng, None, rules={}, compiled=False)
        batches, step = stage.batches(state), parallel.compile(stage.step)
        for _ in range(stage.steps):
            state, _ = step(state, next(batches))
        anchors.append(plain(state)) if index < 4 else None
        before = state
        metrics = {} if stage.evaluate is None else stage.evaluate(state)
        outcome, index = training.Outcome(stage.name, state, metrics), index + 1
    assert index == 8


def test_the_student_sees_new_data_on_every_anchor():
    offsets = []
    stages, outcome = rco.build(TINY), None
    for _ in range(4):
        stage = stages.send(outcome)
        outcome = training.run([training.Stage(stage.name, init=lambda rng, previous: rco_state())])
        offsets.append(stage.batches(None).get_state()["step"])
    assert offsets == [0, 2, 4, 6]


def rco_state():
    params, extra = training.Recognizer(models.create("mlp_16", embedding=8), 8, (1, 96, 1)).init(
        jax.random.key(0)
    )
    return training.create_state(jax.random.key(0), params, extra=extra)


@pytest.mark.parametrize("restart", [True, False])
def test_walking_the_route_compiles_each_step_once(monkeypatch, restart):
    traced, make = [], training.gradient_step

    def counting(*arguments, **options):
        step = make(*arguments, **options)

        def traces(state, batch):
            traced.append("teacher" if "teacher" not in state.extra else "student")
            return step(state, batch)

        return traces

    monkeypatch.setattr(training, "gradient_step", counting)
    stages = rco.build(changed(restart=restart))
    traced.clear()  # of the shapes that `build` asked for
    training.run(stages, parallel=one_device())
    assert traced == ["teacher", "student"]


def test_anchors_are_exchanged_at_equal_intervals_of_one_run():
    outcomes = run(changed(restart=False, steps=6))
    students = [outcome.state for name, outcome in outcomes.items() if name.startswith("student")]
    assert [int(state.step) for state in students] == [2, 3, 5, 6]
    for student, (_, teacher) in zip(students, list(outcomes.items())[:4], strict=True):
        jax.tree.map(
            np.testing.assert_array_equal,
            student.extra["teacher"]["params"],
            teacher.state.params["backbone"],
        )


def test_a_search_follows_the_ratios_that_it_reports():
    assert names(changed(selection="greedy", threshold=1e6)) == ["student1_on_2", "student"]
    outcomes = run_once(changed(selection="greedy", threshold=1e-6))
    assert [n for n in outcomes if n.startswith("student")] == [
        "student1_on_2",
        "student2_on_4",
        "student3_on_6",
        "student",
    ]
    first = outcomes["student1_on_2"].metrics
    assert first["ratio/2"] == pytest.approx(1.0)
    for step in (4, 6, 8):
        assert first[f"ratio/{step}"] == pytest.approx(
            first[f"hardness/{step}"] / first["hardness/2"], rel=1e-5
        )
    assert set(outcomes["student"].metrics) >= {"congruence", "hardness/8", "ratio/8"}
    # A threshold between two ratios of the first row decides where the second stage goes.
    ratios = [first[f"ratio/{step}"] for step in (2, 4, 6, 8)]
    threshold = sorted(ratios[1:])[1]
    index = training.greedy_next_anchor(ratios, 0, threshold)
    after = names(changed(selection="greedy", threshold=threshold))[1]
    assert after == ("student" if index == 3 else f"student2_on_{(2, 4, 6, 8)[index]}")


def test_nobody_learns_from_the_images_that_are_set_aside():
    split, aside = rco.set_aside(TINY, recipe.load(TINY))
    assert len(aside) == 19 and len(split.train) == 77
    seen = {split.train[i]["image"].tobytes() for i in range(77)}
    assert not seen & {aside[i]["image"].tobytes() for i in range(19)}


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, MIMIC, HINT], ids=["logits", "mimic", "hint"])
def test_eight_devices_equal_one(config):
    config = changed(config, selection="greedy", threshold=1e6)
    one = jax.device_get(run_once(config)["student"].state.params)
    for mode in ("jit", "pmap"):
        state = run(config, parallel=training.make_parallel(mode))["student"].state
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-4, atol=5e-5),
            jax.device_get(state.params),
            one,
        )


def test_unseen_people_are_identified_in_an_open_set():
    metrics = run_once(changed(MIMIC, anchors=1))["student"].metrics
    assert {"verification/accuracy", "identification/rank1", "identification/distractor_rank1@10"} <= set(
        metrics
    )


def test_a_mimic_without_labels_has_no_prototypes_and_a_hint_has_a_regressor():
    assert set(run_once(changed(MIMIC, anchors=1))["student"].state.params) == {"backbone"}
    params = run(changed(HINT, anchors=1))["student"].state.params
    assert params["regressor"]["kernel"].shape == (4, 16)
    assert set(params) == {"backbone", "prototypes", "regressor"}


@pytest.mark.slow
def test_a_search_resumes_where_it_was_stopped(tmp_path):
    config = changed(MIMIC, selection="greedy", threshold=1e-6)
    whole = training.run(rco.build(config), workdir=tmp_path / "whole", parallel=one_device())

    class Stop(Exception):
        pass

    def stopping():
        stages, outcome = rco.build(config), None
        while True:
            stage = stages.send(outcome)
            if stage.name.startswith("student3"):
                raise Stop
            outcome = yield stage

    with pytest.raises(Stop):
        training.run(stopping(), workdir=tmp_path / "cut", parallel=one_device())
    resumed = training.run(rco.build(config), workdir=tmp_path / "cut", parallel=one_device())
    equal(resumed.state, whole.state)
    assert resumed.metrics == whole.metrics


@pytest.mark.slow
def test_the_route_of_an_earlier_run(tmp_path, refusal):
    text = """--data procedural --data.identities 8 --data.per-identity 12 --data.held-out-identities 6
        --data.held-out-per-identity 4 --data.groups 2 --augment.flip 0 --embedding 8 --batch-size 16 --quiet"""
    flags = text.split()
    earlier = str(tmp_path / "earlier")
    launch.main(
        ["sface", *flags, "--backbone", "mlp_16", "--steps", "6", "--workdir", earlier]
        + ["--cadence.checkpoint-every", "2", "--cadence.keep", "9"]
    )
    mine = ["rco", *flags, "--backbone", "mlp_4", "--steps", "3", "--teacher.run", earlier]
    launch.main([*mine, "--anchors", "2", "--workdir", str(tmp_path / "rco")])
    rows = training.read_records(tmp_path / "rco" / "metrics.jsonl")
    assert list(dict.fromkeys(row["stage"] for row in rows)) == ["student1_on_4", "student"]
    anchor = training.run_anchors(earlier)[1].load()
    saved = training.restore_params(tmp_path / "rco/checkpoints/00-student1_on_4")["extra"]["teacher"]
    jax.tree.map(np.testing.assert_array_equal, saved["params"], anchor.params["backbone"])
    assert "anchors: needs an integer from 1 to 3, got 4" in refusal(launch.main, mine)
    assert "given: the teacher is recorded at steps 2, 4, 6, got 3" in refusal(
        launch.main, [*mine, "--selection", "given", "--given", "3"]
    )


@pytest.mark.slow
def test_batch_statistics_of_anchors_stay_and_those_of_the_student_go_on():
    config = rco.Config(
        data=data.RenderedFaces(4, 8, held_out_identities=3, held_out_per_identity=2),
        image_size=16,
        embedding=8,
        backbone="iresnet_pico",
        teacher=TeacherSpec(backbone="iresnet_pico", embedding=8, steps=4),
        recorded=2,
        anchors=2,
        batch_size=8,
        steps=2,
        validation=0.0,
    )
    outcomes = run(config)
    assert list(outcomes) == ["teacher_2", "teacher", "student1_on_2", "student"]
    for student, teacher in (("student1_on_2", "teacher_2"), ("student", "teacher")):
        installed, state = outcomes[student].state.extra["teacher"], outcomes[teacher].state
        jax.tree.map(np.testing.assert_array_equal, installed["params"], state.params["backbone"])
        jax.tree.map(np.testing.assert_array_equal, installed["batch_stats"], state.extra["batch_stats"])
    assert "congruence" not in outcomes["student"].metrics


@pytest.mark.slow
def test_the_default_run_through_the_launcher(tmp_path):
    text = """--data rendered --data.identities 8 --data.per-identity 8 --data.held-out-identities 6
        --data.held-out-per-identity 4 --image-size 16 --backbone mlp_8 --teacher.backbone mlp_16 --teacher.steps 8
        --batch-size 16 --steps 2 --embedding 16 --teacher.embedding 16 --quiet"""
    launch.main(["rco", *text.split(), "--workdir", str(tmp_path)])
    rows = training.read_records(tmp_path / "metrics.jsonl")
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    assert stages[-4:] == ["student1_on_2", "student2_on_4", "student3_on_6", "student"] and len(stages) == 12
    assert (tmp_path / "results.json").is_file() and (tmp_path / "roc.png").is_file()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"temperature": 0.0}, "temperature: needs a finite number above 0"),
        ({"threshold": 0.0}, "threshold: needs a finite number above 0"),
        ({"weight": -1.0}, "weight: needs a finite number from 0"),
        ({"label_weight": -1.0}, "label_weight: needs a finite number from 0"),
        ({"weight": 0.0, "label_weight": 0.0}, "weight: needs a positive number"),
        ({"head": HeadSpec(scale=0.0)}, "scale: needs a finite number above 0"),
        ({"validation": 1.0}, "validation: needs a number from 0 and below 1"),
        ({"selection": "greedy", "restart": False}, "restart: greedy search needs a run for every anchor"),
        ({"selection": "greedy", "validation": 0.0}, "validation: greedy search needs images"),
        ({"selection": "given"}, "given: needs at least one anchor, got none"),
        ({"selection": "given", "given": (4, 2)}, "given: needs increasing steps"),
        ({"form": "hint", "label_weight": 0.0}, "label_weight: needs a positive number, layers behind"),
        ({"form": "mimic", "embedding": None}, "embedding: needs a size"),
        ({"form": "hint"}, "hint_layers: needs a layer of the student and one of the teacher"),
        ({"anchors": 0}, "anchors: needs an integer from 1"),
        ({"steps": 0}, "steps: needs an integer from 1"),
    ],
)
def test_what_is_refused_before_data_is_opened(monkeypatch, wrong, words):
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("the data was opened"))
    with pytest.raises(UserError, match=words) as caught:
        configs.build("rco", changed(**wrong))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"anchors": 5}, "anchors: needs an integer from 1 to 4, got 5"),
        ({"anchors": 3, "restart": False, "steps": 2}, "anchors: needs an integer from 1 to 2, got 3"),
        ({"recorded": 9}, "recorded: needs a number from 1 to the teacher's 8 steps, got 9"),
        ({"recorded": 0}, "recorded: needs a number"),
        ({"recorded_at": (2, 6)}, "recorded_at: needs to end at the teacher's last step, 8, got 6"),
        ({"recorded_at": (4, 4, 8)}, "recorded_at: needs increasing steps"),
        (
            {"selection": "given", "given": (3, 8)},
            "given: the teacher is recorded at steps 2, 4, 6, 8, got 3",
        ),
        ({"validation": 0.001}, "validation: needs a fraction that sets some of the 96 images aside"),
        ({"form": "mimic", "label_weight": 0.0}, "label_weight: needs a positive number where the classes"),
        ({"form": "mimic", "embedding": 4}, "teacher.embedding: needs 4"),
        (
            {"form": "hint", "hint_layers": ("hidden7", "hidden1")},
            "layer: MLP has head_dense, hidden1, got 'hidden7'",
        ),
        (
            {"form": "hint", "hint_layers": ("hidden1", "hidden7")},
            "layer: MLP has head_dense, hidden1, got 'hidden7'",
        ),
    ],
)
def test_what_is_refused_before_the_teacher_trains(wrong, words):
    with pytest.raises(UserError, match=words) as caught:
        configs.build("rco", changed(**wrong))
    assert "\n" not in str(caught.value)


def test_hints_of_different_planes_are_refused():
    faces = data.RenderedFaces(4, 8, held_out_identities=3, held_out_per_identity=2)
    config = changed(
        HINT,
        data=faces,
        image_size=16,
        backbone="iresnet_pico",
        hint_layers=("stage1_block1", "stage2_block1"),
    )
    config = changed(config, teacher=dataclasses.replace(config.teacher, backbone="iresnet_pico"))
    with pytest.raises(UserError, match="hint_layers: need planes of one size, got 4 x 4 and 2 x 2"):
        rco.build(config)


def test_the_networks_of_the_paper():
    """With 100 classes in a linear layer: MobileNetV2 of half width, and ResNet-50 behind a plain stem."""
    config = rco.Config.paper()
    teacher = rco.network(config, backbone=config.teacher.backbone, embedding=config.teacher.embedding)
    for network, published in ((rco.network(config), 812_836), (teacher, 23_705_252)):
        recognizer = training.Recognizer(network, 100, (32, 32, 3), linear=True)
        assert models.parameter_count(jax.eval_shape(recognizer.init, jax.random.key(0))[0]) == published
    assert config.augment == data.Augment(flip=0.5, shift=4)
    assert config.head == config.teacher.head == HeadSpec(loss="linear")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "faces"])
def test_whole_configurations_survive_being_written(preset, monkeypatch):
    config = getattr(rco.Config, preset)()
    assert configs.from_dict(configs.to_dict("rco", config, configs.Run()))[1] == config
    side = config.image_size
    labels = np.arange(600, dtype=np.int32) % 100
    source = ArraySource(np.zeros((600, side, side, 3), np.uint8), labels, [str(i) for i in range(100)])
    protocol = "verification" if preset == "faces" else "classification"
    monkeypatch.setattr(data, "load", lambda *_, **__: data.Split(source, source, "made up", protocol))
    stages = rco.build(config)  # traces the student's whole step
    first = next(stages)
    if preset == "paper":
        assert first.name == "teacher_46860" and first.steps == 60 * (50_000 // 64)
        rate = config.optimizer.learning_rates(config.steps)
        rates = [float(rate(epoch * 781)) for epoch in (0, 151, 181, 211)]
        np.testing.assert_allclose(rates, [1e-2, 1e-3, 1e-4, 1e-5], rtol=1e-5)
    else:
        assert first.name == "teacher_45000"


@pytest.mark.slow
def test_earlier_anchors_are_easier_to_imitate():
    """The paper's premise: along the route both the loss that remains and the hardness for the first student grow."""
    study, done = studies.STUDIES["premise"], []
    first, *_, last = study.arms.values()
    left = [
        training.run(sharing(rco.build(config), study.shared, done), seed=config.seed).metrics
        for config in (
            dataclasses.replace(study.base, **fields, seed=1, data_seed=1) for fields in (first, last)
        )
    ]
    assert left[1]["student/congruence"] > 1.2 * left[0]["student/congruence"]
    row = [left[0][f"student/ratio/{step}"] for step in study.base.recorded_at]
    assert row == sorted(row) and row[0] == 1 and row[-1] > 1.1
