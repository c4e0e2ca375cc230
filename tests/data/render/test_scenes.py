"""Scenes: the same whoever asks, boxes where the heads are, dials that do what they say."""

import pickle

import numpy as np
import pytest

from jaxface import data
from jaxface.data.render import scenes
from jaxface.data.render.face_crops import FaceCrops, face_crops
from jaxface.data.specs.base import FIRST_HELD_OUT
from jaxface.errors import UserError

PEOPLE = dict(people=8, per_person=1)  # one chunk of crops


def source(count=24, size=96, seed=0, variation=scenes.SCENES, **more):
    return data.SceneSource(count, size, seed, variation, **PEOPLE, **more)


@pytest.fixture(scope="module")
def records():
    scene = source()
    return [scene[i] for i in range(len(scene))]


def faces(record):
    return record["boxes"][record["box_mask"]]


def test_a_record_has_the_fields_of_detection(records):
    expected = {
        "image": (np.uint8, (96, 96, 3)),
        "label": (np.int32, ()),
        "boxes": (np.float32, (5, 4)),
        "box_mask": (bool, (5,)),
        "box_label": (np.int32, (5,)),
        "box_crowd": (bool, (5,)),
        "landmarks": (np.float32, (5, 5, 2)),
        "landmark_mask": (bool, (5,)),
        "image_size": (np.int32, (2,)),
        "original_size": (np.int32, (2,)),
    }
    for record in records:
        assert {
            name: (np.asarray(value).dtype, np.shape(value)) for name, value in record.items()
        } == expected
        assert (record["image_size"] == 96).all()
        boxes = record["boxes"]
        np.testing.assert_array_equal(
            boxes[~record["box_mask"]], np.tile([0, 0, 1, 1], (5, 1))[~record["box_mask"]]
        )
        assert boxes.min() >= 0 and boxes.max() <= 96
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 1
        points = record["landmarks"][record["landmark_mask"]]
        assert ((points >= 0) & (points < 96)).all()
    assert {int(record["box_mask"].sum()) for record in records} >= {0, 1, 2, 3}


def test_a_scene_depends_on_its_number_alone(records):
    other = pickle.loads(pickle.dumps(source(count=9)))
    for index in (7, 2):
        for name, value in other[index].items():
            np.testing.assert_array_equal(value, records[index][name], err_msg=name)
    later = source(count=3, first_scene=7)
    np.testing.assert_array_equal(later[0]["image"], records[7]["image"])
    assert not np.array_equal(source(count=9, seed=1)[7]["image"], records[7]["image"])
    with pytest.raises(IndexError):
        source(count=3)[3]


def test_ground_truth_is_that_of_the_record(records):
    scene = source()
    for index in range(8):
        truth = scene.ground_truth(index)
        np.testing.assert_array_equal(truth["boxes"], faces(records[index]))
        assert not truth["crowd"].any() and (truth["labels"] == 0).all()


def inside_hull(hull, shape):
    """[H, W] uint8, 255 where a pixel's center lies inside of a convex polygon."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    sides = [
        (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])
        for a, b in zip(hull, np.roll(hull, -1, 0), strict=True)
    ]
    sides = np.stack(sides)
    return np.uint8(255) * ((sides >= 0).all(0) | (sides <= 0).all(0))


def test_boxes_bound_the_heads():
    """The silhouette is painted alone, in white on black: its extent is the box, to a pixel."""
    plain = scenes.SceneVariation(faces=(1, 1), truncated=0.0, photographs=0.0, bodies=0.0)
    scene = source(count=12, size=128, variation=plain)
    for index in range(len(scene)):
        rng, (place,) = scene._places(index)
        head = inside_hull(place.crop.outline, place.crop.colors[0].shape[:2])
        picture = np.zeros((128, 128, 3), np.uint8)
        scenes.paste(picture, np.full((*head.shape, 3), 255, np.uint8), head, place.matrix)
        rows, columns = np.nonzero(picture[..., 0] > 127)
        extent = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        np.testing.assert_allclose(extent, faces(scene[index])[0], atol=1.0)


def test_landmarks_lie_on_the_head_in_order(records):
    seen = 0
    for record in records:
        for box, points, known in zip(
            record["boxes"], record["landmarks"], record["landmark_mask"], strict=True
        ):
            if known:
                y0, x0, y1, x1 = box
                assert y0 < points[:, 1].min() and points[:, 1].max() < y1
                assert points[0, 0] < points[1, 0] and points[3, 0] < points[4, 0]
                assert points[:2, 1].mean() < points[2, 1] < points[3:, 1].mean() + 0.2 * (y1 - y0)
                seen += 1
    assert seen > 10


def test_dials():
    none = source(variation=scenes.SceneVariation(faces=(0, 0)))
    assert not any(none[i]["box_mask"].any() for i in range(4))
    small = source(count=12, variation=scenes.SceneVariation(faces=(1, 6), sizes=(8.0, 12.0), truncated=0.0))
    boxes = np.concatenate([small.ground_truth(i)["boxes"] for i in range(12)])
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
    assert len(boxes) > 12 and sides.min() > 7.99 and sides.max() < 12.01
    apart = source(count=24, variation=scenes.SceneVariation(faces=(4, 8), sizes=(10.0, 40.0), overlap=0.0))
    near = source(count=24, variation=scenes.SceneVariation(faces=(4, 8), sizes=(10.0, 40.0), overlap=0.5))

    def most_covered(scene):
        most = 0.0
        for index in range(len(scene)):
            boxes = scene.ground_truth(index)["boxes"]
            corners = (
                np.maximum(boxes[:, None, :2], boxes[None, :, :2]),
                np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
            )
            shared = np.clip(corners[1] - corners[0], 0, None).prod(-1) * (1 - np.eye(len(boxes)))
            most = max(most, (shared.sum(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)).max(initial=0))
        return most

    assert most_covered(apart) == 0 and 0.2 < most_covered(near) <= 0.5 + 1e-5
    edge = source(
        count=40,
        variation=scenes.SceneVariation(faces=(1, 1), sizes=(40.0, 60.0), truncation=0.4, truncated=1.0),
    )
    boxes = np.concatenate([edge.ground_truth(i)["boxes"] for i in range(40)])
    assert np.mean((boxes[:, :2] == 0).any(1) | (boxes[:, 2:] == 96).any(1)) > 0.4
    gray = source(count=2, variation=scenes.SceneVariation(gray=1.0))
    assert np.ptp(gray[0]["image"].astype(int), axis=-1).max() == 0


def test_held_out_scenes_share_neither_people_nor_places():
    split = data.load(
        data.Scenes(scenes=4, held_out_scenes=3, people=8, held_out_people=8, per_person=1), image_size=64
    )
    assert split.protocol == "detection" and (len(split.train), len(split.held_out)) == (4, 3)
    shown, unseen = face_crops(8, 1, 0, 0)[3], face_crops(8, 1, 0, FIRST_HELD_OUT)[3]
    assert not np.array_equal(shown.colors[0], unseen.colors[0])
    assert not np.array_equal(split.train[0]["image"], split.held_out[0]["image"])
    again = data.load(
        data.Scenes(scenes=9, held_out_scenes=3, people=24, held_out_people=8, per_person=1), image_size=64
    )
    np.testing.assert_array_equal(again.held_out[2]["image"], split.held_out[2]["image"])


def test_crops_are_those_of_their_numbers():
    few, many = FaceCrops(2, 2, 0, 4), face_crops(8, 1, 0, 0)
    np.testing.assert_array_equal(few[2].colors[0], many[5].colors[0])  # person 5, image 0
    crop = many[5]
    assert [c.shape[:2] for c in crop.colors] == [c.shape[:2] for c in crop.covers]
    assert all(
        (a.shape[0], a.shape[1]) == (2 * b.shape[0], 2 * b.shape[1])
        for a, b in zip(crop.colors, crop.colors[1:], strict=False)
    )
    head, body = np.moveaxis(crop.covers[0], -1, 0)
    assert (body >= head).all() and (body > head).mean() > 0.03


def test_scenes_are_batched_and_resumed():
    scene = source(count=8, size=64)
    stream = data.batches(scene, batch_size=4, seed=3, augment=data.ObjectAugment())
    next(stream)
    state = stream.get_state()
    batch = next(stream)
    assert batch["boxes"].shape == (4, 5, 4) and batch["image"].shape == (4, 64, 64, 3)
    again = data.batches(scene, batch_size=4, seed=3, augment=data.ObjectAugment())
    again.set_state(state)
    for name, value in next(again).items():
        np.testing.assert_array_equal(value, batch[name], err_msg=name)
    stream.close()
    again.close()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: source(count=0), "scenes: needs an integer from 1, got 0"),
        (lambda: source(size=16), "image_size: needs an integer from 32, got 16"),
        (lambda: source(max_objects=3), "max_objects: needs at least the 5 faces of a scene, got 3"),
        (lambda: scenes.SceneVariation(overlap=1.0), "overlap: needs a number from 0 and below 1, got 1"),
        (lambda: scenes.SceneVariation(sizes=(40.0, 20.0)), "sizes: needs least <= greatest"),
        (lambda: scenes.SceneVariation(sizes=(2.0, 20.0)), "sizes: needs a finite number from 4, got 2"),
    ],
)
def test_numbers_out_of_range_are_refused(call, words):
    with pytest.raises(UserError, match=f"^{words}") as refused:
        call()
    assert "\n" not in str(refused.value)
