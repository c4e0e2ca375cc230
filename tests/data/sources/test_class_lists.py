"""Lists, folders by class, CUB-200-2011 and Clothing1M as they are distributed, with lines and images that are broken."""

import numpy as np
import pytest

from jaxface import data
from jaxface.errors import UserError


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode_image(np.full((10, 12, 3), value, np.uint8)))


def values(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def opened(spec):
    split = data.load(spec, image_size=8)
    assert split.protocol == "classification" and split.train.image_shape == (8, 8, 3)
    assert list(split.train.class_names) == list(split.held_out.class_names)
    return split.train, split.held_out


@pytest.fixture
def lists(tmp_path):
    for k in range(6):
        write(tmp_path / "train" / f"a {k}.png", 40 * k)
    (tmp_path / "train.txt").write_text(
        "train/a 0.png 0\ntrain/a 1.png 1\ntrain/a 2.png 1\n\nnothing\ntrain/a 3.png x\n"
    )
    (tmp_path / "test.txt").write_text("train/a 4.png 1\ntrain/a 5.png 0\n")
    return tmp_path


def test_lists_of_paths_and_labels(lists, caplog):
    train, test = opened(data.ImageLists(str(lists)))
    assert train.labels.tolist() == [0, 1, 1] and values(train) == [0, 40, 80] and train.skipped == 2
    assert test.labels.tolist() == [1, 0] and values(test) == [160, 200]
    assert train.class_names == ["class 0", "class 1"] and "left out 2 lines" in caplog.text
    (lists / "train" / "a 2.png").write_bytes(b"nothing")
    (lists / "train" / "a 4.png").unlink()
    train, test = opened(data.ImageLists(str(lists)))
    assert values(train) == [0, 40, 40] and train.corrupt == 1  # another of its class
    assert [float(test[i]["weight"]) for i in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train/a.png 3", "train: needs images of all 4 classes, train.txt has none of class 2"),
        ("../a.png 0", "train: .* names an image outside of its folder"),
        ("train/a.png 99999999", "train: .* has a class 99999999"),
    ],
)
def test_lists_that_cannot_be(lists, line, words):
    with (lists / "train.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=words):
        opened(data.ImageLists(str(lists)))


def test_a_list_that_is_missing_or_empty(lists):
    with pytest.raises(UserError, match=r"test: cannot read .*gone.txt"):
        opened(data.ImageLists(str(lists), test="gone.txt"))
    (lists / "test.txt").write_text("no list\n")
    with pytest.raises(UserError, match=r"test: no line of .*test.txt is a path and a class"):
        opened(data.ImageLists(str(lists)))


def test_folders_by_class(tmp_path):
    for part, count in (("train", 3), ("val", 1)):
        for k, name in enumerate(("n01", "n02")):
            for i in range(count):
                write(tmp_path / part / name / f"{i}.png", 100 * k + 10 * i)
    train, test = opened(data.ClassFolders(str(tmp_path), tail=data.LongTail(imbalance=3)))
    assert np.bincount(train.labels).tolist() == [3, 1] and test.labels.tolist() == [0, 1]
    assert train.class_names == ["n01", "n02"]
    with pytest.raises(UserError, match=r"root: needs folders train and val; .* has no train"):
        opened(data.ClassFolders(str(tmp_path / "val")))


@pytest.fixture
def birds(tmp_path):
    root = tmp_path / "CUB_200_2011"
    root.mkdir()
    names = ["001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Auk/c.jpg", "002.Auk/d.jpg"]
    for k, name in enumerate(names):
        write(root / "images" / name, 40 * k)
    tables = {
        "images": [f"{k} {name}" for k, name in enumerate([*names, "002.Auk/e.jpg"], 1)],
        "image_class_labels": ["1 1", "2 1", "3 2", "4 2", "5 3"],
        "train_test_split": ["1 1", "2 0", "3 0", "4 1", "5 1"],
        "classes": ["1 001.Albatross", "2 002.Auk"],
    }
    for name, lines in tables.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_cub_200(birds):
    for root in (birds, birds / "CUB_200_2011"):
        train, test = opened(data.Cub200(str(root)))
        assert train.labels.tolist() == test.labels.tolist() == [0, 1]
        assert values(train) == [0, 120] and values(test) == [40, 80]
        assert train.class_names == ["001.Albatross", "002.Auk"] and train.skipped == 1
    (birds / "CUB_200_2011" / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"root: cannot read .*classes.txt"):
        opened(data.Cub200(str(birds)))


@pytest.fixture
def clothes(tmp_path):
    keys = {"noisy_train": "ab", "clean_train": "c", "clean_val": "d", "clean_test": "e"}
    for part, names in keys.items():
        (tmp_path / f"{part}_key_list.txt").write_text("".join(f"images/0/{n}.png\n" for n in names))
        for name in names:
            write(tmp_path / "images" / "0" / f"{name}.png", 10 * (ord(name) - ord("a")))
    (tmp_path / "noisy_label_kv.txt").write_text("images/0/a.png 1\nimages/0/c.png 0\n")
    (tmp_path / "clean_label_kv.txt").write_text(
        "".join(f"images/0/{n}.png {k}\n" for k, n in enumerate("cde"))
    )
    (tmp_path / "category_names_eng.txt").write_text("T-Shirt\nShirt\nKnitwear\n")
    return tmp_path


def test_clothing_1m(clothes):
    train, test = opened(data.Clothing1m(str(clothes)))
    assert train.labels.tolist() == [1] and train.skipped == 1 and values(train) == [0]
    assert test.labels.tolist() == [2] and train.class_names == ["T-Shirt", "Shirt", "Knitwear"]
    train, test = opened(data.Clothing1m(str(clothes), labels="clean", test="clean_val"))
    assert train.labels.tolist() == [0] and values(train) == [20] and test.labels.tolist() == [1]
    (clothes / "noisy_label_kv.txt").write_text("")
    with pytest.raises(UserError, match=r"root: no images with a label in .*noisy_train_key_list.txt"):
        opened(data.Clothing1m(str(clothes)))
