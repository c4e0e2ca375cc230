"""Where among the affine combinations of a person's features another feature is approached best (arXiv:2205.11981).

Methods: cloak
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxface.checks import AtLeast, Range, check_number
from jaxface.errors import UserError

Hull = Literal["center", "affine", "convex", "reduced"]

_FLAT = 1e-6  # directions of the hull with less than this share of the largest one's energy count as none


def check_bounds(low: float, high: float, points: int | None = None) -> None:
    """Raises UserError unless coefficients in [low, high] can sum to 1 (over so many points, where the number is known)."""
    check_number("hull_low", low, Range(high=1))
    check_number("hull_high", high, Range(low))
    if points is not None and (points * low > 1 or points * high < 1):
        raise UserError(
            f"hull_low, hull_high: {points} coefficients in [{low:g}, {high:g}] cannot sum to 1; "
            f"needs hull_low <= {1 / points:g} <= hull_high"
        )


def hull_coefficients(
    clean: jax.Array,
    features: jax.Array,
    *,
    kind: Hull = "center",
    low: float = 0.0,
    high: float = 1.0,
    iterations: int = 200,
) -> jax.Array:
    """Coefficients of the point of a person's subspace that is nearest to each of some features (arXiv:2205.11981).

        c_i = argmin_c ‖Fᵀ c - u_i‖²   over  Σ_n c_n = 1   and
            center    c_n = 1/N, the mean of the features, which has no length of 1 itself
            affine    nothing else
            convex    0 ≤ c_n ≤ 1
            reduced   low ≤ c_n ≤ high

    The squared distances are ordered affine ≤ convex ≤ reduced ≤ center for bounds within [0, 1] that leave 1/N between
    them. The affine point comes from the pseudo-inverse about the mean, of least norm where the features span less than N - 1
    directions; the other two from an accelerated projected gradient with step 1/λ_max(F Fᵀ), whose projections onto the capped
    simplex are exact (design: the release calls a solver of quadratic programs).

    Args:
      clean: F, [N, D] float, the person's features.
      features: u, [B, D] float.
      kind: which subspace. low, high: bounds of "reduced", N low ≤ 1 ≤ N high.
      iterations: of the projected gradient, ≥ 1.

    Returns:
      [B, N] float32, constants for any gradient: at the minimum the derivative through c vanishes anyway.

    Raises:
      AssertionError: shapes disagree. UserError: an unknown kind, or bounds that no coefficients meet.
    """
    chex.assert_rank([clean, features], 2)
    chex.assert_equal_shape_suffix([clean, features], 1)
    points = clean.shape[0]
    clean, features = jax.lax.stop_gradient((clean.astype(jnp.float32), features.astype(jnp.float32)))
    if kind == "center":
        return jnp.full((features.shape[0], points), 1 / points, jnp.float32)
    if kind == "affine":
        return _affine(clean, features)
    if kind not in ("convex", "reduced"):
        raise UserError(f"hull: needs center, affine, convex or reduced, got {kind!r}")
    if kind == "convex":
        low, high = 0.0, 1.0
    check_bounds(low, high, points)
    check_number("iterations", iterations, AtLeast(1))
    return _bounded(clean, features, low, high, iterations)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # In true float32: matrix units round the operands, and these coefficients come from differences of near-equal features.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _affine(clean: jax.Array, features: jax.Array) -> jax.Array:
    mean = clean.mean(axis=0)
    spread = clean - mean
    # About the mean the constraint takes care of itself: whatever lies in the span of G Gᵀ sums to 0.
    energy, directions = jnp.linalg.eigh(_product(spread, spread.T))
    spanned = energy > _FLAT * energy[-1]
    inverse = jnp.where(spanned, 1 / jnp.where(spanned, energy, 1.0), 0.0)
    seen = _product(_product(features - mean, spread.T), directions)
    return 1 / clean.shape[0] + _product(seen * inverse, directions.T)


def _bounded(clean, features, low: float, high: float, iterations: int) -> jax.Array:
    gram, seen = _product(clean, clean.T), _product(features, clean.T)
    step = 1 / jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], 1e-12)

    def improve(carry, _):
        c, ahead, pace = carry
        new = _project(ahead - step * (_product(ahead, gram) - seen), low, high)
        faster = 0.5 * (1 + jnp.sqrt(1 + 4 * pace**2))
        return (new, new + (pace - 1) / faster * (new - c), faster), None

    start = jnp.full_like(seen, 1 / clean.shape[0])
    (c, _, _), _ = jax.lax.scan(improve, (start, start, jnp.float32(1.0)), length=iterations)
    return c


def _project(v: jax.Array, low: float, high: float) -> jax.Array:
    """The nearest point to each row of v [B, N] among those with sum 1 and entries in [low, high].

    It is clip(v - τ, low, high); the sum falls with τ along straight pieces that end where an entry meets a bound, so that τ lies
    on the piece whose ends have sums on either side of 1.
    """

    def total(t):  # [B, T] -> [B, T]
        return jnp.clip(v[:, None, :] - t[:, :, None], low, high).sum(-1)

    ends = jnp.sort(jnp.concatenate([v - low, v - high], axis=1), axis=1)
    sums = total(ends)  # falling from N high to N low
    after = jnp.clip(jnp.argmax(sums <= 1, axis=1), 1, ends.shape[1] - 1)[:, None]
    t0, t1 = (jnp.take_along_axis(ends, index, 1) for index in (after - 1, after))
    s0, s1 = (jnp.take_along_axis(sums, index, 1) for index in (after - 1, after))
    fall = jnp.where(s0 > s1, s0 - s1, 1.0)
    tau = t0 + (t1 - t0) * jnp.clip((s0 - 1) / fall, 0.0, 1.0)
    return jnp.clip(v - tau, low, high)
