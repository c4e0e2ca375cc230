import numpy as np
import pytest

from jaxface import data
from jaxface.errors import UserError


def pixels(source):
    """In the units of the canvas: white is 1."""
    return np.stack([source[i]["image"][..., 0] for i in range(len(source))]) / 127.5 - 1


def fields(source, name):
    return np.stack([source[i][name] for i in range(len(source))])


@pytest.fixture(scope="module")
def scenes():
    return data.cluttered_digits(scenes=1300, test_scenes=497, scales=(1, 3), noise=(0.2, 0.9), seed=3)


def test_a_box_holds_a_digit_of_its_scale_and_the_parts_have_different_ones(scenes):
    digits = data.digits()
    known = {digits[i]["image"].tobytes(): i for i in range(len(digits))}
    used = []
    for source in scenes:
        numbers = []
        for image, label, scale, (y0, x0, y1, x1) in zip(
            pixels(source),
            source.labels,
            fields(source, "scale"),
            fields(source, "box"),
            strict=True,
        ):
            assert y1 - y0 == x1 - x0 == 8 * scale and y0 % 4 == x0 % 4 == 0
            window = image[y0:y1, x0:x1][
                ::scale, ::scale
            ]  # bytes of [-1, 1] are half as fine as the digit's own
            plain = np.rint(np.rint(window * 16) / 16 * 255).astype(np.uint8)[..., None]
            number = known[plain.tobytes()]
            assert digits.labels[number] == label
            assert (np.abs(image[y0:y1, x0:x1] - window.repeat(scale, 0).repeat(scale, 1)) < 1e-6).all()
            numbers.append(number)
        used.append(set(numbers))
    assert len(used[0]) >= 1290 and not used[0] & used[1]  # a few digits are twice in the set


def test_scales_come_in_equal_shares_and_small_digits_lie_everywhere(scenes):
    train, _ = scenes
    scale, box = fields(train, "scale"), fields(train, "box")
    assert [int((scale == s).sum()) for s in (1, 3)] == [650, 650]
    assert set(map(tuple, box[scale == 1, :2])) == {(4 * y, 4 * x) for y in range(5) for x in range(5)}
    assert (box[scale == 3] == [0, 0, 24, 24]).all()


def test_noise_is_uniform_up_to_the_amplitude_of_the_scene(scenes):
    train, _ = scenes
    small = fields(train, "scale") == 1
    amplitude, box, canvas = fields(train, "noise")[small], fields(train, "box")[small], pixels(train)[small]
    assert amplitude.min() > 0.19 and amplitude.max() < 0.91 and np.std(amplitude) > 0.15
    for image, (y0, x0, y1, x1) in zip(canvas, box, strict=True):
        image[y0:y1, x0:x1] = np.nan
    assert (np.nanmin(canvas, (1, 2)) >= -1e-6).all()
    np.testing.assert_allclose(np.nanmax(canvas, (1, 2)) / amplitude, 1.0, atol=0.06)
    np.testing.assert_allclose(np.nanmean(canvas, (1, 2)) / amplitude, 0.5, atol=0.06)


def test_stronger_noise_leaves_the_test_scenes_otherwise_as_they_are():
    spec = data.ClutteredDigits(scenes=4, test_scenes=200)
    weak, strong = (
        data.load(
            data.ClutteredDigits(scenes=4, test_scenes=200, test_noise=amplitude), image_size=24, seed=1
        )
        for amplitude in (None, (0.8, 0.8))
    )
    assert weak.protocol == "classification" and spec.title == weak.name
    np.testing.assert_array_equal(pixels(weak.train), pixels(strong.train))
    for name in ("label", "scale", "box"):
        np.testing.assert_array_equal(fields(weak.held_out, name), fields(strong.held_out, name))
    first, second = pixels(weak.held_out), pixels(strong.held_out)
    inside = np.zeros(first.shape, bool)
    for mask, (y0, x0, y1, x1) in zip(inside, fields(weak.held_out, "box"), strict=True):
        mask[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(first[inside], second[inside])
    np.testing.assert_allclose(second[~inside], 1.6 * first[~inside], atol=0.011)
    other = data.load(spec, image_size=24, seed=2)
    assert (pixels(other.held_out) != first).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scenes": 0}, "scenes: needs an integer from 1, got 0"),
        ({"scales": ()}, "scales: needs at least one, got none"),
        ({"scales": (1, 4)}, "scales: needs at most 3 on 24 pixels, got 4"),
        ({"scales": (0,)}, "scales: needs an integer from 1, got 0"),
        ({"noise": (0.9, 0.2)}, "noise: needs low <= high, got 0.9, 0.2"),
        ({"test_noise": (0.5, 1.5)}, "test_noise: needs a number from 0 to 1, got 1.5"),
        ({"seed": -1}, "seed: needs an integer from 0, got -1"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        data.cluttered_digits(**{"seed": 0, **fields})
