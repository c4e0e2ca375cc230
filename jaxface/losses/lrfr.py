"""LRFR: a distance between the embeddings of one face at two resolutions (arXiv:2302.05621)."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxface import axes
from jaxface.checks import Range, check_finite, check_number
from jaxface.errors import UserError

Reduction = Literal["per_sample", "batch_log"]

_LARGE = 30.0  # exponents from here on are taken relative to the largest; exp overflows float32 at 88


@jax.custom_jvp
def _log1p_sum_expm1(exponents: jax.Array) -> jax.Array:
    """f(a) = log(1 + Σ_i (e^{a_i} - 1)) over the last axis, a ≥ 0: exact near 0 and finite far above 88."""
    count = exponents.shape[-1]
    peak = jnp.max(exponents, axis=-1)
    small = jnp.log1p(jnp.sum(jnp.expm1(jnp.minimum(exponents, _LARGE)), axis=-1))
    relative = jnp.sum(jnp.exp(exponents - peak[..., None]), axis=-1) + (1 - count) * jnp.exp(-peak)
    return jnp.where(peak > _LARGE, peak + jnp.log(jnp.where(peak > _LARGE, relative, 1.0)), small)


@_log1p_sum_expm1.defjvp
def _(primals, tangents):
    # ∂f/∂a_i = e^{a_i - f}, at most 1 because f ≥ max a. Written out, no branch of the value can spoil it.
    (exponents,), (change,) = primals, tangents
    value = _log1p_sum_expm1(exponents)
    return value, jnp.sum(jnp.exp(exponents - value[..., None]) * change, axis=-1)


def _powered_errors(first: jax.Array, second: jax.Array, power: float) -> jax.Array:
    """|u - v|^p in float32, after the checks that every distance makes."""
    chex.assert_rank([first, second], {1, 2, 3, 4})
    if first.ndim != second.ndim or first.shape[:-1] != second.shape[:-1]:
        raise ValueError(f"embeddings: need the same leading axes, got {first.shape} and {second.shape}")
    if first.shape[-1] != second.shape[-1]:
        raise UserError(f"embeddings: need one size, got {first.shape[-1]} and {second.shape[-1]}")
    if first.size == 0:
        raise ValueError(f"embeddings: need at least one value, got shape {first.shape}")
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (first, second)):
        raise ValueError(f"embeddings: need a float dtype, got {first.dtype} and {second.dtype}")
    for x in (first, second):
        check_finite("embeddings", x)
    check_number("power", power, Range(1))
    errors = first.astype(jnp.float32) - second.astype(jnp.float32)
    return (errors * jnp.sign(errors)) ** power  # `abs` would have the derivative 1 at 0, this has 0


def logexp_distance(first: jax.Array, second: jax.Array, *, power: float = 1.0) -> jax.Array:
    """LogExp distance of pairs of embeddings (arXiv:2302.05621).

        ℓ(u, v) = 1/(p D) · log( 1 + Σ_i (exp(d_i^p) - 1) ),        d_i = |u_i - v_i|
        ∂ℓ/∂u_i = sign(u_i - v_i) d_i^(p-1) exp(d_i^p) / (D S),     S = 1 + Σ_j (exp(d_j^p) - 1)

    With p = 1 the push on a dimension does not vanish at d_i = 0, as that of a squared distance does, and saturates at the
    1/D of an absolute one; dimensions with larger errors get a larger share, in the ratio exp(d_i^p - d_j^p) (d_i/d_j)^(p-1).
    Small errors make it (Σ_i d_i^p) / (p D), `power_distance`. The derivative at d_i = 0 itself is 0.

    Args:
      first: u, [..., D] float; unit vectors as published, which the caller normalizes.
      second: v, [..., D] float. Gradients flow into both.
      power: p ≥ 1; below 1 the derivative at 0 would be infinite.

    Returns:
      [...] float32 in [0, ∞), symmetric, 0 for equal embeddings; finite for any finite d^p.

    Raises:
      AssertionError, ValueError: the shapes disagree, are empty or not of a float dtype.
      UserError: embeddings of two sizes, `power` below 1, or (where the values are known) one that is not finite.

    Example:
      >>> first, second = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> round(float(logexp_distance(first, second)[0]), 3), float(logexp_distance(first, first)[0])  # log(2 e - 1) / 2
      (0.745, 0.0)
    """
    exponents = _powered_errors(first, second, power)
    return _log1p_sum_expm1(exponents) / (power * exponents.shape[-1])


def logexp_loss(
    first: jax.Array, second: jax.Array, *, power: float = 1.0, reduction: Reduction = "per_sample"
) -> jax.Array:
    """LogExp distance of a batch of pairs, as one number (arXiv:2302.05621).

        per_sample   1/B Σ_b ℓ(u_b, v_b)                              the paper's ℓ, `logexp_distance`; the mean is our reading
        batch_log    1/(p B) · log( 1 + Σ_b Σ_i (exp(d_bi^p) - 1) )   one logarithm over the batch and no 1/D: the released code

    The two differ in scale and in who shares a denominator: under batch_log, every pair of the batch. Where the axis
    `axes.DATA` is bound that is the global batch.

    Args:
      first: u, [B, D] float. second: v, [B, D] float. Gradients flow into both.
      power: p ≥ 1.
      reduction: see above.

    Returns:
      float32 scalar; under `axes.DATA` with per_sample that of the replica, whose mean over the replicas is the whole.

    Raises:
      AssertionError, ValueError, UserError: as `logexp_distance`; other ranks than 2 or an unknown reduction.

    Example:
      >>> first, second = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[0.0, 1.0], [0.0, 1.0]])
      >>> round(float(logexp_loss(first, second)), 3)  # the mean of 0.745 and 0
      0.372
    """
    chex.assert_rank([first, second], 2)
    if reduction == "per_sample":
        return jnp.mean(logexp_distance(first, second, power=power))
    if reduction != "batch_log":
        raise UserError(f"reduction: needs 'per_sample' or 'batch_log', got {reduction!r}")
    # exp(f) - 1 of a row is the sum of its dimensions: the logarithm over the batch is f of the rows' f.
    rows = _log1p_sum_expm1(_powered_errors(first, second, power))
    if axes.bound(axes.DATA):
        rows = jax.lax.all_gather(rows, axes.DATA, tiled=True)
    return _log1p_sum_expm1(rows) / (power * rows.shape[0])


def power_distance(first: jax.Array, second: jax.Array, *, power: float = 1.0) -> jax.Array:
    """Mean power of the errors: what `logexp_distance` is for small ones, and the distance that it is compared with.

        ℓ(u, v) = 1/(p D) · Σ_i |u_i - v_i|^p,        the L1 distance at p = 1, half the mean square at p = 2

    Arguments, result and refusals as `logexp_distance`. The scale is our choice: at equal weight two distances of one
    power differ in shape alone.

    Example:
      >>> power_distance(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])).tolist()
      [0.5]
    """
    errors = _powered_errors(first, second, power)
    return jnp.sum(errors, axis=-1) / (power * errors.shape[-1])
