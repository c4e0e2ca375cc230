"""What a run says of its network serves for a bundle of it, which then stands for the run."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from experiments import evaluate, launch
from experiments.methods import cloak
from experiments.recipes import teachers
from experiments.recipes.recognition import pretrained
from jaxface import inference, training
from jaxface.errors import UserError


def test_a_bundle_of_a_run_stands_for_it(finished, photographs, tmp_path):
    run = inference.open_recognizer(finished)
    assert run.flip and run.alignment == "arcface" and run.origin == "trained on rendered 8x4"
    inference.save_bundle(tmp_path / "bundle", run)
    metrics = []
    for place in (finished, tmp_path / "bundle"):
        out = tmp_path / "out"
        evaluate.main(f"{place} --data folder --data.root {photographs} --out {out}".split())
        metrics.append(json.loads((out / "results.json").read_text())["metrics"])
    assert metrics[0] == metrics[1]
    recognizer = training.Recognizer(run.module, 5, run.image_shape)
    backbone, extra = pretrained(str(tmp_path / "bundle"), recognizer)
    jax.tree.map(np.testing.assert_array_equal, {"params": backbone, **extra}, dict(run.variables))


def test_its_threshold_is_that_of_the_evaluation_of_its_checkpoint(finished):
    results = json.loads((finished / "results.json").read_text())["metrics"]
    threshold = inference.open_recognizer(finished).threshold
    resolved = [far for far in ("1e-3", "1e-2", "1e-1") if f"verification/threshold@{far}" in results]
    assert threshold.value == results[f"verification/threshold@{resolved[0]}"]
    assert threshold.far == float(resolved[0]) and "held-out people" in threshold.set


def test_a_network_of_other_pixels_is_not_trained_on(finished, tmp_path):
    run = inference.open_recognizer(finished)
    inference.save_bundle(tmp_path / "bgr", dataclasses.replace(run, color="bgr"))
    with pytest.raises(UserError, match="init_from: needs a network of RGB"):
        pretrained(str(tmp_path / "bgr"), training.Recognizer(run.module, 5, run.image_shape))


def test_a_network_that_is_given_starts_from_nothing():
    with pytest.raises(UserError, match=r"^init_from: .*; with surrogate there is none$"):
        cloak.surrogate_stage(cloak.Config(surrogate="runs/a", init_from="runs/b"), None)
    with pytest.raises(UserError, match=r"^init_from: .*; with teacher.run there is none$"):
        teachers.teacher_stage(cloak.Config(), teachers.TeacherSpec(run="runs/a"), None, init_from="runs/b")


def test_a_network_of_a_finished_run_starts_from_nothing(refusal, finished, tiny, tmp_path):
    flags = ["--run", finished, "--init-from", finished, "--workdir", tmp_path / "run"]
    line = refusal(launch.main, ["ida", *tiny, *flags])
    assert line == "init_from: needs a network that the run trains; with run there is none"


def test_another_network_is_named_by_its_first_tensor(refusal, finished, tiny, tmp_path):
    flags = [*tiny, "--embedding", "8", "--init-from", finished, "--workdir", tmp_path / "run"]
    line = refusal(launch.main, ["sface", *flags])
    assert re.match(
        r"init_from: .*another network: backbone/\S+ is \(.*16.*\) there and \(.*8.*\) here", line
    )
