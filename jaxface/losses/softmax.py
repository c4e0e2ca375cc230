"""Softmax cross-entropy over cosines, and its margins: CosFace (arXiv:1801.09414) and ArcFace (arXiv:1801.07698).

Methods: acw, cckd, lifelong, mda, nclpp, qvit, sface, ota
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxface.checks import Angle, Positive, Range, check_number, scored_labels

GradientMode = Literal["exact", "straight_through"]


def cross_entropy(logits: jax.Array, labels: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    """Cross-entropy with classes that may be spread over devices.

        L_i = log Σ_j exp z_ij - z_iy

    Args:
      logits: [B, C] float; with `axis_name`, the columns of this shard.
      labels: [B] integers in [0, C), local to the shard; -1 means "target not on this shard". A row whose target is on no
        shard at all has loss 0 and no gradient. Where the values are not known, a label that is neither gives NaN.
      axis_name: mapped axis over which the classes are sharded; the row maximum, the row sum and the target logit are then
        combined over it, and every shard returns the loss of the whole.

    Returns:
      [B] float32, unreduced.

    Example:
      >>> [round(x, 4) for x in cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).tolist()]  # log 4
      [1.3863]
    """
    labels = scored_labels(logits, labels, name="logits")
    logits = logits.astype(jnp.float32)
    in_shard = labels != -1
    # NaN for a label that is no class; a negative index would count from the end.
    index = jnp.where(labels < 0, logits.shape[1], labels)
    target = jnp.take_along_axis(logits, index[:, None], axis=1, mode="fill")[:, 0]
    target = jnp.where(in_shard, target, 0.0)
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=1))
    if axis_name is not None:
        peak = jax.lax.stop_gradient(jax.lax.pmax(peak, axis_name))
    total = jnp.sum(jnp.exp(logits - peak[:, None]), axis=1)
    if axis_name is not None:
        total, target, in_shard = jax.lax.psum((total, target, in_shard.astype(jnp.int32)), axis_name)
    # A shard whose logits are all masked to -inf adds exp(-inf) = 0: the sum over shards stays finite.
    return jnp.where(in_shard > 0, jnp.log(total) + peak - target, 0.0)


def margin_logits(
    cosines: jax.Array,
    labels: jax.Array,
    *,
    scale: float = 64.0,
    angular_margin: float = 0.0,
    cosine_margin: float = 0.0,
    gradient: GradientMode = "exact",
    guard: bool = True,
) -> jax.Array:
    """Logits with a margin on the target class.

        z_iy = s (cos(θ_iy + m₂) - m₃),        z_ij = s cos θ_ij for j ≠ y

    Beyond θ = π - m₂ the first term turns upwards again, which drives a sample that is far from its prototype to the
    opposite side of the sphere. The guard, as in the paper's own code, continues it there as cos θ - m₂ sin m₂.

    Args:
      cosines: [B, C] float in [-1, 1].
      labels: [B] integers in [0, C), or -1: a row without a margin.
      scale: s > 0.
      angular_margin: m₂, radians in [0, π].
      cosine_margin: m₃ in [0, 2].
      gradient: "exact" differentiates cos(θ + m₂), a factor sin(θ + m₂) / sin θ; "straight_through" passes s for every entry,
        as the InsightFace head does by updating the logits in place.
      guard: keep the target's logit falling up to θ = π. The current InsightFace head has no guard.

    Returns:
      [B, C] float32.

    Raises:
      AssertionError, ValueError: as `cross_entropy`; an unknown `gradient`.

    Example:
      >>> logits = margin_logits(jnp.array([[0.9, 0.1]]), jnp.array([0]), scale=10.0, cosine_margin=0.35)
      >>> [round(x, 2) for x in logits[0].tolist()]
      [5.5, 1.0]
    """
    labels = scored_labels(cosines, labels)
    check_number("scale", scale, Positive)
    check_number("angular_margin", angular_margin, Angle)
    check_number("cosine_margin", cosine_margin, Range(0, 2))
    if gradient not in ("exact", "straight_through"):
        raise ValueError(f"gradient: needs 'exact' or 'straight_through', got {gradient!r}")
    cosines = cosines.astype(jnp.float32)
    is_target = jax.nn.one_hot(labels, cosines.shape[1], dtype=bool)
    # cos(θ + m) = c cos m - sin θ sin m. Flooring 1 - c² keeps the derivative finite at c = ±1 (it becomes cos m there).
    sine = jnp.sqrt(jnp.maximum(1.0 - cosines**2, 1e-7))
    with_margin = cosines * jnp.cos(angular_margin) - sine * jnp.sin(angular_margin)
    if guard:
        beyond = cosines <= -jnp.cos(angular_margin)
        with_margin = jnp.where(beyond, cosines - angular_margin * jnp.sin(angular_margin), with_margin)
    with_margin = with_margin - cosine_margin
    if gradient == "straight_through":
        with_margin = cosines + jax.lax.stop_gradient(with_margin - cosines)
    return scale * jnp.where(is_target, with_margin, cosines)


def softmax_loss(
    cosines: jax.Array, labels: jax.Array, *, scale: float = 64.0, axis_name: str | None = None
) -> jax.Array:
    """Softmax cross-entropy over scaled cosines, without a margin (NormFace, arXiv:1704.06369).

        L_i = -log( exp(s cos θ_iy) / Σ_j exp(s cos θ_ij) )

    Args:
      cosines: [B, C] float in [-1, 1].
      labels: [B] integers in [0, C), or -1 where the target class lives on another shard.
      scale: s > 0, the inverse temperature.
      axis_name: mapped axis over which the classes are sharded, if they are (see `cross_entropy`).

    Returns:
      [B] float32, unreduced.

    Raises:
      AssertionError: ranks or batch sizes disagree.
      ValueError: labels are not integers or out of range, an empty batch, or `scale` ≤ 0.

    Example:
      >>> cosines = jnp.array([[0.9, 0.1], [0.1, 0.9]])
      >>> [round(x, 3) for x in softmax_loss(cosines, jnp.array([0, 0]), scale=4.0).tolist()]
      [0.04, 3.24]
    """
    return cross_entropy(margin_logits(cosines, labels, scale=scale), labels, axis_name=axis_name)


def cosface_loss(
    cosines: jax.Array,
    labels: jax.Array,
    *,
    scale: float = 64.0,
    margin: float = 0.35,
    axis_name: str | None = None,
) -> jax.Array:
    """Large-margin cosine loss (CosFace, arXiv:1801.09414, eq. 4): the target's logit is s (cos θ - m).

    Args:
      cosines, labels, scale, axis_name: as `softmax_loss`.
      margin: m in [0, 2]. The paper uses 0.35; InsightFace's recipes 0.4.

    Returns:
      [B] float32, unreduced.

    Raises:
      AssertionError, ValueError: as `softmax_loss`; `margin` out of range.

    Example:
      >>> cosines, labels = jnp.array([[0.9, 0.1]]), jnp.array([0])
      >>> round(float(cosface_loss(cosines, labels, scale=4.0)[0]), 3)
      0.153
      >>> round(float(softmax_loss(cosines, labels, scale=4.0)[0]), 3)  # without the margin
      0.04
    """
    check_number("margin", margin, Range(0, 2))
    logits = margin_logits(cosines, labels, scale=scale, cosine_margin=margin)
    return cross_entropy(logits, labels, axis_name=axis_name)


def arcface_loss(
    cosines: jax.Array,
    labels: jax.Array,
    *,
    scale: float = 64.0,
    margin: float = 0.5,
    gradient: GradientMode = "exact",
    guard: bool = True,
    axis_name: str | None = None,
) -> jax.Array:
    """Additive angular margin loss (ArcFace, arXiv:1801.07698, eq. 3): the target's logit is s cos(θ + m).

    Args:
      cosines, labels, scale, axis_name: as `softmax_loss`.
      margin: m, radians in [0, π].
      gradient, guard: see `margin_logits`; "straight_through" and False are InsightFace's current head.

    Returns:
      [B] float32, unreduced.

    Raises:
      AssertionError, ValueError: as `softmax_loss`; `margin` out of range, unknown `gradient`.

    Example:
      >>> cosines, labels = jnp.array([[0.9, 0.1]]), jnp.array([0])
      >>> round(float(arcface_loss(cosines, labels, scale=4.0)[0]), 3)
      0.136
      >>> round(float(softmax_loss(cosines, labels, scale=4.0)[0]), 3)  # without the margin
      0.04
    """
    check_number("margin", margin, Angle)
    logits = margin_logits(
        cosines, labels, scale=scale, angular_margin=margin, gradient=gradient, guard=guard
    )
    return cross_entropy(logits, labels, axis_name=axis_name)
