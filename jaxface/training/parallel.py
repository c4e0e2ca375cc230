"""The same pure step on one device, on a mesh, or replicated.

`jit` over a `data × model` mesh is the default; one device is a mesh of one. `pmap` replicates the state and binds the axis
name `data`. Both give the same numbers as a single device (up to the order of sums).
"""

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxface import axes
from jaxface.checks import AtLeast, check_number
from jaxface.data.transforms.pixels import device_batch
from jaxface.errors import UserError
from jaxface.training.distributed import connect
from jaxface.training.stages import HostBatch, Metrics, State

Mode = Literal["jit", "pmap"]
"""How a step runs on several devices: over a mesh, or replicated."""
Shard = Literal["none", "fsdp"]
"""What of the state is spread over the devices: class prototypes alone, or every large parameter."""
Step = Callable[[State, HostBatch], tuple[State, Metrics]]


def _named(path, name: str) -> bool:
    return any(getattr(key, "key", getattr(key, "name", None)) == name for key in path)


_MAX_COMPILED_STEPS = 4
"""Steps whose compiled form is kept: stages that share one compile it once. A method may alternate between a few."""


LARGE_LEAF = 1 << 14
"""Elements from which `fsdp` spreads an array: below, the message to fetch it costs more than its memory."""


def _spread_over(axis: str, devices: int, leaf, spec: PartitionSpec) -> PartitionSpec:
    """`spec`, and the longest dimension that it leaves free and that divides split over `axis`; as it is where there is none."""
    names = [*spec, *(None,) * (leaf.ndim - len(spec))]
    free = [i for i, size in enumerate(leaf.shape) if names[i] is None and size % devices == 0]
    if devices == 1 or leaf.size < LARGE_LEAF or not free:
        return spec
    names[max(free, key=lambda i: leaf.shape[i])] = axis
    return PartitionSpec(*names)


def _copied(init):
    """`init`, whose results are never buffers of its arguments: the first step gives up the state, others may keep theirs."""
    return lambda *arguments: jax.tree.map(jnp.copy, init(*arguments))


def _weakly(state: State) -> weakref.ref | None:
    """A reference that does not keep the state; None for a state that allows none, such as a dict."""
    try:
        return weakref.ref(state)
    except TypeError:
        return None


class JitParallel:
    """`jit` over a mesh of `data × model` devices: batches are split over all of them, what a stage names over `model`.

    With `shard` "fsdp" every large array of the state is split over `data` besides (arXiv:1910.02054, 2304.11277): parameters,
    the optimizer's state, averages and frozen networks; a step fetches a layer's parameters when it needs them.

    The step sees the mesh (`jax.sharding.get_abstract_mesh`), so that a part of it may be written for each device.
    """

    def __init__(self, *, model_shards: int = 1, shard: Shard = "none", devices: list | None = None):
        devices = jax.devices() if devices is None else devices
        if model_shards < 1 or len(devices) % model_shards:
            raise UserError(
                f"model_shards: needs a divisor of the {len(devices)} devices, got {model_shards}"
            )
        self.mesh = Mesh(np.array(devices).reshape(-1, model_shards), (axes.DATA, axes.MODEL))
        self.replicas = len(devices)
        self._shard = shard
        self._batch = NamedSharding(self.mesh, PartitionSpec((axes.DATA, axes.MODEL)))
        self._compiled = functools.lru_cache(_MAX_COMPILED_STEPS)(self._compile)
        connect(self.mesh)

    def shardings(self, abstract: State, rules: Mapping[str, PartitionSpec]) -> State:
        """A NamedSharding for every leaf: that of the first rule whose name is in its path, else replicated, unless `fsdp`."""

        def choose(path, leaf):
            for name, spec in rules.items():
                if _named(path, name) and leaf.ndim >= len(spec):
                    for size, axis in zip(leaf.shape, spec, strict=False):
                        if axis is not None and size % self.mesh.shape[axis]:
                            raise UserError(
                                f"model_shards: {name} of size {size} cannot be split over {self.mesh.shape[axis]} devices"
                            )
                    return NamedSharding(self.mesh, spread(leaf, spec))
            return NamedSharding(self.mesh, spread(leaf, PartitionSpec()))

        def spread(leaf, spec):
            whole = self._shard == "none" or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            return spec if whole else _spread_over(axes.DATA, self.mesh.shape[axes.DATA], leaf, spec)

        return jax.tree_util.tree_map_with_path(choose, abstract)

    def create(
        self,
        init: Callable[..., State],
        *arguments,
        rules: Mapping[str, PartitionSpec],
        compiled: bool = True,
    ) -> State:
        """The state that `init(*arguments)` makes, where the rules want it; none of its buffers is one of the arguments'."""
        if not compiled:
            made = init(*arguments)
            target = self.shardings(jax.eval_shape(lambda: made), rules)
            if jax.process_count() == 1:
                return jax.device_put(made, target, may_alias=False)
            # Arrays of this process alone reach the devices of others as arguments of a compiled function only.
            return jax.jit(_copied(lambda state: state), out_shardings=target)(made)
        target = self.shardings(jax.eval_shape(init, *arguments), rules)
        return jax.jit(_copied(init), out_shardings=target)(*arguments)

    def compile(self, step) -> Step:
        """`step` for host batches; the state it is given is consumed. One step object is compiled once, whatever its stages."""
        return self._compiled(step)

    def _compile(self, step) -> Step:
        def on_device(state, batch):
            return step(state, device_batch(batch))

        @functools.cache
        def compiled(treedef, shardings):
            # The state leaves as it came: left to itself the partitioner may move a leaf and so compile a second time.
            shardings = jax.tree.unflatten(treedef, shardings)
            return jax.jit(
                on_device,
                donate_argnums=0,
                in_shardings=(shardings, self._batch),
                out_shardings=(shardings, NamedSharding(self.mesh, PartitionSpec())),
            )

        returned = program = None

        def run(state, batch):
            nonlocal returned, program
            # What the step itself returned needs no second look at its hundreds of leaves.
            if returned is None or state is not returned():
                leaves, treedef = jax.tree.flatten(state)
                program = compiled(treedef, tuple(leaf.sharding for leaf in leaves))
            with jax.set_mesh(self.mesh):
                state, metrics = program(state, self._place(batch))
            returned = _weakly(state)
            return state, metrics

        return run

    def _place(self, batch: HostBatch):
        if jax.process_count() == 1:
            return batch  # calling the compiled step moves it, in a tenth of the time of `device_put`
        return {
            k: jax.make_array_from_process_local_data(self._batch, np.asarray(v)) for k, v in batch.items()
        }

    def single(self, state: State) -> State:
        """One logical copy of the state, as evaluation, checkpoints and the next stage see it."""
        return state

    def spread(self, state: State) -> State:
        """The inverse of `single`."""
        return state

    def refreshed(self, state: State, function: Callable[[State], State]) -> State:
        """What a function on the host makes of the state; every leaf stays where it was."""
        return jax.tree.map(
            lambda new, old: new if new is old else jax.device_put(new, old.sharding), function(state), state
        )


class PmapParallel:
    """`pmap`: every device holds the whole state and its share of the batch; the axis name `data` is bound."""

    def __init__(self, *, devices: list | None = None):
        self._devices = jax.local_devices() if devices is None else devices
        self.replicas = len(self._devices) * jax.process_count()
        self._compiled = functools.lru_cache(_MAX_COMPILED_STEPS)(self._compile)

    def shardings(self, abstract: State, rules: Mapping[str, PartitionSpec]) -> State:
        """Replicated checkpoints live on one device of each process."""
        first_device = jax.sharding.SingleDeviceSharding(self._devices[0])
        return jax.tree.map(lambda _: first_device, abstract)

    def create(
        self,
        init: Callable[..., State],
        *arguments,
        rules: Mapping[str, PartitionSpec],
        compiled: bool = True,
    ) -> State:
        """The state that `init(*arguments)` makes, on every device; the rules, being about a mesh, do not apply."""
        return self.spread((jax.jit(_copied(init)) if compiled else init)(*arguments))

    def compile(self, step) -> Step:
        """`step` for host batches; the state it is given is consumed. One step object is compiled once, whatever its stages."""
        return self._compiled(step)

    def _compile(self, step) -> Step:
        def on_device(state, batch):
            return step(state, device_batch(batch))

        compiled = jax.pmap(
            on_device,
            axis_name=axes.DATA,
            out_axes=(0, None),  # metrics of the first replica; to index them afterwards costs milliseconds
            donate_argnums=0,
            devices=self._devices,
        )
        count = len(self._devices)

        def run(state, batch):
            split = {k: np.reshape(v, (count, len(v) // count, *np.shape(v)[1:])) for k, v in batch.items()}
            return compiled(state, split)

        return run

    def single(self, state: State) -> State:
        """The first replica."""
        return jax.tree.map(lambda x: x[0], state)

    def spread(self, state: State) -> State:
        """A copy on every device."""
        count = len(self._devices)
        return jax.pmap(lambda _, s: s, in_axes=(0, None), devices=self._devices)(jnp.arange(count), state)

    def refreshed(self, state: State, function: Callable[[State], State]) -> State:
        """What a function on the host makes of the first replica, on every device."""
        return self.spread(function(self.single(state)))


Parallel = JitParallel | PmapParallel


def make_parallel(
    mode: Mode = "jit", *, model_shards: int = 1, shard: Shard = "none", devices: list | None = None
) -> Parallel:
    """How to run: `jit` over a mesh of (devices / model_shards) × model_shards, with the state spread or not, or `pmap`.

    Raises:
      UserError: an unknown mode or `shard`; `model_shards` that does not divide the devices, or other than 1 with `pmap`; "fsdp"
        with `pmap`.
    """
    if shard not in get_args(Shard):
        raise UserError(f"shard: needs one of {', '.join(get_args(Shard))}, got {shard!r}")
    if mode == "jit":
        return JitParallel(model_shards=model_shards, shard=shard, devices=devices)
    if mode != "pmap":
        raise UserError(f"parallel: needs 'jit' or 'pmap', got {mode!r}")
    if model_shards != 1:
        raise UserError("model_shards: pmap replicates every parameter; use --parallel jit to shard them")
    if shard != "none":
        raise UserError("shard: pmap replicates every parameter; use --parallel jit to spread them")
    return PmapParallel(devices=devices)


def check_batch_size(parallel: Parallel, batch_size: int, *, accumulate: int = 1) -> None:
    """Raises UserError unless the global batch divides evenly over the devices and the micro-batches."""
    check_number("accumulate", accumulate, AtLeast(1))
    check_number("batch_size", batch_size, AtLeast(1))
    if batch_size % (parallel.replicas * accumulate):
        divisor = f"{parallel.replicas} devices" + (
            f" × {accumulate} micro-batches" if accumulate > 1 else ""
        )
        raise UserError(
            f"batch_size: {batch_size} does not divide over {divisor}; use a multiple of {parallel.replicas * accumulate}"
        )
