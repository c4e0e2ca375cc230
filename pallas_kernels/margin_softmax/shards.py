"""What `jax.shard_map` has to be told: over which mesh axes an array differs from device to device."""

from typing import Any

import jax


def axes(*arrays: jax.Array) -> frozenset[str]:
    """The mesh axes over which any of the arrays varies; none outside `shard_map` and under `check_vma=False`."""
    return frozenset().union(*(jax.typeof(array).mat.varying for array in arrays))


def vary(tree: Any, over: frozenset[str]) -> Any:
    """`tree` with every array varying over the axes `over`; differentiation sums the cotangents over those added."""

    def cast(array):
        missing = tuple(sorted(over - axes(array)))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return jax.tree.map(cast, tree)


def struct(shape: tuple[int, ...], dtype: Any, like: jax.Array) -> jax.ShapeDtypeStruct:
    """A kernel's output that varies over the same axes as `like`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).mat)
