import dataclasses
import json
import types

import numpy as np
import pytest

from experiments import configs
from experiments.programs import real_faces
from jaxface import data, inference, metrics, training

ROWS = list(real_faces.ROWS)


@pytest.fixture
def short(monkeypatch):
    """Fine-tuning of three steps, and what it was asked for."""
    asked = []
    plan = real_faces.fine_tuning

    def fine_tuning(*arguments):
        tuned = dataclasses.replace(plan(*arguments), steps=3)
        asked.append(tuned)
        return tuned

    monkeypatch.setattr(real_faces, "fine_tuning", fine_tuning)
    return asked


def test_end_to_end(short, finished, photographs, tmp_path, capsys):
    workdir = tmp_path / "out"
    real_faces.main(["--run", str(finished), "--faces", str(photographs), "--workdir", str(workdir)])
    written = json.loads((workdir / "real_faces.json").read_text())
    table = written["rows"]
    assert list(table) == ROWS and written["splits"] == 1 and written["gains"] == {}
    for row in table.values():
        assert {"verification/accuracy", "verification/auc", "verification/eer"} <= row.keys()
        assert set(row) <= set(real_faces.REPORTED)
        assert all(0 <= value <= 1 for value in row.values())
    shown = capsys.readouterr().out
    assert all(name in shown for name in ROWS)

    assert [config.init_from for config in short] == [str(finished), None] * 2
    short = short[::2]
    halves = [data.load(config.data, image_size=16, seed=config.data_seed) for config in short]
    tested = [set(half.held_out.class_names) for half in halves]
    trained = [set(half.train.class_names) for half in halves]
    assert [config.data.swap for config in short] == [False, True]
    assert tested[0].isdisjoint(tested[1]) and tested[0] | tested[1] == {f"s{i}" for i in range(6)}
    assert trained == tested[::-1]
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
    assert table["fine-tuned"] != table["rendered only"] and table["from scratch"] != table["fine-tuned"]

    # Networks are kept as runs, and the same command resumes from them.
    for half in (0, 1):
        for name in ("fine-tuned", "from-scratch"):
            assert (workdir / f"split-0-half-{half}-{name}" / "results.json").is_file()
    before = (workdir / "real_faces.json").read_bytes()
    real_faces.main(["--run", str(finished), "--faces", str(photographs), "--workdir", str(workdir)])
    assert (workdir / "real_faces.json").read_bytes() == before


def test_several_splits_are_paired(short, finished, photographs, tmp_path, monkeypatch):
    """Four splits into halves with a stand-in for training: the gain is Student's interval over the splits."""
    bundle, plans = inference.open_recognizer(finished), []

    def launch(method, plan, run):
        plans.append(plan)
        state = types.SimpleNamespace(averaged_params={"backbone": bundle.variables["params"]}, extra={})
        return types.SimpleNamespace(state=state)

    # Fine-tuned networks are as good as 0.8 + 0.01 split, those from scratch always 0.7.
    def verify(embeddings, labels, pairs):
        trained = embeddings is not None and len(plans) and embeddings.shape[1] != 256
        value = 0.7 if not trained or plans[-1].init_from is None else 0.8 + 0.01 * plans[-1].data_seed
        return dict.fromkeys(real_faces.REPORTED, value)

    monkeypatch.setattr(real_faces, "launch", launch)
    monkeypatch.setattr(real_faces.metrics, "verify", verify)
    monkeypatch.setattr(real_faces.training, "embed_source", lambda *_: np.ones((12, 8)))
    result = real_faces.real_faces(finished, data.Folder(root=str(photographs)), tmp_path, splits=4)
    assert [plan.data_seed for plan in plans] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert [plan.init_from is None for plan in plans] == [False, True] * 8
    assert all(plan.steps == 3 for plan in plans)
    _, config, _ = configs.from_dict(training.read_config(finished))
    assert all(plan.optimizer == config.optimizer for plan in plans)
    gains = np.array([0.1, 0.11, 0.12, 0.13])
    half = 3.182446 * gains.std(ddof=1) / 2
    for key in real_faces.REPORTED:
        assert result.gains[key] == pytest.approx((0.115, 0.115 - half, 0.115 + half))
        assert result.rows["from scratch"][key] == pytest.approx(0.7)


def test_fine_tuning_keeps_the_network(finished, photographs):
    _, config, _ = configs.from_dict(training.read_config(finished))
    tuned = real_faces.fine_tuning(config, "there", data.Folder(root=str(photographs)), 1000)
    for name in ("backbone", "embedding", "image_size", "loss", "seed", "optimizer"):
        assert getattr(tuned, name) == getattr(config, name)
    assert tuned.batch_size == 32 and tuned.accumulate == 1
    assert tuned.init_from == "there" and tuned.augment != config.augment
    assert tuned.steps == 150
    assert real_faces.fine_tuning(config, None, data.Folder(root=str(photographs)), 1000, 7).steps == 7


def test_pixels_as_embeddings(photographs):
    source = data.FolderSource(photographs, image_size=16)
    embeddings = real_faces.pixel_baseline(source)
    assert embeddings.shape == (24, 256)
    np.testing.assert_allclose(embeddings.mean(axis=1), 0, atol=1e-3)
    gray = source[3]["image"].astype(float).mean(-1)
    np.testing.assert_allclose(embeddings[3].reshape(16, 16), gray - gray.mean(), atol=1e-3)


def test_centering_takes_the_common_direction_away():
    rng = np.random.default_rng(0)
    common = np.array([5.0, 0.0, 0.0, 0.0])
    one, other = rng.normal(size=(2, 400, 4)) + common
    moved = real_faces.centered(3 * one, other)
    np.testing.assert_allclose(
        moved,
        one / np.linalg.norm(one, axis=1)[:, None] - (other / np.linalg.norm(other, axis=1)[:, None]).mean(0),
    )
    assert (
        np.linalg.norm(moved.mean(0)) < 0.05 < 0.9 < (one / np.linalg.norm(one, axis=1)[:, None]).mean(0)[0]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "required: --run, --faces"),
        ("--run {tmp} --faces {people}", "holds no bundle.json, and no run"),
        ("--run {finished} --faces {tmp}/nowhere", "nowhere: No such file or directory"),
        ("--run {finished} --faces {tmp}", "no image in"),
        ("--run {finished} --faces {people} --splits 0", "splits: needs"),
        ("--run {finished} --faces {people} --steps 0", "steps: needs"),
    ],
)
def test_bad_input_is_one_line_before_any_compile(
    refusal, monkeypatch, tmp_path, finished, photographs, arguments, words
):
    monkeypatch.setattr(real_faces, "launch", lambda *_: pytest.fail("the run was started"))
    places = dict(tmp=tmp_path, finished=finished, people=photographs)
    assert words in refusal(real_faces.main, [word.format(**places) for word in arguments.split()])
