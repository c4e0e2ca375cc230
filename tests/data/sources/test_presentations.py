"""Presentations with depth and infrared: rendered, and from small files in the layouts of benchmarks."""

import numpy as np
import pytest
from PIL import Image

from jaxface import data
from jaxface.data.render.presentation import SPOOFS
from jaxface.data.transforms.augment import Augment, Augmentation
from jaxface.data.transforms.geometry import MAPS
from jaxface.errors import UserError

SIZE = 16


@pytest.fixture(scope="module")
def split():
    spec = data.Presentations(identities=8, per_identity=4, development_identities=8, held_out_identities=8)
    return data.load(spec, image_size=32, seed=2)


def test_rendered_presentations(split):
    assert split.protocol == "spoofing" and split.train.class_names == SPOOFS and SPOOFS[0] == "live"
    seen = set()
    for source in (split.train, split.development, split.held_out):
        assert isinstance(source, data.Source) and len(source) == 32
        records = [source[i] for i in range(32)]
        for record, label in zip(records, source.labels, strict=True):
            assert record["image"].shape == (32, 32, 3) and record["label"] == record["spoof"] == label
            for name in MAPS:
                assert record[name].dtype == np.uint8 and record[name].shape[:2] == (32, 32)
        pictures = {record["image"].tobytes() for record in records}
        assert not pictures & seen  # nobody is in two parts
        seen |= pictures
    labels = np.concatenate([s.labels for s in (split.train, split.development, split.held_out)])
    assert set(labels) == set(range(5)) and 0.25 < (labels == 0).mean() < 0.55


def test_what_the_sensors_see(split):
    """A sheet or a screen has no depth of a face, and no face in the infrared; a mask has both."""
    records = [s[i] for s in (split.train, split.development, split.held_out) for i in range(32)]

    def textures(spoof):
        inner = [r["infrared"][8:24, 8:24].astype(float) for r in records if r["spoof"] == spoof]
        return np.array([part.std() for part in inner])

    live, printed, screen, mask = (textures(SPOOFS.index(n)) for n in ("live", "print", "replay", "mask"))
    assert live.min() > 5 and mask.min() > 3 and printed.max() < 2 and screen.max() < 2
    screens = [r["depth"] for r in records if r["spoof"] == SPOOFS.index("replay")]
    for depth in screens:  # one plane, but for the sensor's noise
        assert depth[depth > 0].astype(float).std() < 25


def test_an_attack_left_out():
    spec = data.Presentations(
        identities=8, per_identity=4, development_identities=8, held_out_identities=8, unseen="mask"
    )
    split = data.load(spec, image_size=32, seed=2)
    mask = SPOOFS.index("mask")
    assert mask not in split.train.labels and mask not in split.development.labels
    assert set(split.held_out.labels) == {0, mask} and "without mask" in split.name
    with pytest.raises(
        UserError, match="unseen: needs an attack among print, replay, mask, cut-out, got 'live'"
    ):
        data.load(data.Presentations(unseen="live"), image_size=32)


def test_geometry_is_one_for_all_sensors_and_color_changes_the_photograph_alone(split):
    ramp = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    record = {
        "image": np.repeat(ramp[..., None], 3, -1),
        "depth": ramp,
        "infrared": ramp,
        "label": np.int32(0),
    }
    moves = Augmentation(Augment(flip=0.5, crop=0.5, shift=2, cutout=0.7))
    changed = 0
    for seed in range(20):
        after = moves.random_map(record, np.random.default_rng(seed))
        for name in ("depth", "infrared"):
            np.testing.assert_array_equal(after[name], after["image"][..., 0])
        changed += bool((after["depth"] != ramp).any())
    assert changed > 10
    colors = Augmentation(Augment(flip=0.0, color=1.0, occlusion=1.0, blur=1.0))
    after = colors.random_map(record, np.random.default_rng(0))
    assert (after["image"] != record["image"]).any()
    for name in ("depth", "infrared"):
        np.testing.assert_array_equal(after[name], ramp)


def test_a_cutout_has_the_area_asked_for():
    record = {"image": np.full((40, 40, 3), 9, np.uint8), "infrared": np.full((40, 40), 9, np.uint8)}
    holes = Augmentation(Augment(flip=0.0, cutout=1.0, cutout_area=(0.1, 0.1)))
    places = set()
    for seed in range(10):
        after = holes.random_map(record, np.random.default_rng(seed))
        assert abs((after["infrared"] == 0).mean() - 0.1) < 0.02
        np.testing.assert_array_equal(after["infrared"] == 0, (after["image"] == 0).all(-1))
        places.add(after["infrared"].tobytes())
    assert len(places) > 5 and (record["image"] == 9).all()
    # Switched off it draws nothing: other changes stay as they were.
    assert not Augment(flip=0.0, cutout_area=(0.5, 0.6)).active


def picture(path, value, *, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size), value, np.uint8)).save(path)


def surf(root, name, rows):
    """Lists of CASIA-SURF: (folder, label) for each line, whose three images have the values 10, 20 and 30."""
    lines = []
    for k, (folder, label) in enumerate(rows):
        paths = [f"{folder}/{part}/{k}.png" for part in ("color", "depth", "ir")]
        for value, path in zip((10, 20, 30), paths, strict=True):
            picture(root / path, value + k)
        lines.append(f"{' '.join(paths)} {label}")
    (root / name).write_text("\n".join(lines) + "\n")


def test_casia_surf(tmp_path):
    surf(tmp_path, "train_list.txt", [("Training/real/a", 1), ("Training/fake/b", 0), ("Training/real/a", 1)])
    surf(tmp_path, "val_private_list.txt", [("Val/0001", 0), ("Val/0001", 1)])
    surf(tmp_path, "test_private_list.txt", [("Test/0001", 1), ("Test/0001", 0)])
    split = data.load(data.CasiaSurf(str(tmp_path)), image_size=8)
    assert split.protocol == "spoofing" and split.train.class_names == ["live", "attack"]
    assert split.train.labels.tolist() == [0, 1, 0] and split.train.videos.tolist() == [0, 1, 0]
    assert split.development.labels.tolist() == [1, 0] and split.held_out.labels.tolist() == [0, 1]
    record = split.train[2]
    assert (record["image"] == 12).all() and record["image"].shape == (8, 8, 3)
    assert (record["depth"] == 22).all() and (record["infrared"] == 32).all()
    assert record["depth"].shape == record["infrared"].shape == (8, 8) and record["spoof"] == 0

    # One that cannot be read is replaced by another live face, and tells so.
    (tmp_path / "Training/real/a/depth/0.png").write_bytes(b"nothing")
    again = data.load(data.CasiaSurf(str(tmp_path)), image_size=8).train
    assert (again[0]["image"] == 12).all() and again.corrupt == 1 and again.shown(0) == 2
    picture(tmp_path / "Training/real/a/depth/2.png", 1, size=5)
    with pytest.raises(UserError, match="no image of live can be read"):
        data.load(data.CasiaSurf(str(tmp_path)), image_size=8).train[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.png b.png 1", "three paths and a label in line 1 of .*, it has 3 words"),
        ("a.png b.png c.png 2", "1 for live or 0 at the end of line 1 of .*, got '2'"),
        ("a.png ../b.png c.png 1", "names an image outside of its folder in line 1, '../b.png'"),
        ("", "its list has no presentation"),
    ],
)
def test_lists_of_another_form(tmp_path, line, words):
    for name in ("train_list.txt", "val_private_list.txt", "test_private_list.txt"):
        (tmp_path / name).write_text(line)
    with pytest.raises(UserError, match=words):
        data.load(data.CasiaSurf(str(tmp_path)), image_size=8)
    with pytest.raises(UserError, match="root"):
        data.load(data.CasiaSurf(str(tmp_path / "nowhere")), image_size=8)


def cefa_folder(root):
    for folder, frames in (("train/1_001_1_1_1", 2), ("train/1_002_1_1_4", 2), ("dev/1_201_1_1_1", 2),
                           ("dev/1_201_1_1_2", 1), ("test/2_301_1_1_1", 1), ("test/2_301_1_1_3", 2),
                           ("test/unnamed", 1)):  # fmt: skip
        for part in ("profile", "depth", "ir"):
            for frame in range(frames):
                picture(root / folder / part / f"{frame:04}.png", 7)
    (root / "4@1_train.txt").write_text(
        "train/1_001_1_1_1/profile/0000.png 1\ntrain/1_002_1_1_4/profile/0001.png 0\n"
    )
    (root / "4@1_dev_ref.txt").write_text("dev/1_201_1_1_1 1\ndev/1_201_1_1_2 0\n")
    (root / "4@1_test_res.txt").write_text("test/2_301_1_1_1 1\ntest/2_301_1_1_3 0\ntest/unnamed 0\n")


def test_cefa(tmp_path):
    cefa_folder(tmp_path)
    split = data.load(data.Cefa(str(tmp_path)), image_size=8)
    assert split.train.class_names == ["live", "cloth", "photo", "screen", "attack"]
    assert split.train.labels.tolist() == [0, 3]
    assert split.development.labels.tolist() == [0, 0, 1] and split.development.videos.tolist() == [0, 0, 1]
    assert split.held_out.labels.tolist() == [0, 2, 2, 4]
    assert split.held_out[1]["depth"].shape == (8, 8)
    unseen = data.load(data.Cefa(str(tmp_path), unseen="photo"), image_size=8)
    assert unseen.held_out.labels.tolist() == [0, 2, 2]
    (tmp_path / "4@1_dev_ref.txt").write_text("dev/1_201_1_1_1 0\n")
    with pytest.raises(UserError, match="has attack in line 1, its folder's name says live"):
        data.load(data.Cefa(str(tmp_path)), image_size=8)
    (tmp_path / "4@1_dev_ref.txt").write_text("dev/1_999_1_1_1 1\n")
    with pytest.raises(UserError, match="needs a video's images for line 1 of"):
        data.load(data.Cefa(str(tmp_path)), image_size=8)


def test_a_table(tmp_path):
    picture(tmp_path / "x.png", 7)
    rows = [("train", "bonafide", "a"), ("train", "fakehead", "b"), ("train", "print", "c"), ("dev", "live", "d"),
            ("dev", "print", "e"), ("eval", "live", "f"), ("eval", "fakehead", "g"), ("eval", "print", "h")]  # fmt: skip
    header = "video,color,depth,infrared,group,instrument"
    lines = [f"{video},x.png,x.png,x.png,{group},{name}" for group, name, video in rows]
    (tmp_path / "presentations.csv").write_text("\n".join([header, *lines]))
    split = data.load(data.PresentationTable(str(tmp_path)), image_size=8)
    assert split.train.class_names == ["live", "fakehead", "print"]
    assert split.train.labels.tolist() == [0, 1, 2] and split.held_out.labels.tolist() == [0, 1, 2]
    unseen = data.load(data.PresentationTable(str(tmp_path), unseen="fakehead"), image_size=8)
    assert unseen.train.labels.tolist() == [0, 2] and unseen.held_out.labels.tolist() == [0, 1]
    for text, words in (
        ("color,depth\n", "needs a column infrared"),
        (f"{header}\na,x.png,x.png,x.png,test,live", "a group train, dev or eval in line 2"),
        (f"{header}\na,x.png,x.png,x.png,train,", "a value of instrument in line 2"),
    ):
        (tmp_path / "presentations.csv").write_text(text)
        with pytest.raises(UserError, match=words):
            data.load(data.PresentationTable(str(tmp_path)), image_size=8)
