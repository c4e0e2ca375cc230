import numpy as np
import pytest

from jaxface import data, metrics
from jaxface.errors import UserError


def pixels(source):
    return np.stack([source[i]["image"] for i in range(len(source))])


def test_people_are_who_they_are_however_many_there_are():
    few, many = data.procedural_vectors(3, 4, seed=1), data.procedural_vectors(9, 4, seed=1)
    np.testing.assert_array_equal(pixels(few), pixels(many)[:12])
    later = data.procedural_vectors(2, 4, seed=1, first_identity=7)
    np.testing.assert_array_equal(pixels(later), pixels(many)[28:])
    assert (pixels(few) != pixels(data.procedural_vectors(3, 4, seed=2))).any()
    assert few.image_shape == (1, 96, 1) and pixels(few).dtype == np.uint8
    np.testing.assert_array_equal(few.labels, np.repeat(np.arange(3), 4))


def test_groups_confuse():
    source = data.procedural_vectors(60, 2, seed=0, groups=3)
    x = pixels(source).reshape(60, 2, 96).astype(float)
    x = metrics.normalize(x - x.mean((0, 1)))
    scores = np.asarray(x[:, 0] @ x[:, 1].T)
    same, kin = np.eye(60, dtype=bool), np.arange(60)[:, None] % 3 == np.arange(60) % 3
    assert scores[same].mean() > scores[kin & ~same].mean() + 0.05 > scores[~kin].mean() + 0.2


def test_the_two_protocols():
    unseen = data.load(data.Procedural(identities=20, held_out_identities=10))
    assert unseen.protocol == "verification" and len(unseen.held_out) == 80 and len(unseen.train) == 240
    train = {image.tobytes() for image in pixels(unseen.train)}
    assert not train & {image.tobytes() for image in pixels(unseen.held_out)}
    same = data.load(
        data.Procedural(identities=5, per_identity=3, held_out_identities=0, held_out_per_identity=2)
    )
    assert same.protocol == "classification"
    np.testing.assert_array_equal(np.bincount(same.train.labels), [3] * 5)
    np.testing.assert_array_equal(np.bincount(same.held_out.labels), [2] * 5)
    train = {image.tobytes() for image in pixels(same.train)}
    assert not train & {image.tobytes() for image in pixels(same.held_out)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"identities": 1}, "identities: needs an integer from 2, got 1"),
        ({"per_identity": 0}, "per_identity: needs an integer from 1, got 0"),
        ({"groups": 0}, "groups: needs an integer from 1, got 0"),
        ({"held_out_identities": 1}, "held_out_identities: needs an integer from 2, got 1"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        data.load(data.Procedural(**fields))
