import math

import pytest

from jaxface.errors import UserError
from jaxface.metrics.detection.recall_by_size import recall_by_size


def test_sizes_false_positives_and_regions_to_ignore():
    truth = [
        {"boxes": [[0, 0, 8, 8], [20, 20, 60, 60], [100, 100, 200, 200]], "crowd": [False, False, True]},
        {"boxes": [[0, 0, 20, 20]]},
        {"boxes": []},
    ]
    found = [
        {  # right, a second one of the same face, one in the crowd, one below the threshold
            "boxes": [[20, 20, 60, 56], [20, 20, 60, 60], [120, 120, 140, 140], [0, 0, 8, 8]],
            "scores": [0.9, 0.8, 0.7, 0.4],
        },
        {"boxes": [[0, 0, 20, 9]], "scores": [0.9]},  # too narrow
        {"boxes": [[0, 0, 9, 9]], "scores": [0.6], "valid": [False]},
    ]
    report = recall_by_size(found, truth)
    assert report["recall"] == pytest.approx(1 / 3)
    assert (report["recall_below_16"], report["recall_16_to_32"], report["recall_32_to_64"]) == (0, 0, 1)
    assert math.isnan(report["recall_from_64"]), "a region to ignore is no object"
    assert report["precision"] == pytest.approx(1 / 3) and report["false_positives"] == pytest.approx(2 / 3)
    assert recall_by_size(found, truth, score_threshold=0.3)["recall_below_16"] == 1
    assert recall_by_size(found, truth, iou_threshold=0.44)["recall_16_to_32"] == 1


def test_nothing_detected_and_classes_apart():
    truth = [{"boxes": [[0, 0, 8, 8]], "labels": [1]}]
    nothing = recall_by_size([{"boxes": [], "scores": []}], truth, num_classes=2)
    assert nothing["recall"] == 0 and math.isnan(nothing["precision"]) and nothing["false_positives"] == 0
    other = recall_by_size([{"boxes": [[0, 0, 8, 8]], "scores": [1], "classes": [0]}], truth, num_classes=2)
    assert other["recall"] == 0 and other["false_positives"] == 1


@pytest.mark.parametrize("edges", [(), (16, 16), (0, 4)])
def test_edges_increase(edges):
    with pytest.raises(UserError, match="edges: needs increasing numbers above 0"):
        recall_by_size([{"boxes": [], "scores": []}], [{"boxes": []}], edges=edges)
