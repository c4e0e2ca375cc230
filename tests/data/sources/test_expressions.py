"""RAF-DB, FERPlus and AffectNet as they are distributed, with lines and images that are broken."""

import numpy as np
import pytest

from jaxface import data
from jaxface.data.pipeline.samplers import repeat_factors, repeat_rare_classes
from jaxface.data.sources.expressions import AFFECTNET, FER_PLUS, RAF_DB
from jaxface.errors import UserError

RNG = np.random.default_rng(0)


def write(path, value=None, shape=(20, 16, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = RNG.integers(0, 256, shape, np.uint8) if value is None else np.full(shape, value, np.uint8)
    path.write_bytes(data.encode_image(image))
    return image


def opened(spec, size=8):
    split = data.load(spec, image_size=size)
    assert split.protocol == "classification" and list(split.train.class_names) == list(
        split.held_out.class_names
    )
    return split.train, split.held_out


@pytest.fixture
def raf(tmp_path):
    """Of the classes 1 7 4 4 to learn, 3 6 to test; an image of either part is none, and three lines say nothing."""
    lines = ["train_00001.jpg 1", "train_00002.jpg 7", "train_00003.jpg 4", "train_00004.jpg 4", "test_0001.jpg 3",
             "test_0002.jpg 6", "train_00005.jpg 8", "somebody.jpg 2", "train_00006.jpg"]  # fmt: skip
    basic = tmp_path / "basic"
    for number, line in enumerate(lines[:6]):
        write(basic / "Image" / "aligned" / line.split(".")[0].__add__("_aligned.jpg"), 40 * number)
    (basic / "EmoLabel").mkdir()
    (basic / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines) + "\n")
    for name in ("train_00003", "test_0002"):
        (basic / "Image" / "aligned" / f"{name}_aligned.jpg").write_bytes(b"nothing")
    return tmp_path


def test_raf_db(raf, caplog):
    for root in (raf, raf / "basic"):
        train, test = opened(data.RafDb(str(root)))
        assert train.labels.tolist() == [0, 6, 3, 3] and test.labels.tolist() == [2, 5]
    assert train.class_names == list(RAF_DB) == [
        "surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral",
    ]  # fmt: skip
    assert train.skipped == test.skipped == 3 and "left out 3 lines" in caplog.text
    assert [int(train[i]["image"][0, 0, 0]) for i in range(4)] == [
        0,
        40,
        120,
        120,
    ]  # another of its class stands in
    assert train.corrupt == 1 and train.shown(2) == 3
    assert [float(test[i]["weight"]) for i in range(2)] == [1.0, 0.0] and test.corrupt == {1}


def test_rare_classes_are_repeated(raf):
    np.testing.assert_allclose(repeat_factors(np.array([0.1, 0.3, 0.6])), [1.224745, 1, 1], atol=5e-7)
    labels = np.repeat([0, 1, 2], [10, 30, 60])
    pixels = np.arange(100, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 8, 8, 1), np.uint8)
    source = data.ArraySource(pixels, labels, ["a", "b", "c", "never"])
    repeated = repeat_rare_classes(source)
    assert np.bincount(repeated.labels).tolist() == [20, 30, 60]  # copies (2, 1, 1)
    assert [int(repeated[i]["image"][0, 0, 0]) for i in (0, 1, 2, 19, 20)] == [0, 0, 1, 9, 10]
    train, _ = opened(data.RafDb(str(raf), balance=0.9))
    assert train.labels.tolist() == [0, 0, 6, 6, 3, 3, 3, 3]  # shares 1/4, 1/4, 1/2: copies 2, 2, 2
    with pytest.raises(UserError, match="threshold: needs a number above 0 and up to 1"):
        repeat_factors(np.ones(1), threshold=0)


VOTES = [
    ("Training", "fer0000000.png", (4, 0, 0, 1, 3, 2, 0, 0, 0, 0)),  # no majority
    ("Training", "fer0000001.png", (0, 0, 0, 0, 9, 1, 0, 0, 0, 0)),
    ("PublicTest", "fer0000002.png", (10, 0, 0, 0, 0, 0, 0, 0, 0, 0)),
    ("PrivateTest", "fer0000003.png", (1, 8, 0, 0, 0, 0, 0, 1, 0, 0)),
    ("PrivateTest", "", (0, 0, 0, 0, 0, 0, 0, 0, 0, 10)),  # no face
    ("PrivateTest", "fer0000005.png", (0, 0, 0, 0, 0, 0, 0, 6, 1, 0)),
    ("Training", "fer0000006.png", (0, 0, 5, 0, 0, 0, 5, 0, 0, 0)),  # half of the votes are no majority
]


def fer(root, *, broken=""):
    header = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    rows = [f"{usage},{name},{','.join(map(str, votes))}" for usage, name, votes in VOTES]
    (root / "fer2013new.csv").write_text("\n".join([header, *rows, broken]))


def test_fer_plus_with_pixels_in_a_list(tmp_path):
    fer(tmp_path)
    images = RNG.integers(0, 256, (len(VOTES), 48, 48), np.uint8)
    texts = [" ".join(map(str, image.ravel())) for image in images]
    texts[5] = texts[5].replace(" ", " 300 ", 1)
    rows = [f'0,"{text}",{usage}' for text, (usage, _, _) in zip(texts, VOTES, strict=True)]
    (tmp_path / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]))
    train, test = opened(data.FerPlus(str(tmp_path)), size=48)
    assert (
        train.class_names == list(FER_PLUS)
        and train.labels.tolist() == [4]
        and test.labels.tolist() == [1, 7]
    )
    np.testing.assert_array_equal(train[0]["image"], np.repeat(images[1][..., None], 3, axis=2))
    np.testing.assert_array_equal(test[0]["image"][..., 1], images[3])
    assert float(test[1]["weight"]) == 0 and test.corrupt == {1}
    (tmp_path / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows[1:]]))
    with pytest.raises(UserError, match="need as many rows, got 6 and 7"):
        data.load(data.FerPlus(str(tmp_path)))


def test_fer_plus_in_folders(tmp_path):
    fer(tmp_path, broken="Training,fer0000007.png,many,0,0,0,0,0,0,0,0,0")
    image = write(tmp_path / "FER2013Train" / "fer0000001.png", shape=(48, 48, 3))
    write(tmp_path / "FER2013Valid" / "fer0000002.png", 7)
    train, test = opened(data.FerPlus(str(tmp_path), test="PublicTest"), size=48)
    assert train.labels.tolist() == [4] and test.labels.tolist() == [0] and train.skipped == 1
    np.testing.assert_array_equal(train[0]["image"], image)
    with pytest.raises(UserError, match=r"FER2013Test or fer2013\.csv beside fer2013new\.csv"):
        data.load(data.FerPlus(str(tmp_path)))


def test_majority_of_votes():
    votes = np.array([votes for _, _, votes in VOTES])
    assert data.majority_votes(votes).tolist() == [-1, 4, 0, 1, -1, 7, -1]


def test_affectnet_by_its_lists(tmp_path):
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    image = write(tmp_path / "Manually_Annotated_Images" / "1" / "a.png", shape=(30, 40, 3))
    rows = ["1/a.png,10,5,20,20,1;2,3,0.1,0.2", "1/b.png,0,0,20,20,1;2,7,0.1,0.2", "1/c.png,0,0,20,20,1;2,9,-2,-2",
            "1/d.png,NULL,0,20,20,1;2,1,0,0"]  # fmt: skip
    (tmp_path / "training.csv").write_text("\n".join([header, *rows]))
    # Its list of the test has no first line.
    (tmp_path / "validation.csv").write_text("\n".join([rows[0], rows[0].replace("10,5", "90,5")]))
    train, test = opened(data.AffectNet(str(tmp_path)), size=20)
    assert train.labels.tolist() == [3] and train.skipped == 1 and train.class_names == list(AFFECTNET[:7])
    np.testing.assert_array_equal(train[0]["image"], image[5:25, 10:30])
    assert [float(test[i]["weight"]) for i in range(2)] == [1.0, 0.0]  # a face outside of the image
    eight, _ = opened(data.AffectNet(str(tmp_path), classes=8))
    assert eight.labels.tolist() == [3, 7]


def test_affectnet_in_folders(tmp_path):
    for place in ("train/0/a", "train/0/b", "train/10/c", "train/2/d", "val/2/e", "val/10/f"):
        write(tmp_path / f"{place}.png")
    train, test = opened(data.AffectNet(str(tmp_path)))
    assert train.class_names == ["0", "2", "10"]
    assert train.labels.tolist() == [0, 0, 1, 2] and test.labels.tolist() == [1, 2]
    assert test.record_names == ["2/e.png", "10/f.png"] and float(test[1]["weight"]) == 1
    write(tmp_path / "val" / "11" / "g.png")
    with pytest.raises(UserError, match="classes without a folder in train: 11"):
        data.load(data.AffectNet(str(tmp_path)))


@pytest.mark.parametrize(
    ("spec", "files", "words"),
    [
        (data.RafDb, {}, "root: cannot read .*list_patition_label.txt"),
        (data.RafDb, {"EmoLabel/list_patition_label.txt": "train_1.jpg 9"}, "root: no images of train in"),
        (data.RafDb, {"EmoLabel/list_patition_label.txt": "train_../../a.jpg 1"}, "names an image outside of its folder"),
        (data.RafDb, {"EmoLabel/list_patition_label.txt": "train_1.jpg 1"}, "root: needs the folder"),
        (data.FerPlus, {}, "root: cannot read .*fer2013new.csv"),
        (data.FerPlus, {"fer2013new.csv": "a\nb,c"}, "root: no images of Training in"),
        (data.AffectNet, {}, "root: needs training.csv and validation.csv, or folders train and val"),
        (data.AffectNet, {"training.csv": "a"}, "root: no images of train in"),
    ],
)  # fmt: skip
def test_what_is_no_such_set(tmp_path, spec, files, words):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        data.load(spec(str(tmp_path)))
    assert "\n" not in str(caught.value)
