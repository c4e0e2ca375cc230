import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError
from jaxface.metrics.recognition import low_resolution, similarity

RNG = np.random.default_rng(0)


def test_one_image_per_person_is_the_rank_of_the_mate():
    probes, gallery = RNG.normal(size=(30, 6)), RNG.normal(size=(12, 6))
    labels = RNG.integers(0, 12, 30)
    scores = metrics.similarity_matrix(metrics.normalize(probes), metrics.normalize(gallery))
    found = metrics.labeled_ranks(probes, labels, 3 * gallery, np.arange(12))
    np.testing.assert_array_equal(found, metrics.ranks(scores, labels))


def test_any_image_of_the_person_is_a_hit_and_distractors_are_none():
    gallery = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1.0]])
    labels = [7, 5, 7, -1]
    probes = np.array([[1, 0], [0.6, 0.8], [0, 1.0], [0.8, 0.6]])
    found = metrics.labeled_ranks(probes, [7, 7, 7, 7], gallery, labels)
    np.testing.assert_array_equal(found, [1, 1, 2, 2])
    np.testing.assert_array_equal(metrics.labeled_ranks(probes[:1], [5], gallery, labels), [2])


def test_a_tie_counts_against_the_probe():
    gallery = np.array([[1.0, 0], [2.0, 0], [0, 1.0]])
    np.testing.assert_array_equal(metrics.labeled_ranks([[3.0, 0]], [0], gallery, [0, 1, 2]), [2])
    np.testing.assert_array_equal(metrics.labeled_ranks([[3.0, 0]], [0], gallery, [0, 0, 2]), [1])


def test_blocks_change_nothing(monkeypatch):
    probes, gallery = RNG.normal(size=(50, 4)), RNG.normal(size=(70, 4))
    arguments = probes, RNG.integers(0, 9, 50), gallery, np.arange(70) % 11
    whole = metrics.labeled_ranks(*arguments)
    blocks = similarity.similarity_blocks
    monkeypatch.setattr(low_resolution, "similarity_blocks", lambda a, b: blocks(a, b, block=16))
    np.testing.assert_array_equal(metrics.labeled_ranks(*arguments), whole)


def test_every_distance_counts_alike():
    gallery, people = np.eye(3), np.arange(3)
    probes = np.concatenate([np.eye(3), np.eye(3)[[1, 1, 2]], np.eye(3)[[1]]])
    labels = np.concatenate([people, people, [0]])
    distances = ["d1"] * 3 + ["d2"] * 3 + ["d3"]
    found = metrics.rank1_by_distance(probes, labels, distances, gallery, people)
    assert found == pytest.approx({"rank1@d1": 1.0, "rank1@d2": 2 / 3, "rank1@d3": 0.0, "rank1": 5 / 9})


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda e: metrics.labeled_ranks(e, [0, 9], e, [0, 1]),
            UserError,
            "probe_labels: every probe needs its person",
        ),
        (lambda e: metrics.labeled_ranks(e, [0], e, [0, 1]), ValueError, "probe_labels: needs integers"),
        (
            lambda e: metrics.labeled_ranks(e, [0, 1], e, [0.0, 1.0]),
            ValueError,
            "gallery_labels: needs integers",
        ),
        (
            lambda e: metrics.labeled_ranks(e * np.nan, [0, 1], e, [0, 1]),
            UserError,
            "probes: needs finite values",
        ),
        (
            lambda e: metrics.rank1_by_distance(e, [0, 1], ["a"], e, [0, 1]),
            ValueError,
            "distances: needs shape",
        ),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call(np.eye(2))
