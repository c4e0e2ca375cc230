"""Accuracy by the size of the classes, and how far networks agree."""

import itertools

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics import disagreement, mean_pairwise_divergence, split_accuracy

RNG = np.random.default_rng(0)


def test_splits_at_their_bounds():
    counts = [101, 100, 20, 19]
    labels = np.array([0, 1, 2, 3, 3, 3])
    predicted = np.array([0, 1, 0, 3, 3, 0])
    expected = {"many": 1.0, "medium": 0.5, "few": 2 / 3}
    assert split_accuracy(predicted, labels, counts) == expected
    assert split_accuracy(predicted[:1], labels[:1], counts) == {"many": 1.0}
    found = split_accuracy(predicted, labels, counts, many_above=19, few_below=19)
    assert set(found) == {"many", "medium"} and found["many"] == pytest.approx(2 / 3)


def test_networks_that_agree_and_that_do_not():
    assert disagreement([[0, 1, 2]] * 3) == 0
    assert disagreement([[0, 1, 2], [0, 1, 2], [0, 0, 0]]) == pytest.approx(2 / 3)
    assert disagreement([[1, 2]]) == 0
    logits = RNG.normal(size=(3, 7, 4))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    p = np.exp(log_probs)
    pairs = [
        (p[i] * (log_probs[i] - log_probs[j])).sum(-1) + (p[j] * (log_probs[j] - log_probs[i])).sum(-1)
        for i, j in itertools.combinations(range(3), 2)
    ]
    assert mean_pairwise_divergence(log_probs) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert mean_pairwise_divergence(log_probs[:1]) == 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: split_accuracy([0], [0], [5], many_above=1, few_below=2), UserError, "few_below"),
        (lambda: split_accuracy([0], [1], [5]), ValueError, "labels"),
        (lambda: split_accuracy([1], [0], [5]), ValueError, "predicted"),
        (lambda: disagreement([0, 1]), ValueError, "predicted: needs"),
        (lambda: disagreement(np.zeros((2, 0))), UserError, "at least one image"),
        (lambda: mean_pairwise_divergence(np.zeros((2, 3))), ValueError, "log_probs"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()
