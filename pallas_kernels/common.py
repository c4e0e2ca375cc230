"""What every kernel shares: the device that a trace is for, the choice of an implementation, and the refusals."""

import contextlib
import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import measured

Implementation = Literal["xla", "pallas_gpu", "pallas_tpu", "pallas_gpu_interpret", "pallas_tpu_interpret"]
"""`xla` runs anywhere. `pallas_gpu` needs a Hopper GPU, `pallas_tpu` a TPU; their `_interpret` forms run the same kernels
step by step on a CPU, thousands of times slower, to test them."""

IMPLEMENTATIONS: tuple[str, ...] = Implementation.__args__


class KernelError(ValueError):
    """Something that a kernel was asked for cannot be done; one line that names the argument and what it needs."""


@dataclasses.dataclass(frozen=True)
class Device:
    """What a kernel has to know of the chip that it is traced for.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      kind: the chip's name, such as "NVIDIA H200" or "TPU v5 lite".
      cores: streaming multiprocessors of a GPU where that is known.
    """

    platform: str
    kind: str
    cores: int | None = None

    @property
    def hopper(self) -> bool:
        """Compute capability 9.0: what the Mosaic GPU kernels here are written for."""
        return self.platform == "gpu" and bool(re.search(r"\b(G?H200|G?H100|H800|H20)\b", self.kind))

    @property
    def int8_mxu(self) -> bool:
        """Whether the matrix unit multiplies int8: TPU v5e, v5p and v6e do; v4 and the first v7x parts do not."""
        return self.platform == "tpu" and bool(re.search(r"v[56]", self.kind))


def target_device() -> Device:
    """The device that the current trace is for.

    That is the mesh in scope, if it knows its devices (`jax.set_mesh`, `shard_map`, `assume_device`), else the default
    device of this process.
    """
    abstract = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if abstract is not None:
        return Device(_platform(abstract.platform), abstract.device_kind, abstract.num_cores)
    default = jax.config.jax_default_device
    device = default if isinstance(default, jax.Device) else jax.devices(default)[0]
    return Device(_platform(device.platform), device.device_kind, getattr(device, "core_count", None))


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The instruction sets of this machine's processor as Linux names them; empty where it does not say."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").partition(":")[2].split())


def _platform(name: str) -> str:
    return "gpu" if name in ("cuda", "rocm") else name


@contextlib.contextmanager
def assume_device(kind: str) -> Iterator[None]:
    """Traces for a device that is not here: `with assume_device("NVIDIA H200"): jit(f).trace(...)`.

    Args:
      kind: "NVIDIA H100", "NVIDIA H200", or a TPU's name such as "TPU v5 lite".
    """
    platform = "tpu" if kind.startswith("TPU") else "gpu"
    cores = 132 if platform == "gpu" else None
    mesh = AbstractMesh((), (), abstract_device=AbstractDevice(kind, cores, platform))
    with jax.sharding.use_abstract_mesh(mesh):
        yield


def choose(
    implementation: str | None,
    obstacles: Mapping[str, str | None],
    *,
    op: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Implementation:
    """The implementation to run: the asked one if it can; if none was asked for, the one measured as fastest, else "xla".

    A kernel is a default where committed measurements (`pallas_kernels/measured`) say, for this kind of device, that it gave
    the reference's values and gradients in every case of the operation, that it was the fastest at the benchmarked shape nearest
    to this one (every number within a factor of 4, words and flags equal), and that its sources are those that were
    measured. Another kind of device, a shape far from all benchmarked ones, a kernel that changed since and a CPU get "xla".

    Args:
      implementation: what the caller asked for, or None.
      obstacles: "pallas_gpu", "pallas_tpu" -> why these shapes and dtypes cannot run there, or None if they can. An
        implementation that is not a key does not exist for this op.
      op: the op's folder, for its measurements; None has none.
      facts: what speed depends on: "operation", other words and flags, and positive numbers.

    Raises:
      KernelError: an unknown name, a kernel for another device, or one with an obstacle. Nothing falls back silently.
    """
    device = target_device()
    if implementation is None:
        if op is None or facts is None or device.platform == "cpu":
            return "xla"
        default = measured.fastest(op, device.kind, device.platform, facts)
        usable = default in IMPLEMENTATIONS and _obstacle(default, obstacles, device) is None
        return default if usable else "xla"
    if implementation not in IMPLEMENTATIONS:
        raise KernelError(
            f"implementation: needs None or one of {', '.join(IMPLEMENTATIONS)}; got {implementation!r}"
        )
    reason = _obstacle(implementation, obstacles, device)
    if reason is not None:
        raise KernelError(f"implementation: {implementation!r} cannot run: {reason}; 'xla' would work")
    return implementation


def _obstacle(implementation: str, obstacles: Mapping[str, str | None], device: Device) -> str | None:
    if implementation == "xla":
        return None
    base, interpreted = implementation.removesuffix("_interpret"), implementation.endswith("_interpret")
    if base not in obstacles:
        return "this op has no such kernel"
    if interpreted:
        if device.platform != "cpu":
            return f"the interpreters are for a CPU, this is {device.kind}"
    elif base == "pallas_gpu" and not device.hopper:
        return f"it needs a Hopper GPU (H100, H200), this is {device.kind}"
    elif base == "pallas_tpu" and device.platform != "tpu":
        return f"it needs a TPU, this is {device.kind}"
    return obstacles[base]


def interpret(implementation: str) -> Any:
    """What to pass as a kernel's `interpret`: False on the device; under `_interpret` its interpreter, which raises on a race."""
    return {
        "pallas_gpu_interpret": plgpu.InterpretGPUParams(detect_races=True),
        "pallas_tpu_interpret": pltpu.InterpretParams(detect_races=True),
    }.get(implementation, False)


def cdiv(numerator: int, denominator: int) -> int:
    """⌈numerator / denominator⌉."""
    return -(-numerator // denominator)


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value`."""
    return cdiv(value, multiple) * multiple
