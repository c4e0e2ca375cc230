"""SFace: a sigmoid-constrained hypersphere loss (arXiv:2205.12010)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxface.checks import Angle, NonNegative, Positive, check_number, nan_outside, scored_labels


class SFaceTerms(NamedTuple):
    """The two parts of the loss and what is worth watching beside them; each [B] float32."""

    intra: jax.Array  # -[r_intra(θ_iy)] cos θ_iy, 0 where the target is on another shard
    inter: jax.Array  # Σ_{j≠y} [r_inter(θ_ij)] cos θ_ij
    target_cosine: jax.Array  # cos θ_iy, 0 where the target is on another shard
    other_cosine: jax.Array  # mean over all C entries of cos θ_ij with the target counted as 0


def sface_rescale(
    angles: jax.Array,
    *,
    scale: float = 64.0,
    sharpness: float = 80.0,
    intra_angle: float = 0.87,
    inter_angle: float = 1.2,
) -> tuple[jax.Array, jax.Array]:
    """The two re-scale functions of an angle (arXiv:2205.12010).

        r_intra(θ) = s / (1 + exp(-k (θ - a)))        r_inter(θ) = s / (1 + exp(k (θ - b)))

    Args:
      angles: any shape, float, radians in [0, π].
      scale: upper asymptote s, > 0.
      sharpness: slope k, ≥ 0.
      intra_angle: a, radians: the pull towards the own class fades below it.
      inter_angle: b, radians: the push from other classes fades above it.

    Returns:
      (r_intra, r_inter), each float32 of the shape of `angles`, in [0, scale].
    """
    angles = angles.astype(jnp.float32)
    intra = scale * jax.nn.sigmoid(sharpness * (angles - intra_angle))
    inter = scale * jax.nn.sigmoid(sharpness * (inter_angle - angles))
    return intra, inter


def sface_terms(
    cosines: jax.Array,
    labels: jax.Array,
    *,
    scale: float = 64.0,
    sharpness: float = 80.0,
    intra_angle: float = 0.87,
    inter_angle: float = 1.2,
) -> SFaceTerms:
    """The parts of `sface_loss`, which is `intra + inter`; arguments and errors as there."""
    labels = scored_labels(cosines, labels)
    check_number("scale", scale, Positive)
    check_number("sharpness", sharpness, NonNegative)
    check_number("intra_angle", intra_angle, Angle)
    check_number("inter_angle", inter_angle, Angle)
    cosines = cosines.astype(jnp.float32)
    # The weights are constants of the differentiation. An angle error of 0.01 moves a weight by a fifth at k = 80, so the
    # arccos is float32 whatever the compute dtype; it sees clipped cosines while the gradient path keeps the true ones.
    frozen = jax.lax.stop_gradient(cosines)
    angles = jnp.arccos(jnp.clip(frozen, -1 + 1e-7, 1 - 1e-7))
    intra_weight, inter_weight = jax.lax.stop_gradient(
        sface_rescale(
            angles, scale=scale, sharpness=sharpness, intra_angle=intra_angle, inter_angle=inter_angle
        )
    )
    is_target = jax.nn.one_hot(labels, cosines.shape[1], dtype=bool)  # all False in the row of a label -1
    intra = -jnp.sum(jnp.where(is_target, intra_weight * cosines, 0.0), axis=1)
    return SFaceTerms(
        intra=intra + nan_outside(labels, cosines.shape[1]),
        inter=jnp.sum(jnp.where(is_target, 0.0, inter_weight * cosines), axis=1),
        target_cosine=jnp.sum(jnp.where(is_target, frozen, 0.0), axis=1),
        other_cosine=jnp.mean(jnp.where(is_target, 0.0, frozen), axis=1),
    )


def sface_loss(
    cosines: jax.Array,
    labels: jax.Array,
    *,
    scale: float = 64.0,
    sharpness: float = 80.0,
    intra_angle: float = 0.87,
    inter_angle: float = 1.2,
) -> jax.Array:
    """Sigmoid-constrained hypersphere loss (arXiv:2205.12010).

        L_i = -[r_intra(θ_iy)] cos θ_iy + Σ_{j≠y} [r_inter(θ_ij)] cos θ_ij,        [·] = stop-gradient

    with the weights of `sface_rescale`. There is no normalizer over classes: with the classes sharded, the loss is the
    sum of the shards' losses, each given label -1 where the target class lives on another shard. The value is not bounded
    below and turns negative early in training; select models by a metric, not by it.

    Args:
      cosines: [B, C] float in [-1, 1], embeddings against class prototypes. Values beyond ±1 by rounding are harmless.
      labels: [B] integers in [0, C), or -1 where the target class lives on another shard. Where the values are not known, a
        label that is neither gives NaN.
      scale: upper asymptote s of both re-scale functions, > 0.
      sharpness: slope k of both sigmoids, ≥ 0, per radian.
      intra_angle: mid-point a of the pull, radians in [0, π]; larger tolerates more within-class spread (noisier labels).
      inter_angle: mid-point b of the push, radians in [0, π]; smaller stops pushing earlier.
        All four may be traced scalars.

    Returns:
      [B] float32, unreduced.

    Raises:
      AssertionError: ranks or batch sizes disagree.
      ValueError: labels are not integers or out of range, an empty batch, or a hyper-parameter out of range.

    Example:
      >>> cosines = jnp.array([[0.54, 0.45, 0.27]])  # embeddings against class prototypes
      >>> [round(x, 2) for x in sface_loss(cosines, jnp.array([0])).tolist()]
      [-5.77]
      >>> gradient = jax.grad(lambda c: sface_loss(c, jnp.array([0])).sum())(cosines)
      >>> [round(x, 2) for x in gradient[0].tolist()]  # a pull to class 0, a push from class 1, class 2 is far enough away
      [-64.0, 63.97, 0.03]
    """
    terms = sface_terms(
        cosines,
        labels,
        scale=scale,
        sharpness=sharpness,
        intra_angle=intra_angle,
        inter_angle=inter_angle,
    )
    return terms.intra + terms.inter
