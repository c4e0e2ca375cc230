"""Looking at a kernel without its chip: CUDA lowering, and compilation by the real TPU compiler on any Linux machine."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import common

TPUS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
"""Generation -> the smallest topology that the TPU compiler knows by name."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What one device holds while a compiled function runs, in bytes, and what it computes."""

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    flops: float
    bytes_accessed: float


def lower_for_gpu(function: Callable, *arguments: Any, device: str = "NVIDIA H200") -> str:
    """The StableHLO of `jit(function)(*arguments)` lowered for a CUDA GPU, Pallas kernels inside as Mosaic GPU modules.

    Args:
      function: to be traced; it may ask for `implementation="pallas_gpu"`.
      arguments: arrays or `jax.ShapeDtypeStruct`s.
      device: the chip's name as JAX reports it.
    """
    with common.assume_device(device):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def compile_for_tpu(function: Callable, *arguments: Any, tpu: str = "v5e") -> Report:
    """Compiles `jit(function)(*arguments)` for one chip of a TPU generation. Needs libtpu (`pip install 'jaxface[tpu]'`), no TPU.

    A kernel whose blocks do not fit the vector memory fails here as it would on the chip.

    Args:
      function, arguments: as `lower_for_gpu`; it may ask for `implementation="pallas_tpu"`.
      tpu: "v4", "v5e", "v5p" or "v6e".

    Raises:
      KernelError: an unknown generation, or libtpu is not installed.
    """
    device = tpu_device(tpu)
    mesh = jax.sharding.Mesh(np.array([device]), ("chip",))
    here = NamedSharding(mesh, PartitionSpec())
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), arguments)
    with common.assume_device(device.device_kind):
        traced = jax.jit(function).trace(*abstract)
    compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return Report(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        flops=float(cost.get("flops", 0.0)),
        bytes_accessed=float(cost.get("bytes accessed", 0.0)),
    )


def tpu_device(tpu: str) -> Any:
    """One device of a TPU generation that the compiler can compile for; raises as `compile_for_tpu`."""
    if tpu not in TPUS:
        raise common.KernelError(f"tpu: needs one of {', '.join(TPUS)}; got {tpu!r}")
    # Outside Google's cloud the compiler would wait for a server that tells it which TPU this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=TPUS[tpu]).devices[0]
    except (ImportError, RuntimeError) as error:
        raise common.KernelError(
            f"tpu: the TPU compiler did not start (pip install 'jaxface[tpu]'): {str(error).splitlines()[0]}"
        ) from error
