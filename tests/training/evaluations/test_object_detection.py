import types

import numpy as np
import pytest
import red_square

from jaxface import training
from jaxface.data.sources.objects import object_fields
from jaxface.errors import UserError


class Photographs:
    """Red rectangles of which the last is said to be elsewhere; with `annotated` the file was twice as large."""

    image_shape, class_names, labels = (64, 64, 3), ("face",), np.zeros(5, np.int32)
    boxes = ((8, 8, 24, 24), (10, 4, 60, 44), (0, 0, 0, 0), (16, 16, 48, 48), (30, 30, 44, 44))

    def __init__(self, annotated=False):
        self.size = 2 if annotated else 1
        if annotated:
            self.ground_truth = lambda i: {"boxes": 2 * self.said(i)}

    def said(self, i):
        boxes = np.float32(self.boxes)[[i]] if any(self.boxes[i]) else np.zeros((0, 4), np.float32)
        return boxes - (20 if i == 4 else 0)

    def __len__(self):
        return len(self.boxes)

    def __getitem__(self, i):
        sizes = dict(image_size=(64, 64), original_size=(64 * self.size,) * 2)
        return {
            "image": red_square.photograph(64, 64, self.boxes[i]),
            "label": np.int32(0),
            **object_fields(self.said(i), max_objects=2, **sizes),
        }


STATE = types.SimpleNamespace(averaged_params={"detector": {"gain": np.ones(())}}, extra={})


@pytest.mark.parametrize("annotated", [False, True])
def test_three_of_four_are_found_and_one_is_false(annotated, tmp_path):
    evaluate = training.ObjectDetection(red_square.RedSquare(), Photographs(annotated), batch_size=2)
    report = evaluate(STATE)
    assert report["detection/recall"] == 0.75 and report["detection/precision"] == 0.75
    assert report["detection/false_positives"] == 0.2
    # Scores rise with the width, so that the false one, 14 wide, comes last: 76 of the 101 recalls are reached before it.
    assert report["detection/ap50"] == pytest.approx(report["detection/ap75"])
    assert report["detection/ap50"] == pytest.approx(76 / 101)
    missed, hit = ("16_to_32", "32_to_64") if annotated else ("below_16", "16_to_32")
    assert report[f"detection/recall_{missed}"] == 0 and report[f"detection/recall_{hit}"] == 1
    found, truth = evaluate.detections(STATE)
    np.testing.assert_allclose(
        found[1]["boxes"], [np.multiply((10, 4, 60, 44), 2 if annotated else 1)], atol=1e-4
    )
    np.testing.assert_allclose(truth[1]["boxes"], found[1]["boxes"], atol=1e-4)
    path = evaluate.figures(STATE)["detections"](tmp_path / "detections.png")
    assert path.stat().st_size > 1000


def test_nothing_to_evaluate_on_is_refused():
    empty = Photographs()
    empty.boxes, empty.labels = (), np.zeros(0, np.int32)
    with pytest.raises(UserError):
        training.ObjectDetection(red_square.RedSquare(), empty)


def test_a_set_in_vocs_layout_has_vocs_precision_too():
    source = Photographs(True)
    plain = source.ground_truth
    source.ground_truth = lambda i: {**plain(i), "difficult": np.zeros(len(plain(i)["boxes"]), bool)}
    report = training.ObjectDetection(red_square.RedSquare(), source, batch_size=2)(STATE)
    # Three of four, then a false one: the recalls 0 to 0.7 of 0, 0.1, …, 1, and the area.
    assert report["detection/voc07_ap"] == pytest.approx(8 / 11)
    assert report["detection/voc10_ap"] == pytest.approx(0.75)
    assert report["detection/ar"] == pytest.approx(0.75)
    without = training.ObjectDetection(red_square.RedSquare(), Photographs(True), batch_size=2)(STATE)
    assert not any("voc" in name for name in without)
