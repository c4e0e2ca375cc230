import numpy as np
import pytest

from jaxface import metrics


def test_shares_by_hand():
    labels, truth = np.array([0, 1, 2, 0, 1]), np.array([0, 1, 0, 0, 2])
    found = metrics.label_selection(np.array([True, False, True, False, False]), labels, truth)
    assert found == (1 / 2, 1 / 3, 2 / 5)
    everything = metrics.label_selection(np.ones(5, bool), labels, truth)
    assert everything == (3 / 5, 1.0, 1.0)


def test_nothing_to_count():
    none = metrics.label_selection(np.zeros(2, bool), [0, 1], [1, 0])
    assert np.isnan(none.precision) and np.isnan(none.recall) and none.fraction == 0


def test_refusals():
    with pytest.raises(ValueError, match=r"^selected"):
        metrics.label_selection(np.ones(3, bool), [0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"^true_labels"):
        metrics.label_selection(np.ones(2, bool), [0, 1], [0, 1, 1])
