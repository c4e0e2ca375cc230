import numpy as np
import pytest

from jaxface import data
from jaxface.data.synthetic import ellipses as module
from jaxface.errors import UserError

FACE = {"center": (0, 0), "left": (-4, -4), "right": (-4, 4), "below": (4, 0)}


def pixels(source):
    return np.stack([source[i]["image"] for i in range(len(source))])


def test_an_image_is_itself_however_many_there_are():
    few, many = data.ellipses(3, seed=1), data.ellipses(7, seed=1)
    np.testing.assert_array_equal(pixels(few), pixels(many)[:3])
    np.testing.assert_array_equal(pixels(data.ellipses(2, seed=1, first=5)), pixels(many)[5:])
    assert (pixels(few) != pixels(data.ellipses(3, seed=2))).any()
    assert few.image_shape == (40, 40, 1) and pixels(few).dtype == np.uint8


def test_half_of_the_ellipses_are_faces_and_a_cell_holds_each_center():
    source = data.ellipses(600, seed=0)
    cells = np.stack([source[i]["cells"] for i in range(600)])
    assert cells.shape == (600, 20, 20) and cells.dtype == np.uint8 and cells.max() == 1
    # Two centers may share a cell, seldom.
    assert 0 <= source.labels.sum() - cells.sum() <= 6
    assert source.labels.mean() == pytest.approx(1.0, abs=0.1)  # of two ellipses on average
    rows, columns = np.nonzero(cells.any(0))
    assert min(rows.min(), columns.min()) >= 4 and max(rows.max(), columns.max()) <= 15  # 9 to 31 pixels
    assert source.class_names == ["0 faces", "1 faces", "2 faces", "3 faces"]


def test_what_is_in_an_image():
    """Ellipses brighter than the ground, and the discs of a face where they are said to be, dark."""
    source = data.ellipses(400, seed=3, noise=0.0)
    values = pixels(source)[..., 0] / 127.5 * 2 - 1.5
    assert np.isclose(np.median(values[:, 0]), 0, atol=0.02)
    # One ellipse: the ground, the ellipse and its discs.
    alone = [i for i in range(400) if source.labels[i] == 1 and len(np.unique(values[i])) == 3]
    assert len(alone) > 20
    for i in alone:
        row, column = (2 * n + 1 for n in np.argwhere(source[i]["cells"])[0])
        # A pixel to either side, for the place of the center in its cell.
        around = {
            name: values[i][row + down - 1 : row + down + 2, column + right - 1 : column + right + 2]
            for name, (down, right) in FACE.items()
        }
        brightness = around.pop("center").max()
        assert 0.38 < brightness < 1.02
        for disc in around.values():
            assert disc.min() == pytest.approx(brightness - 1, abs=0.02)


def test_what_is_no_face_differs_in_its_discs_alone():
    kinds = module._OTHERS
    assert len(kinds) == 5 and [len(discs) for discs in kinds] == [2, 2, 2, 3, 3]
    assert all(set(discs) < set(module._FACE) for discs in kinds[:3]) and len(set(kinds[:3])) == 3
    assert set(kinds[3]) == {(0.4, -0.4), (0.4, 0.4), (-0.5, 0.0)}
    assert set(kinds[4]) == {(0.5, -0.4), (-0.4, 0.4), (0.5, 0.4)}


def test_the_protocol():
    split = data.load(data.Ellipses(images=20, held_out_images=10), seed=4)
    assert split.protocol == "cells" and len(split.train) == 20 and len(split.held_out) == 10
    train = {image.tobytes() for image in pixels(split.train)}
    assert not train & {image.tobytes() for image in pixels(split.held_out)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": 0}, "images: needs an integer from 1, got 0"),
        ({"held_out_images": 0}, "held_out_images: needs an integer from 1, got 0"),
        ({"noise": -0.1}, "noise: needs a finite number from 0, got -0.1"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=f"^{message}"):
        data.load(data.Ellipses(**fields))
