import logging
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from jaxface.data.sources.folder import FolderSource
from jaxface.data.sources.images import fit_square
from jaxface.data.sources.source import Source
from jaxface.errors import UserError


def test_reads_every_format_in_natural_order(faces_folder):
    source = FolderSource(faces_folder, image_size=28)
    assert isinstance(source, Source) and source.image_shape == (28, 28, 3)
    assert source.class_names == ["s1", "s2", "s3", "s4", "s10", "s11"]
    assert len(source) == 30 and source.labels.dtype == np.int32
    np.testing.assert_array_equal(source.labels, np.repeat(np.arange(6), 5))
    assert [path.name for path in source.paths[:5]] == ["1.pgm", "2.png", "3.JPG", "4.bmp", "5.webp"]
    for index, record in enumerate(source[i] for i in range(len(source))):
        assert record["image"].shape == (28, 28, 3) and record["image"].dtype == np.uint8
        assert record["label"] == source.labels[index]
        stored = fit_square(np.asarray(Image.open(source.paths[index]).convert("L")), 28)
        assert np.abs(record["image"].mean(-1) - stored).mean() < 6  # WebP and JPEG decoders round colors
    assert source.corrupt == 0
    assert FolderSource(faces_folder, image_size=16, fit="crop")[0]["image"].shape == (16, 16, 3)
    with pytest.raises(IndexError):
        source[30]


def test_user_mistakes_are_one_line(tmp_path, faces_folder):
    (tmp_path / "nothing").mkdir()
    one = tmp_path / "one" / "anna"
    one.mkdir(parents=True)
    Image.new("L", (8, 8)).save(one / "1.png")
    (tmp_path / "flat").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "flat" / "1.png")
    for root, says in [
        (tmp_path / "missing", "No such file"),
        (faces_folder / "README.txt", "folder of images"),
        (tmp_path / "nothing", "no image"),
        (tmp_path / "flat", "no image"),
        (tmp_path / "one", "two people"),
    ]:
        with pytest.raises(UserError, match=says) as caught:
            FolderSource(root, image_size=8)
        assert str(caught.value).startswith("root: ") and "\n" not in str(caught.value)


@pytest.fixture
def damaged(faces_folder):
    """s1/2 is text, s2/1 and s2/3 are cut short, s3/5 claims 60000 x 60000, everything of s4 is empty."""
    (faces_folder / "s1" / "2.png").write_text("I am not a PNG")
    for name in ("1.pgm", "3.JPG"):
        path = faces_folder / "s2" / name
        path.write_bytes(path.read_bytes()[:-60])
    (faces_folder / "s3" / "5.webp").write_bytes(b"P5 60000 60000 255\n")
    for path in (faces_folder / "s4").iterdir():
        path.write_bytes(b"")
    return faces_folder


def test_damaged_images_are_replaced_by_the_same_person(damaged, caplog):
    with caplog.at_level(logging.WARNING, "jaxface.data"):
        source = FolderSource(damaged, image_size=28)
        assert source.class_names == ["s1", "s2", "s3", "s10", "s11"]  # s4 has nothing to show
        assert [r for r in caplog.records if "left out s4" in r.getMessage()]
        caplog.clear()
        records = [source[i] for i in range(len(source))]
    assert len(caplog.records) == 1 and "2.png" in caplog.records[0].getMessage()  # reported once
    assert source.corrupt == 4
    np.testing.assert_array_equal(source.labels, np.repeat(np.arange(5), 5))
    np.testing.assert_array_equal([r["label"] for r in records], source.labels)
    same = lambda i, j: (records[i]["image"] == records[j]["image"]).all()  # noqa: E731
    assert same(1, 2) and same(5, 6) and same(7, 8)
    assert same(14, 10)  # after the last image of a person comes the first
    again = FolderSource(damaged, image_size=28)
    for index in reversed(range(len(source))):  # whatever the order of reading
        np.testing.assert_array_equal(again[index]["image"], records[index]["image"])


def test_strict_refuses_and_names_the_file(damaged, faces_folder):
    with pytest.raises(UserError, match=r"s1/2\.png") as caught:
        FolderSource(damaged, image_size=28, strict=True)
    assert "\n" not in str(caught.value)


def test_strict_accepts_a_sound_folder(faces_folder):
    assert len(FolderSource(faces_folder, image_size=8, strict=True)) == 30


def test_two_readable_people_are_needed(faces_folder):
    for path in faces_folder.glob("s*/*"):
        if path.parent.name != "s10":
            path.write_bytes(b"rubbish")
    with pytest.raises(UserError, match="two people"):
        FolderSource(faces_folder, image_size=8)


def test_a_person_who_vanishes_is_one_line(faces_folder):
    source = FolderSource(faces_folder, image_size=8)
    for path in (faces_folder / "s2").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="s2"):
        source[6]


def test_threads_and_pickle(damaged):
    source = FolderSource(damaged, image_size=12)
    expected = [source[i]["image"] for i in range(len(source))]
    fresh = pickle.loads(pickle.dumps(FolderSource(damaged, image_size=12)))
    found = [None] * len(fresh)

    def read(start):
        for i in range(start, len(fresh), 4):
            found[i] = fresh[i]["image"]

    threads = [threading.Thread(target=read, args=(k,)) for k in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    np.testing.assert_array_equal(found, expected)
    assert fresh.corrupt == source.corrupt == 4
