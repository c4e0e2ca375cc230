"""Forward kernels for Hopper in Mosaic GPU: int8 `wgmma` for both products, int32 accumulators, the softmax in registers.

8-bit `wgmma` reads both operands along the axis that it sums over, so the values come transposed, and the codes of the
probabilities go through shared memory to become an operand (their accumulator layout is not the operand's).

`_resident` (up to `RESIDENT` keys): one warpgroup holds all scores of 64 queries. `_streamed`: two warpgroups of 64 queries
and a third that copies blocks of keys and values ahead of them; "lsq" walks over the keys twice (normaliser, then codes),
"ptq" once with a running maximum. Neither overlaps its own matrix products with its own softmax: that is left to the other
warpgroups of the multiprocessor. The gradients after this forward run in plain XLA.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import common
from pallas_kernels.quantized_attention import tile

RESIDENT = 256
"""Up to this many keys a warpgroup holds all scores of its queries: 64 × 256 int32 are 128 registers of each thread."""

_ROWS = 64  # queries of one warpgroup: the height of a wgmma
_BLOCK_KV = 128
_STAGES = 3
_SCORES = plgpu.Layout.WGMMA


def obstacle(shape, dtype, *, bias: bool, zero_points: bool) -> str | None:
    """Why these operands cannot run: `shape` is (B, H, Nq, Nk, d)."""
    batch, heads, _, _, d = shape
    if batch * heads > 65_535:
        return f"batch times heads must be at most 65535, it is {batch * heads}"
    if bias:
        return "the kernels take no bias"
    if zero_points:
        return "the kernels take no zero points"
    if d not in (32, 64, 128):
        return f"the head size must be 32, 64 or 128, it is {d}"
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return f"the dtype must be float32, bfloat16 or float16, it is {jnp.dtype(dtype)}"
    return None


def attention(problem: tile.Problem, *, largest: int, interpret, dtype) -> tuple[jax.Array, jax.Array]:
    """As `reference.attention`, o in `dtype`."""
    batch, heads, queries, keys, d = problem.sizes
    run = _resident if keys <= RESIDENT else _streamed
    out, lse = run(problem, largest, interpret, dtype)
    return out[:, :queries].reshape(batch, heads, queries, d), lse[:, :queries].reshape(batch, heads, queries)


# --- operands --------------------------------------------------------------------------------------------------------


def _pad(x, axis, multiple):
    size = x.shape[axis]
    extra = common.round_up(size, multiple) - size
    return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)]) if extra else x


def _operands(problem, rows, columns, *, merged_v_pad):
    """name -> operand with batch and heads merged.

    Codes are padded to what the copy engine can address (8 tokens of queries and keys); what a query has one of, to whole
    tiles of `rows`, since it is read without the copy engine.
    """
    batch, heads, queries, keys, d = problem.sizes
    merged = batch * heads
    found = {
        "q": _pad(problem.q.reshape(merged, queries, d), 1, 8),
        "k": _pad(problem.k.reshape(merged, keys, d), 1, 8),
        "v_t": _pad(problem.v.reshape(merged, keys, d).swapaxes(1, 2), 2, merged_v_pad),
        "row": _pad(problem.row_scale().reshape(merged, queries), 1, rows),
        "v_scale": problem.v_scale.reshape(merged, d),
    }
    if problem.has_column_scale:
        column = jnp.broadcast_to(problem.k_scale, (batch, heads, keys)).reshape(merged, keys)
        found["column"] = _pad(column, 1, columns)
    if problem.starts is not None:
        found["starts"], found["ends"] = tile.windows(problem, common.round_up(queries, rows))
    if problem.p_step is not None:
        found["p_step"] = jnp.tile(problem.p_step[0], batch)
    return found


def _codes(rows, columns, *leading):
    """Shared memory of int8 codes as `wgmma` reads it."""
    swizzle = next(size for size in (128, 64, 32) if columns % size == 0)
    tiled = (plgpu.TilingTransform((8, swizzle)), plgpu.SwizzleTransform(swizzle))
    return plgpu.SMEM((*leading, rows, columns), jnp.int8, transforms=tiled)


def _results(problem, dtype, rows):
    batch, heads, queries, _, d = problem.sizes
    merged = batch * heads
    return [
        jax.ShapeDtypeStruct((merged, common.round_up(queries, 8), d), dtype),
        jax.ShapeDtypeStruct((merged, common.round_up(queries, rows)), jnp.float32),
    ]


# --- pieces of a tile ------------------------------------------------------------------------------------------------


def _down(row, shape):
    """What a query has one of, across the tile."""
    return jax.lax.broadcast_in_dim(row, shape, [0])


def _across(column, shape):
    """What a key or a channel has one of, down the tile."""
    return jax.lax.broadcast_in_dim(column, shape, [1])


def _load_rows(ref, *index):
    return plgpu.load(ref.at[index], layout=_SCORES.reduce(1), optimized=False)


def _load_columns(ref, *index):
    return plgpu.load(ref.at[index], layout=_SCORES.reduce(0), optimized=False)


def _product(a, b, shape):
    """a bᵀ in int32 registers."""

    def run(accumulator):
        plgpu.wgmma(accumulator, a, b.T)
        return accumulator[...]

    return pl.run_scoped(run, plgpu.ACC(shape, jnp.int32))


def _seen(shape, first_key, keys, window):
    """Which keys of a tile each query sees; None if all. `keys` is None where the tile cannot reach past the last key."""
    if window is None and keys is None:
        return None
    key = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=_SCORES) + first_key
    if window is None:
        return key < keys
    starts, ends = window
    return tile.inside_window(key, _down(starts, shape), _down(ends, shape))


def _masked(values, seen, fill):
    return values if seen is None else jnp.where(seen, values, fill)


def _store_codes(ref, codes, largest):
    """Codes 0..largest into shared memory as signed bytes, less 128 where they would not fit."""
    codes = codes if largest <= 127 else codes - 128
    ref[...] = codes.astype(jnp.int32).astype(jnp.int8)
    plgpu.commit_smem()


# --- kernels ---------------------------------------------------------------------------------------------------------


def _resident(problem, largest, interpret, dtype):
    batch, heads, queries, keys, d = problem.sizes
    width = common.round_up(keys, 32)
    shape = (_ROWS, width)
    operands = _operands(problem, _ROWS, width, merged_v_pad=32)
    lsq = problem.p_step is not None
    if largest > 127:
        operands["correction"] = 128 * jnp.sum(operands["v_t"], 2, dtype=jnp.int32)
    names = list(operands)

    def body(*refs):
        at = dict(zip(names, refs, strict=False))
        out_ref, lse_ref, q, k, v_t, codes_ref, out_tile, lse_tile, arrived = refs[len(names) :]
        i, b = jax.lax.axis_index("tile"), jax.lax.axis_index("head")
        here = pl.ds(i * _ROWS, _ROWS)
        plgpu.copy_gmem_to_smem(at["q"].at[b, here], q, arrived.at[0])
        all_keys = pl.ds(i * 0, width)  # zeros past the last key; a static slice could not reach there
        plgpu.copy_gmem_to_smem(at["k"].at[b, all_keys], k, arrived.at[1])
        plgpu.copy_gmem_to_smem(at["v_t"].at[b], v_t, arrived.at[2])
        row = _load_rows(at["row"], b, here)
        window = None
        if "starts" in at:
            example = b // heads
            window = (_load_rows(at["starts"], example, here), _load_rows(at["ends"], example, here))
        column = _across(_load_columns(at["column"], b), shape) if "column" in at else None
        plgpu.barrier_wait(arrived.at[0])
        plgpu.barrier_wait(arrived.at[1])
        scores = _product(q, k, shape)
        seen = _seen(shape, 0, keys if width > keys else None, window)
        logits = _masked(tile.base2_logits(scores, _down(row, shape), column), seen, tile.MASKED)
        maximum = jnp.max(logits, axis=1)
        e = _masked(jnp.exp2(logits - _down(maximum, shape)), seen, 0.0)
        total = jnp.sum(e, axis=1)
        if lsq:
            p_step = at["p_step"][b]
            to_codes = _down(tile.reciprocal(total, p_step), shape)
        else:
            to_codes = float(largest)
        _store_codes(codes_ref, tile.probability_codes(e, to_codes, largest), largest)
        plgpu.barrier_wait(arrived.at[2])
        products = _product(codes_ref, v_t, (_ROWS, d))
        if "correction" in at:
            products = products + _across(_load_columns(at["correction"], b), (_ROWS, d))
        o = products.astype(jnp.float32) * _across(_load_columns(at["v_scale"], b), (_ROWS, d))
        o = o * p_step if lsq else o * _down(tile.reciprocal(total, float(largest)), (_ROWS, d))
        out_tile[...] = o.astype(dtype)
        lse_tile[...] = tile.log_sum_exp2(maximum, total) * (1 / tile.LOG2E)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_tile, out_ref.at[b, here])
        plgpu.copy_smem_to_gmem(lse_tile, lse_ref.at[b, here])
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        body,
        out_type=_results(problem, dtype, _ROWS),
        # The tiles of one head run side by side and share its keys in the cache.
        grid=(common.cdiv(queries, _ROWS), batch * heads),
        grid_names=("tile", "head"),
        scratch_types=[
            _codes(_ROWS, d),
            _codes(width, d),
            _codes(d, width),
            _codes(_ROWS, width),
            plgpu.SMEM((_ROWS, d), dtype),
            plgpu.SMEM((_ROWS,), jnp.float32),
            plgpu.Barrier(num_barriers=3),
        ],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(*operands.values())


def _streamed(problem, largest, interpret, dtype):
    batch, heads, queries, keys, d = problem.sizes
    groups, passes = 2, 1 if problem.p_step is None else 2
    rows = groups * _ROWS
    shape = (_ROWS, _BLOCK_KV)
    count_q, count_k = common.cdiv(queries, rows), common.cdiv(keys, _BLOCK_KV)
    operands = _operands(problem, rows, _BLOCK_KV, merged_v_pad=_BLOCK_KV)
    lsq = problem.p_step is not None
    by_threshold = lsq and largest <= 7 and not problem.has_column_scale
    first, last = tile.tile_ranges(problem, rows, _BLOCK_KV, count_q, count_k)
    operands["first"], operands["last"] = first, last
    if lsq:
        bound = jnp.pad(tile.logit_bound(problem), ((0, 0), (0, 0), (0, rows * count_q - queries)))
        bound = bound.reshape(batch * heads, count_q, rows).max(-1)
        operands["bounded"] = (bound < tile.MAX_SAFE_LOGIT).astype(jnp.int32)
    if largest > 127:
        operands["correction"] = _corrections(operands["v_t"], first, last, heads, count_k)
    names = list(operands)

    def body(*refs):
        at = dict(zip(names, refs, strict=False))
        out_ref, lse_ref, *scratch = refs[len(names) :]
        q_tiles, k_ring, v_ring, code_tiles, out_tiles, lse_tiles, *barriers = scratch
        q_here, k_here, v_here, k_free, v_free = barriers
        i, b, group = (jax.lax.axis_index(name) for name in ("tile", "head", "group"))
        example = b // heads
        low = at["first"][example, i]
        visited = at["last"][example, i] - low

        def ring(step):
            return jax.lax.rem(step, jnp.int32(_STAGES))

        def copy_blocks():
            plgpu.set_max_registers(40, action="decrease")

            def copy(ref, tiles, here, free, step, index):
                slot = ring(step)

                @pl.when(step >= _STAGES)
                def _():
                    plgpu.barrier_wait(free.at[slot])

                plgpu.copy_gmem_to_smem(ref.at[index], tiles.at[slot], here.at[slot])

            def key_index(step):
                return (b, pl.ds((low + step) * _BLOCK_KV, _BLOCK_KV))

            def value_index(step):
                return (b, slice(None), pl.ds((low + step) * _BLOCK_KV, _BLOCK_KV))

            if lsq:

                @pl.loop(0, visited)
                def _(step):
                    copy(at["k"], k_ring, k_here, k_free, step, key_index(step))

            @pl.loop(0, visited)
            def _(step):
                behind = visited * (passes - 1)
                copy(at["k"], k_ring, k_here, k_free, behind + step, key_index(step))
                copy(at["v_t"], v_ring, v_here, v_free, step, value_index(step))

            def drain(free, steps):
                """Sees every block given back before the barriers go."""

                @pl.loop(jnp.maximum(steps - _STAGES, 0), steps)
                def _(step):
                    plgpu.barrier_wait(free.at[ring(step)])

            drain(k_free, visited * passes)
            drain(v_free, visited)

        def compute():
            plgpu.set_max_registers(232, action="increase")
            here = pl.ds(i * rows + group * _ROWS, _ROWS)
            q, codes_ref = q_tiles.at[group], code_tiles.at[group]
            plgpu.copy_gmem_to_smem(at["q"].at[b, here], q, q_here.at[group])
            row = _load_rows(at["row"], b, here)
            window = None
            if "starts" in at:
                window = (_load_rows(at["starts"], example, here), _load_rows(at["ends"], example, here))
            p_step = at["p_step"][b] if lsq else None
            plgpu.barrier_wait(q_here.at[group])

            def scores_of(step, block):
                """Integer scores of a block of keys, its place among the keys' copies given, and who sees what."""
                slot = ring(step)
                plgpu.barrier_wait(k_here.at[slot])
                scores = _product(q, k_ring.at[slot], shape)
                plgpu.barrier_arrive(k_free.at[slot])
                ragged = keys if keys % _BLOCK_KV else None
                return scores, _seen(shape, (low + block) * _BLOCK_KV, ragged, window)

            def logits_of(scores, seen, block):
                column = None
                if "column" in at:
                    block_keys = pl.ds((low + block) * _BLOCK_KV, _BLOCK_KV)
                    column = _across(_load_columns(at["column"], b, block_keys), shape)
                return _masked(tile.base2_logits(scores, _down(row, shape), column), seen, tile.MASKED)

            def joined(step, carry):
                """The running maximum and sum after a block; also the factor of older sums, and e of the block."""
                scores, seen = scores_of(step, step)
                logits = logits_of(scores, seen, step)
                maximum, rescale, total = tile.online_statistics(*carry, jnp.max(logits, axis=1))
                e = _masked(jnp.exp2(logits - _down(maximum, shape)), seen, 0.0)
                return maximum, total + jnp.sum(e, axis=1), rescale, e

            def row_of(value):
                return plgpu.layout_cast(jnp.full((_ROWS,), value, jnp.float32), _SCORES.reduce(1))

            if lsq:
                bounded = at["bounded"][b, i] == 1

                def plain_sum(step, carry):
                    _, total = carry
                    scores, seen = scores_of(step, step)
                    e = _masked(jnp.exp2(logits_of(scores, seen, step)), seen, 0.0)
                    return row_of(0.0), total + jnp.sum(e, axis=1)

                def pass_one(step_function, maximum):
                    return lambda: jax.lax.fori_loop(
                        0, visited, step_function, (row_of(maximum), row_of(0.0))
                    )

                maximum, total = jax.lax.cond(
                    bounded,
                    pass_one(plain_sum, 0.0),
                    pass_one(lambda step, carry: joined(step, carry)[:2], tile.MASKED),
                )
                lse2 = tile.log_sum_exp2(maximum, total)
                subtracted = tile.finite(lse2)
                if by_threshold:
                    thresholds = tile.code_thresholds(subtracted, p_step, row, largest)

                def pass_two(accumulator):
                    @pl.loop(0, visited)
                    def _(step):
                        scores, seen = scores_of(visited + step, step)
                        if by_threshold:
                            rows_of_thresholds = [_down(threshold, shape) for threshold in thresholds]
                            codes = tile.codes_by_threshold(
                                _masked(scores, seen, -(2**31)), rows_of_thresholds
                            )
                        else:
                            p = jnp.exp2(logits_of(scores, seen, step) - _down(subtracted, shape))
                            codes = tile.probability_codes(_masked(p, seen, 0.0), 1.0 / p_step, largest)
                        _store_codes(codes_ref, codes, largest)
                        slot = ring(step)
                        plgpu.barrier_wait(v_here.at[slot])
                        plgpu.wgmma(accumulator, codes_ref, v_ring.at[slot].T)
                        plgpu.wgmma_wait(0)
                        plgpu.barrier_arrive(v_free.at[slot])

                    return accumulator[...]

                products = pl.run_scoped(pass_two, plgpu.ACC((_ROWS, d), jnp.int32))
                if "correction" in at:
                    products = products + _across(_load_columns(at["correction"], b, i), (_ROWS, d))
                o = products.astype(jnp.float32) * p_step
            else:

                def step_of(step, carry):
                    o, maximum, total = carry
                    maximum, total, rescale, e = joined(step, (maximum, total))
                    _store_codes(codes_ref, tile.probability_codes(e, float(largest), largest), largest)
                    slot = ring(step)
                    plgpu.barrier_wait(v_here.at[slot])
                    products = _product(codes_ref, v_ring.at[slot], (_ROWS, d))
                    plgpu.barrier_arrive(v_free.at[slot])
                    return o * _down(rescale, (_ROWS, d)) + products.astype(jnp.float32), maximum, total

                o = plgpu.layout_cast(jnp.zeros((_ROWS, d), jnp.float32), _SCORES)
                carry = (o, row_of(tile.MASKED), row_of(0.0))
                o, maximum, total = jax.lax.fori_loop(0, visited, step_of, carry)
                lse2 = tile.log_sum_exp2(maximum, total)
                o = o * _down(tile.reciprocal(total, float(largest)), (_ROWS, d))

            o = o * _across(_load_columns(at["v_scale"], b), (_ROWS, d))
            out_tiles.at[group][...] = o.astype(dtype)
            lse_tiles.at[group][...] = lse2 * (1 / tile.LOG2E)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_tiles.at[group], out_ref.at[b, here])
            plgpu.copy_smem_to_gmem(lse_tiles.at[group], lse_ref.at[b, here])
            plgpu.wait_smem_to_gmem(0)

        pl.when(group < groups)(compute)
        pl.when(group == groups)(copy_blocks)

    return plgpu.kernel(
        body,
        out_type=_results(problem, dtype, rows),
        grid=(count_q, batch * heads),
        grid_names=("tile", "head"),
        num_threads=groups + 1,
        thread_name="group",
        scratch_types=[
            _codes(_ROWS, d, groups),
            _codes(_BLOCK_KV, d, _STAGES),
            _codes(d, _BLOCK_KV, _STAGES),
            _codes(_ROWS, _BLOCK_KV, groups),
            plgpu.SMEM((groups, _ROWS, d), dtype),
            plgpu.SMEM((groups, _ROWS), jnp.float32),
            plgpu.Barrier(num_barriers=groups),
            plgpu.Barrier(num_barriers=_STAGES),
            plgpu.Barrier(num_barriers=_STAGES),
            plgpu.Barrier(num_arrivals=groups, num_barriers=_STAGES),
            plgpu.Barrier(num_arrivals=groups, num_barriers=_STAGES),
        ],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(*operands.values())


def _corrections(v_t, first, last, heads, count_k):
    """128 Σ v8 over the blocks of keys that a tile of queries visits: [BH, tiles, d] int32, from sums of prefixes."""
    merged, d, _ = v_t.shape
    blocks = v_t.reshape(merged, d, count_k, _BLOCK_KV).sum(-1, dtype=jnp.int32)
    prefix = jnp.pad(jnp.cumsum(blocks, -1), ((0, 0), (0, 0), (1, 0))).swapaxes(1, 2)  # [BH, blocks + 1, d]

    def at(edges):
        return jnp.take_along_axis(prefix, jnp.repeat(edges, heads, 0)[..., None], 1)

    return 128 * (at(last) - at(first))
