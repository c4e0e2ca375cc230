"""What a method costs beside its own baseline: step time and memory of the stage that it adds.

    python -m benchmarks.methods [--methods gabn lrfr ...] [--repeats 20] [--quick] [--out DIR]

Every method stands at its default configuration (images, networks, batch; CASSOD as a detector) and is built twice, as itself and
as what it is compared with. The stages before, such as a teacher's, are cut to a few steps on a few people: they matter for
shapes alone. The step is the one that `training.run` takes: compiled by the library's own parallelism for one device, the state
donated, the batch on the host. Both steps are timed in turns. Memory is the compiler's word: arguments (state and batch),
temporaries and what of the outputs is not written where the state was, together the peak.

IDA trains nothing that a pair of faces waits for, so its scores are timed instead: those of all pairs of a batch of images, and
those of embeddings alone. Where a baseline still reports the method's term as a metric (CCKD at weight 0), it pays for its value.
A ratio above 1 means that the method costs more. A method's rows are `results/<device>/methods/<slug>.json`; its cases stand in
the file of its name beside this one.
"""

import argparse
import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import common
from benchmarks.methods.case import EARLIER, Case
from experiments import methods
from experiments.recipes.recognition import Recipe
from experiments.recipes.teachers import TeacherSpec
from jaxface import data, training
from jaxface.data.transforms.pixels import device_batch


def measured() -> list[str]:
    """Methods that have cases."""
    return [slug for slug in methods.descriptions() if importlib.util.find_spec(f"{__package__}.{slug}")]


def shortened(config: Recipe, *, quick: bool) -> Recipe:
    """A configuration whose earlier stages take seconds; with `quick` the step is tiny too."""
    tiny = {"backbone": "convnet", "embedding": 16} if quick else {}

    def cut(value):
        match value:
            case TeacherSpec():
                return dataclasses.replace(value, steps=EARLIER, **tiny)
            case data.RenderedFaces():
                return dataclasses.replace(value, identities=32, held_out_identities=8)
            case data.TonedFaces():
                return dataclasses.replace(value, identities=(16, 16), held_out_identities=8)
            case data.Presentations():
                return dataclasses.replace(
                    value, identities=16, development_identities=4, held_out_identities=4
                )
            case data.Scenes():
                return dataclasses.replace(value, people=8, held_out_people=4)
            case tuple():
                return tuple(map(cut, value))
        return value

    fields = {field.name: cut(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if quick and getattr(config, "embedding", None) is None:  # tiny already, some with networks of their own
        fields["batch_size"] = 16
    elif quick:
        fields |= {**tiny, "image_size": 16, "batch_size": 16}
    return dataclasses.replace(config, **fields)


def measure(case: Case, *, repeats: int, quick: bool) -> dict:
    """Both arms of a case."""
    parallel = training.make_parallel(devices=jax.devices()[:1])
    base, memory, calls = shortened(case.base, quick=quick), {}, {}
    for arm in ("method", "baseline"):
        config = base if arm == "method" else dataclasses.replace(base, **case.baseline)
        step, state, batch = case.work(config, parallel)

        def on_device(state, batch, step=step):
            return step(state, device_batch(batch))

        # As `JitParallel.compile` does it: the state is consumed and leaves as it came.
        state_shardings = jax.tree.map(lambda x: x.sharding, state)
        spread, everywhere = (
            NamedSharding(parallel.mesh, PartitionSpec(*spec)) for spec in ((parallel.mesh.axis_names,), ())
        )
        shardings = {
            "in_shardings": (state_shardings, spread),
            "out_shardings": (state_shardings, everywhere),
        }
        with jax.set_mesh(parallel.mesh):
            memory[arm] = common.memory(on_device, state, batch, donate_argnums=0, **shardings)
        calls[arm] = stepping(parallel.compile(step), state, batch)
    times = common.in_turns(calls, repeats=repeats, warmup=1)
    records = len(next(iter(batch.values())))
    seconds = {arm: common.summary(values, items=records) for arm, values in times.items()}
    for held in memory.values():
        fresh = held["output_bytes"] - held["aliased_bytes"]
        held["peak_bytes"] = held["argument_bytes"] + held["temporary_bytes"] + fresh
    return {
        "method": case.name,
        "against": case.against,
        "image_size": base.image_size,
        "records": records,
        "seconds": seconds,
        "memory": memory,
        "time_ratio": seconds["method"]["seconds_median"] / seconds["baseline"]["seconds_median"],
        "memory_ratio": memory["method"]["peak_bytes"] / memory["baseline"]["peak_bytes"],
    }


def stepping(step: Callable, state: Any, batch: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    """A function that takes one more step each time."""

    def call():
        nonlocal state
        state, reported = step(state, batch)
        return state, reported

    return call


def line(row: dict) -> str:
    def side(arm):
        low, high = (1e3 * quartile for quartile in row["seconds"][arm]["seconds_quartiles"])
        median, held = 1e3 * row["seconds"][arm]["seconds_median"], row["memory"][arm]["peak_bytes"]
        return f"{median:.1f} ms ({low:.1f}-{high:.1f}), {held / 1e6:.1f} MB"

    return (
        f"{row['method']}: {side('method')}; {row['against']}: {side('baseline')}; "
        f"time x {row['time_ratio']:.2f}, memory x {row['memory_ratio']:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = measured()
    parser.add_argument("--methods", nargs="+", default=names, choices=names)
    parser.add_argument(
        "--repeats", type=int, default=20, help="timed steps of each, fewer where they are slow"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny networks and images; written with --out alone"
    )
    parser.add_argument(
        "--out", type=common.folder_argument, help="folder of `methods/*.json` instead of results/<device>"
    )
    arguments = parser.parse_args()
    for slug in arguments.methods:
        rows = []
        for case in importlib.import_module(f"{__package__}.{slug}").CASES:
            rows.append(measure(case, repeats=arguments.repeats, quick=arguments.quick))
            print(line(rows[-1]), flush=True)
        if arguments.out or not arguments.quick:
            print(common.write(f"methods/{slug}", rows, packages=("flax", "optax"), folder=arguments.out))


if __name__ == "__main__":
    main()
