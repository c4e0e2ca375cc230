import numpy as np
import pytest

from jaxface import data
from jaxface.errors import UserError


def write(path, **changes):
    people, gallery = (
        data.crowded_embeddings(12, 3, seed=0, first_identity=first, size=8) for first in (1 << 20, 0)
    )
    arrays = dict(
        embeddings=people.embeddings, labels=people.labels + 7, groups=people.groups, gallery=gallery.embeddings,
        gallery_labels=gallery.labels, virtual=data.crowded_embeddings(50, 1, seed=0, first_identity=99, size=8)[0],
    )  # fmt: skip
    np.savez(path, **{name: x for name, x in {**arrays, **changes}.items() if x is not None})
    return str(path)


def test_a_file_is_read_with_labels_from_zero(tmp_path):
    arrays = data.read_embeddings(write(tmp_path / "a.npz"))
    people = data.crowded_embeddings(12, 3, seed=0, first_identity=1 << 20, size=8)
    np.testing.assert_array_equal(arrays["embeddings"], people.embeddings)
    np.testing.assert_array_equal(arrays["labels"], people.labels)  # the file counts from 7
    assert arrays["virtual"].shape == (50, 8) and arrays["groups"].max() == 5
    assert "virtual" not in data.read_embeddings(write(tmp_path / "b.npz", virtual=None))


def test_vectors_are_records():
    vectors = np.arange(12.0).reshape(4, 3)
    source = data.VectorSource(vectors, [0, 0, 2, 1], groups=[1, 1, 0, 2])
    assert isinstance(source, data.Source) and len(source) == 4 and source.image_shape == (1, 3, 1)
    assert source[2]["image"].dtype == np.float32 and source[2]["label"] == 2
    np.testing.assert_array_equal(source[2]["image"][0, :, 0], vectors[2])
    assert source.class_names == ["0", "1", "2"] == source.group_names
    assert not hasattr(data.VectorSource(vectors, [0, 0, 2, 1]), "groups")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(labels=None), "embeddings: needs an array 'labels'"),
        (dict(gallery=None), "embeddings: needs an array 'gallery'"),
        (dict(labels=np.zeros(3, int)), "embeddings: needs one integer of labels per row"),
        (dict(labels=np.full(36, 0.5)), "embeddings: needs one integer of labels per row"),
        (dict(gallery=2 * np.eye(36, 8, dtype=np.float32)), "embeddings: gallery in"),
        (dict(virtual=np.ones((4, 9), np.float32)), "embeddings: need rows of one size"),
        (dict(groups=np.zeros(3, int)), "embeddings: needs one integer of groups per label"),
    ],
)
def test_files_that_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        data.read_embeddings(write(tmp_path / "a.npz", **changes))
    assert "\n" not in str(caught.value)
