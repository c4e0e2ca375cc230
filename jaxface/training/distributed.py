"""Several processes as one run: how they find each other, and how none waits for one that has died."""

import contextlib
import glob
import importlib.util
import itertools
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from jaxface.checks import AtLeast, Integers, check_number
from jaxface.errors import UserError

HEARTBEAT_SECONDS = 30
"""How long a process may be silent before the others end."""


def on_host(tree: Any) -> Any:
    """A pytree of numpy arrays: each whole, also where every process has a part of it alone. All processes make the call."""

    def fetch(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)


def launcher(environment: Mapping[str, str] = os.environ) -> str | None:
    """The launcher that started this process as one of several: "slurm", "ompi", "mpi4py", "k8s" or "tpu"; None if none did.

    It reads what `srun`, `mpirun` (Open MPI, or MPICH and its relatives), an indexed Kubernetes job and a TPU pod set.
    """

    def number(*names: str) -> int:
        return next((int(environment[name]) for name in names if environment.get(name, "").isdigit()), 1)

    if "SLURM_PROCID" in environment and number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") > 1:
        return "slurm"
    if number("OMPI_COMM_WORLD_SIZE") > 1:
        return "ompi"
    if number("PMI_SIZE") > 1:
        return "mpi4py"
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return "tpu"
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "k8s"
    return None


def on_tpu_host() -> bool:
    """Whether this machine holds TPU chips and the library that drives them; it may then be one host of a pod."""
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def start_processes(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins this process to the others of its run; must come before the first use of a device.

    Without arguments the environment decides (`launcher`); a process on its own needs nothing and gets nothing.

    Args:
      coordinator: HOST:PORT on which process 0 listens, reachable by all.
      processes: how many there are, ≥ 1.
      process: index of this one, in [0, processes).

    Raises:
      UserError: some of the three but not all, a value out of range, or the others could not be reached.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"{missing[0]}: coordinator, processes and process go together; it is missing")
    if missing:
        method = launcher() or (
            "tpu" if on_tpu_host() and "tpu" in os.environ.get("JAX_PLATFORMS", "tpu") else None
        )
        if method is None:
            return
        options = {} if method == "tpu" else {"cluster_detection_method": method}
    else:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"coordinator: needs HOST:PORT, got {coordinator!r}")
        check_number("processes", processes, AtLeast(1))
        check_number("process", process, Integers(0, processes - 1))
        if processes == 1:
            return
        options = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **options)
    except (RuntimeError, ValueError, ImportError) as error:
        raise UserError(f"processes: cannot join the run: {_first_line(error)}") from None
    if _several():
        with together():
            connect(Mesh(np.array(jax.devices()), ("all",)))


def connect(mesh: Mesh) -> None:
    """Lets CPU devices of several processes find each other now, along every axis of a mesh; elsewhere it does nothing.

    The first sum over a group of devices connects them, and on CPUs fails where one process comes to it more than 30 seconds
    after another: a limit of Gloo that XLA does not let us raise. Compiling a training step may well make such a
    difference. Once connected they wait for each other, half an hour unless XLA_FLAGS has another
    `--xla_cpu_collective_timeout_seconds`. So all processes call this at the same place, before the first long compilation.

    Args:
      mesh: of all devices; its groups are those along each axis and along each combination of them.
    """
    if not _several() or mesh.devices.flat[0].platform != "cpu":
        return
    names = [name for name in mesh.axis_names if mesh.shape[name] > 1]
    for count in range(1, len(names) + 1):
        for axes in itertools.combinations(names, count):

            def total(axes=axes):
                return jax.lax.psum(jax.lax.axis_index(axes), axes)

            summed = jax.shard_map(total, mesh=mesh, in_specs=(), out_specs=PartitionSpec())
            jax.block_until_ready(jax.jit(summed)())
    multihost_utils.sync_global_devices("connected")  # the groups that messages between processes use


@contextlib.contextmanager
def together() -> Iterator[None]:
    """In a run of several processes, ends this one at once when it fails: the others wait for it in vain otherwise.

    A process that dies without a word is noticed by its heartbeat, `HEARTBEAT_SECONDS` later at most.
    """
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        if not _several() or status in (0, None):
            raise
        if isinstance(error, UserError):
            status = 2
            sys.stderr.write(f"error: {error}\n")
        elif isinstance(error, jax.errors.JaxRuntimeError):
            sys.stderr.write(
                f"error: process {jax.process_index()} of {jax.process_count()} lost the others ({_first_line(error)}); "
                "the same command resumes from the last checkpoint\n"
            )
        elif not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)  # an orderly exit would wait for the others


def _several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
