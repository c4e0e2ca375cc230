"""Whether a confidence is right as often as it says: binary scores as logits, against what was true.

Methods: dpm
"""

from typing import NamedTuple

import numpy as np

from jaxface import checks
from jaxface.checks import AtLeast, check_number


class ReliabilityBins(NamedTuple):
    """Predictions by what they say, in bins of equal width from 0 to 1; NaN where a bin is empty.

    Attributes:
      edges: [K + 1]. confidence: [K], mean probability. frequency: [K], share of what was true. counts: [K] int64.
    """

    edges: np.ndarray
    confidence: np.ndarray
    frequency: np.ndarray
    counts: np.ndarray


def binary_nll(logits, truth) -> float:
    """Mean negative log-likelihood of binary labels, log(1 + exp(-(2y - 1) z)).

    Args:
      logits: [N] float, log-odds of true. truth: [N] bool or 0/1.

    Returns:
      ≥ 0, in nats.

    Raises:
      UserError: none, or logits that are not finite. ValueError: lengths that differ, other labels.

    Example:
      >>> round(binary_nll([0.0, 2.0], [1, 0]), 4)
      1.41
    """
    logits, truth = _binary(logits, truth)
    return float(np.logaddexp(0.0, np.where(truth, -logits, logits)).mean())


def reliability_bins(logits, truth, *, bins: int = 10) -> ReliabilityBins:
    """The probability of true, sigmoid(z), against how often it is so.

    Args:
      logits: [N] float. truth: [N] bool or 0/1. bins: K ≥ 1.

    Example:
      >>> reliability_bins([-3.0, 3.0, 3.0], [0, 1, 0], bins=2).frequency.tolist()
      [0.0, 0.5]
    """
    logits, truth = _binary(logits, truth)
    check_number("bins", bins, AtLeast(1))
    probability = _sigmoid(logits)
    index = np.minimum((probability * bins).astype(np.int64), bins - 1)
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, weights=probability, minlength=bins) / counts
        frequency = np.bincount(index, weights=truth, minlength=bins) / counts
    return ReliabilityBins(np.linspace(0, 1, bins + 1), confidence, frequency, counts)


def expected_calibration_error(logits, truth, *, bins: int = 10) -> float:
    """Σ_k n_k / N |frequency_k - confidence_k| over the bins of `reliability_bins`.

    Args: as `reliability_bins`.

    Returns:
      In [0, 1].

    Example:
      >>> round(expected_calibration_error([-30.0, 30.0, 30.0], [0, 1, 0]), 4)
      0.3333
    """
    table = reliability_bins(logits, truth, bins=bins)
    gaps = np.abs(table.frequency - table.confidence)
    return float(np.nansum(table.counts * gaps) / table.counts.sum())


def _binary(logits, truth) -> tuple[np.ndarray, np.ndarray]:
    logits = checks.real_array("logits", logits, ndim=1).astype(np.float64)
    return logits, checks.truth_array("truth", truth, logits.size)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -logits))
