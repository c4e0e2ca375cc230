import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import data, metrics, models, training
from jaxface.errors import UserError

RNG = np.random.default_rng(0)
LABELS = (np.arange(30) % 6).astype(np.int32)
CENTERS = RNG.integers(0, 256, (6, 8, 8, 3))
IMAGES = np.clip(CENTERS[LABELS] + RNG.normal(0, 60, (30, 8, 8, 3)), 0, 255).astype(np.uint8)
SOURCE = data.ArraySource(IMAGES, LABELS, list("abcdef"))
MODEL = models.create("mlp", embedding=8, hidden=(16,))


@pytest.fixture(scope="module")
def state():
    params, extra = training.Recognizer(MODEL, 6, (8, 8, 3)).init(jax.random.key(0))
    return training.create_state(jax.random.key(0), params, extra=extra)


def embedded(state, size):
    small = np.stack([data.resize_twice(image, size) for image in IMAGES])
    return np.asarray(MODEL.apply({"params": state.params["backbone"]}, (small - 127.5) / np.float32(127.5)))


def test_verification_and_identification_at_every_size(state):
    evaluate = training.CrossResolution(MODEL, SOURCE, (8, 2, 4), flip=False, seed=3)
    found = evaluate(state)
    accuracies, rates = [], []
    for size in (2, 4, 8):
        probes = embedded(state, size)
        accuracies.append(metrics.verify(probes, LABELS, seed=3)["verification/accuracy"])
        similarity = metrics.similarity_matrix(
            metrics.normalize(probes[6:]), metrics.normalize(embedded(state, 8)[:6])
        )
        rates.append(metrics.rank_k(similarity, LABELS[6:]))
    assert found == pytest.approx(
        {
            "resolution/accuracy": np.mean(accuracies),
            "resolution/rank1": np.mean(rates),
            **{f"resolution/accuracy@{s}px": a for s, a in zip((2, 4, 8), accuracies, strict=True)},
            **{f"resolution/rank1@{s}px": r for s, r in zip((2, 4, 8), rates, strict=True)},
        }
    )
    assert found["resolution/rank1@8px"] > found["resolution/rank1@2px"]


def test_classification_uses_the_prototypes(state):
    found = training.CrossResolution(MODEL, SOURCE, (4,), classify=True, flip=False)(state)
    expected = metrics.nearest_prototype_accuracy(
        embedded(state, 4), np.asarray(state.params["prototypes"])[:6], LABELS
    )
    assert found["resolution/accuracy@4px"] == expected


def test_galleries_are_averaged(state):
    found = training.CrossResolution(MODEL, SOURCE, (4,), flip=False, galleries=2)(state)
    rates = []
    for rows in (np.arange(6), np.arange(6, 12)):
        others = np.setdiff1d(np.arange(30), rows)
        ranks = metrics.labeled_ranks(
            embedded(state, 4)[others], LABELS[others], embedded(state, 8)[rows], LABELS[rows]
        )
        rates.append((ranks == 1).mean())
    assert found["resolution/rank1@4px"] == pytest.approx(np.mean(rates)) and rates[0] != rates[1]


def test_a_source_with_pairs_has_no_identification(state):
    source = data.ArraySource(IMAGES, LABELS, list("abcdef"))
    source.pairs = metrics.make_pairs(LABELS, folds=3, seed=1)
    found = training.CrossResolution(MODEL, source, (4,), flip=False)(state)
    expected = metrics.verify(embedded(state, 4), None, pairs=source.pairs)["verification/accuracy"]
    assert found == {"resolution/accuracy": expected, "resolution/accuracy@4px": expected}


def test_the_figure_is_drawn(state, tmp_path):
    evaluate = training.CrossResolution(MODEL, SOURCE, (2, 4, 8))
    evaluate(state)
    (draw,) = evaluate.figures(state).values()
    assert draw(tmp_path / "resolution.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sizes": ()}, "probe_sizes: needs at least one, got none"),
        ({"sizes": (4, 9)}, "probe_sizes: needs sides from 1 to 8, got 9"),
        ({"sizes": (0,)}, "probe_sizes: needs sides from 1 to 8, got 0"),
        ({"sizes": (4,), "galleries": 0}, "galleries: needs an integer from 1, got 0"),
        ({"sizes": (4,), "galleries": 5}, "galleries: 5 need more than 5 images of every class, one has 5"),
    ],
)
def test_refusals_in_one_line(arguments, words):
    with pytest.raises(UserError, match=f"^{words}$"):
        training.CrossResolution(MODEL, SOURCE, **arguments)


def test_gradient_norms_are_those_of_the_batch_mean():
    """For mean(w x) the gradient is the mean image: a constant keeps its norm, fine stripes lose theirs."""
    constant = jnp.full((3, 8, 8, 1), 51 / 127.5)
    stripes = jnp.broadcast_to((jnp.arange(8) % 2 * 2.0 - 1)[None, None, :, None], (3, 8, 8, 1))

    def loss(params, images, labels):
        return jnp.mean(jnp.einsum("hwc,bhwc->b", params["w"], images) + params["b"] * labels)

    params = {"w": jnp.zeros((8, 8, 1)), "b": jnp.zeros(())}
    labels = jnp.array([3, 3, 6])
    found = training.resolution_gradient_norms(loss, params, constant, labels, (8, 4, 1))
    np.testing.assert_allclose(found, np.hypot(8 * 0.4, 4.0), rtol=1e-2)
    found = training.resolution_gradient_norms(loss, params, stripes, 0 * labels, (8, 4))
    assert isinstance(found, np.ndarray) and found[0] == pytest.approx(8, rel=1e-2) and found[1] < 3
    gradient = jax.grad(loss)(params, data.low_resolution(stripes, 4), labels)
    found = training.resolution_gradient_norms(loss, params, stripes, labels, (4,))
    np.testing.assert_allclose(found, [optax.tree.norm(gradient)], rtol=1e-5)
