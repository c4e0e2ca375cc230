import json
import os
import pathlib
import signal

import jax
import numpy as np
import pytest
import toy

from jaxface import training
from jaxface.errors import UserError

CADENCE = training.Cadence(log_every=4, evaluate_every=5, checkpoint_every=3)


class Stop(Exception):
    """Stands for the end of the process."""


def interrupting(stage, at, how):
    """The stage, whose batches do `how` when asked for batch number `at`."""

    class Trap(toy.Cycle):
        def __next__(self):
            if self.position == at:
                how()
            return super().__next__()

    return training.Stage(**{**vars(stage), "batches": lambda state: Trap()})


def crash():
    raise Stop


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(_plain(a)), jax.device_get(_plain(b)))


def _plain(state):
    return state.replace(rng=jax.random.key_data(state.rng))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, toy.run([toy.stage(steps=11)], cadence=CADENCE, workdir=folder)


@pytest.mark.parametrize("at", [0, 2, 3, 5, 8, 10])
def test_a_killed_run_ends_where_the_whole_one_does(whole, tmp_path, at):
    folder, outcome = whole
    stage = toy.stage(steps=11)
    with pytest.raises(Stop):
        toy.run([interrupting(stage, at, crash)], cadence=CADENCE, workdir=tmp_path)
    resumed = toy.run([stage], cadence=CADENCE, workdir=tmp_path)
    equal(resumed.state, outcome.state)
    assert resumed.metrics == outcome.metrics
    assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_sigterm_saves_between_two_steps_and_exits_0(whole, tmp_path):
    stage = toy.stage(steps=11)
    with pytest.raises(training.Interrupted) as caught:
        toy.run(
            [interrupting(stage, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))],
            cadence=CADENCE,
            workdir=tmp_path,
        )
    assert caught.value.code == 0
    assert training.Checkpoints(tmp_path / "checkpoints/00-toy").latest_step() == 8
    resumed = toy.run([stage], cadence=CADENCE, workdir=tmp_path)
    equal(resumed.state, whole[1].state)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


def test_the_records_hold_every_interval(whole):
    rows = training.read_records(whole[0] / "metrics.jsonl")
    assert [(r["step"], r["kind"]) for r in rows] == [
        (4, "train"), (5, "evaluate"), (8, "train"), (10, "evaluate"), (11, "train"), (11, "evaluate"),
    ]  # fmt: skip
    assert set(rows[0]) == {"stage", "step", "kind", "loss", "accuracy", "gradient_norm"}
    assert rows[0]["loss"] > rows[4]["loss"] > 0
    assert list((whole[0] / "tensorboard").glob("events.*"))


def test_a_finished_run_is_left_alone(whole):
    folder, outcome = whole
    before = (folder / "metrics.jsonl").read_bytes()
    again = toy.run([interrupting(toy.stage(steps=11), 11, crash)], cadence=CADENCE, workdir=folder)
    equal(again.state, outcome.state)
    assert again.metrics == outcome.metrics
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("at", [2, 4])
def test_several_stages_and_a_generator_resume_too(tmp_path, at):
    def stages(trap=lambda stage: stage):
        first = yield toy.stage("first", steps=4)
        second = yield trap(toy.stage("second", steps=3 if first.metrics["norm"] > 0 else 1))
        assert second.name == "second"
        yield toy.stage("third", steps=0)

    whole = toy.run(stages(), cadence=CADENCE, workdir=tmp_path / "whole")
    assert set(whole.metrics) == {"first/norm", "second/norm", "third/norm"}
    assert whole.metrics["third/norm"] == whole.metrics["second/norm"]
    with pytest.raises(Stop):
        toy.run(stages(lambda s: interrupting(s, at - 2, crash)), cadence=CADENCE, workdir=tmp_path / "cut")
    resumed = toy.run(stages(), cadence=CADENCE, workdir=tmp_path / "cut")
    equal(resumed.state, whole.state)
    assert resumed.metrics == whole.metrics
    records = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert records[0] == records[1]


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_resume_in_both_modes(tmp_path, mode):
    parallel = training.make_parallel(mode)
    stage = toy.stage(steps=5)
    whole = training.run([stage], parallel=parallel, cadence=CADENCE)
    with pytest.raises(Stop):
        training.run([interrupting(stage, 4, crash)], parallel=parallel, cadence=CADENCE, workdir=tmp_path)
    equal(training.run([stage], parallel=parallel, cadence=CADENCE, workdir=tmp_path).state, whole.state)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_a_state_is_refreshed_before_the_first_step_and_every_so_many(tmp_path, mode):
    parallel = toy.parallel(mode=mode)
    seen = []

    def refresh(state):
        seen.append(int(state.step))
        bias = state.params["prototypes"]["bias"] + np.float32(len(jax.tree.leaves(state.params)))
        return state.replace(
            params={**state.params, "prototypes": {**state.params["prototypes"], "bias": bias}}
        )

    plain = toy.run([toy.stage(steps=7)], parallel=parallel)
    stage = toy.stage(steps=7, refresh=refresh, refresh_every=3)
    whole = toy.run([stage], parallel=parallel)
    assert seen == [0, 3, 6]
    assert whole.metrics != plain.metrics
    for at in (0, 3, 4):  # killed before a step that is refreshed, and before one that is not
        folder = tmp_path / str(at)
        with pytest.raises(Stop):
            toy.run([interrupting(stage, at, crash)], parallel=parallel, cadence=CADENCE, workdir=folder)
        resumed = toy.run([stage], parallel=parallel, cadence=CADENCE, workdir=folder)
        equal(resumed.state, whole.state)


def test_a_refreshed_state_needs_no_second_compilation():
    traces = []

    def counted(state, batch):
        traces.append(1)
        return toy.STEP(state, batch)

    stage = toy.stage(
        steps=6,
        step=counted,
        refresh=lambda s: s.replace(extra=jax.tree.map(lambda x: x + 1, s.extra)),
        refresh_every=2,
    )
    toy.run([stage], parallel=training.make_parallel(devices=jax.devices()[:2]))
    assert len(traces) == 1


def diverging(state, batch):
    state, metrics = training.gradient_step(toy.objective())(state, batch)
    return state, {**metrics, "loss": jax.numpy.where(state.step >= 6, jax.numpy.nan, metrics["loss"])}


def test_nan_names_step_metric_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(training.Diverged) as caught:
        toy.run([toy.stage(steps=11, step=diverging)], cadence=CADENCE, workdir=tmp_path)
    message = str(caught.value)
    assert "loss is nan at step 6 of stage toy" in message and "\n" not in message
    good = pathlib.Path(message.rsplit(" ", 1)[1])
    assert good.name == "5" and good.is_dir()
    assert training.Checkpoints(good.parent).latest_step() == 5
    with pytest.raises(training.Diverged, match="no checkpoint was kept"):
        toy.run([toy.stage(steps=11, step=diverging)], cadence=CADENCE)


def test_keep_last_and_keep_best(tmp_path):
    scores = iter([1.0, 5.0, 2.0, 3.0, 0.5])
    stage = training.Stage(
        **{**vars(toy.stage(steps=10)), "evaluate": lambda state: {"score": next(scores)}, "best": "score"}
    )
    cadence = training.Cadence(evaluate_every=2, checkpoint_every=2, keep=2)
    outcome = toy.run([stage], cadence=cadence, workdir=tmp_path)
    folder = tmp_path / "checkpoints/00-toy"
    assert sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) == [4, 8, 10]
    newest, best = (training.restore_params(folder, best=b) for b in (False, True))
    np.testing.assert_array_equal(
        newest["params"]["hidden"]["kernel"], outcome.state.params["hidden"]["kernel"]
    )
    at_four = toy.run([toy.stage(steps=4)]).state
    np.testing.assert_array_equal(best["params"]["hidden"]["kernel"], at_four.params["hidden"]["kernel"])
    np.testing.assert_array_equal(
        best["extra"]["batch_stats"]["norm"]["mean"], at_four.extra["batch_stats"]["norm"]["mean"]
    )


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="at least one stage"):
        toy.run([])
    with pytest.raises(UserError, match="two stages are named 'toy'"):
        toy.run([toy.stage(steps=1), toy.stage(steps=1)])
    with pytest.raises(UserError, match=r"cadence.log_every: needs an integer from 1"):
        toy.run([toy.stage()], cadence=training.Cadence(log_every=0))
    with pytest.raises(UserError, match="no checkpoint in"):
        training.restore_params(tmp_path / "nothing")


def test_workdir_is_claimed_once(tmp_path):
    config = {"method": "toy", "optimizer": {"rate": 0.1, "decay": (0.5, 0.8)}}
    path = training.open_workdir(tmp_path / "a/b", config)
    assert json.loads((path / "config.json").read_text()) == training.read_config(path)
    assert training.open_workdir(path, config) == path
    other = {"method": "toy", "optimizer": {"rate": 0.2, "decay": (0.5, 0.8)}}
    with pytest.raises(UserError, match=r"another configuration: optimizer.rate is 0.1 there and 0.2 here"):
        training.open_workdir(path, other)
    assert training.read_config(path)["optimizer"]["rate"] == 0.1
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not empty and holds no run"):
        training.open_workdir(tmp_path / "foreign", config)
    with pytest.raises(UserError, match="cannot use"):
        training.open_workdir(tmp_path / "foreign/letter.txt", config)
    with pytest.raises(UserError, match=r"holds no config.json"):
        training.read_config(tmp_path / "foreign")


def test_a_workdir_is_given_up_where_there_is_nothing_to_go_on_from(tmp_path):
    rates = [{"rate": rate} for rate in (9.0, 0.1, 0.2)]
    path = training.open_workdir(tmp_path / "run", rates[0])
    with pytest.raises(training.Diverged, match=r"at step 6 .*there is no checkpoint before it"):
        toy.run([toy.stage(steps=11, step=diverging)], workdir=path)
    (path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"rate is 9.0 there and 0.1 here"):
        training.check_workdir(path, rates[1])  # it may still be running
    training.give_up_workdir(path)
    assert training.check_workdir(path, rates[1]) == path and list(path.glob("tensorboard/*"))
    training.open_workdir(path, rates[1])
    assert training.read_config(path) == rates[1]
    assert sorted(entry.name for entry in path.iterdir()) == ["config.json", "letter.txt"]
    toy.run([toy.stage(steps=11)], cadence=CADENCE, workdir=path)
    training.give_up_workdir(path)  # there is something to lose
    with pytest.raises(UserError, match=r"rate is 0.1 there and 0.2 here"):
        training.open_workdir(path, rates[2])


def test_a_stage_starts_alike_whatever_stages_come_before():
    goal = toy.objective()

    def init(rng, previous):
        return training.create_state(rng, {"w": jax.random.normal(rng, (4,))}, goal)

    def start_of(name, *before, **fields):
        stages = [toy.stage(other, steps=0) for other in before]
        stage = training.Stage(name, init=init, **fields)
        return np.asarray(toy.run([*stages, stage], seed=3).state.params["w"])

    alone = start_of("student")
    np.testing.assert_array_equal(alone, start_of("student", "teacher", "neighbors"))
    np.testing.assert_array_equal(alone, start_of("student1_on_80", "teacher", key="student"))
    assert not np.allclose(alone, start_of("other"))


def test_an_address_that_nothing_opens_is_no_work_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda path: toy.run([toy.stage(steps=1)], workdir=path),
        lambda path: training.open_workdir(path, {}),
        training.read_config,
        training.run_checkpoint,
        training.run_anchors,
    ):
        for path in ("ftp://host/run", pathlib.Path("gs://bucket/run"), ""):
            with pytest.raises(UserError, match=r"^(workdir|run): needs a path"):
                call(path)
    assert not list(tmp_path.iterdir())


def test_states_of_earlier_stages_are_let_go():
    import gc
    import weakref

    seen = []

    def stages():
        for name in "abc":
            outcome = yield toy.stage(name, steps=1)
            seen.append(weakref.ref(outcome.state.params["hidden"]["kernel"]))
            del outcome

    outcome = toy.run(stages())
    gc.collect()
    assert [kernel() is None for kernel in seen] == [True, True, False]
    assert set(outcome.metrics) == {"a/norm", "b/norm", "c/norm"}
