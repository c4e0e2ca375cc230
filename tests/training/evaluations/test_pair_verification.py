"""Verification of a state: the metrics and figures of its embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxface import metrics, models, training
from jaxface.data import ArraySource

RNG = np.random.default_rng(0)
COUNT = 37
LABELS = (np.arange(COUNT) % 5).astype(np.int32)
SOURCE = ArraySource(RNG.integers(0, 256, (COUNT, 8, 8, 3), np.uint8), LABELS, list("abcde"))
MODEL = models.create("mlp", embedding=8, hidden=(16,))
RECOGNIZER = training.Recognizer(MODEL, 5, (8, 8, 3))


@pytest.fixture(scope="module")
def params():
    return RECOGNIZER.init(jax.random.key(0))[0]


def direct(backbone, flip=True):
    """All at once, without padding, batches or a mesh."""
    images = np.stack([SOURCE[i]["image"] for i in range(COUNT)]).astype(np.float64)
    images = jnp.asarray((images - 127.5) / 127.5, jnp.float32)
    one = MODEL.apply({"params": backbone}, images)
    return np.asarray(one + MODEL.apply({"params": backbone}, images[:, :, ::-1]) if flip else one)


def state(params, ema=None):
    return training.create_state(jax.random.key(0), params).replace(ema=ema)


@pytest.mark.parametrize("pairs", [None, "all"])
def test_verification_is_that_of_the_embeddings(params, pairs, tmp_path):
    evaluate = training.Verification(MODEL, SOURCE, pairs=pairs, seed=3)
    found = evaluate(state(params))
    expected = metrics.verify(direct(params["backbone"]), LABELS, pairs=pairs, seed=3)
    assert found == pytest.approx(expected, abs=1e-6)
    figures = evaluate.figures(state(params))
    assert set(figures) == {"roc", "similarity"}
    for name, draw in figures.items():
        with Image.open(draw(tmp_path / f"{name}.png"), formats=["PNG"]) as image:
            assert image.size[0] > 200


def of_one_color():
    """Every person is a color; any network that tells colors apart verifies them all."""
    colors = np.random.default_rng(1).integers(0, 256, (5, 1, 1, 3), np.uint8)
    return ArraySource(np.broadcast_to(colors[LABELS], (COUNT, 8, 8, 3)).copy(), LABELS, list("abcde"))


def test_verification_of_people_that_are_told_apart(params):
    report = training.Verification(MODEL, of_one_color())(state(params))
    assert report["verification/accuracy"] == report["verification/auc"] == 1.0
    assert report["verification/eer"] == 0.0


def test_the_moving_average_is_evaluated_where_there_is_one(params):
    other = RECOGNIZER.init(jax.random.key(5))[0]
    evaluate = training.Verification(MODEL, SOURCE)
    assert evaluate(state(other, ema=params)) == evaluate(state(params)) != evaluate(state(other))


def test_identification_is_reported_where_it_is_asked_for(params):
    state = training.create_state(jax.random.key(0), params)
    plain = training.Verification(MODEL, SOURCE)(state)
    both = training.Verification(MODEL, SOURCE, identify=True)(state)
    assert both == plain | metrics.open_set(direct(params["backbone"]), LABELS)
    assert "identification/rank1" in both


def test_a_verification_pack_has_no_identification(params):
    class Pack(ArraySource):
        pairs = metrics.make_pairs(LABELS, folds=2, per_fold=4)

    pack = Pack(np.stack([SOURCE[i]["image"] for i in range(COUNT)]), LABELS, list("abcde"))
    report = training.Verification(MODEL, pack, identify=True)(
        training.create_state(jax.random.key(0), params)
    )
    assert "verification/accuracy" in report and not any(key.startswith("identification") for key in report)
