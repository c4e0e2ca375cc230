"""A network over all records of a source, on whatever devices its parameters are."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxface.data.pipeline.batches import evaluation_batches
from jaxface.data.sources.source import Source

_IN_FLIGHT = 2  # batches whose results are still on the devices


def map_source(
    fn: Callable[[Any, dict[str, jax.Array]], Any],
    source: Source,
    params: Any,
    *,
    batch_size: int = 128,
    fields: Sequence[str] = ("image",),
) -> Any:
    """What `fn` says of every record, in order and on the host.

    The last batch is filled up, so that `fn` sees one shape; what it says of the filling is dropped. Where the parameters live on
    a mesh, the records of a batch are spread over all of its devices, and parameters that are elsewhere are copied to each.

    Args:
      fn: (params, batch) -> a pytree of arrays [B, …]; compiled by `jax.jit`. The batch holds the fields, `valid` [B] bool, which
        is False for filling, and `position` [B] int32, the number of each record.
      source: the records.
      params: any pytree of arrays.
      batch_size: B; on a mesh rounded up to a multiple of its devices.
      fields: of the records, those that `fn` needs.

    Returns:
      The pytree of `fn` with numpy arrays [N, …].

    Raises:
      UserError: no record, or a batch size below 1.
    """
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params)]
    mesh = next((sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)), None)
    if mesh is not None:
        batch_size = -(-batch_size // mesh.size) * mesh.size
        rows, whole = (
            NamedSharding(mesh, PartitionSpec(mesh.axis_names)),
            NamedSharding(mesh, PartitionSpec()),
        )
        params = jax.tree.map(
            lambda x: x if _is_on(x, mesh) else jax.device_put(x, whole),
            params,
        )
    fetched: list = []
    waiting: collections.deque = collections.deque()

    def fetch():
        results, valid = waiting.popleft()
        fetched.append(jax.tree.map(lambda x: np.asarray(x)[valid], results))

    for number, batch in enumerate(evaluation_batches(source, batch_size)):
        position = np.arange(number * batch_size, (number + 1) * batch_size, dtype=np.int32)
        inputs = {**{name: batch[name] for name in fields}, "valid": batch["valid"], "position": position}
        if mesh is not None:
            inputs = jax.device_put(inputs, rows)
        results = fn(params, inputs)
        if mesh is not None and jax.process_count() > 1:
            results = jax.device_put(results, whole)
        waiting.append((results, batch["valid"]))
        if len(waiting) > _IN_FLIGHT:
            fetch()
    while waiting:
        fetch()
    return jax.tree.map(lambda *columns: np.concatenate(columns), *fetched)


def _is_on(leaf, mesh: jax.sharding.Mesh) -> bool:
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and sharding.mesh == mesh
