import dataclasses

import numpy as np
import pytest

from jaxface import data
from jaxface.data.specs.base import FIRST_HELD_OUT, FIRST_SIMULATED
from jaxface.errors import UserError

CROWD = data.Crowd(identities=8, per_identity=3, held_out_identities=5, held_out_per_identity=2, size=6)


def test_a_crowd_is_split_by_person():
    split = data.load(CROWD, seed=3)
    assert (split.name, split.protocol) == ("crowd", "verification")
    for source, count, each, first in ((split.train, 8, 3, 0), (split.held_out, 5, 2, FIRST_HELD_OUT)):
        people = data.crowded_embeddings(count, each, seed=3, first_identity=first, size=6)
        for name, expected in people._asdict().items():
            found = source.vectors if name == "embeddings" else getattr(source, name)
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(UserError, match=r"^held_out_identities: needs an integer from 2, got 1"):
        data.load(dataclasses.replace(CROWD, held_out_identities=1))


def test_candidates_of_a_crowd_may_be_of_other_groups():
    options = dict(seed=3, first_identity=FIRST_SIMULATED, size=6)
    same = CROWD.simulated(7, image_size=8, seed=3)
    np.testing.assert_array_equal(same.vectors, data.crowded_embeddings(7, 1, **options).embeddings)
    other = dataclasses.replace(CROWD, candidates_crowding=0.0).simulated(7, image_size=8, seed=3)
    expected = data.crowded_embeddings(7, 1, crowding=0.0, **options).embeddings
    np.testing.assert_array_equal(other.vectors, expected)


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (data.RenderedFaces(3, 2, 2, 2), 5),
        (data.TonedFaces(identities=(2, 2), held_out_identities=2, held_out_per_identity=2), 6),
        (data.Procedural(identities=3, held_out_identities=2), 5),
    ],
)
def test_simulated_people_are_nobody_else(spec, count):
    split, simulated = data.load(spec, image_size=8), spec.simulated(5, image_size=8, seed=0)
    assert len(simulated) == len(simulated.class_names) == count
    assert simulated.image_shape == split.train.image_shape
    assert not set(simulated.class_names) & {*split.train.class_names, *split.held_out.class_names}


def test_nobody_can_be_simulated_from_photographs_or_of_depth():
    for spec in (data.Digits(), data.Folder(root="x"), data.RenderedFaces(modality="depth")):
        assert spec.simulated(5, image_size=8, seed=0) is None


def test_the_embeddings_of_a_file(tmp_path):
    rows = data.crowded_embeddings(9, 2, seed=0, size=4)
    arrays = dict(
        embeddings=rows.embeddings[:8], labels=rows.labels[:8], gallery=rows.embeddings[8:], gallery_labels=rows.labels[8:]
    )  # fmt: skip
    np.savez(tmp_path / "a.npz", **arrays)
    spec = data.EmbeddingFile(str(tmp_path / "a.npz"))
    split = data.load(spec)
    assert (split.name, split.protocol) == ("embeddings", "verification")
    np.testing.assert_array_equal(split.train.vectors, arrays["gallery"])
    np.testing.assert_array_equal(split.held_out.vectors, arrays["embeddings"])
    assert split.train.labels.tolist() == np.repeat(range(5), 2).tolist()
    assert spec.simulated(3, image_size=8, seed=0) is None
    np.savez(tmp_path / "a.npz", virtual=rows.embeddings[:6], **arrays)
    assert len(spec.simulated(3, image_size=8, seed=0)) == 6  # all that there are
    assert len(data.load_all(spec)) == 10
