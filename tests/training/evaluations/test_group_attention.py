import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import data, metrics, models, training
from jaxface.layers.prototypes import l2_normalize

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8)
SOURCE = data.ArraySource(
    IMAGES,
    np.arange(7, dtype=np.int32) % 3,
    ["a", "b", "c"],
    groups=np.array([0, 1, 0, 1, 1, 0, 0]),
    group_names=["one", "two"],
)


@pytest.fixture(scope="module")
def recognizer():
    model = models.create("convnet", embedding=6)
    return training.AttentiveRecognizer(
        training.Recognizer(model, 3, (8, 8, 1)), "stage2", (4, 4), "elementwise"
    )


@pytest.fixture(scope="module")
def state(recognizer):
    params, extra = jax.jit(recognizer.recognizer.init)(jax.random.key(1))
    return training.create_state(jax.random.key(0), params, extra=extra)


@pytest.fixture(scope="module")
def report(recognizer, state):
    region = np.zeros((8, 8), bool)
    region[:4, :4] = True
    evaluate = training.GroupAttention(recognizer, SOURCE, cells=2, region=region)
    assert not hasattr(evaluate, "figures")
    return evaluate(state)


def test_occlusion_is_the_drop_of_the_target_cosine(recognizer, state, report):
    model = recognizer.recognizer.model
    images = (IMAGES.astype(np.float32) - 127.5) / 127.5
    targets = l2_normalize(state.params["prototypes"][SOURCE.labels])

    def target_cosines(images):
        embeddings = model.apply({"params": state.params["backbone"]}, images, train=False)
        return np.asarray(jnp.sum(l2_normalize(embeddings) * targets, axis=1))

    maps = np.zeros((7, 2, 2))
    for row in range(2):
        for column in range(2):
            erased = images.copy()
            erased[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0
            maps[:, row, column] = np.maximum(target_cosines(images) - target_cosines(erased), 0)
    speaks = maps.any(axis=(1, 2))
    assert report["occlusion/empty"] == pytest.approx(1 - speaks.mean())
    for group, name in enumerate(("one", "two")):
        members = maps[speaks & (SOURCE.groups == group)]
        expected = metrics.attention_coverage(members).mean()
        assert report[f"occlusion/coverage@{name}"] == pytest.approx(expected, abs=1e-4)
        corner = (members[:, 0, 0] / members.sum(axis=(1, 2))).mean()
        assert report[f"occlusion/shortcut_mass@{name}"] == pytest.approx(corner, abs=1e-4)


def test_attention_is_described_for_every_group(recognizer, state, report):
    batch = {"image": (IMAGES.astype(np.float32) - 127.5) / 127.5, "label": SOURCE.labels}
    look = recognizer(state.params, state.extra, batch, jax.random.key(0), train=False)
    assert look.embeddings.shape == (7, 6) and look.attention.maps.shape == (7, 4, 4)
    maps, valid = (np.asarray(value) for value in look.attention)
    assert report["attention/gap"] == pytest.approx(
        metrics.attention_gap(maps[valid], SOURCE.groups[valid]), abs=1e-4
    )
    for group, name in enumerate(("one", "two")):
        members = maps[valid & (SOURCE.groups == group)]
        expected = metrics.sensitive_area(members).mean()
        assert report[f"attention/sensitive_area@{name}"] == pytest.approx(expected, abs=1e-4)


def test_a_large_source_is_looked_at_evenly(recognizer):
    few = training.GroupAttention(recognizer, SOURCE, cells=2, records=3)
    assert [int(label) for label in few.source.labels] == [0, 0, 0] and few.groups.tolist() == [0, 1, 0]
