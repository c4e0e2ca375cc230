"""Paths that users give are read in one way: expanded, or refused in one line."""

import importlib.util
import os
import pathlib

import object_store  # noqa: F401, registers objects://
import pytest
from etils import epath

from jaxface.errors import UserError
from jaxface.paths import (
    absolute,
    as_os_error,
    file_size,
    is_remote,
    local_path,
    name_text,
    reaching,
    run_path,
    user_path,
)


@pytest.mark.parametrize(
    "text", ["runs/a", pathlib.Path("runs/a"), "/runs/a", ".", "C:/runs", "a:b/c", "a b"]
)
def test_paths_of_this_machine_are_as_given(text):
    assert local_path("workdir", text) == pathlib.Path(text)


@pytest.mark.parametrize("text", ["~/runs", pathlib.Path("~/runs")])
def test_home_is_expanded(text, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("workdir", text) == tmp_path / "runs"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "needs a path, got an empty one"),
        (" ", "needs a path, got an empty one"),
        ("gs://bucket/run", "needs a path of this machine, got 'gs://bucket/run'"),
        ("s3://bucket/run", "needs a path of this machine"),
        ("file:///runs/a", "needs a path of this machine"),
        ("/cns://bucket", "needs a path of this machine"),
        (pathlib.Path("gs://bucket/run"), "needs a path of this machine, got 'gs:/bucket/run'"),
        ("~nobody-of-this-name/runs", "no such user's home"),
    ],
)
def test_what_is_no_path_is_one_line(text, reason):
    with pytest.raises(UserError, match=rf"^workdir: {reason}") as raised:
        local_path("workdir", text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "needs a path, got an empty one"),
        (
            "ftp://host/run",
            "needs a path of this machine or an address from gs://, s3://, az:// or hf://, got 'ftp",
        ),
        (pathlib.Path("gs://bucket/run"), "needs a path of this machine, got 'gs:/bucket/run'"),
        ("~nobody-of-this-name/runs", "no such user's home"),
    ],
)
def test_what_nothing_opens_is_one_line(text, reason):
    with pytest.raises(UserError, match=rf"^workdir: {reason}") as raised:
        user_path("workdir", text)
    assert "\n" not in str(raised.value)


def test_addresses(monkeypatch):
    installed = {"gcsfs"}
    find = importlib.util.find_spec
    libraries = {"gcsfs", "s3fs", "adlfs", "huggingface_hub", "tensorflow"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name in installed if name in libraries else find(name)
    )
    path = user_path("workdir", "gs://bucket/runs/a")
    assert is_remote(path) and str(path / "b") == "gs://bucket/runs/a/b" == str(absolute(path / "b"))
    assert str(user_path("workdir", path)) == str(run_path("workdir", path)) == "gs://bucket/runs/a"
    with pytest.raises(
        UserError, match=r"^root: needs a path of this machine, or the package s3fs for 's3://"
    ):
        user_path("root", "s3://bucket/faces")
    installed.add("tensorflow")
    assert is_remote(user_path("root", "s3://bucket/faces"))
    assert str(user_path("root", "objects://bucket/faces/1.png")) == "objects://bucket/faces/1.png"


def test_a_path_of_this_machine_stays_one(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in ("runs/a", "~/runs", pathlib.Path("runs/a"), "C:/runs", epath.Path("runs/a")):
        path = user_path("workdir", text)
        assert isinstance(path, pathlib.Path) and not is_remote(path)
        assert path == local_path("workdir", text) and absolute(path) == path.absolute()
    (tmp_path / "file").write_bytes(b"123")
    assert file_size(tmp_path / "file") == 3


def test_what_is_elsewhere_and_cannot_be_reached_is_one_line():
    there = user_path("root", "objects://bucket/faces")
    for error, raised in (
        (RuntimeError("503 slow\nmore"), UserError),
        (FileNotFoundError(), FileNotFoundError),
    ):
        with pytest.raises(raised), reaching(there):
            raise error
    with (
        pytest.raises(UserError, match=r"^objects://bucket/faces cannot be reached: 503 slow$"),
        reaching(there),
    ):
        raise RuntimeError("503 slow\nmore")
    with pytest.raises(RuntimeError), reaching(pathlib.Path("faces")):
        raise RuntimeError("a mistake of ours")
    with pytest.raises(OSError, match="503 slow"), as_os_error():
        raise RuntimeError("503 slow\nmore")


def test_names_as_text():
    assert name_text(pathlib.Path("Zoë/नमस्ते.png")) == "Zoë/नमस्ते.png"
    name = os.fsdecode(b"foto \xb01, \xe9t\xe9.png")
    assert name_text(name) == r"foto \xb01, \xe9t\xe9.png" == name_text(pathlib.Path(name))


def test_a_run_needs_utf8(monkeypatch, tmp_path):
    assert run_path("run", "runs/Zoë") == pathlib.Path("runs/Zoë")
    folder = tmp_path / os.fsdecode(b"\xe9")
    with pytest.raises(UserError, match=r"^run: needs a path in UTF-8, got .*\\xe9/run$"):
        run_path("run", folder / "run")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"^run: needs a path in UTF-8"):
        run_path("run", "run")
