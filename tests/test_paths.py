"""Paths that users give are read in one way: expanded, or refused in one line."""

import os
import pathlib

import pytest

from jaxface.errors import UserError
from jaxface.paths import local_path, name_text, run_path


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
