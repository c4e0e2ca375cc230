"""Arithmetic of one tile of scores: every back end, the reference included, calls these on values that broadcast.

Logits are kept in base 2 (natural logits times log2 e), so that the exponential is one `exp2`. Nothing here knows which axis
holds the queries: row statistics come already broadcastable against the scores.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

LOG2E = math.log2(math.e)
MASKED = -1e30
"""Logit of a masked key. Finite: the difference of two infinities is not a number."""

MAX_SAFE_LOGIT = 100.0
"""Base-2 logits of at most this size need no maximum subtracted: Σ 2^s stays finite in float32 for up to 2^27 keys."""


class Problem(NamedTuple):
    """What the kernels are given: codes, and factors that broadcast to the shapes named.

    Attributes:
      q, k, v: [B, H, Nq, d], [B, H, Nk, d], [B, H, Nk, d] int8 codes; floats that hold integers where a zero point was
        subtracted (plain XLA only).
      q_scale, k_scale: [B, H, Nq], [B, H, Nk] steps; the last axis is 1 where a head has one step.
      v_scale: [B, H, d] steps.
      p_step: [1, H] step of the probabilities, mode "lsq"; None in mode "ptq".
      bias: [B, H, Nq, Nk] added to the natural logits, or None.
      starts, ends: [B, Nq] int32; query i sees the keys of [starts_i, ends_i). None: all.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    q_scale: jax.Array
    k_scale: jax.Array
    v_scale: jax.Array
    p_step: jax.Array | None = None
    bias: jax.Array | None = None
    starts: jax.Array | None = None
    ends: jax.Array | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, H, Nq, Nk, d."""
        return (*self.q.shape[:3], self.k.shape[2], self.q.shape[3])

    def row_scale(self) -> jax.Array:
        """[B, H, Nq] factor of row i of q8 k8ᵀ that makes base-2 logits, the key's step in it if a head has one."""
        batch, heads, queries, _, d = self.sizes
        scale = self.q_scale * (LOG2E / math.sqrt(d))
        if not self.has_column_scale:
            scale = scale * self.k_scale
        return jnp.broadcast_to(scale, (batch, heads, queries))

    @property
    def has_column_scale(self) -> bool:
        """Whether the keys' step changes along a row of scores."""
        return self.k_scale.shape[-1] > 1


def base2_logits(scores: jax.Array, row_scale, column_scale=None, bias=None) -> jax.Array:
    """s log2 e of integer scores S = q8 k8ᵀ: exact up to the product with the scales, since |S| < 2^24."""
    logits = scores.astype(row_scale.dtype) * row_scale
    if column_scale is not None:
        logits = logits * column_scale
    return logits if bias is None else logits + bias * LOG2E


def inside_window(keys: jax.Array, starts, ends) -> jax.Array:
    """Whether the keys with these indices are seen by queries whose window is [starts, ends)."""
    return (keys >= starts) & (keys < ends)


def online_statistics(maximum, total, block_maximum):
    """(new maximum, factor of what was summed before) as a block of keys joins a row's running softmax."""
    maximum_new = jnp.maximum(maximum, block_maximum)
    rescale = jnp.exp2(maximum - maximum_new)
    return maximum_new, rescale, total * rescale


def log_sum_exp2(maximum, total):
    """Base-2 log-sum-exp of a row from its maximum and Σ 2^(s - maximum); -inf for a row that sees no key."""
    return jnp.where(total > 0, maximum + jnp.log2(jnp.maximum(total, 1e-37)), -jnp.inf)


def finite(lse):
    """A log-sum-exp to subtract: 0 in place of -inf, where every logit is masked anyway."""
    return jnp.where(lse > MASKED, lse, 0.0)


def reciprocal(total, step=1.0):
    """1 / (total step), 0 for a row that sees no key."""
    return jnp.where(total > 0, 1.0 / (jnp.where(total > 0, total, 1.0) * step), 0.0)


def probability_codes(probabilities: jax.Array, reciprocal_step, largest: int) -> jax.Array:
    """clip(round(p / step), 0, largest) as floats that hold integers; half to even."""
    return jnp.round(jnp.minimum(probabilities * reciprocal_step, float(largest)))


def code_thresholds(lse2, p_step, row_scale, largest: int) -> list[jax.Array]:
    """T_j = ⌈(lse + log2(step (j - 1/2))) / scale⌉, j = 1..largest: the code of a score S is the number of T_j ≤ S.

    Args:
      lse2: base-2 log-sum-exp of each row.
      row_scale: > 0, base-2 logit of a score of 1.
    """
    limit = 2.0**30  # what float32 and int32 both hold, far above any score
    thresholds = []
    for j in range(1, largest + 1):
        real = (lse2 + jnp.log2(p_step * (j - 0.5))) / row_scale
        real = jnp.minimum(jnp.maximum(real, -limit), limit)
        nearest = jnp.round(real)
        thresholds.append(jnp.where(nearest < real, nearest + 1.0, nearest).astype(jnp.int32))
    return thresholds


def codes_by_threshold(scores: jax.Array, thresholds: list[jax.Array]) -> jax.Array:
    """int32 codes by comparing integer scores: no exponential and no conversion. Masked scores must be below all T."""
    code = jnp.zeros(scores.shape, jnp.int32)
    for threshold in thresholds:
        code += (scores >= threshold).astype(jnp.int32)
    return code


def probability_step_terms(probabilities, d_codes, p_step, largest: int):
    """Backward of p̂ = step · clip(round(p / step), 0, largest), straight through the rounding.

    Args:
      probabilities: p of a tile.
      d_codes: gradient with respect to p̂.

    Returns:
      (p̂, gradient with respect to p, terms whose sum is the gradient of the step before its scale g).
    """
    ratio = probabilities / p_step
    codes = probability_codes(ratio, 1.0, largest)
    inside = ratio <= largest
    rho = jnp.where(inside, codes - ratio, float(largest))
    return codes * p_step, jnp.where(inside, d_codes, 0.0), d_codes * rho


def logit_bound(problem: Problem) -> jax.Array:
    """[B, H, Nq] Cauchy-Schwarz bound on a row's base-2 logits: scale_i ‖q8_i‖₂ max_j ‖k8_j‖₂; O(N d), without bias."""
    q_norm = jnp.linalg.norm(problem.q.astype(jnp.float32), axis=-1)
    k_norm = jnp.linalg.norm(problem.k.astype(jnp.float32), axis=-1)
    if problem.has_column_scale:
        k_norm = k_norm * problem.k_scale
    return problem.row_scale() * q_norm * jnp.max(k_norm, axis=-1, keepdims=True)


def tile_ranges(problem: Problem, block_q: int, block_kv: int, count_q: int, count_kv: int):
    """Key tiles that a tile of queries has to visit: [B, count_q] int32 first and one past the last."""
    batch = problem.q.shape[0]
    if problem.starts is None:
        return jnp.zeros((batch, count_q), jnp.int32), jnp.full((batch, count_q), count_kv, jnp.int32)
    starts, ends = windows(problem, block_q * count_q)
    empty = starts >= ends
    starts = jnp.where(empty, block_kv * count_kv, starts).reshape(batch, count_q, block_q)
    ends = jnp.where(empty, 0, ends).reshape(batch, count_q, block_q)
    last = -(-ends.max(-1) // block_kv)
    return jnp.minimum(starts.min(-1) // block_kv, last), last


def windows(problem: Problem, padded: int):
    """[B, padded] starts and ends; padding rows see nothing, and all keys are seen where no window was given."""
    batch, _, queries, keys, _ = problem.sizes
    starts, ends = problem.starts, problem.ends
    if starts is None:
        starts, ends = jnp.zeros((batch, queries), jnp.int32), jnp.full((batch, queries), keys, jnp.int32)
    pad = ((0, 0), (0, padded - queries))
    return jnp.pad(starts, pad), jnp.pad(ends, pad)
