"""Backward kernels for a TPU, which make every tile of scores again: δ and the terms of the probabilities' step; dk and dv; dq.

Tiles lie keys × queries, as in the forward.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.quantized_attention import reference, tile, tpu_tile


def gradients(problem, d_out, d_lse, out, lse, *, largest: int, interpret) -> reference.Gradients:
    """As `reference.gradients`; products of `d_out`'s dtype, summed in float32, in a fixed order."""
    batch, heads, queries, keys, d = problem.sizes
    merged = batch * heads
    dtype = d_out.dtype
    block_q, block_k, count_q, count_k = tpu_tile.tiling(queries, keys)
    first, last = tile.tile_ranges(problem, block_q, block_k, count_q, count_k)
    group = tpu_tile.merged(problem)
    lsq = problem.p_step is not None

    d_rows = d_out.reshape(merged, queries, d)
    group["d_out"] = d_rows
    group["d_scaled"] = (d_rows.astype(jnp.float32) * group["v_scale"]).astype(dtype)  # dP̂ = (d_out a_v) v8ᵀ
    group["lse"] = tile.finite(lse * tile.LOG2E).reshape(merged, 1, queries)
    scalars = (first, last, (group["p_step"] if lsq else jnp.ones((merged,))).astype(jnp.float32))
    tiling = (block_q, block_k, count_q, count_k)
    walk = functools.partial(_walk, problem, group, scalars, tiling, largest, interpret)

    d_lse = d_lse.astype(jnp.float32).reshape(merged, 1, queries)
    d_step = None
    if lsq:
        delta, terms = walk("delta")
        d_step = terms.reshape(batch, heads, -1).sum((0, 2))[None]
    else:
        delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1).reshape(merged, 1, queries)
    delta = delta - d_lse
    c = 1.0 / math.sqrt(d)
    q_scale = jnp.broadcast_to(problem.q_scale * c, (batch, heads, queries)).reshape(merged, 1, queries)
    d_k, d_v = walk("keys", delta=delta, q_scale=q_scale)
    (d_q,) = walk("queries", delta=delta)
    d_q = d_q.reshape(batch, heads, queries, d).astype(jnp.float32) * c
    if not problem.has_column_scale:
        d_q = d_q * problem.k_scale[..., None]
    shape = (batch, heads, keys, d)
    return reference.Gradients(q=d_q, k=d_k.reshape(shape), v=d_v.reshape(shape), p_step=d_step, bias=None)


def _walk(problem, group, scalars, tiling, largest, interpret, what, delta=None, q_scale=None):
    """One of the three backward kernels: every tile of scores is made again, and summed over its keys or its queries.

    Args:
      what: "delta" -> δ and the step's terms [BH, 1, Nq]; "queries" -> dq̂ / c [BH, Nq, d] (over the keys' step, if a head
        has one); "keys" -> dk̂, dv̂ [BH, Nk, d].
    """
    _, heads, queries, keys, d = problem.sizes
    block_q, block_k, count_q, count_k = tiling
    merged = group["q"].shape[0]
    exact_int8 = tpu_tile.int8(interpret)
    lsq = problem.p_step is not None
    dtype = group["d_out"].dtype
    over_keys = what != "keys"  # the innermost axis of the grid walks over the keys

    def order(*indices):
        b, outer, inner = indices
        return (b, outer, inner) if over_keys else (b, inner, outer)

    def by_query(*indices):
        b, i, _ = order(*indices[:3])
        return b, i, 0

    def by_query_lanes(*indices):
        b, i, _ = order(*indices[:3])
        return b, 0, i

    def visited_key(indices):
        b, i, j = order(*indices[:3])
        if not over_keys:
            return j
        first, last = indices[3][b // heads, i], indices[4][b // heads, i]
        return jnp.clip(j, jnp.minimum(first, count_k - 1), jnp.maximum(last - 1, 0))

    call = tpu_tile.Call()
    call.add("q", group["q"], (1, block_q, d), by_query)
    call.add("k", group["k"], (1, block_k, d), lambda *n: (n[0], visited_key(n), 0))
    call.add("v", group["v"], (1, block_k, d), lambda *n: (n[0], visited_key(n), 0))
    call.add("d_scaled", group["d_scaled"], (1, block_q, d), by_query)
    call.add("row", group["row"], (1, 1, block_q), by_query_lanes)
    call.add("lse", group["lse"], (1, 1, block_q), by_query_lanes)
    call.add("column", group["column"], (1, 1, block_k), lambda *n: (n[0], 0, visited_key(n)))
    for name in ("starts", "ends"):
        call.add(name, group[name], (1, 1, block_q), lambda *n: (n[0] // heads, 0, by_query_lanes(*n)[2]))
    call.add("delta", delta, (1, 1, block_q), by_query_lanes)
    call.add("q_scale", q_scale, (1, 1, block_q), by_query_lanes)
    if what == "keys":
        call.add("d_out", group["d_out"], (1, block_q, d), by_query)
    if what == "queries":
        k_t = group["k"].swapaxes(1, 2)
        call.add("k_t", k_t, (1, d, block_k), lambda *n: (n[0], 0, visited_key(n)))

    lanes = (jax.ShapeDtypeStruct((merged, 1, queries), jnp.float32), (1, 1, block_q), by_query_lanes)
    rows = (jax.ShapeDtypeStruct((merged, queries, d), dtype), (1, block_q, d), by_query)
    columns = (jax.ShapeDtypeStruct((merged, keys, d), dtype), (1, block_k, d), lambda *n: (n[0], n[1], 0))
    outputs = {"delta": [lanes, lanes], "queries": [rows], "keys": [columns, columns]}[what]
    sums = {"delta": [(1, block_q)] * 2, "queries": [(d, block_q)], "keys": [(block_k, d)] * 2}[what]

    def product(a, b, contract):
        dims = (((contract[0],), (contract[1],)), ((), ()))
        return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), dims, preferred_element_type=jnp.float32)

    def body(first_ref, last_ref, p_step_ref, *refs):
        inputs = refs[: len(call.names)]
        outs = refs[len(inputs) : len(inputs) + len(outputs)]
        sum_refs = refs[len(inputs) + len(outputs) :]
        at = call.named(inputs)
        inner = pl.program_id(2)
        b, i, j = order(*(pl.program_id(axis) for axis in range(3)))
        visited = (j >= first_ref[b // heads, i]) & (j < last_ref[b // heads, i])

        @pl.when(inner == 0)
        def _():
            for ref in sum_refs:
                ref[...] = jnp.zeros_like(ref)

        @pl.when(visited)
        def _():
            starts, ends = (at[n][0] if n in at else None for n in ("starts", "ends"))
            seen = tpu_tile.seen((block_k, block_q), j, keys, starts, ends)
            if not over_keys and queries % block_q:  # what lies after the last query must not join the sums
                query = jax.lax.broadcasted_iota(jnp.int32, (1, block_q), 1) + i * block_q
                seen = (query < queries) if seen is None else seen & (query < queries)
            column = tpu_tile.column(at["column"][0]) if "column" in at else None
            logits = tile.base2_logits(
                tpu_tile.scores(at["k"][0], at["q"][0], exact_int8), at["row"][0], column
            )
            p = tpu_tile.masked(jnp.exp2(tpu_tile.masked(logits, seen) - at["lse"][0]), seen, 0.0)
            d_p = product(_float(at["v"][0]), at["d_scaled"][0], (1, 1))
            p_hat = p
            if lsq:
                p_hat, d_p, terms = tile.probability_step_terms(p, d_p, p_step_ref[b], largest)
            if what == "delta":
                sum_refs[0][...] += jnp.sum(d_p * p, 0, keepdims=True)
                sum_refs[1][...] += jnp.sum(terms, 0, keepdims=True)
                return
            d_logits = tpu_tile.masked(p * (d_p - at["delta"][0]), seen, 0.0)
            if what == "queries":
                weighted = d_logits if column is None else tpu_tile.masked(d_logits * column, seen, 0.0)
                sum_refs[0][...] += product(_float(at["k_t"][0]), weighted, (1, 0))
                return
            d_out = at["d_out"][0]
            if queries % block_q:
                query = jax.lax.broadcasted_iota(jnp.int32, (block_q, 1), 0) + i * block_q
                d_out = jnp.where(query < queries, d_out, 0.0).astype(dtype)
            weighted = tpu_tile.masked(d_logits * at["q_scale"][0], seen, 0.0)
            sum_refs[0][...] += product(weighted, _float(at["q"][0]), (1, 0))
            sum_refs[1][...] += product(p_hat, d_out, (1, 0))

        @pl.when(inner == pl.num_programs(2) - 1)
        def _():
            for out_ref, sum_ref in zip(outs, sum_refs, strict=True):
                total = sum_ref[...].T if what == "queries" else sum_ref[...]
                out_ref[0] = total.astype(out_ref.dtype)

    products = {"delta": 2, "queries": 3, "keys": 4}[what]
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(merged, count_q, count_k) if over_keys else (merged, count_k, count_q),
            in_specs=call.specs,
            out_specs=[pl.BlockSpec(block, index_map) for _, block, index_map in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in sums],
        ),
        out_shape=[shape for shape, _, _ in outputs],
        cost_estimate=tpu_tile.cost(problem, products, 1, 4),
        name=f"quantized_attention_backward_{what}",
        **tpu_tile.params(("parallel", "parallel", "arbitrary"), interpret),
    )(*scalars, *call.values)


def _float(codes):
    return codes.astype(jnp.float32)
