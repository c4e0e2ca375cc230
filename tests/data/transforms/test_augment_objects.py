"""Boxes and landmarks move with the pixels, whatever the window, the mirror and the interpolation."""

import dataclasses

import cv2
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxface import data
from jaxface.data.sources.objects import object_fields
from jaxface.data.transforms.augment_objects import cut
from jaxface.errors import UserError

GEOMETRY = dict(distortion=0.0, any_interpolation=False)


def coordinates(height, width, canvas):
    """An image whose red and green are the place of a pixel's center, two gray levels a pixel; padded with 127."""
    image = np.full((canvas, canvas, 3), 127, np.uint8)
    y, x = np.mgrid[:height, :width]
    image[:height, :width] = np.stack([2 * x + 1, 2 * y + 1, np.zeros_like(x)], -1)
    return image


def record(height=100, width=120, canvas=120, boxes=(), crowd=(), seed=0):
    rng = np.random.default_rng(seed)
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    points = boxes[:, None, 1::-1] + rng.uniform(0.1, 0.9, (len(boxes), 5, 2)) * (
        boxes[:, None, 3:1:-1] - boxes[:, None, 1::-1]
    )
    return {
        "image": coordinates(height, width, canvas),
        "label": np.int32(0),
        **object_fields(
            boxes,
            image_size=(height, width),
            max_objects=6,
            labels=np.arange(len(boxes)),
            crowd=crowd or np.zeros(len(boxes), bool),
            landmarks=points,
            landmark_mask=np.arange(len(boxes)) % 2 == 0,
        ),
    }


def change(augment, element, seed=0):
    return data.ObjectAugmentation(augment).random_map(element, np.random.default_rng(seed))


def place_in_source(image, x, y):
    """Where a point of the result lay before, read from the colors around it: (x, y)."""
    red, green = (
        cv2.remap(
            image[..., k].astype(np.float32),
            np.float32([[x - 0.5]]),
            np.float32([[y - 0.5]]),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )[0, 0]
        for k in (0, 1)
    )
    return red / 2, green / 2


boxes_strategy = st.lists(
    st.tuples(st.integers(0, 70), st.integers(0, 90), st.integers(8, 30), st.integers(8, 30)),
    min_size=1,
    max_size=6,
)


@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
@hypothesis.given(
    boxes_strategy,
    st.sampled_from(["none", "square", "jitter"]),
    st.integers(0, 2**31),
    st.sampled_from([0, 64, 250]),
)
def test_boxes_and_landmarks_move_with_the_pixels(corners, crop, seed, side):
    before = record(boxes=[(y, x, y + h, x + w) for y, x, h, w in corners])
    augment = data.ObjectAugment(crop=crop, side=side, scales=(0.45, 0.6, 1.0), **GEOMETRY)
    after = change(augment, before, seed)
    assert after.keys() == before.keys()
    assert all(after[name].dtype == before[name].dtype for name in before)
    size = side or 120
    assert after["image"].shape == (size, size, 3)
    count = int(after["box_mask"].sum())
    assert after["box_mask"][:count].all()
    labels = after["box_label"][:count]
    assert len(set(labels)) == count  # no object twice, and each keeps its class
    boxes, points = after["boxes"], after["landmarks"]
    assert boxes.min() >= 0 and boxes.max() <= size
    assert (boxes[:count, 2:] > boxes[:count, :2]).all()
    for row, label in enumerate(labels):
        y0, x0, y1, x1 = before["boxes"][label]
        corners_now = [(boxes[row, 1], boxes[row, 0]), (boxes[row, 3], boxes[row, 2])]
        # Corners inside of the result, away from its edges, show the old corners' colors.
        (ax, ay), (bx, by) = (place_in_source(after["image"], *corner) for corner in corners_now)
        low_x, high_x = min(ax, bx), max(ax, bx)
        low_y, high_y = min(ay, by), max(ay, by)
        for now, old, edge in (
            (low_y, y0, boxes[row, 0]), (high_y, y1, boxes[row, 2]),
            (low_x, x0, boxes[row, 1] if ax < bx else boxes[row, 3]),
            (high_x, x1, boxes[row, 3] if ax < bx else boxes[row, 1]),
        ):  # fmt: skip
            if 3 < edge < size - 3 and 2 < old < 98:
                assert now == pytest.approx(old, abs=1.6)
        assert after["landmark_mask"][row] == before["landmark_mask"][label]
        if after["landmark_mask"][row]:
            old = before["landmarks"][label]
            order = [1, 0, 2, 4, 3] if ax > bx else [0, 1, 2, 3, 4]
            for point, original in zip(points[row], old[order], strict=True):
                if (
                    (point > 3).all()
                    and (point < size - 3).all()
                    and (original > 2).all()
                    and (original < 98).all()
                ):
                    np.testing.assert_allclose(place_in_source(after["image"], *point), original, atol=1.6)


def test_a_square_holds_a_whole_face_and_keeps_those_with_their_center_inside():
    before = record(120, 120, 120, boxes=[(10, 10, 40, 40), (60, 60, 110, 110), (0, 90, 20, 119)])
    sides = set()
    for seed in range(60):
        after = change(data.ObjectAugment(flip=0.0, **GEOMETRY), before, seed)
        (ax, ay), (bx, _) = (place_in_source(after["image"], at, at) for at in (3, 117))
        side = (bx - ax) / 114 * 120
        left, top = ax - 3 * side / 120, ay - 3 * side / 120
        sides.add(min((0.3, 0.45, 0.6, 0.8, 1.0), key=lambda k: abs(120 * k - side)))
        expected, whole = set(), 0
        for label, (y0, x0, y1, x1) in enumerate(before["boxes"][:3]):
            center = (x0 + x1) / 2 - left, (y0 + y1) / 2 - top
            if all(2 < c < side - 2 for c in center):
                expected.add(label)
            elif any(abs(c) <= 2 or abs(c - side) <= 2 for c in center):
                break
            whole += x0 >= left - 2 and y0 >= top - 2 and x1 <= left + side + 2 and y1 <= top + side + 2
        else:
            assert set(after["box_label"][after["box_mask"]]) == expected
            assert whole >= 1
    assert sides == {0.3, 0.45, 0.6, 0.8, 1.0}


def test_without_a_whole_face_the_image_is_padded_to_a_square():
    before = record(60, 120, 120, boxes=[(0, 0, 60, 100)])  # wider than any square
    after = change(data.ObjectAugment(flip=0.0, side=240, **GEOMETRY), before)
    assert after["image_size"].tolist() == [120, 240] == after["original_size"].tolist()
    np.testing.assert_allclose(after["boxes"][0], [0, 0, 120, 200])
    assert (after["image"][121:] == 127).all()


def test_without_faces_any_square_will_do():
    after = change(data.ObjectAugment(scales=(0.3,), flip=0.0, **GEOMETRY), record())
    assert not after["box_mask"].any() and after["image_size"].tolist() == [120, 120]
    assert np.ptp(after["image"][..., 0].astype(int)) < 2 * 36


def test_regions_to_ignore_stay_while_they_are_seen():
    before = record(120, 120, 120, boxes=[(0, 0, 120, 120), (50, 50, 60, 60)], crowd=[True, False])
    after = change(data.ObjectAugment(scales=(0.3,), **GEOMETRY), before, 1)
    assert after["box_crowd"][:2].tolist() == [True, False] and after["box_mask"][:3].tolist() == [
        True,
        True,
        False,
    ]
    np.testing.assert_array_equal(after["boxes"][0], [0, 0, 120, 120])


def test_yolo_keeps_what_is_seen_and_may_leave_the_image():
    before = record(120, 120, 120, boxes=[(0, 0, 30, 30)])
    augment = dataclasses.replace(data.ObjectAugment.yolo(), distortion=0.0, flip=0.0)
    results = [change(augment, before, seed) for seed in range(40)]
    assert any((result["image"][0, 0] == 127).all() for result in results)
    assert any(result["boxes"][0, 0] == 0 for result in results)
    aspects = [np.divide(*(r["boxes"][0, 2:] - r["boxes"][0, :2])) for r in results]
    assert min(aspects) < 0.9 and max(aspects) > 1.1


def test_colors_change_within_their_limits():
    element = record(60, 60, 60)
    element["image"][:] = 100
    flat = dict(crop="none", flip=0.0, any_interpolation=False, distortion=1.0, saturation=(1, 1), hue=0.0)
    for limits, low, high in (
        (dict(brightness=32.0, contrast=(1, 1)), 68, 132),
        (dict(brightness=0.0, contrast=(0.5, 1.5)), 50, 150),
    ):
        levels = [change(data.ObjectAugment(**flat, **limits), element, s)["image"] for s in range(80)]
        means = [int(level[0, 0, 0]) for level in levels]
        assert all(np.ptp(level) <= 1 for level in levels)
        assert low - 1 <= min(means) < low + 8 and high - 8 < max(means) <= high + 1
    element["image"][:] = (200, 100, 50)
    strong = data.ObjectAugment(**{**flat, "hue": 18.0}, brightness=0.0, contrast=(1, 1))
    turned = np.stack([change(strong, element, s)["image"][0, 0] for s in range(40)]).astype(int)
    assert (
        np.abs(turned.max(1) - 200).max() <= 2 and np.abs(turned.min(1) - 50).max() <= 2
    )  # value and saturation stay
    assert np.ptp(turned[:, 1]) > 60
    gray = change(data.ObjectAugment.none(gray=1.0), element)["image"]
    assert np.ptp(gray[0, 0]) == 0


def test_chances_are_independent_of_one_another():
    before = record(120, 120, 120, boxes=[(40, 40, 80, 80)])
    augment = data.ObjectAugment(flip=0.0, distortion=0.0)
    for seed in range(5):
        plain, mirrored, colored = (
            change(dataclasses.replace(augment, **more), before, seed)
            for more in ({}, {"flip": 1.0}, {"distortion": 1.0})
        )
        np.testing.assert_array_equal(plain["image"][:, ::-1], mirrored["image"])
        np.testing.assert_allclose(mirrored["boxes"][0, 1], 120 - plain["boxes"][0, 3])
        np.testing.assert_array_equal(plain["boxes"], colored["boxes"])


def test_nothing_is_nothing():
    none = data.ObjectAugment.none()
    assert not none.active and data.ObjectAugment.none(side=32).active and data.ObjectAugment().active
    before = record(120, 120, 120, boxes=[(40, 40, 80, 80)])
    for name, value in change(none, before).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_windows_beyond_the_image_are_gray():
    image = coordinates(20, 20, 20)
    window = np.array([-10.0, -10.0, 30.0, 30.0])
    result, visible = cut(image, window, 80, cv2.INTER_NEAREST)
    assert (result[:19, :] == 127).all() and (result[:, 61:] == 127).all()
    np.testing.assert_array_equal(result[20:60:2, 20:60:2], image)
    assert visible == (60, 60)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(scales=(0.0,)), "scales: needs a number from 0.05 to 1, got 0"),
        (dict(side=-1), "side: needs an integer from 0, got -1"),
        (dict(jitter=0.5), "jitter: needs a number from 0 to 0.45, got 0.5"),
        (dict(contrast=(2.0, 1.0)), "contrast: needs least <= greatest"),
        (dict(flip=1.5), "flip: needs a number from 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, words):
    with pytest.raises(UserError, match=f"^{words}"):
        data.ObjectAugment(**arguments)


def test_mirror_images_keep_their_shape_and_where_their_padding_is():
    before = record(60, 100, 120, boxes=[(10, 20, 40, 50)])
    before["image"] = before["image"][:90]  # a canvas that is no square
    flips = data.ObjectAugment.flips(flip=1.0)
    after = change(flips, before)
    assert after["image"].shape == (90, 120, 3) and after["image_size"].tolist() == [60, 100]
    np.testing.assert_array_equal(after["image"][:60, :100], before["image"][:60, 99::-1])
    assert (after["image"][60:] == 127).all() and (after["image"][:, 100:] == 127).all()
    np.testing.assert_allclose(after["boxes"][0], (10, 50, 40, 80))
    unchanged = change(data.ObjectAugment.flips(flip=0.0, distortion=1.0), before)
    np.testing.assert_allclose(unchanged["boxes"], before["boxes"])
    assert flips.active and flips.keeps_shapes and not data.ObjectAugment().keeps_shapes
    with pytest.raises(UserError, match="side: needs 0 where images keep their shape, got 32"):
        data.ObjectAugment.flips(side=32)
