import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import configs, launch
from experiments.methods import dpm
from experiments.studies.dpm import STUDIES
from jaxface import data, losses, models
from jaxface.data.transforms.pixels import normalize_pixels

TINY = dpm.Config(
    data=data.DigitPresentations(training=60, development=40, semantic_noise=0.5, labeled=30),
    augment=data.Augment(flip=0.0),
    image_size=8,
    backbone="mlp_8",
    dim=4,
    hidden=4,
    batch_size=20,
    steps=3,
    quality_steps=2,
    lam=0.5,
    lq="deterministic",
    beta_warmup=0.0,
    corrections=("scaled", "unscaled", "plain", "mc", "refit", "temperature"),
)
GROUPS = {"digit": 10}


def first_batch(stage, state):
    batch = next(iter(stage.batches(state)))
    return {name: np.asarray(value) for name, value in batch.items()} | {
        "image": normalize_pixels(batch["image"])
    }


@pytest.fixture(scope="module")
def run():
    """Both stages after a step each, and what the steps said."""
    first, second = dpm.build(TINY)
    begun = jax.jit(first.init)(first.rng(jax.random.key(0)), None)
    batch = first_batch(first, begun)
    trained, report = jax.jit(first.step)(begun, batch)
    held = second.init(second.rng(jax.random.key(0)), trained)
    step = jax.jit(second.step)
    fitted, _ = step(held, first_batch(second, held))
    return dict(
        stages=(first, second),
        begun=begun,
        batch=batch,
        trained=trained,
        report=report,
        held=held,
        fitted=fitted,
    )


def test_a_step_is_the_public_losses(run):
    batch, params = run["batch"], run["begun"].params["backbone"]
    outputs = jax.jit(dpm.network(TINY, GROUPS).apply)({"params": params}, batch["image"])
    live, known = batch["label"] == 0, batch["known"]
    rows = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], live.astype(np.int32))
    classified = (rows * known).sum() / (20 * 30 / 60)  # over as many as are labeled on average
    semantic, report = losses.lq_loss(
        None, outputs["heads"], {"digit": batch["semantic_digit"]}, lam=0.5, beta=10.0, sample=False
    )
    np.testing.assert_allclose(run["report"]["loss"], classified + semantic, rtol=1e-5)
    np.testing.assert_allclose(run["report"]["digit_kl"], report["digit_kl"], rtol=1e-5)


def test_the_second_stage_leaves_trunk_and_classifier_bit_for_bit(run):
    for state in (run["held"], run["fitted"]):
        jax.tree.map(
            np.testing.assert_array_equal, state.params["backbone"], run["trained"].params["backbone"]
        )
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), run["held"].params["quality"], run["fitted"].params["quality"]
    )
    assert all(
        moved[name]["log"] if name == "temperature" else moved[name]["output"]["bias"] for name in moved
    )
    heads = [run["held"].params["quality"][name] for name in ("scaled", "refit", "mc")]
    jax.tree.map(np.testing.assert_array_equal, heads[0], heads[1], heads[2])  # all start alike


def test_constants_are_those_of_the_development_set_captured_badly(run):
    mean, std, scale = run["held"].extra["quality_stats"]
    assert mean.shape == std.shape == (8,) and (std > 0).all() and scale > 0
    second = run["stages"][1]
    again = second.init(second.rng(jax.random.key(0)), run["trained"])
    np.testing.assert_array_equal(again.extra["quality_stats"][0], mean)


def test_the_evaluation_has_every_margin_and_signs_stay(run):
    report = run["stages"][1].evaluate(run["fitted"])
    for name in ("raw", *TINY.corrections):
        assert 0 <= report[f"acer@{name}"] <= 1 and report[f"nll@{name}"] > 0
    for name in ("scaled", "unscaled", "plain", "mc", "temperature"):
        assert report[f"accuracy@{name}"] == report["accuracy@raw"]  # decisions at 1/2 do not move
    assert report["tpr_at_1e-2@temperature"] == report["tpr_at_1e-2@raw"]  # nor ranks, under one temperature
    assert report["variance/auc"] >= 0 and 0 <= report["semantic/digit"] <= 1


def test_the_network_is_deployed_with_its_quality_head(run):
    network, variables = dpm.deployed(TINY, run["fitted"], GROUPS)
    images = run["batch"]["image"]
    found = jax.jit(network.apply)(variables, images)
    stats = losses.QualityStats(*run["fitted"].extra["quality_stats"])
    params, margin = run["fitted"].params["quality"], models.live_margin(found["logits"])
    made = jax.jit(lambda p, h, m: dpm.corrected_margins(TINY.corrections, p, h, m, stats))(
        params, found["features"], margin
    )
    np.testing.assert_allclose(found["v"], made["scaled"][1], rtol=1e-5)
    standard = (found["features"] - stats.mean) / stats.std
    x = jax.nn.relu(standard @ params["refit"]["hidden"]["kernel"] + params["refit"]["hidden"]["bias"])
    refit = (x @ params["refit"]["output"]["kernel"] + params["refit"]["output"]["bias"])[:, 0]
    np.testing.assert_allclose(made["refit"][0], jnp.sqrt(stats.scale) * refit, rtol=1e-4, atol=1e-5)


def test_the_general_form_clusters_its_codes_within_live_and_within_attacks():
    plain = data.DigitPresentations(training=60, development=40)
    config = dataclasses.replace(TINY, data=plain, codes="general", pseudo=3, lq="gaussian", corrections=())
    (stage,) = dpm.build(config)
    state = stage.refresh(jax.jit(stage.init)(jax.random.key(0), None))
    labels = np.asarray(state.extra["pseudo"])
    live = data.load(plain, image_size=8).train.labels == 0
    assert set(labels[live]) == {3, 4, 5} and set(labels[~live]) == {0, 1, 2} and stage.refresh_every == 3
    batch, step = first_batch(stage, state), jax.jit(stage.step)
    report, again, other = (step(state.replace(step=jnp.int32(n)), batch)[1] for n in (0, 0, 1))
    assert report["live_loss"] == again["live_loss"] != other["live_loss"]  # another sample in every step
    assert {"pseudo_loss", "live_loss", "live_kl"} <= report.keys()
    weighted = report["live_loss"] + 10 * report["live_kl"]
    pseudo = report["pseudo_loss"] + 10 * report["pseudo_kl"]
    digit = report["digit_loss"] + 10 * report["digit_kl"]
    np.testing.assert_allclose(report["loss"], weighted + 0.5 * (pseudo + digit), rtol=1e-4)


@pytest.mark.slow
def test_the_joint_form_learns_its_variance_beside():
    config = dataclasses.replace(TINY, joint=True)
    (stage,) = dpm.build(config)
    state = jax.jit(stage.init)(jax.random.key(0), None)
    after, report = jax.jit(stage.step)(state, first_batch(stage, state))
    assert report["quality_loss"] > 0 and (after.extra["quality_stats"][0] != 0).any()
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, after.params)
    assert moved["quality"]["scaled"]["output"]["bias"] and moved["backbone"]["trunk"]["hidden1"]["bias"]


@pytest.mark.slow
def test_geometric_heads_learn_depth_of_live_faces_alone():
    config = dataclasses.replace(
        dpm.Config.aenet(),
        data=data.AnnotatedPresentations(
            identities=8, development_identities=4, held_out_identities=4, depth=True
        ),
        image_size=16,
        backbone="plain_stages_small",
        geometry="conv3",
        batch_size=4,
    )
    (stage,) = dpm.build(config)
    state = jax.jit(stage.init)(jax.random.key(0), None)
    batch = {
        "image": np.zeros((4, 16, 16, 3), np.float32), "label": np.array([0, 1, 0, 2], np.int32),
        "depth": np.full((4, 16, 16), 255, np.uint8), "known": np.ones(4, bool),
        "semantic_attributes": np.zeros((4, 5), np.int32), "semantic_spoof_type": np.zeros(4, np.int32),
        "semantic_illumination": np.zeros(4, np.int32),
    }  # fmt: skip
    _, report = jax.jit(stage.step)(state, batch)
    groups = {"attributes": 5, "spoof_type": 5, "illumination": 5}
    network = dpm.network(config, groups)
    found = network.apply({"params": state.params["backbone"]}, batch["image"])["depth"]
    expected = jnp.mean((found - np.array([1.0, 0, 1, 0])[:, None, None, None]) ** 2)
    np.testing.assert_allclose(report["geometry"], expected, rtol=1e-4)


FLAGS = (
    """--preset digits --quiet --backbone mlp_8 --batch-size 24 --data.training 60 --data.development 40"""
)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--data digits", "data: needs live faces and attacks with a development set, such as presentations; got digits"),
        ("--beta -1", "beta: needs"),
        ("--samples 0", "samples: needs"),
        ("--lam -1", "lam: needs"),
        ("--lq gaussian --lams digit", "lams: needs GROUP=FACTOR of digit, got 'digit'"),
        ("--lq gaussian --lams lamp=1", "lams: needs GROUP=FACTOR of digit, got 'lamp=1'"),
        ("--pseudo 3", "pseudo: needs codes general"),
        ("--lq gaussian --codes general --pseudo 40", "pseudo: needs at most the"),
        ("--lq gaussian --codes general --projection 4", "projection: needs codes of groups"),
        ("--corrections mc mc", "corrections: needs each once, got mc, mc"),
        ("--joint --captures.share 0", "captures.share: needs a positive number in the joint form"),
        ("--geometry conv9", "geometry: needs a layer of the trunk with a map, got 'conv9'"),
        ("--batch-size 80", "batch_size: needs at most the 60 records"),
        ("--data.labeled 90", "data.labeled: needs at most the 60 training images, got 90"),
        ("--data annotated_presentations --data.spoof 1 --data.identities 4 --data.development-identities 4 "
         "--data.held-out-identities 4", "data: needs at least one live face to train on, got none in 16"),
        ("--backbone unknown", "unknown"),
    ],
)  # fmt: skip
def test_refusals_before_anything_is_compiled(refusal, tmp_path, flags, words):
    fixed = FLAGS if "--data " not in flags else "--preset digits --quiet --batch-size 8"
    arguments = ["dpm", *fixed.split(), "--workdir", tmp_path / "run", *flags.split()]
    if "data.spoof" in flags:  # what is presented is drawn on the device before it can be refused
        data.load(data.AnnotatedPresentations(identities=4, development_identities=4, held_out_identities=4, spoof=1.0),
                  image_size=8).train.labels.sum()  # fmt: skip
    assert words in refusal(launch.main, arguments)


@pytest.mark.slow
def test_a_run_from_the_launcher(tmp_path):
    flags = f"dpm {FLAGS} --steps 2 --quality-steps 2 --cadence.log-every 1 --workdir {tmp_path / 'run'}"
    launch.main(flags.split())
    found = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert {"liveness/nll@raw", "quality/nll@scaled", "quality/variance/auc"} <= found.keys()
    assert list((tmp_path / "run").rglob("*reliability.png"))


def test_the_arms_of_the_studies():
    for study in STUDIES.values():
        for changes in study.arms.values():
            config = dataclasses.replace(study.base, **changes)
            groups = GROUPS if isinstance(config.data, data.DigitPresentations) else {"attributes": 5}
            dpm.check(config, groups)
            written = json.loads(json.dumps(configs.to_dict("dpm", config, configs.Run())))
            assert configs.from_dict(written)[1] == config


def test_the_configuration_of_the_paper():
    paper = dpm.Config.paper()
    written = json.loads(json.dumps(configs.to_dict("dpm", paper, configs.Run())))
    assert configs.from_dict(written)[1] == paper
    assert (paper.image_size, paper.backbone, paper.dim, paper.batch_size) == (224, "resnet18", 128, 128)
    assert paper.optimizer.learning_rate == 5e-3 and paper.optimizer.weight_decay == 5e-4
    groups = {"attributes": 40, "spoof_type": 11, "illumination": 5}
    assert dpm.group_weights(paper, groups) == {"attributes": 1.0, "spoof_type": 0.1, "illumination": 0.01}
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(dpm.network(paper, groups, dq=True).init, jax.random.key(0), image)["params"]
    code = 2 * (512 * 128 + 128)
    heads = 3 * code + 129 * (40 + 11 + 5) + 513 * 2
    assert models.parameter_count(shapes) == 11_689_512 - 1000 * 513 + heads + 512 * 24 + 24 + 25
