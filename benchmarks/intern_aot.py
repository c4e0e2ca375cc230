"""The pod tier of INTERN's first stage for TPU slices, compiled without a TPU: `python -m benchmarks.tpu_aot --intern`.

MN-B15, of 10^9 parameters, and CLIP's text transformer learn from 4096 captioned images of 224 x 224, each in two views, in
bfloat16 with rematerialized blocks. The state is spread over all chips, and every caption is contrasted with the images of all.
What is printed is what one chip would hold, as for the other steps. `--topology` names one slice. The compiler optimizes at its
level O1, which took 17 minutes of a core for v5p; at O2 it had not ended after 23.
"""

import dataclasses
import functools
import time
import types

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import common
from experiments.recipes import image_text
from jaxface import axes, models, training
from jaxface.data.transforms.pixels import device_batch
from jaxface.layers.remat import Remat
from pallas_kernels import aot

GIGABYTE = 1e9
MEMORY = {"v4": 32e9, "v5e": 16e9, "v5p": 95e9, "v6e": 32e9}
"""Generation -> bytes of memory of a chip (cloud.google.com/tpu/docs/system-architecture-tpu-vm)."""
SHARE = 0.8
"""How much of it a step may take."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A slice and what is trained on it."""

    topology: str = "v5p:4x4x4"
    """Generation and chips along each axis."""
    backbone: str = "metanet_b15"
    """Network of the images."""
    batch: int = 4096
    """Captioned images of a step over all chips."""
    image_size: int = 224
    """Side of the images, pixels."""
    shard: training.Shard = "fsdp"
    """Whether the state is spread."""
    remat: Remat = "block"
    """What the backward pass computes again."""


CASES = (Case(), Case("v5e:16x16"))


def published_tokenizer() -> types.SimpleNamespace:
    """What the step needs to know of CLIP's tokenizer with a token for masks."""
    return types.SimpleNamespace(
        vocabulary=49_409, length=77, pad=0, start=49_406, end=49_407, mask=49_408,
        special=(0, 49_406, 49_407, 49_408), digest="0" * 16,
    )  # fmt: skip


def compile_case(case: Case, spec: image_text.UpA | None = None, tokenizer=None, **fields) -> dict:
    """Compiles one training step; what the JSON file says of it.

    Args:
      case: what and for which slice.
      spec: of the stage; the paper's with the case's batch unless given.
      tokenizer: what is known of it.
      **fields: of the backbone.
    """
    spec = spec or dataclasses.replace(image_text.UpA.paper(), batch_size=case.batch)
    backbone = models.create(case.backbone, embedding=None, dtype=jnp.bfloat16, remat=case.remat, **fields)
    nets = image_text.networks(
        spec, backbone, tokenizer or published_tokenizer(), bfloat16=True, remat=case.remat
    )
    shape = (case.image_size, case.image_size, 3)
    init, step = image_text.up_a_training(spec, nets, shape)
    devices = aot.tpu_devices(case.topology)
    parallel = training.make_parallel("jit", shard=case.shard, devices=devices)
    training.check_batch_size(parallel, case.batch)
    everywhere = NamedSharding(parallel.mesh, PartitionSpec())
    spread = NamedSharding(parallel.mesh, PartitionSpec((axes.DATA, axes.MODEL)))

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(init, previous=None), key)
    shardings = parallel.shardings(state, {})
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
    rows = {
        "image": ((2, *shape), jnp.uint8),
        "window": ((2, 4), jnp.float32),
        "tokens": ((nets.tokenizer.length,), jnp.int32),
        "changed_tokens": ((nets.tokenizer.length,), jnp.int32),
    }
    batch = {
        name: jax.ShapeDtypeStruct((case.batch, *each), dtype, sharding=spread)
        for name, (each, dtype) in rows.items()
    }
    started = time.perf_counter()
    report = aot.compile_for_mesh(
        lambda state, batch: step(state, device_batch(batch)),
        state,
        batch,
        mesh=parallel.mesh,
        donate_argnums=0,
        out_shardings=(shardings, everywhere),
    )
    result = {
        **dataclasses.asdict(case),
        "chips": len(devices),
        "parameters": models.parameter_count({"params": state.params}),
        "backbone_parameters": models.parameter_count({"params": state.params["backbone"]}),
        "state_gb": common.shard_bytes(state) / GIGABYTE,
        "argument_gb": report.argument_bytes / GIGABYTE,
        "temporary_gb": report.temporary_bytes / GIGABYTE,
        "output_gb": report.output_bytes / GIGABYTE,
        "in_place_gb": report.aliased_bytes / GIGABYTE,
        "total_gb": report.total_bytes / GIGABYTE,
        "compile_seconds": time.perf_counter() - started,
    }
    return result | {"problems": problems(case, result)}


def problems(case: Case, result: dict) -> list[str]:
    """What is wrong with a step: too little memory to spare, or no update of the state in place."""
    messages = []
    limit = SHARE * MEMORY[case.topology.partition(":")[0]] / GIGABYTE
    if result["total_gb"] > limit:
        messages.append(f"it takes {result['total_gb']:.1f} GB, more than {limit:.1f} GB")
    fresh = result["output_gb"] - result["in_place_gb"]
    if fresh > 1e-3:
        messages.append(f"{fresh:.3f} GB of the new state are not written in place")
    return messages


def main(topology: str | None = None) -> str | None:
    """Compiles the cases, or one slice; the problems, where there are some."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_optimization_level", "O1")
    cases = CASES if topology is None else (Case(topology),)
    numbers = (
        "state_gb", "argument_gb", "temporary_gb", "output_gb", "in_place_gb", "total_gb", "compile_seconds",
    )  # fmt: skip
    print(f"{'one chip of':<12}{'parameters':>15}" + "".join(f"{name:>16}" for name in numbers))
    records = []
    for case in cases:
        records.append(compile_case(case))
        written = common.write(
            "tpu_aot_intern",
            records,
            packages=("libtpu",),
            folder=common.RESULTS / f"aot-{cases[0].topology.partition(':')[0]}",
        )
        values = "".join(f"{records[-1][name]:16.2f}" for name in numbers)
        print(f"{case.topology:<12}{records[-1]['parameters']:15,d}{values}", flush=True)
    print(written)
    return "\n".join(f"{one['topology']}: {line}" for one in records for line in one["problems"]) or None
