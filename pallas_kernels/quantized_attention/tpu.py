"""Forward kernels for a TPU. A tile of scores is held transposed, keys × queries: what a query has one of (its scale,
maximum, sum, window) is then a row of lanes, which broadcasts down the tile, and maxima and sums over the keys go down
sublanes.

Three of them: all keys of a query at once (`_resident`, up to `RESIDENT` keys), two passes over blocks of keys ("lsq": first
the normalizer, then the codes), one pass with a running maximum ("ptq").
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import common
from pallas_kernels.quantized_attention import tile, tpu_tile

RESIDENT = 1024
"""Up to this many keys a query's scores are held at once."""

_RESIDENT_QUERIES = 256
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
    group = tpu_tile.merged(problem)
    if keys <= RESIDENT:
        out, lse = _resident(problem, group, largest, interpret, dtype)
    else:
        out, lse = _streamed(problem, group, largest, interpret, dtype)
    return out.reshape(batch, heads, queries, d), lse.reshape(batch, heads, queries)


def _resident(problem, group, largest, interpret, dtype):
    batch, heads, queries, keys, d = problem.sizes
    merged = batch * heads
    block_q = min(_RESIDENT_QUERIES, common.round_up(queries, 128))
    block_k = common.round_up(keys, 128)
    together = max(g for g in range(1, _HEADS_PER_STEP + 1) if heads % g == 0) if keys <= 256 else 1
    exact_int8 = tpu_tile.int8(interpret)
    steps_per_example = heads // together
    call = tpu_tile.Call()
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
        seen = tpu_tile.seen((block_k, block_q), 0, keys, starts, ends)
        for g in range(together):
            scores = tpu_tile.scores(at["k"][g], at["q"][g], exact_int8)
            column = tpu_tile.column(at["column"][g]) if "column" in at else None
            logits = tpu_tile.masked(tile.base2_logits(scores, at["row"][g], column), seen)
            maximum = jnp.max(logits, 0, keepdims=True)
            e = tpu_tile.masked(jnp.exp2(logits - maximum), seen, 0.0)
            total = jnp.sum(e, 0, keepdims=True)
            if lsq:
                p_step = p_step_ref[pl.program_id(0) * together + g]
                codes = tile.probability_codes(e, tile.reciprocal(total, p_step), largest)
                factor = p_step
            else:
                codes = tile.probability_codes(e, float(largest), largest)
                factor = tile.reciprocal(total, float(largest))
            products = tpu_tile.values(at["v_t"][g], codes, largest, exact_int8).astype(jnp.float32)
            out_ref[g] = (products * factor * tpu_tile.column(at["v_scale"][g])).T.astype(out_ref.dtype)
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
        cost_estimate=tpu_tile.cost(problem, 2, 1, jnp.dtype(dtype).itemsize),
        name="quantized_attention_resident",
        **tpu_tile.params(("parallel", "parallel"), interpret),
    )(p_step.astype(jnp.float32), *call.values)


def _streamed(problem, group, largest, interpret, dtype):
    batch, heads, queries, keys, d = problem.sizes
    merged = batch * heads
    block_q, block_k, count_q, count_k = tpu_tile.tiling(queries, keys)
    exact_int8 = tpu_tile.int8(interpret)
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

    call = tpu_tile.Call()
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
            seen = tpu_tile.seen((block_k, block_q), j, keys, starts, ends)
            return tpu_tile.scores(at["k"][0], at["q"][0], exact_int8), seen

        def logits_of(scores, seen):
            column = tpu_tile.column(at["column"][0]) if "column" in at else None
            return tpu_tile.masked(tile.base2_logits(scores, at["row"][0], column), seen)

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
                e = tpu_tile.masked(jnp.exp2(logits - maximum), seen, 0.0)
                total_ref[...] = total + jnp.sum(e, 0, keepdims=True)
                maximum_ref[...] = maximum

            @pl.when(is_last(0))
            def _():
                maximum = jnp.where(bounded, 0.0, maximum_ref[...])
                lse2 = tile.log_sum_exp2(maximum, total_ref[...])
                lse_ref[0] = lse2 / tile.LOG2E
                maximum_ref[...] = tile.finite(lse2)
                if by_threshold:
                    thresholds = tile.code_thresholds(tile.finite(lse2), p_step, at["row"][0], largest)
                    for index, threshold in enumerate(thresholds):
                        threshold_ref[index : index + 1] = threshold

            @pl.when((turn == 1) & visited)
            def _():
                scores, seen = scores_and_mask()
                if by_threshold:
                    thresholds = [threshold_ref[index : index + 1] for index in range(largest)]
                    codes = tile.codes_by_threshold(tpu_tile.masked(scores, seen, -(2**31)), thresholds)
                else:
                    p = jnp.exp2(logits_of(scores, seen) - maximum_ref[...])
                    codes = tile.probability_codes(tpu_tile.masked(p, seen, 0.0), 1.0 / p_step, largest)
                sum_ref[...] += tpu_tile.values(at["v_t"][0], codes, largest, exact_int8)

            @pl.when(is_last(1))
            def _():
                o = sum_ref[...].astype(jnp.float32) * (p_step * tpu_tile.column(at["v_scale"][0]))
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
                e = tpu_tile.masked(jnp.exp2(logits - maximum), seen, 0.0)
                codes = tile.probability_codes(e, float(largest), largest)
                products = tpu_tile.values(at["v_t"][0], codes, largest, exact_int8).astype(jnp.float32)
                sum_ref[...] = sum_ref[...] * rescale + products
                total_ref[...] = total + jnp.sum(e, 0, keepdims=True)
                maximum_ref[...] = maximum

            @pl.when(is_last(0))
            def _():
                total = total_ref[...]
                lse_ref[0] = tile.log_sum_exp2(maximum_ref[...], total) / tile.LOG2E
                o = sum_ref[...] * tile.reciprocal(total, float(largest)) * tpu_tile.column(at["v_scale"][0])
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
        cost_estimate=tpu_tile.cost(
            problem, 1 + passes, 1 if by_threshold else passes, jnp.dtype(dtype).itemsize
        ),
        name="quantized_attention_streamed",
        **tpu_tile.params(("parallel", "parallel", "arbitrary", "arbitrary"), interpret),
    )(*scalars, *call.values)
