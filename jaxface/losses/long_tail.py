"""Losses for classes of unequal size: balanced softmax (arXiv:2007.10740), LDAM with deferred weights (arXiv:1906.07413).

Methods: nclpp
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import OpenFraction, Positive, check_number, int32_labels
from jaxface.errors import UserError
from jaxface.losses.softmax import cross_entropy


def checked_counts(counts: jax.Array, classes: int | None = None) -> jax.Array:
    """Numbers of training examples [C] as float32.

    Raises:
      ValueError: another shape. UserError: a count that is not positive, where the values are known.
    """
    if jnp.ndim(counts) != 1 or (classes is not None and len(counts) != classes):
        raise ValueError(f"counts: needs one number for each of {classes} classes, got {jnp.shape(counts)}")
    if not isinstance(counts, jax.core.Tracer):
        values = np.asarray(counts)
        if not np.all(values > 0):
            raise UserError(f"counts: needs examples of every class, got {values[~(values > 0)][0]:g}")
    return jnp.asarray(counts, jnp.float32)


def balanced_logits(logits: jax.Array, counts: jax.Array) -> jax.Array:
    """Logits whose softmax is that of the training set's long tail (arXiv:2007.10740, equation 3).

        b_c = z_c + log n_c

    Training on b makes z the scores for a balanced test; a factor on all counts changes no softmax.

    Args:
      logits: [..., C] float.
      counts: [C] examples of each class, > 0.

    Returns:
      [..., C] float, at least float32.

    Raises:
      ValueError: another number of counts. UserError: a count that is not positive.

    Example:
      >>> probabilities = jax.nn.softmax(balanced_logits(jnp.zeros(2), jnp.array([3, 1])))
      >>> [round(x, 4) for x in probabilities.tolist()]
      [0.75, 0.25]
    """
    counts = checked_counts(counts, logits.shape[-1])
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return logits + jnp.log(counts).astype(logits.dtype)


def balanced_softmax_loss(logits: jax.Array, labels: jax.Array, counts: jax.Array) -> jax.Array:
    """Cross-entropy of `balanced_logits` (arXiv:2007.10740, equation 4).

        L_i = -log( n_y e^{z_y} / Σ_c n_c e^{z_c} )

    Args:
      logits: [B, C] float. labels: [B] integers in [0, C). counts: [C] examples of each class, > 0.

    Returns:
      [B] float32, ≥ 0.

    Raises:
      ValueError, UserError: as `balanced_logits` and `cross_entropy`.

    Example:
      >>> loss = balanced_softmax_loss(jnp.zeros((2, 2)), jnp.array([0, 1]), jnp.array([3, 1]))
      >>> [round(x, 4) for x in loss.tolist()]  # log(4 / 3), log 4
      [0.2877, 1.3863]
    """
    return cross_entropy(balanced_logits(logits, counts), labels)


def ldam_loss(
    cosines: jax.Array,
    labels: jax.Array,
    counts: jax.Array,
    *,
    scale: float = 30.0,
    largest_margin: float = 0.5,
) -> jax.Array:
    """Label-distribution-aware margins: rare classes get larger ones (LDAM, arXiv:1906.07413, equations 12 and 13).

        L_i = CE( s (cos θ_j - Δ_j [j = y]), y ),        Δ_j = Δ_max (min_c n_c / n_j)^¼

    Args:
      cosines: [B, C] float in [-1, 1].
      labels: [B] integers in [0, C).
      counts: [C] examples of each class, > 0.
      scale: s > 0.
      largest_margin: Δ_max > 0, that of the rarest class.

    Returns:
      [B] float32, ≥ 0.

    Raises:
      ValueError, UserError: as `balanced_logits` and `cross_entropy`; a scale or margin that is not positive.

    Example:
      >>> loss = ldam_loss(jnp.zeros((2, 2)), jnp.array([0, 1]), jnp.array([16, 1]), scale=1.0)
      >>> [round(x, 4) for x in loss.tolist()]  # margins 1/4 and 1/2
      [0.8259, 0.9741]
    """
    check_number("scale", scale, Positive)
    check_number("largest_margin", largest_margin, Positive)
    counts = checked_counts(counts, cosines.shape[-1])
    labels = int32_labels("labels", labels, cosines.shape[-1])
    margins = largest_margin * (counts.min() / counts) ** 0.25
    target = jax.nn.one_hot(labels, cosines.shape[-1])
    return cross_entropy(scale * (cosines.astype(jnp.float32) - target * margins), labels)


def effective_number_weights(counts: jax.Array, *, beta: float = 0.9999) -> jax.Array:
    """Weights of classes by their effective number of examples (arXiv:1901.05555, equation 4), of mean 1.

        w_c ∝ (1 - β) / (1 - β^{n_c})

    LDAM-DRW multiplies its loss by w_y in the last fifth of a run (deferred re-weighting).

    Args:
      counts: [C] examples of each class, > 0.
      beta: β in (0, 1); towards 1 the weights become inverse counts, towards 0 equal.

    Returns:
      [C] float32 of sum C.

    Raises:
      ValueError, UserError: as `balanced_logits`; a β outside (0, 1).

    Example:
      >>> [round(x, 3) for x in effective_number_weights(jnp.array([3, 1]), beta=0.9999).tolist()]
      [0.5, 1.5]
    """
    check_number("beta", beta, OpenFraction)
    counts = checked_counts(counts)
    # 1 - β^n = -expm1(n log β): float32 would lose the difference of 0.9999 to 1.
    weights = 1 / -jnp.expm1(counts * np.log(beta))
    return weights * (len(counts) / weights.sum())
