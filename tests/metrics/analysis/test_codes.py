import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError


def test_entropy_of_known_frequencies():
    assert metrics.code_entropy(np.array([-2, -1, 0, 1] * 3)) == 2.0
    np.testing.assert_allclose(metrics.code_entropy(np.array([5, 5, 5, 7], np.int8)), 0.811278, rtol=1e-6)


def test_spread_is_that_of_the_logarithms_of_the_lengths():
    directions = np.random.default_rng(0).normal(size=(1000, 8))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    logs = np.random.default_rng(1).normal(size=(1000, 1))
    vectors = np.exp(0.6 * logs) * directions
    np.testing.assert_allclose(metrics.norm_spread(vectors), 0.6 * logs.std(), rtol=1e-9)
    np.testing.assert_allclose(metrics.norm_spread(50 * vectors), metrics.norm_spread(vectors), rtol=1e-9)


def test_perplexity_is_the_number_of_codes_that_are_used_alike():
    np.testing.assert_allclose(metrics.codebook_perplexity(np.arange(40).reshape(4, 10) % 8, 8), 8.0)
    assert metrics.codebook_perplexity(np.full(5, 3), 8) == 1.0
    np.testing.assert_allclose(
        metrics.codebook_perplexity(np.array([0, 0, 0, 1]), 4), np.exp(0.5623351), rtol=1e-6
    )
    with pytest.raises(UserError, match="numbers from 0 to 7, got 0 to 8"):
        metrics.codebook_perplexity(np.array([0, 8]), 8)


def test_refusals():
    with pytest.raises(ValueError, match="codes: needs integers, got float64"):
        metrics.code_entropy(np.ones(3))
    with pytest.raises(UserError, match="codes: needs at least one"):
        metrics.code_entropy(np.ones((0, 3), int))
    with pytest.raises(UserError, match="vectors: needs one that is not 0"):
        metrics.norm_spread(np.zeros((2, 3)))
