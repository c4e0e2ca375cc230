"""What every benchmark needs: timing, where it ran, and a JSON file that says so."""

import argparse
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxface.errors import UserError
from jaxface.paths import local_path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def folder_argument(text: str) -> Path:
    """`type` of a command-line argument that is a folder: `~` is expanded, an empty path refused."""
    try:
        return local_path("folder", text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def cores() -> int:
    """Processor cores that this process may use; where the system does not say, all that there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name() -> str:
    """A folder name for the device, such as `cpu-2-cores` or `nvidia-h200`."""
    device = jax.devices()[0]
    return device_folder(f"cpu {cores()} cores" if device.platform == "cpu" else device.device_kind)


def device_folder(kind: str) -> str:
    """`nvidia-h200` for "NVIDIA H200"."""
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def commit() -> str | None:
    """Hash of the checked-out commit, with `-modified` where files differ from it; None outside a repository."""

    def git(*arguments):
        done = subprocess.run(
            ["git", "-C", str(RESULTS.parent), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        head = git("rev-parse", "--verify", "HEAD")
        return head and head + ("-modified" if git("status", "--porcelain", "--untracked-files=no") else "")
    except OSError:  # no git
        return None


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of Python, jax, numpy and `packages`; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "numpy", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def seconds(function: Callable[[], object], *, repeats: int = 10, warmup: int = 2) -> np.ndarray:
    """Wall seconds of each of `repeats` calls; waits for the arrays a call returns, after `warmup` calls."""
    times = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return np.asarray(times[warmup:])


def summary(times: np.ndarray, *, items: int = 1) -> dict[str, float]:
    """Median and quartiles in seconds, and items per second at the median."""
    low, median, high = np.percentile(times, [25, 50, 75])
    return {
        "seconds_median": float(median),
        "seconds_quartiles": [float(low), float(high)],
        "repeats": len(times),
        "per_second": float(items / median),
    }


def looped(function: Callable, iterations: int) -> Callable:
    """`function` called `iterations` times in one jitted loop, so that dispatch is not what is timed.

    Each call waits for the one before and none can be dropped or hoisted: inputs and outputs pass a barrier together.
    """

    @jax.jit
    def run(*arguments):
        def body(_, carry):
            inputs, _ = carry
            return jax.lax.optimization_barrier((inputs, function(*inputs)))

        return jax.lax.fori_loop(0, iterations - 1, body, (arguments, function(*arguments)))[1]

    return run


def in_turns(
    calls: Mapping[str, Callable[[], object]], *, repeats: int = 50, warmup: int = 3, budget: float = 20.0
) -> dict[str, np.ndarray]:
    """Wall seconds of calls made in turns, so that a change of clocks meets them all.

    Args:
      calls: name -> function; what it returns is waited for. The first call of each, which may compile, is not counted.
      repeats: timed calls of each; fewer where `budget` seconds for all of them would not do, at least 5.
      warmup: turns after the first that are not counted either.

    Returns:
      name -> seconds of every timed call.
    """
    rounds = [
        {name: float(seconds(call, repeats=1, warmup=0)[0]) for name, call in calls.items()}
    ]  # compiles
    started = time.perf_counter()
    for done in range(warmup + repeats):
        if done > warmup + 5 and time.perf_counter() - started > budget:
            break
        rounds.append({name: float(seconds(call, repeats=1, warmup=0)[0]) for name, call in calls.items()})
    return {name: np.array([turn[name] for turn in rounds[1 + warmup :]]) for name in calls}


def compiled(calls: Mapping[str, tuple[Callable, tuple]]) -> tuple[dict[str, Callable], dict[str, str]]:
    """Compiles jitted functions side by side, which is most of what a benchmark waits for on an accelerator.

    Args:
      calls: name -> jitted function and its arguments.

    Returns:
      name -> compiled function, and name -> one line for each that the compiler refuses.
    """
    done, failed = {}, {}

    def one(name):
        function, given = calls[name]
        return function.lower(*given).compile()

    with futures.ThreadPoolExecutor(min(cores(), 8)) as pool:
        waiting = {name: pool.submit(one, name) for name in calls}
    for name, future in waiting.items():
        try:
            done[name] = future.result()
        except Exception as error:  # what the device refuses must not stop the rest
            failed[name] = first_line(error)
    return done, failed


def compare(
    variants: Mapping[str, Callable],
    arguments: Mapping[str, tuple] | tuple,
    *,
    ours: str,
    peer: str,
    repeats: int = 50,
    warmup: int = 3,
    iterations: int = 1,
    budget: float = 20.0,
    check: Callable[[str, Any], None] = lambda name, output: None,
) -> dict:
    """Times variants of one computation in turns, in one process, so that a change of clocks meets them all.

    Args:
      variants: name -> function of arrays; each is jitted.
      arguments: the arrays, or name -> the arrays of that variant where their layouts differ.
      ours, peer: the two whose ratio is reported.
      repeats, warmup, budget: as in `in_turns`.
      iterations: calls inside one jitted loop (see `looped`); give some 20 where a call takes microseconds.
      check: called with a variant's name and output before any is timed; one for which it raises is not timed.

    Returns:
      "failed": name -> one line, for what cannot be compiled or run or is wrong; and unless all failed, "seconds": name ->
      `summary` per call, "ours" and "peer" (the first that is left, where one failed), and "speedup": the peer's median over
      ours, above 1 where ours is faster.
    """
    given = {name: arguments[name] if isinstance(arguments, Mapping) else arguments for name in variants}
    calls, failed = compiled(
        {
            name: (looped(function, iterations) if iterations > 1 else jax.jit(function), given[name])
            for name, function in variants.items()
        }
    )
    for name, call in list(calls.items()):
        try:
            check(name, jax.block_until_ready(call(*given[name])))
        except Exception as error:
            failed[name] = first_line(error)
            del calls[name]
    if not calls:
        return {"failed": failed}
    calls = {name: functools.partial(call, *given[name]) for name, call in calls.items()}
    times = in_turns(calls, repeats=repeats, warmup=warmup, budget=budget)
    report = {name: summary(values / iterations) for name, values in times.items()}
    ours, peer = (name if name in report else next(iter(report)) for name in (ours, peer))
    return {
        "failed": failed,
        "seconds": report,
        "ours": ours,
        "peer": peer,
        "speedup": report[peer]["seconds_median"] / report[ours]["seconds_median"],
    }


def clocks() -> str | None:
    """What the driver says of an NVIDIA GPU's clocks (SM, memory) and temperature now; None where there is none."""
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,temperature.gpu", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def memory(function: Callable, *arguments, **options) -> dict[str, int]:
    """`memory_of` the compiled `jit(function, **options)` of these arguments."""
    return memory_of(jax.jit(function, **options).lower(*arguments).compile())


def memory_of(compiled) -> dict[str, int]:
    """Bytes that a compiled function holds on this device: arguments, outputs and temporaries.

    Aliased is the part of the outputs that is written where a donated argument was.
    """
    analysis = compiled.memory_analysis()
    return {
        "argument_bytes": analysis.argument_size_in_bytes,
        "output_bytes": analysis.output_size_in_bytes,
        "temporary_bytes": analysis.temp_size_in_bytes,
        "aliased_bytes": analysis.alias_size_in_bytes,
    }


def within(rows: Iterable, seconds: float, left_out: list | None = None) -> Iterator:
    """The rows that begin within `seconds` of the first; the others are added to `left_out`."""
    started = time.perf_counter()
    for row in rows:
        if time.perf_counter() - started <= seconds:
            yield row
        elif left_out is not None:
            left_out.append(row)


def first_line(error: BaseException) -> str:
    """An exception's type and the first line of its message, at most 300 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def digest(*paths: str) -> str:
    """A short hash of files of this repository, or of all Python files of its folders."""
    value = hashlib.sha256()
    for name in paths:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            value.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return value.hexdigest()[:16]


def write(
    name: str,
    measurements: object,
    *,
    packages: tuple[str, ...] = (),
    folder: Path | None = None,
    report: Mapping | None = None,
    clock: bool = True,
) -> Path:
    """Writes `results/<device>/<name>.json`: device, versions, commit and the measurements; returns the path.

    The file appears whole or not at all. `report` is what `benchmarks.gpu_report` has noted in it; `clock=False` leaves out
    the driver's clocks, which take a moment to ask.
    """
    path = (folder or RESULTS / device_name()) / f"{name}.json"
    content = {
        "benchmark": name,
        "device": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].platform,
        "device_count": jax.device_count(),
        "cpu_cores": cores(),
        "clocks": clocks() if clock else None,
        "versions": versions(*packages),
        "commit": commit(),
        "measurements": measurements,
    } | ({"report": report} if report else {})
    return write_json(path, content)


def write_json(path: Path, content: object) -> Path:
    """Writes a JSON file in one move, so that a process that is killed leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def shard_bytes(state: Any) -> int:
    """Bytes of a chip's part of a state, of shapes with shardings; without padding."""
    total = 0
    for leaf in jax.tree.leaves(state):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jax.eval_shape(jax.random.key_data, leaf)
            total += data.size * data.dtype.itemsize
        else:
            total += int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    return total
