import dataclasses

import cv2
import numpy as np
import pytest

from jaxface.data.sources.images import decode_image, encode_image
from jaxface.data.transforms import geometry
from jaxface.data.transforms.augment import Augment, Augmentation, jpeg_roundtrip
from jaxface.errors import UserError

OFF = Augment(flip=0.0)
EVERYTHING = Augment(flip=1, crop=1, color=1, gray=1, blur=1, jpeg=1, occlusion=1, low_resolution=1)


def record(channels=3, size=48):
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.integers(0, 256, (size, size, 3), np.uint8), (0, 0), 2)[..., :channels]
    return {
        "image": np.ascontiguousarray(image),
        "label": np.int32(7),
        "landmarks": np.array([[15, 20], [33, 20], [24, 28], [17, 36], [31, 36]], np.float32),
        "boxes": np.array([[4, 6, 44, 42]], np.float32),
        "depth": rng.random((size, size)).astype(np.float32),
    }


def change(config, seed=0, **options):
    return Augmentation(config).random_map(record(**options), np.random.default_rng(seed))


def test_only_the_flip_is_on_by_default():
    names = [f.name for f in dataclasses.fields(Augment)]
    assert [n for n in names if isinstance(getattr(Augment(), n), float) and n in vars(EVERYTHING)
            and getattr(EVERYTHING, n) == 1 and getattr(Augment(), n) > 0] == ["flip"]  # fmt: skip
    assert Augment().flip == 0.5 and Augment().active and not OFF.active
    for name, value in change(OFF).items():
        np.testing.assert_array_equal(value, record()[name])
    flips = [bool((change(Augment(), seed)["image"] != record()["image"]).any()) for seed in range(100)]
    assert 30 < sum(flips) < 70


@pytest.mark.parametrize("name", ["flip", "crop", "color", "blur", "jpeg", "occlusion", "low_resolution"])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_change_fires_alone_and_keeps_the_contract(name, channels):
    config = dataclasses.replace(OFF, **{name: 1.0}, blur_sigma=(2.0, 3.0))
    for seed in range(5):
        before, after = record(channels), change(config, seed, channels=channels)
        assert after.keys() == before.keys()
        for field in before:
            assert after[field].shape == before[field].shape and after[field].dtype == before[field].dtype
        assert (after["image"] != before["image"]).any()
        moved = any((after[f] != before[f]).any() for f in ("landmarks", "boxes", "depth"))
        assert moved == (name in ("flip", "crop"))
        np.testing.assert_array_equal(
            before["image"], record(channels)["image"]
        )  # the input is not written to


def test_a_shift_is_by_whole_pixels_into_black_over_all_positions():
    """Crops of the padded image, as in CIFAR recipes: nothing is resampled, so a noise image keeps its standard deviation."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    padded = np.pad(image, [(4, 4), (4, 4), (0, 0)])
    crops = {
        padded[top : top + 32, left : left + 32].tobytes(): (4 - left, 4 - top)
        for top in range(9)
        for left in range(9)
    }
    augmentation, seen = Augmentation(Augment(flip=0.0, shift=4)), set()
    for seed in range(1000):
        record = {
            "image": image,
            "landmarks": np.full((5, 2), 16.0, np.float32),
            "depth": image[..., 0] / 255,
        }
        moved = augmentation.random_map(record, np.random.default_rng(seed))
        x, y = crops[moved["image"].tobytes()]
        np.testing.assert_array_equal(moved["landmarks"], np.full((5, 2), [16.0 + x, 16.0 + y], np.float32))
        np.testing.assert_array_equal(moved["depth"], moved["image"][..., 0] / 255)
        inner = moved["image"][4:-4, 4:-4].astype(float)
        assert abs(inner.std() / image.astype(float).std() - 1) < 0.03
        seen.add((x, y))
    assert len(seen) == 81
    assert Augment(flip=0.0, shift=1).active


@pytest.mark.parametrize("shift", [-1, 0.5])
def test_a_shift_that_is_no_number_of_pixels_is_refused(shift):
    with pytest.raises(UserError, match="shift: needs an integer from 0"):
        Augment(shift=shift)


def test_same_numbers_same_image_other_numbers_other_image():
    first, again, other = change(EVERYTHING, 0), change(EVERYTHING, 0), change(EVERYTHING, 1)
    np.testing.assert_array_equal(first["image"], again["image"])
    assert (first["image"] != other["image"]).mean() > 0.5


def test_switching_one_change_on_leaves_the_others_alone():
    flips = [change(Augment(flip=0.5), seed)["landmarks"] for seed in range(20)]
    both = [change(Augment(flip=0.5, color=1.0, blur=1.0), seed)["landmarks"] for seed in range(20)]
    np.testing.assert_array_equal(flips, both)


def test_a_pool_of_generators_gives_the_same_stream():
    import grain

    dataset = grain.MapDataset.source([record()] * 6).random_map(Augmentation(EVERYTHING), seed=5)
    forward = [dataset[i]["image"] for i in range(12)]
    backward = [dataset[i]["image"] for i in reversed(range(12))][::-1]
    np.testing.assert_array_equal(forward, backward)
    assert (forward[0] != forward[6]).any()  # the next epoch draws again


def test_a_turn_moves_points_with_the_pixels():
    """Blobs where the landmarks are stay there, and the box holds its turned corners."""
    before = record()
    image = np.zeros((48, 48, 3), np.uint8)
    points = np.array([[15, 20], [33, 20], [24, 28], [17, 36], [31, 36]], np.float32)
    for x, y in points.astype(int):
        image[y - 1 : y + 2, x - 1 : x + 2] = 255
    turned = geometry.rotate({**before, "image": image, "landmarks": points}, 20)
    for x, y in np.rint(turned["landmarks"]).astype(int):
        assert turned["image"][y, x].min() > 200
    a = np.deg2rad(20)  # clockwise in an image, whose y points down
    offset = points - 23.5
    expected = offset @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + 23.5
    np.testing.assert_allclose(turned["landmarks"], expected, atol=1e-3)
    np.testing.assert_allclose(geometry.rotate(before, 90)["boxes"], [[6, 3, 42, 43]], atol=1e-3)
    np.testing.assert_array_equal(
        change(dataclasses.replace(OFF, rotate=1.0, rotate_degrees=0.0))["image"], before["image"]
    )
    images = [change(dataclasses.replace(OFF, rotate=0.5), seed)["image"] for seed in range(40)]
    assert 10 < sum(bool((image != before["image"]).any()) for image in images) < 30


def test_hues_turn_and_erasing_is_random():
    plain = dataclasses.replace(OFF, color=1.0, color_strength=0.0)
    red = np.zeros((8, 8, 3), np.uint8) + np.array([200, 40, 40], np.uint8)
    turned = [
        Augmentation(dataclasses.replace(plain, hue=0.5)).random_map(
            {"image": red}, np.random.default_rng(seed)
        )["image"]
        for seed in range(20)
    ]
    assert all(abs(int(image.max()) - 200) <= 1 and abs(int(image.min()) - 40) <= 1 for image in turned)
    assert len({image.tobytes() for image in turned}) > 10
    same = Augmentation(plain).random_map({"image": red}, np.random.default_rng(0))["image"]
    np.testing.assert_array_equal(same, red)
    erased = change(dataclasses.replace(OFF, occlusion=1.0, occlusion_noise=True))["image"]
    changed = (erased != record()["image"]).any(axis=-1)
    assert len(np.unique(erased[changed], axis=0)) > 0.9 * changed.sum()


def test_gray_is_the_luma_in_every_channel():
    gray = dataclasses.replace(OFF, gray=1.0)
    before, after = record(), change(gray)
    luma = before["image"] @ np.array([0.299, 0.587, 0.114])
    for channel in range(3):
        assert np.abs(after["image"][..., channel] - luma).max() <= 0.51
    for name in before.keys() - {"image"}:
        np.testing.assert_array_equal(after[name], before[name])
    assert after["image"].dtype == np.uint8 and (after["image"] != before["image"]).any()
    np.testing.assert_array_equal(before["image"], record()["image"])  # the input is not written to
    np.testing.assert_array_equal(change(gray, channels=1)["image"], record(1)["image"])
    assert gray.active
    colorful = [
        np.ptp(change(dataclasses.replace(OFF, gray=0.4), seed)["image"], axis=-1).any()
        for seed in range(100)
    ]
    assert 45 < sum(colorful) < 75


def test_strengths():
    smooth = record()["image"]
    occluded = change(dataclasses.replace(OFF, occlusion=1.0, occlusion_area=(0.25, 0.25)))["image"]
    assert 0.15 < (occluded != smooth).any(-1).mean() <= 0.3
    rough = change(dataclasses.replace(OFF, jpeg=1.0, jpeg_quality=(1, 1)))["image"]
    fine = change(dataclasses.replace(OFF, jpeg=1.0, jpeg_quality=(100, 100)))["image"]
    error = lambda image: np.abs(image.astype(int) - smooth).mean()  # noqa: E731
    assert error(fine) < 3 < error(rough)
    np.testing.assert_array_equal(rough, jpeg_roundtrip(smooth, 1))
    # Pillow's codec agrees, so red and blue are not exchanged.
    pillow = decode_image(encode_image(smooth, encoding="jpeg", quality=60)).astype(int)
    assert np.abs(jpeg_roundtrip(smooth, 60) - pillow).mean() < 1.5
    sharp = lambda image: np.abs(np.diff(image.astype(int), axis=1)).mean()  # noqa: E731
    assert sharp(change(dataclasses.replace(OFF, blur=1.0, blur_sigma=(8.0, 8.0)))["image"]) < 0.8 * sharp(
        smooth
    )
    assert sharp(change(dataclasses.replace(OFF, low_resolution=1.0))["image"]) < 0.8 * sharp(smooth)
    red = np.full((8, 8, 3), (200, 40, 40), np.uint8)
    tinted = [
        Augmentation(Augment(flip=0, color=1, color_strength=0.5)).random_map(
            {"image": red}, np.random.default_rng(k)
        )
        for k in range(30)
    ]
    grays = np.array([t["image"].mean() for t in tinted])
    spreads = np.array([float(np.ptp(t["image"].mean((0, 1)))) for t in tinted])
    assert np.ptp(grays) > 40 and spreads.min() < 120 < 200 < spreads.max() + 60  # brightness; saturation
    none = change(dataclasses.replace(OFF, color=1.0, color_strength=0.0))["image"]
    assert np.abs(none.astype(int) - smooth).max() <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"blur": -0.1},
        {"gray": 2.0},
        {"crop_scale": (1.0, 0.5)},
        {"jpeg_quality": (0, 50)},
        {"occlusion_area": (0.1, 2.0)},
        {"crop_shift": -1.0},
        {"color_strength": 1.0},
        {"flip": float("nan")},
    ],
)
def test_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))) as caught:
        Augment(**wrong)
    assert "\n" not in str(caught.value)
