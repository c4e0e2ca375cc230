import dataclasses
import pickle

import numpy as np
import pytest

from jaxface import data
from jaxface.errors import UserError

TONED = data.TonedFaces(identities=(3, 2), per_identity=2, held_out_identities=2, held_out_per_identity=2)


def test_toned_faces():
    split = data.load(TONED, image_size=16, seed=1)
    train, held_out = split.train, split.held_out
    assert len(train) == 10 and len(held_out) == 8 and split.protocol == "verification"
    assert train.groups.tolist() == [0] * 6 + [1] * 4 and held_out.groups.tolist() == [0] * 4 + [1] * 4
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and len(set(train.class_names)) == 5
    assert not set(train.class_names) & set(held_out.class_names)
    records = [train[i] for i in range(10)]
    assert [int(record["group"]) for record in records] == train.groups.tolist()
    assert [int(record["label"]) for record in records] == train.labels.tolist()
    brightness = [
        np.mean([record["image"][4:12, 4:12].mean() for record in records if record["group"] == group])
        for group in (0, 1)
    ]
    assert brightness[0] > brightness[1] + 30
    # More people of one group change nobody else.
    more = data.load(dataclasses.replace(TONED, identities=(4, 2)), image_size=16, seed=1).train
    np.testing.assert_array_equal(more[8]["image"], train[6]["image"])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(train))[7]["image"], train[7]["image"])
    part = data.Subset(train, np.array([7, 0]))
    assert part.groups.tolist() == [1, 0] and part.group_names == train.group_names


def test_a_range_of_tones_keeps_everything_else():
    """All tones are the default, and the same images as ever."""
    one, other = (data.RenderedSource(2, 2, 16, 3, tone=tone) for tone in ((0.0, 1.0), (0.9, 1.0)))
    plain = data.RenderedSource(2, 2, 16, 3)
    np.testing.assert_array_equal(one[1]["image"], plain[1]["image"])
    np.testing.assert_array_equal(other[1]["landmarks"], plain[1]["landmarks"])
    assert (other.groups == 5).all()
    many = data.RenderedSource(12, 1, 16, 3)
    assert many.groups.tolist() == [int(many[i]["group"]) for i in range(12)]
    assert len(set(many.groups.tolist())) > 2 and len(many.group_names) == 6
    with pytest.raises(UserError, match="tone: needs 0 <= least"):
        data.RenderedSource(2, 2, 16, tone=(0.5, 0.4))


def test_folders_by_group(faces_folder, tmp_path):
    root = tmp_path / "groups"
    for name in ("one", "two"):
        (root / name).mkdir(parents=True)
        for person in sorted(faces_folder.iterdir()):
            if person.is_dir():
                (root / name / person.name).symlink_to(person)
    split = data.load(data.GroupFolders(str(root), held_out=0.34), image_size=16)
    assert split.train.group_names == split.held_out.group_names == ["one", "two"]
    for part in split[:2]:
        counts = [len(set(part.labels[part.groups == group])) for group in (0, 1)]
        assert counts[0] == counts[1] >= 2
    assert len(split.train) + len(split.held_out) == 60
    whole = data.load_all(data.GroupFolders(str(root)), image_size=16)
    assert len(whole) == 60 and whole.class_names[0].startswith("one/")
    with pytest.raises(UserError, match=r"root: needs .* two groups, got 1"):
        (tmp_path / "single" / "one").mkdir(parents=True)
        data.load(data.GroupFolders(str(tmp_path / "single")))
    with pytest.raises(UserError, match="root: needs a folder of groups"):
        data.load(data.GroupFolders(str(tmp_path / "nowhere")))


def test_shortcut_digits():
    train, test = data.shortcut_digits(reliability=0.9, noise=0.0, seed=4)
    assert (len(train), len(test)) == (900, 897) and train.image_shape == (16, 16, 1)
    for part in (train, test):
        assert 0.4 < part.groups.mean() < 0.6
    images = np.stack([train[i]["image"][..., 0] for i in range(900)]).astype(float)
    patches = images[(slice(None), *data.SHORTCUT)].reshape(900, 9)
    assert (patches[train.groups == 0] == 128).all()
    codes = {}
    for digit in range(10):
        rows, counts = np.unique(
            patches[(train.groups == 1) & (train.labels == digit)], axis=0, return_counts=True
        )
        codes[digit] = tuple(rows[counts.argmax()])
    assert len(set(codes.values())) == 10

    def told(part, source):
        shown = np.stack([source[i]["image"][..., 0] for i in range(len(source))]).astype(float)
        shown = shown[(slice(None), *data.SHORTCUT)].reshape(len(source), 9)
        known = np.array([codes[digit] for digit in source.labels])
        return (shown == known).all(1)[source.groups == 1].mean()

    assert 0.85 < told(train, train) < 0.97 and told(test, test) < 0.2
    # Digits are where they are said to be, and white is 2/3 of the range.
    outside = images.copy()
    outside[:, 4:12, 6:14] = 128
    outside[(slice(None), *data.SHORTCUT)] = 128
    assert (outside == 128).all() and images.max() == np.rint(127.5 + 127.5 / 1.5)
    noisy, _ = data.shortcut_digits(reliability=0.9, noise=0.15, seed=4)
    corner = np.stack([noisy[i]["image"][-1, 0, 0] for i in range(900)]).astype(float)
    assert abs((corner.std() / 127.5) * 1.5 - 0.15) < 0.01
    assert (noisy.labels == train.labels).all()
    assert (data.shortcut_digits(reliability=0.9, noise=0.0, seed=5)[0].labels != train.labels).any()
    assert int(noisy[3]["group"]) == noisy.groups[3]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (dataclasses.replace(TONED, identities=(3,)), "identities: needs as many groups as lightest"),
        (
            dataclasses.replace(TONED, lightest=(0.0, 0.0), darkest=(0.2, 0.2)),
            "lightest: needs groups that differ",
        ),
        (dataclasses.replace(TONED, darkest=(0.2, 1.2)), "tone: needs 0 <= least"),
        (
            dataclasses.replace(TONED, lightest=(0.0,), darkest=(0.2,), identities=(3,)),
            "groups: needs at least two",
        ),
        (dataclasses.replace(TONED, held_out_identities=1), "held_out_identities: needs an integer from 2"),
        (data.ShortcutDigits(reliability=1.5), "reliability: needs a number from 0 to 1"),
        (data.ShortcutDigits(noise=-1.0), "noise: needs"),
    ],
)
def test_refusals(spec, words):
    with pytest.raises(UserError, match=words):
        data.load(spec, image_size=16)
