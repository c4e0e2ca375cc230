"""What the training loop costs beside the step: microseconds per step of `training.run` beyond a bare loop.

    python -m benchmarks.loop_overhead [--steps 300] [--rounds 5]

The step computes next to nothing, it counts and reports five metrics. Its state is one number (`counter`), or every array that
training iResNet-50 with momentum keeps, each of 8 floats (`iresnet50`), since hundreds of leaves cost time themselves. The bare
loop calls this step, compiled with the same shardings and donation, on a batch that is on the device already.
`training.run` is given a batch on the host that costs nothing to make; it places it, keeps and logs metrics and counts for the
progress bar, and in some variants writes records or draws a bar. Compilation, the first steps and the end of a run are left out.

Host time is the processor time of the thread that runs the loop, to which waiting for the device adds nothing; wall time is what
passes. Both are taken over windows of 100 steps, bare and whole loop in turns; the least of all windows is what counts, since
other programs on the machine only ever add, and the median shows how much they did. On a CPU everything is measured
with one device and with eight made of the same cores, each in its own process; what such a device computes within the
calling thread counts as host time in both loops.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import common
from jaxface import models, training

WARMUP, WINDOW = 20, 100
TARGET = 1000.0  # µs per step
BATCH = {"image": np.zeros((8, 4, 4, 3), np.uint8), "label": np.zeros(8, np.int32)}
# name -> (log_every, whether there is a work directory, whether a bar is drawn)
VARIANTS = {
    "log every step": (1, False, False),
    "log every 20": (20, False, False),
    "log every 100": (100, False, False),
    "log every step, records": (1, True, False),
    "log every 20, records": (20, True, False),
    "log every 100, records": (100, True, False),
    "log every 20, records, bar": (20, True, True),
}
# Logging never looks at the state, so that a large one needs no more than what is usual.
LARGE_VARIANTS = ("log every 20, records",)


def clock() -> np.ndarray:
    """Seconds: (host, wall)."""
    return np.array([time.thread_time(), time.perf_counter()])


class Batches:
    """The same batch again and again, and the moments at which it was asked for."""

    def __init__(self):
        self.times: list[np.ndarray] = []

    def __next__(self):
        self.times.append(clock())
        return BATCH

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def counter() -> dict:
    """One number."""
    return {"step": jnp.zeros((), jnp.int32)}


def iresnet50() -> dict:
    """The state of iResNet-50 under SGD with momentum, every array of it 8 floats long, and the number."""
    model = models.create("iresnet50")
    image = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    small = jax.tree.map(lambda _: jnp.zeros(8), variables)
    momentum = training.Optimizer().build(1).init(small["params"])
    return counter() | small | {"momentum": momentum}


def count(state: dict, batch: dict) -> tuple[dict, dict]:
    """The step."""
    number = batch["label"].sum().astype(jnp.float32) + state["step"]
    names = ("loss", "accuracy", "target_cosine", "gradient_norm", "learning_rate")
    return state | {"step": state["step"] + 1}, {name: number + i for i, name in enumerate(names)}


def bare(init: Callable, mode: str, steps: int) -> np.ndarray:
    """[windows, 2] seconds per step, host and wall, of a loop that only calls the compiled step."""
    parallel = training.make_parallel(mode)
    state = parallel.create(init, {})
    if mode == "pmap":
        shards = {k: v.reshape(parallel.replicas, -1, *v.shape[1:]) for k, v in BATCH.items()}
        batch = jax.pmap(lambda x: x)(shards)
        step = jax.pmap(count, out_axes=(0, None), donate_argnums=0)
    else:
        batch = jax.device_put(BATCH, NamedSharding(parallel.mesh, PartitionSpec(parallel.mesh.axis_names)))
        step = jax.jit(count, donate_argnums=0, out_shardings=NamedSharding(parallel.mesh, PartitionSpec()))
    for _ in range(WARMUP):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    times = []
    for _ in range(steps // WINDOW):
        start = clock()
        for _ in range(WINDOW):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append((clock() - start) / WINDOW)
    return np.array(times)


def whole(init: Callable, mode: str, steps: int, log_every: int, records: bool, bar: bool) -> np.ndarray:
    """[windows, 2] seconds per step, host and wall, of `training.run`."""
    batches = Batches()
    stage = training.Stage(
        name="overhead",
        init=lambda rng, previous: init(),
        step=count,
        batches=lambda state: batches,
        steps=WARMUP + steps + 1,
    )
    with contextlib.ExitStack() as stack:
        if bar:
            # rich takes this for a terminal, for which it draws every frame; nobody has to see them.
            stack.enter_context(mock.patch.dict(os.environ, {"FORCE_COLOR": "1", "TERM": "xterm-256color"}))
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        training.run(
            [stage],
            parallel=training.make_parallel(mode),
            cadence=training.Cadence(log_every=log_every, checkpoint_every=10**9),
            workdir=Path(stack.enter_context(tempfile.TemporaryDirectory())) if records else None,
            progress=bar,
        )
    return np.diff(batches.times[WARMUP::WINDOW], axis=0) / WINDOW


def measure(steps: int, rounds: int) -> list[dict]:
    """Every state and mode on this process's devices; microseconds per step."""
    rows = []
    for init, names in ((counter, tuple(VARIANTS)), (iresnet50, LARGE_VARIANTS)):
        for mode in ("jit", "pmap"):
            without, within = [], {name: [] for name in names}
            for _ in range(rounds):
                without.append(bare(init, mode, steps))
                for name in names:
                    within[name].append(whole(init, mode, steps, *VARIANTS[name]))
            base = microseconds(without)
            row = {
                "state": init.__name__,
                "leaves": len(jax.tree.leaves(jax.eval_shape(init))),
                "devices": jax.device_count(),
                "mode": mode,
                "steps": steps,
                "rounds": rounds,
                "bare": base,
                "loop": {},
            }
            for name, times in within.items():
                report = microseconds(times)
                row["loop"][name] = report | {
                    f"{kind}_beyond_us": report[f"{kind}_us"] - base[f"{kind}_us"]
                    for kind in ("host", "wall")
                }
            rows.append(row)
            print(line(row), file=sys.stderr, flush=True)
    return rows


def microseconds(times: list[np.ndarray]) -> dict:
    """The least and the median of windows of some rounds."""
    least = 1e6 * np.concatenate(times).min(axis=0)
    median = 1e6 * np.median(np.concatenate(times), axis=0)
    return {
        "host_us": float(least[0]),
        "wall_us": float(least[1]),
        "host_us_median": float(median[0]),
        "wall_us_median": float(median[1]),
    }


def line(row: dict) -> str:
    beyond = {name: variant["host_beyond_us"] for name, variant in row["loop"].items()}
    each = ", ".join(f"{name} {extra:+.0f}" for name, extra in beyond.items())
    verdict = "within" if max(beyond.values()) < TARGET else "ABOVE"
    return (
        f"{row['state']} ({row['leaves']} leaves), {row['devices']} devices, {row['mode']}: host µs per step: "
        f"bare {row['bare']['host_us']:.0f}; {each}; {verdict} {TARGET:.0f}"
    )


def in_a_process(devices: int, arguments: argparse.Namespace) -> list[dict]:
    """`measure` where the CPU is so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "benchmarks.loop_overhead", "--here"]
    command += ["--steps", str(arguments.steps), "--rounds", str(arguments.rounds)]
    environment = os.environ | {"XLA_FLAGS": flags.strip()}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, help="a multiple of 100")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--here", action="store_true", help="measure in this process, print JSON, write nothing"
    )
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.steps, arguments.rounds)))
        return
    if jax.default_backend() == "cpu":
        rows = [row for devices in (1, 8) for row in in_a_process(devices, arguments)]
    else:
        rows = measure(arguments.steps, arguments.rounds)
    print(
        common.write("loop_overhead", {"target_us": TARGET, "rows": rows}, packages=("flax", "optax", "rich"))
    )


if __name__ == "__main__":
    main()
