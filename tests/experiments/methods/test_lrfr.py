import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import configs, launch
from experiments.methods import lrfr
from experiments.recipes.heads import HeadSpec
from experiments.studies import lrfr as studies
from jaxface import data, losses, models, training
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, l2_normalize

DIGITS = dataclasses.replace(
    lrfr.Config.digits(), steps=4, backbone="mlp_16", embedding=8, probe_sizes=(3, 8)
)
FACES = dataclasses.replace(
    lrfr.Config(),
    data=data.RenderedFaces(8, 4, held_out_identities=6, held_out_per_identity=4),
    image_size=16,
    backbone="iresnet_pico",
    embedding=16,
    batch_size=16,
    steps=2,
    sizes=(4, 8),
    probabilities=(0.5, 0.5),
    probe_sizes=(4, 16),
)


def first_step(config):
    (stage,) = lrfr.build(config)
    state = jax.jit(stage.init)(jax.random.key(0), None)
    batch = next(stage.batches(None))
    image = (batch["image"].astype(np.float32) - 127.5) / 127.5
    new, metrics = jax.jit(stage.step)(state, {"image": image, "label": batch["label"]})
    return state, jnp.asarray(image), batch["label"], new, metrics


@pytest.fixture(scope="module")
def first_batch():
    """(state, batch, unit embeddings of both copies at 3 pixels, the two classification losses) of the first step on digits."""
    config = dataclasses.replace(DIGITS, **studies.single(3))
    (stage,) = lrfr.build(config)
    state = jax.jit(stage.init)(jax.random.key(0), None)
    batch = next(stage.batches(None))
    image, labels = (batch["image"].astype(np.float32) - 127.5) / 127.5, batch["label"]
    model = lrfr.network(config)

    @jax.jit
    def classified(params, copy):
        embeddings = model.apply({"params": params["backbone"]}, copy)
        similarity = cosines(embeddings, params["prototypes"][:10])
        return l2_normalize(embeddings), losses.cosface_loss(
            similarity, labels, scale=16.0, margin=0.2
        ).mean()

    low = jax.jit(lambda x: data.low_resolution(x, 3))(image)
    units, values = zip(*(classified(state.params, copy) for copy in (image, low)), strict=True)
    return state, {"image": image, "label": labels}, units, values


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, lambda u, v: losses.logexp_distance(u, v).mean()),
        (
            {"reduction": "batch_log", "power": 2.0},
            lambda u, v: losses.logexp_loss(u, v, power=2.0, reduction="batch_log"),
        ),
        ({"distance": "l1"}, lambda u, v: jnp.abs(u - v).mean()),
        ({"distance": "l2"}, lambda u, v: jnp.square(u - v).mean() / 2),
        ({"distance": "none"}, lambda u, v: 0.0),
    ],
    ids=["logexp", "batch_log", "l1", "l2", "none"],
)
def test_the_first_loss_is_both_copies_and_their_distance(first_batch, overrides, expected):
    state, batch, units, values = first_batch
    config = dataclasses.replace(DIGITS, weight=0.7, **studies.single(3), **overrides)
    _, metrics = jax.jit(lrfr.build(config)[0].step)(state, batch)
    np.testing.assert_allclose(metrics["loss_full"], values[0], rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_low"], values[1], rtol=1e-4)
    distance = expected(*units)
    if overrides.get("distance") != "none":
        np.testing.assert_allclose(metrics["distance"], distance, rtol=1e-3)
    np.testing.assert_allclose(metrics["loss"], 0.5 * sum(values) + 0.7 * distance, rtol=1e-4)


def test_without_sizes_it_is_the_plain_training(first_batch):
    state, batch, _, values = first_batch
    config = dataclasses.replace(DIGITS, **studies.FULL)
    _, metrics = jax.jit(lrfr.build(config)[0].step)(state, batch)
    np.testing.assert_allclose(metrics["loss"], values[0], rtol=1e-4)
    assert "loss_low" not in metrics


@pytest.mark.slow
def test_distances_of_the_study_pull_alike_at_the_start():
    """The study's weights: on the tuning seed's first batch, gradients of all weighted distances have one norm."""
    study = studies.STUDIES["distances"]
    config = study.base
    (stage,) = lrfr.build(config)
    params = jax.jit(stage.init)(jax.random.key(0), None).params["backbone"]
    full = (next(stage.batches(None))["image"].astype(np.float32) - 127.5) / 127.5
    drawn = {"sizes": config.sizes, "probabilities": config.probabilities}
    low, _ = jax.jit(lambda x: data.degrade_resolution(jax.random.key(0), x, **drawn))(full)
    model = lrfr.network(config)
    arms = {
        name: dataclasses.replace(config, **fields) for name, fields in study.arms.items() if name != "none"
    }

    def units(params):
        return [l2_normalize(model.apply({"params": params}, x)) for x in (full, low)]

    @jax.jit
    def norms(params):
        (u, v), pull = jax.vjp(units, params)
        found = {}
        for name, arm in arms.items():
            gradients = jax.grad(lambda u, v, arm=arm: lrfr.distance_loss(arm, u, v), (0, 1))(u, v)
            found[name] = arm.weight * optax.tree.norm(pull(list(gradients)))
        return found

    found = {name: float(norm) for name, norm in norms(params).items()}
    assert len(found) == 5 and arms["LogExp"].weight == 1
    np.testing.assert_allclose(list(found.values()), found["LogExp"], rtol=0.02)


@pytest.mark.slow
def test_two_passes_the_full_size_first():
    """Each copy has its own batch statistics, and the running averages take those of the full size first."""
    config = dataclasses.replace(FACES, augment=data.Augment(flip=0.0), **studies.single(4))
    state, image, labels, new, _ = first_step(config)

    def distance_after(*copies):
        """The largest relative difference of the step's statistics to those that these passes leave."""
        extra = {"batch_stats": state.extra["batch_stats"]}
        for copy in copies:
            variables = {"params": state.params["backbone"], **extra}
            _, extra = lrfr.network(config).apply(variables, copy, train=True, mutable=["batch_stats"])
        apart = jax.tree.map(
            lambda a, b: float((jnp.abs(a - b) / (jnp.abs(b) + 0.01)).max()),
            new.extra["batch_stats"],
            extra["batch_stats"],
        )
        return max(jax.tree.leaves(apart))

    low = data.low_resolution(image, 4)
    # A gray level here and there differs between the compiled step and the passes by themselves.
    assert distance_after(image, low) < 0.02 < 0.1 < distance_after(low, image)
    assert distance_after(image) > 0.1


def test_each_copy_is_mirrored_for_itself(monkeypatch):
    asked, keys, probabilities = {}, [], []
    make, mirror = data.batches, data.mirror_some

    def batches(source, **arguments):
        asked.update(arguments)
        return make(source, **arguments)

    def mirror_some(rng, images, probability):
        probabilities.append(probability)
        jax.debug.callback(lambda key: keys.append(tuple(np.asarray(key))), jax.random.key_data(rng))
        return mirror(rng, images, probability)

    monkeypatch.setattr(data, "batches", batches)
    monkeypatch.setattr(data, "mirror_some", mirror_some)
    config = dataclasses.replace(DIGITS, augment=data.Augment(flip=0.4, blur=0.1))
    _, _, _, new, _ = first_step(config)
    jax.block_until_ready(new)
    jax.effects_barrier()
    assert asked["augment"].flip == 0 and asked["augment"].blur == 0.1
    assert probabilities == [0.4, 0.4] and len(set(keys)) == 2


@pytest.mark.parametrize(
    ("reduction", "modes"),
    [("per_sample", ["jit"]), ("batch_log", ["jit", "pmap"])],
    ids=["per_sample", "batch_log"],
)
@pytest.mark.slow
def test_eight_devices_give_the_update_of_one(reduction, modes):
    # One size and no flips: the draws of a replica are its own.
    config = dataclasses.replace(
        FACES, augment=data.Augment(flip=0.0), reduction=reduction, optimizer=training.Optimizer(learning_rate=0.01),
        **studies.single(8),
    )  # fmt: skip
    (stage,) = lrfr.build(config)
    batch = next(stage.batches(None))

    def updated(parallel):
        state = parallel.create(stage.init, jax.random.key(0), None, rules={})
        state, metrics = parallel.compile(stage.step)(state, {k: batch[k] for k in ("image", "label")})
        return jax.device_get((parallel.single(state).params, parallel.single(state).extra, metrics))

    one = updated(training.make_parallel("jit", devices=jax.devices()[:1]))
    for mode in modes:
        eight = updated(training.make_parallel(mode, devices=jax.devices()))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-4), eight, one)


@pytest.mark.parametrize(
    "flags",
    [
        ["--bfloat16"],
        ["--sizes", "4", "--probabilities", "1"],
        ["--sizes", "--probabilities"],
    ],
)
@pytest.mark.slow
def test_a_run_leaves_curves(tiny, tmp_path, flags):
    sizes = ["--sizes", "4", "8", "--probabilities", "0.5", "0.5", "--probe-sizes", "4", "16"]
    launch.main(["lrfr", *tiny, *sizes, *flags, "--workdir", str(tmp_path)])
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert metrics["resolution/accuracy@16px"] == pytest.approx(metrics["verification/accuracy"], abs=1e-6)
    assert metrics["gradient_norm@16px"] > 0
    for name in ("resolution", "gradient_norm"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_preset_of_digits_runs(tmp_path):
    flags = ["--preset", "digits", "--backbone", "mlp_32", "--steps", "5", "--quiet"]
    launch.main(["lrfr", *flags, "--workdir", str(tmp_path)])
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert metrics["resolution/accuracy@8px"] == metrics["classification/accuracy"]
    assert metrics["resolution/accuracy@2px"] != metrics["resolution/accuracy@8px"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--power", "0.5"], "power: needs a finite number from 1, got 0.5"),
        (["--weight", "-1"], "weight: needs a finite number from 0, got -1"),
        (["--sizes", "0", "4", "8"], "sizes: needs sides from 1 to that of the images, got 0"),
        (["--sizes", "4", "8", "17"], "sizes: needs sides from 1 to 16, got 17"),
        (["--probabilities", "0.5", "0.5"], "probabilities: needs one for each of the 3 sizes, got 2"),
        (
            ["--probabilities", "0.5", "0.5", "0.5"],
            "probabilities: needs values from 0 that sum to 1, got (0.5, 0.5, 0.5)",
        ),
        (["--probe-sizes", "4", "17"], "probe_sizes: needs sides from 1 to 16, got 17"),
        (
            ["--probe-sizes", "4", "--galleries", "4"],
            "galleries: 4 need more than 4 images of every class, one has 4",
        ),
        (["--probe-sizes", "4", "--head.margin", "-1"], "margin: needs a number from 0 to 2, got -1"),
    ],
)
def test_refusals(refusal, tiny, tmp_path, flags, line):
    assert (
        refusal(launch.main, ["lrfr", *tiny, "--workdir", tmp_path, "--sizes", "4", "6", "8", *flags]) == line
    )


def test_vectors_are_refused():
    config = dataclasses.replace(DIGITS, data=data.Procedural(identities=8, held_out_identities=4))
    with pytest.raises(UserError, match=r"^data: low resolutions need square images, got 1x96$"):
        lrfr.build(config)


def test_the_configuration_of_the_paper():
    """Against the official code's training script and network; 34,124,608 parameters are the sum of its layers."""
    paper = lrfr.Config.paper()
    assert (paper.image_size, paper.batch_size, paper.embedding) == (112, 256, 512)
    assert paper.augment == data.Augment(flip=0.5) and lrfr.network(paper).dropout == 0.4
    optimizer = paper.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 5e-4)
    np.testing.assert_allclose(paper.prototype_std, np.sqrt(6 / (10_572 + 512)) / np.sqrt(3))
    assert paper.sizes == (7, 14, 20) and paper.probabilities == (0.5, 0.3, 0.2)
    assert paper.head == HeadSpec("cosface", 48.0, 0.4) and (paper.power, paper.weight) == (1.0, 1.0)
    epoch = paper.steps / 29
    rate = paper.optimizer.learning_rates(paper.steps)
    rates = [float(rate(round(e * epoch))) for e in (0, 15.9, 16.1, 23.9, 24.1)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-5)
    assert (
        configs.from_dict(json.loads(json.dumps(configs.to_dict("lrfr", paper, configs.Run()))))[1] == paper
    )
    model = lrfr.network(paper)
    recognizer = training.Recognizer(model, 10_572, (112, 112, 3))
    params, _ = jax.eval_shape(recognizer.init, jax.random.key(0))
    assert models.parameter_count(params["backbone"]) == 34_124_608
    assert params["prototypes"].shape[0] >= 10_572


def test_gradient_norms_are_of_the_classification():
    (stage,) = lrfr.build(DIGITS)
    state = jax.jit(stage.init)(jax.random.key(0), None)
    part = stage.evaluate.parts[-1]
    found = part(state)
    assert sorted(found) == ["gradient_norm@3px", "gradient_norm@8px"]
    images = np.stack([part.source[int(r)]["image"] for r in part.rows])
    labels = np.stack([part.source[int(r)]["label"] for r in part.rows])

    def loss(params):
        embeddings = lrfr.network(DIGITS).apply(
            {"params": params["backbone"]}, data.low_resolution(images, 3)
        )
        return losses.cosface_loss(
            cosines(embeddings, params["prototypes"][:10]), labels, scale=16.0, margin=0.2
        ).mean()

    leaves = jax.tree.leaves(jax.jit(jax.grad(loss))(state.params))
    expected = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in leaves))
    assert found["gradient_norm@3px"] == pytest.approx(expected, rel=1e-3)
