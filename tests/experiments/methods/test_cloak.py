import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import configs, launch, reproduce
from experiments.methods import cloak
from experiments.recipes.teachers import TeacherSpec
from experiments.studies import cloak as studies
from jaxface import attacks, data, models, training
from jaxface.attacks import cloak as cloaks
from jaxface.errors import UserError

SMALL = dataclasses.replace(
    cloak.Config.procedural(),
    data=data.ProceduralImages(12, 4, held_out_identities=8, held_out_per_identity=6),
    image_size=8,
    backbone="mlp_16",
    embedding=8,
    batch_size=8,
    steps=3,
    targets=(
        TeacherSpec(backbone="mlp_12", embedding=6, steps=2),
        TeacherSpec(backbone="mlp_8x8", embedding=6, steps=2),
    ),
    cloak=attacks.Cloak(epsilon=24.0, step_size=6.0, steps=3, accumulate=2),
    people=5,
    photos=3,
    people_per_step=2,
)


def changed(**fields):
    return dataclasses.replace(SMALL, **fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with baselines."""
    workdir = tmp_path_factory.mktemp("cloak") / "run"
    outcome = launch.launch("cloak", changed(baselines=True), configs.Run(workdir=str(workdir), quiet=True))
    return workdir, outcome


@pytest.mark.slow
def test_a_run_tries_every_method_on_every_network(run):
    workdir, outcome = run
    names = list(cloak.methods(changed(baselines=True)))
    assert names[-1] == "cloak" and len(names) == 7
    for name in names:
        for network in ("surrogate", "target1", "target2", "black_box"):
            first, fifth = (outcome.metrics[f"{name}/{network}/psr@{k}"] for k in (1, 5))
            assert 0 <= fifth <= first <= 1
        mean = np.mean([outcome.metrics[f"{name}/target{i}/psr@1"] for i in (1, 2)])
        assert outcome.metrics[f"{name}/black_box/psr@1"] == pytest.approx(mean)
    for floor in ("clean", "random"):
        assert len({outcome.metrics[f"{name}/black_box/{floor}_psr@1"] for name in names}) == 1
    assert outcome.metrics["cloak/surrogate/psr@1"] > outcome.metrics["cloak/surrogate/clean_psr@1"]
    masks = np.asarray(outcome.state.params["masks"])
    assert masks.shape == (5, 8, 8, 1) and np.abs(masks).max() <= 24
    assert (np.abs(masks).max(axis=(1, 2, 3)) > 6).all()  # everybody got one
    for figure in ("cloaked", "protection"):
        assert (workdir / f"{figure}.png").stat().st_size > 1000
    results = json.loads((workdir / "results.json").read_text())
    assert results["metrics"] == outcome.metrics


def test_baselines_have_as_many_steps_or_as_many_gradients():
    config = dataclasses.replace(
        cloak.Config(), cloak=attacks.Cloak(momentum=0.9, dropout=0.1, hull="convex")
    )
    made = cloak.methods(config)
    cost = {name: m.photo_gradients(10) for name, m in made.items()}
    assert cost == {
        "fi_uap": 160, "opom": 160, "opom_convex": 160, "opom_equal_gradients": 640, "small_batch": 32,
        "small_batch_equal_gradients": 640, "cloak": 640,
    }  # fmt: skip
    steps = {name: m.steps for name, m in made.items() if not name.endswith("equal_gradients")}
    assert set(steps.values()) == {16}
    assert made["cloak"] == config.cloak
    assert all(m.accumulate == 1 and m.epsilon == 8 for name, m in made.items() if name != "cloak")
    released = {name: (m.objective, m.hull) for name, m in made.items() if m.rederive}
    assert released == {
        "fi_uap": ("fi_uap", "center"), "opom": ("opom", "center"), "opom_convex": ("opom", "convex"),
        "opom_equal_gradients": ("opom", "center"),
    }  # fmt: skip
    assert cloak.methods(changed()) == {"cloak": SMALL.cloak}


def masks_of(config, parallel):
    """What the last stage makes of given networks, which are not trained."""
    stages = cloak.build(
        dataclasses.replace(config, steps=0, targets=(TeacherSpec(backbone="mlp_8", steps=0),))
    )
    return training.run(stages, seed=1, parallel=parallel)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_masks_do_not_depend_on_the_devices(mode):
    config = changed(people_per_step=8)
    one = training.JitParallel(devices=jax.devices()[:1])
    many = training.make_parallel(mode)
    assert many.replicas == 8
    alone, together = (np.asarray(masks_of(config, p).state.params["masks"]) for p in (one, many))
    assert (np.abs(alone - together) < 1e-3).mean() > 0.97


def test_masks_come_in_any_grouping(monkeypatch):
    """A person's mask is a function of the person: not of who else is in the step, nor of coming round twice."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    one = training.JitParallel(devices=jax.devices()[:1])
    few, all_ = (np.asarray(masks_of(changed(people_per_step=n), one).state.params["masks"]) for n in (2, 5))
    assert (np.abs(few - all_) < 1e-3).mean() > 0.97


@pytest.mark.slow
def test_networks_may_come_from_finished_runs(finished, photographs, tmp_path):
    config = dataclasses.replace(
        SMALL,
        data=data.RenderedFaces(8, 4, held_out_identities=4, held_out_per_identity=5),
        image_size=16,
        surrogate=str(finished),
        targets=(TeacherSpec(run=str(finished)),),
        cloak=attacks.Cloak(steps=2, accumulate=1),
        people=3,
        photos=2,
        distractors=str(photographs),
    )
    outcome = training.run(cloak.build(config))
    # The black box is the surrogate: whatever hides from one hides from the other.
    for k in (1, 5):
        assert outcome.metrics[f"cloak/surrogate/psr@{k}"] == outcome.metrics[f"cloak/target1/psr@{k}"]
    protected = dataclasses.replace(config, protect=str(photographs), photos=2, people=4, distractors=None)
    assert training.run(cloak.build(protected)).state.params["masks"].shape == (4, 16, 16, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--cloak.epsilon 0", "epsilon: needs a number above 0 and up to 255"),
        ("--cloak.batch 11", "batch: needs at most the 10 photos of a person, got 11"),
        ("--cloak.hull reduced --cloak.hull-high 0.05", "cannot sum to 1"),
        ("--photos 1 --cloak.batch 1", "photos: needs at least 2 per person, got 1"),
        ("--tests 1", "tests: needs an integer from 2, got 1"),
        ("--data procedural_images --people 100", "PSR@5 needs at least 4 images of distractors, got 0"),
        ("--data procedural_images --photos 14", "people: needs 20 people with at least 16 photos"),
        ("--data digits", "data: needs people that are not trained on"),
        ("--surrogate nowhere", "cannot read nowhere"),
    ],
)
def test_refusals_are_one_line_before_any_compile(refusal, tmp_path, arguments, words):
    flags = ["--data", "procedural_images", "--image-size", "16", "--backbone", "mlp_16"]
    if "--data" in arguments:
        flags = flags[2:]
    assert words in refusal(
        launch.main, ["cloak", *flags, *arguments.split(), "--workdir", str(tmp_path / "run")]
    )
    assert not (tmp_path / "run").exists()


def test_no_targets_are_refused():
    with pytest.raises(UserError, match="targets: needs at least one network"):
        cloak.build(changed(targets=()))


@pytest.mark.parametrize("preset", ["default", *configs.presets(cloak.Config)])
def test_presets_survive_being_written(preset):
    config = cloak.Config() if preset == "default" else getattr(cloak.Config, preset)()
    written = json.loads(json.dumps(configs.to_dict("cloak", config, configs.Run())))
    assert configs.from_dict(written)[1] == config
    cloak.check(config)


def test_the_papers_run_is_that_of_the_source(monkeypatch):
    """Against OPOM's public release: the names of its networks, its scripts and InsightFace's network options."""
    config = cloak.Config.paper()
    # test_common.sh: r50 (an iResNet-50, version_unit 3) with ArcFace, CosFace and SFace; m1, ser50 and i1 with softmax.
    assert [(t.backbone, t.head.loss) for t in config.targets] == [
        ("iresnet50", "arcface"), ("iresnet50", "cosface"), ("iresnet50", "sface"),
        ("mobilenet", "softmax"), ("se_iresnet50", "softmax"), ("inception_resnet", "softmax"),
    ]  # fmt: skip
    assert {t.embedding for t in config.targets} == {512}
    arcface, cosface, sface = (t.head.build() for t in config.targets[:3])
    assert (arcface.scale, arcface.margin) == (
        64,
        0.5,
    )  # margin-s and margin-m of InsightFace's train_softmax.py
    assert (cosface.scale, cosface.margin) == (64, 0.35)
    # SFace's checkpoint is called model_s64a80tb87c80d12.
    assert (sface.scale, sface.sharpness, sface.intra_angle, sface.inter_angle) == (64, 80, 0.87, 1.2)
    # gen_privacy_common_softmax.sh: --round 16 --alpha 8 (its epsilon), step size 1; 10 photos to make and 5 to try a mask.
    ours = config.cloak
    assert (ours.steps, ours.epsilon, ours.step_size) == (16, 8, 1) and cloaks.WARM_UP == 5  # --nter 5
    assert (config.people, config.photos, config.tests) == (500, 10, 5)
    # Backbone_IR_50_Epoch_94_Batch_180000: 94 epochs of 490,623 images in batches of 256.
    assert config.steps == 180_000 and config.steps * config.batch_size // 490_623 == 93

    labels = np.arange(600, dtype=np.int32) % 100
    source = data.ArraySource(np.zeros((600, 112, 112, 3), np.uint8), labels, [str(i) for i in range(100)])
    monkeypatch.setattr(data, "load", lambda *_, **__: data.Split(source, source, "made up", "verification"))
    asked = []
    monkeypatch.setattr(cloak, "trial", lambda config, unseen: asked.append(config.protect))
    first = next(cloak.build(config))
    assert asked == ["privacy-commons"] and (first.name, first.steps) == ("surrogate", 180_000)
    state = jax.eval_shape(first.init, jax.eval_shape(lambda: jax.random.key(0)), None)
    # IR_50 is iResNet-50 with one BN fewer in each of 3, 4, 14, 3 units, and no shortcut convolution from 64 to 64.
    without = 2 * (3 * 64 + 4 * 128 + 14 * 256 + 3 * 512) + 64 * 64 + 2 * 64
    assert models.parameter_count(state.params["backbone"]) == 43_590_848 - without
    assert state.params["prototypes"].shape[1] == 512


@pytest.mark.slow
def test_gradient_accumulation_beats_opom_on_black_boxes():
    """The claim on one seed, at equal steps: networks of 120 steps and 30 people, else as the study has it."""
    base = studies.STUDIES["transfer"].base
    short = {"steps": 120, "people": 30, "people_per_step": 30, "seed": 1, "data_seed": 1}
    short["targets"] = tuple(dataclasses.replace(t, steps=120) for t in base.targets[:2])
    shared, rates = [], {}
    for name in ("GA, 20 of 2 photos", "OPOM-ClassCenter"):
        config = dataclasses.replace(base, **short, **studies.STUDIES["transfer"].arms[name])
        stages = reproduce.sharing(cloak.build(config), 3, shared)
        rates[name] = training.run(stages, seed=1).metrics["cloak/black_box/psr@1"]
    assert rates["GA, 20 of 2 photos"] > rates["OPOM-ClassCenter"] + 0.01


def test_studies_share_their_networks_and_differ_in_the_masks_alone():
    for study in studies.STUDIES.values():
        assert study.method in study.arms and study.shared == 1 + len(study.base.targets)
        assert all(set(fields) == {"cloak"} for fields in study.arms.values())
        masks = [fields["cloak"] for fields in study.arms.values()]
        assert len(set(masks)) == len(masks)
        assert len({(m.epsilon, m.step_size) for m in masks}) == 1
