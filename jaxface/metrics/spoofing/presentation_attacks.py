"""Error rates of presentation-attack detection (ISO/IEC 30107-3).

Everywhere a score is one of *liveness* (higher = bona fide), `instruments` says of every score what was presented: 0 for a live
face, 1, 2, ... for the attack instruments; and a presentation is accepted iff score >= threshold. A threshold is taken on a
development set and applied unchanged to the test set: no function here does both.

Refused with a UserError: scores that are not finite, no live presentation or no attack, and instruments below 0.

Methods: dpm, fmvit
"""

from typing import Literal, NamedTuple

import numpy as np

from jaxface import checks
from jaxface.checks import OpenFraction, check_number
from jaxface.errors import UserError
from jaxface.metrics import numbers
from jaxface.metrics.recognition import curves
from jaxface.metrics.recognition.curves import EqualError

LIVE = 0
"""The instrument of a bona fide presentation: none."""

Apcer = Literal["max", "pooled"]
"""Which attack presentation classification error: that of the worst instrument, as the standard has it, or of all attacks
together, as most released code has it."""


class HalfTotalError(NamedTuple):
    """Half total error rate at a threshold; `hter` = (far + frr) / 2, far = pooled APCER, frr = BPCER."""

    hter: float
    far: float
    frr: float


class TprAtFpr(NamedTuple):
    """True positive rate at a target false positive rate: plain numbers for one target, arrays for several.

    Attributes:
      tpr: fraction of live presentations accepted.
      threshold: accept iff score >= threshold; infinite where nothing may be accepted.
      fpr: realized fraction of attacks accepted, never above the target.
      resolvable: whether there are at least 1 / target attacks. Where not, the point allows no attack at all.
    """

    tpr: float | np.ndarray
    threshold: float | np.ndarray
    fpr: float | np.ndarray
    resolvable: bool | np.ndarray


def presentation_instruments(live, instruments) -> np.ndarray:
    """One array for two: 0 for live presentations, the instrument of each attack.

    Args:
      live: [N] bool or 0/1, whether a presentation is bona fide.
      instruments: [N] integers, 0 for live ones.

    Returns:
      [N] int64.

    Raises:
      UserError: an attack without an instrument, or a live presentation with one. ValueError: lengths differ.

    Example:
      >>> presentation_instruments([1, 0, 0], [0, 2, 1]).tolist()
      [0, 2, 1]
    """
    instruments = checks.integer_array("instruments", instruments)
    live = checks.truth_array("live", live, instruments.size)
    if (wrong := (~live & (instruments == LIVE)).sum()) > 0:
        raise UserError(f"instruments: needs a number from 1 for every attack, {wrong} attacks have 0")
    if (wrong := (live & (instruments != LIVE)).sum()) > 0:
        raise UserError(f"instruments: needs 0 for every live presentation, {wrong} have another")
    return instruments


def split_presentations(scores, instruments) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the live presentations and of the attacks, as `jaxface.metrics.roc` and `auc` take them.

    Args:
      scores: [N] float. instruments: [N] integers.

    Returns:
      ([L] float, [A] float).

    Example:
      >>> [part.tolist() for part in split_presentations([0.9, 0.2, 0.4], [0, 1, 0])]
      [[0.9, 0.4], [0.2]]
    """
    scores, instruments = _presentations(scores, instruments)
    return scores[instruments == LIVE], scores[instruments != LIVE]


def apcer_by_instrument(scores, instruments, threshold: float) -> dict[int, float]:
    """Attack presentation classification error of each instrument p.

        APCER_p = #{i : instrument_i = p, score_i >= t} / #{i : instrument_i = p}

    Args:
      scores: [N] float. instruments: [N] integers. threshold: t, from a development set.

    Returns:
      Instrument -> fraction accepted, for those that occur.

    Example:
      >>> apcer_by_instrument([0.9, 0.1, 0.6, 0.7], [0, 1, 1, 2], 0.5)
      {1: 0.5, 2: 1.0}
    """
    scores, instruments = _presentations(scores, instruments)
    accepted = scores >= _threshold(threshold)
    return {int(p): float(accepted[instruments == p].mean()) for p in np.unique(instruments) if p != LIVE}


def apcer(scores, instruments, threshold: float, *, kind: Apcer = "max") -> float:
    """Attack presentation classification error: of the worst instrument, or of all attacks together.

    Args:
      scores: [N] float. instruments: [N] integers. threshold: from a development set.
      kind: "max" (ISO/IEC 30107-3) or "pooled".

    Example:
      >>> presented = [0.9, 0.1, 0.6, 0.7], [0, 1, 1, 2]
      >>> apcer(*presented, 0.5), round(apcer(*presented, 0.5, kind="pooled"), 3)
      (1.0, 0.667)
    """
    if kind == "max":
        return max(apcer_by_instrument(scores, instruments, threshold).values())
    if kind == "pooled":
        return float((split_presentations(scores, instruments)[1] >= _threshold(threshold)).mean())
    raise UserError(f"kind: needs 'max' or 'pooled', got {kind!r}")


def bpcer(scores, instruments, threshold: float) -> float:
    """Bona fide presentation classification error: the fraction of live presentations refused, score < threshold.

    Example:
      >>> bpcer([0.9, 0.4, 0.2], [0, 0, 1], 0.5)
      0.5
    """
    return float((split_presentations(scores, instruments)[0] < _threshold(threshold)).mean())


def acer(scores, instruments, threshold: float, *, kind: Apcer = "max") -> float:
    """Average classification error (APCER + BPCER) / 2, with the APCER of `kind`.

    The 2023 edition of the standard has dropped it; papers report it still.

    Example:
      >>> round(acer([0.9, 0.4, 0.1, 0.6, 0.2], [0, 0, 1, 1, 2], 0.5), 3)
      0.5
      >>> round(acer([0.9, 0.4, 0.1, 0.6, 0.2], [0, 0, 1, 1, 2], 0.5, kind="pooled"), 3)
      0.417
    """
    return (apcer(scores, instruments, threshold, kind=kind) + bpcer(scores, instruments, threshold)) / 2


def half_total_error(scores, instruments, threshold: float) -> HalfTotalError:
    """HTER with its two parts: FAR, the pooled APCER, and FRR, the BPCER.

    Example:
      >>> half_total_error([0.9, 0.4, 0.1, 0.6], [0, 0, 1, 2], 0.5)
      HalfTotalError(hter=0.5, far=0.5, frr=0.5)
    """
    far, frr = (
        apcer(scores, instruments, threshold, kind="pooled"),
        bpcer(scores, instruments, threshold),
    )
    return HalfTotalError((far + frr) / 2, far, frr)


def equal_error_threshold(scores, instruments) -> EqualError:
    """The threshold where FAR and FRR are closest, of a development set.

        t* = argmin_t |FAR(t) - FRR(t)|  over the distinct scores and +inf,   EER = (FAR(t*) + FRR(t*)) / 2

    Equal differences go to the smaller FAR + FRR, then to the larger threshold. (Released code takes the vertex of the curve,
    reports its FPR, and then rejects what lies exactly on the threshold.)

    Args:
      scores: [N] float. instruments: [N] integers.

    Returns:
      `EqualError`, whose threshold accepts iff score >= threshold.

    Example:
      >>> result = equal_error_threshold([0.9, 0.8, 0.3, 0.1, 0.2, 0.7], [0, 0, 0, 1, 1, 2])
      >>> round(result.eer, 3), result.threshold
      (0.333, 0.7)
    """
    live, attack = split_presentations(scores, instruments)
    point = curves.equal_error_rate(live, attack)
    return point._replace(threshold=float(_from_strict(np.asarray(scores), point.threshold)))


def bpcer_threshold(scores, instruments, rate: float) -> float:
    """The largest threshold at which no more than `rate` of the live presentations are refused: WMCA's, at 0.01, of its
    development set.

    Args:
      scores: [N] float. instruments: [N] integers. rate: in (0, 1).

    Example:
      >>> bpcer_threshold([0.2, 0.9, 0.6, 0.8, 0.1], [0, 0, 0, 0, 1], 0.25)
      0.6
    """
    check_number("rate", rate, OpenFraction)
    live = np.sort(split_presentations(scores, instruments)[0])
    return float(live[int(numbers.allowed_count(np.array(rate), live.size))])


def tpr_at_fpr(scores, instruments, fprs) -> TprAtFpr:
    """Live presentations accepted where no more than a fraction of the attacks is (CASIA-SURF, CeFA).

    Positives are live, negatives attacks of any instrument. The realized rate never exceeds the target, as that of the released
    helper may, which takes the nearest.

    Args:
      scores: [N] float. instruments: [N] integers.
      fprs: one target in (0, 1) or an array of them; 1e-4 is the headline of CASIA-SURF.

    Example:
      >>> point = tpr_at_fpr([0.9, 0.8, 0.3, 0.1, 0.2, 0.4, 0.5], [0, 0, 0, 1, 1, 1, 1], 0.25)
      >>> round(point.tpr, 3), point.threshold, point.fpr, point.resolvable
      (0.667, 0.5, 0.25, True)
    """
    live, attack = split_presentations(scores, instruments)
    point = curves.tar_at_far(live, attack, fprs)
    threshold = _from_strict(np.asarray(scores), point.threshold)
    return TprAtFpr(point.tar, numbers.plain(threshold), point.far, point.resolvable)


def spoof_report(scores, instruments, threshold: float, *, fprs=(1e-2, 1e-3, 1e-4)) -> dict[str, float]:
    """Everything of a test set by name: `acer` (pooled), `acer_max`, `apcer`, `apcer_max`, `bpcer`, `hter`, `auc`, and
    `tpr_at_<f>` for the targets f that there are attacks enough for.

    Args:
      scores: [N] float. instruments: [N] integers.
      threshold: from a development set.
      fprs: targets in (0, 1).

    Example:
      >>> report = spoof_report([0.9, 0.4, 0.1, 0.6, 0.2], [0, 0, 1, 1, 2], 0.5)
      >>> {name: round(value, 3) for name, value in report.items()}
      {'acer': 0.417, 'acer_max': 0.5, 'apcer': 0.333, 'apcer_max': 0.5, 'bpcer': 0.5, 'hter': 0.417, 'auc': 0.833}
    """
    pooled, worst = (apcer(scores, instruments, threshold, kind=kind) for kind in ("pooled", "max"))
    refused = bpcer(scores, instruments, threshold)
    report = {
        "acer": (pooled + refused) / 2,
        "acer_max": (worst + refused) / 2,
        "apcer": pooled,
        "apcer_max": worst,
        "bpcer": refused,
        "hter": half_total_error(scores, instruments, threshold).hter,
        "auc": curves.auc(*split_presentations(scores, instruments)),
    }
    for target in fprs:
        point = tpr_at_fpr(scores, instruments, target)
        if point.resolvable:
            report[f"tpr_at_{target:.0e}".replace("e-0", "e-")] = float(point.tpr)
    return report


def _presentations(scores, instruments) -> tuple[np.ndarray, np.ndarray]:
    scores = checks.real_array("scores", scores, ndim=1)
    instruments = checks.integer_array("instruments", instruments, scores.size)
    if instruments.min() < LIVE:
        raise UserError(f"instruments: needs numbers from 0, got {instruments.min()}")
    for name, there in (("live presentation", instruments == LIVE), ("attack", instruments != LIVE)):
        if not there.any():
            raise UserError(f"instruments: needs at least one {name}, got none in {scores.size}")
    return scores, instruments


def _threshold(value: float) -> float:
    """Infinite thresholds accept all or nothing; NaN is none."""
    if np.isnan(value):
        raise UserError("threshold: needs a number, got nan")
    return value


def _from_strict(scores: np.ndarray, threshold) -> np.ndarray:
    """The threshold for >= that accepts what `> threshold` does: the next larger score, or +inf."""
    ascending = np.unique(np.append(scores.astype(np.float64), np.inf))
    return ascending[np.minimum(np.searchsorted(ascending, threshold, side="right"), ascending.size - 1)]
