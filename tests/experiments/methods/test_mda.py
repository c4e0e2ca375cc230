"""MDA as an experiment: what an epoch learns from, the paper's recipe against the source's numbers, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.methods.mda import Config, build, forgotten_share
from experiments.studies.mda import ARMS
from jaxface import data, losses, models, training
from jaxface.errors import UserError

FAST = training.adam(1e-2, schedule="linear", hold=0.5)
TINY = Config(
    backbone="mlp_32", optimizer=FAST, batch_size=96, steps=60, gradual=3
)  # ten steps an epoch, six epochs


def test_the_papers_recipe():
    """Source: seven-layer network, Adam 1e-3 held for 100 of 200 epochs, which begin at 1; batches of 512 of 50,000; λ 0.65."""
    config = Config.paper()
    model = models.create(config.backbone, embedding=100)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    convolutions = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 196), (196, 16)]
    expected = sum(9 * a * b + b + 2 * b for a, b in convolutions) + 256 * 100 + 100
    assert models.parameter_count(shapes) == expected == 541_280
    epoch = 50_000 // 512
    assert (config.batch_size, epoch, config.steps) == (512, 97, 199 * 97)
    assert config.data.noise == data.LabelNoise("symmetric", 0.8)
    assert (config.score_agreement, config.agreement_weight, config.gradual, config.exponent) == (
        0.65,
        1.0,
        10,
        1.0,
    )
    assert (config.selection, config.mirrored, int(config.freeze * 199)) == ("global", True, 99)
    assert config.augment.flip == 0 and (config.optimizer.name, config.optimizer.weight_decay) == (
        "adam",
        0.0,
    )
    rates = config.optimizer.learning_rates(config.steps)
    for number, rate in {1: 1e-3, 99: 1e-3, 150: 5e-4, 199: 1e-5}.items():
        np.testing.assert_allclose(rates((number - 1) * epoch), rate, rtol=1e-5)
    assert config.image_size == 32


def test_the_perceptron_of_mnist():
    model = models.create("mlp_256", embedding=10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    assert models.parameter_count(shapes) == 784 * 256 + 256 + 256 * 10 + 10


@pytest.fixture(scope="module")
def learned():
    return training.run(build(TINY), seed=0)


def test_a_run_reports_what_it_learned_from(learned):
    found = learned.metrics
    assert found["classification/accuracy"] > 0.2 and 0.45 < found["noise/rate"] < 0.55
    assert found["selection/precision"] > 0.55 > 1 - found["noise/rate"], "better than chance"
    history = learned.state.extra["history"]
    assert np.isfinite(history["accuracy"][:5]).all() and np.isnan(history["accuracy"][5])
    np.testing.assert_allclose(
        found["classification/recent_accuracy"],
        np.mean([*history["accuracy"][:5], found["classification/accuracy"]]),
        rtol=1e-6,
    )
    assert int(learned.state.extra["selected"].sum()) == 500 and int(learned.state.extra["count"]) == 48


def test_the_figure(learned, tmp_path):
    (stage,) = build(TINY)
    (draw,) = stage.evaluate.figures(learned.state).values()
    assert draw(tmp_path / "epochs.png").stat().st_size > 1000


class Stop(Exception):
    """Stands for the end of the process."""


def test_a_killed_run_ends_where_the_whole_one_does(learned, tmp_path):
    (stage,) = build(TINY)

    def batches(state):
        opened = stage.batches(state)

        class Trap(type(opened)):
            def __next__(self):
                if self._step == 30:
                    raise Stop
                return super().__next__()

        opened.__class__ = Trap
        return opened

    cadence = training.Cadence(checkpoint_every=15)
    with pytest.raises(Stop):
        training.run([dataclasses.replace(stage, batches=batches)], seed=0, workdir=tmp_path, cadence=cadence)
    resumed = training.run([stage], seed=0, workdir=tmp_path, cadence=cadence)
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params, learned.state.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.state.extra, learned.state.extra)
    assert resumed.metrics == learned.metrics


def refreshed(config, **changes):
    """A fresh state of a run, and what its stage makes of it before the first step."""
    (stage,) = build(dataclasses.replace(config, **changes))
    state = stage.init(jax.random.key(0), None)
    return stage, state, stage.refresh(state)


def test_the_choice_is_by_mirror_images_over_the_whole_training_set():
    config = dataclasses.replace(TINY, gradual=1)  # half of the labels are left out at once
    split = data.load(config.data)
    images = np.stack([split.train[i]["image"] for i in range(1000)]) / 127.5 - 1
    for mirrored in (True, False):
        _, state, chosen = refreshed(config, mirrored=mirrored)
        seen = images[:, :, ::-1] if mirrored else images
        network = models.create("mlp_32", embedding=10)
        logits = jax.vmap(network.apply, in_axes=(0, None))(
            {"params": state.params["backbone"]["network"]}, jnp.asarray(seen, jnp.float32)
        )
        scores = np.asarray(losses.jocor_scores(*logits, split.train.labels, agreement=0.65))
        expected = np.sort(np.argsort(scores, kind="stable")[:500])
        assert (
            len(np.setdiff1d(np.flatnonzero(chosen.extra["selected"]), expected)) <= 2
        )  # rounding at the edge
    assert (np.asarray(state.params["backbone"]["network"]["hidden1"]["kernel"])[0] != 0).any()


def test_the_choice_is_frozen_after_half_of_the_epochs():
    stage, state, chosen = refreshed(TINY)
    other = jax.tree.map(lambda x: x[:, ::-1], state.params)  # other weights, other losses
    for epoch, same in {2: False, 3: False, 4: True, 6: True}.items():
        later = stage.refresh(chosen.replace(step=jnp.int32((epoch - 1) * 10), params=other))
        assert (later.extra["selected"] == chosen.extra["selected"]).all() == same


@pytest.mark.parametrize(
    "arm",
    [
        "JoCoR",
        "Co-teaching",
        *(pytest.param(arm, marks=pytest.mark.slow) for arm in ("plain", "global selection, MPE")),
    ],
)
def test_other_arms_learn_what_they_say(arm):
    stage, _, state = refreshed(TINY, **ARMS[arm], gradual=1)
    batch = {**next(stage.batches(state))}
    batch["image"] = batch["image"] / np.float32(127.5) - 1
    after, report = jax.jit(stage.step)(state, batch)
    right, learned, could = after.extra["tally"].tolist()
    expected = {"plain": 192, "JoCoR": 96, "Co-teaching": 96}
    shared = 2 * np.asarray(state.extra["selected"])[batch["index"]].sum()
    assert learned == expected.get(arm, shared) and right <= learned
    assert could == 2 * (batch["label"] == batch["true_label"]).sum()
    agreement = report["agreement_loss"] if arm.endswith("MPE") else 0.0
    np.testing.assert_allclose(report["loss"], report["supervised_loss"] + agreement, rtol=1e-5)


@pytest.mark.slow
def test_replicas_learn_as_one_device():
    config = dataclasses.replace(TINY, steps=20)
    for arm in ("mda", "JoCoR"):
        (stage,) = build(dataclasses.replace(config, **ARMS[arm]))
        outcomes = [
            training.run(
                [stage], seed=0, parallel=training.make_parallel(mode, devices=jax.devices()[:devices])
            )
            for mode, devices in (("jit", 1), ("pmap", 4), ("jit", 4))
        ]
        for other in outcomes[1:]:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
                outcomes[0].state.params,
                other.state.params,
            )


def test_what_is_left_out_is_what_is_expected_to_be_wrong():
    def share(noise, **changes):
        spec = data.Digits(noise=noise)
        return forgotten_share(dataclasses.replace(TINY, data=spec, **changes), data.load(spec).train)

    assert share(data.LabelNoise("symmetric", 0.4)) == pytest.approx(0.4)
    assert share(data.LabelNoise("uniform", 0.4)) == pytest.approx(0.36)
    asymmetric = data.LabelNoise("asymmetric", 0.4)
    assert share(asymmetric) == pytest.approx(0.2, abs=0.01), "half of the classes are taken for others"
    assert share(asymmetric, forget_rule="half") == 0.2
    assert share(asymmetric, forget=0.3) == 0.3
    assert share(data.LabelNoise(), selection="all") == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"augment": data.Augment(flip=0.5)},
            r"augment\.flip: needs 0 where mirror images say what is learned",
        ),
        ({"accumulate": 2}, "accumulate: needs 1"),
        ({"init_from": "run"}, "init_from: two networks start"),
        ({"data": data.Digits()}, "forget: needs the share of wrong labels"),
        ({"data": data.Procedural()}, "data: needs classes to be told apart"),
        (
            {"data": data.Digits(noise=data.LabelNoise(rate=1.0))},
            r"noise\.rate: needs a number from 0 and below 1",
        ),
        ({"batch_size": 2000}, "batch_size: needs at most the 1000 records"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(UserError, match=words) as refused:
        build(dataclasses.replace(TINY, **changes))
    assert "\n" not in str(refused.value)


def test_losses_that_are_not_finite_stop_the_run():
    stage, state, _ = refreshed(TINY)
    broken = state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
    with pytest.raises(training.Diverged, match=r"^the loss of an example is not finite before step 1$"):
        stage.refresh(broken)
