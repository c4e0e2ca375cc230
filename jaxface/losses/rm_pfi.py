"""Rank mimicking and prediction-guided feature imitation between two detectors of the same anchors (arXiv:2112.04840).

Beside them what they are compared with: soft labels of single anchors, imitation of features wherever a mask says, and of the
predictions alone. What the teacher gives is a constant. All is computed in float32, per image.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
import optax

from jaxface import axes
from jaxface.boxes import assigned_rows, paired_iou
from jaxface.checks import Positive, check_number, check_scores
from jaxface.errors import UserError

Space = Literal["sigmoid", "logit"]
PfiForm = Literal["mean", "l2", "squared"]
WeightNorm = Literal["none", "mean"]
Adapter = Callable[[jax.Array], jax.Array]
"""A student's map [B, H, W, Q_s] -> [B, H, W, Q_t]."""


def rank_mimic_loss(
    student_scores: jax.Array,
    teacher_scores: jax.Array,
    assigned: jax.Array,
    box_mask: jax.Array,
    *,
    temperature: float = 1.0,
    sort: bool = False,
    space: Space = "sigmoid",
) -> jax.Array:
    """The student orders the anchors of an object as the teacher does (arXiv:2112.04840, rank mimicking).

        L_b = 1/J Σ_j Σ_{i in Ω_j} p_i (ln p_i - ln q_i),    q = softmax of s_i / T over Ω_j, p of the teacher's s_i likewise
        ∂L_b/∂s_i = (q_i - p_i) / (T J)

    over the J objects of an image and the anchors Ω_j that are assigned to each, all levels together. The gradient of an object
    sums to 0: scores move between its anchors, and never up or down together. Scores in [0, 1] have e^(1/T) as their largest
    ratio, so that at T = 1 both distributions are nearly flat; a small T says which anchor comes first.

    Args:
      student_scores, teacher_scores: [B, N] float, of the class of the object that the anchor is assigned to; what stands at
        other anchors has no part.
      assigned: [B, N] integers as `jaxface.boxes` assigns: k > 0 for object k - 1, others for none. The same for both.
      box_mask: [B, G] bool, False for padding and for regions to ignore.
      temperature: T > 0.
      sort: compare the sorted scores, as the last public revision does: it forgets which anchor has which rank.
      space: "sigmoid" for scores in [0, 1], "logit" for any.

    Returns:
      [B] float32 ≥ 0; 0 for an image without objects. An object with fewer than two anchors counts in J and adds 0.

    Raises:
      ValueError: shapes. UserError: a temperature or a name out of its range or, where the values are known, such a score.

    Example:
      >>> teacher, student = jax.nn.sigmoid(jnp.array([[[2.0, 0.0, -1.0]], [[0.0, 2.0, -1.0]]]))
      >>> ours = jnp.array([[1, 1, 1]]), jnp.array([[True]])
      >>> [round(float(rank_mimic_loss(student, teacher, *ours, sort=s)[0]), 4) for s in (False, True)]
      [0.0542, 0.0]
    """
    check_number("temperature", temperature, Positive)
    _check_name("space", space, Space)
    _check_assigned("student_scores", student_scores, assigned, box_mask)
    if student_scores.shape != teacher_scores.shape:
        raise ValueError(
            f"teacher_scores: needs the student's {student_scores.shape}, got {teacher_scores.shape}"
        )
    if space == "sigmoid":
        check_scores("student_scores", student_scores, when="in space 'sigmoid'")
        check_scores("teacher_scores", teacher_scores, when="in space 'sigmoid'")
    objects, images = box_mask.shape[1], len(student_scores)
    counted = jnp.take_along_axis(box_mask, jnp.clip(assigned - 1, 0, objects - 1), axis=1) & (assigned > 0)
    # Segment 0 of an image holds the anchors that are nobody's.
    segments = jnp.where(counted, assigned, 0) + (objects + 1) * jnp.arange(images)[:, None]
    segments, counted = segments.reshape(-1).astype(jnp.int32), counted.reshape(-1)
    student, teacher = (
        jnp.where(counted, scores.astype(jnp.float32).reshape(-1) / temperature, 0.0)
        for scores in (student_scores, jax.lax.stop_gradient(teacher_scores))
    )
    if sort:
        student, teacher = (values[jnp.lexsort((values, segments))] for values in (student, teacher))
        order = jnp.argsort(segments)
        segments, counted = segments[order], counted[order]
    student, teacher = (
        _log_softmax(values, segments, images * (objects + 1)) for values in (student, teacher)
    )
    terms = jnp.where(counted, jnp.exp(teacher) * (teacher - student), 0.0)
    of_objects = jax.ops.segment_sum(terms, segments, images * (objects + 1))
    count = jnp.maximum(jnp.sum(box_mask, axis=1), 1)
    return jnp.sum(of_objects.reshape(images, objects + 1), axis=1) / count


def rank_mimic_box_loss(
    student_boxes: jax.Array,
    teacher_boxes: jax.Array,
    boxes: jax.Array,
    assigned: jax.Array,
    box_mask: jax.Array,
    *,
    temperature: float = 1.0,
    sort: bool = False,
) -> jax.Array:
    """`rank_mimic_loss` of how well the anchors' boxes fit: s_i = IoU(decoded box of anchor i, its object).

    The form is ours; of the paper only that it mimics the order of localization quality besides that of the class.

    Args:
      student_boxes, teacher_boxes: [B, N, 4] pixels, decoded; the student's carry its gradient.
      boxes: [B, G, 4] pixels, the objects.
      assigned, box_mask, temperature, sort: as for `rank_mimic_loss`.

    Returns:
      [B] float32 ≥ 0.

    Raises:
      ValueError, UserError: as `rank_mimic_loss`; NaN or inverted boxes, where the values are known.

    Example:
      >>> boxes = jnp.array([[[0.0, 0.0, 4.0, 4.0]]])
      >>> teacher = jnp.array([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]]])
      >>> ours = jnp.array([[1, 1]]), jnp.array([[True]])
      >>> round(float(rank_mimic_box_loss(teacher[:, ::-1], teacher, boxes, *ours)[0]), 4)
      0.1225
    """
    _check_assigned("student_boxes", student_boxes, assigned, box_mask, rows=3)
    objects = jax.vmap(assigned_rows)(assigned, boxes)
    student, teacher = (
        paired_iou(decoded, objects) for decoded in (student_boxes, jax.lax.stop_gradient(teacher_boxes))
    )
    return rank_mimic_loss(student, teacher, assigned, box_mask, temperature=temperature, sort=sort)


def pfi_loss(
    student_features: Sequence[jax.Array],
    teacher_features: Sequence[jax.Array],
    student_logits: Sequence[jax.Array],
    teacher_logits: Sequence[jax.Array],
    *,
    adapter: Adapter | None = None,
    form: PfiForm = "mean",
    score_space: Space = "sigmoid",
    detach_weight: bool = False,
    weight_norm: WeightNorm = "none",
) -> jax.Array:
    """Features are imitated where the predictions differ (arXiv:2112.04840, prediction-guided feature imitation).

        D_f[x] = 1/Q Σ_q (F_T - φ(F_S))²[x, q],   D_p[x] = 1/(A C) Σ_k (P_T - P_S)²[x, k]
        L_b = 1/M Σ_levels L_l,                   L_l = mean_x D_p D_f

    | form | L_l |
    |---|---|
    | mean | mean_x D_p D_f |
    | l2 | ‖D_p D_f‖₂ / (B H W) |
    | squared | mean_x (D_p D_f)² with D_p = mean_k of the absolute difference |

    The product is of fourth order in the student's error and fades with it; its size depends on the space of P by a factor of
    10³ to 10⁴, so that a weight means something beside a space alone. Predictions are trained too, unless `detach_weight`.

    Args:
      student_features, teacher_features: F of each level, [B, H, W, Q] float.
      student_logits, teacher_logits: class logits of each level, [B, H, W, A C] float.
      adapter: φ; needed where the two have different Q.
      form: how the differences become a number.
      score_space: whether P is the logit or its sigmoid.
      detach_weight: D_p is a constant.
      weight_norm: "mean" divides a constant D_p by its mean over the batch and the level, so that the places share the weight
        that plain imitation gives to each.

    Returns:
      [B] float32 ≥ 0.

    Raises:
      ValueError: shapes. UserError: an unknown name, or an adapter that is missing.

    Example:
      >>> student, teacher = jnp.zeros((1, 1, 2, 1)), jnp.ones((1, 1, 2, 1))
      >>> predictions = jnp.array([[[[3.0], [0.0]]]])  # they differ at the first place alone
      >>> pfi_loss([student], [teacher], [student], [predictions], score_space="logit").tolist()
      [4.5]
    """
    _check_name("form", form, PfiForm)
    _check_name("weight_norm", weight_norm, WeightNorm)
    _check_levels("features", student_features, teacher_features, channels=False)
    _check_levels("logits", student_logits, teacher_logits)
    _check_levels("features and logits", student_features, student_logits, channels=False)
    losses = []
    for student, teacher, *predictions in zip(
        student_features, teacher_features, student_logits, teacher_logits, strict=True
    ):
        difference = _prediction_difference(*predictions, score_space, absolute=form == "squared")
        if detach_weight or weight_norm == "mean":
            difference = jax.lax.stop_gradient(difference)
        if weight_norm == "mean":
            mean = axes.mean(jnp.mean(difference))
            difference = jnp.where(mean > 0, difference / jnp.where(mean > 0, mean, 1.0), 0.0)
        product = difference * _feature_difference(student, teacher, adapter)
        if form == "mean":
            losses.append(jnp.mean(product, axis=(1, 2)))
        elif form == "squared":
            losses.append(jnp.mean(jnp.square(product), axis=(1, 2)))
        else:
            square = jnp.sum(jnp.square(product), axis=(1, 2))
            norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
            losses.append(norm / product.size)
    return jnp.mean(jnp.stack(losses), axis=0)


def soft_label_loss(student_logits: jax.Array, teacher_logits: jax.Array, assigned: jax.Array) -> jax.Array:
    """Soft labels of single anchors: what rank mimicking is compared with.

        L_b = 1/n Σ_{positive i} Σ_c BCE(σ(z_S[i, c]), σ(z_T[i, c])) - H(σ(z_T[i, c])),    n = max(1, positives of the image)

    The teacher's entropy H has no gradient; without it a perfect student has loss 0.

    Args:
      student_logits, teacher_logits: [B, N, C] float.
      assigned: [B, N] integers; above 0 is a positive.

    Returns:
      [B] float32 ≥ 0.

    Raises:
      ValueError: shapes.

    Example:
      >>> teacher = jnp.array([[[2.0], [-1.0]]])
      >>> loss = soft_label_loss(teacher[:, ::-1], teacher, jnp.array([[1, 0]]))
      >>> round(float(loss[0]), 4)
      0.8287
    """
    if student_logits.shape != teacher_logits.shape or student_logits.ndim != 3:
        raise ValueError(
            f"logits: need one shape [B, N, C], got {student_logits.shape} and {teacher_logits.shape}"
        )
    if assigned.shape != student_logits.shape[:2]:
        raise ValueError(f"assigned: needs {student_logits.shape[:2]}, got {assigned.shape}")
    student, teacher = (
        logits.astype(jnp.float32) for logits in (student_logits, jax.lax.stop_gradient(teacher_logits))
    )
    target = jax.nn.sigmoid(teacher)
    entropy = optax.sigmoid_binary_cross_entropy(teacher, target)
    excess = jnp.sum(optax.sigmoid_binary_cross_entropy(student, target) - entropy, axis=-1)
    positive = assigned > 0
    return jnp.sum(jnp.where(positive, excess, 0.0), axis=1) / jnp.maximum(jnp.sum(positive, axis=1), 1)


def feature_imitation_loss(
    student_features: Sequence[jax.Array],
    teacher_features: Sequence[jax.Array],
    masks: Sequence[jax.Array] | None = None,
    *,
    adapter: Adapter | None = None,
) -> jax.Array:
    """Imitation of a teacher's feature maps, everywhere or where masks say (what PFI is compared with).

        L_b = 1/M Σ_levels Σ_x m[x] D_f[x] / Σ_x m[x],     D_f as for `pfi_loss`

    Args:
      student_features, teacher_features: of each level, [B, H, W, Q] float.
      masks: m ≥ 0 of each level, [B, H, W] bool or float, constants; all 1 unless given. A level of an image whose mask is all 0
        adds 0.
      adapter: as for `pfi_loss`.

    Returns:
      [B] float32 ≥ 0.

    Raises:
      ValueError: shapes. UserError: an adapter that is missing.

    Example:
      >>> student, teacher = jnp.zeros((1, 1, 2, 1)), jnp.array([[[[1.0], [3.0]]]])
      >>> feature_imitation_loss([student], [teacher]).tolist()
      [5.0]
      >>> feature_imitation_loss([student], [teacher], [jnp.array([[[True, False]]])]).tolist()
      [1.0]
    """
    _check_levels("features", student_features, teacher_features, channels=False)
    if masks is None:
        masks = [jnp.ones(student.shape[:3]) for student in student_features]
    if [mask.shape for mask in masks] != [student.shape[:3] for student in student_features]:
        raise ValueError(
            f"masks: need {[student.shape[:3] for student in student_features]}, got {[mask.shape for mask in masks]}"
        )
    losses = []
    for student, teacher, mask in zip(student_features, teacher_features, masks, strict=True):
        mask = jax.lax.stop_gradient(mask.astype(jnp.float32))
        total, whole = (
            jnp.sum(mask * value, axis=(1, 2))
            for value in (_feature_difference(student, teacher, adapter), 1)
        )
        losses.append(total / jnp.where(whole > 0, whole, 1.0))
    return jnp.mean(jnp.stack(losses), axis=0)


def prediction_imitation_loss(
    student_logits: Sequence[jax.Array],
    teacher_logits: Sequence[jax.Array],
    *,
    score_space: Space = "sigmoid",
) -> jax.Array:
    """The predictions' part of `pfi_loss` alone: mean over places and levels of D_p (a control).

    Args:
      student_logits, teacher_logits: of each level, [B, H, W, A C] float.
      score_space: of the difference.

    Returns:
      [B] float32 ≥ 0.

    Raises:
      ValueError: shapes. UserError: an unknown space.

    Example:
      >>> student, teacher = jnp.zeros((1, 1, 2, 1)), jnp.array([[[[1.0], [3.0]]]])
      >>> prediction_imitation_loss([student], [teacher], score_space="logit").tolist()
      [5.0]
    """
    _check_levels("logits", student_logits, teacher_logits)
    levels = [
        jnp.mean(_prediction_difference(student, teacher, score_space), axis=(1, 2))
        for student, teacher in zip(student_logits, teacher_logits, strict=True)
    ]
    return jnp.mean(jnp.stack(levels), axis=0)


def _log_softmax(values: jax.Array, segments: jax.Array, count: int) -> jax.Array:
    """[K]: of each value within its segment, whose numbers are below `count`."""
    most = jax.lax.stop_gradient(jax.ops.segment_max(values, segments, count))
    values = values - most[segments]
    return values - jnp.log(jax.ops.segment_sum(jnp.exp(values), segments, count))[segments]


def _feature_difference(student: jax.Array, teacher: jax.Array, adapter: Adapter | None) -> jax.Array:
    """D_f [B, H, W]."""
    student = student if adapter is None else adapter(student)
    if student.shape != teacher.shape:
        if adapter is None:
            raise UserError(
                f"adapter: needed from {student.shape[-1]} to {teacher.shape[-1]} features, got none"
            )
        raise ValueError(f"adapter: needs to give {teacher.shape}, gives {student.shape}")
    difference = jax.lax.stop_gradient(teacher).astype(jnp.float32) - student.astype(jnp.float32)
    return jnp.mean(jnp.square(difference), axis=-1)


def _prediction_difference(
    student: jax.Array, teacher: jax.Array, space: Space, *, absolute: bool = False
) -> jax.Array:
    """D_p [B, H, W]."""
    _check_name("score_space", space, Space)
    student, teacher = (x.astype(jnp.float32) for x in (student, jax.lax.stop_gradient(teacher)))
    if space == "sigmoid":
        student, teacher = jax.nn.sigmoid(student), jax.nn.sigmoid(teacher)
    difference = teacher - student
    return jnp.mean(jnp.abs(difference) if absolute else jnp.square(difference), axis=-1)


def _check_name(name: str, value: str, names) -> None:
    if value not in get_args(names):
        raise UserError(f"{name}: needs one of {', '.join(get_args(names))}, got {value!r}")


def _check_assigned(
    name: str, values: jax.Array, assigned: jax.Array, box_mask: jax.Array, *, rows: int = 2
) -> None:
    chex.assert_rank(values, rows, custom_message=f"{name}: needs one row per anchor of each image")
    if assigned.shape != values.shape[:2]:
        raise ValueError(
            f"assigned: needs one for each of {values.shape[:2]} anchors of {name}, got {assigned.shape}"
        )
    if not jnp.issubdtype(assigned.dtype, jnp.integer):
        raise ValueError(f"assigned: needs an integer dtype, got {assigned.dtype}")
    if box_mask.ndim != 2 or len(box_mask) != len(values) or not box_mask.shape[1]:
        raise ValueError(f"box_mask: needs [{len(values)}, G] with G >= 1, got {box_mask.shape}")


def _check_levels(
    name: str, first: Sequence[jax.Array], second: Sequence[jax.Array], *, channels: bool = True
) -> None:
    if not first or len(first) != len(second):
        raise ValueError(
            f"{name}: need as many levels of both, at least one, got {len(first)} and {len(second)}"
        )
    axes_compared = slice(None) if channels else slice(3)
    for level, (a, b) in enumerate(zip(first, second, strict=True)):
        if a.ndim != 4 or b.ndim != 4 or a.shape[axes_compared] != b.shape[axes_compared]:
            raise ValueError(f"{name}: level {level} needs one shape for both, got {a.shape} and {b.shape}")
