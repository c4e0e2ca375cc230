import numpy as np
import pytest

from jaxface import data
from jaxface.errors import UserError


def pixels(source):
    """In the units of the canvas: white is 1."""
    return np.stack([source[i]["image"][..., 0] for i in range(len(source))]) / 127.5 - 1


@pytest.fixture(scope="module")
def canvases():
    return data.digit_canvas(copies=2, noise=0.0, seed=3)


def test_shapes_and_labels(canvases):
    train, test = canvases
    assert (len(train), len(test)) == (2 * 1297, 1000) and train.image_shape == (24, 24, 1)
    for source, copies in ((train, 2), (test, 2)):
        labels = source.labels.reshape(-1, copies)
        assert (labels == labels[:, :1]).all()
        assert np.bincount(source.labels, minlength=10).min() > 0.08 * len(source)
    split = data.load(data.DigitCanvas(copies=1), image_size=20, seed=3)
    assert split.protocol == "classification" and split.train.image_shape == (20, 20, 1)
    assert len(split.train) == 1297


def test_without_patches_a_canvas_is_a_digit_of_two_sizes(monkeypatch):
    """Its ink, and where it is: of other digits in the test than in the training."""
    from jaxface.data.synthetic import digit_canvas as module

    monkeypatch.setattr(module, "_PATCHES", 0)
    train, test = data.digit_canvas(copies=1, noise=0.0, side=24, seed=11)
    digits = data.digits()
    known = {
        digits[i]["image"].repeat(scale, 0).repeat(scale, 1).tobytes(): i
        for i in range(len(digits))
        for scale in (1, 2)
    }
    used, scales = [], []
    for source in (train, test):
        images = np.rint(255 * pixels(source)).astype(int)
        names = set()
        for image in images[:200]:
            rows, columns = (np.flatnonzero((image > 2).any(axis=axis)) for axis in (1, 0))
            size = 16 if max(np.ptp(rows), np.ptp(columns)) >= 8 else 8
            scales.append(size)
            # The ink says which: a window of the digit's size around it, wherever its margin is.
            windows = (
                image[y : y + size, x : x + size]
                for y in range(max(rows[-1] - size + 1, 0), rows[0] + 1)
                for x in range(max(columns[-1] - size + 1, 0), columns[0] + 1)
            )
            names |= {i for window in windows if (i := nearest(window, known, size)) is not None}
        used.append(names)
    assert len(used[0]) > 150 and not used[0] & used[1]
    assert 0.35 < np.mean(np.equal(scales, 16)) < 0.65


def nearest(window, known, size):
    """The number of the digit that a window shows; bytes are half as fine as the digit's own."""
    step = size // 8
    levels = np.clip(np.rint(window[::step, ::step] / 255 * 16), 0, 16)
    image = np.rint(levels / 16 * 255).astype(np.uint8)[..., None]
    return known.get(image.repeat(step, 0).repeat(step, 1).tobytes())


def test_clutter_and_noise(canvases):
    x = pixels(canvases[1])
    assert x.min() >= -1e-6 and x.max() == 1.0
    ink = (x > 0.004).mean()
    plain = np.mean([(data.digits()[i]["image"] > 0).mean() for i in range(300)]) * (64 + 256) / 2 / 576
    # Four patches of nine pixels, seldom over each other or the digit.
    assert 0.03 < ink - plain < 4 * 9 / 576
    noisy = pixels(data.digit_canvas(copies=1, noise=0.08, seed=3)[1])
    background = noisy[noisy < 0]
    assert np.sqrt(np.mean(background**2)) == pytest.approx(0.08, rel=0.03)


def test_a_seed_is_a_world(canvases):
    again = data.digit_canvas(copies=2, noise=0.0, seed=3)[0]
    other = data.digit_canvas(copies=2, noise=0.0, seed=4)[0]
    np.testing.assert_array_equal(pixels(again), pixels(canvases[0]))
    assert (pixels(other) != pixels(canvases[0])).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"copies": 0}, "copies: needs an integer from 1, got 0"),
        ({"side": 15}, "side: needs an integer from 16, got 15"),
        ({"noise": -0.1}, "noise: needs a finite number from 0, got -0.1"),
        ({"seed": -1}, "seed: needs an integer from 0, got -1"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        data.digit_canvas(**{"seed": 0, **fields})
