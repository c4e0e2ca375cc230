import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import configs, launch
from experiments.methods import fmvit
from experiments.studies.fmvit import ARMS, CONTROLS, PAIRS, SAMPLED, STUDIES
from jaxface import data, losses, models, training
from jaxface.errors import UserError
from jaxface.training.evaluations.presentation_detection import subsets

TINY = fmvit.Config(
    data=data.Presentations(identities=8, per_identity=4, development_identities=8, held_out_identities=8),
    dim=16,
    heads=2,
    blocks=("self", "cross"),
    batch_size=8,
    steps=3,
)
NAMES = TINY.modalities


def batch(size=8):
    rng = np.random.default_rng(0)
    gray = {name: rng.integers(0, 256, (size, 32, 32), np.uint8) for name in ("depth", "infrared")}
    image = rng.uniform(-1, 1, (size, 32, 32, 3)).astype(np.float32)
    return {"image": image, **gray, "spoof": (np.arange(size) % 5).astype(np.int32)}


def step_and_state(**changes):
    (stage,) = fmvit.build(dataclasses.replace(TINY, **changes))
    state = jax.jit(stage.init)(jax.random.key(0), None)
    return jax.jit(stage.step), state


@pytest.fixture(scope="module")
def default():
    return step_and_state()


def outputs(state, images, **options):
    network = fmvit.network(TINY)
    found = jax.jit(lambda params: network.apply({"params": params}, images, **options))(
        state.params["backbone"]
    )
    return jnp.stack([found[name] for name in NAMES])


def test_a_step_is_the_loss_with_all_sensors_and_with_each_alone(default):
    step, state = default
    examples = batch()
    images, live = training.sensor_images(examples, NAMES), examples["spoof"] == 0
    assert images["depth"].shape == (8, 32, 32) and abs(float(images["depth"].max())) <= 1
    full = losses.branch_loss(outputs(state, images), live)
    solo = losses.branch_loss(outputs(state, images, partners=jnp.eye(3, dtype=bool)), live)
    after, report = step(state, examples)
    np.testing.assert_allclose(report["full"], full.mean(), rtol=1e-5)
    np.testing.assert_allclose(report["solo"], solo.mean(), rtol=1e-5)
    np.testing.assert_allclose(report["loss"], (full + solo).mean(), rtol=1e-5)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, after.params)
    assert all(jax.tree.leaves(moved["backbone"]["branches"]["block2"]["select"]["attention"]["out"]))


def test_sampled_availability_is_the_loss_of_one_subset_or_another():
    step, state = step_and_state(solo="sampled")
    examples = batch()
    images, live = training.sensor_images(examples, NAMES), examples["spoof"] == 0
    network = fmvit.network(TINY)

    @jax.jit
    def loss(there):
        found = network.apply({"params": state.params["backbone"]}, images, available=there)
        return losses.branch_loss(jnp.stack([found[name] for name in NAMES]), live, there).mean()

    expected = [float(loss(jnp.asarray(there))) for there in subsets(NAMES).values()]
    drawn = set()
    for number in range(12):
        found = float(step(state.replace(step=jnp.int32(number)), examples)[1]["loss"])
        nearest = int(np.argmin(np.abs(np.array(expected) - found)))
        np.testing.assert_allclose(found, expected[nearest], rtol=1e-5)
        drawn.add(nearest)
    assert len(drawn) > 3


def test_branches_that_were_not_trained_in_pairs_are_asked_apart():
    pair, everything, one = (jnp.array(there) for there in ([1, 1, 0], [1, 1, 1], [0, 1, 0]))
    pair, everything, one = (there.astype(bool) for there in (pair, everything, one))

    def partners(there, **changes):
        return fmvit.tested_partners(dataclasses.replace(TINY, **changes), there)

    together = [[False, True, False], [True, False, False], [True, True, False]]
    assert partners(pair).tolist() == np.eye(3, dtype=bool).tolist()
    assert partners(everything).tolist() == (~np.eye(3, dtype=bool)).tolist()
    assert bool(partners(one)[1, 1])
    for changes in ({"unseen_subsets": "together"}, {"solo": "sampled"}, {"solo": "none"}):
        assert partners(pair, **changes).tolist() == together


def test_late_fusion_to_compare_with_sums_logits():
    apart = {"blocks": ("self", "self"), "fusion": "sum", "solo": "none"}
    step, state = step_and_state(**apart)
    examples = batch()
    images, live = training.sensor_images(examples, NAMES), examples["spoof"] == 0
    network = fmvit.network(dataclasses.replace(TINY, **apart))
    found = jax.jit(network.apply)({"params": state.params["backbone"]}, images)
    expected = optax.sigmoid_binary_cross_entropy(sum(found.values()), live.astype(np.float32)).mean()
    np.testing.assert_allclose(step(state, examples)[1]["loss"], expected, rtol=1e-5)


@pytest.mark.slow
def test_a_run_from_the_launcher(tmp_path):
    flags = """fmvit --data.identities 8 --data.development-identities 8 --data.held-out-identities 8 --dim 16 --heads 2
        --blocks self cross --batch-size 8 --steps 2 --quiet --cadence.log-every 1"""
    launch.main([*flags.split(), "--workdir", str(tmp_path / "run")])
    found = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    for name in ("rgb", "rgb+depth", "rgb+depth+infrared"):
        for key in ("acer", "acer_max", "hter", "auc"):
            assert 0 <= found[f"{key}@{name}"] <= 1
    assert (tmp_path / "run").exists() and list((tmp_path / "run").rglob("*roc.png"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            "--data digits",
            "data: needs live faces and attacks with a development set, such as presentations; got digits",
        ),
        ("--modalities rgb thermal", "modalities: needs some of rgb, depth, infrared, got rgb, thermal"),
        ("--modalities rgb rgb", "modalities: needs some of rgb, depth, infrared"),
        ("--image-size 36", "image_size: needs a multiple of the patch, which has 8 pixels, got 36"),
        ("--heads 5", "dim: needs a multiple of heads, 5, got 16"),
        ("--fraction 0", "fraction: needs a number above 0 and up to 1, got 0"),
        ("--threshold 2", "threshold: needs a number above 0 and up to 1, got 2"),
        ("--guide nobody", "--guide"),
        ("--blocks self stb", "--blocks"),
        ("--fusion sum", "fusion: sum needs blocks self alone, and solo none or sampled"),
        ("--batch-size 48", "batch_size: needs at most the 32 records"),
        ("--data.unseen live", "data.unseen: needs an attack among print, replay, mask, cut-out, got 'live'"),
        ("--init-from nowhere", "cannot read nowhere"),
    ],
)
def test_refusals_before_anything_is_compiled(refusal, tmp_path, flags, words):
    fixed = ["fmvit", "--quiet", "--workdir", tmp_path / "run"]
    if "--data " not in flags:
        fixed += [
            "--data.identities",
            "8",
            "--data.development-identities",
            "8",
            "--data.held-out-identities",
            "8",
            "--dim",
            "16",
            "--heads",
            "2",
            "--batch-size",
            "8",
        ]
    assert words in refusal(launch.main, [*fixed, *flags.split()])


def test_branches_start_from_a_vit(monkeypatch):
    vit = models.ViT(embedding=4, dim=16, depth=2, heads=2, patch=8)
    given = jax.jit(vit.init)(jax.random.key(5), jnp.zeros((1, 32, 32, 3)))

    class Bundle:
        variables = given

        def check_plain(self, argument):
            assert argument == "init_from"

    monkeypatch.setattr(fmvit.inference, "open_recognizer", lambda path: Bundle())
    (stage,) = fmvit.build(dataclasses.replace(TINY, init_from="vit"))
    assert not stage.compile_init  # it reads files
    state = jax.jit(stage.init)(jax.random.key(0), None)
    branches = state.params["backbone"]["branches"]
    for name in ("patches", "positions", "block1", "head_norm"):
        jax.tree.map(
            lambda leaf, one: np.testing.assert_array_equal(leaf, np.broadcast_to(one, leaf.shape)),
            branches[name],
            given["params"][name],
        )
    assert "select" in branches["block2"] and branches["head_dense"]["kernel"].shape == (3, 16, 1)
    with pytest.raises(UserError, match=r"init_from: needs a ViT with .* of shape .*, vit has one of shape"):
        fmvit.build(dataclasses.replace(TINY, init_from="vit", dim=32))
    with pytest.raises(UserError, match=r"init_from: needs a ViT with block3/.*, vit has none"):
        fmvit.build(dataclasses.replace(TINY, init_from="vit", blocks=("self",) * 3))


def test_the_arms_of_the_studies():
    base = STUDIES["single"].base
    networks = {}
    for name, changes in {**PAIRS, **SAMPLED, **CONTROLS}.items():
        config = dataclasses.replace(base, **changes)
        fmvit.check(config)
        networks[name] = fmvit.network(config)
        written = json.loads(json.dumps(configs.to_dict("fmvit", config, configs.Run())))
        assert configs.from_dict(written)[1] == config
    images = {n: jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32) for n in NAMES}

    def count(name):
        return models.parameter_count(jax.eval_shape(networks[name].init, jax.random.key(0), images))

    # The control has the parameters of the method; who never looks at others has as many blocks and none of the fusion.
    assert count("fm-vit") == count("dedicated, crossing") > count("dedicated")
    assert networks["dedicated"] == networks["zero-filled"] == networks["zero-filled, dropout"]
    assert networks["fm-vit"] == networks["no solo term"]
    assert all(
        study.arms in (ARMS, PAIRS, SAMPLED, CONTROLS) and study.base == base for study in STUDIES.values()
    )


def test_the_configuration_of_the_paper():
    paper = fmvit.Config.paper()
    written = json.loads(json.dumps(configs.to_dict("fmvit", paper, configs.Run())))
    assert configs.from_dict(written)[1] == paper
    assert (paper.image_size, paper.patch, paper.dim, paper.heads, len(paper.blocks)) == (224, 16, 384, 6, 12)
    assert paper.blocks == ("self", "self", "cross") * 4 and paper.batch_size == 64
    assert paper.optimizer.weight_decay == 0.05 and paper.optimizer.name == "adamw"
    images = {n: jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32) for n in NAMES}
    shapes = jax.eval_shape(fmvit.network(paper).init, jax.random.key(0), images)
    vit_small = 22_050_664 - 1000 * 385  # published, without its head of 1,000 classes
    fusion = 4 * (384 * 384 + 384) + 2 * 384
    assert models.parameter_count(shapes) == 3 * (vit_small + 385 + 4 * fusion)
