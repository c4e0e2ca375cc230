"""`jaxface detect`: photographs in, JSON and drawings out."""

import dataclasses
import io
import json
import pathlib

import numpy as np
import pytest
import red_square
from PIL import Image

from jaxface import inference
from jaxface.cli import main as cli
from jaxface.data import decode_image


@pytest.fixture
def photos(tmp_path):
    """A folder with a photograph, one that lies on its side, and a text; and a bundle that finds red."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    upright = red_square.photograph(96, 64, (24, 16, 56, 40))
    Image.fromarray(upright).save(folder / "a.png")
    lying, exif = Image.fromarray(np.rot90(upright)), Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    buffer = io.BytesIO()
    lying.save(buffer, "JPEG", quality=95, exif=exif)
    (folder / "more" / "a.jpg").write_bytes(buffer.getvalue())
    (folder / "b.png").write_text("no image")
    inference.save_bundle(tmp_path / "bundle", red_square.bundle())
    return folder


def detect(photos, *arguments):
    cli.main(
        [
            "detect",
            *map(str, arguments),
            "--detector",
            str(photos.parent / "bundle"),
            "--out",
            str(photos.parent / "out"),
        ]
    )
    return json.loads((photos.parent / "out" / "detections.json").read_text())


def test_boxes_points_and_scores_of_upright_photographs(photos, capsys):
    written = detect(photos, photos)
    said = capsys.readouterr()
    rows = {pathlib.Path(row["photo"]).relative_to(photos).as_posix(): row for row in written["photographs"]}
    assert list(rows) == ["a.png", "b.png", "more/a.jpg"]
    for name, drawing in (("a.png", "a.png"), ("more/a.jpg", "a-2.png")):
        row = rows[name]
        assert (row["width"], row["height"]) == (64, 96) and row["drawing"] == drawing
        (face,) = row["faces"]
        assert face["class"] == "face" and face["score"] > 0.9
        assert list(face["box"]) == ["left", "top", "right", "bottom"]
        np.testing.assert_allclose(list(face["box"].values()), [16, 24, 40, 56], atol=1)
        assert list(face["points"]) == ["left_eye", "right_eye", "nose", "left_mouth", "right_mouth"]
        np.testing.assert_allclose(list(face["points"].values()), [[16, 24]] * 5, atol=1)
        drawn, original = decode_image(photos.parent / "out" / drawing), decode_image(photos / name)
        changed = np.argwhere((drawn != original).any(axis=-1))
        assert drawn.shape == (96, 64, 3) and len(changed) > 20
    assert rows["b.png"]["error"] == "it is no JPEG, PNG, PPM, BMP or WebP image"
    assert said.err == f"skipped {photos / 'b.png'}: it is no JPEG, PNG, PPM, BMP or WebP image\n"
    assert said.out.startswith("2 faces in 2 photographs, 1 skipped: ")


def test_drawings_can_be_left_out(photos):
    (row,) = detect(photos, photos / "a.png", "--no-drawings")["photographs"]
    assert "drawing" not in row and len(row["faces"]) == 1
    assert [p.name for p in (photos.parent / "out").iterdir()] == ["detections.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["b.png", "none.png"], "none of 2 can be read"),
        (["empty"], "no image in the folder"),
        (["a.png", "--score", "2"], "score: needs a number from 0 to 1"),
        (["a.png", "--best"], "best: needs a run"),
        ([], "required: PHOTO"),
    ],
)
def test_mistakes_are_one_line(photos, monkeypatch, capsys, arguments, words):
    (photos / "empty").mkdir()
    monkeypatch.chdir(photos)
    with pytest.raises(SystemExit) as caught:
        detect(photos, *arguments)
    said = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and said[-1].startswith("error: ") and words in said[-1]
    assert all(line.startswith("skipped ") for line in said[:-1])


def test_json_is_all_that_is_printed(photos, capsys, monkeypatch):
    monkeypatch.chdir(photos)
    cli.main(["detect", "a.png", "--detector", str(photos.parent / "bundle"), "--json"])
    (row,) = json.loads(capsys.readouterr().out)["photographs"]
    assert row["photo"] == "a.png" and len(row["faces"]) == 1 and "drawing" not in row
    assert sorted(p.name for p in photos.iterdir()) == ["a.png", "b.png", "more"]


def test_a_run_without_a_detector_is_named(photos, capsys):
    with pytest.raises(SystemExit):
        cli.main(["detect", str(photos), "--detector", str(photos)])
    assert capsys.readouterr().err == (
        f"error: bundle: {photos} holds no bundle.json, and no run of a recognizer or a detector\n"
    )


def test_objects_have_their_class_in_the_document_and_on_the_drawing(photos, capsys, monkeypatch):
    from jaxface.data.transforms import drawing

    bundle = dataclasses.replace(red_square.bundle(), class_names=("red square",))
    inference.save_bundle(photos.parent / "bundle", bundle)
    written = []
    draw = drawing.draw_boxes
    monkeypatch.setattr(drawing, "draw_boxes", lambda *a, **k: written.append(k["labels"]) or draw(*a, **k))
    (row,) = detect(photos, photos / "a.png")["photographs"]
    assert "faces" not in row and row["objects"][0]["class"] == "red square"
    assert written == [["red square 0.90"]]
    assert capsys.readouterr().out.startswith("1 objects in 1 photographs: ")
