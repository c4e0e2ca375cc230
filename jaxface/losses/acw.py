"""ACW: which of two frozen recognizers, RGB or depth, to believe for this image (arXiv:2403.06529).

The paper's loss is not known to us; this one is ours (design). It trains confidence logits alone: what the recognizers say,
cosines and prototypes, are constants.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import Positive, check_finite, check_number, check_unit_rows, scored_labels
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, l2_normalize
from jaxface.losses.softmax import cross_entropy


def _check_logits(name: str, logits: jax.Array) -> None:
    chex.assert_rank(logits, 2, custom_message=f"{name} must be [B, 2]")
    if logits.shape[1] != 2:
        raise ValueError(f"{name}: needs shape [B, 2], RGB and depth, got {logits.shape}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"{name}: needs a float dtype, got {logits.dtype}")


def leave_one_out_cosines(
    features: jax.Array, labels: jax.Array, sums: jax.Array, share: jax.Array | None = None
) -> jax.Array:
    """Cosines of each image with the prototype of every class, its share of its class's prototype left out.

        P_k = n( S_k ) for k ≠ y_i,        P_{y_i} = n( S_{y_i} - o_i ),        n(x) = x / ‖x‖

    with S_k the sum of the unit features of the clean images of class k (`add_class_features`) and o_i what the image put
    into it: without this a recognizer looks reliable on the very images that its prototypes are made of.

    Args:
      features: [B, D] float of unit rows, of the images as they are now (corrupted).
      labels: [B] integers in [0, C).
      sums: [C, D] float, S; the number of images of a class is not needed, only the direction counts.
      share: [B, D] float, o_i: the unit feature of the same image when it was clean; a zero row leaves nothing out. None is zero
        for all.

    Returns:
      [B, C] float32 in [-1, 1]; 0 with the class of an image that was its only one.

    Raises:
      AssertionError, ValueError: shapes disagree, another dtype, or (where the values are known) a label out of range.
      UserError: (where the values are known) features that are not finite or not of length 1, or a class without images.

    Example:
      >>> features = jnp.array([[1.0, 0.0]])
      >>> sums = jnp.array([[1.0, 1.0], [0.0, 1.0]])  # the image itself is half of class 0
      >>> leave_one_out_cosines(features, jnp.array([0]), sums, share=features).tolist()  # what is left points elsewhere
      [[0.0, 0.0]]
    """
    chex.assert_rank([features, sums], 2, custom_message="features must be [B, D] and sums [C, D]")
    chex.assert_equal_shape_suffix([features, sums], 1, custom_message="features and sums differ in size")
    check_unit_rows("features", features, zeros=True)
    if share is not None:
        chex.assert_equal_shape([features, share], custom_message="share must have the shape of features")
        check_unit_rows("share", share, zeros=True)
    if not isinstance(sums, jax.core.Tracer):
        empty = ~np.asarray(sums, bool).any(axis=1)
        if empty.any():
            raise UserError(f"sums: every class needs an image, class {int(empty.argmax())} has none")
    features, sums = (jnp.asarray(x, jnp.float32) for x in (features, sums))
    scores = cosines(features, sums)
    labels = scored_labels(scores, labels)
    if share is None:
        return scores
    rest = l2_normalize(sums[labels] - share.astype(jnp.float32))
    # What remains of a class of one image is rounding.
    alone = jnp.linalg.norm(sums[labels] - share.astype(jnp.float32), axis=1) < 1e-3
    without = jnp.where(alone, 0.0, jnp.sum(features * rest, axis=1))
    return jnp.where(jnp.arange(sums.shape[0]) == labels[:, None], without[:, None], scores)


def acw_loss(
    logits: jax.Array,
    rgb_cosines: jax.Array,
    depth_cosines: jax.Array,
    labels: jax.Array,
    *,
    scale: float = 64.0,
) -> jax.Array:
    """Cross-entropy of the fused class scores: confidence moves to the modality that favors the right identity.

        c = softmax(l),        z_ik = c_r cos^r_ik + c_d cos^d_ik,        L_i = -log softmax(S z_i)_{y_i}

        ∂L_i/∂l_r = c_r c_d S Σ_k (p_ik - 1[k = y_i]) (cos^r_ik - cos^d_ik) = -∂L_i/∂l_d

    Source: task and score-level fusion of arXiv:2403.06529; the loss is ours (design).

    Args:
      logits: [B, 2] float, confidence logits l, RGB first (`layers.ConfidenceNet`).
      rgb_cosines: [B, C] float in [-1, 1], with the RGB prototypes; a constant.
      depth_cosines: [B, C] float in [-1, 1], with the depth prototypes; a constant.
      labels: [B] integers in [0, C).
      scale: S > 0; 30 to 64, 16 on small data.

    Returns:
      [B] float32 in [0, ∞), unreduced. Where both modalities say the same the gradient is exactly 0.

    Raises:
      AssertionError, ValueError: shapes or batches disagree, another dtype, or (where the values are known) a label out of range.
      UserError: a scale that is not positive, or (where the values are known) cosines that are not finite.

    Example:
      >>> rgb, depth = jnp.array([[0.9, 0.1]]), jnp.array([[0.5, 0.5]])  # RGB knows class 0, depth does not
      >>> believe_rgb, believe_depth = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 3.0]])
      >>> labels = jnp.array([0])
      >>> float(acw_loss(believe_rgb, rgb, depth, labels)[0]) < float(acw_loss(believe_depth, rgb, depth, labels)[0])
      True
    """
    check_number("scale", scale, Positive)
    _check_logits("logits", logits)
    for name, scores in (("rgb_cosines", rgb_cosines), ("depth_cosines", depth_cosines)):
        labels = scored_labels(scores, labels, name=name)
        check_finite(name, scores)
    chex.assert_equal_shape(
        [rgb_cosines, depth_cosines], custom_message="rgb_cosines and depth_cosines differ"
    )
    chex.assert_equal_shape_prefix([logits, labels], 1, custom_message="logits and labels differ in batch")
    fused = _blend(logits[:, :1] - logits[:, 1:], rgb_cosines, depth_cosines)
    return cross_entropy(scale * fused, labels)


def _blend(logit: jax.Array, rgb: jax.Array, depth: jax.Array) -> jax.Array:
    """σ(a) rgb + (1 - σ(a)) depth, of which equal scores take no gradient to a."""
    rgb, depth = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in (rgb, depth))
    return depth + jax.nn.sigmoid(logit.astype(jnp.float32)) * (rgb - depth)
