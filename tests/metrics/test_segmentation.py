import numpy as np
import pytest
import sklearn.metrics

from jaxface import metrics
from jaxface.errors import UserError


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_is_scikit_learns(levels):
    """With ties and without."""
    rng = np.random.default_rng(0)
    truth = rng.random((7, 30)) < 0.2
    scores = rng.integers(0, levels, truth.shape) / levels + 0.3 * truth * (levels > 3)
    expected = sklearn.metrics.average_precision_score(truth.ravel(), scores.ravel())
    assert metrics.average_precision(scores, truth) == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_the_extremes():
    assert metrics.average_precision([3.0, 2.0, 1.0], [1, 1, 0]) == 1
    assert metrics.average_precision([1.0, 1.0, 1.0, 1.0], [1, 0, 0, 0]) == 0.25
    assert metrics.average_precision(np.float32([1, 2, 3]), [True, False, False]) == pytest.approx(1 / 3)


def test_worked_mean_iou():
    """TP / (TP + FP + FN), counts added up before the ratio is taken."""
    first = metrics.pixel_confusion([[0, 1], [1, 1]], [[0, 0], [1, 255]], num_classes=3)
    second = metrics.pixel_confusion([0, 0], [0, 1], num_classes=3, ignored=None)
    counts = first + second
    assert counts.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(metrics.class_iou(counts), [2 / 4, 1 / 3, np.nan])
    assert metrics.mean_iou(counts) == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert metrics.pixel_confusion([1], [255], num_classes=2).sum() == 0


def test_mean_iou_of_ade20ks_and_pascal_contexts_classes_is_scikit_learns_jaccard():
    rng = np.random.default_rng(1)
    for classes in (150, 59):
        labels = rng.integers(0, classes, (2, 60, 80))
        predicted = np.where(rng.random(labels.shape) < 0.4, labels, rng.integers(0, classes, labels.shape))
        expected = sklearn.metrics.jaccard_score(labels.ravel(), predicted.ravel(), average="macro")
        counts = metrics.pixel_confusion(predicted, labels, num_classes=classes)
        assert metrics.mean_iou(counts) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.average_precision([1.0, 2.0], [1]), "truth: needs shape"),
        (lambda: metrics.average_precision([1.0, 2.0], [0, 0]), "truth: needs at least one positive"),
        (lambda: metrics.average_precision([1.0, np.nan], [0, 1]), "scores: needs finite"),
        (lambda: metrics.average_precision([], []), "scores: needs at least one"),
        (lambda: metrics.average_precision([1.0, 2.0], [0.5, 1]), "truth: needs booleans"),
        (lambda: metrics.pixel_confusion([0], [0, 1], num_classes=2), "labels: needs shape"),
        (lambda: metrics.pixel_confusion([0], [2], num_classes=2), "labels: needs values in"),
        (lambda: metrics.pixel_confusion([2], [1], num_classes=2), "predicted: needs values in"),
        (lambda: metrics.mean_iou([[1, 2]]), "confusion: needs counts"),
        (lambda: metrics.mean_iou([[1.0]]), "confusion: needs counts"),
        (lambda: metrics.mean_iou([[0, 0], [0, 0]]), "confusion: needs at least one pixel"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        call()


def test_refusals_of_users():
    with pytest.raises(UserError):
        metrics.average_precision([1.0], [0])
