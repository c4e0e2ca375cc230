"""Pieces of the Hopper kernels: the operands as the copy engine addresses them, one tile of scores, its codes."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import common
from pallas_kernels.quantized_attention import tile

ROWS = 64  # queries of one warpgroup: the height of a wgmma
BLOCK_KV = 128
SCORES = plgpu.Layout.WGMMA


def _pad(x, axis, multiple):
    size = x.shape[axis]
    extra = common.round_up(size, multiple) - size
    return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)]) if extra else x


def operands(problem, rows, columns, *, merged_v_pad):
    """name -> operand with batch and heads merged.

    Codes are padded to what the copy engine can address (8 tokens of queries and keys); what a query has one of, to whole
    tiles of `rows`, since it is read without the copy engine.
    """
    batch, heads, queries, keys, d = problem.sizes
    merged = batch * heads
    merged_operands = {
        "q": _pad(problem.q.reshape(merged, queries, d), 1, 8),
        "k": _pad(problem.k.reshape(merged, keys, d), 1, 8),
        "v_t": _pad(problem.v.reshape(merged, keys, d).swapaxes(1, 2), 2, merged_v_pad),
        "row": _pad(problem.row_scale().reshape(merged, queries), 1, rows),
        "v_scale": problem.v_scale.reshape(merged, d),
    }
    if problem.has_column_scale:
        column = jnp.broadcast_to(problem.k_scale, (batch, heads, keys)).reshape(merged, keys)
        merged_operands["column"] = _pad(column, 1, columns)
    if problem.starts is not None:
        merged_operands["starts"], merged_operands["ends"] = tile.windows(
            problem, common.round_up(queries, rows)
        )
    if problem.p_step is not None:
        merged_operands["p_step"] = jnp.tile(problem.p_step[0], batch)
    return merged_operands


def codes(rows, columns, *leading):
    """Shared memory of int8 codes as `wgmma` reads it."""
    swizzle = next(size for size in (128, 64, 32) if columns % size == 0)
    tiled = (plgpu.TilingTransform((8, swizzle)), plgpu.SwizzleTransform(swizzle))
    return plgpu.SMEM((*leading, rows, columns), jnp.int8, transforms=tiled)


def results(problem, dtype, rows):
    batch, heads, queries, _, d = problem.sizes
    merged = batch * heads
    return [
        jax.ShapeDtypeStruct((merged, common.round_up(queries, 8), d), dtype),
        jax.ShapeDtypeStruct((merged, common.round_up(queries, rows)), jnp.float32),
    ]


def down(row, shape):
    """What a query has one of, across the tile."""
    return jax.lax.broadcast_in_dim(row, shape, [0])


def across(column, shape):
    """What a key or a channel has one of, down the tile."""
    return jax.lax.broadcast_in_dim(column, shape, [1])


def load_rows(ref, *index):
    return plgpu.load(ref.at[index], layout=SCORES.reduce(1), optimized=False)


def load_columns(ref, *index):
    return plgpu.load(ref.at[index], layout=SCORES.reduce(0), optimized=False)


def product(a, b, shape):
    """a bᵀ in int32 registers."""

    def run(accumulator):
        plgpu.wgmma(accumulator, a, b.T)
        return accumulator[...]

    return pl.run_scoped(run, plgpu.ACC(shape, jnp.int32))


def seen(shape, first_key, keys, window):
    """Which keys of a tile each query sees; None if all. `keys` is None where the tile cannot reach past the last key."""
    if window is None and keys is None:
        return None
    key = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=SCORES) + first_key
    if window is None:
        return key < keys
    starts, ends = window
    return tile.inside_window(key, down(starts, shape), down(ends, shape))


def masked(values, seen, fill):
    return values if seen is None else jnp.where(seen, values, fill)


def store_codes(ref, codes, largest):
    """Codes 0..largest into shared memory as signed bytes, less 128 where they would not fit."""
    codes = codes if largest <= 127 else codes - 128
    ref[...] = codes.astype(jnp.int32).astype(jnp.int8)
    plgpu.commit_smem()


def corrections(v_t, first, last, heads, count_k):
    """128 Σ v8 over the blocks of keys that a tile of queries visits: [BH, tiles, d] int32, from sums of prefixes."""
    merged, d, _ = v_t.shape
    blocks = v_t.reshape(merged, d, count_k, BLOCK_KV).sum(-1, dtype=jnp.int32)
    prefix = jnp.pad(jnp.cumsum(blocks, -1), ((0, 0), (0, 0), (1, 0))).swapaxes(1, 2)  # [BH, blocks + 1, d]

    def at(edges):
        return jnp.take_along_axis(prefix, jnp.repeat(edges, heads, 0)[..., None], 1)

    return 128 * (at(last) - at(first))
