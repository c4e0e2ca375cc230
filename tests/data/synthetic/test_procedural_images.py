import numpy as np
import pytest

from jaxface import data, metrics
from jaxface.errors import UserError


def pixels(source):
    return np.stack([source[i]["image"] for i in range(len(source))])


def test_people_are_who_they_are_however_many_there_are():
    few, many = data.procedural_images(3, 4, seed=1), data.procedural_images(9, 4, seed=1)
    np.testing.assert_array_equal(pixels(few), pixels(many)[:12])
    later = data.procedural_images(2, 4, seed=1, first_identity=7)
    np.testing.assert_array_equal(pixels(later), pixels(many)[28:])
    assert (pixels(few) != pixels(data.procedural_images(3, 4, seed=2))).any()
    assert few.image_shape == (16, 16, 1) and pixels(few).dtype == np.uint8
    assert data.procedural_images(2, 1, seed=0, side=24).image_shape == (24, 24, 1)


def test_images_of_a_person_are_alike_and_seldom_clip():
    x = pixels(data.procedural_images(60, 2, seed=0))
    assert ((x == 0) | (x == 255)).mean() < 0.01
    x = x.reshape(60, 2, 256).astype(float)
    x = metrics.normalize(x - x.mean((0, 1)))
    scores = np.asarray(x[:, 0] @ x[:, 1].T)
    same = np.eye(60, dtype=bool)
    assert scores[same].mean() > scores[~same].mean() + 0.3


def test_the_protocol():
    split = data.load(
        data.ProceduralImages(identities=20, held_out_identities=10, held_out_per_identity=3), image_size=16
    )
    assert split.protocol == "verification" and len(split.held_out) == 30 and len(split.train) == 240
    train = {image.tobytes() for image in pixels(split.train)}
    assert not train & {image.tobytes() for image in pixels(split.held_out)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"identities": 1}, "identities: needs an integer from 2, got 1"),
        ({"per_identity": 0}, "per_identity: needs an integer from 1, got 0"),
        ({"held_out_per_identity": 1}, "held_out_per_identity: needs an integer from 2, got 1"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        data.load(data.ProceduralImages(**fields), image_size=16)
