import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError


def test_bins_by_hand():
    probability = np.array([0.05, 0.15, 0.15, 0.95, 1 - 1e-9])
    logits = np.log(probability) - np.log1p(-probability)
    truth = np.array([0, 1, 0, 1, 0])
    table = metrics.reliability_bins(logits, truth)
    assert table.counts.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    np.testing.assert_allclose(table.confidence[[0, 1, 9]], [0.05, 0.15, 0.975], rtol=1e-6)
    np.testing.assert_allclose(table.frequency[[0, 1, 9]], [0, 0.5, 0.5])
    assert np.isnan(table.frequency[2])
    gap = (0.05 + 2 * 0.35 + 2 * 0.475) / 5
    np.testing.assert_allclose(metrics.expected_calibration_error(logits, truth), gap, rtol=1e-6)
    likelihood = np.log(np.where(truth == 1, probability, 1 - probability)).mean()
    np.testing.assert_allclose(metrics.binary_nll(logits, truth), -likelihood, rtol=1e-5)


def test_large_logits_stay_finite_and_what_is_right_as_often_as_said_has_no_error():
    assert metrics.binary_nll([800.0, -800.0], [0, 1]) == 800
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000)
    truth = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    assert metrics.expected_calibration_error(logits, truth) < 0.02
    assert metrics.expected_calibration_error(5 * logits, truth) > 0.1


@pytest.mark.parametrize("function", [metrics.binary_nll, metrics.reliability_bins])
def test_refusals(function):
    with pytest.raises(UserError, match="logits: needs finite"):
        function([np.nan], [1])
    with pytest.raises(ValueError, match="truth"):
        function([0.0, 1.0], [1])
    with pytest.raises(UserError, match=r"bins: needs .* got 0"):
        metrics.reliability_bins([0.0], [1], bins=0)
