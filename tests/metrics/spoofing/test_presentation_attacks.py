"""The worked example of the protocols, thresholds against a search over all of them, and what is refused."""

import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError

LIVE, PRINT, REPLAY = [0.9, 0.8, 0.7, 0.4], [0.1, 0.2, 0.6, 0.3], [0.05, 0.5, 0.95, 0.2]
SCORES = np.array(LIVE + PRINT + REPLAY)
INSTRUMENTS = np.repeat([0, 1, 2], 4)


def presented(rng, *, levels=None, live=30, attacks=40):
    scores = np.concatenate([rng.normal(1, 1, live), rng.normal(0, 1, attacks)])
    scores = scores if levels is None else np.round(scores * levels) / levels
    return scores, np.concatenate([np.zeros(live, int), rng.integers(1, 4, attacks)])


def test_the_worked_example():
    at = SCORES, INSTRUMENTS, 0.5
    assert metrics.apcer_by_instrument(*at) == {1: 0.25, 2: 0.5}
    assert (metrics.apcer(*at), metrics.apcer(*at, kind="pooled")) == (0.5, 0.375)
    assert metrics.bpcer(*at) == 0.25
    assert (metrics.acer(*at), metrics.acer(*at, kind="pooled")) == (0.375, 0.3125)
    assert metrics.half_total_error(*at) == (0.3125, 0.375, 0.25)
    assert metrics.auc(*metrics.split_presentations(SCORES, INSTRUMENTS)) == 0.8125
    assert metrics.equal_error_threshold(SCORES, INSTRUMENTS) == (0.25, 0.6, 0.25, 0.25)
    report = metrics.spoof_report(*at, fprs=(0.2, 0.05))
    assert report["acer"] == report["hter"] == 0.3125 and report["acer_max"] == 0.375
    # One of eight attacks may pass at 0.2; at 0.05 none may, which says little of that rate and is not reported.
    assert report["tpr_at_2e-1"] == 0.75 and "tpr_at_5e-2" not in report


def test_a_score_on_the_threshold_is_accepted():
    scores, instruments = [0.5, 0.5, 0.1], [0, 1, 1]
    assert metrics.bpcer(scores, instruments, 0.5) == 0
    assert metrics.apcer(scores, instruments, 0.5) == 0.5


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("seed", range(4))
def test_equal_error_threshold_is_the_best_of_all(seed, levels):
    scores, instruments = presented(np.random.default_rng(seed), levels=levels)
    live, attack = metrics.split_presentations(scores, instruments)
    candidates = np.append(np.unique(scores), np.inf)
    far, frr = (attack[:, None] >= candidates).mean(0), (live[:, None] < candidates).mean(0)
    order = np.lexsort((-candidates, np.round(far + frr, 12), np.round(abs(far - frr), 12)))
    best = order[0]
    result = metrics.equal_error_threshold(scores, instruments)
    np.testing.assert_allclose(
        result, [(far[best] + frr[best]) / 2, candidates[best], far[best], frr[best]], rtol=1e-12
    )


def test_equal_errors_at_the_edges():
    # Everything the same: accepting all and refusing all are as good, and the larger threshold is taken.
    assert metrics.equal_error_threshold([1.0, 1.0], [0, 1]) == (0.5, np.inf, 0.0, 1.0)
    assert metrics.equal_error_threshold([0.9, 0.2], [0, 1]) == (0.0, 0.9, 0.0, 0.0)
    single = np.array([0.9, 0.2, 0.7, 0.1], np.float32)
    assert metrics.equal_error_threshold(single, [0, 1, 0, 2]).threshold == float(np.float32(0.7))


@pytest.mark.parametrize("levels", [None, 3])
def test_tpr_at_fpr_never_exceeds_its_target(levels):
    scores, instruments = presented(np.random.default_rng(5), levels=levels, attacks=50)
    live, attack = metrics.split_presentations(scores, instruments)
    targets = np.array([0.02, 0.1, 0.5, 0.001])
    point = metrics.tpr_at_fpr(scores, instruments, targets)
    for target, tpr, threshold, fpr in zip(targets, point.tpr, point.threshold, point.fpr, strict=True):
        assert (attack >= threshold).mean() == fpr <= target and (live >= threshold).mean() == tpr
        lower = scores[scores < threshold]
        assert (attack >= lower.max()).mean() > target  # the lowest such threshold
    assert point.resolvable.tolist() == [True, True, True, False] and point.fpr[3] == 0
    alone = metrics.tpr_at_fpr(scores, instruments, 0.001)
    assert alone.resolvable is False and alone.tpr == point.tpr[3]


def test_threshold_at_a_bpcer():
    scores, instruments = presented(np.random.default_rng(2), live=200)
    threshold = metrics.bpcer_threshold(scores, instruments, 0.01)
    live = np.sort(scores[instruments == 0])
    assert metrics.bpcer(scores, instruments, threshold) == 0.01 and threshold == live[2]
    assert metrics.bpcer(scores, instruments, np.nextafter(threshold, np.inf)) > 0.01


def test_labels_and_instruments_agree():
    assert metrics.presentation_instruments([True, False], [0, 3]).tolist() == [0, 3]
    with pytest.raises(UserError, match="instruments: needs a number from 1 for every attack, 1 attacks"):
        metrics.presentation_instruments([1, 0, 0], [0, 0, 2])
    with pytest.raises(UserError, match="instruments: needs 0 for every live presentation"):
        metrics.presentation_instruments([1, 0], [1, 2])
    with pytest.raises(ValueError, match="live"):
        metrics.presentation_instruments([1, 0, 0], [0, 1])


@pytest.mark.parametrize(
    ("scores", "instruments", "words"),
    [
        ([0.1, 0.2], [1, 2], "at least one live presentation, got none in 2"),
        ([0.1, 0.2], [0, 0], "at least one attack, got none in 2"),
        ([0.1, np.nan], [0, 1], "scores: needs finite values, 1 of 2"),
        ([0.1, 0.2], [0, -1], "instruments: needs numbers from 0, got -1"),
    ],
)
def test_refusals(scores, instruments, words):
    for function in (metrics.equal_error_threshold, metrics.split_presentations):
        with pytest.raises(UserError, match=words):
            function(scores, instruments)
    with pytest.raises(UserError, match=words):
        metrics.spoof_report(scores, instruments, 0.5)


def test_other_refusals():
    with pytest.raises(ValueError, match="instruments"):
        metrics.acer([0.1, 0.2, 0.3], [0, 1], 0.5)
    for rate in (0.0, 1.0):
        with pytest.raises(UserError, match="between 0 and 1"):
            metrics.tpr_at_fpr(SCORES, INSTRUMENTS, rate)
        with pytest.raises(UserError, match="rate: needs"):
            metrics.bpcer_threshold(SCORES, INSTRUMENTS, rate)
    with pytest.raises(UserError, match="kind: needs 'max' or 'pooled', got 'mean'"):
        metrics.acer(SCORES, INSTRUMENTS, 0.5, kind="mean")
    with pytest.raises(UserError, match="threshold: needs a number, got nan"):
        metrics.bpcer(SCORES, INSTRUMENTS, np.nan)
