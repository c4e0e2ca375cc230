import math

import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError
from jaxface.metrics.analysis import fairness


@pytest.mark.parametrize(
    ("percent", "average", "std", "ratio"),
    [
        ((96.18, 94.67, 93.72, 93.98), 94.6375, 1.103702, 1.643979),
        ((95.12, 93.93, 92.98, 92.93), 93.74, 1.028624, 1.448770),
        ((96.27, 94.68, 94.82, 95.00), 95.1925, 0.730177, 1.426273),
    ],
)
def test_published_rows(percent, average, std, ratio):
    found = metrics.group_fairness(np.array(percent) / 100)
    np.testing.assert_allclose([100 * found.average, 100 * found.std], [average, std], atol=1e-6)
    np.testing.assert_allclose(found.skewed_error_ratio, ratio, atol=1e-6)
    np.testing.assert_allclose([found.worst, found.gap], [min(percent) / 100, np.ptp(percent) / 100])
    if percent[0] == 96.18:  # with R instead of R - 1 it would be another number
        assert abs(100 * found.std - 0.955834) > 0.1


def test_no_errors():
    assert metrics.group_fairness([1.0, 1.0, 1.0]).skewed_error_ratio == 1
    assert metrics.group_fairness([1.0, 0.9]).skewed_error_ratio == math.inf
    assert metrics.group_fairness([0.5, 0.5]).skewed_error_ratio == 1


def test_accuracy_of_each_group():
    correct = [True, False, True, True, False]
    np.testing.assert_allclose(metrics.group_accuracy(correct, [0, 0, 1, 1, 1], count=2), [0.5, 2 / 3])
    with pytest.raises(UserError, match="got none of group 2"):
        metrics.group_accuracy(correct, [0, 0, 1, 1, 1], count=3)
    with pytest.raises(ValueError, match="groups: needs values in"):
        metrics.group_accuracy(correct, [0, 0, 1, 1, 2], count=2)
    with pytest.raises(UserError, match="at least two, got 1"):
        metrics.group_accuracy(correct, [0] * 5, count=1)


def test_one_threshold_shows_what_own_ones_hide():
    """Group 1 has the scores of group 0, 0.3 higher: alike at own thresholds, not at a shared one."""
    scores = np.array([0.9, 0.8, 0.7, 0.1, 0.2, 0.3])
    same = np.array([True] * 3 + [False] * 3)
    both = np.concatenate([scores, scores + 0.3])
    groups = np.repeat([0, 1], 6)
    found = fairness._group_error_rates(both, np.tile(same, 2), groups, count=2, threshold=0.5)
    np.testing.assert_allclose(found.fnmr, [0, 0])
    np.testing.assert_allclose(found.fmr, [0, 1 / 3])  # 0.5 is not above 0.5
    higher = fairness._group_error_rates(both, np.tile(same, 2), groups, count=2, threshold=0.75)
    np.testing.assert_allclose(higher.fnmr, [1 / 3, 0])
    chosen = fairness._group_error_rates(both, np.tile(same, 2), groups, count=2)
    assert 0.6 <= chosen.threshold < 0.7 and chosen.fmr.tolist() == chosen.fnmr.tolist() == [0, 0]
    with pytest.raises(UserError, match="group 1 has one kind"):
        fairness._group_error_rates(both, np.concatenate([same, same | True]), groups, count=2)


def people(noise, seed):
    rng = np.random.default_rng(seed)
    centers = np.repeat(rng.normal(size=(20, 8)), 6, axis=0)
    return centers + noise * rng.normal(size=centers.shape), np.repeat(np.arange(20), 6)


def test_verification_stays_inside_groups():
    (easy, labels), (hard, _) = people(0.2, 0), people(2.0, 1)
    order = np.random.default_rng(2).permutation(240)
    embeddings = np.concatenate([easy, hard])[order]
    everyone, groups = np.concatenate([labels, labels + 20])[order], np.repeat([0, 1], 120)[order]
    found = metrics.group_verification(embeddings, everyone, groups, count=2)
    assert found.accuracies[0] > 0.97 > 0.9 > found.accuracies[1] > 0.45
    # A group on its own has the same accuracy.
    alone = metrics.verify(embeddings[groups == 1], everyone[groups == 1])["verification/accuracy"]
    np.testing.assert_allclose(found.accuracies[1], alone)
    assert found.errors.fnmr[1] > found.errors.fnmr[0] + 0.2
    # The pairs of a pack are taken as they are.
    pairs = [metrics.make_pairs(labels), metrics.make_pairs(labels)]
    pairs[1] = pairs[1]._replace(indices=pairs[1].indices + 120)
    given = metrics.group_verification(
        np.concatenate([easy, hard]), None, np.repeat([0, 1], 120), count=2, pairs=pairs
    )
    assert given.accuracies[0] > 0.97 > given.accuracies[1]
    with pytest.raises(UserError, match="got none of group 2"):
        metrics.group_verification(embeddings, everyone, groups, count=3)
    with pytest.raises(UserError, match="group 1 has 1 and"):
        metrics.group_verification(embeddings, np.where(groups == 1, 0, everyone), groups, count=2)


@pytest.mark.parametrize("values", [[0.5], [0.5, 1.1], [-0.1, 0.5], [0.5, float("nan")]])
def test_refusals(values):
    with pytest.raises(UserError, match="accuracies: needs"):
        metrics.group_fairness(values)
