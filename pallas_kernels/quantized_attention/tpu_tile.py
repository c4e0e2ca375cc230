"""Pieces of the TPU's kernels, forward and backward: one tile of scores, the operands' blocks, the tiling."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import common
from pallas_kernels.quantized_attention import tile

BLOCK = 512


def _matmul(a, b, contract, exact_int8):
    """Integer product of codes, int32; through bfloat16 where the matrix unit has no int8 (exact below 2^24)."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    if exact_int8:
        return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.int32)
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32).astype(jnp.int32)


def scores(k, q, exact_int8):
    """[Bk, Bq] of [Bk, d] and [Bq, d]."""
    return _matmul(k, q, (1, 1), exact_int8)


def values(v_t, codes, largest, exact_int8):
    """v8ᵀ P8ᵀ, int32 [d, Bq], of v8ᵀ [d, Bk] and codes [Bk, Bq] (any number type that holds them)."""
    if not exact_int8:
        return _matmul(v_t, codes.astype(jnp.float32), (1, 0), False)
    if largest <= 127:
        return _matmul(v_t, codes.astype(jnp.int32).astype(jnp.int8), (1, 0), True)
    shifted = (codes.astype(jnp.int32) - 128).astype(jnp.int8)
    return _matmul(v_t, shifted, (1, 0), True) + 128 * jnp.sum(v_t.astype(jnp.int32), 1, keepdims=True)


def column(row):
    """A row of lanes [1, n] as a column of sublanes [n, 1]."""
    return jnp.broadcast_to(row, (128, row.shape[1])).T[:, :1]


def seen(shape, block, keys, starts, ends):
    """Which keys of this tile each query sees; None if all."""
    if starts is None and keys % shape[0] == 0:
        return None
    key = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + block * shape[0]
    return key < keys if starts is None else tile.inside_window(key, starts, ends)


def masked(logits, seen, fill=tile.MASKED):
    return logits if seen is None else jnp.where(seen, logits, fill)


# --- blocks and operands ---------------------------------------------------------------------------------------------


def merged(problem):
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


class Call:
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


def params(semantics, interpret):
    return {"compiler_params": pltpu.CompilerParams(dimension_semantics=semantics), "interpret": interpret}


def cost(problem, products, exponentials, out_bytes):
    batch, heads, queries, keys, d = problem.sizes
    scores = batch * heads * queries * keys
    return pl.CostEstimate(
        flops=2 * products * scores * d,
        bytes_accessed=batch * heads * (queries * d * (1 + out_bytes) + 2 * keys * d),
        transcendentals=exponentials * scores,
    )


def tiling(queries, keys):
    block_q = min(BLOCK, common.round_up(queries, 128))
    block_k = min(BLOCK, common.round_up(keys, 128))
    return block_q, block_k, common.cdiv(queries, block_q), common.cdiv(keys, block_k)


def int8(interpret):
    """Whether the products are taken in int8: the interpreter runs on a CPU, which has it."""
    return bool(interpret) or common.target_device().int8_mxu
