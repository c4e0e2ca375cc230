"""The report of an experiment, from sets of ten people to official lists."""

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics import (
    Pairs,
    all_pairs,
    auc,
    equal_error_rate,
    group_false_accepts,
    make_pairs,
    report_scores,
    tar_at_far,
    ten_fold_accuracy,
    verification_scores,
    verify,
)


def people(count, per_person, noise, seed=0, width=16):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count), per_person)
    return (rng.normal(size=(count, width))[labels] + noise * rng.normal(size=(labels.size, width))), labels


def test_perfect_embeddings_are_perfect():
    embeddings, labels = people(20, 8, noise=0.01)
    report = verify(embeddings, labels)
    assert (
        report["verification/accuracy"] == report["verification/auc"] == report["verification/tar@1e-2"] == 1
    )
    assert report["verification/accuracy_std"] == report["verification/eer"] == 0


def test_random_embeddings_are_chance():
    embeddings, labels = people(40, 8, noise=1e6)
    report = verify(embeddings, labels)
    assert report["verification/accuracy"] == pytest.approx(0.5, abs=0.05)
    assert report["verification/auc"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("pairs", [None, 200, "all"])
def test_ten_people_with_ten_images(pairs):
    embeddings, labels = people(10, 10, noise=1.0)
    report = verify(embeddings, labels, pairs=pairs)
    assert all(type(value) is float and 0 <= value <= 1 for value in report.values())
    assert 0.6 < report["verification/accuracy"] < 1
    scores, same = verification_scores(embeddings, labels, pairs)
    genuine, impostor = scores[same], scores[~same]
    assert (genuine.size, impostor.size) == {None: (450, 450), 200: (100, 100), "all": (450, 4500)}[pairs]
    assert report["verification/auc"] == auc(genuine, impostor)
    assert report["verification/eer"] == equal_error_rate(genuine, impostor).eer
    targets = [f"1e-{k}" for k in range(1, 7) if 10**k <= impostor.size]
    assert [key for key in report if "tar@" in key] == [f"verification/tar@{t}" for t in targets]
    for target in targets:
        assert report[f"verification/tar@{target}"] == tar_at_far(genuine, impostor, float(target)).tar


def test_accuracy_is_over_balanced_folds_whatever_the_curve_is_of():
    embeddings, labels = people(10, 10, noise=2.0)
    balanced, everything = verify(embeddings, labels), verify(embeddings, labels, pairs="all")
    assert balanced["verification/accuracy"] == everything["verification/accuracy"]
    scores, same = verification_scores(embeddings, labels)
    ten = ten_fold_accuracy(2 - 2 * scores.astype(np.float64), same)
    assert balanced["verification/accuracy"] == ten.accuracy
    # On all pairs "always different" would score 10 of 11.
    assert balanced["verification/accuracy"] < 10 / 11


def test_length_of_embeddings_does_not_matter_and_the_seed_does():
    embeddings, labels = people(12, 6, noise=1.5)
    lengths = np.random.default_rng(0).uniform(0.1, 10, (len(labels), 1))
    report = verify(embeddings, labels, pairs=100)
    assert verify(embeddings * lengths, labels, pairs=100) == pytest.approx(report, abs=1e-6)
    assert verify(embeddings, labels, pairs=100, seed=1) != report


def test_official_pairs():
    # A verification set as stored: pair i is images 2i and 2i + 1.
    rng = np.random.default_rng(0)
    same = np.tile(np.arange(10) < 5, 10)
    first = rng.normal(size=(100, 8))
    second = np.where(same[:, None], first + 0.3 * rng.normal(size=first.shape), rng.normal(size=first.shape))
    embeddings = np.stack([first, second], axis=1).reshape(200, 8)
    official = Pairs(np.arange(200, dtype=np.int32).reshape(100, 2), same, folds=10)
    report = verify(embeddings, None, pairs=official)
    assert report["verification/accuracy"] > 0.9
    scores, kinds = verification_scores(embeddings, None, official)
    np.testing.assert_array_equal(kinds, same)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    np.testing.assert_allclose(scores, (unit(first) * unit(second)).sum(1), atol=1e-6)


def test_the_smallest_set_has_two_folds():
    embeddings = np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
    report = verify(embeddings, [0, 0, 1, 1])
    assert report["verification/accuracy"] == 1
    assert not [key for key in report if "tar@" in key]
    assert len(make_pairs(np.array([0, 0, 1, 1]), folds=2).same) == 4


def test_identical_embeddings_say_nothing():
    report = verify(np.ones((100, 4)), np.repeat(np.arange(10), 10), pairs="all")
    assert report["verification/auc"] == report["verification/eer"] == report["verification/accuracy"] == 0.5
    assert report["verification/tar@1e-3"] == 0


def test_zero_embeddings_say_nothing_either():
    assert verify(np.zeros((40, 4)), np.repeat(np.arange(4), 10))["verification/auc"] == 0.5


@pytest.mark.parametrize(
    ("embeddings", "labels", "pairs", "kind", "message"),
    [
        (np.full((8, 2), np.nan), [0, 1] * 4, None, UserError, "embeddings: needs finite"),
        (np.ones((0, 2)), [], None, UserError, "embeddings: needs at least one"),
        (np.ones((8, 2)), [0] * 8, None, UserError, "two people"),
        (np.ones((8, 2)), np.arange(8), None, UserError, "two genuine pairs"),
        (np.ones((8, 2)), [0, 1] * 3, None, ValueError, r"labels: needs integers of shape \(8,\)"),
        (np.ones((8, 2)), None, None, ValueError, "labels"),
        (np.ones((8, 2)), [0, 1] * 4, "every", UserError, "pairs: needs 'all'"),
        (np.ones((8, 2)), [0, 1] * 4, 6, UserError, "pairs: a number needs to be at least 20"),
        (np.ones((8, 2)), [0, 1] * 4, 6000, UserError, "10 folds need 3000 genuine"),
        (np.ones((20_001, 1)), np.zeros(20_001, int), "all", UserError, "needs at most 20000 records"),
        (np.ones(8), [0, 1] * 4, None, ValueError, "embeddings: needs 2 axes"),
    ],
)
def test_bad_input_is_refused(embeddings, labels, pairs, kind, message):
    with pytest.raises(kind, match=message):
        verify(embeddings, labels, pairs=pairs)
    with pytest.raises(kind, match=message):
        verification_scores(embeddings, labels, pairs)


def test_scores_of_any_range():
    rng = np.random.default_rng(0)
    labels, groups = np.repeat(np.arange(12), 4), np.repeat([0, 1], 24)
    pairs = all_pairs(labels)
    first, second = pairs.indices.T
    scores = 5 * pairs.same + rng.normal(size=len(pairs.same)) + 2 * (groups[first] * groups[second])
    report = report_scores(scores, pairs, groups)
    genuine, impostor = scores[pairs.same], scores[~pairs.same]
    points = tar_at_far(genuine, impostor, [1e-2, 1e-3])
    assert (points.resolvable == [True, True]).all() and "tar@1e-4" not in report
    assert [report["tar@1e-2"], report["tar@1e-3"]] == points.tar.tolist()
    assert report["eer"] == equal_error_rate(genuine, impostor).eer
    inside = ~pairs.same & (groups[first] == groups[second])
    expected = group_false_accepts(scores[inside], groups[first][inside], 1e-2, pooled=impostor)
    assert report["spread@1e-2"] == expected.spread > 0.5
    for one_group in (None, np.zeros(48, int)):
        assert set(report_scores(scores, pairs, one_group)) == {"tar@1e-2", "tar@1e-3", "eer"}
