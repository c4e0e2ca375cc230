"""Selection of counterexamples, observers and their proxy, robustness."""

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics.image.counterexamples import (
    jnd_from_trials,
    jnd_proxy,
    robustness_r,
    select_counterexample,
)

SCORES = np.array([5.0, 2.0, 9.0, 8.0])


def test_the_farthest_of_those_below_the_jnd_is_taken():
    assert select_counterexample(SCORES, 5.0, np.ones(4, bool)) == (2, 4.0)
    assert select_counterexample(SCORES, 5.0, np.array([1, 1, 0, 0])) == (1, 3.0)


def test_none_is_found_where_none_is_below_the_jnd():
    assert select_counterexample(SCORES, 5.0, np.zeros(4, bool)) == (None, 0.0)


def test_of_equal_changes_the_smaller_distance_is_taken():
    everything = np.ones(4, bool)
    assert select_counterexample(SCORES, 5.0, everything)[0] == 2
    tied = np.array([8.0, 2.0, 8.0, 5.0])
    assert select_counterexample(tied, 5.0, everything, np.array([3.0, 2.0, 1.0, 0.0])) == (2, 3.0)
    assert select_counterexample(tied, 5.0, everything) == (0, 3.0)


def test_three_quarters_of_the_trials_decide():
    same = np.zeros((4, 20))
    same[0, :15] = same[1, :14] = 1
    same[2] = np.nan
    same[3] = np.nan
    same[3, :4] = [1, 1, 1, 0]
    assert jnd_from_trials(same).tolist() == [True, False, False, True]
    assert jnd_from_trials(same, threshold=0.7).tolist() == [True, True, False, True]


def test_the_proxy_holds_every_bound():
    change, similarity, decibels = (
        np.array([4, 4.1, 1, 1]) / 255,
        np.array([0.99, 1, 0.98, 1]),
        [50, 50, 50, 41],
    )
    assert jnd_proxy(change, similarity).tolist() == [True, False, False, True]
    bounds = dict(largest=None, least_decibels=42.0)
    assert jnd_proxy(change, similarity, decibels, **bounds).tolist() == [True, True, False, False]
    # Rounding of float32 is no change.
    assert jnd_proxy(np.float32(1) - np.float32(251 / 255), 1.0)


def test_robustness_is_the_mean_logarithm():
    assert robustness_r([7, 3], [4, 5]) == pytest.approx(1.050030, abs=1e-6)
    assert robustness_r([5], [5]) == pytest.approx(np.log(5e6))
    # Of the paper's table: R = 0.0927 is 91 % of the largest change.
    assert np.exp(-0.0927) == pytest.approx(0.91, abs=0.005)
    assert robustness_r([4], [4 + 0.91 * 6]) == pytest.approx(0.0943, abs=1e-4)
    assert np.isnan(robustness_r([], []))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: robustness_r([11], [5]), r"scores: needs values in \[0, 10\], got 11"),
        (lambda: robustness_r([5], [np.nan]), "attacked: needs values"),
        (lambda: select_counterexample([np.nan], 0.0, [True]), "scores: needs finite values"),
        (lambda: jnd_from_trials([[0.5]]), "same: needs 0, 1 or NaN"),
        (lambda: jnd_from_trials([[1.0]], threshold=0), "threshold: needs"),
        (lambda: jnd_proxy([0.1], [1.0], least_decibels=42), "decibels: needs the PSNR"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="below_jnd"):
        select_counterexample(SCORES, 5.0, np.ones(3, bool))
    with pytest.raises(ValueError, match="attacked"):
        robustness_r([1.0, 2.0], [1.0])
