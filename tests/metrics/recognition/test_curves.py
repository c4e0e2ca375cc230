"""Numbers of the genuine/impostor trade-off, against hand values and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from jaxface.errors import UserError
from jaxface.metrics import auc, equal_error_rate, fnmr_at_fmr, roc, tar_at_far

GENUINE = np.array([0.9, 0.8, 0.6, 0.3])
IMPOSTOR = np.array([0.7, 0.5, 0.4, 0.35, 0.2, 0.1, 0.05, 0.04, 0.03, 0.02])
# Few distinct values, so that ties are the rule.
scores = st.lists(st.integers(-6, 6).map(lambda k: k / 8), min_size=1, max_size=40).map(np.array)
quick = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(("far", "threshold", "tar"), [(0.1, 0.5, 0.75), (0.2, 0.4, 0.75)])
def test_tar_at_most(far, threshold, tar):
    assert tar_at_far(GENUINE, IMPOSTOR, far) == (tar, threshold, far, True)


def test_tar_nearest_takes_the_largest_tar_at_that_far():
    point = tar_at_far(GENUINE, IMPOSTOR, 0.01, rule="nearest")
    assert (point.tar, point.far, point.resolvable) == (0.5, 0.0, False)
    assert np.mean(point.threshold < GENUINE) == 0.5


def test_nearest_may_exceed_the_target_and_at_most_may_not():
    assert tar_at_far(GENUINE, IMPOSTOR, 0.19, rule="nearest").far == 0.2
    assert tar_at_far(GENUINE, IMPOSTOR, 0.19, rule="at_most").far == 0.1


def test_nearest_takes_the_larger_of_two_equally_near_rates():
    impostor = np.arange(4.0)  # rates are quarters, .375 lies between two of them
    assert tar_at_far([5.0], impostor, 0.375, rule="nearest").far == 0.5


def test_nearest_needs_collinear_points():
    # On the straight part of this curve every point is collinear; a routine that drops them has only FAR 0 and 1.
    both = np.linspace(0, 1, 9)
    assert tar_at_far(both, both, 0.33, rule="nearest").far == pytest.approx(3 / 9)


def test_a_count_is_not_lost_to_rounding():
    # .29 * 100 is 28.999..., yet 29 of 100 is a rate of .29.
    assert tar_at_far([1.0], np.arange(100.0), 0.29).far == 0.29


def test_several_targets_keep_their_shape():
    point = tar_at_far(GENUINE, IMPOSTOR, [[0.1, 0.2], [0.3, 0.01]])
    assert point.tar.shape == point.threshold.shape == point.far.shape == point.resolvable.shape == (2, 2)
    np.testing.assert_array_equal(point.resolvable, [[True, True], [True, False]])


def test_too_few_impostors_are_flagged_or_refused():
    point = tar_at_far(GENUINE, IMPOSTOR, 0.01)
    assert point == (0.5, 0.7, 0.0, False)  # no false accept allowed: above the largest impostor
    with pytest.raises(UserError, match=r"fars: 0\.01 needs at least 100 impostor scores, got 10"):
        tar_at_far(GENUINE, IMPOSTOR, 0.01, strict=True)
    assert tar_at_far(GENUINE, IMPOSTOR, 0.1, strict=True).resolvable is True


def test_identical_scores_everywhere():
    same = np.full(12, 0.3)
    assert auc(same, same) == 0.5
    assert equal_error_rate(same, same).eer == 0.5
    point = tar_at_far(same, same, 0.25)
    assert (point.tar, point.far, point.threshold) == (0.0, 0.0, 0.3)
    assert tar_at_far(same, same, 0.25, rule="nearest")[:1] == (0.0,)
    curve = roc(same, same)
    np.testing.assert_array_equal(curve.far, [0, 1])
    np.testing.assert_array_equal(curve.tar, [0, 1])


@pytest.mark.parametrize("function", [roc, auc, equal_error_rate, lambda g, h: tar_at_far(g, h, 0.5)])
@pytest.mark.parametrize(
    ("genuine", "impostor", "name"),
    [
        ([], [1.0], "genuine"),
        ([1.0], [], "impostor"),
        ([np.nan], [0.0], "genuine"),
        ([0.0], [np.inf], "impostor"),
    ],
)
def test_empty_and_non_finite_sets_are_refused(function, genuine, impostor, name):
    with pytest.raises(UserError, match=name):
        function(genuine, impostor)


@pytest.mark.parametrize("far", [0.0, 1.0, -0.1, np.nan, []])
def test_targets_outside_the_open_interval_are_refused(far):
    with pytest.raises(UserError, match="fars"):
        tar_at_far(GENUINE, IMPOSTOR, far)


def test_unknown_rule_is_refused():
    with pytest.raises(UserError, match="rule"):
        tar_at_far(GENUINE, IMPOSTOR, 0.1, rule="closest")


def test_wrong_axes_are_refused():
    with pytest.raises(ValueError, match="genuine: needs 1 axes"):
        auc(np.ones((2, 2)), IMPOSTOR)


def test_fnmr_is_the_complement():
    assert fnmr_at_fmr(GENUINE, IMPOSTOR, 0.1) == (0.25, 0.5, 0.1, True)


def test_equal_error_rate_by_hand():
    # At t = .5 one of ten impostors and one of four genuine pairs err; at t = .4 it is .2 and .25.
    point = equal_error_rate(GENUINE, IMPOSTOR)
    assert point.threshold == 0.4
    assert point.far == pytest.approx(0.2)
    assert point.frr == pytest.approx(0.25)
    assert point.eer == pytest.approx(0.225)


def test_perfect_separation_has_no_error():
    assert equal_error_rate([2.0, 3.0], [0.0, 1.0]) == (0.0, 1.0, 0.0, 0.0)
    assert equal_error_rate([0.0, 1.0], [2.0, 3.0]).eer == 1.0


@quick
@given(scores, scores)
def test_auc_agrees_with_scikit_learn(genuine, impostor):
    truth = np.r_[np.ones(genuine.size), np.zeros(impostor.size)]
    assert auc(genuine, impostor) == pytest.approx(roc_auc_score(truth, np.r_[genuine, impostor]), abs=1e-12)


@quick
@given(scores, scores)
def test_roc_agrees_with_scikit_learn(genuine, impostor):
    truth = np.r_[np.ones(genuine.size), np.zeros(impostor.size)]
    far, tar, thresholds = roc_curve(truth, np.r_[genuine, impostor], drop_intermediate=False)
    ours = roc(genuine, impostor)
    np.testing.assert_allclose(ours.far, far, atol=1e-12)
    np.testing.assert_allclose(ours.tar, tar, atol=1e-12)
    # scikit-learn accepts s >= t, we accept s > t: the same points, with the thresholds one place on.
    np.testing.assert_array_equal(ours.thresholds[:-1], thresholds[1:])


@quick
@given(scores, scores)
def test_area_is_the_integral_of_the_curve(genuine, impostor):
    curve = roc(genuine, impostor)
    assert np.trapezoid(curve.tar, curve.far) == pytest.approx(auc(genuine, impostor), abs=1e-12)


@quick
@given(scores, scores, st.floats(0.001, 0.999))
def test_at_most_is_the_best_point_within_the_target(genuine, impostor, far):
    point = tar_at_far(genuine, impostor, far)
    curve = roc(genuine, impostor)
    assert point.far <= far
    assert point.tar == np.mean(genuine > point.threshold)
    assert point.far == np.mean(impostor > point.threshold)
    # The threshold is an impostor score, so genuine scores between it and the next lower one are not gained.
    assert point.tar <= curve.tar[curve.far <= far].max()
    assert point.resolvable == (1 / impostor.size <= far)


@quick
@given(scores, scores)
def test_equal_error_rate_is_the_best_balanced_point(genuine, impostor):
    point = equal_error_rate(genuine, impostor)
    curve = roc(genuine, impostor)
    gaps = np.abs(curve.far - (1 - curve.tar))
    rejected = np.rint((1 - curve.tar) * genuine.size) * impostor.size
    accepted = np.rint(curve.far * impostor.size) * genuine.size
    order = np.lexsort((np.arange(rejected.size), accepted + rejected, np.abs(accepted - rejected)))
    assert point.threshold == curve.thresholds[order[0]]
    assert abs(point.far - point.frr) == pytest.approx(gaps.min(), abs=1e-12)
    assert point.far == pytest.approx(np.mean(impostor > point.threshold), abs=1e-12)
    assert point.frr == pytest.approx(np.mean(genuine <= point.threshold), abs=1e-12)


def test_float32_scores_give_the_numbers_of_their_float64_copies():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(1, 1, 500).astype(np.float32), rng.normal(0, 1, 3000).astype(np.float32)
    wide = genuine.astype(np.float64), impostor.astype(np.float64)
    assert tar_at_far(genuine, impostor, 0.01) == tar_at_far(*wide, 0.01)
    assert equal_error_rate(genuine, impostor) == equal_error_rate(*wide)
    assert auc(genuine, impostor) == auc(*wide)
