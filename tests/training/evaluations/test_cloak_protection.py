import jax
import numpy as np
import pytest

from jaxface import attacks, data, metrics, training
from jaxface.errors import UserError

RNG = np.random.default_rng(0)
# Eight people with six images each, of which the first have fewer.
LABELS = np.array([0] * 3 + [label for label in range(1, 8) for _ in range(6)], np.int32)
IMAGES = RNG.integers(0, 256, (len(LABELS), 4, 4, 1), np.uint8)
UNSEEN = data.ArraySource(IMAGES, LABELS, [f"person {i}" for i in range(8)])
SIZES = {"people": 5, "photos": 3, "tests": 5, "people_per_step": 2}


@pytest.fixture(scope="module")
def trial():
    return training.CloakTrial.divide(UNSEEN, **SIZES)


class Flat:
    """Pixels as embeddings, some of them weighted down."""

    def __init__(self, weight):
        self.weight = weight

    def apply(self, variables, images, *, train):
        return images.reshape(len(images), -1) * self.weight


def frozen(seed):
    weight = np.random.default_rng(seed).uniform(0.1, 1, 16).astype(np.float32)
    return training.FrozenNetwork(Flat(weight), {"params": {}})


def test_photos_are_used_once_and_everybody_else_is_a_distractor(trial):
    photos = {image.tobytes() for person in range(5) for image in trial.photos[person]["image"]}
    tests = {image.tobytes() for person in trial.tests for image in person}
    others = {image.tobytes() for image in trial.distractors}
    assert (len(photos), len(tests), len(others)) == (15, 15, 15)
    assert not (photos & tests or (photos | tests) & others)
    assert trial.tests.shape == (5, 3, 4, 4, 1)
    for person in range(5):  # the tests of a person are of the person of the photos; person 0 has too few
        first = 3 + 6 * person
        assert trial.photos[person]["label"] == person
        np.testing.assert_array_equal(trial.photos[person]["image"], IMAGES[first : first + 3])
        np.testing.assert_array_equal(trial.tests[person], IMAGES[first + 3 : first + 6])
    assert trial.photos.class_names == [f"person {i}" for i in range(1, 6)]
    assert len(trial.photos) % jax.device_count() == 0 and set(trial.photos.labels) == set(range(5))


def test_more_distractors_join_those_that_are_left_over():
    more = data.ArraySource(IMAGES[:2], LABELS[:2], UNSEEN.class_names)
    trial = training.CloakTrial.divide(UNSEEN, **SIZES, more_distractors=more)
    assert len(trial.distractors) == 17
    np.testing.assert_array_equal(trial.distractors[-2:], IMAGES[:2])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"people": 8}, "people: needs 8 people with at least 5 photos .*, got 7 of 8"),
        ({"people": 7}, r"people: PSR@5 needs at least 4 images of distractors, got 3"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        training.CloakTrial.divide(UNSEEN, **{**SIZES, **changes})
    assert "\n" not in str(caught.value)


def test_rates_are_those_of_the_metric_and_the_mean_is_over_the_black_boxes(trial, monkeypatch):
    monkeypatch.setattr(training.evaluations.cloak_protection, "embed_source", embed_pixels)
    networks = {name: frozen(seed) for seed, name in enumerate(("surrogate", "target1", "target2"))}
    protection = training.CloakProtection(networks, trial, epsilon=24.0, seed=3)
    masks = np.random.default_rng(1).choice(np.float32([-24, 24]), (5, 4, 4, 1))
    state = training.create_state(jax.random.key(0), {"masks": masks})
    cloak = attacks.Cloak(steps=3, accumulate=2, batch=2)
    report = protection.evaluate(state, cloak)
    cloaked = np.asarray(attacks.apply_cloak(trial.tests, masks[:, None]))
    for name, network in networks.items():
        rates = metrics.protection_success(
            *(network.embeddings(images) for images in (cloaked, trial.tests, trial.distractors)), (1, 5)
        )
        assert {k: report[f"{name}/psr@{k}"] for k in (1, 5)} == rates
    for k in (1, 5):
        mean = np.mean([report[f"target{i}/psr@{k}"] for i in (1, 2)])
        assert report[f"black_box/psr@{k}"] == pytest.approx(mean)
    clean = protection.success(np.zeros_like(masks))
    assert report["surrogate/clean_psr@1"] == clean["surrogate/psr@1"]
    assert report["black_box/random_psr@5"] == protection.floors["black_box/random_psr@5"]
    assert report["photo_gradients"] == 12
    assert set(protection.figures(state, {"opom": report})) == {"cloaked", "protection"}


def embed_pixels(model, backbone, extra, source, *, flip):
    images = np.stack([source[i]["image"] for i in range(len(source))]).astype(np.float32) / 127.5 - 1
    return model.apply({"params": backbone, **extra}, images, train=False)
