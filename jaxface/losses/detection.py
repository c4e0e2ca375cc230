"""Losses of detectors that classify anchors or proposals, and of those that predict a set.

Labels say what an anchor is assigned to, as `jaxface.boxes.assigned_labels` gives them: -1 counts neither way, 0 is background,
k > 0 is class k - 1. All is computed in float32. Sums over a batch are divided by counts over the global batch: under `jit`
that is the array, under `axes.DATA` the mean of the replicas' losses is the loss of the whole.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface import axes
from jaxface.boxes import boxes_of_normalized, normalized_boxes
from jaxface.boxes.iou import box_giou, paired_giou
from jaxface.checks import NonNegative, Positive, Range, check_number


class DetectionTerms(NamedTuple):
    """A detector's loss and its parts; float32 scalars."""

    total: jax.Array
    classification: jax.Array
    box: jax.Array
    points: jax.Array  # 0 where there are none
    positives: jax.Array  # how many over the batch (of this replica)
    negatives: jax.Array  # how many count in the classification


class DetrTerms(NamedTuple):
    """The loss of a set predictor and its parts; float32 scalars."""

    total: jax.Array
    classification: jax.Array
    box: jax.Array
    giou: jax.Array


def smooth_l1_loss(predictions: jax.Array, targets: jax.Array, *, beta: float = 1.0) -> jax.Array:
    """Absolute error, rounded off near 0 (Huber's; arXiv:1504.08083).

        x² / (2 beta)  where |x| < beta,   |x| - beta / 2  elsewhere,        x = prediction - target

    Args:
      predictions, targets: one shape, float.
      beta: ≥ 0; 0 is the absolute error. σ of SSH and Faster R-CNN is 1 / √beta: σ = 3 is beta = 1/9.

    Returns:
      Their shape, float32.

    Raises:
      AssertionError: shapes differ. UserError: beta.

    Example:
      >>> import jax.numpy as jnp
      >>> smooth_l1_loss(jnp.array([0.5, 2.0]), jnp.zeros(2)).tolist()
      [0.125, 1.5]
    """
    chex.assert_equal_shape(
        [predictions, targets], custom_message="predictions and targets must be of one shape"
    )
    check_number("beta", beta, NonNegative)
    error = predictions.astype(jnp.float32) - targets.astype(jnp.float32)
    size = jnp.where(error != 0, jnp.abs(error), 0.0)  # JAX's slope of |x| at 0 is 1
    if not isinstance(beta, jax.core.Tracer) and beta == 0:
        return size
    # The square sees a size below beta alone: that of a large one would overflow, and its gradient be NaN.
    small = jnp.minimum(size, beta)
    return jnp.where(size < beta, small * small / (2 * beta), size - beta / 2)


def sigmoid_focal_loss(
    logits: jax.Array, labels: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0
) -> jax.Array:
    """Focal loss of RetinaNet over classes without a background channel (arXiv:1708.02002), optax's in float32.

        - a (1 - p_t)^gamma ln p_t,     p_t = p where the label is the class, 1 - p elsewhere;  a = alpha or 1 - alpha

    Args:
      logits: [..., C] float.
      labels: [...] integers: k > 0 for class k - 1, 0 background; a label -1 gives zeros.
      alpha: weight of the positives, in [0, 1]. gamma: ≥ 0, how much the easy ones fade.

    Returns:
      [..., C] float32.

    Raises:
      AssertionError: shapes. ValueError: a label out of range or of another type.

    Example:
      >>> import jax.numpy as jnp
      >>> print(sigmoid_focal_loss(jnp.array([[0.0, 2.0]]), jnp.array([1])).round(4))
      [[0.0433 1.2376]]
    """
    labels, wrong = _labels(labels, logits.shape[-1])
    chex.assert_equal_shape_prefix(
        [logits, labels], labels.ndim, custom_message="logits must be [..., C] and labels [...]"
    )
    check_number("alpha", alpha, Range(0, 1))
    check_number("gamma", gamma, NonNegative)
    targets = jax.nn.one_hot(labels - 1, logits.shape[-1])
    losses = optax.sigmoid_focal_loss(logits.astype(jnp.float32), targets, alpha=alpha, gamma=gamma)
    return jnp.where(labels[..., None] >= 0, losses, 0.0) + wrong


def max_out_background(logits: jax.Array, *, backgrounds: int = 3) -> jax.Array:
    """S3FD's max-out background label (arXiv:1708.05237): the largest of several background logits counts.

    Args:
      logits: [..., backgrounds + C], the backgrounds first.
      backgrounds: from 1; 3 on the finest level of S3FD.

    Returns:
      [..., 1 + C].

    Example:
      >>> max_out_background(jnp.array([0.0, 3.0, 1.0, 2.0])).tolist()  # three backgrounds, then the face
      [3.0, 2.0]
    """
    if not 1 <= backgrounds < logits.shape[-1]:
        raise ValueError(
            f"backgrounds: needs 1 to {logits.shape[-1] - 1} of the {logits.shape[-1]} logits, got {backgrounds}"
        )
    largest = logits[..., :backgrounds].max(axis=-1, keepdims=True)
    return jnp.concatenate([largest, logits[..., backgrounds:]], axis=-1)


def multibox_loss(
    logits: jax.Array,
    labels: jax.Array,
    deltas: jax.Array,
    target_deltas: jax.Array,
    points: jax.Array | None = None,
    target_points: jax.Array | None = None,
    point_mask: jax.Array | None = None,
    *,
    negatives_per_positive: float = 7.0,
    box_weight: float = 2.0,
    class_weight: float = 1.0,
    point_weight: float = 1.0,
    beta: float = 1.0,
) -> DetectionTerms:
    """Loss of an anchor-based face detector with hard negatives (SSD's; RetinaFace arXiv:1905.00641, S3FD arXiv:1708.05237).

        L_cls = Σ_{pos ∪ hard} cross-entropy / N,   L_box = Σ_pos smooth-L1 / N,   L_pts = Σ_{pos with points} smooth-L1 / N₁
        total = class_weight L_cls + box_weight L_box + point_weight L_pts

    with N the positives of the batch and N₁ those with points, each at least 1. Hard are the min(ρ n_pos, negatives) negatives of
    each image whose cross-entropy is largest, of equal ones the first; an image without a positive has none. What is hard is
    a constant of the differentiation. RetinaFace has the defaults, S3FD `negatives_per_positive=3, box_weight=1`.

    Args:
      logits: [B, A, 1 + C], background first.
      labels: [B, A] integers in [-1, C]; -1 counts neither way.
      deltas, target_deltas: [B, A, 4] as `jaxface.boxes.encode_boxes` has them; only those of positives count.
      points, target_points: [B, A, P, 2] as `encode_points` has them, or None. point_mask: [B, A] bool, whose points are known.
      negatives_per_positive: ρ ≥ 0.
      box_weight, class_weight, point_weight: ≥ 0.
      beta: of `smooth_l1_loss`.

    Returns:
      The loss and its parts.

    Raises:
      AssertionError: shapes. ValueError: labels or a hyper-parameter out of range. Where the values are not known, a label
        out of range gives NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.array([[[0.0, 2], [1, 0], [0, 0], [0, 1], [3, 0], [0.5, 0]]])
      >>> labels = jnp.array([[1, 0, 0, 0, 0, 0]])
      >>> zeros = jnp.zeros((1, 6, 4))
      >>> round(float(multibox_loss(logits, labels, zeros, zeros, negatives_per_positive=3).total), 5)
      2.60741
    """
    labels, wrong = _labels(labels, logits.shape[-1] - 1)
    chex.assert_shape(logits, (*labels.shape, None), custom_message="logits must be [B, A, 1 + C]")
    chex.assert_rank(labels, 2, custom_message="labels must be [B, A]")
    for name, value in (
        ("negatives_per_positive", negatives_per_positive),
        ("box_weight", box_weight),
        ("class_weight", class_weight),
        ("point_weight", point_weight),
    ):
        check_number(name, value, NonNegative)
    positive = labels > 0
    entropy = _cross_entropy(logits, jnp.maximum(labels, 0))
    hard = hard_negatives(entropy, labels, negatives_per_positive=negatives_per_positive)
    positives = jnp.sum(positive)
    classification = jnp.sum(jnp.where(positive | hard, entropy, 0.0)) / _count(positives)
    box = _masked_smooth_l1(deltas, target_deltas, positive, beta) / _count(positives)
    landmarks = jnp.float32(0)
    if points is not None:
        if target_points is None or point_mask is None:
            raise ValueError("target_points, point_mask: needs both where points are given")
        known = positive & point_mask
        landmarks = _masked_smooth_l1(points, target_points, known, beta) / _count(jnp.sum(known))
    return DetectionTerms(
        total=class_weight * classification + box_weight * box + point_weight * landmarks + wrong,
        classification=classification,
        box=box,
        points=landmarks,
        positives=positives.astype(jnp.float32),
        negatives=jnp.sum(hard).astype(jnp.float32),
    )


def hard_negatives(losses: jax.Array, labels: jax.Array, *, negatives_per_positive: float = 7.0) -> jax.Array:
    """Which anchors of label 0 are the hardest of their image: the min(ρ n_pos, negatives) of the largest loss.

    Args:
      losses: [B, A] float, finite. labels: [B, A] integers; above 0 is a positive, -1 is never chosen.
      negatives_per_positive: ρ; a product that is no integer is rounded down.

    Returns:
      [B, A] bool. Of equal losses the first are taken.

    Example:
      >>> losses = jnp.array([[0.9, 0.1, 0.8, 0.3]])
      >>> hard_negatives(losses, jnp.array([[1, 0, 0, 0]]), negatives_per_positive=2).tolist()
      [[False, False, True, True]]
    """
    losses = jax.lax.stop_gradient(losses.astype(jnp.float32))
    ranked = jnp.where(labels == 0, losses, -jnp.inf)
    wanted = jnp.floor(negatives_per_positive * jnp.sum(labels > 0, axis=1, keepdims=True)).astype(jnp.int32)
    wanted = jnp.minimum(wanted, jnp.sum(labels == 0, axis=1, keepdims=True))
    # The smallest loss that is taken, from one sort of values; ranks of all anchors would take two with indices.
    in_order = jnp.sort(ranked, axis=1)
    least = jnp.take_along_axis(in_order, jnp.clip(losses.shape[1] - wanted, 0, losses.shape[1] - 1), axis=1)
    above, equal = ranked > least, ranked == least
    left = wanted - jnp.sum(above, axis=1, keepdims=True)
    return (wanted > 0) & (labels == 0) & (above | (equal & (jnp.cumsum(equal, axis=1) <= left)))


def retinanet_loss(
    logits: jax.Array,
    labels: jax.Array,
    deltas: jax.Array,
    target_deltas: jax.Array,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    beta: float = 0.0,
    box_weight: float = 1.0,
) -> DetectionTerms:
    """RetinaNet's loss (arXiv:1708.02002, MMDetection's normalizers).

        (Σ focal + box_weight Σ_pos smooth-L1) / Σ_images max(1, n_pos)

    Args:
      logits: [B, A, C], without background. labels: [B, A] integers in [-1, C].
      deltas, target_deltas: [B, A, 4].
      alpha, gamma: of `sigmoid_focal_loss`. beta: of `smooth_l1_loss`; 0 is the absolute error, MMDetection's default.
      box_weight: ≥ 0.

    Returns:
      The loss and its parts.

    Raises:
      AssertionError: shapes. ValueError: labels or a hyper-parameter out of range.

    Example:
      >>> logits = jnp.array([[[9.0], [-9.0]]])  # two anchors: an object, sure of it, and background
      >>> terms = retinanet_loss(logits, jnp.array([[1, 0]]), jnp.zeros((1, 2, 4)), jnp.zeros((1, 2, 4)))
      >>> float(terms.total) < 1e-6
      True
    """
    chex.assert_rank(labels, 2, custom_message="labels must be [B, A]")
    check_number("box_weight", box_weight, NonNegative)
    focal = sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    positive = labels > 0
    count = _count(jnp.sum(jnp.maximum(jnp.sum(positive, axis=1), 1)))
    classification = jnp.sum(focal) / count
    box = _masked_smooth_l1(deltas, target_deltas, positive, beta) / count
    return _terms(classification, box, box_weight, labels, jnp.ones_like(positive))


def rpn_loss(
    logits: jax.Array,
    labels: jax.Array,
    deltas: jax.Array,
    target_deltas: jax.Array,
    sampled: jax.Array,
    *,
    beta: float = 0.0,
    box_weight: float = 1.0,
) -> DetectionTerms:
    """Loss of a proposal network (arXiv:1506.01497): binary cross-entropy and smooth-L1 over the sampled anchors' number.

        (Σ_sampled BCE + box_weight Σ_{sampled, pos} smooth-L1) / n_sampled

    Args:
      logits: [B, A], object or not. labels: [B, A] integers; above 0 is an object, -1 is never counted.
      deltas, target_deltas: [B, A, 4].
      sampled: [B, A] bool (`jaxface.boxes.sample_mask`).
      beta: of `smooth_l1_loss`. box_weight: ≥ 0.

    Returns:
      The loss and its parts; of an empty sample, 0.

    Raises:
      AssertionError: shapes. UserError: a hyper-parameter out of range.

    Example:
      >>> zeros = jnp.zeros((1, 2, 4))
      >>> terms = rpn_loss(jnp.zeros((1, 2)), jnp.array([[1, 0]]), zeros, zeros, jnp.array([[True, True]]))
      >>> round(float(terms.total), 3)  # log 2: the logits say nothing
      0.693
    """
    chex.assert_equal_shape(
        [logits, labels, sampled], custom_message="logits, labels and sampled must be [B, A]"
    )
    check_number("box_weight", box_weight, NonNegative)
    positive, counted = (labels > 0) & sampled, (labels >= 0) & sampled
    count = _count(jnp.sum(counted))
    entropy = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), (labels > 0).astype(jnp.float32))
    classification = jnp.sum(jnp.where(counted, entropy, 0.0)) / count
    box = _masked_smooth_l1(deltas, target_deltas, positive, beta) / count
    return _terms(classification, box, box_weight, labels, sampled)


def rcnn_loss(
    logits: jax.Array,
    labels: jax.Array,
    deltas: jax.Array,
    target_deltas: jax.Array,
    sampled: jax.Array,
    *,
    beta: float = 0.0,
    box_weight: float = 1.0,
    class_weight: float = 1.0,
    focal: bool = False,
    class_weights: jax.Array | None = None,
    box_weights: jax.Array | None = None,
) -> DetectionTerms:
    """Loss of the head over sampled regions (Fast R-CNN, arXiv:1504.08083; MMDetection's normalizers).

        (Σ_sampled cross-entropy + box_weight Σ_{sampled, pos} smooth-L1 of the class's four deltas) / n_sampled

    Both are divided by the number of sampled regions, not of positives. With `focal` the sum of `sigmoid_focal_loss` over the
    classes is in the place of the cross-entropy. With `class_weights` the first sum is weighted, and divided by that of the
    weights, at least 1; with `box_weights` each region's smooth-L1 counts so much.

    Args:
      logits: [B, R, C + 1], background last, as published heads have it; [B, R, C] with `focal`.
      labels: [B, R] integers in [-1, C]: 0 background, k > 0 class k - 1.
      deltas: [B, R, 4 C], four of every class, or [B, R, 4] for all classes. target_deltas: [B, R, 4].
      sampled: [B, R] bool, False for padding.
      beta: of `smooth_l1_loss`. box_weight, class_weight: ≥ 0.
      focal: classes are told apart from background one by one.
      class_weights: [B, R] ≥ 0, such as `reliability_weights`; box_weights: [B, R] ≥ 0, such as `sharpened_weights`. Constants of
        the differentiation, 1 unless given.

    Returns:
      The loss and its parts; of an empty sample, 0.

    Raises:
      AssertionError: shapes. ValueError: labels or a hyper-parameter out of range.

    Example:
      >>> logits, deltas = jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 4))  # two regions, two classes and background
      >>> terms = rcnn_loss(logits, jnp.array([[1, 0]]), deltas, deltas, jnp.array([[True, True]]))
      >>> round(float(terms.total), 3)  # log 3
      1.099
    """
    classes = logits.shape[-1] - (not focal)
    labels, wrong = _labels(labels, classes)
    chex.assert_equal_shape([labels, sampled], custom_message="labels and sampled must be [B, R]")
    for name, value in (("box_weight", box_weight), ("class_weight", class_weight)):
        check_number(name, value, NonNegative)
    positive, counted = (labels > 0) & sampled, (labels >= 0) & sampled
    count = _count(jnp.sum(counted))
    if focal:
        entropy = jnp.sum(sigmoid_focal_loss(logits, jnp.maximum(labels, 0)), axis=-1)
    else:
        entropy = _cross_entropy(logits, jnp.where(labels > 0, labels - 1, classes))
    entropy, entropies = jnp.where(counted, entropy, 0.0), count
    if class_weights is not None:
        weights = jnp.where(counted, jax.lax.stop_gradient(class_weights), 0.0)
        entropy, entropies = weights * entropy, _count(jnp.sum(weights))
    classification = class_weight * jnp.sum(entropy) / entropies
    if deltas.shape[-1] != 4:
        chex.assert_shape(deltas, (*labels.shape, 4 * classes), custom_message="deltas must be [B, R, 4 C]")
        of_class = deltas.reshape(*labels.shape, classes, 4)
        index = jnp.maximum(labels - 1, 0)[..., None, None]
        deltas = jnp.take_along_axis(of_class, index, axis=2)[..., 0, :]
    box = _masked_smooth_l1(deltas, target_deltas, positive, beta, box_weights) / count
    return _terms(classification + wrong, box, box_weight, labels, sampled)


def match_sets(cost: jax.Array, mask: jax.Array) -> jax.Array:
    """The cheapest assignment of predictions to objects, one to one (`optax.assignment.hungarian_algorithm`).

    Args:
      cost: [N, M] float, prediction × object, N ≥ M. NaN and infinities count as 10⁶.
      mask: [M] bool, False for padding, which takes predictions that are left and changes nothing for the others.

    Returns:
      [M] int32, the prediction of each object, all different; a constant of the differentiation. `vmap` it over images.

    Raises:
      ValueError: shapes, or more columns than rows.

    Example:
      >>> import jax.numpy as jnp
      >>> match_sets(jnp.array([[1.0, 5.0], [0.0, 1.0], [9.0, 9.0]]), jnp.array([True, True])).tolist()
      [0, 1]
    """
    if cost.ndim != 2 or mask.shape != cost.shape[1:]:
        raise ValueError(f"cost: needs [N, M] and mask [M], got {cost.shape} and {mask.shape}")
    if cost.shape[1] > cost.shape[0]:
        raise ValueError(f"cost: needs at least as many predictions as objects, got {cost.shape}")
    cost = jax.lax.stop_gradient(cost.astype(jnp.float32))
    cost = jnp.where(mask, jnp.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6), 0.0)
    predictions, objects = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(mask.shape, jnp.int32).at[objects].set(predictions.astype(jnp.int32))


def detr_match(
    logits: jax.Array,
    boxes: jax.Array,
    target_boxes: jax.Array,
    target_labels: jax.Array,
    target_mask: jax.Array,
    image_size: jax.Array | tuple[int, int],
    *,
    class_cost: float = 1.0,
    box_cost: float = 5.0,
    giou_cost: float = 2.0,
    focal: bool = False,
) -> jax.Array:
    """DETR's matching of one image (arXiv:2005.12872): `match_sets` of

        cost = box_cost |b - b̂|₁ - class_cost softmax(logits)[label] - giou_cost giou

    With `focal`, -softmax(logits)[label] is the focal loss of the label less that of its absence, p = sigmoid(logits)[label]
    (arXiv:2010.04159):

        - ¼ (1 - p)² ln p + ¾ p² ln(1 - p)

    Args:
      logits: [N, C + 1], no object last; [N, C] with `focal`.
      boxes: [N, 4] predicted (center x, center y, width, height) over the image's size.
      target_boxes: [M, 4] (y0, x0, y1, x1) pixels. target_labels: [M] integers in [0, C). target_mask: [M] bool.
      image_size: (height, width) pixels.
      class_cost, box_cost, giou_cost: ≥ 0.
      focal: which cost the classes have.

    Returns:
      [M] int32, the prediction of each object.

    Raises:
      ValueError: shapes, more objects than predictions, or a weight out of range.

    Example:
      >>> logits = jnp.zeros((3, 2))
      >>> boxes = jnp.array([[0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1]])
      >>> objects = jnp.array([[0.0, 0.0, 50.0, 50.0]])  # the upper left quarter, as the second prediction says
      >>> detr_match(logits, boxes, objects, jnp.array([0]), jnp.array([True]), (100, 100)).tolist()
      [1]
    """
    for name, value in (("class_cost", class_cost), ("box_cost", box_cost), ("giou_cost", giou_cost)):
        check_number(name, value, NonNegative)
    logits = logits.astype(jnp.float32)
    labels = jnp.clip(target_labels, 0, logits.shape[-1] - 1 - (not focal))  # what padding holds is no matter
    if focal:
        present, absent = (
            optax.sigmoid_focal_loss(logits, jnp.full_like(logits, target), alpha=0.25, gamma=2.0)
            for target in (1.0, 0.0)
        )
        class_costs = present - absent
    else:
        class_costs = -jax.nn.softmax(logits, axis=-1)
    targets = normalized_boxes(target_boxes, image_size)
    distance = jnp.abs(boxes.astype(jnp.float32)[:, None] - targets).sum(axis=-1)
    giou = box_giou(jax.lax.stop_gradient(_pixels(boxes, image_size)), target_boxes)
    cost = box_cost * distance + class_cost * class_costs[:, labels] - giou_cost * giou
    return match_sets(cost, target_mask)


def detr_loss(
    logits: jax.Array,
    boxes: jax.Array,
    target_boxes: jax.Array,
    target_labels: jax.Array,
    target_mask: jax.Array,
    image_size: jax.Array,
    matches: jax.Array,
    *,
    no_object_weight: float = 0.1,
    class_weight: float = 1.0,
    box_weight: float = 5.0,
    giou_weight: float = 2.0,
    focal: bool = False,
) -> DetrTerms:
    """DETR's loss of one decoder layer over a batch (arXiv:2005.12872).

        class_weight Σ_q w_q CE_q / Σ_q w_q + (box_weight Σ_matched |b - b̂|₁ + giou_weight Σ_matched (1 - giou)) / n_objects

    with w = `no_object_weight` for the predictions that no object has and 1 for the others, the class term divided by the sum
    of the weights, and n_objects over the batch at least 1. Every decoder layer has its own matching. With `focal` the class
    term is the sum of `sigmoid_focal_loss` over predictions and classes, divided by n_objects.

    Args:
      logits: [B, N, C + 1], or [B, N, C] with `focal`. boxes: [B, N, 4].
      target_boxes: [B, M, 4]. target_labels, target_mask: [B, M].
      image_size: [B, 2]. All else as for `detr_match`.
      matches: [B, M] int32 of `vmap(detr_match)`.
      no_object_weight: > 0. class_weight, box_weight, giou_weight: ≥ 0.
      focal: which loss the classes have.

    Returns:
      The loss and its parts.

    Raises:
      AssertionError: shapes. ValueError: labels or a weight out of range.

    Example:
      >>> logits, boxes = jnp.array([[[9.0, -9.0], [-9.0, 9.0]]]), jnp.full((1, 2, 4), 0.5)
      >>> objects = jnp.array([[[25.0, 25.0, 75.0, 75.0]]])  # what the first prediction says
      >>> mask, size, matches = jnp.array([[True]]), jnp.array([[100, 100]]), jnp.array([[0]])
      >>> float(detr_loss(logits, boxes, objects, jnp.array([[0]]), mask, size, matches).total) < 1e-6
      True
    """
    check_number("no_object_weight", no_object_weight, Positive)
    for name, value in (
        ("class_weight", class_weight),
        ("box_weight", box_weight),
        ("giou_weight", giou_weight),
    ):
        check_number(name, value, NonNegative)
    chex.assert_equal_shape(
        [target_labels, target_mask, matches], custom_message="target_labels, target_mask, matches: [B, M]"
    )
    no_object = logits.shape[-1] - (not focal)
    labels, wrong = _labels(jnp.where(target_mask, target_labels + 1, 0), no_object)
    wrong = wrong + jnp.where(jnp.any(target_mask & (labels < 1)), jnp.nan, 0.0)
    # Padding writes outside the row and is dropped.
    index = jnp.where(target_mask, matches, logits.shape[1])
    rows = jnp.arange(logits.shape[0])[:, None]
    classes = jnp.full(logits.shape[:2], no_object, jnp.int32).at[rows, index].set(labels - 1, mode="drop")
    count = _count(jnp.sum(target_mask))
    if focal:
        present = jnp.where(classes == no_object, 0, classes + 1)
        classification = jnp.sum(sigmoid_focal_loss(logits, present)) / count
    else:
        weights = jnp.where(classes == no_object, no_object_weight, 1.0)
        classification = jnp.sum(weights * _cross_entropy(logits, classes)) / _mean_over_replicas(
            jnp.sum(weights)
        )
    matched = jnp.take_along_axis(boxes.astype(jnp.float32), matches[..., None], axis=1)
    size = jnp.asarray(image_size)[:, None]
    distance = jnp.abs(matched - normalized_boxes(target_boxes, size)).sum(axis=-1)
    box = jnp.sum(jnp.where(target_mask, distance, 0.0)) / count
    giou = paired_giou(_pixels(matched, size), target_boxes)
    overlap = jnp.sum(jnp.where(target_mask, 1 - giou, 0.0)) / count
    total = class_weight * classification + box_weight * box + giou_weight * overlap + wrong
    return DetrTerms(total, classification, box, overlap)


def _pixels(boxes: jax.Array, image_size: jax.Array | tuple[int, int]) -> jax.Array:
    """Predicted boxes in pixels, where a union of 10⁻⁶ is nothing; a negative size counts as none."""
    centers, sizes = boxes[..., :2], jnp.maximum(boxes[..., 2:], 0.0)
    return boxes_of_normalized(jnp.concatenate([centers, sizes], axis=-1), image_size)


def _labels(labels: jax.Array, classes: int) -> tuple[jax.Array, jax.Array]:
    """Labels as int32 in [-1, classes], and a scalar to add: 0, or NaN where a traced one is out of range."""
    if not isinstance(labels, jax.Array):
        labels = np.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels: needs an integer dtype, got {labels.dtype}")
    if isinstance(labels, jax.core.Tracer):
        outside = jnp.any((labels < -1) | (labels > classes))
        return labels.astype(jnp.int32), jnp.where(outside, jnp.nan, 0.0)
    values = np.asarray(labels)
    if values.size and (values.min() < -1 or values.max() > classes):
        raise ValueError(f"labels: needs values in [-1, {classes}], got {values.min()}..{values.max()}")
    return jnp.asarray(labels, jnp.int32), jnp.float32(0)


def _cross_entropy(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """[...] of logits [..., C] and classes [...]."""
    logits = logits.astype(jnp.float32)
    target = jnp.sum(jnp.where(jax.nn.one_hot(classes, logits.shape[-1], dtype=bool), logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - target


def _masked_smooth_l1(
    predictions: jax.Array, targets: jax.Array, mask: jax.Array, beta: float, weights: jax.Array | None = None
) -> jax.Array:
    """Sum over the rows of the mask [B, A] of predictions [B, A, ...]; whatever stands in the others has no gradient.

    Each row counts as its weight [B, A] says, a constant.
    """
    chex.assert_equal_shape(
        [predictions, targets], custom_message="predictions and targets must be of one shape"
    )
    chex.assert_equal_shape_prefix([predictions, mask], 2, custom_message="predictions must be [B, A, ...]")
    mask = mask.reshape(*mask.shape, *[1] * (predictions.ndim - 2))
    predictions, targets = (jnp.where(mask, value, 0) for value in (predictions, targets))
    errors = smooth_l1_loss(predictions, targets, beta=beta)
    if weights is not None:
        errors = errors * jax.lax.stop_gradient(weights).reshape(mask.shape)
    return jnp.sum(errors)


def _mean_over_replicas(value: jax.Array) -> jax.Array:
    return axes.mean(value.astype(jnp.float32))


def _count(local: jax.Array) -> jax.Array:
    """A count over the global batch, at least 1, over the number of replicas: what a replica's sum is divided by."""
    if not axes.bound(axes.DATA):
        return jnp.maximum(local, 1).astype(jnp.float32)
    replicas = jax.lax.axis_size(axes.DATA)
    return jnp.maximum(jax.lax.psum(local, axes.DATA), 1).astype(jnp.float32) / replicas


def _terms(
    classification: jax.Array, box: jax.Array, box_weight: float, labels: jax.Array, sampled: jax.Array
) -> DetectionTerms:
    return DetectionTerms(
        total=classification + box_weight * box,
        classification=classification,
        box=box,
        points=jnp.float32(0),
        positives=jnp.sum((labels > 0) & sampled).astype(jnp.float32),
        negatives=jnp.sum((labels == 0) & sampled).astype(jnp.float32),
    )
