"""Nearest neighbors in blocks: of a million candidates none needs a matrix of all similarities."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import int32_labels
from jaxface.errors import UserError

Rows = Any  # a pytree of arrays with one leading axis
Similarity = Callable[[Rows, Rows], jax.Array]


def dot_products(queries: jax.Array, candidates: jax.Array) -> jax.Array:
    """⟨q, v⟩ of every row of `queries` [Q, D] with every row of `candidates` [N, D]: [Q, N] float32.

    In full float32 on every device: the reduced precision that matrix units default to moves scores by 1e-3.

    Example:
      >>> dot_products(jnp.array([[3.0, 4.0]]), jnp.eye(2)).tolist()
      [[3.0, 4.0]]
    """
    return jnp.einsum(
        "qd,nd->qn",
        queries.astype(jnp.float32),
        candidates.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def nearest(
    queries: Rows,
    candidates: Rows,
    k: int,
    *,
    similarity: Similarity = dot_products,
    mask: jax.Array | None = None,
    labels: jax.Array | None = None,
    candidate_labels: jax.Array | None = None,
    exclude: jax.Array | None = None,
    at_most: float | None = None,
    query_block: int = 1024,
    candidate_block: int = 8192,
    approximate: bool = False,
    recall: float = 0.95,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k most similar candidates of each query.

        ids_q = the k largest of s(q, v) over the candidates v that q may have, in falling order, ties to the lower index

    A pure function for inside and outside of `jit`; the scores have gradients. It holds query_block · candidate_block
    similarities at a time, whatever Q and N.

    Args:
      queries: [Q, D] float, or any pytree of arrays [Q, …] that `similarity` takes.
      candidates: [N, D] float, or a pytree of arrays [N, …]; with `axis_name` the N of a shard, of which the r-th has the indices
        rN to rN + N - 1.
      k: how many, from 1 to the number of candidates (of all shards); static.
      similarity: (some queries, some candidates) -> [q, n] finite scores; a function of a module, a new one is compiled.
      mask: [Q, N] bool, True where a query may have a candidate.
      labels, candidate_labels: [Q] and [N] integers; a query may not have a candidate of its label.
      exclude: [Q] integers, the index of one candidate that each query may not have, such as itself; -1 for
        none.
      at_most: a query may not have a candidate whose score is above this.
      query_block, candidate_block: how many are compared at a time, ≥ 1; static.
      approximate: take the best of each block with `jax.lax.approx_max_k`, which is faster on a TPU (elsewhere it is exact): of
        the true neighbors a share of `recall` is expected, and the order of ties is not defined.
      recall: in (0, 1].
      axis_name: mesh axis of the shards of candidates, inside `jax.shard_map`; the queries, and the result, are the same on all.

    Returns:
      (scores [Q, k] float32, ids [Q, k] int32); where a query may have fewer than k candidates the rest is -inf and -1.

    Raises:
      ValueError: shapes disagree, a mask of another type than bool, labels or `exclude` that are not integers of 32 bits, a block
        below 1, or a recall out of its range.
      UserError: k out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
      >>> scores, ids = nearest(rows, rows, 1, exclude=jnp.arange(3))
      >>> ids[:, 0].tolist()
      [1, 0, 1]
    """
    queries, candidates = (jax.tree.map(jnp.asarray, rows) for rows in (queries, candidates))
    count, available = _length("queries", queries), _length("candidates", candidates)
    shards = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    if not 1 <= k <= available * shards or k != int(k):
        raise UserError(f"k: needs 1 to the {available * shards} candidates there are, got {k}")
    if query_block < 1 or candidate_block < 1:
        raise ValueError(
            f"query_block, candidate_block: need at least 1, got {query_block} and {candidate_block}"
        )
    if not 0 < recall <= 1:
        raise ValueError(f"recall: needs a value in (0, 1], got {recall}")
    if (labels is None) != (candidate_labels is None):
        raise ValueError("labels, candidate_labels: need both or neither")
    for name, values, shape in (
        ("mask", mask, (count, available)),
        ("labels", labels, (count,)),
        ("candidate_labels", candidate_labels, (available,)),
        ("exclude", exclude, (count,)),
    ):
        if values is not None and np.shape(values) != shape:
            raise ValueError(f"{name}: needs shape {shape}, got {np.shape(values)}")
    if mask is not None and jnp.asarray(mask).dtype != bool:
        raise ValueError(
            f"mask: needs booleans, True where a candidate is allowed, got {jnp.asarray(mask).dtype}"
        )
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * available
    of_queries, of_candidates = {"rows": queries}, {"rows": candidates}
    if mask is not None:
        of_queries["mask"] = jnp.asarray(mask)
    if labels is not None:
        of_queries["labels"] = int32_labels("labels", labels, None)
        of_candidates["labels"] = int32_labels("candidate_labels", candidate_labels, None)
    if exclude is not None:
        of_queries["exclude"] = int32_labels("exclude", exclude, None) - first
    scores, ids = _nearest(
        of_queries,
        of_candidates,
        at_most,
        k=min(k, available),
        similarity=similarity,
        query_block=max(min(query_block, count), 1),
        candidate_block=min(candidate_block, available),
        recall=recall if approximate else None,
    )
    if axis_name is None:
        return scores, ids
    # Shard after shard is index after index, and `top_k` takes the first of equals.
    ids = jnp.where(ids < 0, ids, ids + first)
    scores, ids = (jax.lax.all_gather(x, axis_name, axis=1, tiled=True) for x in (scores, ids))
    return _best(scores, ids, k)


def _length(name: str, rows: Rows) -> int:
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(rows)}
    if len(lengths) != 1 or lengths == {()}:
        shapes = [leaf.shape for leaf in jax.tree.leaves(rows)]
        raise ValueError(f"{name}: needs arrays with one leading axis, got shapes {shapes}")
    return lengths.pop()[0]


def _best(scores: jax.Array, ids: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    scores, positions = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(ids, positions, axis=1)


def _in_blocks(rows: Rows, size: int) -> Rows:
    """[N, …] as [blocks, size, …], filled up with zeros."""

    def split(x):
        blocks = -(-x.shape[0] // size)
        padded = jnp.pad(x, ((0, blocks * size - x.shape[0]), *((0, 0),) * (x.ndim - 1)))
        return padded.reshape(blocks, size, *x.shape[1:])

    return jax.tree.map(split, rows)


def _best_positions(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of [Q, n], the same result, in one cheap pass over the scores where n is large.

    Of chunks of each row, the k with the largest maxima, ties to the first, hold the k largest scores: each of them has a score
    that comes before all those of any other chunk. Only these chunks are sorted.
    """
    rows, length = scores.shape
    chunk = 16
    while (
        chunk < 256 and 4 * k * chunk * chunk < length
    ):  # length / chunk + k · chunk is least where they are equal
        chunk *= 2
    if length < 4 * k * chunk:
        return jax.lax.top_k(scores, k)
    padding = -length % chunk
    chunks = jnp.pad(scores, ((0, 0), (0, padding)), constant_values=-jnp.inf).reshape(rows, -1, chunk)
    _, largest = jax.lax.top_k(jax.lax.stop_gradient(chunks.max(axis=-1)), k)
    largest = jnp.sort(largest, axis=-1)  # in the order of the row, for ties
    positions = largest[..., None] * chunk + jnp.arange(chunk, dtype=largest.dtype)
    shortlist = jnp.take_along_axis(chunks, largest[..., None], axis=1).reshape(rows, -1)
    return _best(shortlist, positions.reshape(rows, -1), k)


@functools.partial(jax.jit, static_argnames=("k", "similarity", "query_block", "candidate_block", "recall"))
def _nearest(queries, candidates, at_most, *, k, similarity, query_block, candidate_block, recall):
    count, available = (_length("rows", x["rows"]) for x in (queries, candidates))
    blocks = _in_blocks(candidates, candidate_block)
    starts = jnp.arange(-(-available // candidate_block), dtype=jnp.int32) * candidate_block
    padding = len(starts) * candidate_block - available
    if "mask" in queries:
        queries = {**queries, "mask": jnp.pad(queries["mask"].astype(bool), ((0, 0), (0, padding)))}

    def of_block(block):
        def merge(best, column):
            candidates, start = column
            ids = start + jnp.arange(candidate_block, dtype=jnp.int32)
            scores = similarity(block["rows"], candidates["rows"]).astype(jnp.float32)
            allowed = jnp.broadcast_to(ids < available, scores.shape)
            if "mask" in block:
                allowed &= jax.lax.dynamic_slice_in_dim(block["mask"], start, candidate_block, axis=1)
            if "labels" in block:
                allowed &= block["labels"][:, None] != candidates["labels"]
            if "exclude" in block:
                allowed &= block["exclude"][:, None] != ids
            if at_most is not None:
                allowed &= scores <= at_most
            scores = jnp.where(allowed, scores, -jnp.inf)
            some = min(k, candidate_block)
            if recall is None:
                scores, positions = _best_positions(scores, some)
            else:
                scores, positions = jax.lax.approx_max_k(scores, some, recall_target=recall)
            # What was best so far comes first: it has the lower indices, and `top_k` takes the first of equals.
            scores = jnp.concatenate([best[0], scores], axis=1)
            return _best(scores, jnp.concatenate([best[1], ids[positions]], axis=1), k), None

        # Inside of `jax.shard_map` a carry has to vary over the mesh from the start, as what it is compared with does.
        leaves = jax.tree.leaves((block, blocks))
        varies = functools.reduce(
            jnp.logical_or, [(x.reshape(-1)[:1] == x.reshape(-1)[:1]).all() for x in leaves]
        )
        nothing = (
            jnp.full((query_block, k), jnp.where(varies, -jnp.inf, -jnp.inf), jnp.float32),
            jnp.full((query_block, k), jnp.where(varies, -1, -1), jnp.int32),
        )
        (scores, ids), _ = jax.lax.scan(merge, nothing, (blocks, starts))
        return scores, jnp.where(scores == -jnp.inf, -1, ids)

    neighbors = jax.lax.map(of_block, _in_blocks(queries, query_block))
    return jax.tree.map(lambda x: x.reshape(-1, k)[:count], neighbors)
