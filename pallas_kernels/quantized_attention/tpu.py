"""Kernels for a TPU. A tile of scores is held transposed, keys × queries: what a query has one of (its scale, maximum, sum,
window) is then a row of lanes, which broadcasts down the tile, and maxima and sums over the keys go down sublanes.

Three forwards: all keys of a query at once (`_resident`, up to `RESIDENT` keys), two passes over blocks of keys ("lsq":
first the normaliser, then the codes), one pass with a running maximum ("ptq"). Three backward kernels: δ and the terms of the
probabilities' step, dk and dv, dq.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import common
from pallas_kernels.quantized_attention import reference, tile

RESIDENT = 1024
"""Up to this many keys a query's scores are held at once."""

_RESIDENT_QUERIES = 256
_BLOCK = 512
_HEADS_PER_STEP = 4  # a grid step costs about as much as one head of 197 tokens


def obstacle(shape, dtype, *, bias: bool, zero_points: bool) -> str | None:
    """Why these operands cannot run: `shape` is (B, H, Nq, Nk, d)."""
    d = shape[-1]
    if bias:
        return "the kernels take no bias"
    if zero_points:
        return "the kernels take no zero points"
    if d % 32 or d > 256:
        return f"the head size must be a multiple of 32 up to 256, it is {d}"
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"the dtype must be float32 or bfloat16, it is {jnp.dtype(dtype)}"
    return None


def attention(problem: tile.Problem, *, largest: int, interpret, dtype) -> tuple[jax.Array, jax.Array]:
    """As `reference.attention`, o in `dtype`."""
    batch, heads, queries, keys, d = problem.sizes
    group = _merged(problem)
    if keys <= RESIDENT:
        out, lse = _resident(problem, group, largest, interpret, dtype)
    else:
        out, lse = _streamed(problem, group, largest, interpret, dtype)
    return out.reshape(batch, heads, queries, d), lse.reshape(batch, heads, queries)


# --- pieces of a tile ------------------------------------------------------------------------------------------------


def _matmul(a, b, contract, exact_int8):
    """Integer product of codes, int32; through bfloat16 where the matrix unit has no int8 (exact below 2^24)."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    if exact_int8:
        return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.int32)
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32).astype(jnp.int32)


def _scores(k, q, exact_int8):
    """[Bk, Bq] of [Bk, d] and [Bq, d]."""
    return _matmul(k, q, (1, 1), exact_int8)


def _values(v_t, codes, largest, exact_int8):
    """v8ᵀ P8ᵀ, int32 [d, Bq], of v8ᵀ [d, Bk] and codes [Bk, Bq] (any number type that holds them)."""
    if not exact_int8:
        return _matmul(v_t, codes.astype(jnp.float32), (1, 0), False)
    if largest <= 127:
        return _matmul(v_t, codes.astype(jnp.int32).astype(jnp.int8), (1, 0), True)
    shifted = (codes.astype(jnp.int32) - 128).astype(jnp.int8)
    return _matmul(v_t, shifted, (1, 0), True) + 128 * jnp.sum(v_t.astype(jnp.int32), 1, keepdims=True)


def _column(row):
    """A row of lanes [1, n] as a column of sublanes [n, 1]."""
    return jnp.broadcast_to(row, (128, row.shape[1])).T[:, :1]


def _seen(shape, block, keys, starts, ends):
    """Which keys of this tile each query sees; None if all."""
    if starts is None and keys % shape[0] == 0:
        return None
    key = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + block * shape[0]
    return key < keys if starts is None else tile.inside_window(key, starts, ends)


def _masked(logits, seen, fill=tile.MASKED):
    return logits if seen is None else jnp.where(seen, logits, fill)


# --- blocks and operands ---------------------------------------------------------------------------------------------


def _merged(problem):
    """name -> operand with batch and heads merged; what a query or a key has one of has its tokens along lanes."""
    batch, heads, queries, keys, d = problem.sizes
    merged = batch * heads
    return {
        "q": problem.q.reshape(merged, queries, d),
        "k": problem.k.reshape(merged, keys, d),
        "v": problem.v.reshape(merged, keys, d),
        "row": problem.row_scale().reshape(merged, 1, queries),
        "column": jnp.broadcast_to(problem.k_scale, (batch, heads, keys)).reshape(merged, 1, keys)
        if problem.has_column_scale
        else None,
        "v_scale": problem.v_scale.reshape(merged, 1, d),
        "starts": None if problem.starts is None else problem.starts[:, None],
        "ends": None if problem.ends is None else problem.ends[:, None],
        "p_step": None if problem.p_step is None else jnp.tile(problem.p_step[0], batch),
    }


class _Call:
    """Collects operands with their blocks, so that absent ones leave no trace; the body gets them by name."""

    def __init__(self):
        self.names, self.values, self.specs = [], [], []

    def add(self, name, value, block, index_map):
        if value is not None:
            self.names.append(name)
            self.values.append(value)
            self.specs.append(pl.BlockSpec(block, index_map))

    def named(self, refs):
        return dict(zip(self.names, refs, strict=True))


def _params(semantics, interpret):
    return {"compiler_params": pltpu.CompilerParams(dimension_semantics=semantics), "interpret": interpret}


def _cost(problem, products, exponentials, out_bytes):
    batch, heads, queries, keys, d = problem.sizes
    scores = batch * heads * queries * keys
    return pl.CostEstimate(
        flops=2 * products * scores * d,
        bytes_accessed=batch * heads * (queries * d * (1 + out_bytes) + 2 * keys * d),
        transcendentals=exponentials * scores,
    )


# --- forward ---------------------------------------------------------------------------------------------------------


def _resident(problem, group, largest, interpret, dtype):
    batch, heads, queries, keys, d = problem.sizes
    merged = batch * heads
    block_q = min(_RESIDENT_QUERIES, common.round_up(queries, 128))
    block_k = common.round_up(keys, 128)
    together = max(g for g in range(1, _HEADS_PER_STEP + 1) if heads % g == 0) if keys <= 256 else 1
    exact_int8 = _int8(interpret)
    steps_per_example = heads // together
    call = _Call()
    call.add("q", group["q"], (together, block_q, d), lambda b, i, *_: (b, i, 0))
    call.add("k", group["k"], (together, block_k, d), lambda b, i, *_: (b, 0, 0))
    call.add("v_t", group["v"].swapaxes(1, 2), (together, d, block_k), lambda b, i, *_: (b, 0, 0))
    call.add("row", group["row"], (together, 1, block_q), lambda b, i, *_: (b, 0, i))
    call.add("column", group["column"], (together, 1, block_k), lambda b, i, *_: (b, 0, 0))
    call.add("v_scale", group["v_scale"], (together, 1, d), lambda b, i, *_: (b, 0, 0))
    for name in ("starts", "ends"):
        call.add(name, group[name], (1, 1, block_q), lambda b, i, *_: (b // steps_per_example, 0, i))
    lsq = problem.p_step is not None

    def body(p_step_ref, *refs):
        *inputs, out_ref, lse_ref = refs
        at = call.named(inputs)
        starts, ends = (at[n][0] if n in at else None for n in ("starts", "ends"))
        seen = _seen((block_k, block_q), 0, keys, starts, ends)
        for g in range(together):
            scores = _scores(at["k"][g], at["q"][g], exact_int8)
            column = _column(at["column"][g]) if "column" in at else None
            logits = _masked(tile.base2_logits(scores, at["row"][g], column), seen)
            maximum = jnp.max(logits, 0, keepdims=True)
            e = _masked(jnp.exp2(logits - maximum), seen, 0.0)
            total = jnp.sum(e, 0, keepdims=True)
            if lsq:
                p_step = p_step_ref[pl.program_id(0) * together + g]
                codes = tile.probability_codes(e, tile.reciprocal(total, p_step), largest)
                factor = p_step
            else:
                codes = tile.probability_codes(e, float(largest), largest)
                factor = tile.reciprocal(total, float(largest))
            products = _values(at["v_t"][g], codes, largest, exact_int8).astype(jnp.float32)
            out_ref[g] = (products * factor * _column(at["v_scale"][g])).T.astype(out_ref.dtype)
            lse_ref[g] = tile.log_sum_exp2(maximum, total) / tile.LOG2E

    p_step = group["p_step"] if lsq else jnp.ones((1,), jnp.float32)
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(merged // together, common.cdiv(queries, block_q)),
            in_specs=call.specs,
            out_specs=[
                pl.BlockSpec((together, block_q, d), lambda b, i, *_: (b, i, 0)),
                pl.BlockSpec((together, 1, block_q), lambda b, i, *_: (b, 0, i)),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((merged, queries, d), dtype),
            jax.ShapeDtypeStruct((merged, 1, queries), jnp.float32),
        ],
        cost_estimate=_cost(problem, 2, 1, jnp.dtype(dtype).itemsize),
        name="quantized_attention_resident",
        **_params(("parallel", "parallel"), interpret),
    )(p_step.astype(jnp.float32), *call.values)


def _streamed(problem, group, largest, interpret, dtype):
    batch, heads, queries, keys, d = problem.sizes
    merged = batch * heads
    block_q, block_k, count_q, count_k = _tiling(queries, keys)
    exact_int8 = _int8(interpret)
    lsq = problem.p_step is not None
    by_threshold = lsq and largest <= 7 and not problem.has_column_scale
    passes = 2 if lsq else 1
    first, last = tile.tile_ranges(problem, block_q, block_k, count_q, count_k)
    if lsq:
        bound = jnp.pad(tile.logit_bound(problem), ((0, 0), (0, 0), (0, block_q * count_q - queries)))
        bounded = bound.reshape(merged, count_q, block_q).max(-1) < tile.MAX_SAFE_LOGIT
        scalars = (first, last, bounded.astype(jnp.int32), group["p_step"].astype(jnp.float32))
    else:
        scalars = (first, last)

    def key_block(b, i, turn, j, first, last):
        """The nearest block that is visited, so that a skipped one is not fetched; v's first waits for its pass."""
        example = b // heads
        low, high = first[example, i], last[example, i]
        return jnp.clip(
            jnp.where(turn == passes - 1, j, 0), jnp.minimum(low, count_k - 1), jnp.maximum(high - 1, 0)
        )

    def key_block_of_k(b, i, turn, j, first, last):
        return key_block(b, i, passes - 1, j, first, last)

    call = _Call()
    call.add("q", group["q"], (1, block_q, d), lambda b, i, t, j, *_: (b, i, 0))
    call.add(
        "k",
        group["k"],
        (1, block_k, d),
        lambda b, i, t, j, f, e, *_: (b, key_block_of_k(b, i, t, j, f, e), 0),
    )
    call.add(
        "v_t",
        group["v"].swapaxes(1, 2),
        (1, d, block_k),
        lambda b, i, t, j, f, e, *_: (b, 0, key_block(b, i, t, j, f, e)),
    )
    call.add("row", group["row"], (1, 1, block_q), lambda b, i, t, j, *_: (b, 0, i))
    call.add(
        "column",
        group["column"],
        (1, 1, block_k),
        lambda b, i, t, j, f, e, *_: (b, 0, key_block_of_k(b, i, t, j, f, e)),
    )
    call.add("v_scale", group["v_scale"], (1, 1, d), lambda b, i, t, j, *_: (b, 0, 0))
    for name in ("starts", "ends"):
        call.add(name, group[name], (1, 1, block_q), lambda b, i, t, j, *_: (b // heads, 0, i))

    def body(*refs):
        scalar_refs, refs = refs[: len(scalars)], refs[len(scalars) :]
        inputs, (out_ref, lse_ref, maximum_ref, total_ref, sum_ref, threshold_ref) = refs[:-6], refs[-6:]
        at = call.named(inputs)
        b, i, turn, j = (pl.program_id(axis) for axis in range(4))
        example = b // heads
        visited = (j >= scalar_refs[0][example, i]) & (j < scalar_refs[1][example, i])
        starts, ends = (at[n][0] if n in at else None for n in ("starts", "ends"))

        def scores_and_mask():
            seen = _seen((block_k, block_q), j, keys, starts, ends)
            return _scores(at["k"][0], at["q"][0], exact_int8), seen

        def logits_of(scores, seen):
            column = _column(at["column"][0]) if "column" in at else None
            return _masked(tile.base2_logits(scores, at["row"][0], column), seen)

        def is_last(pass_):
            return (turn == pass_) & (j == count_k - 1)

        @pl.when((turn == 0) & (j == 0))
        def _():
            total_ref[...] = jnp.zeros_like(total_ref)
            maximum_ref[...] = jnp.full_like(maximum_ref, tile.MASKED)
            sum_ref[...] = jnp.zeros_like(sum_ref)

        if lsq:
            bounded = scalar_refs[2][b, i] == 1
            p_step = scalar_refs[3][b]

            @pl.when((turn == 0) & visited & bounded)
            def _():
                scores, seen = scores_and_mask()
                total_ref[...] += jnp.sum(jnp.exp2(logits_of(scores, seen)), 0, keepdims=True)

            @pl.when((turn == 0) & visited & ~bounded)
            def _():
                scores, seen = scores_and_mask()
                logits = logits_of(scores, seen)
                block_maximum = jnp.max(logits, 0, keepdims=True)
                maximum, _, total = tile.online_statistics(maximum_ref[...], total_ref[...], block_maximum)
                e = _masked(jnp.exp2(logits - maximum), seen, 0.0)
                total_ref[...] = total + jnp.sum(e, 0, keepdims=True)
                maximum_ref[...] = maximum

            @pl.when(is_last(0))
            def _():
                maximum = jnp.where(bounded, 0.0, maximum_ref[...])
                lse2 = tile.log_sum_exp2(maximum, total_ref[...])
                lse_ref[0] = lse2 / tile.LOG2E
                maximum_ref[...] = tile.finite(lse2)
                if by_threshold:
                    found = tile.code_thresholds(tile.finite(lse2), p_step, at["row"][0], largest)
                    for index, threshold in enumerate(found):
                        threshold_ref[index : index + 1] = threshold

            @pl.when((turn == 1) & visited)
            def _():
                scores, seen = scores_and_mask()
                if by_threshold:
                    thresholds = [threshold_ref[index : index + 1] for index in range(largest)]
                    codes = tile.codes_by_threshold(_masked(scores, seen, -(2**31)), thresholds)
                else:
                    p = jnp.exp2(logits_of(scores, seen) - maximum_ref[...])
                    codes = tile.probability_codes(_masked(p, seen, 0.0), 1.0 / p_step, largest)
                sum_ref[...] += _values(at["v_t"][0], codes, largest, exact_int8)

            @pl.when(is_last(1))
            def _():
                o = sum_ref[...].astype(jnp.float32) * (p_step * _column(at["v_scale"][0]))
                out_ref[0] = o.T.astype(out_ref.dtype)

        else:

            @pl.when(visited)
            def _():
                scores, seen = scores_and_mask()
                logits = logits_of(scores, seen)
                block_maximum = jnp.max(logits, 0, keepdims=True)
                maximum, rescale, total = tile.online_statistics(
                    maximum_ref[...], total_ref[...], block_maximum
                )
                e = _masked(jnp.exp2(logits - maximum), seen, 0.0)
                codes = tile.probability_codes(e, float(largest), largest)
                products = _values(at["v_t"][0], codes, largest, exact_int8).astype(jnp.float32)
                sum_ref[...] = sum_ref[...] * rescale + products
                total_ref[...] = total + jnp.sum(e, 0, keepdims=True)
                maximum_ref[...] = maximum

            @pl.when(is_last(0))
            def _():
                total = total_ref[...]
                lse_ref[0] = tile.log_sum_exp2(maximum_ref[...], total) / tile.LOG2E
                o = sum_ref[...] * tile.reciprocal(total, float(largest)) * _column(at["v_scale"][0])
                out_ref[0] = o.T.astype(out_ref.dtype)

    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(merged, count_q, passes, count_k),
            in_specs=call.specs,
            out_specs=[
                pl.BlockSpec((1, block_q, d), lambda b, i, *_: (b, i, 0)),
                pl.BlockSpec((1, 1, block_q), lambda b, i, *_: (b, 0, i)),
            ],
            scratch_shapes=[
                pltpu.VMEM((1, block_q), jnp.float32),
                pltpu.VMEM((1, block_q), jnp.float32),
                pltpu.VMEM((d, block_q), jnp.int32 if lsq else jnp.float32),
                pltpu.VMEM((8, block_q), jnp.int32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((merged, queries, d), dtype),
            jax.ShapeDtypeStruct((merged, 1, queries), jnp.float32),
        ],
        cost_estimate=_cost(problem, 1 + passes, 1 if by_threshold else passes, jnp.dtype(dtype).itemsize),
        name="quantized_attention_streamed",
        **_params(("parallel", "parallel", "arbitrary", "arbitrary"), interpret),
    )(*scalars, *call.values)


def _tiling(queries, keys):
    block_q = min(_BLOCK, common.round_up(queries, 128))
    block_k = min(_BLOCK, common.round_up(keys, 128))
    return block_q, block_k, common.cdiv(queries, block_q), common.cdiv(keys, block_k)


def _int8(interpret):
    """Whether the products are taken in int8: the interpreter runs on a CPU, which has it."""
    return bool(interpret) or common.target_device().int8_mxu


# --- backward --------------------------------------------------------------------------------------------------------


def gradients(problem, d_out, d_lse, out, lse, *, largest: int, interpret) -> reference.Gradients:
    """As `reference.gradients`; products of `d_out`'s dtype, summed in float32, in a fixed order."""
    batch, heads, queries, keys, d = problem.sizes
    merged = batch * heads
    dtype = d_out.dtype
    block_q, block_k, count_q, count_k = _tiling(queries, keys)
    first, last = tile.tile_ranges(problem, block_q, block_k, count_q, count_k)
    group = _merged(problem)
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
    exact_int8 = _int8(interpret)
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

    call = _Call()
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
            seen = _seen((block_k, block_q), j, keys, starts, ends)
            if not over_keys and queries % block_q:  # what lies after the last query must not join the sums
                query = jax.lax.broadcasted_iota(jnp.int32, (1, block_q), 1) + i * block_q
                seen = (query < queries) if seen is None else seen & (query < queries)
            column = _column(at["column"][0]) if "column" in at else None
            logits = tile.base2_logits(_scores(at["k"][0], at["q"][0], exact_int8), at["row"][0], column)
            p = _masked(jnp.exp2(_masked(logits, seen) - at["lse"][0]), seen, 0.0)
            d_p = product(_float(at["v"][0]), at["d_scaled"][0], (1, 1))
            p_hat = p
            if lsq:
                p_hat, d_p, terms = tile.probability_step_terms(p, d_p, p_step_ref[b], largest)
            if what == "delta":
                sum_refs[0][...] += jnp.sum(d_p * p, 0, keepdims=True)
                sum_refs[1][...] += jnp.sum(terms, 0, keepdims=True)
                return
            d_logits = _masked(p * (d_p - at["delta"][0]), seen, 0.0)
            if what == "queries":
                weighted = d_logits if column is None else _masked(d_logits * column, seen, 0.0)
                sum_refs[0][...] += product(_float(at["k_t"][0]), weighted, (1, 0))
                return
            d_out = at["d_out"][0]
            if queries % block_q:
                query = jax.lax.broadcasted_iota(jnp.int32, (block_q, 1), 0) + i * block_q
                d_out = jnp.where(query < queries, d_out, 0.0).astype(dtype)
            weighted = _masked(d_logits * at["q_scale"][0], seen, 0.0)
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
        cost_estimate=_cost(problem, products, 1, 4),
        name=f"quantized_attention_backward_{what}",
        **_params(("parallel", "parallel", "arbitrary"), interpret),
    )(*scalars, *call.values)


def _float(codes):
    return codes.astype(jnp.float32)
