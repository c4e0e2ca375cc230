"""The services that track runs: the real libraries without a network, and that none of them can harm a run."""

import ast
import json
import pathlib
import struct
import threading
import time

import numpy as np
import pytest
import toy
from test_loop import CADENCE, equal

from jaxface import training
from jaxface.errors import UserError
from jaxface.training import figures
from jaxface.training.writers import WRITERS, Tracking, base

CONFIG = {"method": "toy", "steps": 11}


def curve(state):
    return {"curve": lambda path: figures.save_training_curves({"loss": (np.arange(3), np.arange(3))}, path)}


def stage():
    return training.Stage(**{**vars(toy.stage(steps=11)), "figures": curve})


def train(workdir, *writers, stages=None, name="mine", **options):
    tracking = Tracking(writers, "faces", name, CONFIG) if writers else None
    return training.run(
        stages or [stage()],
        cadence=CADENCE,
        workdir=workdir,
        parallel=toy.parallel(2),
        tracking=tracking,
        **options,
    )


def reported_twice(workdir, *writers):
    """What a run reports that ends after step 6 and is resumed from a checkpoint of step 5."""
    tracking = Tracking(writers, "faces", "mine", CONFIG)
    lengths = {}
    for steps in (range(1, 7), range(6, 9)):
        records = training.Records(workdir, tracking)
        records.resume_at(lengths.get(5, 0))
        for step in steps:
            records.write("toy", step, "train", {"loss": 1 / step})
            lengths[step] = records.sync()
        if step == 8:
            records.figure("toy/curve", curve(None)["curve"], 8)
        records.close(finished=step == 8)
    lines = training.read_records(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [*range(1, 9)]
    return {line["step"]: line["loss"] for line in lines}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wanted = reported_twice(tmp_path, "wandb")
    run_id = json.loads((tmp_path / base.IDS).read_text())["wandb"]
    files = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2  # of one run, which the service joins
    records = [list(_wandb_records(file)) for file in files]
    for part in records:
        (started,) = (record.run for record in part if record.WhichOneof("record_type") == "run")
        assert (started.project, started.display_name, started.run_id) == ("faces", "mine", run_id)
        config = {item.key: json.loads(item.value_json) for item in started.config.update}
        assert config.items() >= CONFIG.items()
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for part in records
        for record in part
        if record.WhichOneof("record_type") == "history"
    ]
    losses = {int(row["step"]): float(row["toy/train/loss"]) for row in rows if "toy/train/loss" in row}
    assert losses == wanted
    assert [row["step"] for row in rows if any(name.startswith("toy/curve") for name in row)] == ["8"]
    assert list(tmp_path.glob("wandb/*/files/media/images/toy/curve*.png"))


def _wandb_records(file):
    """The records of an offline run: LevelDB's log, blocks of 32 KiB behind a header of 7 bytes, parts as first, middle, last."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole_record = file.read_bytes(), 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole_record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole_record)
            yield record
            whole_record = b""


@pytest.mark.slow
def test_mlflow_in_files(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "run").mkdir()
    wanted = reported_twice(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("faces").experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "run" / base.IDS).read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "toy/train/loss")
    assert {metric.step: metric.value for metric in history} == wanted
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    client.download_artifacts(run.info.run_id, "config.json", artifacts)
    assert json.loads((artifacts / "config.json").read_text()) == CONFIG
    assert "curve.png" in [file.path for file in client.list_artifacts(run.info.run_id)]


def test_names_that_mlflow_does_not_take():
    from jaxface.training.writers import mlflow_tracking

    assert mlflow_tracking._name("toy/evaluate/tar@far=1e-3 é") == "toy/evaluate/tar_far_1e-3 _"


class _Broken:
    package = ("pytest", "pytest")
    id = "7"
    fails = "open"

    def __init__(self, tracking, folder, run_id):
        self._do("open")

    def _do(self, what):
        if what == self.fails:
            raise SystemExit("quota\nexceeded")

    def scalars(self, values, step):
        self._do("scalars")

    def figure(self, name, path, step):
        self._do("figure")

    def close(self, finished):
        self._do("close")


@pytest.fixture
def broken(monkeypatch):
    WRITERS.names()
    monkeypatch.setitem(WRITERS._entries, "broken", _Broken)
    return _Broken


@pytest.mark.parametrize("where", ["open", "scalars", "figure", "close"])
def test_a_writer_that_fails_harms_nothing_and_is_said_once(
    whole, tmp_path, caplog, broken, monkeypatch, where
):
    monkeypatch.setattr(broken, "fails", where)
    outcome = train(tmp_path, "broken") if where == "figure" else _report(tmp_path)
    said = [record.message for record in caplog.records if "broken" in record.message]
    assert said == ["writer broken: SystemExit: quota exceeded; the run goes on without it"]
    if outcome is not None:
        equal(outcome.state, whole[1].state)
        assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


def _report(workdir):
    records = training.Records(workdir, Tracking(["broken"]))
    for step in range(1, 4):
        records.write("toy", step, "train", {"loss": 1.0})
    records.close()
    assert len(training.read_records(workdir / "metrics.jsonl")) == 3


def test_a_writer_that_hangs_is_left_behind(tmp_path, caplog, broken, monkeypatch):
    forever = threading.Event()
    monkeypatch.setattr(broken, "_do", lambda self, what: forever.wait())
    monkeypatch.setattr(base, "PATIENCE", 0.2)
    monkeypatch.setattr(base, "_MOST_WAITING", 2)
    start = time.monotonic()
    _report(tmp_path)
    assert time.monotonic() - start < 5
    assert caplog.text.count("the run goes on without it") == 1
    forever.set()


def test_a_run_that_was_finished_tells_nobody(whole, broken, monkeypatch, caplog):
    opened = []
    monkeypatch.setattr(broken, "__init__", lambda *_: opened.append(1))
    train(whole[0], "broken")
    assert not opened and not (whole[0] / base.IDS).exists()


def test_refusals(monkeypatch, tmp_path):
    for tracking, said in (
        (
            Tracking(["wandbb"]),
            r"^writers: needs one of mlflow, wandb, got 'wandbb'; did you mean 'wandb'\?$",
        ),
        (Tracking(["wandb", "wandb"]), r"^writers: needs each name once, got wandb wandb$"),
        (Tracking(["wandb"], project=" "), r"^project: needs a name, got an empty one$"),
    ):
        with pytest.raises(UserError, match=said):
            training.run([toy.stage()], workdir=tmp_path / "run", tracking=tracking)
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r"^writers: 'mlflow' needs the package mlflow-skinny: pip install 'jaxface"
    ):
        training.run([toy.stage()], workdir=tmp_path / "run", tracking=Tracking(["mlflow"]))
    assert not list(tmp_path.iterdir())


def test_the_libraries_are_imported_where_they_are_used():
    for file in pathlib.Path(base.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text()).body:  # what runs on import, not what is in a function
            names = [alias.name for alias in getattr(node, "names", [])] + [getattr(node, "module", "")]
            assert not any(str(name).split(".")[0] in ("wandb", "mlflow") for name in names), file
