import numpy as np
import pytest

from jaxface.data.transforms import geometry
from jaxface.data.transforms.alignment import template


def record(size=112):
    """Bright dots at the landmarks, and depth that is the image."""
    image = np.zeros((size, size, 3), np.uint8)
    points = np.rint(template() * size / 112).astype(np.float32)
    for k, (x, y) in enumerate(points.astype(int)):
        image[y - 1 : y + 2, x - 1 : x + 2] = 100 + 30 * k
    return {
        "image": image,
        "depth": image[..., 0].astype(np.float32),
        "landmarks": points,
        "boxes": np.array([[10.0, 20.0, 90.0, 71.0]], np.float32),
        "label": np.int32(3),
    }


def brightness_at(image, points):
    return [int(image[round(float(y)), round(float(x))].max()) for x, y in points]


def test_flip_moves_everything_and_keeps_the_order_of_the_landmarks():
    before, after = record(), geometry.flip(record())
    np.testing.assert_array_equal(after["image"], before["image"][:, ::-1])
    np.testing.assert_array_equal(after["depth"], before["depth"][:, ::-1])
    assert (
        after["landmarks"][0, 0] < after["landmarks"][1, 0]
        and after["landmarks"][3, 0] < after["landmarks"][4, 0]
    )
    # The left eye of the mirrored image is the old right eye.
    assert brightness_at(after["image"], after["landmarks"]) == [130, 100, 160, 220, 190]
    np.testing.assert_array_equal(after["boxes"], [[10, 111 - 71, 90, 111 - 20]])
    twice = geometry.flip(after)
    for name in before:
        np.testing.assert_array_equal(twice[name], before[name])


@pytest.mark.parametrize("top, left, side", [(10, 5, 90), (-12, -20, 140), (20, 10, 60)])
def test_window_moves_everything(top, left, side):
    after = geometry.window(record(), top, left, side)
    scale = 112 / side
    assert after["image"].shape == (112, 112, 3) and after["image"].dtype == np.uint8
    np.testing.assert_allclose(
        after["landmarks"] + 0.5, (record()["landmarks"] + 0.5 - (left, top)) * scale, atol=1e-4
    )
    seen = [k for k, (x, y) in enumerate(after["landmarks"]) if 2 < x < 109 and 2 < y < 109]
    assert len(seen) >= 2
    for k in seen:
        assert brightness_at(after["image"], after["landmarks"][k : k + 1])[0] > (100 + 30 * k) * 0.7
    assert (after["boxes"] >= 0).all() and (after["boxes"] <= 111).all()
    np.testing.assert_allclose(after["depth"], after["image"][..., 0], atol=1)


def test_the_whole_window_changes_nothing():
    before, after = record(), geometry.window(record(), 0, 0, 112)
    for name in before:
        np.testing.assert_allclose(after[name], before[name], atol=1e-4)


def test_resize_square_moves_everything():
    portrait = {name: value for name, value in record().items()}
    portrait["image"] = portrait["image"][:, 16:96]
    portrait["depth"] = portrait["depth"][:, 16:96]
    portrait["landmarks"] = portrait["landmarks"] - np.float32([16, 0])
    after = geometry.resize_square(portrait, 224)
    assert after["image"].shape == (224, 224, 3) and after["depth"].shape == (224, 224)
    np.testing.assert_allclose(after["landmarks"], record()["landmarks"] * 2 + 0.5, atol=1e-4)
    assert brightness_at(after["image"], after["landmarks"]) == [100, 130, 160, 190, 220]
    assert geometry.resize_square(after, 224) is after
