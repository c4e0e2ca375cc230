"""Miss rate of pedestrians and error of depth, by hand."""

import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError


def box(row, height=10):
    return [row, 0, row + height, 10]


def test_a_miss_rate_by_hand():
    # Two images, three people; by falling score: true, false, true, true.
    truth = [{"boxes": [box(0), box(20)]}, {"boxes": [box(0)]}]
    found = [
        {"boxes": [box(0), box(60)], "scores": [0.9, 0.8]},
        {"boxes": [box(0), box(40)], "scores": [0.7, 0.1]},
    ]
    # Misses 2/3 without a false positive; 1/3 at half a false positive an image, 1/3 at one.
    points = np.logspace(-2, 0, 9)
    expected = np.exp(np.mean(np.log(np.where(points < 0.5, 2 / 3, 1 / 3))))
    np.testing.assert_allclose(metrics.log_average_miss_rate(found, truth), expected)


def test_nothing_found_and_everything_found():
    truth = [{"boxes": [box(0)]}]
    assert metrics.log_average_miss_rate([{"boxes": np.zeros((0, 4)), "scores": []}], truth) == 1
    perfect = metrics.log_average_miss_rate([{"boxes": [box(0)], "scores": [0.5]}], truth)
    np.testing.assert_allclose(perfect, 1e-10)


def test_a_crowd_counts_neither_way_and_a_person_once():
    truth = [{"boxes": [box(0), box(50, 40)], "crowd": [False, True]}]
    found = [{"boxes": [box(0), box(60)], "scores": [0.5, 0.9]}]
    np.testing.assert_allclose(metrics.log_average_miss_rate(found, truth), 1e-10)
    twice = [{"boxes": [box(0), box(0)], "scores": [0.9, 0.8]}]
    np.testing.assert_allclose(metrics.log_average_miss_rate(twice, truth), 1e-10)
    # A false one of the best score: nothing is found before it.
    found[0]["boxes"][1] = box(20)
    rates = np.where(np.logspace(-2, 0, 9) < 1, 1.0, 1e-10)
    np.testing.assert_allclose(metrics.log_average_miss_rate(found, truth), np.exp(np.log(rates).mean()))


def test_depth_where_it_was_measured():
    depth = np.array([[1.0, 2.0], [0.0, 4.0]])
    np.testing.assert_allclose(metrics.depth_rmse(depth + 0.5, depth), 0.5)


def test_mean_accuracy_of_a_constant_answer_is_one_in_c():
    labels = np.repeat(np.arange(5), [9, 1, 4, 2, 7])
    assert metrics.mean_class_accuracy(np.zeros(len(labels), int), labels, num_classes=5) == 0.2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: metrics.log_average_miss_rate([{"boxes": [box(0)], "scores": [1.0]}], [{"boxes": []}]),
            "object",
        ),
        (lambda: metrics.depth_rmse(np.ones(3), np.zeros(3)), "depth: needs at least one pixel"),
        (lambda: metrics.depth_rmse(np.array([np.nan]), np.ones(1)), "predicted: needs finite"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()
    with pytest.raises(ValueError, match="predicted: needs shape"):
        metrics.depth_rmse(np.ones(2), np.ones(3))
