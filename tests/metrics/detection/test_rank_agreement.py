import math

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics import rank_agreement


def test_two_objects_by_hand():
    student = np.array([0.9, 0.5, 0.1, 0.2, 0.7])
    teacher = np.array([0.8, 0.1, 0.3, 0.9, 0.4])
    # Of object 4 one pair of three is reversed and the best is the same; of object 2 the only pair is reversed.
    report = rank_agreement(student, teacher, np.array([4, 4, 4, 2, 2]))
    assert report == {"kendall": pytest.approx((1 / 3 - 1) / 2), "top1": 0.5, "objects": 2}


def test_what_has_no_order():
    """An object of one anchor is left out; equal scores are no order."""
    report = rank_agreement(np.array([0.3, 0.5, 0.5]), np.array([0.1, 0.2, 0.9]), np.array([0, 1, 1]))
    assert report["kendall"] == 0 and report["objects"] == 1
    alone = rank_agreement(np.array([0.3]), np.array([0.1]), np.array([0]))
    assert math.isnan(alone["kendall"]) and math.isnan(alone["top1"]) and alone["objects"] == 0


def test_the_same_order_whatever_the_scores():
    rng = np.random.default_rng(0)
    scores, objects = rng.normal(size=60), rng.integers(0, 8, 60)
    same = rank_agreement(scores, np.exp(3 * scores) - 1, objects)
    opposite = rank_agreement(scores, -scores, objects)
    assert (same["kendall"], same["top1"]) == (1, 1) and opposite["kendall"] == -1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], [1.0, 2.0], [0]), ValueError, "teacher: needs shape"),
        (([1.0], [math.nan], [0]), UserError, "teacher: needs finite values"),
        (([], [], []), UserError, "student: needs at least one value"),
        (([1.0], [1.0], [-1]), ValueError, "objects: needs values in"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        rank_agreement(*map(np.array, arguments))
