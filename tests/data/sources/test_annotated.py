"""Photographs with boxes: what is kept of annotations from outside, and where it goes when the image is resized."""

import logging
import pickle

import numpy as np
import pytest

from jaxface import data
from jaxface.data.sources.annotated import AnnotatedImage, AnnotatedSource
from jaxface.errors import UserError

NAN, INF = float("nan"), float("inf")


def test_boxes_that_cannot_be_used_are_counted_and_told_once(tmp_path, picture, caplog):
    picture(tmp_path / "a.jpg")
    boxes = np.array(
        [
            [10, 10, 30, 20],
            [-5, 50, 20, 70],  # partly outside: clipped
            [10, NAN, 30, 20],
            [0, 0, INF, 20],
            [10, 10, 10, 20],  # no height
            [30, 10, 20, 20],  # upside down
            [50, 10, 60, 20],  # below
            [0, -1e308, 1e308, -1e300],
            [1, 1, 2, 2],
        ]
    )
    labels = np.array([0, 1, 0, 0, 0, 0, 0, 0, 2])
    area = np.arange(9.0)
    image = AnnotatedImage("a", tmp_path / "a.jpg", boxes, labels, extras={"area": area})
    with caplog.at_level(logging.WARNING, "jaxface.data"):
        source = AnnotatedSource([image], ("x", "y"), image_size=60, max_objects=4, what="a set")
    assert source.dropped == {
        "not finite": 2, "degenerate": 2, "outside their image": 2, "of an unknown class": 1
    }  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        "a set: left out 7 of 9 boxes: 2 degenerate, 2 not finite, 1 of an unknown class, 2 outside their image"
    ]
    truth = source.ground_truth(0)
    np.testing.assert_array_equal(truth["boxes"], [[10, 10, 30, 20], [0, 50, 20, 60]])
    np.testing.assert_array_equal(truth["labels"], [0, 1])
    np.testing.assert_array_equal(truth["area"], [0, 1])
    record = source[0]
    np.testing.assert_array_equal(record["boxes"][:2], truth["boxes"])
    assert record["box_mask"].tolist() == [True, True, False, False]


@pytest.mark.parametrize("size", [(40, 60), (90, 30), (7, 200), (64, 64), (500, 20)])
@pytest.mark.parametrize("aspects", [(1.0,), (1.0, 0.5, 2.0)])
def test_places_follow_the_pixels_into_the_shape_and_back(size, aspects, tmp_path, picture):
    height, width = size
    picture(tmp_path / "a.png", height, width)
    boxes = np.array([[0, 0, height, width], [height * 0.25, width * 0.5, height * 0.75, width]])
    points = np.stack([np.linspace(0, width, 5), np.linspace(0, height, 5)], -1)
    image = AnnotatedImage("a", tmp_path / "a.png", boxes, landmarks=np.stack([points, np.full((5, 2), NAN)]))
    source = AnnotatedSource([image], ("x",), image_size=128, max_objects=2, aspects=aspects, what="a")
    record = source[0]
    shape = record["image"].shape[:2]
    assert shape == source.shapes[source.buckets[0]] and source.image_shape == (*source.shapes[0], 3)
    valid = record["image_size"]
    assert (valid <= shape).all() and max(valid / shape) == 1
    assert abs(valid[0] / valid[1] / (height / width) - 1) < 1 / min(valid)
    assert record["original_size"].tolist() == [height, width]
    np.testing.assert_allclose(record["boxes"][0], [0, 0, *valid], atol=1e-3)
    np.testing.assert_allclose(
        data.to_original(record["boxes"], record["image_size"], record["original_size"]), boxes, atol=1e-3
    )
    np.testing.assert_allclose(record["landmarks"][0], points / (width, height) * valid[::-1], atol=1e-3)
    assert record["landmark_mask"].tolist() == [True, False]
    assert (record["image"][valid[0] :] == 127).all() and (record["image"][:, valid[1] :] == 127).all()
    assert record["image"][: valid[0], : valid[1]].std() > 5


def test_of_too_many_objects_the_largest_stay_and_a_line_tells(tmp_path, picture, caplog):
    picture(tmp_path / "a.jpg", 64, 64)
    sides = np.array([5, 30, 8, 20, 2])
    boxes = np.stack([np.zeros(5), np.zeros(5), sides, sides], -1)
    image = AnnotatedImage("a", tmp_path / "a.jpg", boxes, extras={"difficult": np.arange(5) > 2})
    with caplog.at_level(logging.WARNING, "jaxface.data"):
        source = AnnotatedSource([image] * 2, ("x",), image_size=64, max_objects=3, what="a set")
    assert source.cut == 4
    assert [record.getMessage() for record in caplog.records] == [
        "a set: 4 of 10 objects are left out, the smallest of the 2 images with more than 3; max_objects=5 would take all"
    ]
    with pytest.raises(
        UserError,
        match=r"^max_objects: needs at least 5 for the 2 images with more than 3 objects of a set; "
        r"or surplus 'largest' leaves out the smallest 4 of 10$",
    ):
        AnnotatedSource([image] * 2, ("x",), image_size=64, max_objects=3, surplus="refuse", what="a set")
    assert source[0]["boxes"][:, 2].tolist() == [30, 8, 20]
    assert len(source.ground_truth(0)["boxes"]) == 5


def test_images_that_cannot_be_read_are_replaced_within_their_shape(tmp_path, picture, caplog):
    for name, height, width in (("wide", 30, 60), ("tall", 60, 30), ("wide2", 30, 60), ("wide3", 30, 60)):
        picture(tmp_path / f"{name}.png", height, width)
    (tmp_path / "wide2.png").write_bytes((tmp_path / "wide2.png").read_bytes()[:2000])  # its header is whole
    images = [
        AnnotatedImage(name, tmp_path / f"{name}.png", [[0, 0, 10 + row, 10]])
        for row, name in enumerate(("wide", "tall", "wide2", "wide3"))
    ]
    images[3].size = (99, 60)  # not what the file has
    source = AnnotatedSource(images, ("x",), image_size=64, max_objects=1, aspects=(0.5, 2.0), what="a")
    source = pickle.loads(pickle.dumps(source))
    assert source.buckets.tolist() == [1, 0, 1, 0]
    with caplog.at_level(logging.WARNING, "jaxface.data"):
        record = source[2]
    np.testing.assert_array_equal(record["image"], source[0]["image"])
    assert source.shown(2) == 0 and source.corrupt >= 1
    np.testing.assert_array_equal(source.ground_truth(2)["boxes"], source.ground_truth(0)["boxes"])
    assert "wide2.png cannot be read" in caplog.text and "another image of its shape stands in" in caplog.text
    np.testing.assert_array_equal(source[3]["image"], source[1]["image"])
    lonely = AnnotatedSource(images[2:3], ("x",), image_size=64, max_objects=1, what="a")
    with pytest.raises(UserError, match=r"^data: no image of shape 64x64 can be read any more$"):
        lonely[0]


def test_images_that_are_not_there_have_no_shape_of_their_own(tmp_path, picture):
    picture(tmp_path / "a.png")
    images = [AnnotatedImage(name, tmp_path / f"{name}.png", np.zeros((0, 4))) for name in ("a", "gone")]
    source = AnnotatedSource(images, ("x",), image_size=32, max_objects=1, what="a")
    np.testing.assert_array_equal(source[1]["image"], source[0]["image"])
    assert source.record_names == ["a", "gone"]
    with pytest.raises(UserError, match=r"^data: a has no image$"):
        AnnotatedSource([], ("x",), image_size=32, max_objects=1, what="a")


def test_a_turned_photograph_has_its_upright_size(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    source = AnnotatedSource(
        [AnnotatedImage("a", tmp_path / "a.jpg", [[0, 0, 60, 40]])],
        ("x",),
        image_size=60,
        max_objects=1,
        what="a",
    )
    assert source[0]["original_size"].tolist() == [60, 40] and not source.dropped


def test_a_subset_knows_what_its_source_knows(tmp_path, picture):
    images = []
    for row, (height, width) in enumerate([(20, 40), (40, 20), (20, 40)]):
        picture(tmp_path / f"{row}.png", height, width)
        images.append(AnnotatedImage(str(row), tmp_path / f"{row}.png", [[0, 0, row + 1, 5]]))
    source = AnnotatedSource(images, ("x",), image_size=64, max_objects=2, aspects=(2.0, 0.5), what="a")
    subset = data.Subset(source, [2, 1])
    assert subset.buckets.tolist() == [0, 1] and subset.max_objects == 2
    assert subset.ground_truth(0)["boxes"].tolist() == [[0, 0, 3, 5]]
    assert subset.record_names == ["2", "1"]
