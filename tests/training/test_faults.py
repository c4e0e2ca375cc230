"""What a run loses where it is killed, where its checkpoints are damaged, and where the disk fails: nothing that was saved."""

import errno
import os
import pathlib
import random
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import toy
from matplotlib.figure import Figure
from orbax.checkpoint._src.path import async_path
from tensorboardX.event_file_writer import EventsWriter

from benchmarks import faults
from jaxface import training
from jaxface.errors import UserError
from jaxface.training import checkpoints, figures

STEPS = 11
CADENCE = training.Cadence(log_every=4, evaluate_every=5, checkpoint_every=3)
STAGE = pathlib.Path("checkpoints/00-toy")
PLAIN = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}  # eight fake devices would only make it slow


@pytest.mark.slow
def test_a_run_killed_at_six_random_moments_ends_as_if_it_had_not_been(tmp_path):
    report = faults.kill_and_compare(
        tmp_path, kills=6, seed=16, environment=PLAIN
    )  # a hundred: `benchmarks.faults`
    assert report["kills"] == sum(report["phases"].values()) == 6
    assert report["equal"], report["differences"]
    assert len(report["phases"]) > 1  # where they fell; a busy machine is late for a short phase
    whole = tmp_path / "whole/checkpoints/00-recognition"
    assert len(faults._arrays(whole / f"{faults.STEPS}/state")) > 20  # what is compared is there

    # The comparison sees a change of a single bit, and a line that is missing.
    other = tmp_path / "cut-0"
    lines = (other / "metrics.jsonl").read_bytes()
    (other / "metrics.jsonl").write_bytes(lines[: lines.rindex(b"\n", 0, -1) + 1])
    assert faults.differences(tmp_path / "whole", other) == ["metrics.jsonl"]


def test_moments_are_the_same_for_a_seed_and_spread_over_all_phases():
    chosen = faults.moments(20, 11)
    assert chosen == faults.moments(20, 11) != faults.moments(20, 12)
    assert {m.phase for m in chosen} == faults.PHASES.keys() and len({m.delay for m in chosen}) == 20


def train(stages, **options):
    """`training.run` on two devices: what is saved does not depend on their number, and eight take longer."""
    return training.run(stages, parallel=toy.parallel(2), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train([toy.stage(steps=STEPS)], cadence=CADENCE, workdir=folder)


def assert_goes_on(workdir, whole):
    """The same run in `workdir` ends where the whole one does, bit for bit."""
    folder, outcome = whole
    resumed = train([toy.stage(steps=STEPS)], cadence=CADENCE, workdir=workdir)
    assert resumed.metrics == outcome.metrics
    assert_equal(resumed.state, outcome.state)
    assert (workdir / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def assert_equal(a, b):
    a, b = (jax.device_get(s.replace(rng=jax.random.key_data(s.rng))) for s in (a, b))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file, at=None):
    content = bytearray(file.read_bytes())
    at = random.Random(len(content)).randrange(len(content)) if at is None else at
    content[at] ^= 0x10
    file.write_bytes(content)


def files(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


ALL_OF = {
    "truncated": lambda checkpoint: [truncate(file) for file in files(checkpoint)],
    "flipped": lambda checkpoint: [flip(file) for file in files(checkpoint)],
    "without position": lambda checkpoint: shutil.rmtree(checkpoint / "position"),
    "without state": lambda checkpoint: shutil.rmtree(checkpoint / "state"),
    "empty": empty,
}


@pytest.mark.parametrize("damage", ALL_OF.values(), ids=ALL_OF)
def test_a_damaged_newest_checkpoint_is_reported_once_and_the_one_before_used(
    whole, tmp_path, caplog, damage
):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    damage(run / STAGE / "11")
    left = sorted(path.relative_to(run / STAGE / "11") for path in (run / STAGE / "11").rglob("*"))
    assert_goes_on(run, whole)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("jaxface")]
    assert len(said) == 1 and "\n" not in said[0]
    assert f"{run / STAGE / '11'} is damaged (" in said[0] and "set aside, and 10 is used" in said[0]
    aside = run / STAGE / "11.damaged"
    assert sorted(path.relative_to(aside) for path in aside.rglob("*")) == left  # nothing was thrown away
    caplog.clear()
    assert_goes_on(run, whole)  # the run has written its last checkpoint again
    assert "is damaged" not in caplog.text


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints 1 and 2 of a state with every kind of array, and what is needed to read them."""
    folder = tmp_path_factory.mktemp("saved")

    def state(seed):
        rng = np.random.default_rng(seed)
        return {
            "params": {"kernel": jax.numpy.asarray(rng.normal(size=(40, 30)), np.float32)},
            "half": jax.numpy.asarray(rng.normal(size=50), jax.numpy.bfloat16),
            "mask": jax.numpy.asarray(rng.random(40) < 0.5),
            "bytes": jax.numpy.asarray(rng.integers(0, 256, 30), np.uint8),
            "step": jax.numpy.asarray(seed),
            "key": jax.random.key(seed),
        }

    writer = training.Checkpoints(folder)
    for step in (1, 2):
        writer.save(step, state(step), {"score": None, "batches": {"at": step}})
    writer.close()
    abstract = jax.eval_shape(lambda: state(1))
    shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), abstract)
    return folder, state, abstract, shardings


def read(folder, saved):
    """The step that is restored, whose arrays and position are those that were saved."""
    reader = training.Checkpoints(folder)
    found = reader.restore(*saved[2:])
    reader.close()
    states = (checkpoints._to_plain(state) for state in (found.state, saved[1](found.step)))
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert found.position["batches"] == {"at": found.step}
    return found.step


@pytest.mark.parametrize("damage", [truncate, flip, pathlib.Path.unlink])
def test_damage_to_any_one_file_is_noticed_or_changes_nothing(saved, tmp_path, damage):
    names = [path.relative_to(saved[0]) for path in files(saved[0] / "2")]
    assert len(names) > 8
    steps = {}
    for k, name in enumerate(names):
        shutil.copytree(saved[0], tmp_path / str(k))
        damage(tmp_path / str(k) / name)
        steps[str(name)] = read(tmp_path / str(k), saved)
    assert read(saved[0], saved) == 2
    assert steps["2/position/metadata"] == 1
    assert [steps[name] for name in steps if "/d/" in name].count(1) >= 1  # the arrays


def test_every_flipped_byte_of_the_arrays_is_noticed(saved):
    plain = checkpoints._to_plain(saved[1](1))
    there = checkpoints._checksums(plain)
    rng = random.Random(0)
    for name, leaf in plain.items():
        if name == "params":
            continue
        content = np.asarray(leaf)
        for _ in range(20):
            raw = bytearray(content.tobytes())
            place = rng.randrange(len(raw))
            raw[place] ^= 1 if leaf.dtype == bool else 1 << rng.randrange(8)
            changed = np.frombuffer(bytes(raw), content.dtype).reshape(content.shape)
            assert checkpoints._checksums({**plain, name: jax.numpy.asarray(changed)})[name] != there[name]
    on_host = jax.tree.map(np.asarray, plain)
    assert checkpoints._checksums(on_host) == there
    swapped = plain["half"].at[:2].set(plain["half"][:2][::-1])
    assert checkpoints._checksums({"half": swapped})["half"] != there["half"]


def test_checksums_do_not_depend_on_how_an_array_is_sharded():
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    sums = [
        checkpoints._checksums({"x": jax.device_put(values, jax.NamedSharding(mesh, jax.P(*spec)))})
        for spec in ((), ("devices",), (None, "devices"))
    ]
    assert sums[0] == sums[1] == sums[2] == checkpoints._checksums({"x": values})


def test_where_no_checkpoint_is_good_one_line_says_so_and_nothing_is_touched(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    for step in (run / STAGE).iterdir():
        truncate(step / "position/metadata")
    before = {
        path: path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }
    with pytest.raises(
        UserError,
        match=r"^workdir: none of the \d checkpoints in .*00-toy can be read \(.*\); move 00-toy away",
    ) as caught:
        train([toy.stage(steps=STEPS)], cadence=CADENCE, workdir=run)
    assert "\n" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in before}
    with pytest.raises(UserError, match=r"^checkpoint: .*/11 is damaged \("):
        training.restore_params(run / STAGE)
    os.rename(run / STAGE, run / "away")
    assert_goes_on(run, whole)


def test_the_best_checkpoint_survives_an_interruption_and_the_loss_of_a_score(tmp_path):
    def stage(steps):
        scores = {2: 1.0, 4: 5.0, 6: 2.0, 8: 3.0, 10: 0.5}
        return training.Stage(
            **{
                **vars(toy.stage(steps=steps)),
                "evaluate": lambda state: {"score": scores[int(state.step)]},
                "best": "score",
            }
        )

    cadence = training.Cadence(evaluate_every=2, checkpoint_every=2, keep=1)
    for steps in (6, 10):
        train([stage(steps)], cadence=cadence, workdir=tmp_path)
        assert sorted(int(p.name) for p in (tmp_path / STAGE).iterdir()) == [4, steps]
    flip(tmp_path / STAGE / "4/position/metadata")
    kept = training.restore_params(tmp_path / STAGE, best=True)["params"]
    np.testing.assert_array_equal(
        kept["hidden"]["kernel"], training.restore_params(tmp_path / STAGE)["params"]["hidden"]["kernel"]
    )


def test_what_a_process_killed_after_its_last_save_had_to_remove_is_removed(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    assert sorted(int(path.name) for path in (run / STAGE).iterdir()) == [10, 11]
    shutil.copytree(run / STAGE / "10", run / STAGE / "3")
    shutil.copytree(run / STAGE / "10/state", run / STAGE / "6/state")
    assert_goes_on(run, whole)
    assert sorted(int(path.name) for path in (run / STAGE).iterdir()) == [10, 11]


class Clumsy:
    """The evaluation of a toy stage, which fails in its first calls, or whose figure does."""

    def __init__(self, at, times=1, *, figure=False):
        self.at, self.times, self.figure = at, times, figure

    def fail(self, state):
        if int(state.step) == self.at and self.times:
            self.times -= 1
            raise UserError("data: cannot be evaluated")

    def __call__(self, state):
        if not self.figure:
            self.fail(state)
        return toy.stage().evaluate(state)

    def figures(self, state):
        if self.figure:
            self.fail(state)
        return {"curve": lambda path: figures.save_training_curves({"loss": ([0, 1], [0, 1])}, path)}


@pytest.mark.parametrize(
    ("at", "options"), [(5, {}), (11, {}), (11, {"figure": True}), (11, {"times": 2})], ids=str
)
def test_an_evaluation_or_a_figure_that_fails_costs_no_training(whole, tmp_path, at, options):
    steps_taken = []

    def batches(state):
        class Counted(toy.Cycle):
            def __next__(self):
                steps_taken.append(self.position + 1)
                return super().__next__()

        return Counted()

    clumsy = Clumsy(at, **options)
    stage = training.Stage(**{**vars(toy.stage(steps=STEPS, batches=batches)), "evaluate": clumsy})
    failures = clumsy.times
    for _ in range(failures):
        with pytest.raises(UserError, match="cannot be evaluated"):
            train([stage], cadence=CADENCE, workdir=tmp_path)
        saved = training.restore_params(tmp_path / STAGE, step=at)["params"]
        assert np.isfinite(saved["hidden"]["kernel"]).all()
    outcome = train([stage], cadence=CADENCE, workdir=tmp_path)
    assert steps_taken == [*range(1, STEPS + 1)]  # none of them twice
    assert outcome.metrics == whole[1].metrics
    assert_equal(outcome.state, whole[1].state)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert (tmp_path / "curve.png").is_file()
    before = {path: path.read_bytes() for path in (tmp_path / STAGE).rglob("*") if path.is_file()}
    train([stage], cadence=CADENCE, workdir=tmp_path)  # finished: nothing is evaluated again
    assert before == {path: path.read_bytes() for path in before}


def test_a_stage_without_steps_is_saved_before_it_is_evaluated(tmp_path):
    clumsy = Clumsy(0)
    stage = training.Stage(**{**vars(toy.stage("only", steps=0)), "evaluate": clumsy})
    with pytest.raises(UserError, match="cannot be evaluated"):
        train([stage], workdir=tmp_path)
    assert training.checkpoint_steps(tmp_path / "checkpoints/00-only") == [0]
    assert train([stage], workdir=tmp_path).metrics == toy.stage().evaluate(
        train([toy.stage("only", steps=0)]).state
    )


def test_a_state_of_other_shapes_is_no_damage_and_names_the_data(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    before = {path: path.read_bytes() for path in (run / STAGE).rglob("*") if path.is_file()}
    stage = toy.stage(steps=STEPS)

    def init(rng, previous):
        state = stage.init(rng, previous)
        kernel = jax.numpy.zeros((8, 7))
        return state.replace(params={**state.params, "prototypes": {"kernel": kernel}})

    with pytest.raises(UserError, match=r"^data: .*another number of classes") as caught:
        train([training.Stage(**{**vars(stage), "init": init})], cadence=CADENCE, workdir=run)
    said = str(caught.value)
    assert "params/prototypes/bias is (5,) in" in said and "nothing now" in said and "\n" not in said
    assert before == {path: path.read_bytes() for path in (run / STAGE).rglob("*") if path.is_file()}


def test_a_metrics_file_that_lost_its_end_is_reported(whole, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    shutil.rmtree(run / STAGE / "11")
    (run / "metrics.jsonl").unlink()
    train([toy.stage(steps=STEPS)], cadence=CADENCE, workdir=run)
    assert "metrics.jsonl has lost its end: 0 of" in caplog.text
    assert [row["step"] for row in training.read_records(run / "metrics.jsonl")] == [11, 11]


def failing(function, number, at):
    """`function`, which fails with `number` from its call number `at` on, as it does where a disk fills up."""
    calls = iter(range(10**6))

    def call(*arguments, **options):
        if next(calls) >= at:
            raise OSError(number, os.strerror(number))
        return function(*arguments, **options)

    async def later(*arguments, **options):
        if next(calls) >= at:
            raise OSError(number, os.strerror(number))
        return await function(*arguments, **options)

    return later if function is async_path.rename else call


SITES = {
    "metrics": (os, "fsync", 2),
    "tensorboard": (EventsWriter, "write_event", 9),
    "tensorboard at once": (EventsWriter, "write_event", 0),
    "the room for a checkpoint": (shutil, "disk_usage", 2),
    "a checkpoint in the background": (async_path, "rename", 4),
    "the first checkpoint": (async_path, "rename", 0),
    "the folder": (pathlib.Path, "mkdir", 0),
}


SAVED_BEFORE = {
    "metrics": 1,
    "tensorboard": 2,
    "the room for a checkpoint": 2,
    "a checkpoint in the background": 1,
}


FULL, READ_ONLY = errno.ENOSPC, errno.EROFS


@pytest.mark.parametrize(
    ("site", "number"),
    [(site, FULL) for site in SITES]
    + [("the folder", READ_ONLY)]
    + [pytest.param(site, READ_ONLY, marks=pytest.mark.slow) for site in SITES if site != "the folder"],
)
def test_a_failing_disk_is_one_line_and_the_run_goes_on_after_it(whole, tmp_path, monkeypatch, site, number):
    owner, name, at = SITES[site]
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), number, at))
        with pytest.raises(UserError) as caught:
            train([toy.stage(steps=STEPS)], cadence=CADENCE, workdir=run)
    said = str(caught.value)
    assert (
        said.startswith(f"workdir: cannot write to {run}")
        and os.strerror(number) in said
        and "\n" not in said
    )
    kept = sorted(int(path.name) for path in run.glob(f"{STAGE}/*") if path.name.isdigit())
    assert kept in ([], [3], [3, 5], [5, 6], [6, 9], [9, 10], [10, 11]), kept
    assert len(kept) >= SAVED_BEFORE.get(site, 0)
    assert_goes_on(run, whole)


def test_other_failures_keep_their_own_name(tmp_path, monkeypatch):
    monkeypatch.setattr(EventsWriter, "write_event", lambda *_: [].pop())
    with pytest.raises(IndexError):
        train([toy.stage(steps=STEPS)], cadence=CADENCE, workdir=tmp_path / "run")


def test_a_figure_that_does_not_fit_leaves_nothing_and_the_one_before(tmp_path, monkeypatch):
    records = training.Records(tmp_path)

    def draw(path):
        return figures.save_training_curves({"loss": (np.arange(3), np.arange(3))}, path)

    records.figure("toy/curve", draw, 1)
    before = (tmp_path / "curve.png").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", failing(Figure.savefig, errno.ENOSPC, 0))
        with pytest.raises(
            UserError, match=r"^workdir: cannot write to .*curve.png: No space left on device"
        ):
            records.figure("toy/curve", draw, 2)
    records.close()
    assert (tmp_path / "curve.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "metrics.jsonl", "tensorboard"]


COMMAND = """-m experiments.launch sface --preset digits --steps 8 --label-noise .2 --quiet --cadence.log-every 1
    --cadence.checkpoint-every 3 --workdir"""


def launch(workdir, *, before=(), **options):
    command = [*before, sys.executable, *COMMAND.split(), str(workdir)]
    return subprocess.run(
        command, cwd=faults.ROOT, env=PLAIN, capture_output=True, text=True, timeout=200, **options
    )


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("launched") / "run"
    assert launch(workdir).returncode == 0
    return workdir


def assert_launched_alike(workdir, launched):
    done = launch(workdir)
    assert done.returncode == 0, done.stderr
    assert not faults.differences(launched, workdir)


@pytest.mark.slow
def test_a_real_limit_on_the_size_of_files(launched, tmp_path):
    def limit():
        resource = pytest.importorskip("resource")
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # less than the arrays take

    done = launch(tmp_path / "run", preexec_fn=limit)
    assert done.returncode == 2
    # Threads of orbax that are still writing when the interpreter leaves may add lines of their own.
    said = [line for line in done.stderr.splitlines() if line.startswith("error: workdir: cannot write to ")]
    assert len(said) == 1 and "File too large" in said[0], done.stderr
    assert_launched_alike(tmp_path / "run", launched)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [16, 1800])
def test_a_real_disk_that_is_full(launched, tmp_path, kilobytes):
    mount = f"mount -t tmpfs -o size={kilobytes}k tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    script = f"""{mount} && cd {faults.ROOT} || exit 9
        "$@" && exit 8
        status=$?
        mount -o remount,size=50m {tmp_path} && "$@" && cp -r {tmp_path}/run {tmp_path}-copy && exit $status"""
    done = launch(tmp_path / "run", before=["unshare", "-rm", "sh", "-c", script, "sh"])
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: workdir: cannot write to ") and "No space left on device" in line
    assert not faults.differences(launched, pathlib.Path(f"{tmp_path}-copy"))


@pytest.mark.slow
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_work_directory(launched, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(launched, run)
    shutil.rmtree(run / "checkpoints/00-recognition/8")
    (run / "results.json").unlink()
    (run / "checkpoints/00-recognition").chmod(0o500)
    done = launch(run)
    (run / "checkpoints/00-recognition").chmod(0o700)
    assert done.returncode == 2 and "error: workdir: cannot write to " in done.stderr.splitlines()[-1]
    assert_launched_alike(run, launched)
