"""MDA: agreement of two networks on every example, labels learned only where they are likely right (arXiv:2212.01054).

Methods: mda
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxface.checks import NonNegative, check_number
from jaxface.losses.small_loss import masked_mean
from jaxface.losses.softmax import cross_entropy


def mirror(images: jax.Array) -> jax.Array:
    """Images [..., H, W, C] seen in a mirror: the width reversed.

    Raises:
      ValueError: fewer than three axes.

    Example:
      >>> mirror(jnp.arange(3.0).reshape(1, 3, 1)).ravel().tolist()
      [2.0, 1.0, 0.0]
    """
    if images.ndim < 3:
        raise ValueError(f"images: needs [..., H, W, C], got {images.shape}")
    return jnp.flip(images, axis=-2)


def mean_point_loss(logits: jax.Array) -> jax.Array:
    """Mean point ensemble: the squared distance of every network's logits from their mean.

        L = Σ_p mean_{i,c} (z_pic - m_ic)²,  m = mean_p z_p;   ½ mean (z₁ - z₂)² of two networks

    Its gradient is the same whether m is held fast or not. It is a mean over the classes: per logit it pulls less where there
    are more of them.

    Args:
      logits: [P, B, C] float, of P networks.

    Returns:
      float32 scalar.

    Raises:
      ValueError: another number of axes.

    Example:
      >>> float(mean_point_loss(jnp.array([[[2.0, 0.0]], [[0.0, 0.0]]])))
      1.0
    """
    if logits.ndim != 3:
        raise ValueError(f"logits: needs [P, B, C], got {logits.shape}")
    logits = logits.astype(jnp.float32)
    return jnp.square(logits - logits.mean(axis=0)).mean(axis=(1, 2)).sum()


class MdaTerms(NamedTuple):
    """Of a batch; float32 scalars."""

    supervised: jax.Array
    agreement: jax.Array


def mda_loss(
    logits1: jax.Array,
    logits2: jax.Array,
    labels: jax.Array,
    selected: jax.Array,
    *,
    agreement_weight: float = 1.0,
) -> tuple[jax.Array, MdaTerms]:
    """MDA's loss of a batch: the labels of selected examples, and the agreement of both networks on all.

        L = mean_{i ∈ S} (CE(z₁, y)ᵢ + CE(z₂, y)ᵢ) + w mean_point_loss([z₁, z₂])

    Args:
      logits1, logits2: [B, C] float, of two networks.
      labels: [B] integers in [0, C); those of examples that are not selected count for nothing.
      selected: [B] bool, S; an empty one leaves the agreement alone.
      agreement_weight: w ≥ 0.

    Returns:
      (float32 scalar, its two terms).

    Raises:
      ValueError: other shapes, or labels outside the classes. UserError: w below 0.

    Example:
      >>> z1, z2 = jnp.array([[2.0, 0, -1], [0.5, 1.5, 0]]), jnp.array([[1.0, 1, 0], [-0.5, 0.5, 2]])
      >>> loss, terms = mda_loss(z1, z2, jnp.array([0, 2]), jnp.array([True, False]))
      >>> round(float(terms.supervised), 4), float(terms.agreement)
      (1.0318, 0.75)
    """
    check_number("agreement_weight", agreement_weight, NonNegative)
    if logits1.shape != logits2.shape or logits1.shape[:1] != selected.shape:
        raise ValueError(
            f"logits: need two [B, C] and selected [B], got {logits1.shape}, {logits2.shape} and {selected.shape}"
        )
    supervised = masked_mean(cross_entropy(logits1, labels) + cross_entropy(logits2, labels), selected)
    agreement = mean_point_loss(jnp.stack([logits1, logits2]))
    return supervised + agreement_weight * agreement, MdaTerms(supervised, agreement)
