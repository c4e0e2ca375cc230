"""Learning from wrong labels by small losses: what is learned from is what two networks find easy and agree on.

Co-teaching (arXiv:1804.06872) hands each network the examples that are easy for the other; JoCoR (arXiv:2003.02752) takes those
whose joint loss is small, which has the divergence of the two predictions in it.

Methods: mda
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import axes
from jaxface.checks import AtLeast, Fraction, NonNegative, ProperFraction, check_number
from jaxface.losses.softmax import cross_entropy


def _pair(logits1: jax.Array, logits2: jax.Array) -> None:
    if logits1.shape != logits2.shape or logits1.ndim != 2:
        raise ValueError(f"logits: need two [B, C] of one shape, got {logits1.shape} and {logits2.shape}")


def symmetric_divergence(logits1: jax.Array, logits2: jax.Array) -> jax.Array:
    """KL(p₁‖p₂) + KL(p₂‖p₁) of the softmaxes of two [B, C]: [B] float32, with gradients through both.

    Example:
      >>> [round(x, 4) for x in symmetric_divergence(jnp.array([[2.0, 0, -1]]), jnp.array([[1.0, 1, 0]])).tolist()]
      [0.843]
    """
    _pair(logits1, logits2)
    log1, log2 = (jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (logits1, logits2))
    return ((jnp.exp(log1) - jnp.exp(log2)) * (log1 - log2)).sum(axis=1)


def jocor_scores(logits1: jax.Array, logits2: jax.Array, labels: jax.Array, *, agreement: float) -> jax.Array:
    """JoCoR's joint loss of each example, by which examples are chosen and which is learned (arXiv:2003.02752, equation 1).

        (1 - λ) (CE(z₁, y) + CE(z₂, y)) + λ (KL(p₁‖p₂) + KL(p₂‖p₁))

    Args:
      logits1, logits2: [B, C] float, of two networks.
      labels: [B] integers in [0, C).
      agreement: λ in [0, 1].

    Returns:
      [B] float32, the same if the networks change places.

    Raises:
      ValueError: other shapes, or labels outside the classes. UserError: λ outside [0, 1].

    Example:
      >>> z1, z2 = jnp.array([[2.0, 0, -1], [0.5, 1.5, 0]]), jnp.array([[1.0, 1, 0], [-0.5, 0.5, 2]])
      >>> [round(x, 4) for x in jocor_scores(z1, z2, jnp.array([0, 2]), agreement=0.65).tolist()]
      [0.9091, 2.0013]
    """
    check_number("agreement", agreement, Fraction)
    _pair(logits1, logits2)
    loss = cross_entropy(logits1, labels) + cross_entropy(logits2, labels)
    return (1 - agreement) * loss + agreement * symmetric_divergence(logits1, logits2)


def forget_rate(epoch: int, rate: float, *, gradual: int = 10, exponent: float = 1.0) -> float:
    """Share of the examples that is left out in an epoch, R(e).

        R(e) = linspace(0, τ^c, T)[e] for e < T, τ from there on

    Args:
      epoch: e ≥ 0.
      rate: τ in [0, 1), the share that is left out in the end: the rate of wrong labels.
      gradual: T ≥ 1, epochs over which it rises.
      exponent: c; with another than 1 the rate jumps from τ^c to τ at e = T.

    Returns:
      float64, since counts of examples are made of it (`small_loss_count`).

    Example:
      >>> [round(forget_rate(e, 0.8), 4) for e in (0, 1, 9, 10)]
      [0.0, 0.0889, 0.8, 0.8]
    """
    check_number("epoch", epoch, AtLeast(0))
    check_number("rate", rate, ProperFraction)
    check_number("gradual", gradual, AtLeast(1))
    check_number("exponent", exponent, NonNegative)
    return float(np.linspace(0, rate**exponent, gradual)[epoch]) if epoch < gradual else float(rate)


def small_loss_count(examples: int, forgotten: float) -> int:
    """⌊(1 - R) N⌋, the examples that are learned from; (1 - 0.8) · 50,000 is 10,000, although float64 has one less.

    Example:
      >>> small_loss_count(50_000, 0.8)
      10000
    """
    check_number("forgotten", forgotten, ProperFraction)
    return math.floor((1 - forgotten) * examples + 1e-9)


def small_loss_mask(scores: jax.Array, count: jax.Array | int) -> jax.Array:
    """Which scores are the `count` smallest; of equal ones the first.

    Args:
      scores: [N] float, finite.
      count: integer; may be traced, so that a schedule compiles once.

    Returns:
      [N] bool.

    Example:
      >>> small_loss_mask(jnp.array([3.0, 1, 2, 1]), 2).tolist()
      [False, True, False, True]
    """
    return jnp.argsort(jnp.argsort(scores, stable=True), stable=True) < count


def batch_small_loss_mask(scores: jax.Array, count: jax.Array | int) -> jax.Array:
    """`small_loss_mask` among the examples of a batch, those on other replicas included (`jaxface.axes`)."""
    if not axes.bound(axes.DATA):
        return small_loss_mask(scores, count)
    every = jax.lax.all_gather(scores, axes.DATA, tiled=True)
    mask = small_loss_mask(every, count)
    return jax.lax.dynamic_slice_in_dim(mask, jax.lax.axis_index(axes.DATA) * len(scores), len(scores))


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the values that a mask selects, of the whole batch where it is spread over replicas; 0 where it selects none.

    On a replica it is the sum over its own examples by the mean number of selected ones on a replica, so that the mean over the
    replicas is that of the batch.

    Args:
      values: [B] float, finite.
      mask: [B] bool.

    Returns:
      float32 scalar.

    Example:
      >>> float(masked_mean(jnp.array([1.0, 2.0, 6.0]), jnp.array([True, False, True])))
      3.5
    """
    count = axes.mean(jnp.sum(mask, dtype=jnp.float32))
    total = jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0))
    return total / jnp.where(count > 0, count, 1.0)


def jocor_loss(
    logits1: jax.Array, logits2: jax.Array, labels: jax.Array, count: jax.Array | int, *, agreement: float
) -> tuple[jax.Array, jax.Array]:
    """JoCoR: the mean joint loss of those examples of a batch for which it is smallest.

    Args:
      logits1, logits2, labels, agreement: as `jocor_scores`.
      count: examples that are learned from, of the batch over all replicas.

    Returns:
      (float32 scalar, selected [B] bool).

    Example:
      >>> z1, z2 = jnp.array([[2.0, 0, -1], [0.5, 1.5, 0]]), jnp.array([[1.0, 1, 0], [-0.5, 0.5, 2]])
      >>> loss, selected = jocor_loss(z1, z2, jnp.array([0, 2]), 1, agreement=0.65)
      >>> round(float(loss), 4), selected.tolist()
      (0.9091, [True, False])
    """
    scores = jocor_scores(logits1, logits2, labels, agreement=agreement)
    selected = batch_small_loss_mask(jax.lax.stop_gradient(scores), count)
    return masked_mean(scores, selected), selected


def coteaching_loss(
    logits1: jax.Array, logits2: jax.Array, labels: jax.Array, count: jax.Array | int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Co-teaching: each network learns from those examples of a batch whose loss is smallest for the other.

    Args:
      logits1, logits2: [B, C] float, of two networks.
      labels: [B] integers in [0, C).
      count: examples that each learns from, of the batch over all replicas.

    Returns:
      (float32 scalar, the sum of both losses; what the first and the second learn from, [B] bool each).

    Example:
      >>> z1, z2 = jnp.array([[2.0, 0], [0.0, 0]]), jnp.array([[0.0, 0], [3.0, 0]])
      >>> loss, (first, second) = coteaching_loss(z1, z2, jnp.array([0, 0]), 1)
      >>> first.tolist(), second.tolist()
      ([False, True], [True, False])
    """
    _pair(logits1, logits2)
    loss1, loss2 = cross_entropy(logits1, labels), cross_entropy(logits2, labels)
    easy1, easy2 = (batch_small_loss_mask(jax.lax.stop_gradient(loss), count) for loss in (loss1, loss2))
    return masked_mean(loss1, easy2) + masked_mean(loss2, easy1), (easy2, easy1)
