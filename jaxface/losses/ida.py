"""The learnable estimation of an image's local discrepancy (arXiv:2103.01559).

The regression target of an image is how near the other classes are to it; `jaxface.layers.LIDEstimator` learns to tell it from
the embedding, so that no other image is needed to correct a score (`jaxface.metrics.aligned_similarity`).
"""

import chex
import jax
import jax.numpy as jnp

from jaxface.checks import int32_labels, nan_outside
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize
from jaxface.metrics.analysis.discrepancy import TILE, local_discrepancy


def lid_targets(
    embeddings: jax.Array, labels: jax.Array, centers: jax.Array, *, k: int = 50, tile: int = TILE
) -> jax.Array:
    """Local discrepancy of training images among the centers of the other classes (arXiv:2103.01559; our reading).

        d*(x_i) = mean of the K largest ⟨x_i / ‖x_i‖, c_j / ‖c_j‖⟩,   j ≠ y_i

    On people that the network was trained on d* is smaller than on new ones, since classes are pushed apart. A constant
    shift changes no ROC curve.

    Args:
      embeddings: x [B, D] float; normalized here, a constant.
      labels: y [B] integers in [0, C); where the values are not known, one out of range gives NaN.
      centers: c [C, D] float, class means or prototypes; normalized here, constants.
      k: K in [1, C - 1], static.
      tile: classes compared at a time, static.

    Returns:
      [B] float32 in [-1, 1].

    Raises:
      AssertionError: ranks or sizes disagree.
      ValueError: labels of another dtype, or (where the values are known) out of range.
      UserError: fewer than two classes, or K out of its range. Outside of compiled functions also a row that is zero or not
        finite.

    Example:
      >>> centers = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
      >>> targets = lid_targets(centers[:2], jnp.array([0, 1]), centers, k=1)
      >>> [round(x, 2) for x in targets.tolist()]  # the third class is nearest to both
      [0.6, 0.8]
    """
    labels = int32_labels("labels", labels, len(centers))
    chex.assert_rank([embeddings, centers], 2)
    chex.assert_equal_shape_prefix([embeddings, labels], 1, custom_message="embeddings and labels differ")
    chex.assert_equal_shape_suffix([embeddings, centers], 1, custom_message="embeddings and centers differ")
    classes = len(centers)
    if not 1 <= k <= classes - 1:
        raise UserError(f"k: needs 1 to the {classes - 1} other classes there are, got {k}")
    found = local_discrepancy(
        l2_normalize(jnp.asarray(embeddings, jnp.float32)),
        l2_normalize(jnp.asarray(centers, jnp.float32)),
        k=k,
        labels=labels,
        candidate_labels=jnp.arange(classes),
        tile=tile,
    )
    return jax.lax.stop_gradient(found.mean + nan_outside(labels, classes, low=0))


def lid_regression_loss(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Squared error of an estimated local discrepancy (arXiv:2103.01559; our reading).

        L_i = ( h(x_i) - d*(x_i) )²

    Args:
      predicted: h [B] float.
      target: d* [B] float, a constant.

    Returns:
      [B] float32, unreduced.

    Raises:
      AssertionError: the shapes differ or are not [B].

    Example:
      >>> [round(x, 3) for x in lid_regression_loss(jnp.array([0.5, 0.2]), jnp.array([0.3, 0.2])).tolist()]
      [0.04, 0.0]
    """
    chex.assert_rank([predicted, target], 1, custom_message="predicted and target must be [B]")
    chex.assert_equal_shape([predicted, target], custom_message="predicted and target differ")
    target = jax.lax.stop_gradient(target)
    return jnp.square(predicted.astype(jnp.float32) - target.astype(jnp.float32))
