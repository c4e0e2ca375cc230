"""PseCo: pseudo boxes that are coarse, and how much of them to believe (arXiv:2203.16317).

A teacher's detections on one view of an image are the pseudo boxes of another. `pla_assign` chooses the proposals that are to
find them by what the teacher itself predicts there; `pcv_weights` weighs each pseudo box by how far the student's predictions
agree with it. `jittered_boxes`, `relative_spread` and `reliability_weights` are the two parts of Soft Teacher (arXiv:2106.09018),
which it is compared with. Nothing here that decides is differentiated: boxes, scores and weights are constants of the losses.
"""

import chex
import jax
import jax.numpy as jnp

from jaxface import axes
from jaxface.boxes import assigned_rows, box_iou, paired_iou
from jaxface.boxes.geometry import box_array
from jaxface.checks import AtLeast, Fraction, OpenFraction, Positive, check_number, check_scores
from jaxface.errors import UserError

TOP = 12
"""Overlaps of a pseudo box whose sum says how many proposals may find it."""


def filter_pseudo(boxes: jax.Array, scores: jax.Array, valid: jax.Array, *, threshold: float) -> jax.Array:
    """Which detections become pseudo boxes: those of a score above the threshold that have an area in their view.

    Args:
      boxes: [..., D, 4] pixels, as they are in the view that they are to be found in. scores: [..., D]. valid: [..., D] bool.
      threshold: in [0, 1]; a score that equals it is not enough.

    Returns:
      [..., D] bool.

    Example:
      >>> boxes = jnp.array([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 8, 4, 8]])  # the last has left the view
      >>> filter_pseudo(boxes, jnp.array([0.9, 0.5, 0.9]), jnp.ones(3, bool), threshold=0.5).tolist()
      [True, False, False]
    """
    check_number("threshold", threshold, Fraction)
    boxes = jax.lax.stop_gradient(box_array("boxes", boxes))
    sides = boxes[..., 2:] - boxes[..., :2]
    return valid & (scores > threshold) & jnp.all(sides > 0, axis=-1)


def limit_assigned(assigned: jax.Array, priority: jax.Array, counts: jax.Array, *, most: int) -> jax.Array:
    """Leaves each box the `counts` of its proposals that come first; the others are background.

    Args:
      assigned: [N] int32 as `jaxface.boxes.max_iou_assign` has it. priority: [N] float ≥ 0, the largest first, of equal ones the
        first.
      counts: [G] integers, of which at most `most` count.
      most: for static shapes.

    Returns:
      [N] int32.

    Example:
      >>> limit_assigned(jnp.array([1, 1, 0, 1]), jnp.array([0.5, 0.7, 0.9, 0.6]), jnp.array([2]), most=3).tolist()
      [0, 1, 0, 1]
    """
    check_number("most", most, AtLeast(1))
    boxes = jnp.arange(1, counts.shape[0] + 1)
    ranked = jnp.where(assigned == boxes[:, None], jax.lax.stop_gradient(priority), -1.0)  # [G, N]
    values, index = jax.lax.top_k(ranked, min(most, assigned.shape[0]))
    takes = (values >= 0) & (jnp.arange(values.shape[1]) < counts[:, None])
    chosen = jnp.zeros(assigned.shape, bool).at[index].max(takes)
    return jnp.where((assigned > 0) & ~chosen, 0, assigned)


def pla_assign(
    teacher_boxes: jax.Array,
    teacher_scores: jax.Array,
    proposal_area: jax.Array,
    boxes: jax.Array,
    box_label: jax.Array,
    box_mask: jax.Array,
    *,
    iou_threshold: float = 0.4,
    top: int = TOP,
    score_power: float = 0.5,
) -> jax.Array:
    """Prediction-guided label assignment of one image (arXiv:2203.16317, as released).

        u_ng = IoU(teacher's box of proposal n, pseudo box g),   n is a candidate of g = argmax_g u_ng where u_ng ≥ iou_threshold
        q_n = u_ng^(1 - a) s_n[class of g]^a,                     k_g = max(1, ⌊sum of the `top` largest u of its candidates⌋)

    The k_g candidates of the largest q are positive; all others are background, none is left out. A positive whose proposal has
    no area in the student's view becomes background, and no other takes its place.

    Args:
      teacher_boxes: [N, 4] pixels of the student's view: what the teacher predicts for its proposals, of the class that it finds
        most likely.
      teacher_scores: [N, C] in [0, 1]; q looks at the pseudo box's class, whatever the likeliest is.
      proposal_area: [N] in the student's view.
      boxes: [G, 4] pseudo boxes. box_label: [G] integers. box_mask: [G] bool.
      iou_threshold: in (0, 1). top: ≥ 1. score_power: a in [0, 1].

    Returns:
      [N] int32: 0 for background, k > 0 for box k - 1. A constant of the differentiation; `vmap` it over images.

    Raises:
      AssertionError: shapes. UserError: a number out of its range, or scores outside [0, 1] where the values are known.

    Example:
      >>> box = jnp.array([[0.0, 0.0, 10.0, 10.0]])
      >>> found = jnp.array([[0.0, 0, 10, 9], [0, 0, 10, 9], [0, 0, 10, 6]])
      >>> scores = jnp.array([[0.2], [0.9], [0.8]])
      >>> pla_assign(found, scores, jnp.ones(3), box, jnp.array([0]), jnp.array([True])).tolist()  # ⌊0.9 + 0.9 + 0.6⌋ = 2
      [0, 1, 1]
    """
    chex.assert_shape(teacher_scores, (teacher_boxes.shape[0], None))
    chex.assert_shape(proposal_area, (teacher_boxes.shape[0],))
    chex.assert_equal_shape([box_label, box_mask])
    check_number("iou_threshold", iou_threshold, OpenFraction)
    check_number("top", top, AtLeast(1))
    check_number("score_power", score_power, Fraction)
    check_scores("teacher_scores", teacher_scores)
    arrays = teacher_boxes, teacher_scores, proposal_area, boxes
    teacher_boxes, teacher_scores, proposal_area, boxes = jax.lax.stop_gradient(arrays)
    overlap = jnp.where(box_mask, box_iou(teacher_boxes, boxes), -1.0)
    best, box = overlap.max(axis=1), overlap.argmax(axis=1)
    candidates = jnp.where(best >= iou_threshold, box + 1, 0)
    score = jnp.take_along_axis(teacher_scores.astype(jnp.float32), box_label[box][:, None], axis=1)[:, 0]
    quality = jnp.maximum(best, 0.0) ** (1 - score_power) * score**score_power
    in_bag = jnp.where(candidates == jnp.arange(1, boxes.shape[0] + 1)[:, None], best, 0.0)  # [G, N]
    largest, _ = jax.lax.top_k(in_bag, min(top, in_bag.shape[1]))
    counts = jnp.maximum(jnp.floor(largest.sum(axis=1)), 1).astype(jnp.int32)
    assigned = limit_assigned(candidates, quality, counts, most=top)
    return jnp.where(proposal_area > 0, assigned, 0).astype(jnp.int32)


def pcv_weights(
    student_boxes: jax.Array, assigned: jax.Array, boxes: jax.Array, sampled: jax.Array
) -> jax.Array:
    """Positive-proposal consistency voting of one image: how far the predictions for a pseudo box agree with it.

        w_g = mean over the positives of g of IoU(student's box, g),     w_n = w_g of the positive n's box, 0 of the others

    Args:
      student_boxes: [R, 4] pixels, what the student predicts for each proposal, of the pseudo box's class.
      assigned: [R] int32, 0 background, k > 0 box k - 1. boxes: [G, 4]. sampled: [R] bool; no other proposal votes.

    Returns:
      [R] float32 in [0, 1]; a constant of the differentiation. `vmap` it over images.

    Raises:
      AssertionError: shapes.

    Example:
      >>> found = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10]])
      >>> box = jnp.array([[0.0, 0.0, 10.0, 10.0]])
      >>> pcv_weights(found, jnp.array([1, 1, 0]), box, jnp.ones(3, bool)).tolist()
      [0.75, 0.75, 0.0]
    """
    chex.assert_equal_shape([assigned, sampled], custom_message="assigned and sampled must be [R]")
    student_boxes, boxes = jax.lax.stop_gradient((student_boxes, boxes))
    positive = (assigned > 0) & sampled
    votes = jnp.where(positive, paired_iou(student_boxes, assigned_rows(assigned, boxes)), 0.0)
    members = (assigned == jnp.arange(1, boxes.shape[0] + 1)[:, None]) & positive  # [G, R]
    means = members @ votes / jnp.maximum(members.sum(axis=1), 1)
    return jnp.where(positive, assigned_rows(assigned, means), 0.0)


def jittered_boxes(rng: jax.Array, boxes: jax.Array, *, count: int = 10, scale: float = 0.06) -> jax.Array:
    """Boxes whose sides are moved by a normal number, for which Soft Teacher asks its teacher (arXiv:2106.09018, as released).

        y ± scale · height · ε,   x ± scale · width · ε,   ε ~ N(0, 1) for each of the four sides

    Args:
      rng: key. boxes: [..., 4] pixels; a side counts as one pixel at least.
      count: of moved copies, ≥ 2. scale: > 0, standard deviation in sides; the paper's text has uniform moves of that size.

    Returns:
      [count, ..., 4] float32; a constant of the differentiation. What is turned inside out is put in order.

    Raises:
      ValueError: shapes. UserError: a number out of its range.

    Example:
      >>> moved = jittered_boxes(jax.random.key(0), jnp.array([[0.0, 0, 10, 1000]]), count=4)
      >>> moved.shape, bool(jnp.abs(moved[..., 2] - 10).max() < 4)
      ((4, 1, 4), True)
    """
    check_number("count", count, AtLeast(2))
    check_number("scale", scale, Positive)
    boxes = jax.lax.stop_gradient(box_array("boxes", boxes))
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 1.0)
    moves = scale * jax.random.normal(rng, (count, *boxes.shape)) * jnp.concatenate([sides, sides], axis=-1)
    moved = boxes + moves
    first, last = moved[..., :2], moved[..., 2:]
    return jnp.concatenate([jnp.minimum(first, last), jnp.maximum(first, last)], axis=-1)


def relative_spread(boxes: jax.Array) -> jax.Array:
    """How far boxes that should be one lie apart (Soft Teacher's box variance, arXiv:2106.09018, as released).

        1/4 Σ_k σ_k / side_k,   σ_k the unbiased standard deviation of coordinate k, side the height or width of the mean box

    Args:
      boxes: [T, ..., 4] pixels, what a detector finds for T moved copies; T ≥ 2. A side counts as one pixel at least.

    Returns:
      [...] float32 ≥ 0; a constant of the differentiation. The paper divides by half of height plus width of the box itself.

    Raises:
      ValueError: shapes, or fewer than two copies.

    Example:
      >>> round(float(relative_spread(jnp.array([[0.0, 0, 10, 20], [2, 0, 10, 20]]))), 4)  # √2 of 9 and nothing
      0.0393
    """
    boxes = jax.lax.stop_gradient(box_array("boxes", boxes))
    if boxes.ndim < 2 or boxes.shape[0] < 2:
        raise ValueError(f"boxes: needs [T, ..., 4] with T >= 2, got {boxes.shape}")
    mean = boxes.mean(axis=0)
    sides = jnp.maximum(mean[..., 2:] - mean[..., :2], 1.0)
    return jnp.mean(jnp.std(boxes, axis=0, ddof=1) / jnp.concatenate([sides, sides], axis=-1), axis=-1)


def reliability_weights(scores: jax.Array, assigned: jax.Array, sampled: jax.Array) -> jax.Array:
    """Weights of proposals in the classification: background counts as far as the teacher sees background (arXiv:2106.09018).

        w_n = 1 of a positive,   Π_c (1 - s_n[c]) of background,   0 of what is not sampled

    A proposal on an object whose pseudo box is missing so teaches less that nothing is there. With these in `rcnn_loss` the
    sum is divided by that of the weights, as released.

    Args:
      scores: [..., R, C] the teacher's, one sigmoid a class, in [0, 1].
      assigned: [..., R] integers, k > 0 box k - 1, 0 background. sampled: [..., R] bool.

    Returns:
      [..., R] float32 in [0, 1]; a constant of the differentiation.

    Raises:
      AssertionError: shapes. UserError: scores outside [0, 1] where the values are known.

    Example:
      >>> scores = jnp.array([[0.9], [0.9], [0.1]])
      >>> weights = reliability_weights(scores, jnp.array([1, 0, 0]), jnp.array([True, True, True]))
      >>> [round(float(w), 2) for w in weights]
      [1.0, 0.1, 0.9]
    """
    chex.assert_equal_shape([assigned, sampled], custom_message="assigned and sampled must be [..., R]")
    chex.assert_shape(scores, (*assigned.shape, None))
    check_scores("scores", scores)
    background = jnp.prod(1.0 - jax.lax.stop_gradient(scores).astype(jnp.float32), axis=-1)
    return jnp.where(sampled & (assigned >= 0), jnp.where(assigned > 0, 1.0, background), 0.0)


def sharpened_weights(weights: jax.Array, *, power: float = 2.0) -> jax.Array:
    """γ w^power with γ = Σ w / Σ w^power over the batch: large weights count for more, and the total stays Σ w.

    So voting divides the strength of the box loss anew, and lowers it to the mean of w; weights of one value stay as they are.

    Args:
      weights: [...] in [0, 1], 0 for what has none. Under `axes.DATA` the sums are those of all replicas.
      power: > 0; the released code squares, 1 leaves the weights as they are.

    Returns:
      Their shape, float32; zeros where all are. A constant of the differentiation.

    Example:
      >>> [f"{w:.4f}" for w in sharpened_weights(jnp.array([0.8, 0.8, 0.8, 0.4, 0.4]))]
      ['0.9143', '0.9143', '0.9143', '0.2286', '0.2286']
    """
    check_number("power", power, Positive)
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
    sharp = jnp.where(weights > 0, weights, 0.0) ** power
    total, sharp_total = axes.mean(jnp.sum(weights)), axes.mean(jnp.sum(sharp))
    some = sharp_total > 0
    return jnp.where(some, total / jnp.where(some, sharp_total, 1.0), 0.0) * sharp


def halve_nearest(image: jax.Array, *, multiple: int = 32) -> jax.Array:
    """Every second row and column: the second view of multi-view scale-invariant learning.

    Read one level earlier, its pyramid has maps of the same sizes as the whole image's, so that anchors, proposals and targets
    of the one serve the other as they are.

    Args:
      image: [B, H, W, C].
      multiple: stride of the coarsest map of the whole image; H and W are multiples of it.

    Returns:
      [B, H / 2, W / 2, C].

    Raises:
      UserError: another size.

    Example:
      >>> halve_nearest(jnp.arange(16.0).reshape(1, 4, 4, 1), multiple=4)[0, ..., 0].tolist()
      [[0.0, 2.0], [8.0, 10.0]]
    """
    check_number("multiple", multiple, AtLeast(2))
    height, width = image.shape[1:3]
    if height % multiple or width % multiple or multiple % 2:
        raise UserError(f"image: needs sides that {multiple} divides, an even number, got {height} x {width}")
    return image[:, ::2, ::2]


def teacher_momentum(step: jax.Array | int, *, largest: float = 0.999) -> jax.Array:
    """How much of the teacher stays before step t: min(largest, 1 - 1 / (t + 1)).

    The teacher is the mean of the students so far, then an exponential one; at step 0 it is the student.

    Args:
      step: t ≥ 0, of any shape. largest: in [0, 1].

    Returns:
      float32 of its shape.

    Example:
      >>> teacher_momentum(jnp.array([0, 1, 3])).tolist()
      [0.0, 0.5, 0.75]
    """
    check_number("largest", largest, Fraction)
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(largest, step / (step + 1))
