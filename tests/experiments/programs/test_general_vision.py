"""GV-B's table from the command line."""

import re

import numpy as np
import pytest
from PIL import Image

from experiments.programs import general_vision
from jaxface.data.sources.dense_folders import DenseFolders
from jaxface.data.sources.gvb_sets import GVB_SETS
from jaxface.errors import UserError


def test_the_benchmark_has_26_sets():
    by_task = {
        task: [s for s in GVB_SETS if s.task == task]
        for task in ("classification", "detection", "segmentation", "depth")
    }
    assert [len(sets) for sets in by_task.values()] == [20, 3, 1, 2]
    classes = [10, 100, 101, 37, 102, 397, 196, 47, 102, 100, 10, 10, 45, 5, 7, 101, 43, 2, 1000, 700]
    assert [s.classes for s in by_task["classification"]] == classes
    means = {s.name for s in GVB_SETS if s.metric == "mean_class_accuracy"}
    assert means == {"pets", "flowers", "caltech", "aircraft"}
    assert {s.name: s.metric for s in GVB_SETS if s.task in ("detection", "depth")} == {
        "voc07+12": "ap50", "wider_face": "wider_ap", "citypersons": "miss_rate", "kitti": "rmse", "nyu": "rmse",
    }  # fmt: skip
    assert all(s.missing for s in GVB_SETS if s.route == "folder")


def test_the_table_of_random_networks(capsys):
    tasks = ["--tasks", "digits", "squares", "--scenes", "60", "--fraction", "0.5"]
    general_vision.main(["plain_stages_small", "mlp_8", *tasks, "--size", "16", "--steps", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| backbone | classification | digits (accuracy) | squares (mean_class_accuracy) |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| plain_stages_small, random", "| mlp_8, random"]


def test_the_list(capsys):
    general_vision.main(["--list"])
    assert "citypersons" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "backbones: needs at least one"),
        ("mlp_8 --sets cifar11", "sets: 'cifar11' is none of the benchmark's"),
        ("mlp_8 --sets kitti --root nowhere", "root: cannot read"),
        ("mlp_8 --sets fer2013 --root nowhere", "root: .*fer2013 is no folder, and fer2013 is not in TFDS"),
        ("nothing_there", "backbones: needs networks, runs or bundles, got 'nothing_there'"),
        ("mlp_8 --fraction 0", "gvb.fraction: needs"),
    ],
)
def test_refusals(refusal, arguments, words):
    assert re.match(words, refusal(general_vision.main, arguments.split()))


def pair(folder, name, labels):
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((30, 40, 3), 99, np.uint8)).save(folder / "images" / f"{name}.png")
    Image.fromarray(labels).save(folder / "labels" / f"{name}.png")


def test_pixels_and_depth_of_folders(tmp_path):
    classes = np.zeros((30, 40), np.uint8)
    classes[:, 20:] = 255
    pair(tmp_path / "seg" / "train", "a", classes)
    record = DenseFolders(str(tmp_path / "seg"), "train", "pixels", image_size=16)[0]
    assert record["image"].shape == (16, 16, 3) and set(np.unique(record["pixel_label"])) == {0, 255}
    assert (record["pixel_label"][:, :8] == 0).all() and (record["pixel_label"][:, 8:] == 255).all()
    pair(tmp_path / "far" / "train", "a", np.full((30, 40), 1500, np.uint16))
    record = DenseFolders(str(tmp_path / "far"), "train", "depth", image_size=16)[0]
    np.testing.assert_allclose(record["depth"], 1.5, rtol=1e-5)
    (tmp_path / "seg" / "train" / "labels" / "a.png").unlink()
    with pytest.raises(UserError, match=r"has none for a\.png"):
        DenseFolders(str(tmp_path / "seg"), "train", "pixels", image_size=16)
