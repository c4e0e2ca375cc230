"""What is reported class by class, of answers that are known."""

import types

import numpy as np
import pytest

from jaxface import metrics, training
from jaxface.errors import UserError
from jaxface.training import figures

NAMES = ["calm", "glad", "sad", "never"]
LABELS, ANSWERS = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])


class Known(training.ClassReport):
    """A report whose answers are given."""

    def __init__(self, corrupt=None):
        source = types.SimpleNamespace(labels=LABELS, class_names=NAMES)
        if corrupt is not None:
            source.corrupt = corrupt
        self.source = source

    def answers(self, state):
        return ANSWERS


def test_by_hand(tmp_path):
    report = Known()
    values = report(None)
    assert values == pytest.approx(
        {
            "classification/accuracy": 4 / 6,
            "classification/mean_class_accuracy": (2 / 3 + 1 + 0) / 3,
            "classification/macro_f1": (4 / 6 + 4 / 5 + 0) / 3,
            "classification/accuracy_of/calm": 2 / 3,
            "classification/accuracy_of/glad": 1.0,
            "classification/accuracy_of/sad": 0.0,
        }
    )
    ((name, draw),) = report.figures(None).items()
    assert name == "confusion" and draw(tmp_path / "confusion.png").stat().st_size > 5000


def test_what_could_not_be_read_counts_nowhere():
    values = Known({2, 5})(None)
    assert values["classification/accuracy"] == 1 and values["classification/unreadable"] == 2
    assert "classification/accuracy_of/sad" not in values
    with pytest.raises(UserError, match="data: none of the 6 images to evaluate on can be read"):
        Known(set(range(6)))(None)
    assert "classification/unreadable" not in Known(3)(None)  # of a source in which others stand in


def test_means_over_classes_are_those_of_the_matrix():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    counts = metrics.confusion_matrix(answers, labels, num_classes=5).astype(float)
    recall, precision = np.diag(counts) / counts.sum(1), np.diag(counts) / counts.sum(0)
    options = {"num_classes": 5}
    assert metrics.mean_class_accuracy(answers, labels, **options) == pytest.approx(recall.mean())
    f1 = 2 * precision * recall / (precision + recall)
    assert metrics.macro_f1(answers, labels, **options) == pytest.approx(f1.mean())


@pytest.mark.parametrize(
    ("counts", "error", "words"),
    [
        (np.eye(3), ValueError, r"counts: needs \(4, 4\), got \(3, 3\)"),
        (-np.eye(4), UserError, "counts: needs counts from 0"),
        (np.zeros((4, 4)), UserError, "counts: needs counts from 0"),
    ],
)
def test_what_is_no_confusion_matrix(tmp_path, counts, error, words):
    with pytest.raises(error, match=words):
        figures.save_confusion(counts, NAMES, tmp_path / "x.png")
