"""COCO's twelve numbers: by hand, against pycocotools' own loops, and what is refused."""

import contextlib
import io
import re
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxface.errors import UserError
from jaxface.metrics import coco_evaluate
from jaxface.metrics.detection.coco import NAMES

SQUARES = [[0, 0, 20, 20], [0, 50, 20, 70], [50, 0, 70, 20], [50, 50, 70, 70]]
FAR = [[100, 100, 120, 120], [200, 200, 220, 220]]
TRUE_FALSE_TRUE_FALSE_TRUE = {
    "boxes": [SQUARES[0], FAR[0], SQUARES[1], FAR[1], SQUARES[2]],
    "scores": [0.9, 0.8, 0.7, 0.6, 0.5],
}


def yxyx(*boxes):
    """Boxes given as COCO's (x, y, width, height)."""
    return [[y, x, y + height, x + width] for x, y, width, height in boxes]


# The numbers are those of pycocotools 2.0.11 and of faster-coco-eval 1.8.0, to six digits.
def test_precision_at_recalls_by_hand():
    scores = coco_evaluate([TRUE_FALSE_TRUE_FALSE_TRUE], [{"boxes": SQUARES}])
    by_hand = (26 * 1 + 25 * 2 / 3 + 25 * 3 / 5) / 101  # recalls 0 … .25, … .50, … .75
    assert scores["AP"] == pytest.approx(by_hand) == pytest.approx(0.570957, abs=1e-6)
    assert (scores["AR1"], scores["AR10"], scores["AR100"]) == (0.25, 0.75, 0.75)
    assert scores["AP_medium"] == scores["AR_large"] == -1  # no object is of that size


@pytest.mark.parametrize(("crowd", "expected"), [(True, 1.0), (False, 0.126238)])
def test_detections_in_a_crowd_count_neither_way(crowd, expected):
    truth = {"boxes": yxyx((10, 10, 40, 40), (100, 100, 200, 200)), "crowd": [False, crowd]}
    inside = yxyx((110, 110, 30, 30), (150, 150, 30, 30), (200, 200, 30, 30), (10, 10, 40, 40))
    scores = coco_evaluate([{"boxes": inside, "scores": [0.9, 0.8, 0.7, 0.5]}], [truth])
    assert scores["AP"] == pytest.approx(expected, abs=1e-6)


def test_a_shifted_detection_passes_the_lower_thresholds():
    scores = coco_evaluate(
        [{"boxes": yxyx((25, 0, 100, 100)), "scores": [1.0]}], [{"boxes": yxyx((0, 0, 100, 100))}]
    )
    assert scores["AP"] == pytest.approx(0.3)  # an IoU of .6: thresholds .5, .55 and .6
    assert (scores["AP50"], scores["AP75"]) == (pytest.approx(1), 0)


def test_a_shifted_detection_that_is_surer_than_the_exact_one():
    scores = coco_evaluate(
        [
            {
                "boxes": yxyx((10, 0, 100, 100), (0, 0, 100, 100), (100, 100, 50, 50)),
                "scores": [0.9, 0.8, 0.7],
            }
        ],
        [{"boxes": yxyx((0, 0, 100, 100), (100, 100, 50, 50))}],
    )
    assert scores["AP"] == pytest.approx(0.784488, abs=1e-6)
    assert scores["AP50"] == pytest.approx(0.834983, abs=1e-6)


def random_images(seed, *, images=12, num_classes=3, detections=130):
    rng = np.random.default_rng(seed)
    truth, predictions = [], []
    for image in range(images):
        count = int(rng.integers(0, 9))
        corner, side = rng.uniform(0, 300, (count, 2)), rng.uniform(4, 160, (count, 2))
        boxes = np.concatenate([corner, corner + side], axis=1)
        labels = rng.integers(0, num_classes - 1, count)  # the last class has no object
        truth.append(
            {
                "boxes": boxes,
                "labels": labels,
                "crowd": rng.uniform(size=count) < 0.2,
                "area": side.prod(axis=1) * rng.uniform(0.3, 1, count),
            }
        )
        near = rng.integers(0, count, detections) if count and image % 4 else np.zeros(0, int)
        moved = boxes[near] + rng.normal(0, 6, (near.size, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        predictions.append(
            {
                "boxes": moved,
                "scores": rng.uniform(0, 1, near.size).round(2),  # with ties
                "classes": np.where(
                    rng.uniform(size=near.size) < 0.8, labels[near], rng.integers(0, num_classes, near.size)
                ),
            }
        )
    return predictions, truth


def by_pycocotools(predictions, truth, num_classes):
    def xywh(box):
        return [box[1], box[0], box[3] - box[1], box[2] - box[0]]

    annotations = [
        {
            "image_id": image,
            "bbox": xywh(box),
            "category_id": int(label),
            "iscrowd": int(crowd),
            "area": area,
        }
        for image, entry in enumerate(truth)
        for box, label, crowd, area in zip(
            *(entry[k] for k in ("boxes", "labels", "crowd", "area")), strict=True
        )
    ]
    annotations = [dict(a, id=number) for number, a in enumerate(annotations, 1)]
    found = [
        {"image_id": image, "bbox": xywh(box), "category_id": int(kind), "score": score}
        for image, entry in enumerate(predictions)
        for box, kind, score in zip(*(entry[k] for k in ("boxes", "classes", "scores")), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": kind} for kind in range(num_classes)],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_all_numbers_are_those_of_pycocotools(seed):
    predictions, truth = random_images(seed)
    ours = coco_evaluate(predictions, truth, num_classes=3)
    assert ours == pytest.approx(by_pycocotools(predictions, truth, 3), abs=1e-12)
    assert 0.05 < ours["AP"] < 0.95  # the sets are neither trivial nor hopeless


def test_the_order_of_detections_and_padding_do_not_matter():
    predictions, truth = random_images(9, detections=40)
    rng = np.random.default_rng(0)
    expected = coco_evaluate(
        [dict(p, scores=p["scores"] + np.arange(p["scores"].size) * 1e-4) for p in predictions],
        truth,
        num_classes=3,
    )
    shuffled = []
    for image in predictions:
        count = image["scores"].size
        scores = image["scores"] + np.arange(count) * 1e-4  # all different
        order = rng.permutation(count)
        shuffled.append(
            {
                "boxes": np.concatenate([image["boxes"][order], np.zeros((3, 4))]),
                "scores": np.concatenate([scores[order], np.full(3, 0.99)]),
                "classes": np.concatenate([image["classes"][order], np.zeros(3, int)]),
                "valid": np.arange(count + 3) < count,
            }
        )
    assert coco_evaluate(shuffled, truth, num_classes=3) == expected


BOX, NOTHING = [[0, 0, 9, 9]], {"boxes": [], "scores": []}


@pytest.mark.parametrize(
    ("prediction", "words"),
    [
        ({"boxes": [[5, 5, 3, 9]], "scores": [1]}, r"['boxes']: needs (y0, x0, y1, x1) with y0 <= y1"),
        ({"boxes": [[0, 0, np.nan, 9]], "scores": [1]}, "['boxes']: needs finite values"),
        ({"boxes": [[0, 0, 9]], "scores": [1]}, "['boxes']: needs shape [N, 4], got (1, 3)"),
        ({"boxes": BOX}, ": needs 'scores', has 'boxes'"),
        ({"scores": [1]}, ": needs 'boxes', has 'scores'"),
        ({"boxes": BOX, "scores": [1, 2]}, "['scores']: needs 1 values, as boxes has, got shape (2,)"),
        ({"boxes": BOX, "scores": [np.inf]}, "['scores']: needs finite values, got inf"),
        ({"boxes": BOX, "scores": [1], "classes": [1]}, "['classes']: needs integers in [0, 1), got int64"),
        (
            {"boxes": BOX, "scores": [1], "classes": [0.0]},
            "['classes']: needs integers in [0, 1), got float64",
        ),
    ],
)
def test_predictions_that_are_refused(prediction, words):
    with pytest.raises(UserError, match=f"^{re.escape('predictions[1]' + words)}") as refused:
        coco_evaluate([NOTHING, prediction], [NOTHING, NOTHING])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ({"boxes": BOX, "labels": [-1]}, "['labels']: needs integers in [0, 1), got int64 -1..-1"),
        ({"boxes": BOX, "area": [-1.0]}, "['area']: needs finite values from 0"),
        ({"boxes": BOX, "crowd": [True, False]}, "['crowd']: needs 1 values"),
        ([1, 2], ": needs a dict with boxes, got list"),
    ],
)
def test_ground_truth_that_is_refused(truth, words):
    with pytest.raises(UserError, match=f"^{re.escape('ground_truth[0]' + words)}"):
        coco_evaluate([NOTHING], [truth])


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(
        UserError, match=r"^ground_truth: needs one entry for each of the 2 predictions, got 1"
    ):
        coco_evaluate([NOTHING, NOTHING], [NOTHING])
    with pytest.raises(UserError, match=r"^predictions: needs at least one image"):
        coco_evaluate([], [])
    with pytest.raises(UserError, match=r"^num_classes: needs at least 1, got 0"):
        coco_evaluate([NOTHING], [NOTHING], num_classes=0)


def test_without_pycocotools_one_line_says_what_to_install(monkeypatch):
    for module in ("pycocotools", "pycocotools.mask", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UserError,
        match=r"^jaxface\[detection\] is needed: the package pycocotools",
    ):
        coco_evaluate([NOTHING], [NOTHING])
