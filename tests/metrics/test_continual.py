import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError

A = [[0.90, 0.10, 0.12], [0.70, 0.92, 0.15], [0.60, 0.80, 0.95]]


def test_tasks_of_other_sizes_weigh_what_they_have():
    rows = [0.9, (0.7 + 3 * 0.92) / 4, (0.6 + 3 * 0.8 + 2 * 0.95) / 6]
    np.testing.assert_allclose(metrics.average_incremental_accuracy(A, [1, 3, 2]), np.mean(rows))


def test_what_is_above_the_diagonal_counts_in_forward_transfer_alone():
    changed = np.where(np.tri(3, dtype=bool), A, 0.5)
    for name in (
        "average_accuracy",
        "average_incremental_accuracy",
        "backward_transfer",
        "forgetting",
        "learning_accuracy",
    ):
        assert getattr(metrics, name)(changed) == getattr(metrics, name)(A)
    assert metrics.forward_transfer(changed, [0.1] * 3) == pytest.approx(0.4)


def test_a_task_that_got_better_later_is_forgotten_from_its_best():
    grown = [[0.5, 0, 0], [0.9, 0.6, 0], [0.8, 0.7, 1.0]]
    assert metrics.forgetting(grown) == pytest.approx((0.1 - 0.1) / 2)
    assert metrics.backward_transfer(grown) == pytest.approx((0.3 + 0.1) / 2)


@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_chunks(chunk):
    rng = np.random.default_rng(0)
    scores, groups = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    inferred = metrics.infer_chunk_tasks(scores, groups, chunk=chunk)
    if chunk == 1:
        np.testing.assert_array_equal(inferred, scores.argmax(axis=1))
    for group in range(4):
        rows = np.flatnonzero(groups == group)
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            assert set(inferred[part]) == {int(scores[part].mean(axis=0).argmax())}
    # The same scores for all tasks and something more for the right one.
    right = np.zeros((50, 4)) + 0.1 * (groups[:, None] == np.arange(4))
    np.testing.assert_array_equal(metrics.infer_chunk_tasks(right, groups, chunk=chunk), groups)


def test_refusals():
    with pytest.raises(ValueError, match="one row and one column"):
        metrics.forgetting([[0.5, 0.4]])
    with pytest.raises(UserError, match="number of tasks: needs an integer from 2"):
        metrics.forgetting([[0.5]])
    with pytest.raises(UserError, match="accuracy: needs finite values"):
        metrics.average_accuracy([[np.nan]])
    with pytest.raises(UserError, match="ddof: needs an integer from 0 to 1"):
        metrics.backward_transfer(A, ddof=2)
    with pytest.raises(ValueError, match="untrained: needs one for each of 3 tasks"):
        metrics.forward_transfer(A, [0.1])
    with pytest.raises(ValueError, match="sizes: needs one for each"):
        metrics.average_incremental_accuracy(A, [1.0])
    with pytest.raises(UserError, match="chunk: needs an integer from 1"):
        metrics.infer_chunk_tasks([[0.0]], [0], chunk=0)
    with pytest.raises(ValueError, match=r"one task in each, chunk 4 has images of \[0, 1\]"):
        metrics.check_chunks([4, 4], [0, 1])
