"""RBONN's recipe: two stages and a teacher, the gate and the look-ahead at work, the paper's numbers, and packed predictions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs, launch
from experiments.methods import rbonn
from experiments.programs import binary_report
from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import load, network
from experiments.recipes.teachers import TeacherSpec
from experiments.studies import rbonn as studies
from jaxface import models, optimizers, training
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers.rbonn import LAST_GRADIENT
from jaxface.models.binary import to_packed

CONFIG = rbonn.Config(steps=40, flip_window=10)


def one_device():
    return training.make_parallel(devices=jax.devices()[:1])


@functools.cache
def trained(**fields):
    """The stage, its state after some steps, and the state at the start."""
    config = dataclasses.replace(CONFIG, **fields)
    (stage,) = rbonn.build(config)
    start = jax.jit(lambda rng: stage.init(rng, None))(jax.random.key(0))
    step, batches, state = jax.jit(stage.step), stage.batches(start), start
    for _ in range(config.steps):
        batch = next(batches)
        state, metrics = step(state, {"image": normalize_pixels(batch["image"]), "label": batch["label"]})
    return stage, start, state, metrics


def layers(state):
    return {name: state.params["backbone"][name]["binary"] for name in ("block1", "block2", "block3")}


def test_the_binary_layers_alone_train():
    _, start, state, metrics = trained()
    before, after = (jax.device_get(s.params) for s in (start, state))
    moved = jax.tree_util.tree_map_with_path(
        lambda path, a, b: (bool((a != b).any()), any(entry.key == "binary" for entry in path)), before, after
    )
    assert all(
        changed == binary
        for changed, binary in jax.tree.leaves(moved, is_leaf=lambda x: isinstance(x, tuple))
    )
    assert float(metrics["loss"]) < 1.0


def test_the_gate_is_open_for_two_channels_in_five_and_u_moves():
    stage, start, state, _ = trained()
    report = stage.evaluate(state)
    assert report["gate/open"] == pytest.approx(25 / 64)
    assert report["gate/recurrence"] != pytest.approx(0.2, abs=1e-4)
    assert 0 < report["gate/flipped"] < 0.2 and 0 < report["signs/flip_rate"] < 0.2
    assert report["gate/weight"] < report["gate/other_weight"]  # dense A says small w
    assert report["classification/accuracy"] > 0.6
    for layer in layers(start).values():
        assert layer["recurrence"].tolist() == [np.float32(0.2)] * 64


def test_the_control_holds_its_signs():
    stage, start, state, _ = trained(train_only=())
    assert stage.evaluate(state)["signs/flip_rate"] == 0
    for before, after in zip(layers(start).values(), layers(state).values(), strict=True):
        np.testing.assert_array_equal(before["kernel"], after["kernel"])
    assert stage.evaluate(state)["classification/accuracy"] < 0.35


def test_the_last_gradient_is_what_the_layers_see():
    """With a gradient of zeros the step is that of the shut gate, whose next step differs."""
    _, start, state, _ = trained()
    last = optimizers.last_gradient(state.opt_state)["backbone"]
    assert last.keys() == {"block1", "block2", "block3"} and last["block1"]["binary"].keys() == {"kernel"}
    assert all(leaf.any() for leaf in jax.tree.leaves(last))
    assert LAST_GRADIENT not in state.extra
    zeros = optimizers.last_gradient(start.opt_state)["backbone"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))
    batch = {"image": jnp.linspace(-1, 1, 8 * 64).reshape(8, 8, 8, 1), "label": jnp.arange(8)}
    (shut,) = rbonn.build(dataclasses.replace(CONFIG, tau=1.0))
    (ahead,) = rbonn.build(CONFIG)
    differ = {
        name: optimizers.last_gradient(jax.jit(stage.step)(state, batch)[0].opt_state)["backbone"]
        for name, stage in (("shut", shut), ("ahead", ahead))
    }
    assert any(
        (a != b).any() for a, b in zip(*(jax.tree.leaves(tree) for tree in differ.values()), strict=True)
    )


def test_the_printed_form_keeps_its_signs():
    stage, start, state, _ = trained(weights="paper", optimizer=training.adam(0.1, schedule="linear"))
    report = stage.evaluate(state)
    for layer in layers(state).values():
        assert (layer["density"] > 0).all() and (layer["recurrence"] >= 0).all()
    assert report["gate/open"] < 0.4 and report["gate/flipped"] == 0  # a positive factor turns no sign
    norms = [jnp.abs(layer["kernel"]).mean() for layer in (layers(start)["block1"], layers(state)["block1"])]
    assert norms[1] > norms[0]


def test_trained_digits_are_predicted_the_same_on_packed_bits():
    """All 797 test images: the same class of each, the same scores."""
    _, _, state, _ = trained()
    model, split = rbonn.network(CONFIG), load(CONFIG)
    images = normalize_pixels(np.stack([split.held_out[i]["image"] for i in range(len(split.held_out))]))
    assert len(images) == 797
    variables = training.network_variables(state.params["backbone"], state.extra)
    packed = to_packed(model, variables)
    wanted, got = (
        training.class_scores(state.params, features, 10)
        for features in (
            jax.jit(functools.partial(model.apply, train=False))(variables, images),
            jax.jit(lambda network, images: network(images))(packed, images),
        )
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
    assert (got.argmax(1) == wanted.argmax(1)).all()
    kernels = sum(unit.weights.nbytes for unit in packed.units)
    assert kernels * 32 == sum(layer["kernel"].nbytes for layer in layers(state).values())


def test_arms_start_from_the_same_weights():
    study = studies.STUDIES["digits"]
    starts = []
    for arm in ("rbonn", "straight-through", "as printed"):  # the kinds of layers
        (stage,) = configs.build("rbonn", dataclasses.replace(study.base, **study.arms[arm]))
        starts.append(jax.jit(lambda rng, stage=stage: stage.init(rng, None))(jax.random.key(1)))
    for state in starts[1:]:
        for ours, first in zip(layers(state).values(), layers(starts[0]).values(), strict=True):
            np.testing.assert_array_equal(ours["kernel"], first["kernel"])
        np.testing.assert_array_equal(state.params["prototypes"], starts[0].params["prototypes"])


TEACHER = TeacherSpec(backbone="mlp_8", embedding=None, head=HeadSpec(loss="linear"), steps=2)
STAGED = rbonn.Config(
    steps=3, real_weight_steps=2, loss="distribution", teacher=TEACHER, train_only=None, batch_size=16
)


@functools.cache
def staged():
    seen = {}

    def watched():
        for stage in rbonn.build(STAGED):
            seen[stage.name] = yield stage

    training.run(watched(), seed=0, parallel=one_device())
    return seen


def test_two_stages_and_a_teacher():
    outcomes = staged()
    assert list(outcomes) == ["teacher", "real_weights", "binary"]
    first, last = (outcomes[name].state for name in ("real_weights", "binary"))
    assert "scale" not in first.params["backbone"]["block1"]["binary"]
    assert {"kernel", "scale", "recurrence"} == last.params["backbone"]["block1"]["binary"].keys()
    assert first.extra["teacher"]["params"].keys() == last.extra["teacher"]["params"].keys()


def test_the_second_stage_starts_from_the_weights_of_the_first():
    outcomes = staged()
    first = outcomes["real_weights"].state
    stage = rbonn.build(STAGED)[-1]
    start = stage.init(jax.random.key(5), first)
    ours, theirs = (s.params["backbone"]["block2"] for s in (start, first))
    np.testing.assert_array_equal(ours["binary"]["kernel"], theirs["binary"]["kernel"])
    np.testing.assert_array_equal(ours["norm"]["scale"], theirs["norm"]["scale"])
    scale = 0.02 * ours["binary"]["scale"]
    np.testing.assert_allclose(scale, jnp.abs(theirs["binary"]["kernel"]).mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(start.params["prototypes"], first.params["prototypes"])


def test_the_paper_recipe_against_the_source():
    """SteveTsui/RBONN: the numbers of its training script, and of torchvision for the teacher."""
    config = rbonn.Config.paper()
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

    def parameters(model):
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
        return models.parameter_count(variables) + 512 * 1000 + 1000

    student, teacher = rbonn.network(config), network(config, backbone="resnet34", embedding=None)
    # Kernels, normalization, three biases and a PReLU in each of 16 units; a scale and a U for each filter.
    assert parameters(student) == 11_704_424 + 2 * 4 * (64 + 128 + 256 + 512)
    assert parameters(teacher) == 21_797_672
    epochs = 1_281_167 // 512
    assert (config.steps, config.real_weight_steps, config.batch_size) == (256 * epochs, 256 * epochs, 512)
    rates = config.optimizer.learning_rates(config.steps)
    np.testing.assert_allclose(
        [rates(0), rates(config.steps // 2), rates(config.steps)], [1e-3, 5e-4, 0], rtol=1e-6
    )
    assert (config.optimizer.name, config.optimizer.momentum) == ("adam", 0.9)
    assert (config.optimizer.weight_decay, config.real_weight_optimizer.weight_decay) == (0.0, 1e-5)
    assert (config.bilinear_weight, config.tau, config.beta, config.recurrence_rate) == (1e-4, 0.6, 0.02, 0.1)
    assert student.conv.keywords["variant"] == "released_fixed" and config.loss == "distribution"
    assert config.teacher.backbone == "resnet34" and config.train_only is None
    # RandomResizedCrop of areas from 0.08 to 1, and mirroring.
    low, high = config.augment.crop_scale
    assert (low**2, high, config.augment.crop, config.augment.flip) == (pytest.approx(0.08), 1.0, 1.0, 0.5)


def test_u_learns_at_a_tenth_of_the_rate():
    config = dataclasses.replace(CONFIG, optimizer=training.adam(1e-2, schedule="constant"))
    tx = rbonn.Rule(config).build(10)
    params = {"binary": {"kernel": jnp.ones(2), "recurrence": jnp.ones(2)}}
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["binary"]["recurrence"], -1e-3, rtol=1e-4)
    np.testing.assert_allclose(updates["binary"]["kernel"], -1e-2, rtol=1e-4)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"tau": 1.5}, "tau: needs a number from 0 to 1, got 1.5"),
        ({"backbone": "mlp"}, "model 'mlp' has no field conv"),
        ({"beta": 0.0}, "beta: needs a finite number above 0, got 0"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        configs.build("rbonn", dataclasses.replace(CONFIG, **fields))


def test_a_layer_that_is_not_there_cannot_train():
    (stage,) = rbonn.build(dataclasses.replace(CONFIG, train_only=("binray",)))
    with pytest.raises(UserError, match="train_only: needs names of layers or parameters, got binray"):
        jax.eval_shape(lambda: stage.init(jax.random.key(0), None))


def test_the_report_of_a_network(capsys):
    binary_report.main(["binary_resnet18", "--size", "64", "--classes", "10"])
    said = capsys.readouterr().out
    assert "stage4_unit4/binary" in said and "11,196,554 parameters" in said


@pytest.mark.slow
def test_the_report_of_a_run(tmp_path, capsys):
    run = str(tmp_path / "run")
    launch.main(["rbonn", "--workdir", run, "--steps", "5", "--quiet"])
    binary_report.main(["--run", run])
    assert "100.0% top outputs the same" in capsys.readouterr().out
