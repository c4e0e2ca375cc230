import numpy as np
import pytest

from jaxface import data
from jaxface.errors import UserError


def pixels(source):
    """In the units of the canvas: white is 1."""
    return np.stack([source[i]["image"][..., 0] for i in range(len(source))]) / 127.5 - 1


def test_a_scene_is_itself_however_many_there_are():
    few, many = data.object_scenes(2, seed=1), data.object_scenes(6, seed=1)
    np.testing.assert_array_equal(pixels(few), pixels(many)[:2])
    np.testing.assert_array_equal(pixels(data.object_scenes(2, seed=1, first=4)), pixels(many)[4:])
    assert (pixels(few) != pixels(data.object_scenes(2, seed=2))).any()


@pytest.mark.parametrize(("things", "classes"), [("digit", 1), ("digits", 10), ("shapes", 3)])
def test_records(things, classes):
    source = data.object_scenes(
        200, things=things, side=40, objects=(0, 3), sizes=(8, 14), max_objects=5, seed=0
    )
    assert source.image_shape == (40, 40, 3) and source.max_objects == 5
    assert len(source.class_names) == classes
    labels = np.concatenate([r["box_label"][r["box_mask"]] for r in (source[i] for i in range(200))])
    assert set(labels) == set(range(classes))
    counts = np.bincount([int(source[i]["box_mask"].sum()) for i in range(200)], minlength=4)
    assert len(counts) == 4 and counts.min() > 25  # 50 of each on average
    for i in range(200):
        record = source[i]
        boxes = record["boxes"][record["box_mask"]]
        sides = boxes[:, 2:] - boxes[:, :2]
        assert record["boxes"].shape == (5, 4) and record["image"].dtype == np.uint8
        assert (boxes >= 0).all() and (boxes <= 40).all() and (sides >= 8).all() and (sides <= 14).all()
        for a, b in ((a, b) for k, a in enumerate(boxes) for b in boxes[:k]):
            assert (np.minimum(a[2:], b[2:]) <= np.maximum(a[:2], b[:2])).any()  # no overlap


def test_boxes_are_exact():
    """Without noise nothing lies outside of them, and a shape touches all four sides."""
    for things in ("digits", "shapes"):
        source = data.object_scenes(60, things=things, noise=0.0, objects=(1, 1), seed=5)
        for i, canvas in enumerate(pixels(source)):
            y0, x0, y1, x1 = source[i]["boxes"][0].astype(int)
            ink = canvas > 0.02
            assert ink[y0:y1, x0:x1].sum() == ink.sum() > 0
            if things == "shapes":
                rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
                assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (y0, y1, x0, x1)


def test_shapes_are_what_they_are_called():
    source = data.object_scenes(200, things="shapes", noise=0.0, objects=(1, 1), sizes=(12, 18), seed=7)
    filled = {0: [], 1: [], 2: []}
    for i, canvas in enumerate(pixels(source)):
        y0, x0, y1, x1 = source[i]["boxes"][0].astype(int)
        patch = canvas[y0:y1, x0:x1]
        assert 0.49 < patch.max() <= 1.0
        filled[int(source[i]["box_label"][0])].append((patch > 0.25).mean())
    assert min(filled[0]) == 1.0
    assert np.mean(filled[1]) == pytest.approx(np.pi / 4, abs=0.03)
    assert np.mean(filled[2]) == pytest.approx(5 / 9, abs=0.06)


def test_unseen_digits_are_others():
    def digits(**options):
        source = data.object_scenes(
            400, things="digits", noise=0.0, sizes=(8, 8), objects=(1, 1), seed=3, **options
        )
        boxes = [source[i]["boxes"][0].astype(int) for i in range(400)]
        return {
            (canvas[b[0] : b[2], b[1] : b[3]]).tobytes()
            for canvas, b in zip(pixels(source), boxes, strict=True)
        }

    seen, unseen = digits(), digits(unseen=True)
    assert len(seen) > 200 and len(unseen) > 200 and not seen & unseen


def test_noise():
    canvas = pixels(data.object_scenes(40, objects=(0, 0), noise=0.2, seed=0))
    assert canvas.std() == pytest.approx(0.2, rel=0.02)


def test_the_data_kind_splits_by_numbers_and_digits():
    spec = data.ObjectScenes(scenes=30, held_out_scenes=10)
    split = data.load(spec, image_size=32, seed=0)
    assert split.protocol == "detection" and (len(split.train), len(split.held_out)) == (30, 10)
    more = data.load(data.ObjectScenes(scenes=7, held_out_scenes=10), image_size=32, seed=0)
    np.testing.assert_array_equal(pixels(more.held_out), pixels(split.held_out))
    assert len(spec.simulated(3, image_size=32, seed=0)) == 3
    assert len(data.load_all(spec, image_size=32)) == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, "count: needs an integer from 1, got 0"),
        ({"things": "cats"}, "things: needs one of digit, digits, shapes, got 'cats'"),
        ({"objects": (2, 1)}, "objects: needs low <= high, got 2, 1"),
        ({"sizes": (5, 9)}, "sizes: needs an integer from 6, got 5"),
        ({"sizes": (10, 40)}, "sizes: needs at most the 32 pixels of a scene, got 40"),
        ({"noise": -1.0}, "noise: needs a finite number from 0, got -1"),
        ({"max_objects": 1}, "max_objects: needs at least the 2 objects of a scene, got 1"),
        ({"seed": -1}, "seed: needs an integer from 0, got -1"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        data.object_scenes(**{"count": 1, "seed": 0, **fields})
