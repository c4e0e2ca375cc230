"""Files of landmarks: each way to write them, and each way to write them wrongly."""

import json
import pathlib

import numpy as np
import pytest

from jaxface.cli.landmarks import Landmarks
from jaxface.errors import UserError

FACE = [[10, 20], [30, 20], [20, 30], [12, 40], [28, 40]]
OTHER = [[x + 5, y] for x, y in FACE]
NAMES = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")


def of(file, photo="a.jpg"):
    return Landmarks(file).of(pathlib.Path(photo), 100, 100).tolist()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("f.json", json.dumps({"a.jpg": FACE}), [FACE]),
        ("f.json", json.dumps({"a.jpg": [FACE, OTHER]}), [FACE, OTHER]),
        ("f.json", json.dumps({"a.jpg": []}), []),
        (
            "detections.json",
            json.dumps(
                {
                    "photographs": [
                        {"photo": "in/a.jpg", "faces": [{"points": dict(zip(NAMES, FACE, strict=True))}]}
                    ]
                }
            ),
            [FACE],
        ),
        ("f.csv", "a.jpg," + ",".join(str(x) for p in FACE for x in p), [FACE]),
        (
            "f.csv",
            "photo,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\n\n"
            + "\n".join("a.jpg," + ",".join(str(x) for p in face for x in p) for face in (FACE, OTHER)),
            [FACE, OTHER],
        ),
    ],
)
def test_every_way_to_write_them(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    assert of(tmp_path / name, "in/a.jpg") == expected


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("f.json", "{", "cannot be read as JSON"),
        ("f.json", "[1]", "needs a JSON object of photographs"),
        ("f.json", json.dumps({"b.jpg": FACE}), "has none of a.jpg"),
        ("f.json", json.dumps({"a.jpg": FACE[:4]}), "needs five (x, y)"),
        ("f.json", json.dumps({"a.jpg": [[1, 1]] * 5}), "finite and different"),
        ("f.json", '{"a.jpg": [[1, NaN], [2, 2], [3, 3], [4, 4], [5, 5]]}', "finite and different"),
        ("f.json", json.dumps({"a.jpg": "left"}), "needs five (x, y)"),
        (
            "f.json",
            json.dumps({"a.jpg": [[x * 100, y] for x, y in FACE]}),
            "lie outside of its 100 x 100 pixels",
        ),
        ("f.json", json.dumps({"photographs": [{"faces": []}]}), "needs a photo in each"),
        ("f.json", json.dumps({"photographs": [{"photo": "a.jpg", "faces": [{}]}]}), "needs five (x, y)"),
        ("f.csv", "a.jpg,1,2", "ten numbers on line 1, got 3 fields"),
        ("f.csv", "a.jpg," + ",".join("abcdefghij"), "needs numbers on line 1"),
    ],
)
def test_every_way_to_write_them_wrongly(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        of(tmp_path / name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"landmarks: .* cannot be read"):
        Landmarks(tmp_path / "none.json")
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfea")
    with pytest.raises(UserError, match="cannot be read"):
        Landmarks(tmp_path / "latin.csv")
    assert np.shape(FACE) == (5, 2)
