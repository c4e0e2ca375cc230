"""Compiles whole training steps for TPU slices without a TPU: `python -m benchmarks.tpu_aot`, `--vit`, `--intern`.

The real TPU compiler (libtpu) runs on any Linux machine; `make tpu-aot` installs it. By default iResNet-50 with a global batch
of 8192 is compiled for 10^9 identities on 256 chips of v5p and for 10^8 on 64, there with a sample of a tenth too. What is
printed is what one chip would hold: arguments (parameters, optimizer state, its share of the batch), temporaries, outputs,
what of them is written in place, and all that has to fit at a time. Nothing of the size of the prototypes is made on the host.

With `--vit` it is ViT-L/16 on images of 224 x 224 under AdamW, its blocks rematerialized or not, its state spread or not.
With `--intern` it is the first stage of INTERN (`benchmarks.intern_aot`): MN-B15 and a text tower, contrasted over all chips.
"""

import argparse
import dataclasses
import functools
import sys
import time
from typing import get_args

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import common, intern_aot
from experiments.methods import sface
from jaxface import axes, training
from jaxface.data.transforms.pixels import device_batch
from jaxface.layers.remat import Remat
from pallas_kernels import aot

GIGABYTE = 1e9
MEMORY = {"v4": 32e9, "v5e": 16e9, "v5p": 95e9, "v6e": 32e9}
"""Generation -> bytes of memory of a chip (cloud.google.com/tpu/docs/system-architecture-tpu-vm)."""
SHARE = 0.8
"""How much of it a step may take: the rest is for the runtime, fragmentation and the next batch."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One slice and what is trained on it, by the paper's recipe else."""

    topology: str = "v5p:4x4x4"
    """Generation and chips along each axis."""
    identities: int = 10**8
    """Classes."""
    sample_rate: float = 1.0
    """Fraction of the classes that take part in a step."""
    model_shards: int | None = None
    """Chips over which the prototypes are split; all of the slice by default."""
    backbone: str = "iresnet50"
    """Network."""
    batch: int = 8192
    """Images per step over all chips."""
    loss: str = "sface"
    """Loss."""
    shard: training.Shard = "none"
    """Whether network and optimizer state are spread."""
    remat: Remat = "none"
    """What the backward pass computes again."""
    image_size: int = 112
    """Side of the images, pixels."""
    optimizer: str = "sgd"
    """Update rule."""


CASES = (
    Case("v5p:4x8x8", 10**9),
    Case("v5p:4x4x4", 10**8),
    Case("v5p:4x4x4", 10**8, sample_rate=0.1),
)


_vit = functools.partial(
    Case,
    "v5e:4x4",
    identities=100_000,
    model_shards=1,
    backbone="vit_large",
    batch=1024,
    loss="cosface",
    image_size=224,
    optimizer="adamw",
)
VIT_CASES = tuple(_vit(shard=shard, remat=remat) for remat in ("none", "block") for shard in ("none", "fsdp"))


@dataclasses.dataclass(frozen=True)
class Result:
    """What one chip holds.

    Attributes:
      mesh: axis -> chips.
      rows: prototypes on a chip.
      state_bytes: the chip's part of the state (parameters, optimizer state, statistics), without padding.
      report: the compiler's word.
      seconds: that tracing and compiling took.
    """

    mesh: dict[str, int]
    rows: int
    state_bytes: int
    report: aot.Report
    seconds: float


def compile_case(case: Case, config: sface.Config | None = None, *, init: bool = False) -> Result:
    """Compiles one training step.

    Args:
      case: what and for which slice.
      config: replaces the paper's recipe where the case says nothing.
      init: compile what makes the first state instead; for a large network that takes longer than the step.
    """
    config = dataclasses.replace(
        config or sface.Config.paper(),
        backbone=case.backbone,
        loss=case.loss,
        sample_rate=case.sample_rate,
        batch_size=case.batch,
        remat=case.remat,
    )
    if case.backbone.startswith("vit"):
        config = dataclasses.replace(config, block=None, dropout=None)  # which are iResNet's
    if case.image_size != Case.image_size:
        config = dataclasses.replace(config, image_size=case.image_size)
    if case.optimizer != Case.optimizer:
        config = dataclasses.replace(
            config, optimizer=dataclasses.replace(config.optimizer, name=case.optimizer)
        )
    image_shape = (config.image_size, config.image_size, 3)
    stage = sface.training_stage(config, case.identities, image_shape)
    devices = aot.tpu_devices(case.topology)
    parallel = training.make_parallel(
        "jit", model_shards=case.model_shards or len(devices), shard=case.shard, devices=devices
    )
    training.check_batch_size(parallel, case.batch)
    everywhere = NamedSharding(parallel.mesh, PartitionSpec())
    spread = NamedSharding(parallel.mesh, PartitionSpec((axes.DATA, axes.MODEL)))

    def make(rng):
        return stage.init(rng, None)

    def step(state, batch):
        return stage.step(state, device_batch(batch))

    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)
    state = jax.eval_shape(make, key)
    shardings = parallel.shardings(state, stage.sharding)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
    batch = {
        "image": jax.ShapeDtypeStruct((case.batch, *image_shape), jnp.uint8, sharding=spread),
        "label": jax.ShapeDtypeStruct((case.batch,), jnp.int32, sharding=spread),
    }
    started = time.perf_counter()
    if init:
        report = aot.compile_for_mesh(make, key, mesh=parallel.mesh, out_shardings=shardings)
    else:
        # As `JitParallel.compile` does it: the state is consumed and leaves as it came.
        out = (shardings, everywhere)
        report = aot.compile_for_mesh(
            step, state, batch, mesh=parallel.mesh, donate_argnums=0, out_shardings=out
        )
    return Result(
        mesh=dict(parallel.mesh.shape),
        rows=shardings.params["prototypes"].shard_shape(state.params["prototypes"].shape)[0],
        state_bytes=common.shard_bytes(state),
        report=report,
        seconds=time.perf_counter() - started,
    )


def problems(case: Case, result: Result) -> list[str]:
    """What is wrong with a step: too little memory to spare, no update of the state in place, or a [B, C]."""
    messages, report = [], result.report
    limit = SHARE * MEMORY[case.topology.partition(":")[0]]
    if report.total_bytes > limit:
        messages.append(
            f"it takes {report.total_bytes / GIGABYTE:.1f} GB, more than {limit / GIGABYTE:.1f} GB"
        )
    fresh = report.output_bytes - report.aliased_bytes
    if fresh > 1 << 20:
        messages.append(f"{fresh / GIGABYTE:.3f} GB of the new state are not written in place")
    cosines = case.batch * int(case.sample_rate * result.rows)
    # Below that an activation of the network may be as large.
    if cosines > 10**9 and report.largest_array >= cosines:
        messages.append(
            f"an array has {report.largest_array} elements, as many as the cosines [B, C] ({cosines})"
        )
    return messages


def record(case: Case, result: Result) -> dict:
    """What the JSON file says of a case."""
    report = result.report
    return {
        **dataclasses.asdict(case),
        "mesh": result.mesh,
        "prototypes_per_chip": result.rows,
        "state_gb": result.state_bytes / GIGABYTE,
        "argument_gb": report.argument_bytes / GIGABYTE,
        "temporary_gb": report.temporary_bytes / GIGABYTE,
        "output_gb": report.output_bytes / GIGABYTE,
        "in_place_gb": report.aliased_bytes / GIGABYTE,
        "total_gb": report.total_bytes / GIGABYTE,
        "largest_array_elements": report.largest_array,
        "compile_seconds": result.seconds,
        "problems": problems(case, result),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--topology", help="compile for this slice alone, such as v5e:2x2, v4:2x2x1, v5p:4x4x4"
    )
    parser.add_argument("--identities", type=int, default=Case.identities)
    parser.add_argument("--sample-rate", type=float, default=Case.sample_rate)
    parser.add_argument(
        "--model-shards", type=int, help="chips over which the prototypes are split; all by default"
    )
    parser.add_argument("--backbone", default=Case.backbone)
    parser.add_argument("--batch", type=int, default=Case.batch, help="global batch")
    parser.add_argument("--loss", default=Case.loss, choices=("sface", "softmax", "cosface", "arcface"))
    parser.add_argument("--shard", default=Case.shard, choices=get_args(training.Shard))
    parser.add_argument("--remat", default=Case.remat, choices=get_args(Remat))
    parser.add_argument("--image-size", type=int, default=Case.image_size)
    parser.add_argument("--optimizer", default=Case.optimizer, help="update rule")
    parser.add_argument("--vit", action="store_true", help="ViT-L/16, with and without --shard and --remat")
    parser.add_argument("--intern", action="store_true", help="MN-B15 and a text tower")
    flags = vars(parser.parse_args())
    if flags.pop("intern"):
        sys.exit(intern_aot.main(flags["topology"]))
    vit = flags.pop("vit")
    named = CASES if not vit else VIT_CASES
    cases = named if flags["topology"] is None else (Case(**flags),)
    if cases is named and Case(**flags | {"topology": Case.topology}) != Case():
        parser.error("--topology: needed with the other options, which are for one slice")

    folder = common.RESULTS / f"aot-{cases[0].topology.partition(':')[0]}"
    jax.config.update("jax_platforms", "cpu")
    numbers = ("argument_gb", "temporary_gb", "output_gb", "in_place_gb", "total_gb", "compile_seconds")
    print(
        f"{'one chip of':<12}{'identities':>14}{'rate':>6}{'shard':>6}{'remat':>6}{'state_gb':>9}"
        + "".join(f"{name:>16}" for name in numbers)
    )
    records = []
    for case in cases:
        records.append(record(case, compile_case(case)))
        written = common.write(
            "tpu_aot_vit" if vit else "tpu_aot", records, packages=("libtpu",), folder=folder
        )
        values = "".join(f"{records[-1][name]:16.2f}" for name in numbers)
        kind = f"{case.sample_rate:6.2f}{case.shard:>6}{case.remat:>6}{records[-1]['state_gb']:9.2f}"
        print(f"{case.topology:<12}{case.identities:14,d}{kind}{values}", flush=True)
    print(written)
    judged = records[-1:] if vit else records  # the other forms of the same network need not fit
    if wrong := [f"{one['topology']}: {problem}" for one in judged for problem in one["problems"]]:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
