"""Arrays with one row per class, such as a memory of features, which the devices of a run share: written and read in a step.

Inside a step of `JitParallel` a bank is split over the `model` axis of the mesh by rows; elsewhere every device has the whole
of it. The results are the same.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxface import axes, losses

_SHARD, _ROWS, _WHOLE = PartitionSpec(axes.MODEL), PartitionSpec(axes.DATA), PartitionSpec()


def _on_a_mesh() -> bool:
    return axes.MODEL in jax.sharding.get_abstract_mesh().axis_names


def update_bank(
    update: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    bank: jax.Array,
    values: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """A bank after `update(rows, values, labels)`, which each device applies to its rows, given the batch of all devices.

    Args:
      update: pure; a label of -1 stands for a class whose row is elsewhere.
      bank: [C, …].
      values: [B, …].
      labels: [B] integers in [0, C), or -1 for a value that goes nowhere.
    """
    if axes.bound(axes.DATA):
        values, labels = jax.lax.all_gather((values, labels), axes.DATA, tiled=True)
    if not _on_a_mesh():
        return update(bank, values, labels)

    def on_device(rows, values, labels):
        here = labels - jax.lax.axis_index(axes.MODEL) * rows.shape[0]
        mine = (labels >= 0) & (here >= 0) & (here < rows.shape[0])
        return update(rows, values, jnp.where(mine, here, -1))

    return jax.shard_map(on_device, in_specs=(_SHARD, _WHOLE, _WHOLE), out_specs=_SHARD)(bank, values, labels)


def mined_relations(
    student: jax.Array, teacher: jax.Array, labels: jax.Array, memory: jax.Array, neighbors: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`losses.mined_relations` with the memory and the neighbors [C, …] split over the mesh as `update_bank` has them."""
    if not _on_a_mesh():
        return losses.mined_relations(student, teacher, labels, memory, neighbors)
    mapped = jax.shard_map(
        functools.partial(losses.mined_relations, axis_name=axes.MODEL),
        in_specs=(_ROWS, _ROWS, _ROWS, _SHARD, _SHARD),
        out_specs=(_ROWS, _ROWS),
    )
    return mapped(student, teacher, labels, memory, neighbors)


def mine_neighbors(
    prototypes: jax.Array, neighbors: int, of: jax.Array, *, valid: jax.Array | None = None
) -> jax.Array:
    """`losses.mine_neighbors` of the classes `of` [Q], with the prototypes [C, D] and `valid` [C] split over the mesh."""
    valid = jnp.ones(prototypes.shape[0], bool) if valid is None else valid

    def on_device(prototypes, valid, of, axis_name=None):
        return losses.mine_neighbors(prototypes, neighbors, valid=valid, of=of, axis_name=axis_name)

    if not _on_a_mesh():
        return on_device(prototypes, valid, of)
    mapped = jax.shard_map(
        functools.partial(on_device, axis_name=axes.MODEL),
        in_specs=(_SHARD, _SHARD, _ROWS),
        out_specs=_ROWS,
        check_vma=False,  # every shard merges the same candidates, which no type says
    )
    return mapped(prototypes, valid, of)
