"""FDDB's curves: overlap of regions pixel by pixel, the best pairing, and rates at false positives."""

import itertools

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.metrics import fddb_evaluate
from jaxface.metrics.detection.fddb import region_iou

RNG = np.random.default_rng(0)


def boxes(count):
    corner = RNG.uniform(-20, 60, (count, 2))
    return np.concatenate([corner, corner + RNG.uniform(0, 40, (count, 2))], axis=1)


def ellipses(count):
    columns = [(5, 40), (3, 30), (0, 3.2), (0, 60), (0, 60)]
    return np.stack([RNG.uniform(low, high, count) for low, high in columns], axis=1)


@pytest.mark.parametrize("image_size", [None, (50, 40)])
@pytest.mark.parametrize(("a", "b"), list(itertools.product((boxes, ellipses), repeat=2)))
def test_overlap_is_that_of_the_pixels(a, b, image_size):
    y, x = np.mgrid[-100:160, -100:160] + 0.5

    def pixels(region):
        if region.size == 4:
            inside = (y >= region[0]) & (y < region[2]) & (x >= region[1]) & (x < region[3])
        else:
            major, minor, angle, cx, cy = region
            turned = (x - cx + 1j * (y - cy)) * np.exp(-1j * angle)
            inside = (turned.real / major) ** 2 + (turned.imag / minor) ** 2 <= 1
        if image_size:
            inside &= (y > 0) & (x > 0) & (y < image_size[0]) & (x < image_size[1])
        return inside

    first, second = a(6), b(5)
    expected = [
        [(p & q).sum() / max((p | q).sum(), 1) for q in map(pixels, second)] for p in map(pixels, first)
    ]
    np.testing.assert_array_equal(region_iou(first, second, image_size=image_size), expected)


def test_a_box_around_an_ellipse_is_not_stretched():
    truth, found = [{"ellipses": [[40, 30, 0.0, 60, 50]]}], [{"boxes": [[20, 20, 80, 100]], "scores": [1.0]}]
    scores = fddb_evaluate(found, truth, false_positives=(0,))
    assert scores.discrete == {0: 1.0}
    assert scores.continuous[0] == pytest.approx(np.pi / 4, abs=0.005)


def test_pairs_have_the_largest_sum_and_not_the_best_first():
    # The surest detection overlaps both faces; giving it the better one would leave the other detection alone.
    truth = [{"boxes": [[0, 0, 10, 10], [0, 6, 10, 16]]}]
    found = [{"boxes": [[0, 2, 10, 12], [0, 0, 10, 9]], "scores": [0.9, 0.8]}]
    scores = fddb_evaluate(found, truth, false_positives=(0, 1))
    # Alone the first has face 1 (IoU 8 / 12). Then the second takes face 1 (9 / 10) and the first face 2 (6 / 14).
    np.testing.assert_allclose(scores.discrete_rates, [1 / 2, 1 / 2])
    np.testing.assert_allclose(scores.continuous_rates, [8 / 12 / 2, (9 / 10 + 6 / 14) / 2])
    np.testing.assert_array_equal(scores.false_positives, [0, 1])


def test_rates_at_false_positives_over_the_pooled_set():
    # Two images; by falling score: true, false, false and true together, false.
    truth = [{"boxes": [[0, 0, 10, 10]]}, {"boxes": [[0, 0, 20, 20], [50, 50, 60, 60]]}]
    found = [
        {"boxes": [[0, 0, 10, 10], [30, 30, 40, 40], [70, 70, 80, 80]], "scores": [9, 8, 5]},
        {"boxes": [[0, 0, 20, 20], [80, 80, 90, 90]], "scores": [7, 7]},
    ]
    scores = fddb_evaluate(found, truth, false_positives=(0, 1, 2, 3, 100))
    assert scores.discrete == {0: 1 / 3, 1: 1 / 3, 2: 2 / 3, 3: 2 / 3, 100: 2 / 3}
    assert scores.continuous == scores.discrete  # all matches are exact
    np.testing.assert_array_equal(scores.thresholds, [9, 8, 7, 5])
    np.testing.assert_array_equal(scores.false_positives, [0, 1, 2, 3])


def test_every_threshold_is_paired_anew():
    """Against a pairing from the beginning at every threshold, by trying all pairs."""
    truth = [{"ellipses": ellipses(3)} for _ in range(3)]
    found = [{"boxes": boxes(4), "scores": RNG.permutation(12)[:4] / 12} for _ in range(3)]
    scores = fddb_evaluate(found, truth, false_positives=(100,))
    for point, threshold in enumerate(scores.thresholds):
        discrete = continuous = 0.0
        for image, real in zip(found, truth, strict=True):
            overlap = region_iou(image["boxes"][image["scores"] >= threshold], real["ellipses"])
            overlap = np.pad(overlap, ((0, max(0, 3 - len(overlap))), (0, 0)))
            orders = itertools.permutations(range(len(overlap)), 3)
            best = max(([overlap[row, face] for face, row in enumerate(order)] for order in orders), key=sum)
            discrete, continuous = discrete + sum(iou > 0.5 for iou in best), continuous + sum(best)
        assert scores.discrete_rates[point] == discrete / 9
        assert scores.continuous_rates[point] == pytest.approx(continuous / 9)


def test_nothing_found_and_what_is_refused():
    scores = fddb_evaluate([{"boxes": [], "scores": []}], [{"ellipses": [[9, 5, 0, 9, 9]]}])
    assert scores.discrete == {284: 0.0, 1000: 0.0, 2000: 0.0} and scores.thresholds.size == 0
    with pytest.raises(UserError, match=r"^ground_truth: needs at least one face"):
        fddb_evaluate([{"boxes": [], "scores": []}], [{"boxes": []}])
    with pytest.raises(UserError, match=r"^ground_truth\[0\]\['ellipses'\]: needs radii above 0"):
        fddb_evaluate([{"boxes": [], "scores": []}], [{"ellipses": [[0, 5, 0, 9, 9]]}])
