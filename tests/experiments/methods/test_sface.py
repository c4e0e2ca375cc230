import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs
from experiments.methods import sface
from jaxface import data, losses, training
from jaxface.errors import UserError

DIGITS = dataclasses.replace(sface.Config.digits(), steps=4)


@pytest.fixture
def orders(monkeypatch):
    """What `build` asks of the input pipeline."""
    asked = []
    make = data.batches

    def batches(source, **arguments):
        asked.append((source, arguments))
        return make(source, **arguments)

    monkeypatch.setattr(data, "batches", batches)
    return asked


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 1.0])
def test_label_noise_replaces_that_fraction_of_the_training_labels_alone(orders, fraction):
    (stage,) = sface.build(dataclasses.replace(DIGITS, label_noise=fraction, data_seed=3))
    source, arguments = orders[0]
    wrong = arguments["label_override"] != source.labels
    assert wrong.sum() == round(fraction * 1000)
    clean = data.load(data.Digits(), image_size=8, seed=3)
    np.testing.assert_array_equal(source.labels, clean.train.labels)
    np.testing.assert_array_equal(stage.evaluate.parts[0].source.labels, clean.held_out.labels)
    batch = next(stage.batches(None))
    assert batch["label"].shape == (128,) and batch["image"].shape == (128, 8, 8, 1)
    if fraction == 1.0:
        pixels = {source[i]["image"].tobytes(): source[i]["label"] for i in range(len(source))}
        assert all(pixels[x.tobytes()] != y for x, y in zip(batch["image"], batch["label"], strict=True))


def test_wrong_labels_and_people_follow_the_data_seed_alone(orders):
    for seed, data_seed in ((0, 0), (1, 0), (0, 1)):
        sface.build(dataclasses.replace(DIGITS, label_noise=0.4, seed=seed, data_seed=data_seed))
    first, same_data, other_data = (arguments["label_override"] for _, arguments in orders)
    np.testing.assert_array_equal(first, same_data)
    assert (first != other_data).any()
    assert [arguments["seed"] for _, arguments in orders] == [0, 1, 0]


@pytest.mark.parametrize("name", ["sface", "softmax", "cosface", "arcface"])
def test_the_loss_is_the_one_of_the_library(name):
    cosines = jnp.asarray(np.random.default_rng(0).uniform(-0.9, 0.9, (6, 5)), jnp.float32)
    labels = jnp.arange(6) % 5
    config = dataclasses.replace(
        DIGITS, loss=name, scale=16.0, margin=0.3, sharpness=40.0, intra_angle=1.1, inter_angle=1.25
    )
    expected = {
        "sface": lambda: losses.sface_loss(
            cosines, labels, scale=16.0, sharpness=40.0, intra_angle=1.1, inter_angle=1.25
        ),
        "softmax": lambda: losses.softmax_loss(cosines, labels, scale=16.0),
        "cosface": lambda: losses.cosface_loss(cosines, labels, scale=16.0, margin=0.3),
        "arcface": lambda: losses.arcface_loss(cosines, labels, scale=16.0, margin=0.3),
    }[name]()
    np.testing.assert_array_equal(sface.head(config).loss(cosines, labels), expected)


def test_a_margin_is_its_losses_own_unless_given():
    assert sface.head(dataclasses.replace(DIGITS, loss="cosface")) == losses.CosFace(64.0, 0.35)
    assert sface.head(dataclasses.replace(DIGITS, loss="arcface")) == losses.ArcFace(64.0, 0.5)


def test_the_first_loss_is_the_one_of_the_first_batch():
    (stage,) = sface.build(dataclasses.replace(DIGITS, loss="arcface", scale=16.0, margin=0.3))
    state = jax.jit(stage.init)(jax.random.key(0), None)
    batch = next(stage.batches(None))
    image = (batch["image"].astype(np.float32) - 127.5) / 127.5
    embeddings = sface.network(DIGITS).apply({"params": state.params["backbone"]}, image)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (embeddings, state.params["prototypes"])]
    cosines = jnp.asarray(unit[0] @ unit[1].T, jnp.float32)
    expected = losses.arcface_loss(cosines, batch["label"], scale=16.0, margin=0.3).mean()
    _, metrics = jax.jit(stage.step)(state, {"image": image, "label": batch["label"]})
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], (cosines.argmax(1) == batch["label"]).mean(), atol=1e-6)
    target = np.take_along_axis(np.asarray(cosines), batch["label"][:, None], 1).mean()
    np.testing.assert_allclose(metrics["target_cosine"], target, atol=1e-5)


def test_digits_are_learned():
    config = dataclasses.replace(sface.Config.digits(), loss="softmax", scale=16.0)
    outcome = training.run(sface.build(config), seed=0)
    assert outcome.metrics["classification/accuracy"] > 0.93  # 0.969 after the same 15 epochs


@pytest.mark.parametrize(
    ("wrong", "loss"),
    [
        ({"scale": 0.0}, "sface"),
        ({"scale": -1.0}, "softmax"),
        ({"scale": float("nan")}, "arcface"),
        ({"sharpness": -1.0}, "sface"),
        ({"intra_angle": 3.2}, "sface"),
        ({"inter_angle": -0.1}, "sface"),
        ({"margin": -0.1}, "arcface"),
        ({"margin": -0.1}, "cosface"),
    ],
)
def test_a_loss_out_of_its_range_is_refused_before_any_data_is_opened(monkeypatch, wrong, loss):
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("the data was opened"))
    with pytest.raises(UserError, match=rf"^{next(iter(wrong))}: needs a (finite )?number") as caught:
        configs.build("sface", dataclasses.replace(DIGITS, loss=loss, **wrong))
    assert "\n" not in str(caught.value)


def test_protocol_and_best_checkpoint_follow_the_data():
    (stage,) = sface.build(DIGITS)
    assert isinstance(stage.evaluate.parts[0], training.NearestPrototype)
    assert stage.best == "classification/accuracy"
    faces = data.RenderedFaces(8, 4, held_out_identities=6, held_out_per_identity=4)
    (stage,) = sface.build(dataclasses.replace(DIGITS, data=faces, image_size=16, batch_size=16))
    assert isinstance(stage.evaluate.parts[0], training.Verification)
    assert stage.best == "verification/accuracy" and callable(stage.evaluate.figures)
    assert len(stage.evaluate.parts[0].source) == 24


def test_the_configuration_of_the_paper():
    paper = sface.Config.paper()
    assert paper.loss == "sface" and (paper.scale, paper.sharpness) == (64.0, 80.0)
    assert (paper.intra_angle, paper.inter_angle) == (0.87, 1.2)
    # The PyTorch release: IR units, dropout 0.5, prototypes from normal(2 sqrt(2/C)), of length 0.622 for 10,572 people.
    network = sface.network(paper)
    assert (network.block, network.dropout, network.embedding) == ("sface", 0.5, 512)
    assert paper.prototype_std * 512**0.5 == pytest.approx(0.622, abs=5e-4)
    assert paper.batch_size == 256 and paper.augment == data.Augment(flip=0.5)
    rate = paper.optimizer.learning_rates(paper.steps)
    rates = [float(rate(step)) for step in (0, 99_999, 100_001, 140_001, 160_001)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.001, 0.0001], rtol=1e-5)


def test_wrong_labels_stay_at_larger_angles(tmp_path):
    config = dataclasses.replace(sface.Config.digits(), label_noise=0.4)
    outcome = training.run(sface.build(config), workdir=tmp_path)
    right, wrong = (outcome.metrics[f"label_noise/angle_{kind}"] for kind in ("right", "wrong"))
    assert 1.0 < right < 1.25 < wrong - 0.05
    assert outcome.metrics["label_noise/auc"] > 0.9
    assert (tmp_path / "wrong_labels.png").stat().st_size > 1000
    clean = sface.build(sface.Config.digits())
    assert not any(key.startswith("label_noise") for key in training.run(clean).metrics)
