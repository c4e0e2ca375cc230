"""Plain XLA that does not hold all scores at once: the reference's formulas over one block of queries after another.

On a CPU the products of codes are taken in float32, which are those of the integers: the compiler fuses them with the softmax
beside them, which it does not do with int8. A processor with bfloat16 units (AMX) takes bfloat16 codes and sums in float32: codes
of 8 bits are bfloat16 numbers.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import common
from pallas_kernels.quantized_attention import reference, tile

SCORE_BYTES = 256 * 2**20
"""Float32 scores of up to this many bytes are materialized at once."""

_MOST_BLOCKS = 16
"""Of keys over which sums in float32 are exact; of longer sequences the products stay in int8."""

_QUERY_AXIS = {"q": 2, "q_scale": 2, "bias": 2, "starts": 1, "ends": 1}


def block_rows(problem: tile.Problem) -> int:
    """Queries per block: all of them while their scores fit `SCORE_BYTES`, else at most 512 that do."""
    batch, heads, queries, keys, _ = problem.sizes
    row_bytes = 4 * batch * heads * keys
    if queries * row_bytes <= SCORE_BYTES:
        return queries
    return max(8, min(512, SCORE_BYTES // row_bytes // 8 * 8))


def attention(problem: tile.Problem, *, largest: int) -> tuple[jax.Array, jax.Array]:
    """As `reference.attention`."""
    problem = _float_codes(problem, largest)
    rows = block_rows(problem)
    queries = problem.q.shape[2]
    if rows >= queries:
        return reference.attention(problem, largest=largest)

    def block(blocks):
        return reference.attention(problem._replace(**blocks), largest=largest)

    out, lse = jax.lax.map(block, _blocks(problem, rows))
    return _join(out, 2, queries), _join(lse, 2, queries)


def gradients(problem, d_out, d_lse, out, lse, *, largest: int) -> reference.Gradients:
    """As `reference.gradients`; sums over the queries are taken block by block in one order."""
    problem = _float_codes(problem, largest)
    if problem.q.dtype == jnp.float32:  # nothing is gained by rounding the other products' operands either
        d_out = d_out.astype(problem.q_scale.dtype)
    rows = block_rows(problem)
    queries = problem.q.shape[2]
    if rows >= queries:
        return reference.gradients(problem, d_out, d_lse, out, lse, largest=largest)

    bias_per_row = problem.bias is not None and problem.bias.shape[2] > 1

    def block(inputs):
        blocks, d_out, d_lse, out, lse = inputs
        gradients_of_block = reference.gradients(
            problem._replace(**blocks), d_out, d_lse, out, lse, largest=largest
        )
        per_row = (gradients_of_block.q, gradients_of_block.bias if bias_per_row else None)
        return gradients_of_block._replace(
            q=None, bias=None if bias_per_row else gradients_of_block.bias
        ), per_row

    def step(sums, inputs):
        added, per_row = block(inputs)
        return jax.tree.map(jnp.add, sums, added), per_row

    inputs = (_blocks(problem, rows), *(_split(x, 2, rows) for x in (d_out, d_lse, out, lse)))
    shapes, _ = jax.eval_shape(block, jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    sums, (d_q, d_bias) = jax.lax.scan(step, zeros, inputs)
    sums = sums._replace(q=_join(d_q, 2, queries))
    return sums._replace(bias=_join(d_bias, 2, queries)) if bias_per_row else sums


def _float_codes(problem, largest):
    """On a CPU the codes as floats, if sums of their products in float32 are exact; else the problem as it is."""
    keys, d = problem.sizes[3:]
    exact = d * 128**2 <= reference.EXACT_FLOAT32
    exact &= keys * 128 * largest <= _MOST_BLOCKS * reference.EXACT_FLOAT32
    if common.target_device().platform != "cpu" or problem.q.dtype != jnp.int8 or not exact:
        return problem
    dtype = jnp.bfloat16 if "amx_bf16" in common.cpu_flags() else jnp.float32
    return problem._replace(**{name: getattr(problem, name).astype(dtype) for name in "qkv"})


def _blocks(problem, rows):
    """The fields that have a row per query, cut in blocks along a new first axis."""
    fields = {name: getattr(problem, name) for name in _QUERY_AXIS}
    return {
        name: _split(x, _QUERY_AXIS[name], rows)
        for name, x in fields.items()
        if x is not None and x.shape[_QUERY_AXIS[name]] > 1
    }


def _split(x, axis, rows):
    """[..., N, ...] -> [blocks, ..., rows, ...], zeros after the end."""
    if x is None:
        return None
    size = x.shape[axis]
    count = common.cdiv(size, rows)
    x = jnp.pad(x, [(0, count * rows - size if i == axis else 0) for i in range(x.ndim)])
    x = x.reshape(*x.shape[:axis], count, rows, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _join(blocks, axis, size):
    """The inverse of `_split`."""
    x = jnp.moveaxis(blocks, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, size, axis=axis)
