import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(50, 5)), RNG.normal(size=(50, 9)).astype(np.float32)


def cosines(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def test_it_is_the_mean_squared_difference_of_the_matrices():
    expected = np.mean((cosines(STUDENT) - cosines(TEACHER)) ** 2)
    np.testing.assert_allclose(metrics.congruence_error(STUDENT, TEACHER), expected, rtol=1e-6)
    by_hand = metrics.congruence_error([[2.0, 0.0], [3.0, 3.0], [0.0, -1.0]], [[1, 0], [0, 1], [-1, 0]])
    np.testing.assert_allclose(by_hand, 4 / 9, rtol=1e-12)


def test_turned_and_scaled_copies_are_congruent():
    turn = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    assert metrics.congruence_error(3 * STUDENT @ turn, STUDENT) < 1e-14


def test_extremes_and_zero_vectors():
    assert metrics.congruence_error([[1.0], [1.0]], [[1.0], [-1.0]]) == 2.0
    assert metrics.congruence_error(np.zeros((2, 3)), [[1.0], [1.0]]) == 1.0


def test_refusals():
    with pytest.raises(ValueError, match="the same records"):
        metrics.congruence_error(STUDENT[:4], TEACHER)
    with pytest.raises(ValueError, match="2 axes"):
        metrics.congruence_error(STUDENT[0], TEACHER)
    with pytest.raises(UserError, match="finite"):
        metrics.congruence_error(np.full((2, 2), np.nan), TEACHER[:2])
    with pytest.raises(UserError, match="at least one"):
        metrics.congruence_error(STUDENT[:0], TEACHER[:0])
