"""WIDER FACE's average precision: the example by hand, and the official loops over random images."""

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics import wider_face_evaluate


def yxyx(*boxes):
    """Boxes given as (x, y, width, height)."""
    return np.array([[y, x, y + height, x + width] for x, y, width, height in boxes], float)


TRUTH = [
    {
        "boxes": yxyx((10, 10, 20, 20), (50, 50, 20, 20), (80, 80, 4, 4)),
        "easy": [True, True, False],
        "hard": [True, True, True],
    },
    {"boxes": yxyx((30, 30, 40, 40)), "easy": [True], "hard": [True]},
]
FOUND = [
    {
        "boxes": yxyx((10, 10, 20, 20), (11, 10, 20, 20), (52, 51, 20, 20), (80, 80, 4, 4), (0, 90, 10, 10)),
        "scores": [0.9, 0.85, 0.7, 0.65, 0.2],
    },
    {"boxes": yxyx((33, 30, 40, 40), (90, 90, 9, 9)), "scores": [0.8, 0.5]},
]


def test_the_example_of_two_images():
    scores = wider_face_evaluate(FOUND, TRUTH, subsets=("easy", "hard"))
    # By falling score: true, again the same face, true, true, (not kept: ignored | true), false, false.
    assert scores["easy"] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3) == pytest.approx(0.833333, abs=1e-6)
    assert scores["hard"] == pytest.approx((1 + 3 * 4 / 5) / 4) == pytest.approx(0.85)


def test_images_without_detections_add_their_faces():
    more = [*TRUTH, {"boxes": yxyx((0, 0, 9, 9)), "easy": [True], "hard": [True]}]
    found = [*FOUND, {"boxes": [], "scores": []}]
    easy = wider_face_evaluate(found, more, subsets=("easy",))["easy"]
    assert easy == pytest.approx(0.833333 * 3 / 4, abs=1e-6)


def test_nothing_found_and_equal_scores_give_numbers():
    nothing = [{"boxes": [], "scores": []}] * 2
    assert wider_face_evaluate(nothing, TRUTH, subsets=("easy",)) == {"easy": 0.0}
    one = [{"boxes": TRUTH[0]["boxes"][:1], "scores": [0.7]}, nothing[0]]
    assert wider_face_evaluate(one, TRUTH, subsets=("easy",))["easy"] == pytest.approx(1 / 3)


def official(found, truth, subset):
    """The published procedure, one detection and one threshold at a time."""
    every = np.concatenate([image["scores"] for image in found])
    low, high = every.min(), every.max()
    curve, faces = np.zeros((1000, 2)), 0
    for image, real in zip(found, truth, strict=True):
        keep = np.flatnonzero(real[subset])
        faces += keep.size
        if not len(real["boxes"]) or not len(image["boxes"]):
            continue
        order = np.argsort(-image["scores"], kind="stable")
        scores = (image["scores"][order] - low) / (high - low)
        recall, proposals, recalled = np.zeros(len(real["boxes"])), np.ones(order.size), np.zeros(order.size)
        for row, (y0, x0, y1, x1) in enumerate(image["boxes"][order]):
            overlaps = []
            for b0, a0, b1, a1 in real["boxes"]:
                width, height = min(x1, a1) - max(x0, a0) + 1, min(y1, b1) - max(y0, b0) + 1
                common = max(width, 0) * max(height, 0)
                areas = (x1 - x0 + 1) * (y1 - y0 + 1) + (a1 - a0 + 1) * (b1 - b0 + 1)
                overlaps.append(common / (areas - common))
            best = int(np.argmax(overlaps))
            if overlaps[best] >= 0.5:
                if best not in keep:
                    recall[best], proposals[row] = -1, -1
                elif recall[best] == 0:
                    recall[best] = 1
            recalled[row] = np.sum(recall == 1)
        for step in range(1000):
            above = np.flatnonzero(scores >= 1 - (step + 1) / 1000)
            if above.size:
                curve[step] += np.sum(proposals[: above[-1] + 1] == 1), recalled[above[-1]]
    precision = np.concatenate([[0], curve[:, 1] / np.maximum(curve[:, 0], 1), [0]])
    recall = np.concatenate([[0], curve[:, 1] / faces, [1]])
    for index in range(precision.size - 1, 0, -1):
        precision[index - 1] = max(precision[index - 1], precision[index])
    changes = np.flatnonzero(recall[1:] != recall[:-1])
    return np.sum((recall[changes + 1] - recall[changes]) * precision[changes + 1])


@pytest.mark.parametrize("seed", range(3))
def test_the_official_loops_give_the_same(seed):
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for image in range(6):
        faces = int(rng.integers(0, 6))
        corner = rng.integers(0, 100, (faces, 2)).astype(float)
        boxes = np.concatenate([corner, corner + rng.integers(5, 60, (faces, 2))], axis=1)
        truth.append({"boxes": boxes, "medium": rng.uniform(size=faces) < 0.6})
        near = rng.integers(0, faces, 25) if faces and image else np.zeros(0, int)
        moved = boxes[near] + rng.normal(0, 5, (near.size, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2])
        found.append({"boxes": moved, "scores": rng.uniform(-3, 9, near.size)})
    ours = wider_face_evaluate(found, truth, subsets=("medium",))["medium"]
    assert ours == pytest.approx(official(found, truth, "medium"), abs=1e-12) and 0.1 < ours < 0.99


def test_what_is_refused():
    with pytest.raises(UserError, match=r"^ground_truth\[0\]: needs 'medium', has 'boxes', 'easy', 'hard'"):
        wider_face_evaluate(FOUND, TRUTH)
    with pytest.raises(UserError, match=r"^ground_truth: needs a face that 'none' keeps"):
        wider_face_evaluate(
            FOUND, [dict(t, none=np.zeros(len(t["boxes"]), bool)) for t in TRUTH], subsets=("none",)
        )
    with pytest.raises(UserError, match=r"^thresholds: needs an integer from 1, got 0"):
        wider_face_evaluate(FOUND, TRUTH, thresholds=0)
