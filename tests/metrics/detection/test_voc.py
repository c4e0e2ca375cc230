"""PASCAL VOC's average precision by hand."""

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics import coco_evaluate, voc_evaluate

SQUARES = [[0, 0, 20, 20], [0, 50, 20, 70], [50, 0, 70, 20], [50, 50, 70, 70]]
FAR = [[100, 100, 120, 120], [200, 200, 220, 220]]
TRUE_FALSE_TRUE_FALSE_TRUE = {
    "boxes": [SQUARES[0], FAR[0], SQUARES[1], FAR[1], SQUARES[2]],
    "scores": [0.9, 0.8, 0.7, 0.6, 0.5],
}


def test_both_means_of_one_curve():
    given = [TRUE_FALSE_TRUE_FALSE_TRUE], [{"boxes": SQUARES}]
    area = voc_evaluate(*given)
    assert area.mean == pytest.approx((1 + 2 / 3 + 3 / 5) / 4) == pytest.approx(0.566667, abs=1e-6)
    np.testing.assert_allclose(area.recall[0], [0.25, 0.25, 0.5, 0.5, 0.75])
    np.testing.assert_allclose(area.precision[0], [1, 1 / 2, 2 / 3, 2 / 4, 3 / 5])
    eleven = voc_evaluate(*given, eleven_points=True).mean
    assert eleven == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11) == pytest.approx(0.563636, abs=1e-6)


def test_a_second_detection_of_an_object_is_false_here_and_may_have_a_second_choice_in_coco():
    # Both detections are nearest to the first object; the second one overlaps the other object enough, too.
    truth = [{"boxes": [[0, 0, 100, 100], [0, 40, 100, 140]]}]
    found = [{"boxes": [[0, 0, 100, 100], [0, 15, 100, 115]], "scores": [0.9, 0.8]}]
    assert voc_evaluate(found, truth).mean == 0.5
    assert coco_evaluate(found, truth)["AP50"] == pytest.approx(1)


def test_difficult_objects_count_neither_way():
    truth = [{"boxes": [[0, 0, 20, 20], [50, 50, 70, 70]], "difficult": [False, True]}]
    found = [{"boxes": [[50, 50, 70, 70], [51, 51, 71, 71], [0, 0, 20, 20]], "scores": [0.9, 0.8, 0.7]}]
    scores = voc_evaluate(found, truth)
    assert scores.mean == 1
    np.testing.assert_array_equal(scores.recall[0], [0, 0, 1])


def test_inclusive_pixels_make_small_boxes_overlap_more():
    # 3 × 3 against 3 × 3 shifted by one, as continuous boxes: 2 / 4 of width 2; with + 1: 2 / 4 of width 3.
    truth, found = [{"boxes": [[0, 0, 2, 2]]}], [{"boxes": [[0, 1, 2, 3]], "scores": [1.0]}]
    assert voc_evaluate(found, truth).mean == 0  # 1 / 3
    assert voc_evaluate(found, truth, legacy_coordinates=True).mean == 1  # 6 / 12


def test_classes_apart_and_images_apart():
    truth = [
        {"boxes": [[0, 0, 10, 10], [20, 20, 30, 30]], "labels": [0, 1]},
        {"boxes": [[0, 0, 10, 10]], "labels": [1]},
    ]
    found = [
        {"boxes": [[0, 0, 10, 10]], "scores": [0.9], "classes": [1]},  # the class of the other object
        {"boxes": [[0, 0, 10, 10]], "scores": [0.8], "classes": [1]},
    ]
    scores = voc_evaluate(found, truth, num_classes=3)
    np.testing.assert_array_equal(scores.per_class, [0, 0.25, np.nan])
    assert scores.mean == 0.125


def test_without_any_object_there_is_no_number():
    assert np.isnan(voc_evaluate([{"boxes": [[0, 0, 1, 1]], "scores": [1.0]}], [{"boxes": []}]).mean)
    assert voc_evaluate([{"boxes": [], "scores": []}], [{"boxes": [[0, 0, 1, 1]]}]).mean == 0


def test_what_is_refused():
    with pytest.raises(UserError, match=r"^iou_threshold: needs a number above 0 and below 1, got 1"):
        voc_evaluate([{"boxes": [], "scores": []}], [{"boxes": []}], iou_threshold=1)
    with pytest.raises(UserError, match=r"^ground_truth\[0\]\['difficult'\]: needs 1 values"):
        voc_evaluate([{"boxes": [], "scores": []}], [{"boxes": [[0, 0, 1, 1]], "difficult": [0, 1]}])
