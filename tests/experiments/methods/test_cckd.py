import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs, launch, reproduce
from experiments.methods import cckd
from experiments.recipes.teachers import TeacherSpec
from jaxface import data, losses, models, training
from jaxface.errors import UserError

FACES = data.Procedural(identities=24, per_identity=8, held_out_identities=10, groups=4)
SMALL = dataclasses.replace(
    cckd.Config.procedural(),
    data=FACES,
    backbone="mlp_8",
    embedding=16,
    teacher=TeacherSpec(backbone="mlp_16", embedding=16, steps=2),
    sampler="class",
    batch_size=16,
    steps=3,
)
DIGITS = dataclasses.replace(
    cckd.Config.digits(),
    teacher=dataclasses.replace(cckd.Config.digits().teacher, steps=2),
    batch_size=16,
    steps=3,
)
SOFT = dict(soft_target_weight=1.0, label_weight=0.5)


@pytest.fixture
def orders(monkeypatch):
    """The strategies that the input pipeline was given, in order."""
    asked = []
    make = data.batches

    def batches(source, **arguments):
        asked.append(arguments.get("order"))
        return make(source, **arguments)

    monkeypatch.setattr(data, "batches", batches)
    return asked


def taught(config):
    """(student's stage, teacher's outcome, student's first state) of a configuration."""
    first, student = cckd.build(config)
    outcome = training.run([first], parallel=training.make_parallel(devices=jax.devices()[:1]))
    return student, outcome, jax.jit(student.init)(jax.random.key(1), outcome.state)


def pixels(batch):
    return (batch["image"].astype(np.float32) - 127.5) / 127.5


def embeddings(config, backbone, state_params, batch, size):
    model = cckd.network(config, backbone=backbone, embedding=size)
    return model.apply({"params": state_params}, pixels(batch))


@pytest.mark.parametrize("kernel", ["rbf_taylor", "mmd"])
def test_recognition_is_mimic_and_congruence(kernel):
    config = dataclasses.replace(SMALL, kernel=kernel, mimic_weight=0.7, congruence_weight=3.0)
    stage, teacher, state = taught(config)
    assert set(state.params) == {"backbone"}  # nobody asks for classes
    batch = next(stage.batches(state))
    assert (np.unique(batch["label"], return_counts=True)[1] == 4).all()
    own = embeddings(config, "mlp_8", state.params["backbone"], batch, 16)
    theirs = embeddings(config, "mlp_16", teacher.state.params["backbone"], batch, 16)
    congruence = losses.correlation_congruence_loss(own, theirs, kernel=kernel)
    mimic = losses.mimic_loss(own, theirs).mean()
    after, report = jax.jit(stage.step)(state, {"image": pixels(batch), "label": batch["label"]})
    np.testing.assert_allclose(report["congruence_loss"], congruence, rtol=1e-4)
    np.testing.assert_allclose(report["mimic_loss"], mimic, rtol=1e-4)
    np.testing.assert_allclose(report["loss"], 0.7 * mimic + 3.0 * congruence, rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, after.extra["teacher"], state.extra["teacher"])


def test_classification_is_the_loss_of_the_library():
    config = dataclasses.replace(DIGITS, label_weight=0.3, soft_target_weight=0.7, congruence_weight=10.0)
    stage, teacher, state = taught(config)
    batch = next(stage.batches(state))
    own = embeddings(config, "mlp_8", state.params["backbone"], batch, 32)
    theirs = embeddings(config, "mlp_256x256", teacher.state.params["backbone"], batch, 32)

    def logits(x, prototypes):
        unit = [y / np.linalg.norm(y, axis=1, keepdims=True) for y in (x, prototypes)]
        return jnp.asarray(16.0 * unit[0] @ unit[1].T, jnp.float32)

    student = logits(own, state.params["prototypes"])
    answers = logits(theirs, teacher.state.params["prototypes"])
    terms = {
        "label_loss": losses.cross_entropy(student, batch["label"]).mean(),
        "soft_target_loss": losses.soft_target_loss(student, answers).mean(),
        "congruence_loss": losses.correlation_congruence_loss(own, theirs),
    }
    _, report = jax.jit(stage.step)(state, {"image": pixels(batch), "label": batch["label"]})
    np.testing.assert_allclose(report["loss"], np.dot([0.3, 0.7, 10.0], list(terms.values())), rtol=1e-4)
    for name, term in terms.items():
        np.testing.assert_allclose(report[name], term, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [SOFT, {"kernel": "mmd", "sampler": "superclass"}])
def test_devices_share_the_batch_and_its_relations(changes):
    """One device, a mesh of 8 and 8 replicas take the same steps: the relations are those between all records of the batch."""
    config = dataclasses.replace(SMALL, **changes, superclasses=3, congruence_weight=30.0)
    done, states, scores = [], [], []
    for parallel in (
        training.make_parallel(devices=jax.devices()[:1]),
        training.make_parallel("jit", model_shards=2),
        training.make_parallel("pmap"),
    ):
        outcome = training.run(reproduce.sharing(cckd.build(config), 1, done), parallel=parallel)
        states.append(jax.tree.map(np.asarray, outcome.state.params))
        scores.append(outcome.metrics["student/congruence/error"])
    for other in states[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), states[0], other)
    np.testing.assert_allclose(scores, scores[0], rtol=1e-2)


def test_superclasses_come_from_the_teacher(orders):
    config = dataclasses.replace(
        SMALL,
        sampler="superclass",
        superclasses=4,
        data=dataclasses.replace(FACES, noise=0.2),
        teacher=dataclasses.replace(SMALL.teacher, backbone="mlp_64", steps=150),
    )
    stage, teacher, state = taught(config)
    one, two = (next(stage.batches(state)) for _ in range(2))
    np.testing.assert_array_equal(
        one["image"], two["image"]
    )  # a function of the state, as a resumed run needs
    assert orders[-1].name == "superclass-uniform, 4 of a class, 4 superclasses"
    # Person i is made in group i mod 4, and the teacher sees that.
    split = data.load(config.data)
    answer = training.Teacher(cckd.network(config, backbone="mlp_64", embedding=16))
    groups = cckd.superclasses(config, split.train, answer, answer.installed({}, teacher.state))
    made = np.arange(24) % 4
    majority = sum(np.bincount(made[groups == g], minlength=4).max() for g in range(4))
    assert majority >= 17  # 11 by chance
    untaught = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, steps=1))
    stage, _, other = taught(untaught)
    assert (next(stage.batches(other))["image"] != one["image"]).any()


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [("uniform", type(None)), ("class", data.ClassUniform), ("superclass", data.SuperclassUniform)],
)
def test_samplers(orders, sampler, kind):
    _, stage = cckd.build(dataclasses.replace(SMALL, sampler=sampler))
    assert type(orders[-1]) is kind
    assert all(order is None for order in orders[:1])  # the teacher's batches are anybody's


def test_sizes_may_differ():
    config = dataclasses.replace(SMALL, embedding=8)
    stage, _, state = taught(config)
    assert state.params["projection"]["kernel"].shape == (8, 16)
    batch = next(stage.batches(state))
    after, report = jax.jit(stage.step)(state, {"image": pixels(batch), "label": batch["label"]})
    assert np.isfinite(report["loss"])
    assert (after.params["projection"]["kernel"] != state.params["projection"]["kernel"]).any()
    for changes in ({"mimic_weight": 0.0, "label_weight": 1.0}, {"mimic_weight": 0.0}):
        _, _, state = taught(dataclasses.replace(config, **changes))
        assert "projection" not in state.params


@pytest.mark.slow
def test_congruence_makes_relations_congruent():
    """Between unseen records too they are nearer to the teacher's than labels alone make them."""
    config = dataclasses.replace(
        DIGITS,
        temperature=1.0,
        batch_size=64,
        steps=250,
        teacher=dataclasses.replace(DIGITS.teacher, steps=150),
    )
    done, errors = [], []
    for weight in (0.0, 100.0):
        stages = cckd.build(dataclasses.replace(config, congruence_weight=weight))
        metrics = training.run(reproduce.sharing(stages, 1, done)).metrics
        errors.append(metrics["student/congruence/error"])
    assert errors[1] < 0.5 * errors[0], errors


@pytest.mark.parametrize(
    ("flags", "protocol"),
    [
        pytest.param(
            "--preset procedural --data.identities 12 --data.held-out-identities 6 --data.groups 3",
            "verification",
            marks=pytest.mark.slow,
        ),
        ("--preset digits", "classification"),
        pytest.param(
            "--data rendered --data.identities 6 --data.per-identity 4 --data.held-out-identities 4"
            " --data.held-out-per-identity 4 --image-size 16 --backbone mlp_8 --teacher.backbone mlp_8 --embedding 16",
            "verification",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_presets_run(tmp_path, flags, protocol):
    more = "--teacher.steps 2 --steps 2 --batch-size 16 --quiet --cadence.log-every 1"
    launch.main(["cckd", *flags.split(), *more.split(), "--workdir", str(tmp_path / "run")])
    found = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert 0 <= found[f"student/{protocol}/accuracy"] <= 1
    assert 0 < found["student/congruence/error"] < 4 and "student/verification/auc" in found


@pytest.mark.slow
def test_photographs_run(photographs, tmp_path):
    flags = f"""--data folder --data.root {photographs} --data.held-out 0.34 --image-size 16 --backbone mlp_8
        --teacher.backbone mlp_8 --embedding 8 --teacher.embedding 8 --teacher.steps 1 --steps 1 --batch-size 8 --per-class 2
        --soft-target-weight 1 --sampler superclass --superclasses 2 --quiet"""
    launch.main(["cckd", *flags.split(), "--workdir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "roc.png").exists() or list((tmp_path / "run").rglob("*.png"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--gamma 0", "gamma: needs a finite number above 0, got 0"),
        ("--order 0", "order: needs an integer from 1, got 0"),
        ("--kernel laplace", "--kernel"),
        ("--temperature 0", "temperature: needs a finite number above 0"),
        ("--mimic-weight -1", "mimic_weight: needs a finite number from 0"),
        ("--congruence-weight nan", "congruence_weight: needs a finite number from 0, got nan"),
        ("--mimic-weight 0 --congruence-weight 0", "congruence_weight: needs a positive weight"),
        ("--head.scale 0", "scale: needs a finite number above 0"),
        ("--batch-size 1 --sampler uniform", "batch_size: "),
        ("--batch-size 64 --per-class 3", "per_class: needs a divisor of the batch of 64, got 3"),
        (
            "--batch-size 160 --per-class 4",
            "per_class: needs at least 7 to fill a batch of 160 from 24 classes, got 4",
        ),
        (
            "--sampler superclass --superclasses 25",
            "superclasses: needs a number from 1 to the 24 classes, got 25",
        ),
        ("--sampler superclass --per-class 0", "per_class: needs an integer from 1, got 0"),
        ("--data digits --image-size 8", "soft_target_weight: needs to be positive (or label_weight)"),
        ("--teacher.run {tmp}/none", "none"),
    ],
)
def test_refusals_before_anything_is_compiled(refusal, tmp_path, flags, words):
    fixed = "cckd --preset procedural --data.identities 24 --data.per-identity 8 --quiet --workdir"
    if "--data digits" in flags:
        fixed = "cckd --preset procedural --quiet --workdir"
    if "--sampler" not in flags:
        fixed = fixed.replace("--quiet", "--sampler class --quiet")
    said = refusal(launch.main, [*fixed.split(), tmp_path / "run", *flags.format(tmp=tmp_path).split()])
    assert words in said


def test_a_finished_run_teaches_and_its_classes_are_checked(finished):
    """The run of the session has 8 classes and prototypes."""
    faces = data.RenderedFaces(8, 4, held_out_identities=6, held_out_per_identity=4)
    config = dataclasses.replace(
        SMALL, data=faces, image_size=16, teacher=TeacherSpec(run=str(finished)), sampler="uniform", **SOFT
    )
    outcome = training.run(cckd.build(config))
    assert np.isfinite(outcome.metrics["student/congruence/error"])
    more = dataclasses.replace(config, data=dataclasses.replace(faces, identities=9))
    with pytest.raises(UserError, match=r"teacher\.run: needs the 9 classes"):
        cckd.build(more)


def test_batches_of_one_are_refused():
    with pytest.raises(UserError, match="batch_size: needs at least 2"):
        cckd.build(dataclasses.replace(SMALL, batch_size=1))
    with pytest.raises(UserError, match="accumulate: needs at least 2 images at a time to relate them"):
        cckd.build(dataclasses.replace(SMALL, accumulate=16))


@pytest.mark.slow
def test_the_configuration_of_the_papers_face_teacher():
    """iResNet-50 as published, 43,590,848 parameters with the last scale that is fixed at 1."""
    network = cckd.network(cckd.Config.paper(), backbone="iresnet50", embedding=512)
    shapes = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, train=False), jnp.zeros((1, 112, 112, 3))
    )
    assert models.parameter_count(shapes) + 512 == 43_590_848


@pytest.mark.parametrize(
    "teacher", ["cifar_resnet20", pytest.param("cifar_resnet110", marks=pytest.mark.slow)]
)
def test_the_configuration_of_cifar100(monkeypatch, teacher):
    """Parameter counts of RepDistiller's networks with 100 classes, and congruence of the pooled 64 features."""
    config = cckd.Config.cifar100()
    written = json.loads(json.dumps(configs.to_dict("cckd", config, configs.Run())))
    assert configs.from_dict(written)[1] == config and config.teacher.backbone == "cifar_resnet110"
    config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, backbone=teacher))
    labels = np.arange(600, dtype=np.int32) % 100
    source = data.ArraySource(np.zeros((600, 32, 32, 3), np.uint8), labels, [str(i) for i in range(100)])
    monkeypatch.setattr(
        data, "load", lambda *_, **__: data.Split(source, source, "made up", "classification")
    )
    first, student = cckd.build(config)
    state = jax.eval_shape(first.init, jax.random.key(0), None)
    published = {"cifar_resnet20": 275_572, "cifar_resnet110": 1_733_812}
    assert models.parameter_count(state.params) == published[teacher]
    state = jax.eval_shape(student.init, jax.random.key(0), state)
    assert models.parameter_count(state.params) == 275_572
    assert state.params["prototypes"].shape == (100, 64)
    batch = {
        "image": jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((64,), jnp.int32),
    }
    _, report = jax.eval_shape(student.step, state, batch)
    assert {"congruence_loss", "soft_target_loss", "accuracy"} <= report.keys()
    rates = [
        float(config.optimizer.learning_rates(config.steps)(epoch * 781)) for epoch in (0, 151, 181, 211)
    ]
    np.testing.assert_allclose(rates, [5e-2, 5e-3, 5e-4, 5e-5], rtol=1e-5)


def test_the_configuration_of_the_paper():
    paper = cckd.Config.paper()
    assert (paper.kernel, paper.gamma, paper.order, paper.per_class) == ("rbf_taylor", 0.4, 2, 4)
    written = json.loads(json.dumps(configs.to_dict("cckd", paper, configs.Run())))
    assert configs.from_dict(written)[1] == paper
    assert paper.batch_size % paper.per_class == 0
    # Its student and its loss on data of that shape; a teacher of fewer layers of the same kind is traced sooner.
    assert paper.teacher.backbone == "iresnet50"
    shaped = dataclasses.replace(
        paper,
        data=data.RenderedFaces(128, 4, held_out_identities=4, held_out_per_identity=2),
        teacher=dataclasses.replace(paper.teacher, backbone="iresnet10"),
    )
    first, student = cckd.build(shaped)
    state = jax.eval_shape(first.init, jax.random.key(0), None)
    state = jax.eval_shape(student.init, jax.random.key(0), state)
    batch = {
        "image": jax.ShapeDtypeStruct((512, 112, 112, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((512,), jnp.int32),
    }
    after, report = jax.eval_shape(student.step, state, batch)
    assert report["loss"].shape == () and report["loss"].dtype == jnp.float32
    assert jax.tree.structure(after) == jax.tree.structure(state)
