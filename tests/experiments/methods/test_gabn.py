import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs, launch
from experiments.methods import gabn
from experiments.recipes import recognition as recipe
from experiments.recipes.heads import HeadSpec
from experiments.studies.gabn import ARMS
from jaxface import data, losses, models, training
from jaxface.data.sources.packs import write_bin
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, l2_normalize

DIGITS = dataclasses.replace(gabn.Config.digits(), steps=4, batch_size=32, ramp=0.0)
FACES = gabn.Config(
    data=data.TonedFaces(identities=(6, 4), per_identity=4, held_out_identities=4, held_out_per_identity=4),
    image_size=32,
    cells=2,
    erase=1,
    embedding=16,
    batch_size=16,
    steps=2,
    ramp=0.0,
    adversarial_phase=(0.0, 1.0),
    augment=data.Augment(flip=0.0),
)
ALL = {"adversarial_phase": (0.0, 1.0)}


def started(config):
    """(stage, its first state, a batch as a step gets it)."""
    (stage,) = gabn.build(config)
    batch = next(stage.batches(None))
    image = (batch["image"].astype(np.float32) - 127.5) / 127.5
    return stage, jax.jit(stage.init)(jax.random.key(0), None), {**batch, "image": image}


def at(state, step):
    return state.replace(extra={**state.extra, "step": jnp.int32(step)})


def by_hand(config, state, batch):
    """Terms of the first step of a network without batch statistics."""
    model, params = gabn.network(config), state.params
    head, label = config.head.build().loss, batch["label"]
    image = jnp.asarray(batch["image"])

    def embed(image, shift=None):
        variables = {"params": params["backbone"]}
        if shift is None:
            return model.apply(variables, image)
        return models.apply_from_layer(model, variables, shift, image, layer="stage3")

    class_prototypes = l2_normalize(params["prototypes"])[label]
    _, features, _ = models.apply_with_layer(model, {"params": params["backbone"]}, image, layer="stage3")
    gradient = jax.grad(lambda a: (l2_normalize(embed(image, a)) * class_prototypes).sum())(features)
    maps = jax.nn.relu((gradient * features).sum(-1))
    maps = maps / (maps.sum((1, 2), keepdims=True) + 1e-6)
    mask = losses.topn_mask(maps, count=config.erase, cells=config.cells, image_shape=image.shape[1:3])

    def recognition(image):
        return head(cosines(embed(image), params["prototypes"][:10]), label)

    return recognition(image), recognition(image * mask[..., None]), maps


def test_the_loss_is_its_three_terms():
    config = dataclasses.replace(DIGITS, **ALL, erase_weight=0.7, adversarial_weight=0.3)
    stage, state, batch = started(config)
    plain, erased, maps = jax.jit(functools.partial(by_hand, config))(state, batch)
    after, report = jax.jit(stage.step)(state, batch)
    np.testing.assert_allclose(report["recognition_loss"], plain.mean(), rtol=1e-4)
    np.testing.assert_allclose(report["erased_loss"], erased.mean(), rtol=1e-4)
    # The discriminator answers before its network is asked: its new parameters.
    judge = models.MLP(embedding=2, hidden=(64,))
    logits = judge.apply({"params": after.params["discriminator"]}, 64 * maps)
    weights = losses.group_weights(jnp.asarray(batch["group"]), 2)
    adversarial = losses.adversarial_uniform(logits, weights=weights).mean()
    np.testing.assert_allclose(report["adversarial_loss"], adversarial, rtol=1e-4)
    total = plain.mean() + 0.7 * erased.mean() + 0.3 * adversarial
    np.testing.assert_allclose(report["loss"], total, rtol=1e-4)
    before = judge.apply({"params": state.params["discriminator"]}, 64 * maps)
    expected = losses.discriminator_loss(before, jnp.asarray(batch["group"]), weights=weights).mean()
    np.testing.assert_allclose(report["discriminator/loss"], expected, rtol=1e-4)
    assert int(after.extra["step"]) == 1


def test_the_maps_are_differentiated():
    """The adversarial term moves the network, by second derivatives too; and only the network."""
    stage, state, batch = started(dataclasses.replace(DIGITS, **ALL, erase_weight=0.0))
    model = training.Recognizer(gabn.network(DIGITS), 10, (16, 16, 1))
    look = training.AttentiveRecognizer(model, "stage3", (8, 8), "elementwise")
    judge = models.MLP(embedding=2, hidden=(64,))

    def adversarial(backbone, stopped=False):
        params = {**state.params, "backbone": backbone}
        _, attention, _ = look(params, {}, batch, jax.random.key(0))
        maps = jax.lax.stop_gradient(attention.maps) if stopped else attention.maps
        return losses.adversarial_uniform(
            judge.apply({"params": state.params["discriminator"]}, 64 * maps)
        ).mean()

    gradient = jax.jit(jax.grad(adversarial))(state.params["backbone"])
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient["stage1"])) > 0
    kernel = jnp.zeros_like(gradient["stage1"]["conv"]["kernel"])
    direction = kernel.at[1, 1, 0, :].set(jnp.sign(gradient["stage1"]["conv"]["kernel"][1, 1, 0, :]))

    @jax.jit
    def moved(size):
        backbone = jax.tree.map(jnp.copy, state.params["backbone"])
        backbone["stage1"]["conv"]["kernel"] += size * direction
        return adversarial(backbone)

    finite = (moved(0.01) - moved(-0.01)) / 0.02
    np.testing.assert_allclose((gradient["stage1"]["conv"]["kernel"] * direction).sum(), finite, rtol=0.05)


def test_each_objective_trains_its_own_part():
    """Whoever learns at a rate of nothing stays where it is, whatever the other does."""
    nothing = training.Optimizer(learning_rate=1e-30, weight_decay=0.0)
    for changes, resting in (
        ({"discriminator": nothing}, {"discriminator"}),
        ({"optimizer": nothing}, {"backbone", "prototypes"}),
    ):
        stage, state, batch = started(dataclasses.replace(DIGITS, **ALL, **changes))
        after, _ = jax.jit(stage.step)(state, batch)
        for name, part in state.params.items():
            moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params[name], part)
            assert all((size > 1e-9) != (name in resting) for size in jax.tree.leaves(moved)), name


@pytest.mark.parametrize(
    "base", [DIGITS, pytest.param(FACES, marks=pytest.mark.slow)], ids=["digits", "faces"]
)
def test_without_weights_it_is_the_plain_training_bit_for_bit(base):
    config = dataclasses.replace(base, erase_weight=0.0, adversarial_weight=0.0)
    (stage,) = gabn.build(config)
    split = recipe.load(config)
    plain = recipe.recognition_stage(
        "recognition", config, split, recipe.network(config), config.head.build()
    )
    states = []
    for each in (stage, plain):
        parallel = training.make_parallel(devices=jax.devices()[:1])
        states.append(training.run([dataclasses.replace(each, evaluate=None)], parallel=parallel).state)
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)
    assert set(states[0].params) == {"backbone", "prototypes"}
    # And the terms do change something.
    other = training.run(
        [dataclasses.replace(gabn.build(base)[0], evaluate=None)],
        parallel=training.make_parallel(devices=jax.devices()[:1]),
    ).state
    assert (other.params["prototypes"] != states[0].params["prototypes"]).any()


def test_weights_of_zero_in_time_change_nothing():
    """Before its phase a term has no influence on the network."""
    late = {"adversarial_phase": (0.5, 1.0), "erase_phase": (0.5, 1.0)}
    config = dataclasses.replace(DIGITS, **late)
    stage, state, batch = started(config)
    (plain,) = gabn.build(dataclasses.replace(config, erase_weight=0.0, adversarial_weight=0.0))
    expected, _ = jax.jit(plain.step)(jax.jit(plain.init)(jax.random.key(0), None), batch)
    step = jax.jit(stage.step)
    after, report = step(state, batch)
    assert report["erase_weight"] == report["adversarial_weight"] == 0
    np.testing.assert_allclose(after.params["prototypes"], expected.params["prototypes"], atol=1e-5)
    _, report = step(at(state, 2), batch)
    np.testing.assert_allclose([report["erase_weight"], report["adversarial_weight"]], [0.5, 0.1])


def test_schedule():
    weights = [
        float(gabn.schedule(jnp.int32(step), 100, 0.5, (0.6, 0.9), 0.1))
        for step in (0, 59, 60, 65, 70, 89, 90)
    ]
    np.testing.assert_allclose(weights, [0, 0, 0, 0.25, 0.5, 0.5, 0], atol=1e-7)
    assert float(gabn.schedule(jnp.int32(0), 100, 0.5, (0.0, 1.0), 0.0)) == 0.5
    assert float(gabn.schedule(jnp.int32(60), 100, 0.1, (0.6, 1.0), 0.0)) == np.float32(0.1)


def test_maps_know_neither_scale_nor_margin():
    reports = []
    for head in (
        HeadSpec(loss="cosface", scale=16.0, margin=0.2),
        HeadSpec(loss="arcface", scale=64.0, margin=0.5),
    ):
        stage, state, batch = started(dataclasses.replace(DIGITS, **ALL, head=head))
        reports.append(jax.jit(stage.step)(state, batch)[1])
    np.testing.assert_allclose(reports[0]["discriminator/loss"], reports[1]["discriminator/loss"], rtol=1e-6)
    assert abs(reports[0]["loss"] - reports[1]["loss"]) > 0.1


@pytest.mark.slow
def test_erased_images_stay_out_of_the_running_averages():
    stage, state, batch = started(dataclasses.replace(FACES, adversarial_weight=0.0))
    after, _ = jax.jit(stage.step)(state, batch)
    variables = {"params": state.params["backbone"], "batch_stats": state.extra["batch_stats"]}
    _, updated = gabn.network(FACES).apply(variables, batch["image"], train=True, mutable=["batch_stats"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        after.extra["batch_stats"],
        updated["batch_stats"],
    )


@pytest.mark.parametrize(
    "base", [DIGITS, pytest.param(FACES, marks=pytest.mark.slow)], ids=["digits", "faces"]
)
@pytest.mark.parametrize("mode", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])
def test_eight_devices_give_the_update_of_one(mode, base):
    """Groups are counted over the whole batch; with batch statistics the inner gradient crosses devices too."""
    config = dataclasses.replace(
        base,
        **ALL,
        adversarial_weight=1.0,
        optimizer=training.Optimizer(learning_rate=0.01),
        discriminator=training.Optimizer(learning_rate=0.1),
    )
    stage, _, batch = started(config)
    batch["image"] = np.rint(batch["image"] * 127.5 + 127.5).astype(np.uint8)
    results = []
    for parallel in (
        training.make_parallel("jit", devices=jax.devices()[:1]),
        training.make_parallel(mode, devices=jax.devices()),
    ):
        state = parallel.create(stage.init, jax.random.key(0), None, rules={})
        state, metrics = parallel.compile(stage.step)(state, batch)
        results.append(jax.device_get((parallel.single(state).params, parallel.single(state).extra, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-4), *results)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "gradcam", "adversary": "to_reference", "erase_groups": "others", "reference": 1},
        pytest.param(
            {"attention": "input", "adversary": "reversal", "fill": "noise"}, marks=pytest.mark.slow
        ),
        pytest.param({"layer": "stage1", "bfloat16": True}, marks=pytest.mark.slow),
    ],
)
def test_other_readings(changes):
    stage, state, batch = started(dataclasses.replace(DIGITS, **ALL, **changes))
    after, report = jax.jit(stage.step)(state, batch)
    assert all(np.isfinite(value) for value in report.values())
    if changes.get("adversary") == "reversal":
        assert report["adversarial_loss"] < 0
    if changes.get("erase_groups") == "others":
        _, everyone, _ = jax.jit(functools.partial(by_hand, DIGITS))(state, batch)
        assert 0 < report["erased_loss"] < everyone.mean()
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--preset digits --batch-size 32", "fairness/accuracy@shortcut occlusion/shortcut_mass@shortcut"),
        (
            "--data toned --data.identities 6 4 --data.per-identity 4 --data.held-out-identities 4"
            " --data.held-out-per-identity 4 --image-size 32 --cells 2 --embedding 16 --batch-size 16",
            "fairness/fnmr@tone-0.8-1 attention/coverage@tone-0-0.2 verification/accuracy",
        ),
        pytest.param(
            "--data rendered --data.identities 64 --data.per-identity 2 --data.held-out-identities 48"
            " --data.held-out-per-identity 4 --image-size 32 --cells 2 --embedding 16 --batch-size 16"
            " --erase-weight 0 --adversarial-weight 0",
            "fairness/accuracy@tone-6-of-6",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.slow
def test_runs_report_fairness_and_attention(tmp_path, flags, expected):
    launch.main(["gabn", *flags.split(), "--steps", "2", "--quiet", "--workdir", str(tmp_path)])
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert {"fairness/average", "fairness/std", "fairness/worst", "attention/gap", *expected.split()} <= set(
        metrics
    )
    accuracies = [value for key, value in metrics.items() if key.startswith("fairness/accuracy@")]
    np.testing.assert_allclose(metrics["fairness/average"], np.mean(accuracies))
    np.testing.assert_allclose(metrics["fairness/std"], np.std(accuracies, ddof=1))


@pytest.mark.slow
def test_packs_of_each_group(tmp_path):
    paths = []
    for name, people in (("one", 6), ("two", 8)):
        faces = data.RenderedSource(people, 4, 32, seed=len(name) + people)
        images = [data.encode_image(faces[i]["image"]) for i in range(len(faces))]
        same = [pair % 2 == 0 for pair in range(len(faces) // 2)]
        # Pairs of neighbors are of one person, unless the second is taken from the next person.
        order = [[2 * k, 2 * k + 1 if same[k] else (2 * k + 5) % len(faces)] for k in range(len(same))]
        path = tmp_path / f"{name}.bin"
        write_bin(path, [images[i] for pair in order for i in pair], same)
        paths.append(str(path))
    config = dataclasses.replace(FACES, packs=tuple(paths), adversarial_weight=0.0)
    metrics = training.run(gabn.build(config)).metrics
    assert {"fairness/accuracy@one", "fairness/accuracy@two", "verification/accuracy"} <= set(metrics)
    with pytest.raises(UserError, match="packs: needs one for each"):
        gabn.build(dataclasses.replace(config, packs=tuple(paths[:1])))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--data digits --image-size 8", "data: needs people of two groups or more to train on"),
        ("--erase 17", "erase: needs a number from 0 to the 16 cells, got 17"),
        ("--cells 3", "cells: needs a divisor of the image's 16x16, got 3"),
        ("--cells 16", "cells: needs divisors of the map's 8x8, got 16x16"),
        ("--erase-weight -1", "erase_weight: needs a finite number from 0"),
        ("--adversarial-weight nan", "adversarial_weight: needs a finite number from 0, got nan"),
        ("--ramp 2", "ramp: needs a number from 0 to 1"),
        ("--adversarial-phase 0.6 0.6", "adversarial_phase: needs 0 <= first < last <= 1"),
        ("--erase-phase -0.5 1", "erase_phase: needs 0 <= first < last <= 1"),
        ("--reference 2", "reference: needs a group in [0, 2), got 2"),
        ("--layer stage7", "layer: needs a part with a map, one of stage1, stage2, stage3, got 'stage7'"),
        (
            "--backbone mlp",
            "backbone: needs a network with a feature map of more than one place, mlp has none",
        ),
        ("--discriminator.learning-rate 0", "discriminator.learning_rate: needs a finite number above 0"),
        ("--head.scale 0", "scale: needs a finite number above 0"),
        ("--data.reliability 2", "reliability: needs a number from 0 to 1, got 2"),
        ("--packs {tmp}/none.bin {tmp}/more.bin", "none.bin"),
        ("--packs {tmp}/a/lfw.bin {tmp}/b/lfw.bin", "packs: need different file names"),
    ],
)
def test_refusals_before_anything_is_compiled(refusal, tmp_path, flags, words):
    arguments = ["gabn", "--preset", "digits", "--quiet", "--workdir", tmp_path / "run"]
    assert words in refusal(launch.main, [*arguments, *flags.format(tmp=tmp_path).split()])


def test_a_group_that_is_not_there():
    few = data.RenderedFaces(identities=2, per_identity=4, held_out_identities=4, held_out_per_identity=4)
    with pytest.raises(UserError, match="data: needs people of every group to train on, got none of tone-"):
        gabn.build(dataclasses.replace(FACES, data=few))


def test_the_configuration_of_the_paper():
    paper = gabn.Config.paper()
    assert (paper.cells, paper.erase, paper.head.scale, paper.head.margin) == (7, 3, 64.0, 0.5)
    written = json.loads(json.dumps(configs.to_dict("gabn", paper, configs.Run())))
    assert configs.from_dict(written)[1] == paper
    # Its step on data of that shape; fewer layers of the same kind are traced in a fraction of the time.
    assert paper.backbone == "iresnet34"
    shaped = dataclasses.replace(paper, data=data.TonedFaces(), packs=(), reference=0, backbone="iresnet10")
    (stage,) = gabn.build(shaped)
    state = jax.eval_shape(stage.init, jax.random.key(0), None)
    batch = {
        "image": jax.ShapeDtypeStruct((512, 112, 112, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((512,), jnp.int32),
        "group": jax.ShapeDtypeStruct((512,), jnp.int32),
    }
    after, report = jax.eval_shape(stage.step, state, batch)
    assert report["loss"].shape == () and report["loss"].dtype == jnp.float32
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.slow
def test_erasing_makes_groups_more_alike():
    """The premise in the small, on a seed of the study at its full length: a shorter run is noise."""
    plain, erasing = (
        training.run(
            gabn.build(dataclasses.replace(gabn.Config.digits(), seed=3, data_seed=3, **ARMS[arm]))
        ).metrics
        for arm in ("baseline", "erasing only")
    )
    assert erasing["fairness/accuracy@shortcut"] > plain["fairness/accuracy@shortcut"] + 0.01
    assert erasing["fairness/std"] < plain["fairness/std"] - 0.01
