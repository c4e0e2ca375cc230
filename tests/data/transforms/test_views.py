"""Views for a teacher and a student: where an object's pixels go, the matrix and the boxes go as well."""

import numpy as np
import pytest

from jaxface import boxes, data
from jaxface.data.sources.objects import object_fields
from jaxface.data.transforms.letterboxing import PADDING
from jaxface.data.transforms.views import TeacherStudentTransform, make_view, moved_objects, recolor
from jaxface.errors import UserError

SIZE = 96
PLAIN = data.ViewSpec(scales=(1.0, 1.0), flip=0.0)


def record(labeled, *, shape=(SIZE, SIZE), valid=(64, 80)):
    """A bright rectangle on black, padded, and its box."""
    image = np.full((*shape, 3), PADDING, np.uint8)
    image[: valid[0], : valid[1]] = 0
    image[20:40, 30:60] = 255
    fields = object_fields(
        np.array([[20.0, 30, 40, 60]]), image_size=valid, max_objects=3, labels=np.array([2])
    )
    return {"image": image, "label": np.int32(0), **fields, "labeled": np.bool_(labeled)}


def bright_box(image, level):
    """[4] bounds of the bright pixels."""
    rows, columns = np.nonzero(image.min(-1) > level)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])


KINDS = {
    "scale": data.ViewSpec(scales=(0.4, 0.9), flip=0.0),
    "mirror": data.ViewSpec(scales=(1.0, 1.0), flip=1.0),
    "geometry": data.ViewSpec(scales=(0.7, 1.0), flip=0.5, geometry=1.0, degrees=20),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_boxes_and_matrix_go_together(kind):
    element = record(False)
    for seed in range(12):
        view, size, matrix = make_view(
            element["image"], element["image_size"], KINDS[kind], np.random.default_rng(seed)
        )
        moved = moved_objects(element, matrix, size)
        assert view.shape == element["image"].shape and moved["box_mask"].sum() == 1
        assert moved["box_label"][0] == 2 and moved["boxes"].shape == (3, 4)
        assert np.abs(moved["boxes"][0] - bright_box(view, 160)).max() <= 1.5
        same = boxes.transform_boxes(element["boxes"][:1], matrix, size)
        np.testing.assert_allclose(same, moved["boxes"][:1], atol=1e-3)
        assert (view[size[0] :] == PADDING).all() and (view[:, size[1] :] == PADDING).all()


def test_a_view_may_grow_into_the_padding_and_no_further():
    grown, size, matrix = make_view(
        record(True)["image"],
        np.array([64, 80]),
        data.ViewSpec(scales=(4.0, 4.0), flip=0),
        np.random.default_rng(0),
    )
    assert size.tolist() == [77, 96] and matrix[0, 0] == pytest.approx(1.2)
    assert grown.shape == (SIZE, SIZE, 3)


def test_a_plain_view_is_the_image():
    element = record(True)
    view, size, matrix = make_view(element["image"], element["image_size"], PLAIN, np.random.default_rng(0))
    np.testing.assert_array_equal(view, element["image"])
    assert size.tolist() == [64, 80] and (matrix == np.eye(3)).all()


def test_squares_are_erased_inside_of_the_image():
    element = record(False)
    element["image"][:64, :80] = 255
    spec = data.ViewSpec(scales=(1.0, 1.0), flip=0.0, erased=(4, 4), erased_side=0.5)
    shares = []
    for seed in range(30):
        view, _, _ = make_view(element["image"], element["image_size"], spec, np.random.default_rng(seed))
        shares.append((view[:64, :80] == PADDING).mean())
    assert 0.1 < np.mean(shares) < 0.5 and max(shares) < 1


def test_colors_change_and_shapes_stay():
    image = np.random.default_rng(0).integers(0, 255, (16, 24, 3)).astype(np.uint8)
    changed = [recolor(image, np.random.default_rng(seed)) for seed in range(60)]
    assert all(c.shape == image.shape and c.dtype == np.uint8 for c in changed)
    same = np.mean([np.array_equal(c, image) for c in changed])
    assert 0.02 < same < 0.4  # the identity is one of nine


def test_labeled_images_have_one_view_and_the_others_two():
    views = data.TeacherStudentViews(
        labeled=PLAIN, weak=PLAIN, strong=data.ViewSpec(scales=(0.5, 0.5), flip=0.0)
    )
    transform = views.transform()
    assert isinstance(transform, TeacherStudentTransform)
    labeled = transform.random_map(record(True), np.random.default_rng(0))
    other = transform.random_map(record(False), np.random.default_rng(0))
    assert {name: (v.shape, v.dtype) for name, v in labeled.items()} == {
        name: (v.shape, v.dtype) for name, v in other.items()
    }
    assert (labeled["teacher_image"] == 0).all() and labeled["image_size"].tolist() == [64, 80]
    np.testing.assert_array_equal(other["teacher_image"], record(False)["image"])
    assert other["image_size"].tolist() == [32, 40] and other["teacher_size"].tolist() == [64, 80]
    to_student = boxes.view_to_view(other["teacher_matrix"], other["matrix"])
    moved = boxes.transform_boxes(np.array([[20.0, 30, 40, 60]]), to_student, other["image_size"])
    np.testing.assert_allclose(moved[0], other["boxes"][0], atol=1e-3)


def test_teacher_and_student_draw_on_their_own():
    spec = data.ViewSpec(scales=(0.4, 1.0), flip=0.5)
    views = data.TeacherStudentViews(labeled=spec, weak=spec, strong=spec).transform()
    seen = [views.random_map(record(False), np.random.default_rng(seed)) for seed in range(6)]
    assert any((r["image_size"] != r["teacher_size"]).any() for r in seen)


def test_impossible_views_are_refused():
    with pytest.raises(UserError, match="scales: "):
        data.ViewSpec(scales=(1.0, 0.4))
    with pytest.raises(UserError, match="degrees: "):
        data.ViewSpec(degrees=90)
