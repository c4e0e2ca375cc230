"""Photographs, packs and RecordIO files in an object store: the same records as from a folder, and no network error is damage."""

import pickle
import threading

import numpy as np
import object_store
import pytest

from jaxface import data
from jaxface.data.sources.groups import group_folders
from jaxface.data.sources.images import encode_image
from jaxface.data.sources.packs import PackSource, write_bin
from jaxface.data.sources.recordio import RecordIOFaces, RecordWriter
from jaxface.errors import UserError

ROOT = "objects://bucket/set"


def jpeg(number):
    noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3))
    return encode_image(noise.astype(np.uint8), encoding="jpeg")


@pytest.fixture
def folder(tmp_path):
    """Three people with two images each, something hidden, a note, and an empty object that stores keep for a folder."""
    object_store.clear()
    for person in ("s1", "s2", "s10"):
        (tmp_path / person).mkdir()
        for number in (1, 2):
            (tmp_path / person / f"{number}.jpg").write_bytes(jpeg(10 * int(person[1:]) + number))
    (tmp_path / "s1/.hidden.jpg").write_bytes(b"x")
    (tmp_path / "README.txt").write_text("faces")
    return tmp_path


def put(folder, root=ROOT):
    for path in folder.rglob("*"):
        if path.is_file():
            object_store.OBJECTS[f"{root}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    return root


def assert_alike(one, other):
    assert len(one) == len(other) > 0 and list(one.class_names) == list(other.class_names)
    for index in range(len(one)):
        np.testing.assert_array_equal(one[index]["image"], other[index]["image"])
        assert one[index]["label"] == other[index]["label"]


def test_a_folder(folder):
    put(folder)
    (near, far) = (data.Folder(str(root)).source(image_size=16, seed=0) for root in (folder, ROOT))
    assert_alike(near, far)
    assert far.record_names == near.record_names and far.class_names == ["s1", "s2", "s10"]
    assert data.Folder(ROOT).title == "folder set"
    again = pickle.loads(pickle.dumps(far))
    assert_alike(near, again)


def test_groups(folder):
    for group in ("left", "right"):
        put(folder, f"{ROOT}/{group}")
    assert {name: len(source) for name, source in group_folders(ROOT, image_size=16).items()} == {
        "left": 6,
        "right": 6,
    }


def test_what_cannot_be_read_is_damage_and_what_cannot_be_reached_is_not(folder, monkeypatch):
    put(folder)
    source = data.Folder(ROOT).source(image_size=16, seed=0)
    object_store.OBJECTS[f"{ROOT}/s1/1.jpg"] = b"no image"
    np.testing.assert_array_equal(source[0]["image"], source[1]["image"])
    assert source.corrupt == 1

    def fail(*_, **__):
        raise RuntimeError("503 slow down")

    monkeypatch.setattr(object_store.ObjectPath, "open", fail)
    with pytest.raises(UserError, match=r"^objects://bucket/set/s2/1.jpg cannot be reached: 503 slow down$"):
        source[2]
    assert source.corrupt == 1


def test_a_folder_that_is_not_there(folder):
    with pytest.raises(
        UserError, match=r"^root: needs a folder of images by person, objects://bucket/set: No such"
    ):
        data.Folder(ROOT).source(image_size=16, seed=0)


@pytest.mark.parametrize("identities", [True, False])
def test_recordio(tmp_path, identities):
    object_store.clear()
    with RecordWriter(tmp_path / "train.rec", identities=identities) as writer:
        for number in range(20):
            writer.write(number // 5, jpeg(number))
    put(tmp_path)
    near, far = RecordIOFaces(tmp_path), RecordIOFaces(ROOT)
    assert_alike(near, far)
    assert data.RecordIO(ROOT).title == "recordio set" == data.RecordIO(f"{ROOT}/train.rec").title
    assert_alike(near, pickle.loads(pickle.dumps(far)))
    object_store.OBJECTS.pop(f"{ROOT}/train.idx")
    assert_alike(RecordIOFaces(f"{ROOT}/train.rec"), near)  # scanned

    wrong = []

    def read(start):
        for index in np.roll(np.arange(len(near)), start):
            if not np.array_equal(far[int(index)]["image"], near[int(index)]["image"]):
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    with pytest.raises(UserError, match=r"^path: needs a .rec file; got objects://bucket/other: "):
        RecordIOFaces("objects://bucket/other")


def test_a_pack(tmp_path):
    object_store.clear()
    images = [jpeg(number) for number in range(8)]
    write_bin(tmp_path / "small.bin", images, [True, True, False, False])
    put(tmp_path)
    near, far = (PackSource(f"{root}/small.bin", image_size=16) for root in (tmp_path, ROOT))
    for index in range(8):
        np.testing.assert_array_equal(near[index]["image"], far[index]["image"])
    with pytest.raises(
        UserError, match=r"^path: needs a .bin pack; got objects://bucket/set/none.bin: No such"
    ):
        PackSource(f"{ROOT}/none.bin")


def test_a_folder_of_packs(tmp_path):
    object_store.clear()
    for name, first in (("b", 0), ("a", 8)):
        write_bin(tmp_path / f"{name}.bin", [jpeg(first + n) for n in range(8)], [True, True, False, False])
    put(tmp_path)
    near, far = (data.open_packs(root, image_size=16) for root in (tmp_path, ROOT))
    assert list(near) == list(far) == ["a", "b"]
    for name in near:
        np.testing.assert_array_equal(near[name][3]["image"], far[name][3]["image"])
    with pytest.raises(
        UserError, match=r"^packs: needs a folder with .bin packs; got objects://bucket/other: No such"
    ):
        data.open_packs("objects://bucket/other")


def test_the_sets_of_tensorflow_need_files_of_this_machine():
    with pytest.raises(UserError, match=r"^data_dir: needs a path of this machine, got 'objects://"):
        data.Tfds(data_dir=ROOT).divide(image_size=16, seed=0)
