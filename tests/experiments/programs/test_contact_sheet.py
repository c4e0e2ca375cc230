import json

import numpy as np
import pytest
import red_square
from PIL import Image

from experiments.programs import contact_sheet
from jaxface import inference


def test_sheets_hold_their_photographs_apart():
    photographs = [np.full((60, 40, 3), 10 * i + 5, np.uint8) for i in range(8)]
    sheet = contact_sheet.make_sheet(np.random.default_rng(0), photographs, size=(200, 300), sides=(30, 60))
    assert sheet.image.shape == (200, 300, 3) and 4 < len(sheet.places) <= 8
    covered = np.zeros((200, 300), int)
    for y0, x0, y1, x1 in sheet.places.astype(int):
        covered[y0:y1, x0:x1] += 1
        assert 30 <= y1 - y0 <= 60 and len(np.unique(sheet.image[y0:y1, x0:x1])) == 1
    assert covered.max() == 1


def test_found_missed_and_false():
    places = np.float32([[0, 0, 40, 40], [0, 100, 40, 140], [100, 0, 140, 40]])
    boxes = np.float32(
        [
            [5, 5, 35, 35],  # the first
            [6, 6, 36, 36],  # the first, again
            [0, 100, 14, 114],  # beside the middle of the second
            [115, 15, 125, 25],  # too small for the third
        ]
    )
    hit, false = contact_sheet.judge(boxes, places)
    assert hit.tolist() == [True, False, False] and false == 3


@pytest.fixture
def red(tmp_path):
    """Portraits that are a red square on gray, and a bundle that finds it where it is alone."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.fromarray(red_square.photograph(60, 60, (10, 10, 50, 50))).save(folder / "a.png")
    (folder / "b.png").write_text("no image")
    inference.save_bundle(tmp_path / "bundle", red_square.bundle())
    return folder


def test_the_program_reports_what_it_measures(red, tmp_path, capsys):
    out = tmp_path / "out"
    contact_sheet.main(f"{red} --detector {tmp_path / 'bundle'} --out {out} --sheets 2".split())
    report = json.loads((out / "results.json").read_text())["metrics"]
    assert report["faces"] == 2 and report["recall at 0.8"] == report["recall at 0.5"] == 1
    assert report["recall at 0.95"] == 0
    assert (out / "sheet-01.png").is_file()
    assert "skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--sheets 0", "sheets: needs an integer from 1"),
        ("--thresholds 2", "threshold: needs a number from 0 to 1"),
    ],
)
def test_mistakes_are_one_line(red, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit):
        contact_sheet.main(f"{red} --detector {tmp_path / 'bundle'} {flags}".split())
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: ") and words in said[-1]
