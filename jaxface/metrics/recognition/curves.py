"""Numbers of the trade-off between accepting genuine and impostor pairs.

Everywhere a score is a similarity (higher = more alike), `genuine` are the scores of pairs of one person and
`impostor` those of two people, and a pair is accepted iff score > threshold, strictly. Only comparisons are
made between scores, so float32 scores give the same numbers as their float64 copies, at half the memory.

Outcomes at the edges, for every function here: an empty set (hence one-class input) and a NaN or infinite
score are refused with a UserError; equal scores are accepted or rejected together, so a threshold never
splits a tie.
"""

import bisect
from typing import Literal, NamedTuple

import numpy as np

from jaxface import checks
from jaxface.errors import UserError
from jaxface.metrics import numbers

Rule = Literal["at_most", "nearest"]


class Roc(NamedTuple):
    """Operating points in order of falling threshold.

    Attributes:
      far: [K + 1] fraction of impostors accepted, from 0 to 1.
      tar: [K + 1] fraction of genuine pairs accepted, from 0 to 1.
      thresholds: [K + 1] the K distinct scores, falling, then -inf (which accepts everything).
    """

    far: np.ndarray
    tar: np.ndarray
    thresholds: np.ndarray


class TarAtFar(NamedTuple):
    """True accept rate at a target false accept rate: plain numbers for one target, arrays for several.

    Attributes:
      tar: fraction of genuine scores above the threshold.
      threshold: accept iff score > threshold.
      far: realized false accept rate at the threshold.
      resolvable: whether there are at least 1 / target impostors. Where not, the point allows no false accept
        at all, and says little about the target.
    """

    tar: float | np.ndarray
    threshold: float | np.ndarray
    far: float | np.ndarray
    resolvable: bool | np.ndarray


class FnmrAtFmr(NamedTuple):
    """False non-match rate 1 - TAR at a target false match rate; fields as in `TarAtFar`."""

    fnmr: float | np.ndarray
    threshold: float | np.ndarray
    fmr: float | np.ndarray
    resolvable: bool | np.ndarray


class EqualError(NamedTuple):
    """Operating point where false accepts and false rejects balance; `eer` = (far + frr) / 2 there."""

    eer: float
    threshold: float
    far: float
    frr: float


def roc(genuine, impostor) -> Roc:
    """The whole curve, one point for every distinct score (none is dropped, collinear or not).

        far(t) = mean(impostor > t),   tar(t) = mean(genuine > t)

    Args:
      genuine: [G] float. impostor: [I] float.

    Raises:
      UserError: either set is empty or not finite.

    Example:
      >>> curve = roc([0.9, 0.4], [0.1, 0.5])
      >>> curve.far.tolist(), curve.tar.tolist()
      ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    """
    genuine, impostor = _sorted_pair(genuine, impostor)
    thresholds, accepted, false = _points(genuine, impostor)
    return Roc(false / impostor.size, accepted / genuine.size, thresholds)


def auc(genuine, impostor) -> float:
    """Area under the curve: the chance that a genuine pair scores above an impostor pair, ties counting half.

        AUC = mean_{g, h} (1[g > h] + 1[g = h] / 2)                      (Mann-Whitney)

    Identical scores everywhere give 0.5.

    Args:
      genuine: [G] float. impostor: [I] float.

    Raises:
      UserError: either set is empty or not finite.

    Example:
      >>> auc([0.9, 0.4], [0.1, 0.5])  # three of the four pairs are in order
      0.75
    """
    genuine, impostor = _sorted_pair(genuine, impostor)
    below = np.searchsorted(impostor, genuine, side="left").sum(dtype=np.int64)
    below_or_equal = np.searchsorted(impostor, genuine, side="right").sum(dtype=np.int64)
    return float((int(below) + int(below_or_equal)) / (2 * genuine.size * impostor.size))


def equal_error_rate(genuine, impostor) -> EqualError:
    """The attainable threshold where FAR and FRR are closest, and their mean there (design).

        t* = argmin_t |FAR(t) - FRR(t)|,   EER = (FAR(t*) + FRR(t*)) / 2

    Equal differences go to the smaller FAR + FRR, then to the larger threshold. Nothing is interpolated: an
    EER comes with a threshold that realizes it. Identical scores everywhere give 0.5.

    Args:
      genuine: [G] float. impostor: [I] float.

    Raises:
      UserError: either set is empty or not finite.

    Example:
      >>> result = equal_error_rate([0.9, 0.8, 0.3], [0.1, 0.2, 0.7])
      >>> round(float(result.eer), 3), float(result.threshold)
      (0.333, 0.3)
    """
    genuine, impostor = _sorted_pair(genuine, impostor)

    def errors(threshold) -> tuple[int, int]:
        # Over the common denominator G * I both rates are integers, so that ties are exact.
        accepted = int(_above(impostor, threshold)) * genuine.size
        return accepted, (genuine.size - int(_above(genuine, threshold))) * impostor.size

    def balance(threshold) -> int:
        accepted, rejected = errors(threshold)
        return accepted - rejected

    # FAR - FRR falls strictly from one distinct threshold to the next, from 1 at -inf to -1 at the largest score:
    # the closest point is one of the two around zero, and bisection finds them without listing the curve.
    lower = -np.inf
    for scores in (genuine, impostor):
        count = bisect.bisect_right(scores, 0, key=lambda score: -balance(score))
        lower = max(lower, scores[count - 1]) if count else lower
    upper = min(
        scores[k]
        for scores in (genuine, impostor)
        if (k := scores.size - _above(scores, lower)) < scores.size
    )
    best = min((lower, upper), key=lambda t: (abs(balance(t)), sum(errors(t)), -t))
    far, frr = (count / (genuine.size * impostor.size) for count in errors(best))
    return EqualError((far + frr) / 2, float(best), far, frr)


def tar_at_far(genuine, impostor, fars, *, rule: Rule = "at_most", strict: bool = False) -> TarAtFar:
    """True accept rate at target false accept rates.

    With rule "at_most" (conservative, design) the realized rate never exceeds the target f:

        t = the (floor(f |h|) + 1)-th largest impostor h,   TAR = mean(g > t),   FAR = mean(h > t) <= f

    With rule "nearest" (what the public ArcFace evaluation does, arXiv:1801.07698) it is the point of `roc`
    whose FAR is nearest to f and which has the largest TAR among those of equal FAR; of two FARs equally near
    the larger is taken, so the realized rate may exceed f.

    Identical scores everywhere give TAR 0 at FAR 0 under "at_most".

    Args:
      genuine: [G] float. impostor: [I] float.
      fars: one target in (0, 1) or an array of them.
      rule: "at_most" or "nearest".
      strict: refuse a target that needs more impostors than there are, instead of flagging it.

    Raises:
      UserError: a set is empty or not finite, a target outside (0, 1), an unknown rule, or `strict` and I < 1
        / f.

    Example:
      >>> result = tar_at_far([0.9, 0.8, 0.3], [0.1, 0.2, 0.4, 0.5], 0.25)
      >>> round(float(result.tar), 3), float(result.threshold)
      (0.667, 0.4)
    """
    targets = checks.rates("fars", fars)
    genuine, impostor = _sorted_pair(genuine, impostor)
    allowed = numbers.allowed_count(targets, impostor.size)
    resolvable = allowed >= 1
    if strict and not resolvable.all():
        least = float(targets.min())
        need = int(np.ceil(1 / least * (1 - 1e-12)))
        raise UserError(f"fars: {least:g} needs at least {need} impostor scores, got {impostor.size}")
    if rule == "at_most":
        threshold = impostor[impostor.size - 1 - allowed]
    elif rule == "nearest":
        threshold = _nearest(genuine, impostor, targets)
    else:
        raise UserError(f"rule: needs 'at_most' or 'nearest', got {rule!r}")
    return TarAtFar(
        numbers.plain(_above(genuine, threshold) / genuine.size),
        numbers.plain(np.asarray(threshold, np.float64)),
        numbers.plain(_above(impostor, threshold) / impostor.size),
        numbers.plain(resolvable),
    )


def fnmr_at_fmr(genuine, impostor, fmrs, *, rule: Rule = "at_most", strict: bool = False) -> FnmrAtFmr:
    """False non-match rate at target false match rates, 1 - TAR; arguments and refusals of `tar_at_far`.

    Example:
      >>> round(float(fnmr_at_fmr([0.9, 0.8, 0.3], [0.1, 0.2, 0.4, 0.5], 0.25).fnmr), 3)
      0.333
    """
    point = tar_at_far(genuine, impostor, fmrs, rule=rule, strict=strict)
    return FnmrAtFmr(1 - point.tar, point.threshold, point.far, point.resolvable)


def _sorted_pair(genuine, impostor) -> tuple[np.ndarray, np.ndarray]:
    genuine = checks.real_array("genuine", genuine, ndim=1)
    impostor = checks.real_array("impostor", impostor, ndim=1)
    common = np.result_type(genuine, impostor)
    return np.sort(genuine.astype(common, copy=False)), np.sort(impostor.astype(common, copy=False))


def _above(ascending: np.ndarray, threshold) -> np.ndarray:
    return ascending.size - np.searchsorted(ascending, threshold, side="right")


def _points(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds, and how many genuine and impostor scores each accepts, from sorted scores."""
    distinct = np.unique(np.concatenate([genuine, impostor]))[::-1]
    thresholds = np.append(distinct, distinct.dtype.type(-np.inf))
    return thresholds, _above(genuine, thresholds), _above(impostor, thresholds)


def _nearest(genuine: np.ndarray, impostor: np.ndarray, targets: np.ndarray) -> np.ndarray:
    thresholds, _, false = _points(genuine, impostor)
    # Reversed: among equal FARs the largest TAR (lowest threshold) comes first, and argmin takes the first.
    thresholds, far = thresholds[::-1], (false / impostor.size)[::-1]
    picked = [int(np.argmin(np.abs(far - target))) for target in targets.ravel()]
    return thresholds[picked].reshape(targets.shape)
