"""The forms that the kernels take: steps that broadcast, codes and factors in one `Problem`, masks as windows of keys."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.quantized_attention import checks, tile


def problem(steps, q8, k8, v8, bias, starts, ends) -> tile.Problem:
    p_step = None if steps.p is None else jnp.broadcast_to(steps.p, (1, q8.shape[1]))
    batch, heads, _, d = q8.shape
    return tile.Problem(
        q=q8,
        k=k8,
        v=v8,
        q_scale=rows(steps.q),
        k_scale=rows(steps.k),
        v_scale=jnp.broadcast_to(rows(steps.v), (batch, heads, d)),
        p_step=p_step,
        bias=bias,
        starts=starts,
        ends=ends,
    )


def rows(step):
    """A scalar, [H] or 3-axis step as three axes."""
    return step.reshape(1, -1, 1) if step.ndim < 2 else step


def aligned(steps, name, heads):
    """A step (or zero point) of mode "lsq" as [1, H, 1, 1]; None stays None."""
    return None if steps is None else jnp.broadcast_to(getattr(steps, name), (heads,)).reshape(1, -1, 1, 1)


def sum_to(d_step, step):
    """The gradient [1, H, 1, 1] of a step in the step's own shape."""
    d_step = d_step.reshape(-1)
    return (d_step.sum() if step.ndim == 0 else d_step).astype(step.dtype)


def windows(q_shape, k_shape, q_lengths, kv_lengths, segment_ids):
    """[B, Nq] first key and one past the last key that each query sees; None, None if all are seen by all."""
    if q_lengths is None and kv_lengths is None and segment_ids is None:
        return None, None
    batch, queries, keys = q_shape[0], q_shape[2], k_shape[2]
    starts, ends = jnp.zeros((batch, queries), jnp.int32), jnp.full((batch, queries), keys, jnp.int32)
    if segment_ids is not None:
        q_ids, k_ids = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
        checks.check_segments("segment_ids of the queries", q_ids, (batch, queries))
        checks.check_segments("segment_ids of the keys", k_ids, (batch, keys))
        starts = jax.vmap(functools.partial(jnp.searchsorted, side="left"))(k_ids, q_ids).astype(jnp.int32)
        ends = jax.vmap(functools.partial(jnp.searchsorted, side="right"))(k_ids, q_ids).astype(jnp.int32)
    if kv_lengths is not None:
        checks.check_lengths("kv_lengths", kv_lengths, batch, keys)
        ends = jnp.minimum(ends, kv_lengths[:, None].astype(jnp.int32))
    if q_lengths is not None:
        checks.check_lengths("q_lengths", q_lengths, batch, queries)
        ends = jnp.where(jnp.arange(queries) < q_lengths[:, None], ends, 0)
    return starts, ends
