"""GABN: gradient attention maps, their erasing and their adversarial balance across groups (arXiv:2304.02284).

The paper's abstract gives the three ideas; the formulas and constants here are our reading of it (design).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from jaxface.checks import int32_labels, nan_outside
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize

AttentionKind = Literal["gradcam", "elementwise", "input"]
"""How a gradient becomes a map: see `gradient_attention`."""
AttentionScore = Literal["projection", "cosine"]
"""What is differentiated: see `attention_score`."""
_FLOOR = 1e-6
_SMALLEST_SQUARE = 1e-12  # of the length of an embedding, as in `l2_normalize`


class Attention(NamedTuple):
    """Where a network looks.

    Attributes:
      maps: [B, h, w] ≥ 0, at least float32; each sums to 1, or is all zero.
      valid: [B] bool, False for an all-zero map: nothing there speaks for the class.
    """

    maps: jax.Array
    valid: jax.Array


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _pool(maps: jax.Array, grid: tuple[int, int], name: str) -> jax.Array:
    """[B, H, W] -> [B, h, w], means over equal blocks."""
    (height, width), (rows, columns) = maps.shape[1:], grid
    if rows < 1 or columns < 1 or height % rows or width % columns:
        raise UserError(f"{name}: needs divisors of the map's {height}x{width}, got {rows}x{columns}")
    return maps.reshape(-1, rows, height // rows, columns, width // columns).mean(axis=(2, 4))


def _attention_maps(
    features: jax.Array,
    gradients: jax.Array,
    *,
    kind: AttentionKind = "elementwise",
    grid: tuple[int, int] | None = None,
) -> Attention:
    """Attention maps from a feature map A and the gradient D of a score by it.

        gradcam       G = relu(Σ_c mean_hw(D)_c A_c)
        elementwise   G = relu(Σ_c D_c A_c)
        input         G = max_c |D_c|,   for D the gradient by the image
        G <- G / (Σ_hw G + 1e-6)

    The mean over the plane of gradcam is right where the network itself pools there; where it flattens the map, as face
    networks do, it loses the place, and elementwise keeps it. A sum, not the maximum, normalizes: the maximum would let the
    contrast of an image, and with it skin tone, shine through.

    Args:
      features: [B, h, w, C] float, A; the image for the kind "input", which uses its shape alone.
      gradients: like `features`, D.
      kind: which of the three.
      grid: (h, w) to which the map is averaged, divisors of its size; none keeps it.

    Returns:
      Attention: maps [B, h, w] and valid [B]. Differentiable where `gradients` is; zero gradients where a map is all zero.

    Raises:
      AssertionError: shapes differ or have not four axes.
      ValueError: an unknown kind. UserError: a grid that does not divide the map.
    """
    chex.assert_rank(features, 4, custom_message="features: needs shape [B, h, w, C]")
    chex.assert_equal_shape([features, gradients], custom_message="features and gradients differ")
    if kind not in get_args(AttentionKind):
        raise ValueError(f"kind: needs one of {', '.join(get_args(AttentionKind))}, got {kind!r}")
    features, gradients = _at_least_float32(features), _at_least_float32(gradients)
    if kind == "gradcam":
        maps = jax.nn.relu(jnp.sum(gradients.mean(axis=(1, 2), keepdims=True) * features, axis=-1))
    elif kind == "elementwise":
        maps = jax.nn.relu(jnp.sum(gradients * features, axis=-1))
    else:
        maps = jnp.abs(gradients).max(axis=-1)
    if grid is not None:
        maps = _pool(maps, grid, "grid")
    total = maps.sum(axis=(1, 2), keepdims=True)
    return Attention(maps / (total + _FLOOR), total[:, 0, 0] > 0)


def attention_score(
    embeddings: jax.Array, class_prototypes: jax.Array, *, score: AttentionScore = "projection"
) -> jax.Array:
    """The cosine with the labeled class, whose gradient says where a network looks.

        projection   q_b = ⟨f_b, w_b⟩ / stop(‖f_b‖)
        cosine       q_b = ⟨f_b, w_b⟩ / ‖f_b‖

    for unit w. Both have one value; they differ in their gradient. The cosine does not change with the length of f, so that
    Σ f · ∂q/∂f = 0 and ‖∂q/∂f‖ = √(1 - q²) / ‖f‖: what stretches f along itself counts for nothing, and a face that is
    recognized perfectly has no gradient at all. With the length held constant ∂q/∂f = w / ‖f‖, and after a linear layer
    f = Σ_p V_p A_p the attributions are complete, Σ A · ∂q/∂A = q. Neither depends on the length of a prototype.

    Args:
      embeddings: [B, D] float, not normalized.
      class_prototypes: [B, D] float, of each record's class, of any length.
      score: which of the two.

    Returns:
      [B] float32 within rounding of [-1, 1]; 0, with a finite gradient, for an embedding of zeros.

    Raises:
      AssertionError: shapes differ or have not two axes. ValueError: an unknown score.

    Example:
      >>> embeddings, prototype = jnp.array([[3.0, 4.0]]), jnp.array([[2.0, 0.0]])
      >>> [round(float(attention_score(embeddings, prototype, score=s)[0]), 4) for s in ("projection", "cosine")]
      [0.6, 0.6]
      >>> gradient = jax.grad(lambda f, score: attention_score(f, prototype, score=score)[0])
      >>> [round(float(d), 3) for d in gradient(embeddings, "projection")[0]]
      [0.2, 0.0]
      >>> [round(float(d), 3) for d in gradient(embeddings, "cosine")[0]]
      [0.128, -0.096]
    """
    chex.assert_rank(embeddings, 2, custom_message="embeddings: needs shape [B, D]")
    chex.assert_equal_shape(
        [embeddings, class_prototypes], custom_message="embeddings and class_prototypes differ"
    )
    if score not in get_args(AttentionScore):
        raise ValueError(f"score: needs one of {', '.join(get_args(AttentionScore))}, got {score!r}")
    embeddings, class_prototypes = _at_least_float32(embeddings), _at_least_float32(class_prototypes)
    squares = jnp.sum(jnp.square(embeddings), axis=1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.maximum(squares, _SMALLEST_SQUARE))
    if score == "projection":
        scale = jax.lax.stop_gradient(scale)
    return jnp.sum(embeddings * scale * l2_normalize(class_prototypes), axis=1)


def gradient_attention(
    embed: Callable[[jax.Array], jax.Array],
    features: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    *,
    kind: AttentionKind = "elementwise",
    score: AttentionScore = "projection",
    grid: tuple[int, int] | None = None,
) -> Attention:
    """Where the cosine with the labeled class comes from: `_attention_maps` of its gradient by a feature map.

        q_b = attention_score(f(A)_b, W_{y_b}),   D = ∂(Σ_b q_b) / ∂A

    The score has neither scale nor margin, so the map does not depend on them; and it is not the loss, whose softmax
    saturates and whose gradient vanishes on well-recognized faces. The maps are differentiable by whatever `embed`, `features`
    and `prototypes` depend on: a loss over them needs second derivatives, which rectified units have almost nowhere.

    Args:
      embed: the rest of the network: features -> embeddings [B, D], not normalized. A closure over parameters
        (`jaxface.models.apply_from_layer`). For the kind "input" it is the whole network.
      features: [B, h, w, C] float, the map; the image [B, H, W, 3] for the kind "input".
      prototypes: [n, D] float, of any length.
      labels: [B] integers in [0, n).
      kind, grid: as `_attention_maps`.
      score: as `attention_score`; "cosine" is the literal reading, blind to evidence along the embedding.

    Returns:
      Attention: maps [B, h, w] and valid [B].

    Raises:
      AssertionError, ValueError, UserError: as `_attention_maps` and `attention_score`; labels of another dtype or, where the
        values are known, out of range.

    Example:
      >>> features = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
      >>> maps, valid = gradient_attention(lambda x: x.reshape(1, 4), features, jnp.eye(4), jnp.array([3]))
      >>> maps[0].round(3).tolist(), valid.tolist()  # class 3 is told by the last place alone
      ([[0.0, 0.0], [0.0, 1.0]], [True])
    """
    chex.assert_rank(prototypes, 2, custom_message="prototypes: needs shape [n, D]")
    labels = int32_labels("labels", labels, prototypes.shape[0])
    class_prototypes = prototypes[labels] + nan_outside(labels, prototypes.shape[0], low=0)[:, None]

    def total(features):
        return attention_score(embed(features), class_prototypes, score=score).sum()

    return _attention_maps(features, jax.grad(total)(features), kind=kind, grid=grid)


def topn_mask(maps: jax.Array, *, count: int, cells: int, image_shape: tuple[int, int]) -> jax.Array:
    """Zero on the cells of an image that draw the most attention, one elsewhere.

    The image is cut into P x P cells; r_p is the mean of the map over cell p, and the N cells of the largest r are erased, of
    equal ones those that come first. Constant for gradients.

    Args:
      maps: [B, h, w] float, h and w multiples of P.
      count: N in [0, P²].
      cells: P ≥ 1.
      image_shape: (H, W), multiples of P.

    Returns:
      [B, H, W] float32, 0 or 1.

    Raises:
      AssertionError: maps without three axes.
      UserError: N outside [0, P²], or P that does not divide the image or the map.

    Example:
      >>> maps = jnp.array([[[0.1, 0.7], [0.2, 0.0]]])
      >>> topn_mask(maps, count=1, cells=2, image_shape=(2, 2)).tolist()
      [[[1.0, 0.0], [1.0, 1.0]]]
    """
    chex.assert_rank(maps, 3, custom_message="maps: needs shape [B, h, w]")
    if cells < 1 or any(side % cells for side in image_shape):
        raise UserError(
            f"cells: needs a divisor of the image's {image_shape[0]}x{image_shape[1]}, got {cells}"
        )
    if not 0 <= count <= cells**2:
        raise UserError(f"erase: needs a number from 0 to the {cells**2} cells, got {count}")
    scores = _pool(jax.lax.stop_gradient(maps), (cells, cells), "cells").reshape(-1, cells**2)
    order = jnp.argsort(-scores, axis=1, stable=True)
    mask = (jnp.argsort(order, axis=1) >= count).astype(jnp.float32).reshape(-1, cells, cells)
    height, width = (side // cells for side in image_shape)
    return jnp.repeat(jnp.repeat(mask, height, axis=1), width, axis=2)


def erase(images: jax.Array, mask: jax.Array, fill: jax.Array | float = 0.0) -> jax.Array:
    """x K + fill (1 - K): images [B, H, W, C] whose masked pixels (mask [B, H, W] of 0 and 1) become `fill`.

    Example:
      >>> images, mask = jnp.ones((1, 1, 3, 1)), jnp.array([[[1.0, 0.0, 1.0]]])
      >>> erase(images, mask).ravel().tolist()
      [1.0, 0.0, 1.0]
    """
    chex.assert_equal_shape_prefix([images, mask], 3, custom_message="images and mask differ")
    mask = mask[..., None].astype(images.dtype)
    return images * mask + jnp.asarray(fill, images.dtype) * (1 - mask)


def _group_count(logits: jax.Array) -> int:
    chex.assert_rank(logits, 2, custom_message="logits: needs shape [B, R]")
    if logits.shape[1] < 2:
        raise UserError(f"groups: needs at least two, got {logits.shape[1]}")
    return logits.shape[1]


def _groups_of(logits: jax.Array, groups: jax.Array) -> jax.Array:
    """`groups` as int32."""
    groups = int32_labels("groups", groups, _group_count(logits))
    chex.assert_shape(groups, logits.shape[:1], custom_message="groups: needs shape [B]")
    return groups


def group_weights(groups: jax.Array, count: int, *, axis_name: str | None = None) -> jax.Array:
    """Weights under which every group of a batch counts alike: w_b = B / (R · number of records of group g_b).

    Args:
      groups: [B] integers in [0, R); where the values are not known, one out of range has the weight NaN.
      count: R ≥ 2.
      axis_name: mapped axis over which the batch is spread; the numbers are then those of the whole batch.

    Returns:
      [B] float32; their mean is 1 where every group occurs.

    Raises:
      AssertionError: another rank. UserError: R < 2.
      ValueError: another dtype, or (where the values are known) a group out of range.

    Example:
      >>> [round(x, 2) for x in group_weights(jnp.array([0, 0, 0, 1]), 2).tolist()]
      [0.67, 0.67, 0.67, 2.0]
    """
    if count < 2:
        raise UserError(f"groups: needs at least two, got {count}")
    groups = int32_labels("groups", groups, count)
    members = jax.nn.one_hot(groups, count, dtype=jnp.float32)
    numbers = members.sum(axis=0)
    if axis_name is not None:
        numbers = jax.lax.psum(numbers, axis_name)
    weights = members @ (numbers.sum() / (count * jnp.maximum(numbers, 1.0)))
    return weights + nan_outside(groups, count, low=0)


def _masked(losses: jax.Array, valid: jax.Array | None, weights: jax.Array | None) -> jax.Array:
    if weights is not None:
        losses = losses * weights
    return losses if valid is None else jnp.where(valid, losses, 0.0)


def discriminator_loss(
    logits: jax.Array,
    groups: jax.Array,
    *,
    valid: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of a discriminator that tells the group from an attention map.

        L_b = -w_b log softmax(T(G_b))_{g_b}

    The maps need to be constants (`jax.lax.stop_gradient`). Its negative, with the discriminator fixed, is gradient reversal.

    Args:
      logits: [B, R] float, T(G).
      groups: [B] integers in [0, R); where the values are not known, one out of range gives NaN.
      valid: [B] bool; the others have loss 0.
      weights: [B] float, such as `group_weights`.

    Returns:
      [B] float32, unreduced.

    Raises:
      AssertionError: shapes disagree. UserError: R < 2.
      ValueError: another dtype, or (where the values are known) a group out of range.

    Example:
      >>> [round(x, 3) for x in discriminator_loss(jnp.array([[0.0, 0.0], [0.0, 4.0]]), jnp.array([0, 1])).tolist()]
      [0.693, 0.018]
    """
    groups = _groups_of(logits, groups)
    log_probabilities = jax.nn.log_softmax(_at_least_float32(logits))
    group_log_probability = jnp.take_along_axis(log_probabilities, groups[:, None], axis=1)[:, 0]
    outside = nan_outside(groups, logits.shape[1], low=0)
    return _masked(outside - group_log_probability, valid, weights)


def adversarial_uniform(
    logits: jax.Array, *, valid: jax.Array | None = None, weights: jax.Array | None = None
) -> jax.Array:
    """What the network minimizes so that its attention maps say nothing about the group.

        L_b = -w_b (1 / R) Σ_r log softmax(T(G_b))_r  ≥  w_b log R

    the cross-entropy to the uniform distribution; its gradient is zero at equal logits. The discriminator T needs to be fixed.

    Args:
      logits: [B, R] float, T(G).
      valid, weights: as `discriminator_loss`.

    Returns:
      [B] float32, unreduced.

    Raises:
      AssertionError: logits without two axes. UserError: R < 2.

    Example:
      >>> losses = adversarial_uniform(jnp.array([[0.0, 0.0], [0.0, 4.0]]))
      >>> [round(x, 3) for x in losses.tolist()]  # log 2 where the group cannot be told
      [0.693, 2.018]
    """
    _group_count(logits)
    return _masked(-jax.nn.log_softmax(_at_least_float32(logits)).mean(axis=1), valid, weights)


def adversarial_to_reference(
    logits: jax.Array,
    groups: jax.Array,
    *,
    reference: int = 0,
    valid: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The other reading: the maps of all groups but one are to look like those of that one.

        L_b = -w_b log softmax(T(G_b))_reference  for g_b ≠ reference,  0 else

    Args:
      logits: [B, R] float, T(G).
      groups: [B] integers in [0, R); where the values are not known, one out of range gives NaN.
      reference: the group whose maps are the target, in [0, R).
      valid, weights: as `discriminator_loss`.

    Returns:
      [B] float32, unreduced.

    Raises:
      AssertionError: shapes disagree. UserError: R < 2, or the reference out of range.
      ValueError: another dtype, or (where the values are known) a group out of range.

    Example:
      >>> logits, groups = jnp.array([[0.0, 4.0], [0.0, 4.0]]), jnp.array([0, 1])
      >>> [round(x, 2) for x in adversarial_to_reference(logits, groups).tolist()]  # the reference itself has no loss
      [0.0, 4.02]
    """
    groups, count = _groups_of(logits, groups), logits.shape[1]
    if not 0 <= reference < count:
        raise UserError(f"reference: needs a group in [0, {count}), got {reference}")
    pushed = -jax.nn.log_softmax(_at_least_float32(logits))[:, reference]
    pushed = jnp.where(groups == reference, 0.0, pushed) + nan_outside(groups, count, low=0)
    return _masked(pushed, valid, weights)
