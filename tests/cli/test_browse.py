"""`jaxface browse`: a sheet and a report of data of any kind."""

import json

import numpy as np
import pytest

from jaxface import data
from jaxface.cli import main as cli
from jaxface.data.transforms.drawing import COLORS, Tile, contact_sheet
from jaxface.errors import UserError


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("ada", "bob"):
        for number in range(3):
            path = tmp_path / "people" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode_image(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)))
    (tmp_path / "people" / "bob" / "3.png").write_bytes(b"no image")
    (tmp_path / "people" / "bob" / "4.webm").write_bytes(b"no image")
    return tmp_path / "people"


def test_a_sheet_and_what_was_found(folder, capsys, tmp_path):
    cli.main(["browse", str(folder), "--out", str(tmp_path / "new" / "s.png"), "--side", "32"])
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "folder people: 7 images in 2 classes of 3 to 4",
        "  left out: 1 .webm",
        "  unreadable: 1 (cannot be read)",
        f"sheet: {tmp_path / 'new' / 's.png'}",
    ]
    assert said.err.startswith("unreadable: bob/3.png: ") and said.err.count("\n") == 1
    sheet = data.decode_image(tmp_path / "new" / "s.png")
    red = (sheet == COLORS[0]).all(axis=-1)
    assert red[: len(sheet) // 3].any()  # the damaged one is on the first line
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["s.png"]


def test_json_is_all_that_is_printed(folder, capsys, tmp_path):
    cli.main(["browse", str(folder), "--out", str(tmp_path / "s.jpg"), "--json"])
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert said.err == ""
    assert document["images"] == document["looked_at"] == 7 and document["classes"] == 2
    assert document["per_class"] == {"least": 3, "median": 3.5, "most": 4}
    assert document["counts"]["unreadable"] == 1 and sum(document["counts"].values()) == 1
    (finding,) = document["findings"]
    assert (finding["problem"], finding["image"], finding["class"]) == ("unreadable", "bob/3.png", "bob")


@pytest.mark.parametrize(
    ("arguments", "title", "images"),
    [
        (["--data", "digits"], "digits", 1797),
        (["--data", "folder", "--data.root", "FOLDER"], "folder people", 7),
        (["--data", "scenes", "--data.scenes", "4", "--data.people", "4"], "scenes 4", 4),
    ],
)
def test_any_kind_of_data(folder, capsys, tmp_path, arguments, title, images):
    arguments = [str(folder) if word == "FOLDER" else word for word in arguments]
    options = ["--limit", "40", "--classes", "2", "--per-class", "3", "--smallest", "8", "--json"]
    cli.main(["browse", *arguments, *options, "--out", str(tmp_path / "s.png")])
    document = json.loads(capsys.readouterr().out)
    assert document["source"] == title and document["images"] == images
    assert document["looked_at"] <= 40
    assert data.decode_image(tmp_path / "s.png").ndim == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "source: needs a path or --data KIND"),
        (["FOLDER", "--data", "digits"], "source: needs a path or --data KIND"),
        (["FOLDER", "--limt", "3"], "unrecognized arguments: --limt 3"),
        (["FOLDER", "--data.root", "x"], "data.root: needs --data KIND"),
        (["--data", "digits", "--data.rot", "x"], "--data.rot: no such option"),
        (["FOLDER", "--out", "s.txt"], "out: needs a name that ends in .png or .jpg"),
        (["FOLDER", "--limit", "0"], "limit: needs an integer from 1, got 0"),
        (["nowhere"], "source: no file or folder nowhere"),
        (["--data", "digit"], "did you mean 'digits'?"),
    ],
)
def test_mistakes_are_one_line(folder, monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(["browse", *(str(folder) if word == "FOLDER" else word for word in arguments)])
    said = capsys.readouterr()
    assert caught.value.code == 2 and words in said.err and said.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["people"]


def test_tiles_stand_where_they_should():
    white, black = np.full((20, 10, 1), 255, np.uint8), np.zeros((8, 8, 3), np.uint8)
    sheet = contact_sheet([("a title", [Tile(black), Tile(white, "x" * 99), Tile(None)])], side=16, columns=2)
    assert sheet.shape[1] == 2 * 22 + 6 and sheet.shape[0] == 13 + 18 + 2 * (16 + 13 + 6) + 6
    assert (sheet[31:47, 6:22] == 0).all()
    assert (sheet[31 + 35 + 8, 6 + 8] == COLORS[0]).all()  # the cross of the missing one, on the second line
    with pytest.raises(UserError, match=r"^rows: needs at least one"):
        contact_sheet([])
