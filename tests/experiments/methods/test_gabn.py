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

# The network's rate falls to 0 over four updates, the discriminator's is 0 in the first: one compiled step shows both at rest.
RATE = 0.1
DIGITS = dataclasses.replace(
    gabn.Config.digits(),
    steps=4,
    batch_size=16,
    ramp=0.0,
    score="projection",
    erase_weight=0.7,
    erase_phase=(0.5, 1.0),
    erase=2,
    adversarial_weight=3.0,
    adversarial_phase=(0.5, 1.0),
    optimizer=training.sgd(RATE, schedule="linear", weight_decay=0.0),
    discriminator=training.sgd(RATE, schedule="constant", warmup=0.25, weight_decay=0.0),
)
TERMS = {
    "erase_weight": 0.5,
    "erase_phase": (0.0, 1.0),
    "adversarial_weight": 0.1,
    "adversarial_phase": (0.0, 1.0),
    "ramp": 0.0,
}
FACES = gabn.Config(
    data=data.TonedFaces(identities=(6, 4), per_identity=4, held_out_identities=4, held_out_per_identity=4),
    backbone="iresnet_pico",
    image_size=16,
    cells=2,
    erase=1,
    embedding=16,
    batch_size=16,
    steps=2,
    augment=data.Augment(flip=0.0),
    **TERMS,
)
SHORT = dataclasses.replace(gabn.Config.digits(), steps=4, batch_size=32, **TERMS)


def started(config):
    """(stage, its first state, a batch as a step gets it)."""
    (stage,) = gabn.build(config)
    batch = next(stage.batches(None))
    image = (batch["image"].astype(np.float32) - 127.5) / 127.5
    return stage, jax.jit(stage.init)(jax.random.key(0), None), {**batch, "image": image}


def at(state, step):
    return state.replace(extra={**state.extra, "step": np.int32(step)})


def leaves_moved(after, before):
    return [
        float(np.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)
    ]


@pytest.fixture(scope="module")
def everything():
    """(compiled step with both terms, first state, batch)."""
    stage, state, batch = started(DIGITS)
    return jax.jit(stage.step), state, batch


JUDGE = models.MLP(embedding=2, hidden=(64,))


def embed(params, image, features=None):
    """Embeddings of images, or of features that stand in for those of the third stage."""
    model, variables = gabn.network(DIGITS), {"params": params["backbone"]}
    if features is None:
        return model.apply(variables, image)
    return models.apply_from_layer(model, variables, features, image, layer="stage3")


def maps_by_hand(params, batch, score="projection"):
    """Maps from the closed form of ∂q/∂f: w / ‖f‖ with the length held constant, (w - q e) / ‖f‖ without."""
    image = jnp.asarray(batch["image"])
    _, features, _ = models.apply_with_layer(
        gabn.network(DIGITS), {"params": params["backbone"]}, image, layer="stage3"
    )
    embeddings, pull = jax.vjp(functools.partial(embed, params, image), features)
    length = jnp.linalg.norm(embeddings, axis=1, keepdims=True)
    class_prototypes, directions = l2_normalize(params["prototypes"])[batch["label"]], embeddings / length
    if score == "cosine":
        along = (directions * class_prototypes).sum(1, keepdims=True) * directions
        (gradient,) = pull((class_prototypes - along) / length)
    else:
        (gradient,) = pull(class_prototypes / length)
    maps = jax.nn.relu((gradient * features).sum(-1))
    return maps / (maps.sum((1, 2), keepdims=True) + 1e-6)


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def by_hand(trained, judge, batch, weights):
    """The total loss, and of its terms (recognition, erased, adversarial, discriminator), with gradients by the network."""
    label, group, image = (jnp.asarray(batch[name]) for name in ("label", "group", "image"))
    maps = maps_by_hand(trained, batch)
    cells = jax.lax.stop_gradient(maps).reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    least = jnp.sort(cells, axis=1)[:, -2:-1]
    mask = jnp.kron((cells < least).reshape(-1, 4, 4), jnp.ones((1, 4, 4)))

    def recognition(image):
        return losses.cosface_loss(
            cosines(embed(trained, image), trained["prototypes"][:10]), label, scale=16.0, margin=0.2
        ).mean()

    # Of equal weight: [B] / 2 for each group, over its records.
    log_probabilities = jax.nn.log_softmax(JUDGE.apply({"params": judge}, 64 * maps))
    members = jax.nn.one_hot(group, 2)
    alike = (members / members.sum(0) / 2).sum(1)
    adversarial = -(alike * log_probabilities.mean(1)).sum()
    discriminator = -(alike * (log_probabilities * members).sum(1)).sum()
    terms = jnp.stack([recognition(image), recognition(image * mask[..., None]), adversarial])
    return terms @ weights, (*terms, discriminator)


def network_part(state):
    return {name: state.params[name] for name in ("backbone", "prototypes")}


def test_the_loss_is_its_three_terms_and_the_update_its_gradient(everything):
    """The oracle is written out here; checks 8, 9 and 10, with second derivatives (check 11)."""
    step, state, batch = everything
    weights = np.array([1, 0.7, 3.0], np.float32)
    (total, (plain, erased, adversarial, discriminator)), gradient = by_hand(
        network_part(state), state.params["discriminator"], batch, weights
    )
    after, report = step(at(state, 2), batch)
    for name, value in {
        "recognition_loss": plain,
        "erased_loss": erased,
        "adversarial_loss": adversarial,
        "discriminator/loss": discriminator,
        "loss": total,
        "erase_weight": 0.7,
        "adversarial_weight": 3.0,
    }.items():
        np.testing.assert_allclose(report[name], value, rtol=1e-4, err_msg=name)
    assert int(after.extra["step"]) == 3
    update = jax.tree.map(lambda a, b: (b - a) / RATE, network_part(after), network_part(state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01, atol=1e-4), update, gradient)
    # Without the adversarial term it would be another one, in the first layers too.
    _, others = by_hand(network_part(state), state.params["discriminator"], batch, weights * [1, 1, 0])
    difference = leaves_moved(others["backbone"]["stage1"], gradient["backbone"]["stage1"])
    assert min(difference) > 1e-3


def test_each_objective_trains_its_part_and_the_discriminator_goes_first(everything):
    """Check 10: whoever learns at a rate of nothing rests, whatever the other does."""
    step, state, batch = everything
    first, _ = step(at(state, 2), batch)
    assert max(leaves_moved(first.params["discriminator"], state.params["discriminator"])) == 0
    assert min(leaves_moved(network_part(first), network_part(state))) > 1e-9
    # Then the discriminator learns too, and the network is trained against what it has learned.
    second, report = step(at(first, 2), batch)
    assert min(leaves_moved(second.params["discriminator"], first.params["discriminator"])) > 1e-9
    values = []
    for judge in (second, first):
        _, terms = by_hand(network_part(first), judge.params["discriminator"], batch, np.ones(3, np.float32))[
            0
        ]
        values.append(float(terms[2]))
    np.testing.assert_allclose(report["adversarial_loss"], values[0], rtol=1e-5)
    assert abs(values[0] - values[1]) > 1e-4 * values[0]
    state = second
    for _ in range(2):
        state, _ = step(at(state, 2), batch)
    last, _ = step(at(state, 2), batch)
    assert max(leaves_moved(network_part(last), network_part(state))) == 0
    assert min(leaves_moved(last.params["discriminator"], state.params["discriminator"])) > 1e-9


def test_without_weights_and_before_its_phase_it_is_the_plain_training(everything):
    """Check 9: bit for bit where both weights are 0."""
    full, state, batch = everything
    config = dataclasses.replace(DIGITS, erase_weight=0.0, adversarial_weight=0.0)
    (stage,) = gabn.build(config)
    plain = recipe.recognition_stage(
        "recognition", config, recipe.load(config), recipe.network(config), config.head.build()
    )
    start = state.replace(
        params=network_part(state),
        opt_state=state.opt_state[1:],
        extra=jax.eval_shape(stage.init, jax.random.key(0), None).extra,
    )
    assert jax.tree.structure(jax.eval_shape(stage.init, jax.random.key(0), None)) == jax.tree.structure(
        start
    )
    steps = [jax.jit(each.step) for each in (stage, plain)]
    ends = [step(step(start, batch)[0], batch)[0] for step in steps]
    jax.tree.map(np.testing.assert_array_equal, ends[0].params, ends[1].params)
    # Before its phase a term has no influence on the network either.
    before, report = full(at(state, 0), batch)
    assert report["erase_weight"] == report["adversarial_weight"] == 0
    once, _ = steps[0](start, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), network_part(before), network_part(once)
    )


@pytest.mark.slow
def test_a_run_without_weights_is_the_plain_run_bit_for_bit():
    """Check 9, of a whole run with batch statistics."""
    config = dataclasses.replace(FACES, erase_weight=0.0, adversarial_weight=0.0)
    plain = recipe.recognition_stage(
        "recognition", config, recipe.load(config), recipe.network(config), config.head.build()
    )
    states = []
    for stage in (*gabn.build(config), plain):
        parallel = training.make_parallel(devices=jax.devices()[:1])
        states.append(training.run([dataclasses.replace(stage, evaluate=None)], parallel=parallel).state)
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)
    assert set(states[0].params) == {"backbone", "prototypes"}


def test_schedule():
    schedule = jax.jit(gabn.schedule, static_argnums=(1, 3, 4))
    weights = [float(schedule(step, 100, 0.5, (0.6, 0.9), 0.1)) for step in (0, 59, 60, 65, 70, 89, 90)]
    np.testing.assert_allclose(weights, [0, 0, 0, 0.25, 0.5, 0.5, 0], atol=1e-7)
    assert float(schedule(0, 100, 0.5, (0.0, 1.0), 0.0)) == 0.5
    assert float(schedule(60, 100, 0.1, (0.6, 1.0), 0.0)) == np.float32(0.1)


def test_the_cosine_as_score_and_another_head(everything):
    """The maps are those by hand, which know neither scale nor margin (check 4); some groups' images stay as they are."""
    _, state, batch = everything
    head = HeadSpec(loss="arcface", scale=64.0, margin=0.5)
    changes = {"adversary": "to_reference", "erase_groups": "others", "reference": 1}
    (stage,) = gabn.build(dataclasses.replace(DIGITS, score="cosine", head=head, **changes))
    after, report = jax.jit(stage.step)(at(state, 2), batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    maps = jax.jit(functools.partial(maps_by_hand, score="cosine"))(network_part(state), batch)
    logits = np.asarray(JUDGE.apply({"params": state.params["discriminator"]}, 64 * maps))
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    groups = batch["group"]
    alike = 1 / np.bincount(groups)[groups] / 2
    expected = -(alike * log_probabilities[np.arange(16), groups]).sum()
    np.testing.assert_allclose(report["discriminator/loss"], expected, rtol=1e-4)
    expected = -(alike * log_probabilities[:, 1])[groups == 0].sum()
    np.testing.assert_allclose(report["adversarial_loss"], expected, rtol=1e-4)
    assert 0 < report["erased_loss"] < report["recognition_loss"]  # half of the images count


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "modes"), [(SHORT, ["jit", "pmap"]), (FACES, ["pmap"])], ids=["digits", "faces"]
)
def test_eight_devices_give_the_update_of_one(base, modes):
    """Groups are counted over the whole batch; with batch statistics the inner gradient crosses devices too."""
    config = dataclasses.replace(
        base,
        adversarial_weight=1.0,
        optimizer=training.Optimizer(learning_rate=0.01),
        discriminator=training.Optimizer(learning_rate=0.1),
    )
    stage, _, batch = started(config)
    batch["image"] = np.rint(batch["image"] * 127.5 + 127.5).astype(np.uint8)
    results = []
    for parallel in (
        training.make_parallel("jit", devices=jax.devices()[:1]),
        *(training.make_parallel(mode, devices=jax.devices()) for mode in modes),
    ):
        state = parallel.create(stage.init, jax.random.key(0), None, rules={})
        state, metrics = parallel.compile(stage.step)(state, batch)
        results.append(jax.device_get((parallel.single(state).params, parallel.single(state).extra, metrics)))
    for others in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-4), results[0], others)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "gradcam"},
        {"attention": "input", "adversary": "reversal", "fill": "noise"},
        {"layer": "stage1", "bfloat16": True},
    ],
)
def test_other_readings(changes):
    stage, state, batch = started(dataclasses.replace(SHORT, **changes))
    after, report = jax.jit(stage.step)(state, batch)
    assert all(np.isfinite(value) for value in report.values())
    if changes.get("adversary") == "reversal":
        assert report["adversarial_loss"] < 0
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.slow
def test_random_cells_are_drawn_anew_in_every_step(everything):
    _, state, batch = everything
    (stage,) = gabn.build(dataclasses.replace(DIGITS, erase_where="random"))
    step = jax.jit(stage.step)
    reports = [step(at(state, 2).replace(rng=jax.random.key(seed)), batch)[1] for seed in range(3)]
    assert len({float(report["erased_loss"]) for report in reports}) == 3
    assert len({float(report["recognition_loss"]) for report in reports}) == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--preset digits --batch-size 32", "fairness/accuracy@shortcut occlusion/shortcut_mass@shortcut"),
        (
            "--data toned --data.identities 6 4 --data.per-identity 4 --data.held-out-identities 4"
            " --data.held-out-per-identity 4 --backbone iresnet_pico --image-size 16 --cells 2 --embedding 16 --batch-size 16",
            "fairness/fnmr@tone-0.8-1 attention/coverage@tone-0-0.2 verification/accuracy",
        ),
        pytest.param(
            "--data rendered --data.identities 64 --data.per-identity 2 --data.held-out-identities 48"
            " --data.held-out-per-identity 4 --backbone iresnet_pico --image-size 16 --cells 2 --embedding 16 --batch-size 16"
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
        faces = data.RenderedSource(people, 4, 16, seed=len(name) + people)
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


R34 = 34_139_328 - 512  # InsightFace's r34 counts the scales of its last normalization, which it fixes at 1


def test_the_configuration_of_the_paper():
    """Against the recalled recipe of the paper's authors; the parameters are those of InsightFace's r34."""
    paper = gabn.Config.paper()
    assert (paper.cells, paper.erase, paper.image_size, paper.embedding) == (7, 3, 112, 512)
    assert (paper.head.loss, paper.head.scale, paper.head.margin) == ("arcface", 64.0, 0.5)
    optimizer = paper.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 5e-4)
    rates = jax.vmap(optimizer.learning_rates(paper.steps))(np.arange(0, paper.steps, 100))
    np.testing.assert_allclose(np.unique(rates), [1e-4, 1e-3, 1e-2, 1e-1], rtol=1e-5)  # thrice by 10
    assert 200 <= paper.batch_size <= 512 and paper.discriminator.learning_rate == 1e-4
    assert paper.erase_weight == 0.5 and paper.adversarial_weight == 0.1
    assert len(paper.packs) == 4 and "Caucasian" in paper.packs[paper.reference]
    assert paper.augment == data.Augment(flip=0.5)  # mirrored, nothing else
    written = json.loads(json.dumps(configs.to_dict("gabn", paper, configs.Run())))
    assert configs.from_dict(written)[1] == paper
    # The network of full size, to the last map of 7 x 7 x 512.
    model = gabn.network(paper)
    assert model.dropout > 0
    variables = jax.eval_shape(
        functools.partial(model.init, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 112, 112, 3), np.float32),
    )
    assert models.parameter_count(variables) == R34
    assert variables["params"]["head_dense"]["kernel"].shape == (7 * 7 * 512, 512)


@pytest.mark.slow
def test_a_step_of_the_paper_is_traced_in_full():
    """The network, batch and terms of the paper, on data of that shape."""
    paper = gabn.Config.paper()
    (stage,) = gabn.build(dataclasses.replace(paper, data=data.TonedFaces(), packs=(), reference=0))
    state = jax.eval_shape(stage.init, jax.random.key(0), None)
    assert models.parameter_count(state.params["backbone"]) == R34
    # 49 places, 64 hidden units, two groups.
    assert models.parameter_count(state.params["discriminator"]) == 49 * 64 + 64 + 64 * 2 + 2
    batch = {
        "image": jax.ShapeDtypeStruct((512, 112, 112, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((512,), jnp.int32),
        "group": jax.ShapeDtypeStruct((512,), jnp.int32),
    }
    after, report = jax.eval_shape(stage.step, state, batch)
    assert report["loss"].shape == () and report["loss"].dtype == jnp.float32
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.slow
def test_the_adversarial_term_makes_groups_more_alike():
    """The premise in the small, on a seed of the study at its full length: a shorter run is noise."""
    plain, balanced = (
        training.run(
            gabn.build(dataclasses.replace(gabn.Config.digits(), seed=3, data_seed=3, **ARMS[arm]))
        ).metrics
        for arm in ("baseline", "adversarial")
    )
    for better in ("fairness/accuracy@shortcut", "fairness/average"):
        assert balanced[better] > plain[better] + 0.01
    assert balanced["fairness/std"] < plain["fairness/std"] - 0.01
    # By occlusion, which nothing trains: attention has left the shortcut rather than been hidden.
    mass = "occlusion/shortcut_mass@shortcut"
    assert balanced[mass] < 0.7 * plain[mass]
