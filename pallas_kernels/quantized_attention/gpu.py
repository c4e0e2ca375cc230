"""Forward kernels for Hopper in Mosaic GPU: int8 `wgmma` for both products, int32 accumulators, the softmax in registers.

8-bit `wgmma` reads both operands along the axis that it sums over, so the values come transposed, and the codes of the
probabilities go through shared memory to become an operand (their accumulator layout is not the operand's).

`_resident` (up to `RESIDENT` keys): one warpgroup holds all scores of 64 queries. `_streamed`: two warpgroups of 64 queries
and a third that copies blocks of keys and values ahead of them; "lsq" walks over the keys twice (normalizer, then codes),
"ptq" once with a running maximum. Neither overlaps its own matrix products with its own softmax: that is left to the other
warpgroups of the multiprocessor. The gradients after this forward run in plain XLA.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import common
from pallas_kernels.quantized_attention import gpu_tile, tile

RESIDENT = 256
"""Up to this many keys a warpgroup holds all scores of its queries: 64 × 256 int32 are 128 registers of each thread."""

_STAGES = 3


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


def _resident(problem, largest, interpret, dtype):
    batch, heads, queries, keys, d = problem.sizes
    width = common.round_up(keys, 32)
    shape = (gpu_tile.ROWS, width)
    operands = gpu_tile.operands(problem, gpu_tile.ROWS, width, merged_v_pad=32)
    lsq = problem.p_step is not None
    if largest > 127:
        operands["correction"] = 128 * jnp.sum(operands["v_t"], 2, dtype=jnp.int32)
    names = list(operands)

    def body(*refs):
        at = dict(zip(names, refs, strict=False))
        out_ref, lse_ref, q, k, v_t, codes_ref, out_tile, lse_tile, arrived = refs[len(names) :]
        i, b = jax.lax.axis_index("tile"), jax.lax.axis_index("head")
        query_rows = pl.ds(i * gpu_tile.ROWS, gpu_tile.ROWS)
        plgpu.copy_gmem_to_smem(at["q"].at[b, query_rows], q, arrived.at[0])
        all_keys = pl.ds(i * 0, width)  # zeros past the last key; a static slice could not reach there
        plgpu.copy_gmem_to_smem(at["k"].at[b, all_keys], k, arrived.at[1])
        plgpu.copy_gmem_to_smem(at["v_t"].at[b], v_t, arrived.at[2])
        row = gpu_tile.load_rows(at["row"], b, query_rows)
        window = None
        if "starts" in at:
            example = b // heads
            window = (
                gpu_tile.load_rows(at["starts"], example, query_rows),
                gpu_tile.load_rows(at["ends"], example, query_rows),
            )
        column = gpu_tile.across(gpu_tile.load_columns(at["column"], b), shape) if "column" in at else None
        plgpu.barrier_wait(arrived.at[0])
        plgpu.barrier_wait(arrived.at[1])
        scores = gpu_tile.product(q, k, shape)
        seen = gpu_tile.seen(shape, 0, keys if width > keys else None, window)
        logits = gpu_tile.masked(
            tile.base2_logits(scores, gpu_tile.down(row, shape), column), seen, tile.MASKED
        )
        maximum = jnp.max(logits, axis=1)
        e = gpu_tile.masked(jnp.exp2(logits - gpu_tile.down(maximum, shape)), seen, 0.0)
        total = jnp.sum(e, axis=1)
        if lsq:
            p_step = at["p_step"][b]
            to_codes = gpu_tile.down(tile.reciprocal(total, p_step), shape)
        else:
            to_codes = float(largest)
        gpu_tile.store_codes(codes_ref, tile.probability_codes(e, to_codes, largest), largest)
        plgpu.barrier_wait(arrived.at[2])
        products = gpu_tile.product(codes_ref, v_t, (gpu_tile.ROWS, d))
        if "correction" in at:
            products = products + gpu_tile.across(
                gpu_tile.load_columns(at["correction"], b), (gpu_tile.ROWS, d)
            )
        o = products.astype(jnp.float32) * gpu_tile.across(
            gpu_tile.load_columns(at["v_scale"], b), (gpu_tile.ROWS, d)
        )
        o = (
            o * p_step
            if lsq
            else o * gpu_tile.down(tile.reciprocal(total, float(largest)), (gpu_tile.ROWS, d))
        )
        out_tile[...] = o.astype(dtype)
        lse_tile[...] = tile.log_sum_exp2(maximum, total) * (1 / tile.LOG2E)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_tile, out_ref.at[b, query_rows])
        plgpu.copy_smem_to_gmem(lse_tile, lse_ref.at[b, query_rows])
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        body,
        out_type=gpu_tile.results(problem, dtype, gpu_tile.ROWS),
        # The tiles of one head run side by side and share its keys in the cache.
        grid=(common.cdiv(queries, gpu_tile.ROWS), batch * heads),
        grid_names=("tile", "head"),
        scratch_types=[
            gpu_tile.codes(gpu_tile.ROWS, d),
            gpu_tile.codes(width, d),
            gpu_tile.codes(d, width),
            gpu_tile.codes(gpu_tile.ROWS, width),
            plgpu.SMEM((gpu_tile.ROWS, d), dtype),
            plgpu.SMEM((gpu_tile.ROWS,), jnp.float32),
            plgpu.Barrier(num_barriers=3),
        ],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(*operands.values())


def _streamed(problem, largest, interpret, dtype):
    batch, heads, queries, keys, d = problem.sizes
    groups, passes = 2, 1 if problem.p_step is None else 2
    rows = groups * gpu_tile.ROWS
    shape = (gpu_tile.ROWS, gpu_tile.BLOCK_KV)
    count_q, count_k = common.cdiv(queries, rows), common.cdiv(keys, gpu_tile.BLOCK_KV)
    operands = gpu_tile.operands(problem, rows, gpu_tile.BLOCK_KV, merged_v_pad=gpu_tile.BLOCK_KV)
    lsq = problem.p_step is not None
    by_threshold = lsq and largest <= 7 and not problem.has_column_scale
    first, last = tile.tile_ranges(problem, rows, gpu_tile.BLOCK_KV, count_q, count_k)
    operands["first"], operands["last"] = first, last
    if lsq:
        bound = jnp.pad(tile.logit_bound(problem), ((0, 0), (0, 0), (0, rows * count_q - queries)))
        bound = bound.reshape(batch * heads, count_q, rows).max(-1)
        operands["bounded"] = (bound < tile.MAX_SAFE_LOGIT).astype(jnp.int32)
    if largest > 127:
        operands["correction"] = gpu_tile.corrections(operands["v_t"], first, last, heads, count_k)
    names = list(operands)

    def body(*refs):
        at = dict(zip(names, refs, strict=False))
        out_ref, lse_ref, *scratch = refs[len(names) :]
        q_tiles, k_ring, v_ring, code_tiles, out_tiles, lse_tiles, *barriers = scratch
        q_arrived, k_arrived, v_arrived, k_free, v_free = barriers
        i, b, group = (jax.lax.axis_index(name) for name in ("tile", "head", "group"))
        example = b // heads
        low = at["first"][example, i]
        visited = at["last"][example, i] - low

        def ring(step):
            return jax.lax.rem(step, jnp.int32(_STAGES))

        def copy_blocks():
            plgpu.set_max_registers(40, action="decrease")

            def copy(ref, tiles, query_rows, free, step, index):
                slot = ring(step)

                @pl.when(step >= _STAGES)
                def _():
                    plgpu.barrier_wait(free.at[slot])

                plgpu.copy_gmem_to_smem(ref.at[index], tiles.at[slot], query_rows.at[slot])

            def key_index(step):
                return (b, pl.ds((low + step) * gpu_tile.BLOCK_KV, gpu_tile.BLOCK_KV))

            def value_index(step):
                return (b, slice(None), pl.ds((low + step) * gpu_tile.BLOCK_KV, gpu_tile.BLOCK_KV))

            if lsq:

                @pl.loop(0, visited)
                def _(step):
                    copy(at["k"], k_ring, k_arrived, k_free, step, key_index(step))

            @pl.loop(0, visited)
            def _(step):
                behind = visited * (passes - 1)
                copy(at["k"], k_ring, k_arrived, k_free, behind + step, key_index(step))
                copy(at["v_t"], v_ring, v_arrived, v_free, step, value_index(step))

            def drain(free, steps):
                """Sees every block given back before the barriers go."""

                @pl.loop(jnp.maximum(steps - _STAGES, 0), steps)
                def _(step):
                    plgpu.barrier_wait(free.at[ring(step)])

            drain(k_free, visited * passes)
            drain(v_free, visited)

        def compute():
            plgpu.set_max_registers(232, action="increase")
            query_rows = pl.ds(i * rows + group * gpu_tile.ROWS, gpu_tile.ROWS)
            q, codes_ref = q_tiles.at[group], code_tiles.at[group]
            plgpu.copy_gmem_to_smem(at["q"].at[b, query_rows], q, q_arrived.at[group])
            row = gpu_tile.load_rows(at["row"], b, query_rows)
            window = None
            if "starts" in at:
                window = (
                    gpu_tile.load_rows(at["starts"], example, query_rows),
                    gpu_tile.load_rows(at["ends"], example, query_rows),
                )
            p_step = at["p_step"][b] if lsq else None
            plgpu.barrier_wait(q_arrived.at[group])

            def scores_of(step, block):
                """Integer scores of a block of keys, its place among the keys' copies given, and who sees what."""
                slot = ring(step)
                plgpu.barrier_wait(k_arrived.at[slot])
                scores = gpu_tile.product(q, k_ring.at[slot], shape)
                plgpu.barrier_arrive(k_free.at[slot])
                ragged = keys if keys % gpu_tile.BLOCK_KV else None
                return scores, gpu_tile.seen(shape, (low + block) * gpu_tile.BLOCK_KV, ragged, window)

            def logits_of(scores, seen, block):
                column = None
                if "column" in at:
                    block_keys = pl.ds((low + block) * gpu_tile.BLOCK_KV, gpu_tile.BLOCK_KV)
                    column = gpu_tile.across(gpu_tile.load_columns(at["column"], b, block_keys), shape)
                return gpu_tile.masked(
                    tile.base2_logits(scores, gpu_tile.down(row, shape), column), seen, tile.MASKED
                )

            def joined(step, carry):
                """The running maximum and sum after a block; also the factor of older sums, and e of the block."""
                scores, seen = scores_of(step, step)
                logits = logits_of(scores, seen, step)
                maximum, rescale, total = tile.online_statistics(*carry, jnp.max(logits, axis=1))
                e = gpu_tile.masked(jnp.exp2(logits - gpu_tile.down(maximum, shape)), seen, 0.0)
                return maximum, total + jnp.sum(e, axis=1), rescale, e

            def row_of(value):
                return plgpu.layout_cast(
                    jnp.full((gpu_tile.ROWS,), value, jnp.float32), gpu_tile.SCORES.reduce(1)
                )

            if lsq:
                bounded = at["bounded"][b, i] == 1

                def plain_sum(step, carry):
                    _, total = carry
                    scores, seen = scores_of(step, step)
                    e = gpu_tile.masked(jnp.exp2(logits_of(scores, seen, step)), seen, 0.0)
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
                            rows_of_thresholds = [gpu_tile.down(threshold, shape) for threshold in thresholds]
                            codes = tile.codes_by_threshold(
                                gpu_tile.masked(scores, seen, -(2**31)), rows_of_thresholds
                            )
                        else:
                            p = jnp.exp2(logits_of(scores, seen, step) - gpu_tile.down(subtracted, shape))
                            codes = tile.probability_codes(
                                gpu_tile.masked(p, seen, 0.0), 1.0 / p_step, largest
                            )
                        gpu_tile.store_codes(codes_ref, codes, largest)
                        slot = ring(step)
                        plgpu.barrier_wait(v_arrived.at[slot])
                        plgpu.wgmma(accumulator, codes_ref, v_ring.at[slot].T)
                        plgpu.wgmma_wait(0)
                        plgpu.barrier_arrive(v_free.at[slot])

                    return accumulator[...]

                products = pl.run_scoped(pass_two, plgpu.ACC((gpu_tile.ROWS, d), jnp.int32))
                if "correction" in at:
                    products = products + gpu_tile.across(
                        gpu_tile.load_columns(at["correction"], b, i), (gpu_tile.ROWS, d)
                    )
                o = products.astype(jnp.float32) * p_step
            else:

                def step_of(step, carry):
                    o, maximum, total = carry
                    maximum, total, rescale, e = joined(step, (maximum, total))
                    gpu_tile.store_codes(
                        codes_ref, tile.probability_codes(e, float(largest), largest), largest
                    )
                    slot = ring(step)
                    plgpu.barrier_wait(v_arrived.at[slot])
                    products = gpu_tile.product(codes_ref, v_ring.at[slot], (gpu_tile.ROWS, d))
                    plgpu.barrier_arrive(v_free.at[slot])
                    return (
                        o * gpu_tile.down(rescale, (gpu_tile.ROWS, d)) + products.astype(jnp.float32),
                        maximum,
                        total,
                    )

                o = plgpu.layout_cast(jnp.zeros((gpu_tile.ROWS, d), jnp.float32), gpu_tile.SCORES)
                carry = (o, row_of(tile.MASKED), row_of(0.0))
                o, maximum, total = jax.lax.fori_loop(0, visited, step_of, carry)
                lse2 = tile.log_sum_exp2(maximum, total)
                o = o * gpu_tile.down(tile.reciprocal(total, float(largest)), (gpu_tile.ROWS, d))

            o = o * gpu_tile.across(gpu_tile.load_columns(at["v_scale"], b), (gpu_tile.ROWS, d))
            out_tiles.at[group][...] = o.astype(dtype)
            lse_tiles.at[group][...] = lse2 * (1 / tile.LOG2E)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_tiles.at[group], out_ref.at[b, query_rows])
            plgpu.copy_smem_to_gmem(lse_tiles.at[group], lse_ref.at[b, query_rows])
            plgpu.wait_smem_to_gmem(0)

        pl.when(group < groups)(compute)
        pl.when(group == groups)(copy_blocks)

    return plgpu.kernel(
        body,
        out_type=gpu_tile.results(problem, dtype, rows),
        grid=(count_q, batch * heads),
        grid_names=("tile", "head"),
        num_threads=groups + 1,
        thread_name="group",
        scratch_types=[
            gpu_tile.codes(gpu_tile.ROWS, d, groups),
            gpu_tile.codes(gpu_tile.BLOCK_KV, d, _STAGES),
            gpu_tile.codes(d, gpu_tile.BLOCK_KV, _STAGES),
            gpu_tile.codes(gpu_tile.ROWS, gpu_tile.BLOCK_KV, groups),
            plgpu.SMEM((groups, gpu_tile.ROWS, d), dtype),
            plgpu.SMEM((groups, gpu_tile.ROWS), jnp.float32),
            plgpu.Barrier(num_barriers=groups),
            plgpu.Barrier(num_barriers=_STAGES),
            plgpu.Barrier(num_barriers=_STAGES),
            plgpu.Barrier(num_arrivals=groups, num_barriers=_STAGES),
            plgpu.Barrier(num_arrivals=groups, num_barriers=_STAGES),
        ],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(*operands.values())
