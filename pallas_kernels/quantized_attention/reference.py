"""The definition: quantized attention with every score materialized, and its gradients.

S = q8 k8ᵀ (int32),  s = c a_q a_k S + bias,  c = 1/√d,  p = softmax(s)
"lsq":  o = a_p a_v · clip(round(p / a_p), 0, Qp) v8
"ptq":  o = a_v / (L l) · round(L e) v8,  e = exp(s - max s),  l = Σ e,  L = 127 for 8 bits
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.quantized_attention import tile

EXACT_FLOAT32 = 2**24
"""Integers up to this size are float32 numbers, so sums of products that stay below it are exact in any order."""


class Gradients(NamedTuple):
    """With respect to the dequantized operands a·codes; `p_step` [1, H] before its scale g, `bias` in the bias's shape."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    p_step: jax.Array | None
    bias: jax.Array | None


def attention(problem: tile.Problem, *, largest: int) -> tuple[jax.Array, jax.Array]:
    """o [B, H, Nq, d] and lse [B, H, Nq] (natural), floats of the steps' precision.

    Args:
      largest: Qp of the probabilities' codes ("lsq"), or L ("ptq", where `problem.p_step` is None).
    """
    logits, seen = _logits(problem)
    maximum = jnp.max(logits, -1, keepdims=True)
    e = _where_seen(seen, jnp.exp2(logits - maximum))
    total = jnp.sum(e, -1, keepdims=True)
    if problem.p_step is None:
        codes = tile.probability_codes(e, float(largest), largest)
        factor = _reciprocal(seen, total) / largest
    else:
        p_step = problem.p_step[..., None, None]
        codes = tile.probability_codes(e, _reciprocal(seen, total, p_step), largest)
        factor = p_step
    products = _codes_times_values(codes, problem.v, largest).astype(logits.dtype)
    lse = tile.log_sum_exp2(maximum, total)[..., 0] / tile.LOG2E
    return products * (factor * problem.v_scale[..., None, :]), lse


def gradients(
    problem: tile.Problem,
    d_out: jax.Array,
    d_lse: jax.Array,
    out: jax.Array | None,
    lse: jax.Array,
    *,
    largest: int,
) -> Gradients:
    """Gradients of Σ d_out·o + Σ d_lse·lse, straight through every rounding.

    "lsq":  dP̂ = d_out v̂ᵀ, dP = dP̂ · 1[p ≤ Qp a_p], δ_i = Σ_j dP_ij p_ij
    "ptq":  p̂ = p, dP = dP̂, δ = Σ d_out·o: the gradient of the attention whose probabilities are not quantized
    dS = p (dP - δ + d_lse),  dq̂ = c dS k̂,  dk̂ = c dSᵀ q̂,  dv̂ = p̂ᵀ d_out

    The row shortcut δ = Σ d_out·o is wrong for "lsq", where p̂ ≠ p and clipped entries pass no gradient.

    Args:
      d_out: [B, H, Nq, d]. Its dtype is that of the products' operands.
      out, lse: what `attention` returned; `out` is read in "ptq" alone.
    """
    dtype, precise = d_out.dtype, problem.q_scale.dtype
    logits, seen = _logits(problem)
    lse = lse * tile.LOG2E
    p = _where_seen(seen, jnp.exp2(logits - (lse if seen is None else tile.finite(lse))[..., None]))
    v_hat = (problem.v.astype(precise) * problem.v_scale[..., None, :]).astype(dtype)
    d_p_hat = _dot("bhqd,bhkd->bhqk", d_out, v_hat, precise)
    if problem.p_step is None:
        p_hat, d_p, d_step = p, d_p_hat, None
        delta = jnp.sum(d_out.astype(precise) * out.astype(precise), -1, keepdims=True)
    else:
        p_step = problem.p_step[..., None, None]
        p_hat, d_p, terms = tile.probability_step_terms(p, d_p_hat, p_step, largest)
        d_step = jnp.sum(terms, (0, 2, 3))[None]
        delta = jnp.sum(d_p * p, -1, keepdims=True)
    d_logits = p * (d_p - delta + d_lse[..., None].astype(precise))
    d_scores = (d_logits / math.sqrt(problem.q.shape[-1])).astype(dtype)
    q_hat = (problem.q.astype(precise) * problem.q_scale[..., None]).astype(dtype)
    k_hat = (problem.k.astype(precise) * problem.k_scale[..., None]).astype(dtype)
    d_bias = None
    if problem.bias is not None:
        axes = tuple(i for i in range(4) if problem.bias.shape[i] == 1)
        d_bias = jnp.sum(d_logits, axes, keepdims=True)
    return Gradients(
        q=_dot("bhqk,bhkd->bhqd", d_scores, k_hat, precise),
        k=_dot("bhqk,bhqd->bhkd", d_scores, q_hat, precise),
        v=_dot("bhqk,bhqd->bhkd", p_hat.astype(dtype), d_out, precise),
        p_step=d_step,
        bias=d_bias,
    )


def _logits(problem):
    """Base-2 logits [B, H, Nq, Nk], masked, and which keys each query sees: None where each sees all."""
    exact = jnp.int32 if problem.q.dtype == jnp.int8 else jnp.promote_types(problem.q.dtype, jnp.float32)
    scores = _dot("bhqd,bhkd->bhqk", problem.q, problem.k, exact)
    column = problem.k_scale[..., None, :] if problem.has_column_scale else None
    logits = tile.base2_logits(scores, problem.row_scale()[..., None], column, problem.bias)
    if problem.starts is None and problem.bias is None:
        return logits, None
    if problem.starts is not None:
        keys = jnp.arange(problem.k.shape[2])
        seen = tile.inside_window(keys, problem.starts[:, None, :, None], problem.ends[:, None, :, None])
        logits = jnp.where(seen, logits, tile.MASKED)
    logits = jnp.maximum(logits, tile.MASKED)  # a bias of -inf masks too
    return logits, logits > 0.5 * tile.MASKED


def _where_seen(seen, values):
    return values if seen is None else jnp.where(seen, values, 0.0)


def _reciprocal(seen, total, step=1.0):
    """1 / (total step). A row that sees a key has a total of at least 1, and no choice then parts what a compiler could fuse."""
    return 1.0 / (total * step) if seen is None else tile.reciprocal(total, step)


def _codes_times_values(codes, values, largest):
    """P8 v8, of integers in int32. Codes of up to 255 do not fit int8: P8 - 128 does, and 128 Σ_j v8_j is added back.

    Float32 and bfloat16 values hold integers. Of 8 bits at most, their products are those of the integers over as many keys as
    keep the sums exact in float32, 2^24 / (128 largest); blocks of so many keys are added in int32.
    """
    if values.dtype in (jnp.float32, jnp.bfloat16):
        exact, codes = EXACT_FLOAT32 // (128 * largest), codes.astype(values.dtype)
        blocks = [
            _dot("bhqk,bhkd->bhqd", codes[..., i : i + exact], values[..., i : i + exact, :], jnp.float32)
            for i in range(0, values.shape[2], exact)
        ]
        return blocks[0] if len(blocks) == 1 else sum(block.astype(jnp.int32) for block in blocks)
    if values.dtype != jnp.int8:
        return _dot("bhqk,bhkd->bhqd", codes.astype(values.dtype), values, values.dtype)
    if largest <= 127:
        return _dot("bhqk,bhkd->bhqd", codes.astype(jnp.int8), values, jnp.int32)
    shifted = _dot("bhqk,bhkd->bhqd", (codes - 128.0).astype(jnp.int8), values, jnp.int32)
    return shifted + 128 * jnp.sum(values, 2, dtype=jnp.int32, keepdims=True)


def _dot(subscripts, a, b, out):
    # HIGHEST: codes of up to 9 bits in float32 must not be rounded to bfloat16, nor float32 gradients.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(subscripts, a, b, preferred_element_type=out, precision=precision)
