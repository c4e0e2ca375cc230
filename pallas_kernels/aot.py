"""Looking at a kernel without its chip: the real TPU and CUDA compilers run on any Linux machine."""

import contextlib
import dataclasses
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import common

TPUS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
"""Generation -> the smallest topology that the TPU compiler knows by name."""


GPUS = {
    "H100": ("NVIDIA H100 80GB HBM3", 85_520_809_984, 3_352_320_000_000),
    "H200": ("NVIDIA H200 141GB HBM3e", 151_397_597_184, 4_800_000_000_000),
}
"""Name -> the device's kind, bytes of memory and bytes per second."""

# What the GPU compiler asks of a device; the rest of XLA's description serves its own cost model alone.
_GPU_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a" device_address_bits: 64
  name: "{name}" driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the assembler made of one Mosaic GPU kernel.

    Attributes:
      kernel: its name.
      registers: per thread.
      spill_bytes: per thread, to memory and back.
      matrix_instructions: tensor-core instructions in the machine code, such as "IGMMA.64x64x32.S8.S8".
    """

    kernel: str
    registers: int
    spill_bytes: int
    matrix_instructions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """What one device holds while a compiled function runs, in bytes, and what it computes.

    Attributes:
      argument_bytes, output_bytes, temporary_bytes: as the compiler lays them out, padding included.
      flops, bytes_accessed: of one call; a loop's body is counted once.
      kernels: the Mosaic GPU kernels.
      aliased_bytes: the part of the output that is written where a donated argument was.
      largest_array: elements of the largest array that the compiled program names, inside of fusions too.
    """

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    flops: float
    bytes_accessed: float
    kernels: tuple[Resources, ...] = ()
    aliased_bytes: int = 0
    largest_array: int = 0

    @property
    def total_bytes(self) -> int:
        """All that has to fit in the device's memory at a time."""
        return self.argument_bytes + self.output_bytes - self.aliased_bytes + self.temporary_bytes


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
    """Compiles `jit(function)(*arguments)` for one chip of a TPU generation. Needs libtpu, no TPU.

    A kernel whose blocks do not fit the vector memory fails here as it would on the chip.

    Args:
      function, arguments: as `lower_for_gpu`; it may ask for `implementation="pallas_tpu"`.
      tpu: "v4", "v5e", "v5p" or "v6e".

    Raises:
      KernelError: an unknown generation, or libtpu is not installed.
    """
    return _compile(function, arguments, tpu_device(tpu), "tpu")


def compile_for_mesh(function: Callable, *arguments: Any, mesh: jax.sharding.Mesh, **options: Any) -> Report:
    """Compiles `jit(function, **options)(*arguments)` for the devices of a mesh that need not be here.

    Args:
      function: to be traced with the mesh in scope (`jax.set_mesh`).
      arguments: trees of `jax.ShapeDtypeStruct`s that carry their shardings.
      mesh: of devices such as `tpu_devices` gives.
      options: of `jax.jit`, such as `donate_argnums` and `out_shardings`.

    Returns:
      A `Report` of what one of the devices holds.
    """
    with jax.set_mesh(mesh):
        traced = jax.jit(function, **options).trace(*arguments)
        return _report(traced, mesh.devices.flat[0].platform)


def compile_for_gpu(function: Callable, *arguments: Any, gpu: str = "H200") -> Report:
    """Compiles `jit(function)(*arguments)` for a Hopper GPU, Pallas kernels down to machine code, without a GPU.

    Needs JAX's CUDA plugin, `ptxas` and `nvdisasm` (the packages that the error names), no driver. A kernel that asks for too
    much shared memory, or whose instructions the assembler refuses, fails here as it would on the chip.

    Args:
      function, arguments: as `lower_for_gpu`.
      gpu: "H100" or "H200".

    Returns:
      A `Report` with the `Resources` of each Mosaic GPU kernel that this process had not compiled before; the CUDA compiler
      counts no flops.

    Raises:
      KernelError: an unknown name, or the plugin is not installed.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        _environment(MOSAIC_GPU_DUMP_TO=folder, MOSAIC_GPU_DUMP_PTXAS="1", MOSAIC_GPU_DUMP_SASS="1"),
    ):
        report = _compile(function, arguments, gpu_device(gpu), "cuda")
        kernels = tuple(_resources(path) for path in sorted(Path(folder).glob("*.ptxas")))
    return dataclasses.replace(report, kernels=kernels)


def gpu_device(gpu: str) -> Any:
    """One Hopper device that the compiler can compile for; raises as `compile_for_gpu`."""
    if gpu not in GPUS:
        raise common.KernelError(f"gpu: needs one of {', '.join(GPUS)}; got {gpu!r}")
    name, memory, bandwidth = GPUS[gpu]
    target = _GPU_TARGET.format(name=name, memory=memory, bandwidth=bandwidth)
    try:
        return topologies.get_topology_desc(
            gpu, platform="cuda", target_config=target, topology="1x1x1"
        ).devices[0]
    except (ImportError, RuntimeError) as error:
        raise common.KernelError(
            "gpu: the CUDA compiler did not start (pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt "
            f"nvidia-cuda-nvcc nvidia-cuda-nvdisasm): {str(error).splitlines()[0]}"
        ) from error


def _compile(function: Callable, arguments: tuple, device: Any, platform: str) -> Report:
    mesh = jax.sharding.Mesh(np.array([device]), ("chip",))
    replicated = NamedSharding(mesh, PartitionSpec())
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), arguments)
    with common.assume_device(device.device_kind):
        traced = jax.jit(function).trace(*abstract)
    return _report(traced, platform)


def _report(traced: Any, platform: str) -> Report:
    with _without_cache():  # what was compiled for an absent chip cannot be read back
        compiled = traced.lower(lowering_platforms=(platform,)).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return Report(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        flops=float(cost.get("flops", 0.0)),
        bytes_accessed=float(cost.get("bytes accessed", 0.0)),
        aliased_bytes=memory.alias_size_in_bytes,
        largest_array=_largest_array(compiled.as_text()),
    )


def _largest_array(text: str) -> int:
    """Elements of the largest array of a program in HLO's textual form."""
    shapes = set(re.findall(r"\b(?:pred|[sucfb]f?\d\w*)\[([\d,]+)\]", text))
    return max((math.prod(map(int, shape.split(","))) for shape in shapes), default=0)


def _resources(path: Path) -> Resources:
    text = path.read_text()
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes spill (?:stores|loads)", text))
    registers = max(int(count) for count in re.findall(r"Used (\d+) registers", text))
    code = "".join(file.read_text() for file in path.parent.glob(f"{path.stem}.sass*"))
    matrix = tuple(sorted(set(re.findall(r"\b[A-Z]GMMA\.\d[\w.]*", code))))
    return Resources(path.stem, registers, spilled, matrix)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()  # it decides once per process whether it is on


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def tpu_device(tpu: str) -> Any:
    """One device of a TPU generation that the compiler can compile for; raises as `compile_for_tpu`."""
    if tpu not in TPUS:
        raise common.KernelError(f"tpu: needs one of {', '.join(TPUS)}; got {tpu!r}")
    return tpu_devices(TPUS[tpu])[0]


def tpu_devices(topology: str) -> list[Any]:
    """The devices of a TPU slice that the compiler can compile for.

    Args:
      topology: generation and chips along each axis, such as "v5p:4x4x4" or "v5e:4x4".

    Raises:
      KernelError: no such slice, or libtpu is not installed.
    """
    # Outside Google's cloud the compiler would wait for a server that tells it which TPU this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Compiling touches no chip, so several processes may do it at a time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except (ImportError, RuntimeError) as error:
        raise common.KernelError(
            f"tpu: the TPU compiler did not start for {topology} (pip install libtpu): {str(error).splitlines()[0]}"
        ) from error
