import dataclasses
import json

import numpy as np
import pytest

from experiments import configs
from experiments.programs import real_faces
from jaxface import data, inference, metrics, training

ROWS = ["pixels", "rendered only", "fine-tuned"]


@pytest.fixture
def short(monkeypatch):
    """Fine-tuning of three steps, and what it was asked for."""
    asked = []
    plan = real_faces.fine_tuning

    def fine_tuning(*arguments):
        tuned = plan(*arguments)
        asked.append(tuned)
        return dataclasses.replace(tuned, steps=3)

    monkeypatch.setattr(real_faces, "fine_tuning", fine_tuning)
    return asked


def test_end_to_end(short, finished, photographs, tmp_path, capsys):
    workdir = tmp_path / "out"
    real_faces.main(["--run", str(finished), "--faces", str(photographs), "--workdir", str(workdir)])
    table = json.loads((workdir / "real_faces.json").read_text())
    assert list(table) == ROWS
    for row in table.values():
        assert {"verification/accuracy", "verification/auc", "verification/eer"} <= row.keys()
        assert set(row) <= set(real_faces.REPORTED)
        assert all(0 <= value <= 1 for value in row.values())
    shown = capsys.readouterr().out
    assert all(name in shown for name in ROWS)

    halves = [data.load(config.data, image_size=16, seed=config.data_seed) for config in short]
    tested = [set(half.held_out.class_names) for half in halves]
    trained = [set(half.train.class_names) for half in halves]
    assert [config.data.swap for config in short] == [False, True]
    assert tested[0].isdisjoint(tested[1]) and tested[0] | tested[1] == {f"s{i}" for i in range(6)}
    assert trained == tested[::-1]
    assert all(config.init_from == str(finished) for config in short)
    assert [len(half.train) for half in halves] == [12, 12]  # too few for a batch of 32 on 8 devices
    assert [config.batch_size for config in short] == [8, 8]

    # The row of the network as it was is the mean of two direct evaluations, over all pairs.
    bundle = inference.open_recognizer(finished)
    reports = [
        metrics.verify(bundle.embed_source(half.held_out, flip=True), half.held_out.labels, pairs="all")
        for half in halves
    ]
    for key, value in table["rendered only"].items():
        assert value == pytest.approx(np.mean([report[key] for report in reports]))
    assert table["fine-tuned"] != table["rendered only"]

    # Fine-tuned networks are kept as runs, and the same command resumes from them.
    for name in ("half-0", "half-1"):
        assert (workdir / name / "results.json").is_file()
    before = (workdir / "real_faces.json").read_bytes()
    real_faces.main(["--run", str(finished), "--faces", str(photographs), "--workdir", str(workdir)])
    assert (workdir / "real_faces.json").read_bytes() == before


def test_fine_tuning_keeps_the_network(finished, photographs):
    _, config, _ = configs.from_dict(training.read_config(finished))
    tuned = real_faces.fine_tuning(config, "there", data.Folder(root=str(photographs)), 1000)
    for name in ("backbone", "embedding", "image_size", "loss", "seed"):
        assert getattr(tuned, name) == getattr(config, name)
    assert tuned.batch_size == 32 and tuned.accumulate == 1
    assert tuned.init_from == "there" and tuned.optimizer.learning_rate < training.Optimizer().learning_rate


def test_pixels_as_embeddings(photographs):
    source = data.FolderSource(photographs, image_size=16)
    embeddings = real_faces.pixel_baseline(source)
    assert embeddings.shape == (24, 256)
    np.testing.assert_allclose(embeddings.mean(axis=1), 0, atol=1e-3)
    gray = source[3]["image"].astype(float).mean(-1)
    np.testing.assert_allclose(embeddings[3].reshape(16, 16), gray - gray.mean(), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "required: --run, --faces"),
        ("--run {tmp} --faces {people}", "holds no bundle.json, and no run"),
        ("--run {finished} --faces {tmp}/nowhere", "nowhere: No such file or directory"),
        ("--run {finished} --faces {tmp}", "no image in"),
    ],
)
def test_bad_input_is_one_line_before_any_compile(
    refusal, monkeypatch, tmp_path, finished, photographs, arguments, words
):
    monkeypatch.setattr(real_faces, "launch", lambda *_: pytest.fail("the run was started"))
    places = dict(tmp=tmp_path, finished=finished, people=photographs)
    assert words in refusal(real_faces.main, [word.format(**places) for word in arguments.split()])
