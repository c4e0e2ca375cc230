"""Compiles a whole SFace training step for a TPU slice without a TPU: `python -m benchmarks.tpu_aot --topology v5e:2x2`.

The real TPU compiler (libtpu, `pip install 'jaxface[tpu]'`) runs on any Linux machine. What it prints is what one device of the
slice would hold: arguments (parameters, optimizer state, its share of the batch), temporaries and their sum.
"""

import argparse
import dataclasses
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import common
from experiments import sface
from jaxface import axes, data, training
from jaxface.data.pixels import device_batch

GIGABYTE = 1e9


def compile_step(topology: str, *, backbone: str, identities: int, batch: int, model_shards: int) -> dict:
    """Compiles one step for the slice and returns its bytes per device and the seconds it took."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    config = dataclasses.replace(
        sface.Config.paper(),
        data=data.RenderedFaces(identities=identities, per_identity=1),
        backbone=backbone,
        batch_size=batch,
        workers=0,
    )
    (stage,) = sface.build(config)
    parallel = training.make_parallel("jit", model_shards=model_shards, devices=list(devices))
    training.check_batch_size(parallel, batch)
    state = jax.eval_shape(stage.init, jax.eval_shape(lambda: jax.random.key(0)), None)
    shardings = parallel.shardings(state, stage.sharding)
    rows = NamedSharding(parallel.mesh, PartitionSpec((axes.DATA, axes.MODEL)))
    inputs = {
        "image": jax.ShapeDtypeStruct(
            (batch, config.image_size, config.image_size, 3), jnp.uint8, sharding=rows
        ),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows),
    }
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)

    def step(state, batch):
        return stage.step(state, device_batch(batch))

    started = time.perf_counter()
    jitted = jax.jit(
        step, donate_argnums=0, out_shardings=(shardings, NamedSharding(parallel.mesh, PartitionSpec()))
    )
    with jax.set_mesh(parallel.mesh):
        compiled = jitted.trace(state, inputs).lower(lowering_platforms=("tpu",)).compile()
    memory = compiled.memory_analysis()
    return {
        "topology": topology,
        "devices": len(devices),
        "mesh": dict(parallel.mesh.shape),
        "backbone": backbone,
        "identities": identities,
        "batch": batch,
        "argument_gb": memory.argument_size_in_bytes / GIGABYTE,
        "temporary_gb": memory.temp_size_in_bytes / GIGABYTE,
        "total_gb": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / GIGABYTE,
        "compile_seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2", help="such as v5e:2x2, v4:2x2x1, v5p:2x2x1, v6e:2x2")
    parser.add_argument("--backbone", default="iresnet_pico", help="larger ones take many minutes to compile")
    parser.add_argument("--identities", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=512, help="global batch")
    parser.add_argument(
        "--model-shards", type=int, default=2, help="devices over which the prototypes are split"
    )
    chosen = parser.parse_args()
    report = compile_step(
        chosen.topology,
        backbone=chosen.backbone,
        identities=chosen.identities,
        batch=chosen.batch,
        model_shards=chosen.model_shards,
    )
    for name, value in report.items():
        print(f"{name:16} {value:.3f}" if isinstance(value, float) else f"{name:16} {value}")
    print(
        common.write(
            "tpu_aot",
            report,
            packages=("libtpu",),
            folder=common.RESULTS / f"aot-{chosen.topology.partition(':')[0]}",
        )
    )


if __name__ == "__main__":
    main()
