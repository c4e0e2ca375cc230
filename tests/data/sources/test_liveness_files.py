"""CelebA-Spoof, OULU-NPU and SiW in small files of their layouts."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxface import data
from jaxface.data.sources import liveness_files
from jaxface.data.sources.images import CorruptImage
from jaxface.errors import UserError


def picture(path, value=7, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)


def celeba_labels(spoof_type, illumination=0, environment=0, attribute=0):
    return [attribute] * 40 + [spoof_type, illumination, environment, int(spoof_type > 0)]


@pytest.fixture
def celeba(tmp_path):
    rows = {
        f"Data/train/{person}/{kind}/{k}.png": celeba_labels(*labels)
        for person in range(5)
        for k, (kind, labels) in enumerate(
            (("live", (0, 0, 0, 1)), ("spoof", (7, 4, 2)), ("spoof", (1, 1, 1)))
        )
    }
    tested = {
        f"Data/test/9/{kind}/{k}.png": celeba_labels(k * 3, k) for k, kind in enumerate(("live", "spoof"))
    }
    for part, table in (("train", rows), ("test", tested)):
        for key in table:
            path = tmp_path / key
            path.parent.mkdir(parents=True, exist_ok=True)
            image = np.zeros((32, 64, 3), np.uint8)
            image[8:24, 16:48] = 200  # the face; on the grid of 224: x 56, y 56, width 112, height 112
            Image.fromarray(image).save(path)
            path.with_name(f"{path.stem}_BB.txt").write_text("56 56 112 112 0.99\n")
        (tmp_path / "metas/intra_test").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"metas/intra_test/{part}_label.json").write_text(json.dumps(table))
    return tmp_path


def test_celeba_spoof(celeba):
    split = data.load(data.CelebaSpoof(str(celeba)), image_size=8, seed=1)
    assert len(split.train) == 12 and len(split.development) == 3  # a fifth of the people
    assert set(split.train.labels) == {0, 1, 7} and split.train.class_names[7] == "PC"
    assert split.held_out.labels.tolist() == [0, 3]
    assert split.held_out.semantics["illumination"].tolist() == [0, 1]
    assert (
        split.train.semantics["attributes"].shape == (12, 40)
        and len(split.train.semantic_names["attributes"]) == 40
    )
    assert (split.train[0]["image"] == 200).all()  # cut out by its box, stretched to a square

    # A face whose box says nothing is replaced by another of its instrument.
    first = next(path for path in sorted(celeba.rglob("*_BB.txt")) if "train" in str(path))
    first.write_text("nothing")
    with_bad = data.load(data.CelebaSpoof(str(celeba), semantic_noise=0.5), image_size=8, seed=1)
    for part in (with_bad.train, with_bad.development):
        assert all((part[i]["image"] == 200).all() for i in range(len(part)))
    assert with_bad.train.corrupt + with_bad.development.corrupt == 1
    assert (with_bad.train.semantics["attributes"] != with_bad.train.true_semantics["attributes"]).any()


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("56 56 112 112 0.9", (8, 16, 24, 48)),
        ("-20 -7 300 300 0.9", (0, 0, 32, 64)),
        (
            "10.9 3.9 100.7 50.2",
            (0, 2, 7, 30),
        ),  # 10 -> int(2.857), 100 -> int(28.57); 3 -> int(.43), 50 -> int(7.14)
    ],
)
def test_boxes_are_on_a_grid_of_224(tmp_path, text, box):
    (tmp_path / "a_BB.txt").write_text(text)
    assert liveness_files.celeba_spoof_box(tmp_path / "a_BB.txt", 32, 64) == box


@pytest.mark.parametrize("text", ["1 2 3", "a b c d", "500 0 10 10", "nan 0 1 1", "0 0 0 10"])
def test_boxes_that_are_none(tmp_path, text):
    (tmp_path / "a_BB.txt").write_text(text)
    with pytest.raises(CorruptImage):
        liveness_files.celeba_spoof_box(tmp_path / "a_BB.txt", 32, 64)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"Data/a.png": celeba_labels(11)}, "needs 44 labels in their ranges"),
        ({"Data/a.png": [0] * 43}, "needs 44 labels"),
        (
            {"Data/a.png": celeba_labels(0)[:-1] + [1]},
            "says of 'Data/a.png' that it is spoof, and its spoof type is live",
        ),
        ({"../a.png": celeba_labels(0)}, "names an image outside of its folder"),
        ([], "needs an object of paths and labels"),
    ],
)
def test_label_files_of_another_form(celeba, table, words):
    (celeba / "metas/intra_test/train_label.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=words):
        data.load(data.CelebaSpoof(str(celeba)), image_size=8)


# Of the released data: 55 users, 6 phones, 3 sessions, 5 files each.
OULU_COUNTS = {
    (1, "train"): (240, 960), (1, "development"): (180, 720), (1, "test"): (120, 480),
    (2, "train"): (360, 720), (2, "development"): (270, 540), (2, "test"): (360, 720),
    (3, "train"): (300, 1200), (3, "development"): (225, 900), (3, "test"): (60, 240),
    (4, "train"): (200, 400), (4, "development"): (150, 300), (4, "test"): (20, 40),
}  # fmt: skip


def test_the_protocols_of_oulu_npu_have_the_published_sizes():
    names = [
        f"{p}_{s}_{u}_{f}"
        for p in range(1, 7)
        for s in range(1, 4)
        for u in range(1, 56)
        for f in range(1, 6)
    ]
    videos = [liveness_files.oulu_video(name) for name in names]
    assert len(videos) == 4950 and None not in videos
    for (protocol, part), counts in OULU_COUNTS.items():
        for phone in (1, 6):
            taken = [v for v in videos if liveness_files.oulu_takes(v, part, protocol, phone)]
            live = sum(v.instrument == "live" for v in taken)
            assert (live, len(taken) - live) == counts, (protocol, part)
            if protocol >= 3:
                assert ({v.phone for v in taken} == {phone}) == (part == "test")
    assert liveness_files.oulu_video("7_1_01_1") is None


def test_oulu_npu(tmp_path):
    for folder, user in (("Train_files", 1), ("Dev_files", 21), ("Test_files", 36)):
        for session in (1, 3):
            for file in range(1, 6):
                for frame in range(3):
                    picture(tmp_path / folder / f"2_{session}_{user:02}_{file}" / f"{frame}.png", frame)
    split = data.load(data.OuluNpu(str(tmp_path), frames=2), image_size=8)
    assert len(split.train) == 10 and sorted(set(split.train.labels)) == [0, 1, 2, 3, 4]
    assert (np.bincount(split.train.videos) == 2).all() and split.protocol == "spoofing"
    assert [int(split.train[i]["image"][0, 0, 0]) for i in range(2)] == [0, 2]  # spread over the video
    second = data.load(data.OuluNpu(str(tmp_path), protocol=2), image_size=8)
    assert set(second.train.labels) == {0, 1, 3} and set(second.held_out.labels) == {0, 2, 4}
    with pytest.raises(UserError, match="root: needs images in every part of the protocol"):
        data.load(data.OuluNpu(str(tmp_path), protocol=3, phone=5), image_size=8)
    (tmp_path / "Train_files/another").mkdir()
    with pytest.raises(UserError, match="root: needs videos named phone_session_user_file"):
        data.load(data.OuluNpu(str(tmp_path)), image_size=8)
    with pytest.raises(UserError, match="protocol: needs an integer from 1 to 4, got 5"):
        data.load(data.OuluNpu(str(tmp_path), protocol=5), image_size=8)


def test_siw(tmp_path):
    for part, subjects in (("Train", ("003", "004", "005", "006", "007")), ("Test", ("001",))):
        for subject in subjects:
            for name in ("1-1-1-1", "1-2-1-1", "1-3-1-1", "1-3-2-1", "1-3-3-1", "1-3-4-1"):
                kind = "live" if name.split("-")[1] == "1" else "spoof"
                for frame in range(2):
                    folder = tmp_path / part / kind / subject / f"{subject}-{name}"
                    picture(folder / f"{60 * frame}.png", frame)

    def load(**fields):
        return data.load(data.Siw(str(tmp_path), **fields), image_size=8, seed=0)

    first = load()
    assert set(first.train.labels) == set(range(6)) == set(first.held_out.labels)
    assert len(set(first.train.people)) == 4 and len(set(first.development.people)) == 1
    second = load(protocol=2, fold=3)
    assert set(second.train.labels) == {0, 2, 3, 5} and set(second.held_out.labels) == {0, 4}
    for fold, trained, tested in ((1, {0, 1}, {0, 2, 3, 4, 5}), (2, {0, 2, 3, 4, 5}, {0, 1})):
        third = load(protocol=3, fold=fold)
        assert set(third.train.labels) == trained and set(third.held_out.labels) == tested
    with pytest.raises(UserError, match=r"data.fold: needs an integer from 1 to 2, got 3"):
        load(protocol=3, fold=3)
    picture(tmp_path / "Train/live/003/003-1-2-1-1/0.png")
    with pytest.raises(UserError, match="in the folder of their type"):
        load()


def test_the_first_frames_of_a_video(tmp_path):
    for frame in range(80):
        picture(tmp_path / f"{frame}.png", size=(4, 4))
    names = [path.stem for path in liveness_files.video_frames(tmp_path, 3, first=60)]
    assert names == ["0", "30", "59"]
    assert len(liveness_files.video_frames(tmp_path, 200)) == 80
