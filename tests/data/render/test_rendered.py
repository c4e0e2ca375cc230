import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import euclidean_distances

from jaxface.data.render.rendered import RenderedSource, draw_faces
from jaxface.data.render.variation import Variation
from jaxface.data.sources.source import Source
from jaxface.data.transforms.alignment import template
from jaxface.errors import UserError


@pytest.fixture(scope="module")
def source():
    return RenderedSource(5, 8, 32)


def test_is_a_source(source):
    assert isinstance(source, Source) and len(source) == 40 and source.image_shape == (32, 32, 3)
    np.testing.assert_array_equal(source.labels, np.repeat(np.arange(5), 8))
    assert source.labels.dtype == np.int32 and len(source.class_names) == 5
    record = source[17]
    assert record["image"].shape == (32, 32, 3) and record["image"].dtype == np.uint8
    assert record["label"] == 2 and record["label"].dtype == np.int32
    assert record["landmarks"].shape == (5, 2) and record["boxes"].shape == (1, 4)
    for name in ("spoof", "expression", "group"):
        assert record[name].shape == () and record[name].dtype == np.int32
    assert "depth" not in record
    for index in (40, -1):
        with pytest.raises(IndexError):
            source[index]


def test_image_depends_on_person_and_shot_alone(source):
    other = RenderedSource(2, 3, 32, first_identity=3)
    for person, shot in itertools.product(range(2), range(3)):
        a, b = other[person * 3 + shot], source[(person + 3) * 8 + shot]
        for name in ("image", "landmarks", "expression", "group"):
            np.testing.assert_array_equal(a[name], b[name])
    assert (RenderedSource(2, 3, 32, seed=1)[0]["image"] != source[0]["image"]).mean() > 0.5


def test_threads_and_pickling_give_the_same(source):
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 40
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(copy.__getitem__, reversed(range(40))))
    for index, record in zip(reversed(range(40)), records, strict=True):
        np.testing.assert_array_equal(record["image"], source[index]["image"])
    prepared = RenderedSource(5, 8, 32).prepare()
    np.testing.assert_array_equal(prepared[39]["image"], source[39]["image"])


def test_identity_is_fixed_and_the_rest_varies():
    people = jnp.repeat(jnp.arange(4, dtype=jnp.int32), 6)
    shots = jnp.tile(jnp.arange(6, dtype=jnp.int32), 4)
    faces = draw_faces(np.uint32(0), people, shots, variation=Variation(), aligned=True)
    for leaf in jax.tree.leaves(faces.identity):
        groups = np.asarray(leaf).reshape(4, 6, -1)
        assert (groups == groups[:, :1]).all() and np.ptp(groups[:, 0], axis=0).min() > 0
    for leaf in (faces.expression, faces.pose, faces.light, faces.background, faces.sensor.gain):
        groups = np.asarray(leaf).reshape(24, -1)
        assert len(np.unique(groups.round(5), axis=0)) == 24


def test_depth_and_unaligned():
    source = RenderedSource(2, 2, 32, with_depth=True, aligned=False, variation=Variation.spoofing())
    record = source[3]
    assert record["depth"].shape == (32, 32) and record["depth"].dtype == np.float32
    y0, x0, y1, x1 = record["boxes"][0]
    assert 0 <= y0 < y1 < 32 and 0 <= x0 < x1 < 32
    assert 0.35 < (x1 - x0) / 32 < 0.85


def test_refusals():
    for arguments, words in (
        ((0, 4), "identities"),
        ((4, 0), "per_identity"),
        ((4, 4, 7), "image_size: needs an integer from 8"),
    ):
        with pytest.raises(UserError, match=words):
            RenderedSource(*arguments)
    with pytest.raises(UserError, match="first_identity"):
        RenderedSource(4, 4, first_identity=-1)


def features(source):
    images = np.stack([source[k]["image"] for k in range(len(source))]).astype(np.float32) / 255
    return images.reshape(len(images), -1)


def pairs(labels, rng, count):
    """Equal numbers of same and different pairs."""
    same, different = [], []
    while len(same) < count or len(different) < count:
        i, j = rng.integers(len(labels), size=2)
        if i != j:
            (same if labels[i] == labels[j] else different).append((i, j))
    return np.array(same[:count] + different[:count]), np.repeat([1, 0], count)


def verification_accuracy(embeddings, labels, rng, folds=10, count=1500):
    """The threshold is chosen on nine folds and judged on the tenth."""
    chosen, truth = pairs(labels, rng, count)
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores = (embeddings[chosen[:, 0]] * embeddings[chosen[:, 1]]).sum(1)
    fold = rng.permutation(len(scores)) % folds
    right = []
    for k in range(folds):
        thresholds = np.quantile(scores[fold != k], np.linspace(0, 1, 201))
        best = max(thresholds, key=lambda t: ((scores[fold != k] > t) == truth[fold != k]).mean())
        right.append(((scores[fold == k] > best) == truth[fold == k]).mean())
    return np.mean(right)


@pytest.mark.slow
def test_a_linear_classifier_on_pixels_does_not_solve_verification():
    train, test = (
        RenderedSource(120, 8, 32).prepare(),
        RenderedSource(48, 8, 32, first_identity=120).prepare(),
    )
    reduced = PCA(150, whiten=True, random_state=0).fit(features(train))
    x, y = reduced.transform(features(train)), reduced.transform(features(test))
    lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(x, train.labels)
    rng = np.random.default_rng(0)
    assert verification_accuracy(y, test.labels, rng) < 0.8
    assert verification_accuracy(lda.transform(y), test.labels, rng) < 0.8
    # It is no fault of the images: the same classifier manages cooperative ones, and the coefficients separate.
    easy = RenderedSource(48, 8, 32, variation=Variation.none()).prepare()
    pixels = features(easy)
    assert verification_accuracy(pixels - pixels.mean(0), easy.labels, rng) > 0.9


@pytest.mark.slow
def test_identity_is_in_the_picture():
    people = jnp.arange(60, dtype=jnp.int32)
    identity = draw_faces(np.uint32(0), people, people * 0, variation=Variation(), aligned=True).identity
    code = np.concatenate([identity.shape, identity.albedo, np.asarray(identity.tone)[:, None]], 1)
    code = np.repeat(code, 4, 0)
    assert verification_accuracy(code, np.repeat(people, 4), np.random.default_rng(0)) > 0.99
    frontal = RenderedSource(60, 4, 32, variation=Variation.none())
    pixels = features(frontal)
    distance = euclidean_distances(pixels)
    np.fill_diagonal(distance, np.inf)
    assert (frontal.labels[distance.argmin(1)] == frontal.labels).mean() > 0.8


def test_template_is_scaled_to_the_image(source):
    landmarks = np.stack([source[k]["landmarks"] for k in range(40)])
    off = landmarks - template(112) * 32 / 112
    assert np.abs(np.median(off, axis=0)).max() < 2.0
