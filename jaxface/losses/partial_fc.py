"""Losses over more classes than a device holds: sharded prototypes and sampled negatives (PartialFC, arXiv:2203.15565)."""

import jax
import jax.numpy as jnp

from jaxface.checks import Range, check_number, int32_labels
from pallas_kernels.margin_softmax import Head, margin_softmax


def shard_bounds(classes: int, shards: int) -> list[tuple[int, int]]:
    """(first class, number of classes) of every shard of the public PyTorch implementation, for weights that come from it.

    Its shards differ by one class where `shards` does not divide `classes`; arrays of JAX are split evenly and padded.

    Example:
      >>> shard_bounds(10, 4)
      [(0, 3), (3, 3), (6, 2), (8, 2)]
    """
    size, more = divmod(classes, shards)
    return [(size * rank + min(rank, more), size + (rank < more)) for rank in range(shards)]


def sample_classes(
    labels: jax.Array, key: jax.Array, *, classes: int, rate: float, limit: jax.Array | int | None = None
) -> tuple[jax.Array, jax.Array]:
    """The classes that take part in a step: every one with a sample in the batch, and others by chance up to a quota.

    The quota is ⌊rate · C⌋; where the batch has more classes, they alone take part. Others are drawn uniformly without
    replacement.

    Args:
      labels: [B] integers in [0, C), or -1 for a class of another shard.
      key: of the draw.
      classes: C, rows of the shard.
      rate: in (0, 1].
      limit: how many of the C are classes, the others being padding that is never drawn; all by default.

    Returns:
      (indices [K] int32, increasing and distinct; active [K] bool) with K = max(⌊rate C⌋, min(B, C)): the shape is static, so
      places that the quota does not fill exist but are not active.

    Example:
      >>> indices, active = sample_classes(jnp.array([7, 2]), jax.random.key(0), classes=10, rate=0.4)
      >>> indices.shape, {2, 7} <= set(indices.tolist())  # the classes of the batch, and two others
      ((4,), True)
    """
    labels = int32_labels("labels", labels, classes, low=-1)
    quota = int(rate * classes)
    size = max(quota, min(labels.shape[0], classes))
    score = jax.random.uniform(key, (classes,))
    padding = 0
    if limit is not None:
        real = jnp.arange(classes) < limit
        score, padding = jnp.where(real, score, -1.0), classes - jnp.sum(real)
    # A label of -1 would count from the end.
    score = score.at[jnp.where(labels >= 0, labels, classes)].set(2.0, mode="drop")
    top_scores, indices = jax.lax.top_k(score, size)
    positives = jnp.sum(top_scores == 2.0)
    count = jnp.minimum(jnp.maximum(quota, positives), classes - padding)
    active = jnp.arange(size) < count
    order = jnp.argsort(indices)
    return indices[order].astype(jnp.int32), active[order]


def partial_fc_loss(
    embeddings: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    head: Head,
    *,
    weights: jax.Array | None = None,
    classes: int | None = None,
    axis_name: str | None = None,
    rate: float = 1.0,
    key: jax.Array | None = None,
    batch_labels: jax.Array | None = None,
):
    """Margin loss against prototypes that may be one shard of many, and of which a sample may stand for all.

        loss = Σ_i w_i L_i(cos(x_i, W_j), j ∈ sampled classes of all shards)

    Memory is O(B D + C D) for C rows on this shard; no [B, C] is ever made (see `pallas_kernels.margin_softmax`).

    Args:
      embeddings: [B, D] float32 or bfloat16.
      prototypes: [C, D], the rows of this shard; with `axis_name`, shard r has classes rC to rC + C - 1.
      labels: [B] integers, numbered over all shards; -1 is on none. Where the values are not known, a label that is no class
        gives NaN.
      head: `SFace(...)`, `softmax(...)`, `cosface(...)`, `arcface(...)` of `pallas_kernels.margin_softmax`.
      weights: [B] float32, 1/B by default.
      classes: number of classes over all shards where the last rows are padding; all rows by default.
      axis_name: mesh axis of the shards, inside `jax.shard_map`.
      rate: fraction of a shard's classes that take part in a step, in (0, 1]; see `sample_classes`.
      key: random key, needed below rate 1; the same on all shards, which draw differently.
      batch_labels: labels whose classes must all take part, where other devices hold more of the batch against the same
        prototypes; `labels` by default.

    Returns:
      (float32 scalar, terms [B]) as `pallas_kernels.margin_softmax.margin_softmax`.

    Raises:
      ValueError: a rate outside (0, 1], or below 1 without a key; (where the values are known) a label that is no class; what
        `margin_softmax` refuses.

    Example:
      >>> from pallas_kernels.margin_softmax import softmax
      >>> embeddings, prototypes = jnp.eye(2, 4), jnp.eye(4)
      >>> loss, terms = partial_fc_loss(embeddings, prototypes, jnp.array([0, 1]), softmax(scale=1.0))
      >>> round(float(loss), 3)  # log(e + 3) - 1
      0.744
    """
    check_number("rate", rate, Range(0, 1, above=True))
    if rate < 1 and key is None:
        raise ValueError("key: needs a random key where rate < 1")
    rows = prototypes.shape[0]
    shard, shards = 0, 1
    if axis_name is not None:
        shard, shards = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    total = rows * shards if classes is None else classes
    labels = int32_labels("labels", labels, total, low=-1)
    shard_labels = labels - shard * rows
    shard_labels = jnp.where((shard_labels >= 0) & (shard_labels < rows), shard_labels, -1)
    # No class of any shard: `margin_softmax` makes a NaN of it.
    shard_labels = jnp.where((labels < -1) | (labels >= total), -2, shard_labels)
    limit = None if classes is None else jnp.clip(classes - shard * rows, 0, rows)
    sampled, where = None, None if limit is None else jnp.arange(rows) < limit
    if rate < 1:
        assert key is not None  # checked above
        every = labels if batch_labels is None else int32_labels("batch_labels", batch_labels, total, low=-1)
        every = every - shard * rows
        every = jnp.where((every >= 0) & (every < rows), every, -1)
        sampled, where = sample_classes(
            every, jax.random.fold_in(key, shard), classes=rows, rate=rate, limit=limit
        )
        shard_labels = jnp.where(shard_labels >= 0, jnp.searchsorted(sampled, shard_labels), shard_labels)
    return margin_softmax(
        embeddings,
        prototypes,
        shard_labels,
        head,
        weights=weights,
        classes=sampled,
        where=where,
        axis_name=axis_name,
        saved_bytes=0,
    )
