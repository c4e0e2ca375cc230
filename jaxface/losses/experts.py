"""Losses of experts that learn from several sources, and of the trunk that several experts are squeezed into (arXiv:2111.08687).

Methods: intern
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from jaxface.checks import Positive, check_number
from jaxface.errors import UserError
from jaxface.losses.distillation import mimic_loss

IGNORED = 255
"""Label of pixels that do not count."""


def known_label_loss(logits: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Binary cross-entropy over the concepts of which something is known.

        L_i = Σ_k m_ik BCE(z_ik, t_ik) / max(1, Σ_k m_ik)

    Args:
      logits: [B, K] float.
      target: [B, K] in {0, 1}. mask: [B, K] in {0, 1}, 0 where nothing is known: no loss and no gradient.

    Returns:
      [B] float32, 0 for an example of which nothing is known.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> loss = known_label_loss(jnp.array([[0.0, 9.0]]), jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0]]))
      >>> round(float(loss[0]), 4)
      0.6931
    """
    if not logits.shape == target.shape == mask.shape or logits.ndim != 2:
        raise ValueError(
            f"logits: needs [B, K] as target and mask, got {logits.shape}, {target.shape}, {mask.shape}"
        )
    each = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), target)
    return jnp.sum(jnp.where(mask > 0, each, 0), axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)


def pixel_loss(logits: jax.Array, labels: jax.Array, *, ignored: int = IGNORED) -> jax.Array:
    """Cross-entropy of the pixels that count, the mean over each image.

    Args:
      logits: [B, H, W, C] float.
      labels: [B, H, W] integers in [0, C), or `ignored`.

    Returns:
      [B] float32, 0 for an image without a pixel that counts.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> round(float(pixel_loss(jnp.zeros((1, 1, 2, 4)), jnp.array([[[3, 255]]]))[0]), 4)
      1.3863
    """
    if logits.ndim != 4 or logits.shape[:3] != labels.shape:
        raise ValueError(
            f"logits: needs [B, H, W, C] of labels [B, H, W], got {logits.shape}, {labels.shape}"
        )
    counted = labels != ignored
    labels = jnp.where(counted, labels, 0).astype(jnp.int32)
    each = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    return jnp.sum(jnp.where(counted, each, 0), axis=(1, 2)) / jnp.maximum(jnp.sum(counted, axis=(1, 2)), 1)


def depth_loss(predicted: jax.Array, depth: jax.Array) -> jax.Array:
    """Huber's loss of the depth where there is one, the mean over each image.

    Args:
      predicted: [B, H, W] float. depth: [B, H, W] float, 0 where nothing was measured.

    Returns:
      [B] float32.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> depth_loss(jnp.array([[[1.0, 9.0]]]), jnp.array([[[1.5, 0.0]]])).tolist()
      [0.125]
    """
    if predicted.ndim != 3 or predicted.shape != depth.shape:
        raise ValueError(f"depth: needs [B, H, W] as predicted, got {depth.shape} and {predicted.shape}")
    counted = depth > 0
    each = optax.huber_loss(predicted.astype(jnp.float32), depth)
    return jnp.sum(jnp.where(counted, each, 0), axis=(1, 2)) / jnp.maximum(jnp.sum(counted, axis=(1, 2)), 1)


def squeeze_loss(projected: Mapping[str, jax.Array], teachers: Mapping[str, jax.Array]) -> jax.Array:
    """Distance of a small trunk's features, projected for each task type, to those of the expert of that type.

        L_i = Σ_type ‖ P_type F_S / |·| - sg( F_T,type / |·| ) ‖²

    Args:
      projected, teachers: task type -> [B, D_type] float, the same types in both; teachers are constants.

    Returns:
      [B] float32 in [0, 4 · types].

    Raises:
      UserError: no type, or others than the teachers'.

    Example:
      >>> squeeze_loss({"c": jnp.array([[0.0, 2.0]])}, {"c": jnp.array([[0.0, 1.0]])}).tolist()
      [0.0]
    """
    if not projected or projected.keys() != teachers.keys():
        raise UserError(
            f"projected: needs the types of the teachers, {', '.join(teachers)}, got {', '.join(projected)}"
        )
    each = [mimic_loss(projected[name], teachers[name], unit=True) for name in projected]
    return jnp.sum(jnp.stack(each), axis=0)


def source_weights(
    losses: Sequence[jax.Array] | jax.Array, *, low: float = 0.2, high: float = 5.0
) -> jax.Array:
    """Weights of sources by their running losses, the smaller the loss the larger, held within bounds.

        w_d = clip( L_d^-1 / mean(L^-1), low, high )

    (Without bounds this minimizes Σ log L_d, and the source that is nearest to no loss takes everything.)

    Args:
      losses: [sources] positive running means; constants.
      low, high: bounds, 0 < low ≤ 1 ≤ high.

    Returns:
      [sources] float32.

    Raises:
      UserError: bounds out of their order.

    Example:
      >>> [round(float(weight), 2) for weight in source_weights(jnp.array([1.0, 1.0, 1e-6]))]
      [0.2, 0.2, 3.0]
    """
    check_number("low", low, Positive)
    if not low <= 1 <= high:
        raise UserError(f"low: needs bounds around 1, got {low:g} and {high:g}")
    inverse = 1 / jnp.maximum(jax.lax.stop_gradient(jnp.asarray(losses, jnp.float32)), 1e-12)
    return jnp.clip(inverse / jnp.mean(inverse), low, high)
