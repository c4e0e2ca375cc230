"""Folders of photographs as all who walk over them see them."""

import json
import logging
import os
import shutil

import pytest

from jaxface import data, training
from jaxface.data.sources import listing
from jaxface.data.sources.listing import images_by_class, natural_key
from jaxface.errors import UserError

NAMES = ["s1", "s2", "s3", "s4", "s10", "s11"]  # of `faces_folder`
RUN = {"method": "sface", "config": {}, "run": {}}


def test_natural_key():
    names = ["s10", "s2", "s1", "s02", "a", "10", "9", "s1b2", "s1b10"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "s1", "s1b2", "s1b10", "s02", "s2", "s10"]


@pytest.fixture
def closed(monkeypatch):
    """`closed(folder)`: nobody may list it any more, whoever runs the test."""
    folders, scandir = set(), os.scandir

    def limited(path):
        if os.fspath(path) in folders:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", limited)
    return lambda folder: folders.add(os.fspath(folder))


def copy_image(faces_folder, folder, name="roc.png"):
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(faces_folder / "s1" / "2.png", folder / name)
    return folder


def test_the_work_directory_of_a_run_is_nobody(faces_folder, caplog):
    run = training.open_workdir(faces_folder / "run1", RUN)
    copy_image(faces_folder, run)
    assert list(images_by_class(faces_folder)) == NAMES
    assert caplog.messages == [f"left out {run}: it holds what a run wrote, not photographs"]
    training.give_up_workdir(run)
    assert list(images_by_class(faces_folder)) == NAMES


@pytest.mark.parametrize(
    ("files", "is_result"),
    [
        ({"results.json": {"data": "folder x", "metrics": {}}}, True),  # of experiments.evaluate
        ({"config.json": {"tool": "cloak_images", "run": "/runs/a"}}, True),
        ({"digits.json": {"study": "digits", "claim": "", "effects": []}, "digits.md": ""}, True),
        ({"config.json": {"camera": "X100"}}, False),  # somebody's notes on the photographs
        ({"results.json": [1, 2]}, False),
        ({"1.json": {"title": "roc.png"}, "1.md": ""}, False),
    ],
)
def test_results_are_told_from_photographs_by_what_is_written_beside_them(faces_folder, files, is_result):
    folder = copy_image(faces_folder, faces_folder / "s5")
    for name, note in files.items():
        (folder / name).write_text(json.dumps(note))
    assert ("s5" in images_by_class(faces_folder)) != is_result


@pytest.mark.parametrize("note", [b"[" * 100_000, b"\xff\xfe", b"{", b" " * (listing._NOTE_SIZE + 1)])
def test_a_note_from_outside_may_hold_anything(faces_folder, note):
    folder = copy_image(faces_folder, faces_folder / "s5")
    (folder / "config.json").write_bytes(note)
    assert "s5" in images_by_class(faces_folder)


def test_a_folder_that_may_not_be_read_is_left_out_and_named(faces_folder, closed, caplog):
    (faces_folder / "lost+found").mkdir()
    closed(faces_folder / "lost+found")
    source = data.FolderSource(faces_folder, image_size=8)
    assert source.class_names == NAMES and len(source) == 30
    assert caplog.messages == [f"left out {faces_folder / 'lost+found'}: Permission denied"]
    with pytest.raises(UserError, match=r"^root: .*lost\+found: Permission denied$"):
        data.FolderSource(faces_folder, image_size=8, strict=True)
    closed(faces_folder)
    for source in (data.FolderSource, data.RgbdFolderSource):
        with pytest.raises(UserError, match=r"^root: .*photos: Permission denied$"):
            source(faces_folder, image_size=8)


def test_links_that_lead_nowhere(faces_folder, caplog):
    (faces_folder / "s9").symlink_to("s9")
    (faces_folder / "s1" / "9.png").symlink_to("9.png")
    (faces_folder / "s8").symlink_to("nothing")
    source = data.FolderSource(faces_folder, image_size=8)
    assert source.class_names == NAMES and [path.name for path in source.paths[:6]][-1] == "9.png"
    assert len(caplog.messages) == 1 and "s9: Too many levels of symbolic links" in caplog.messages[0]
    assert source[5]["image"].shape == (8, 8, 3) and source.corrupt == 1
    with pytest.raises(UserError, match="s9: Too many levels"):
        data.FolderSource(faces_folder, image_size=8, strict=True)


@pytest.fixture
def old_archive(tmp_path, faces_folder):
    """People whose names are in Latin-1, and one whose name reads as another's does when it is shown."""
    root = os.fsencode(tmp_path / "archive")
    for name in (b"Andr\xe9", b"Andr\xe8", rb"Andr\xe9", b"Ann"):
        os.makedirs(root + b"/" + name)
        shutil.copy(faces_folder / "s1" / "2.png", root + b"/" + name + b"/foto \xb01.png")
    return tmp_path / "archive"


def test_names_that_are_no_utf8(old_archive, caplog):
    source = data.FolderSource(old_archive, image_size=8)
    assert sorted(source.class_names) == sorted([r"Andr\xe9", r"Andr\xe9'", r"Andr\xe8", "Ann"])
    assert len(source) == 4 and source[0]["image"].shape == (8, 8, 3)
    "".join(source.class_names).encode()
    source.paths[0].write_bytes(b"rubbish")
    with pytest.raises(UserError, match="can be read any more"):
        source[0]
    caplog.text.encode()


def test_groups_are_listed_as_people_are(old_archive, faces_folder, tmp_path, closed, caplog):
    root = tmp_path / "groups"
    for name in ("one", os.fsdecode(b"tw\xf6")):
        shutil.copytree(faces_folder, root / name)
    training.open_workdir(copy_image(faces_folder, root / "runs" / "gabn").parent / "lrfr", RUN)
    shutil.copy(root / "runs" / "lrfr" / "config.json", root / "runs" / "gabn")
    (root / "runs" / "reproduce").mkdir()
    (root / "lost+found").mkdir()
    closed(root / "lost+found")
    with caplog.at_level(logging.WARNING, "jaxface.data"):
        source = data.load_all(data.GroupFolders(str(root)), image_size=8)
    assert source.group_names == ["one", r"tw\xf6"] and len(source) == 60
    assert sorted(message.partition(":")[0] for message in caplog.messages) == [
        f"left out {root / 'lost+found'}",
        f"left out {root / 'runs'}",
    ]
    copy_image(faces_folder, root / "runs" / "ann", "1.png")  # with photographs beside the runs it is a group
    with pytest.raises(UserError, match="at least two people"):
        data.load_all(data.GroupFolders(str(root)), image_size=8)
