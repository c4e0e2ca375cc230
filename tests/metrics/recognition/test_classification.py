"""Accuracy, top-k and nearest prototype, against scikit-learn and hand values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from jaxface.errors import UserError
from jaxface.metrics import (
    accuracy,
    confusion_matrix,
    correct_top_k,
    nearest_prototype,
    nearest_prototype_accuracy,
    per_class_accuracy,
    top_k_accuracy,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_agrees_with_scikit_learn_ties_included(seed):
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 4, size=(12, 5)).astype(np.float32)
    labels = rng.integers(0, 5, size=12)
    predicted = logits.argmax(1)
    assert accuracy(logits, labels) == pytest.approx(accuracy_score(labels, predicted))
    order = np.argsort(-logits, axis=1, kind="stable")
    for k in (1, 2, 5):
        expected = (order[:, :k] == labels[:, None]).any(1).mean()
        assert top_k_accuracy(logits, labels, k=k) == pytest.approx(expected)
    np.testing.assert_array_equal(
        confusion_matrix(predicted, labels, num_classes=5),
        sklearn_confusion(labels, predicted, labels=range(5)),
    )


def test_top_k_under_jit_and_beyond_the_classes():
    logits, labels = jnp.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]]), jnp.array([2, 2])
    np.testing.assert_array_equal(jax.jit(lambda z, y: correct_top_k(z, y, k=2))(logits, labels), [1, 0])
    np.testing.assert_array_equal(correct_top_k(logits, labels, k=7), [1, 1])


def test_identical_logits_answer_the_first_class():
    assert accuracy(np.zeros((4, 3)), [0, 1, 2, 0]) == 0.5
    np.testing.assert_array_equal(correct_top_k(jnp.full((1, 3), jnp.nan), jnp.array([0])), [0])


def test_nearest_prototype_is_by_angle():
    prototypes = np.array([[10.0, 0.0], [0.0, 0.1]])
    embeddings = np.array([[1.0, 2.0], [3.0, 1.0], [-1.0, 0.5]])
    np.testing.assert_array_equal(nearest_prototype(embeddings, prototypes), [1, 0, 1])
    np.testing.assert_array_equal(nearest_prototype(embeddings, prototypes, block=2), [1, 0, 1])
    assert nearest_prototype_accuracy(embeddings, prototypes, [1, 0, 0]) == pytest.approx(2 / 3)


def test_per_class_and_absent_classes():
    labels, predicted = [0, 0, 0, 2], [0, 1, 0, 2]
    np.testing.assert_array_equal(
        confusion_matrix(predicted, labels, num_classes=3), [[2, 1, 0], [0, 0, 0], [0, 0, 1]]
    )
    result = per_class_accuracy(predicted, labels, num_classes=3)
    np.testing.assert_allclose(result, [2 / 3, np.nan, 1])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: accuracy(np.zeros((0, 3)), []), UserError, "logits: needs at least one"),
        (lambda: accuracy([[np.nan, 0.0]], [0]), UserError, "logits: needs finite"),
        (lambda: accuracy(np.zeros((2, 3)), [0]), ValueError, "labels"),
        (lambda: accuracy(np.zeros((2, 3)), [0, 3]), ValueError, r"labels: needs values in \[0, 3\)"),
        (lambda: top_k_accuracy(np.zeros((1, 3)), [0], k=0), ValueError, "k"),
        (lambda: correct_top_k(jnp.zeros((2, 3)), jnp.zeros(3, int)), ValueError, "logits, labels"),
        (lambda: nearest_prototype(np.ones((2, 3)), np.ones((2, 4))), ValueError, "one width"),
        (lambda: confusion_matrix([], [], num_classes=2), UserError, "labels"),
        (lambda: confusion_matrix([2], [0], num_classes=2), ValueError, "predicted"),
        (lambda: confusion_matrix([0, 1], [0], num_classes=2), ValueError, "predicted"),
    ],
)
def test_bad_input_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
