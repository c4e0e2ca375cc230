"""Kills a run at random moments, starts it again until it ends, and compares it with one that was left alone.

Every start is the same `python -m experiments.launch` command. Compared bit for bit are all arrays of the last checkpoint, the
position in the data that it holds, `metrics.jsonl` (one line a step, so that another batch in any step shows), `results.json`,
the figures, and which checkpoints were kept. Run with `python -m benchmarks.faults`.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks import common

STEPS = 120
FLAGS = f"""sface --preset digits --steps {STEPS} --label-noise .2 --augment.flip .5 --ema-decay .9 --quiet
    --cadence.log-every 1 --cadence.checkpoint-every 3 --cadence.evaluate-every 25"""
PHASES = {"start-up": 5, "between steps": 6, "writing a checkpoint": 6, "evaluation and figures": 3}
"""Phase -> how many of 20 kills aim at it."""
ROOT = pathlib.Path(__file__).parents[1]
POLL = 0.002  # seconds


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a process is killed.

    Attributes:
      phase: a key of `PHASES`. It begins with the process, with a line of metrics, with a temporary folder of a checkpoint, or
        with the line of the last step.
      after: steps (or temporary folders) of this process to let pass first.
      delay: seconds from there on.
    """

    phase: str
    after: int
    delay: float


def moments(count: int, seed: int, *, start_up: float = 5.0, end: float = 1.5) -> list[Moment]:
    """So many random moments, in proportion to `PHASES`; those at the end of a run come last.

    Args:
      start_up, end: seconds over which the moments of the first and the last phase are spread.
    """
    rng = random.Random(seed)
    longest = {"start-up": start_up, "between steps": 0.05, "writing a checkpoint": 0.05}
    aims = [phase for phase, share in PHASES.items() for _ in range(share)]
    phases = rng.sample(aims * -(-count // len(aims)), count)
    phases.sort(key=lambda phase: phase == "evaluation and figures")
    after = {"between steps": 12, "writing a checkpoint": 4}
    return [Moment(p, rng.randint(1, after.get(p, 1)), rng.uniform(0, longest.get(p, end))) for p in phases]


class _Seen:
    """What a process changed in its work directory since it was started, told from outside."""

    def __init__(self, workdir: pathlib.Path):
        self._workdir = workdir
        self._lines = self._stat()
        self._old = self.temporary()
        self._results = (workdir / "results.json").exists()

    def _stat(self) -> tuple[int, int] | None:
        with contextlib.suppress(FileNotFoundError):
            stat = (self._workdir / "metrics.jsonl").stat()
            return stat.st_mtime_ns, stat.st_size
        return None

    def temporary(self) -> set[tuple[str, int]]:
        """The checkpoints being written, or left half-written by a killed process."""
        folders = set()
        for path in self._workdir.glob("checkpoints/*/*.orbax-checkpoint-tmp"):
            with contextlib.suppress(FileNotFoundError):
                folders.add((path.name, path.stat().st_ino))
        return folders

    def new_temporary(self) -> set[tuple[str, int]]:
        return self.temporary() - self._old

    def last_line(self) -> dict | None:
        """The newest line of metrics that this process wrote."""
        if self._stat() in (None, self._lines):
            return None
        with (self._workdir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
            whole = file.read().rpartition(b"\n")[0].splitlines()
        with contextlib.suppress(ValueError, IndexError):
            return json.loads(whole[-1])
        return None

    def phase(self) -> str:
        """Where the process stands, or was killed."""
        if (self._workdir / "results.json").exists() and not self._results:
            return "after the results"
        line = self.last_line()
        if self.new_temporary():
            return "writing a checkpoint"
        if line is None:
            return "start-up"
        return "evaluation and figures" if line["step"] == STEPS else "between steps"


def _wait(process: subprocess.Popen, seen: _Seen, moment: Moment) -> bool:
    """Waits for the moment; False where the process ended before."""
    first, folders = None, set()
    while process.poll() is None:
        line = seen.last_line()
        if moment.phase == "start-up":
            break
        if moment.phase == "between steps" and line is not None:
            first = line["step"] if first is None else first
            if line["step"] >= first + moment.after - 1:
                break
        if moment.phase == "writing a checkpoint":
            folders |= seen.new_temporary()
            if len(folders) >= moment.after:
                break
        if moment.phase == "evaluation and figures" and line is not None and line["step"] == STEPS:
            break
        time.sleep(POLL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment.delay)
    return process.poll() is None


def _start(workdir: pathlib.Path, environment: dict[str, str], log) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.launch", *FLAGS.split(), "--workdir", str(workdir)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def _newest(workdir: pathlib.Path) -> int:
    return max((int(p.name) for p in workdir.glob("checkpoints/*/*") if p.name.isdigit()), default=-1)


def differences(whole: pathlib.Path, cut: pathlib.Path) -> list[str]:
    """What differs between two finished runs; nothing where they are equal bit for bit."""
    differing = []
    files = ["config.json", "metrics.jsonl", "results.json", *(p.name for p in whole.glob("*.png"))]
    folder = pathlib.Path("checkpoints/00-recognition")
    steps = [sorted(p.name for p in (run / folder).iterdir() if p.name.isdigit()) for run in (whole, cut)]
    if steps[0] != steps[1]:
        differing.append(f"checkpoints: {steps[0]} and {steps[1]}")
    common_steps = [step for step in steps[0] if step in steps[1]]
    files += [str(folder / step / "position/metadata") for step in common_steps]
    differing += [name for name in files if (whole / name).read_bytes() != (cut / name).read_bytes()]
    for step in common_steps:
        arrays = [_arrays(run / folder / step / "state") for run in (whole, cut)]
        if arrays[0].keys() != arrays[1].keys():
            differing.append(f"names of arrays at step {step}")
        else:
            differing += [
                f"{name} at step {step}" for name, value in arrays[0].items() if value != arrays[1][name]
            ]
    return differing


def _arrays(folder: pathlib.Path) -> dict[str, tuple]:
    """Path of each array of a checkpoint -> its type, shape and bytes."""
    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(folder).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    state = reader.restore(folder, args=ocp.args.PyTreeRestore(tree, restore_args=as_numpy))
    leaves = [(jax.tree_util.keystr(k), np.asarray(v)) for k, v in jax.tree_util.tree_leaves_with_path(state)]
    return {name: (leaf.dtype, leaf.shape, leaf.tobytes()) for name, leaf in leaves}


def kill_and_compare(
    folder: pathlib.Path,
    *,
    kills: int,
    seed: int,
    per_run: int = 10,
    environment: dict[str, str] | None = None,
) -> dict:
    """Kills runs at random moments and compares each with an uninterrupted one.

    Args:
      folder: where the runs and a compilation cache go.
      kills: how many; `per_run` of them in a row hit the same run, after which it is left to end.
      seed: of the moments.
      environment: of the runs; this process's own by default.

    Returns:
      JSON-like: kills, starts, runs, phases in which the kills fell, whether all runs were equal, and what differed.

    Raises:
      RuntimeError: a process ended otherwise than by our hand or in success, or a checkpoint was lost; gives its output.
    """
    environment = {**(os.environ if environment is None else environment)}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    phases, differing = collections.Counter(), {}
    starts = done = runs = 0
    began = time.monotonic()
    with (folder / "log.txt").open("w+b") as log:

        def check(process: subprocess.Popen) -> None:
            if process.wait() != 0:
                log.seek(0)
                output = log.read().decode(errors="replace")[-2000:]
                raise RuntimeError(f"the run ended with status {process.returncode}: {output}")

        whole = folder / "whole"
        check(_start(whole, environment, log))
        # Once more with compiled programs, to learn how long a start-up and an end take.
        start_up, end = _durations(folder / "timed", environment, log, check)
        while done < kills:
            cut = folder / f"cut-{runs}"
            planned = moments(min(per_run, kills - done), seed + runs, start_up=start_up, end=end)
            runs += 1
            for moment in planned:
                before, seen = _newest(cut), _Seen(cut)
                process = _start(cut, environment, log)
                starts += 1
                if not _wait(process, seen, moment):
                    check(process)
                    break  # too quick for this moment: the rest is drawn again for another run
                process.kill()
                process.wait()
                done += 1
                phases[seen.phase()] += 1
                if _newest(cut) < before:
                    raise RuntimeError(f"checkpoint {before} was lost, {_newest(cut)} is the newest")
            check(_start(cut, environment, log))
            starts += 1
            if differing_files := differences(whole, cut):
                differing[cut.name] = differing_files
    return {
        "kills": done,
        "phases": dict(phases),
        "starts": starts,
        "runs": runs,
        "steps_per_run": STEPS,
        "seed": seed,
        "equal": not differing,
        "differences": differing,
        "seconds": round(time.monotonic() - began, 1),
    }


def _durations(workdir: pathlib.Path, environment, log, check) -> tuple[float, float]:
    """Seconds of a run before its first line of metrics, and after its last step."""
    began, seen = time.monotonic(), _Seen(workdir)
    process = _start(workdir, environment, log)
    first = last = None
    while process.poll() is None:
        line, now = seen.last_line(), time.monotonic()
        first = now if line is not None and first is None else first
        last = now if line is not None and line["step"] == STEPS and last is None else last
        time.sleep(POLL)
    check(process)
    return first - began, time.monotonic() - last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder",
        type=common.folder_argument,
        default=None,
        help="where to write, instead of results/<device>",
    )
    arguments = parser.parse_args()
    if arguments.kills < 1:
        parser.error("needs kills >= 1")
    absl.logging.set_verbosity(absl.logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        report = kill_and_compare(pathlib.Path(folder), kills=arguments.kills, seed=arguments.seed)
    path = common.write(
        "faults",
        {"command": f"experiments.launch {' '.join(FLAGS.split())}", **report},
        packages=("orbax-checkpoint", "tensorstore"),
        folder=arguments.folder,
    )
    sys.stdout.write(f"{json.dumps(report, indent=2)}\n{path}\n")
    raise SystemExit(0 if report["equal"] else 1)


if __name__ == "__main__":
    main()
