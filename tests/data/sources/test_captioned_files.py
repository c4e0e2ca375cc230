"""Photographs with captions from a table."""

import cv2
import numpy as np
import pytest

from jaxface import data
from jaxface.data.transforms.text import caption_text
from jaxface.errors import UserError


def write(folder, lines, images=6):
    for i in range(images):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((10, 12, 3), 20 * i, np.uint8))
    (folder / "captions.tsv").write_text("\n".join(lines), encoding="utf-8")
    return data.CaptionedPhotographs(root=str(folder), held_out=0.3)


def test_every_photograph_has_its_captions(tmp_path):
    lines = [f"{i}.png\ta größer photo of number {i}, {k}" for i in range(6) for k in "ab"]
    split = data.load(write(tmp_path, [*lines, "no caption"]), image_size=8, seed=0)
    parts = split.train, split.held_out
    assert [len(part) for part in parts] == [8, 4] and split.train.skipped == 1
    assert not set(parts[0].record_names) & set(
        parts[1].record_names
    )  # both captions of a photograph are in one
    for part in parts:
        for i in range(len(part)):
            record, name = part[i], part.record_names[i]
            assert caption_text(record["caption"]) == part.captions[i]
            assert f"number {name[0]}" in part.captions[i] and "größer" in part.captions[i]
            assert record["image"].shape == (8, 8, 3) and record["image"][0, 0, 0] == 20 * int(name[0])


def test_a_photograph_that_cannot_be_read_gives_its_place_to_another_with_its_caption(tmp_path):
    spec = write(tmp_path, [f"{i}.png\tnumber {i}" for i in range(6)])
    split = data.load(spec, image_size=8, seed=0)
    name = split.train.record_names[0]
    (tmp_path / name).write_bytes(b"no image")
    record = data.load(spec, image_size=8, seed=0).train[0]
    assert (
        caption_text(record["caption"]) == f"number {record['image'][0, 0, 0] // 20}" != f"number {name[0]}"
    )


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["0.png\tone", "nothing"], "root: no two photographs, each with a path, a tab and a caption"),
        (["../0.png\tone", "1.png\ttwo"], "table: .* names an image outside of its folder"),
    ],
)
def test_a_table_that_says_nothing_or_leaves_its_folder_is_refused(tmp_path, lines, words):
    with pytest.raises(UserError, match=words):
        data.load(write(tmp_path, lines), image_size=8, seed=0)
