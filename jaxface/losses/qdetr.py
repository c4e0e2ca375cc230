"""Foreground-aware query matching of Q-DETR (arXiv:2304.00253): which queries of a quantized detector learn from which of its
teacher's.

Boxes are those of set predictors: (center x, center y, width, height) over the image's.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import axes
from jaxface.boxes import boxes_of_normalized
from jaxface.boxes.iou import box_giou
from jaxface.checks import Fraction, NonNegative, check_number
from jaxface.errors import UserError

_SIDE = (1000, 1000)  # pixels of an image in which no box is too small for an overlap
_NEVER = -2.0  # below every overlap
Selection = Literal["foreground", "all"]
"""Queries that are distilled: those near an object, with the teacher's of the most similar boxes; or all, by their place."""


class Distillation(NamedTuple):
    """A distillation loss, and the share of the queries that it was of; float32 scalars."""

    loss: jax.Array
    selected: jax.Array


def foreground_mask(
    boxes: jax.Array, target_boxes: jax.Array, target_mask: jax.Array, tau: float = 0.6
) -> jax.Array:
    """Queries whose box overlaps an object nearly as well as the best one does (arXiv:2304.00253).

        G_i = max_j giou(object_i, b_j);    kept_j  if  giou(object_i, b_j) > τ G_i  for one i at least

    An object whose best overlap is not above 0 keeps nothing by this rule; it keeps its best query where τ < 1 (ours), so that
    τ = 1 is no distillation.

    Args:
      boxes: [B, N, 4], the student's.
      target_boxes: [B, M, 4]. target_mask: [B, M] bool, False for padding.
      tau: τ in [0, 1].

    Returns:
      [B, N] bool, a constant of the differentiation.

    Raises:
      AssertionError: shapes. UserError: τ; where the values are known, boxes that are not finite, are negative or lie outside
        [-1, 2].

    Example:
      >>> boxes = jnp.array([[[0.25, 0.25, 0.3, 0.3], [0.3, 0.25, 0.3, 0.3], [0.8, 0.8, 0.1, 0.1]]])
      >>> foreground_mask(boxes, boxes[:, :1], jnp.array([[True]]), 0.6).tolist()
      [[True, True, False]]
    """
    check_number("tau", tau, Fraction)
    chex.assert_rank([boxes, target_boxes], 3, custom_message="boxes and target_boxes: [B, N, 4], [B, M, 4]")
    chex.assert_shape(
        target_mask, target_boxes.shape[:2], custom_message="target_mask must be [B, M], as target_boxes"
    )
    if not target_boxes.shape[1]:
        return jnp.zeros(boxes.shape[:2], bool)
    overlap = box_giou(_corners("boxes", boxes), _corners("target_boxes", target_boxes))
    overlap = jnp.where(target_mask[:, None], overlap, _NEVER)
    best = overlap.max(axis=1, keepdims=True)
    near = overlap > tau * best
    if tau < 1:
        first = jax.nn.one_hot(overlap.argmax(axis=1), boxes.shape[1], axis=1, dtype=bool)
        near = jnp.where(best > 0, near, first)
    return jnp.any(near & target_mask[:, None], axis=-1)


def match_teacher(
    boxes: jax.Array, teacher_boxes: jax.Array, *, giou_weight: float = 2.0, box_weight: float = 5.0
) -> jax.Array:
    """For every query of the student the teacher's query with the most similar box (arXiv:2304.00253); several may have one.

        m(j) = argmax_k  giou_weight · giou(b_j, b_k) - box_weight · |b_j - b_k|₁

    Args:
      boxes: [B, N, 4]. teacher_boxes: [B, K, 4].
      giou_weight, box_weight: ≥ 0.

    Returns:
      [B, N] int32, a constant of the differentiation.

    Raises:
      As `foreground_mask`.

    Example:
      >>> boxes = jnp.array([[[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.2, 0.2]]])
      >>> match_teacher(boxes, boxes[:, ::-1]).tolist()
      [[1, 0]]
    """
    check_number("giou_weight", giou_weight, NonNegative)
    check_number("box_weight", box_weight, NonNegative)
    overlap = box_giou(_corners("boxes", boxes), _corners("teacher_boxes", teacher_boxes))
    boxes, teacher_boxes = jax.lax.stop_gradient(
        (boxes.astype(jnp.float32), teacher_boxes.astype(jnp.float32))
    )
    distance = jnp.abs(boxes[:, :, None] - teacher_boxes[:, None]).sum(axis=-1)
    return (giou_weight * overlap - box_weight * distance).argmax(axis=-1).astype(jnp.int32)


def drd_loss(
    features: jax.Array,
    teacher_features: jax.Array,
    selected: jax.Array,
    matches: jax.Array,
    *,
    normalize: bool = False,
) -> jax.Array:
    """Distance of the co-attended features of matched queries (arXiv:2304.00253, the upper level of its bi-level problem).

        mean over the selected queries of the batch of  |D_j - D^T_m(j)|₂

    The norm is not squared: a query is pulled with the same strength from any distance, and with none at 0.

    Args:
      features: D [B, N, C], the student's. teacher_features: D^T [B, K, C].
      selected: [B, N] bool. matches: [B, N] integers below K.
      normalize: divide by the mean length of the teacher's features (ours), for a teacher of another scale than the paper's.

    Returns:
      float32 scalar, 0 where nothing is selected. Nothing but D has a gradient.

    Raises:
      AssertionError: shapes, or features of another number of channels.

    Example:
      >>> features, teacher = jnp.array([[[3.0, 4.0], [9.0, 9.0]]]), jnp.zeros((1, 1, 2))
      >>> float(drd_loss(features, teacher, jnp.array([[True, False]]), jnp.array([[0, 0]])))
      5.0
    """
    chex.assert_rank([features, teacher_features], 3, custom_message="features: [B, N, C] and [B, K, C]")
    chex.assert_equal_shape_suffix(
        [features, teacher_features],
        1,
        custom_message="features of student and teacher: one number of channels",
    )
    chex.assert_shape([selected, matches], features.shape[:2], custom_message="selected, matches: [B, N]")
    features = features.astype(jnp.float32)
    teacher = jax.lax.stop_gradient(teacher_features.astype(jnp.float32))
    difference = features - jnp.take_along_axis(teacher, matches[..., None], axis=1)
    difference = jnp.where(selected[..., None], difference, 0.0)
    squares = jnp.sum(jnp.square(difference), axis=-1)
    apart = squares > 0
    lengths = jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1.0)), 0.0)
    count = axes.mean(jnp.sum(selected).astype(jnp.float32))
    loss = jnp.sum(lengths) / jnp.where(count > 0, count, 1.0)
    if not normalize:
        return loss
    scale = axes.mean(jnp.mean(jnp.linalg.norm(teacher, axis=-1)))
    return loss / jnp.where(scale > 0, scale, 1.0)


def query_distillation_loss(
    boxes: jax.Array,
    features: jax.Array,
    teacher_boxes: jax.Array,
    teacher_features: jax.Array,
    target_boxes: jax.Array,
    target_mask: jax.Array,
    *,
    tau: float = 0.6,
    selection: Selection = "foreground",
    normalize: bool = False,
) -> Distillation:
    """Q-DETR's distillation (arXiv:2304.00253): `drd_loss` of the queries in `foreground_mask`, with those of `match_teacher`.

    Args:
      boxes, features: [B, N, 4] and [B, N, C] of a decoder layer of the student, teacher_boxes and teacher_features
        [B, K, 4] and [B, K, C] of its teacher's.
      target_boxes, target_mask: [B, M, 4] and [B, M], as in `foreground_mask`.
      tau: τ in [0, 1]; 1 distills nothing.
      selection: "foreground"; "all", a control, has every query, with the teacher's of the same place.
      normalize: as in `drd_loss`.

    Returns:
      The loss, and the share of the queries that were selected.

    Raises:
      As `foreground_mask`, `match_teacher` and `drd_loss`. UserError: another selection, or "all" with another number of queries.

    Example:
      >>> boxes, features = jnp.array([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]]), jnp.eye(2)[None]
      >>> found = query_distillation_loss(boxes, features, boxes, 0 * features, boxes[:, :1], jnp.array([[True]]))
      >>> float(found.loss), float(found.selected)
      (1.0, 0.5)
    """
    if selection not in ("foreground", "all"):
        raise UserError(f"selection: needs 'foreground' or 'all', got {selection!r}")
    if selection == "all":
        if boxes.shape[1] != teacher_boxes.shape[1]:
            raise UserError(
                f"selection: 'all' needs a teacher of {boxes.shape[1]} queries, got {teacher_boxes.shape[1]}"
            )
        selected = jnp.ones(boxes.shape[:2], bool)
        matches = jnp.broadcast_to(jnp.arange(boxes.shape[1]), boxes.shape[:2])
    else:
        selected = foreground_mask(boxes, target_boxes, target_mask, tau)
        matches = match_teacher(boxes, teacher_boxes)
    loss = drd_loss(features, teacher_features, selected, matches, normalize=normalize)
    return Distillation(loss, jnp.mean(selected.astype(jnp.float32)))


def _corners(name: str, boxes: jax.Array) -> jax.Array:
    """Corners in pixels of an image, constants; refuses what is no box, where the values are known."""
    chex.assert_axis_dimension(boxes, -1, 4, custom_message=f"{name} must be [B, N, 4]")
    if not isinstance(boxes, jax.core.Tracer):
        values = np.asarray(boxes, np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{name}: needs finite boxes, got NaN or infinity")
        if values.size and values[..., 2:].min() < 0:
            raise UserError(f"{name}: needs sizes from 0, got {values[..., 2:].min():g}")
        if values.size and not -1 <= values.min() <= values.max() <= 2:
            raise UserError(
                f"{name}: needs fractions of the image, within [-1, 2], got {values.min():g}..{values.max():g}"
            )
    return jax.lax.stop_gradient(boxes_of_normalized(boxes, _SIDE))
