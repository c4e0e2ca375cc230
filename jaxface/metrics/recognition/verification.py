"""Are two images of one person? The pair protocol of LFW, AgeDB-30, CFP-FP and their kin.

The embedding of an image is the sum over the image and its mirror image, then normalized. The distance of two
embeddings is d = |e1 - e2|^2 = 2 - 2 cos, in [0, 4], and a pair is called the same iff d < t, strictly.
Curves over scores (ROC, TAR at FAR) are in `curves`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import checks
from jaxface.errors import UserError

Measure = Literal["cosine", "squared_l2", "l2", "angle"]
Flip = Literal["none", "sum", "concat"]


class TenFold(NamedTuple):
    """Accuracy with a threshold chosen on the other folds.

    Attributes:
      accuracy: mean over the folds. std: population standard deviation over the folds.
      fold_accuracies: [folds]. fold_thresholds: [folds] squared distances.
    """

    accuracy: float
    std: float
    fold_accuracies: np.ndarray
    fold_thresholds: np.ndarray


class ValAtFar(NamedTuple):
    """Validation rate with a threshold chosen for a target FAR on the other folds.

    Attributes:
      val: mean over the folds of the fraction of genuine pairs accepted. std: its population standard
        deviation.
      far: mean over the folds of the realized false accept rate.
      fold_vals, fold_fars, fold_thresholds: [folds].
    """

    val: float
    std: float
    far: float
    fold_vals: np.ndarray
    fold_fars: np.ndarray
    fold_thresholds: np.ndarray


def normalize(x: jax.typing.ArrayLike) -> jax.Array:
    """Rows of `x` [..., D] scaled to unit length, in float32; a zero row stays zero.

    Example:
      >>> normalize(jnp.array([[0.0, 4.0], [0.0, 0.0]])).tolist()
      [[0.0, 1.0], [0.0, 0.0]]
    """
    x = jnp.asarray(x, jnp.float32)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def flip_embeddings(
    embed: Callable[[jax.Array], jax.Array], images: jax.Array, *, unit: bool = True, flip: Flip = "sum"
) -> jax.Array:
    """Embeddings with the flip test: both views of an image together, then normalized.

        sum:     e = f(x) + f(mirror(x)),   e / |e|
        concat:  e = [f(x) / |f(x)|, f(mirror(x)) / |f(mirror(x))|] / √2

    A sum takes the two views as they come: normalizing each first would weigh them alike whatever their lengths. Of the other
    form, which LRFR uses (arXiv:2302.05621), the cosine of two images is the mean of the cosines of their views.

    Args:
      embed: images [B, H, W, C] -> un-normalized embeddings [B, D]; pure, so that the whole may be jitted.
      images: [B, H, W, C] in the range that `embed` wants.
      unit: normalize. False keeps the lengths, which template pooling uses as a quality weight: f + f', or [f, f'].
      flip: "none" looks at the image alone.

    Returns:
      [B, D] float32, [B, 2 D] for "concat".

    Raises:
      ValueError: `images` does not have four axes. UserError: another `flip`.

    Example:
      >>> images = jnp.arange(2.0).reshape(1, 1, 2, 1)
      >>> [round(x, 3) for x in flip_embeddings(lambda x: x.reshape(1, 2), images)[0].tolist()]  # (0, 1) + (1, 0), of length 1
      [0.707, 0.707]
    """
    if images.ndim != 4:
        raise ValueError(f"images: needs shape [B, H, W, C], got {images.shape}")
    check_flip(flip)
    view = embed(images).astype(jnp.float32)
    if flip == "none":
        return normalize(view) if unit else view
    mirrored = embed(images[:, :, ::-1, :]).astype(jnp.float32)
    if flip == "sum":
        return normalize(view + mirrored) if unit else view + mirrored
    views = (normalize(view), normalize(mirrored)) if unit else (view, mirrored)
    both = jnp.concatenate(views, axis=-1)
    return normalize(both) if unit else both


def check_flip(flip: str) -> None:
    """Raises UserError unless `flip` is one of `Flip`."""
    if flip not in get_args(Flip):
        raise UserError(f"flip: needs one of {', '.join(get_args(Flip))}, got {flip!r}")


def mean_norm(*views: jax.Array) -> jax.Array:
    """Mean length of un-normalized embeddings [B, D] over the views given ("XNorm" of public evaluations).

    Example:
      >>> float(mean_norm(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 1.0]])))
      3.0
    """
    return jnp.mean(jnp.linalg.norm(jnp.stack(views).astype(jnp.float32), axis=-1))


def cosine_to_squared_l2(cosine):
    """d = 2 - 2c, the squared distance of unit vectors at cosine c; any shape.

    Example:
      >>> cosine_to_squared_l2(np.array([1.0, 0.0, -1.0])).tolist()
      [0.0, 2.0, 4.0]
    """
    return 2 - 2 * cosine


def squared_l2_to_cosine(distance):
    """c = 1 - d / 2, the cosine of unit vectors at squared distance d; any shape.

    Example:
      >>> squared_l2_to_cosine(np.array([0.0, 2.0, 4.0])).tolist()
      [1.0, 0.0, -1.0]
    """
    return 1 - distance / 2


def convert_threshold(value: float, *, source: Measure, target: Measure) -> float:
    """A decision threshold between measures of unit vectors.

        d^2 = 2 - 2c,   d = sqrt(d^2),   angle = arccos c

    Accept iff cosine > t, or squared_l2, l2, angle < t: the decisions agree, except on the threshold itself
    up to rounding. A threshold does not carry over to another model, flip setting or score normalization.

    Args:
      value: threshold; in [-1, 1] (cosine), [0, 4] (squared_l2), [0, 2] (l2) or [0, pi] radians (angle).
      source, target: measures.

    Raises:
      UserError: an unknown measure, or a value outside the range of its measure.

    Example:
      >>> round(convert_threshold(0.5, source="cosine", target="squared_l2"), 3)
      1.0
    """
    ranges = {"cosine": (-1.0, 1.0), "squared_l2": (0.0, 4.0), "l2": (0.0, 2.0), "angle": (0.0, float(np.pi))}
    for name, measure in (("source", source), ("target", target)):
        if measure not in ranges:
            raise UserError(f"{name}: needs one of {', '.join(ranges)}, got {measure!r}")
    low, high = ranges[source]
    if not low <= value <= high:
        raise UserError(f"value: a {source} threshold needs to be in [{low:g}, {high:g}], got {value}")
    to_cosine = {
        "cosine": lambda v: v,
        "squared_l2": squared_l2_to_cosine,
        "l2": lambda v: squared_l2_to_cosine(v * v),
        "angle": np.cos,
    }
    from_cosine = {
        "cosine": lambda c: c,
        "squared_l2": cosine_to_squared_l2,
        "l2": lambda c: np.sqrt(cosine_to_squared_l2(c)),
        "angle": np.arccos,
    }
    return float(from_cosine[target](np.clip(to_cosine[source](value), -1.0, 1.0)))


def ten_fold_accuracy(distances, same, *, folds: int = 10, thresholds=None) -> TenFold:
    """Verification accuracy, each fold judged at the threshold that is best on the others (the LFW protocol).

        t_f = the first t with maximal accuracy over all pairs outside fold f,   predict same iff d < t_f

    Folds are contiguous parts of the given order, never shuffled; where N is no multiple of `folds` the first
    N mod `folds` of them hold one pair more. Ties: d = t is "different", and of equally accurate thresholds
    the smallest is taken, so identical distances everywhere give the accuracy of a constant answer.

    Args:
      distances: [N] float, squared L2 distances of unit vectors, in [0, 4]; with `thresholds` any.
      same: [N] bool or 0/1.
      folds: number of parts, 2 <= folds <= N.
      thresholds: strictly increasing; 0, .01, ..., 3.99 unless given.

    Raises:
      ValueError: shapes disagree, or `thresholds` do not increase.
      UserError: no pairs, fewer pairs than folds, a distance that is not finite or beyond 4 without `thresholds`, or pairs of
        one kind only (any threshold at the end of the range would then score 1).

    Example:
      >>> distances, same = np.array([0.5, 1.5] * 10), np.array([True, False] * 10)
      >>> result = ten_fold_accuracy(distances, same)
      >>> float(result.accuracy), float(result.std)
      (1.0, 0.0)
    """
    accepted, sizes, thresholds = _accepted_per_fold(distances, same, folds, thresholds, step=0.01)
    correct = accepted[:, 1] + sizes[:, :1] - accepted[:, 0]  # [folds, T]
    best = np.argmax(correct.sum(0) - correct, axis=1)  # counts, so that equal accuracies are exactly equal
    accuracies = correct[np.arange(folds), best] / sizes.sum(1)
    return TenFold(float(accuracies.mean()), float(accuracies.std()), accuracies, thresholds[best])


def val_at_far(distances, same, *, far: float = 1e-3, folds: int = 10, thresholds=None) -> ValAtFar:
    """Validation rate at a false accept rate, each fold at the threshold chosen on the others.

        t_f = the largest t with FAR(t) <= far over all pairs outside fold f
        VAL_f = fraction of the genuine pairs of fold f with d < t_f

    FAR(t) of a finite set is a staircase, on which interpolating a threshold is ill-defined; the largest grid
    threshold within the target is taken instead (design). Where no threshold reaches the target FAR at all,
    t_f = 0 and VAL_f = 0.

    Args:
      distances: [N] float, squared L2 distances of unit vectors, in [0, 4]; with `thresholds` any.
      same: [N] bool or 0/1.
      far: target in (0, 1).
      folds: number of contiguous parts, 2 <= folds <= N; each needs genuine and impostor pairs.
      thresholds: strictly increasing from 0; 0, .001, ..., 3.999 unless given.

    Raises:
      ValueError: shapes disagree, or `thresholds` do not increase.
      UserError: as for `ten_fold_accuracy`, or a fold without genuine or without impostor pairs.

    Example:
      >>> distances, same = np.array([0.5, 1.5] * 10), np.array([True, False] * 10)
      >>> val_at_far(distances, same, far=0.1).val
      1.0
    """
    far = float(checks.rates("far", far))
    accepted, sizes, thresholds = _accepted_per_fold(distances, same, folds, thresholds, step=0.001)
    if not sizes.all():
        fold, kind = np.argwhere(sizes == 0)[0]
        raise UserError(
            f"same: fold {fold} has no {('impostor', 'genuine')[kind]} pair, VAL at FAR needs both in each"
        )
    other_far = (accepted[:, 0].sum(0) - accepted[:, 0]) / (sizes[:, 0].sum() - sizes[:, :1])  # [folds, T]
    within = (other_far <= far).sum(1)  # FAR rises with t, so these are the first ones
    reached = (other_far[:, -1] >= far) & (within > 0)
    best = np.where(reached, within - 1, 0)
    rows = np.arange(folds)
    vals = np.where(reached, accepted[rows, 1, best] / sizes[:, 1], 0.0)
    fars = np.where(reached, accepted[rows, 0, best] / sizes[:, 0], 0.0)
    fold_thresholds = np.where(reached, thresholds[best], 0.0)
    return ValAtFar(float(vals.mean()), float(vals.std()), float(fars.mean()), vals, fars, fold_thresholds)


def _accepted_per_fold(
    distances, same, folds: int, thresholds, *, step: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accepted pairs [folds, 2, T] (impostor, genuine), all pairs [folds, 2], and the thresholds [T].

    A pair is accepted by every threshold above its distance, so one search per pair and a running sum replace
    N x T comparisons.
    """
    distances = checks.real_array("distances", distances, ndim=1).astype(np.float64)
    same = checks.truth_array("same", same, distances.size)
    if thresholds is None:
        thresholds = np.arange(0, 4, step)
        if distances.min() < -checks.UNIT_TOLERANCE or distances.max() > 4 + checks.UNIT_TOLERANCE:
            raise UserError(
                "distances: needs squared distances of unit vectors, in [0, 4], or thresholds for others, "
                f"got {distances.min():g}..{distances.max():g}"
            )
    thresholds = np.asarray(thresholds, np.float64)
    if thresholds.ndim != 1 or thresholds.size == 0 or not (np.diff(thresholds) > 0).all():
        raise ValueError(f"thresholds: needs one strictly increasing axis, got shape {thresholds.shape}")
    if not 2 <= folds <= distances.size:
        raise UserError(f"folds: needs 2 <= folds <= number of pairs ({distances.size}), got {folds}")
    if same.all() or not same.any():
        raise UserError(f"same: needs genuine and impostor pairs, all {same.size} are {bool(same[0])}")
    bounds = [part[0] for part in np.array_split(np.arange(distances.size), folds)]
    fold = np.searchsorted(bounds, np.arange(distances.size), side="right") - 1
    first = np.searchsorted(thresholds, distances, side="right")  # first t > d
    steps = thresholds.size + 1  # the last bin: no threshold accepts
    counts = np.bincount((fold * 2 + same) * steps + first, minlength=folds * 2 * steps).reshape(
        folds, 2, steps
    )
    return np.cumsum(counts, axis=-1)[..., :-1], counts.sum(-1), thresholds
