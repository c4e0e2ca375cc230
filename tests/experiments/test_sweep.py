import json

import pytest

from experiments import configs, launch, sweep
from jaxface import training
from jaxface.errors import UserError


@pytest.fixture
def launched(monkeypatch):
    """The launcher without its training: what it was called with."""
    calls = []

    def launching(method, config, run):
        calls.append((config.embedding, config.seed))
        if (config.embedding, config.seed) == (4, 1) and len(calls) <= 4:
            raise RuntimeError("out of memory\nat some place")
        workdir = training.open_workdir(run.workdir, configs.to_dict(method, config, run))
        score = config.embedding / 16 + config.seed / 100
        metrics = {"verification/eer": score / 2, "verification/accuracy": score}
        results = {"metrics": metrics, "best": "verification/accuracy"}
        (workdir / launch.RESULTS).write_text(json.dumps(results))
        return training.Outcome("recognition", None, **results)

    monkeypatch.setattr(launch, "launch", launching)
    monkeypatch.setattr(launch, "prepare", lambda *_: None)
    return calls


@pytest.mark.slow
def test_the_runs_are_those_of_the_launcher(tiny, tmp_path):
    sweep.main(["sface", "--grid", "embedding=8,4", "--workdir", str(tmp_path / "sweep"), *tiny])
    launch.main(["sface", *tiny, "--embedding", "4", "--workdir", str(tmp_path / "alone")])
    for name in ("metrics.jsonl", "results.json", "config.json"):
        same = (tmp_path / "sweep/embedding=4" / name, tmp_path / "alone" / name)
        assert same[0].read_bytes() == same[1].read_bytes(), name
    compared = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert compared["metric"] == "verification/accuracy" and len(compared["rows"]) == 2


def test_every_combination_is_a_run_and_the_table_has_the_best_first(launched, tiny, tmp_path, capsys):
    command = ["sface", "--grid", "embedding=8,4", "--seeds", "0", "1", "--workdir", str(tmp_path), *tiny]
    sweep.main(command)
    assert launched == [(8, 0), (8, 1), (4, 0), (4, 1)]
    compared = json.loads((tmp_path / "sweep.json").read_text())
    assert (compared["method"], compared["metric"]) == ("sface", "verification/accuracy")
    rows = {row["combination"]["embedding"]: row for row in compared["rows"]}
    assert [len(row["runs"]) for row in rows.values()] == [2, 2]
    assert rows["4"]["finished"] == 1 and rows["4"]["half_interval"] is None
    assert rows["4"]["runs"][1]["error"] == "RuntimeError: out of memory"
    for row in rows.values():
        for one in row["runs"]:
            if "metrics" in one:
                written = json.loads((tmp_path / one["folder"] / "results.json").read_text())
                assert written["metrics"] == one["metrics"]
    values = [one["metrics"]["verification/accuracy"] for one in rows["8"]["runs"]]
    assert rows["8"]["mean"] == pytest.approx(sum(values) / 2)
    means = [row["mean"] for row in compared["rows"]]
    assert means == sorted(means, reverse=True)
    table = (tmp_path / "sweep.md").read_text()
    assert table in capsys.readouterr().out
    assert table.splitlines()[0] == "| embedding | verification/accuracy (95 % interval) | runs |"
    assert "1 of 2 failed: RuntimeError: out of memory" in table and "2 of 2" in table

    # Again: only what failed runs again, and nothing else is built.
    sweep.main([*command, "--metric", "verification/eer", "--smallest"])
    assert launched[4:] == [(4, 1)]
    compared = json.loads((tmp_path / "sweep.json").read_text())
    assert all(row["finished"] == 2 and row["half_interval"] >= 0 for row in compared["rows"])
    means = [row["mean"] for row in compared["rows"]]
    assert means == sorted(means) and compared["smallest"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        sweep.main([*command, "--metric", "verification/accurac"])
    assert "did you mean 'verification/accuracy'?" in capsys.readouterr().err


def test_an_interrupted_sweep_stops_and_resumes(launched, tiny, tmp_path, monkeypatch):
    launching = launch.launch

    def interrupted(method, config, run):
        if config.embedding == 4:
            raise training.Interrupted(130)
        return launching(method, config, run)

    command = ["sface", "--grid", "embedding=8,4", "--workdir", str(tmp_path), *tiny]
    with monkeypatch.context() as patch:
        patch.setattr(launch, "launch", interrupted)
        with pytest.raises(training.Interrupted):
            sweep.main(command)
    assert launched == [(8, 0)] and not (tmp_path / "sweep.json").exists()
    sweep.main(command)
    assert launched == [(8, 0), (4, 0)] and (tmp_path / "sweep.md").exists()


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("embeding=4,8", "grid: embeding=4: --embeding: no such option; did you mean '--embedding'?"),
        ("steps=x,2", "grid: steps=x: "),
        pytest.param(
            "steps=2 backbone=mlp,mlpp", "grid: steps=2 backbone=mlpp: model: needs", marks=pytest.mark.slow
        ),
        ("batch-size=16,7", "grid: batch-size=7: batch_size: "),
        ("bfloat16=maybe,true", "grid: bfloat16 needs true or false, got 'maybe'"),
        ("steps=2,,3", "grid: needs FIELD=VALUE,VALUE…, got 'steps=2,,3'"),
        ("steps", "grid: needs FIELD=VALUE,VALUE…, got 'steps'"),
        ("steps=2 steps=3", "grid: needs each field once, got steps twice"),
        ("steps=2,2", "grid: needs each value of steps once, got 2,2"),
        ("workdir=a,b", "grid: workdir is the same for all runs"),
    ],
)
def test_a_mistake_is_one_line_before_the_first_run(refusal, tiny, tmp_path, grid, said):
    line = refusal(sweep.main, ["sface", "--grid", *grid.split(" "), "--workdir", tmp_path / "s", *tiny])
    assert line.startswith(said)
    assert not list(tmp_path.iterdir())


def test_words_become_flags():
    combinations = sweep.parse_grid(["optimizer.learning_rate=0.1,1e-2", "bfloat16=true"])
    assert combinations == [
        {"optimizer.learning-rate": "0.1", "bfloat16": "true"},
        {"optimizer.learning-rate": "1e-2", "bfloat16": "true"},
    ]
    default = (configs.method_module("cassod").Config(), configs.Run())
    flags = sweep._flags({"bfloat16": "False", "anchor-sizes": "13 19", "cadence.keep": "3"}, default)
    assert flags == ["--no-bfloat16", "--anchor-sizes", "13", "19", "--cadence.keep", "3"]
    assert sweep._flags(
        {"data.strict": "true"}, (type("C", (), {"data": type("D", (), {"strict": False})}),)
    ) == ["--data.strict"]


def test_folders_tell_combinations_apart():
    names = [sweep.folder_name({"data.root": text}) for text in ("a/b", "a_b", "a b", "x" * 300, "x" * 301)]
    assert len(set(names)) == 5 and all(len(name) < 140 and "/" not in name for name in names)
    assert names[1] == "data.root=a_b"


def test_rows_without_a_number_come_last():
    results = [
        {"combination": {"a": str(i)}, "folder": str(i), "best": None, "metrics": {"score": value}}
        for i, value in enumerate([0.5, float("nan"), 0.7])
    ] + [{"combination": {"a": "3"}, "folder": "3", "error": "no | luck"}]
    compared = sweep.table(results, None)
    assert [row["combination"]["a"] for row in compared["rows"]] == ["2", "0", "1", "3"]
    assert sweep.markdown(compared).splitlines()[-1] == "| 3 | none | 0 of 1 failed: no \\| luck |"
    with pytest.raises(
        UserError, match=r"^metric: needs one of score, got 'scores'; did you mean 'score'\?$"
    ):
        sweep.table(results, "scores")
