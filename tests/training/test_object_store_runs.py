"""Runs whose work directory is in an object store: nothing is renamed, appended to or locked there, and nothing is lost."""

import errno
import json
import shutil

import jax
import numpy as np
import object_store
import pytest
import toy
from test_loop import CADENCE, Stop, crash, diverging, equal, interrupting

from jaxface import training
from jaxface.errors import UserError
from jaxface.paths import user_path
from jaxface.training import checkpoints
from jaxface.training.mirror import Mirror
from jaxface.training.workdir import POSITION, stage_folders

RUN = "objects://bucket/run"
STAGE = f"{RUN}/checkpoints/00-toy"


def slow(case):
    return pytest.param(case, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def store():
    object_store.clear()
    return object_store.OBJECTS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train([toy.stage(steps=11)], folder)


def train(stages, workdir=RUN, cadence=CADENCE, **options):
    return training.run(stages, cadence=cadence, workdir=workdir, parallel=toy.parallel(2), **options)


def steps_in(store):
    names = (key.split("/")[-3] for key in store if key.endswith(POSITION))
    return sorted(int(name) for name in names if name.isdecimal())


def assert_like(whole, outcome, store):
    folder, expected = whole
    equal(outcome.state, expected.state)
    assert outcome.metrics == expected.metrics
    assert store[f"{RUN}/metrics.jsonl"] == (folder / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_run_leaves_there_what_it_leaves_here(whole, store):
    assert_like(whole, train([toy.stage(steps=11)]), store)
    assert steps_in(store) == [10, 11] == training.checkpoint_steps(STAGE)
    assert any(key.startswith(f"{RUN}/tensorboard/events.") for key in store)
    # What a checkpoint says about itself is put when all else of it is there, and goes first.
    puts = [key for kind, key in object_store.LOG if kind == "put" and f"{STAGE}/3/" in key]
    assert puts.index(f"{STAGE}/3/{POSITION}") == len(puts) - 1 > 3
    removed = [key for kind, key in object_store.LOG if kind == "remove" and f"{STAGE}/3/" in key]
    assert removed[0] == f"{STAGE}/3/{POSITION}" and set(removed) == set(puts)
    saved, local = (training.restore_params(f"{run}/checkpoints/00-toy") for run in (RUN, whole[0]))
    jax.tree.map(np.testing.assert_array_equal, saved, local)
    assert not [key for key in store if "tmp" in key or "partial" in key]


@pytest.mark.parametrize("at", [slow(2), 5])
def test_a_killed_run_ends_where_the_whole_one_does(whole, store, at):
    with pytest.raises(Stop):
        train([interrupting(toy.stage(steps=11), at, crash)])
    assert_like(whole, train([toy.stage(steps=11)]), store)
    again = train([interrupting(toy.stage(steps=11), 11, crash)])  # finished: no batch is asked for
    assert_like(whole, again, store)


@pytest.mark.parametrize("at", [slow(7), slow(22), 40])
def test_a_store_that_fails_at_any_put_is_one_line_and_loses_nothing(whole, store, monkeypatch, at):
    puts = iter(range(10**6))

    def fail(key):
        if next(puts) >= at:
            raise RuntimeError("503 slow down\nand more")  # libraries of stores have exceptions of their own

    with monkeypatch.context() as patch:
        patch.setattr(object_store, "before_put", fail)
        with pytest.raises(
            UserError, match=rf"^workdir: cannot write to {RUN}[^\n]*: 503 slow down; "
        ) as caught:
            train([toy.stage(steps=11)])
    assert "\n" not in str(caught.value)
    assert_like(whole, train([toy.stage(steps=11)]), store)


@pytest.mark.slow
def test_half_a_checkpoint_is_none_and_is_removed(whole, store):
    train([toy.stage(steps=11)])
    del store[f"{STAGE}/11/{POSITION}"]
    assert training.checkpoint_steps(STAGE) == [10]
    resumed = train([toy.stage(steps=11)])
    assert_like(whole, resumed, store)
    assert steps_in(store) == [10, 11]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_without_renaming(whole, store, caplog):
    train([toy.stage(steps=11)])
    key = next(key for key in store if f"{STAGE}/11/state/" in key and "/d/" in key)
    store[key] = store[key][:-1] + bytes([store[key][-1] ^ 1])
    assert_like(whole, train([toy.stage(steps=11)]), store)
    assert f"checkpoint {STAGE}/11 is damaged" in caplog.text
    assert f"{STAGE}/11.damaged/{POSITION}" in store and steps_in(store) == [10, 11]


@pytest.mark.slow
def test_a_store_that_cannot_be_read_is_no_damage(store, monkeypatch):
    train([toy.stage(steps=11)])
    before = dict(store)
    get = object_store.ObjectPath.open

    def fail(path, mode="r", **options):
        if mode == "rb" and "/state/" in str(path):
            raise OSError(errno.ETIMEDOUT, "Connection timed out")
        return get(path, mode, **options)

    monkeypatch.setattr(object_store.ObjectPath, "open", fail)
    with pytest.raises(UserError, match=r"^objects://.* cannot be reached: Connection timed out$"):
        train([toy.stage(steps=11)])
    assert {key for key in store if STAGE in key} == {key for key in before if STAGE in key}


@pytest.mark.slow
def test_the_folder_of_a_run_is_claimed_and_given_up_there(store):
    rates = [{"rate": rate} for rate in (9.0, 0.1)]
    path = training.open_workdir(RUN, rates[0])
    assert json.loads(store[f"{RUN}/config.json"]) == rates[0] == training.read_config(RUN)
    assert str(path) == RUN == str(training.check_workdir(RUN, rates[0]))
    with pytest.raises(UserError, match=r"rate is 9.0 there and 0.1 here"):
        training.open_workdir(RUN, rates[1])
    with pytest.raises(training.Diverged, match=r"there is no checkpoint before it"):
        train(
            [toy.stage(steps=11, step=diverging)],
            cadence=training.Cadence(evaluate_every=11, checkpoint_every=11),
        )
    training.give_up_workdir(path)
    training.open_workdir(RUN, rates[1])
    assert sorted(store) == [f"{RUN}/config.json"]
    train([toy.stage(steps=11)])
    training.give_up_workdir(path)  # there is something to lose
    assert f"{RUN}/config.json" in store
    assert [str(folder) for folder in stage_folders(RUN)] == [STAGE]
    store["objects://bucket/other/letter.txt"] = b"dear"
    with pytest.raises(UserError, match="not empty and holds no run"):
        training.open_workdir("objects://bucket/other", {})
    with pytest.raises(UserError, match="is not a folder"):
        training.open_workdir("objects://bucket/other/letter.txt", {})
    with pytest.raises(UserError, match=r"holds no config.json"):
        training.read_config("objects://bucket/other")


def test_several_processes_need_a_folder_that_all_see(monkeypatch, store):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"^workdir: several processes need a folder that all of them see"):
        training.run([toy.stage(steps=1)], workdir=RUN)
    assert not store


@pytest.mark.slow
def test_the_room_for_a_checkpoint_is_asked_of_this_machine(monkeypatch, store):
    def full(folder):
        assert "://" not in str(folder)
        return shutil._ntuple_diskusage(10**9, 10**9, 10)

    monkeypatch.setattr(checkpoints.shutil, "disk_usage", full)
    with pytest.raises(UserError, match=rf"^workdir: cannot write to {STAGE}: No space left on device"):
        train([toy.stage(steps=4)])


def test_mirror(tmp_path, store):
    mirror = Mirror(user_path("folder", "objects://bucket/folder"))
    (mirror.local / "a/b").mkdir(parents=True)
    for name in ("a/first", "a/last", "a/b/third"):
        (mirror.local / name).write_text(name)
    mirror.push("a", last="first")
    assert [key.rsplit("/", 1)[-1] for _, key in object_store.LOG] == ["third", "last", "first"]
    (mirror.local / "a/first").write_text("changed")
    mirror.push("a")
    assert object_store.LOG[3:] == [("put", "objects://bucket/folder/a/first")]
    other = Mirror(user_path("folder", "objects://bucket/folder"))
    other.pull("a")
    other.pull("nothing")
    assert (other.local / "a/first").read_text() == "changed"
    assert (other.local / "a/b/third").read_text() == "a/b/third"
    other.remove("a", first="b/third")
    assert not store and (other.local / "a/first").exists()
    folder = other.local
    other.close()
    assert not folder.exists()
    same = Mirror(tmp_path)
    same.push("a")
    same.close()
    assert same.local == tmp_path and tmp_path.exists()
