"""What the protocols of anti-spoofing benchmarks do with scores: means over the frames of a video and over left-out folds, and
CelebA-Spoof's convention.

Methods: dpm, fmvit
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxface import checks
from jaxface.errors import UserError
from jaxface.metrics import numbers


class VideoScores(NamedTuple):
    """One row for each of V videos, in the order of their numbers.

    Attributes:
      scores: [V] float64, means over frames. instruments: [V] int64. videos: [V] int64, their numbers.
    """

    scores: np.ndarray
    instruments: np.ndarray
    videos: np.ndarray


class FoldSummary(NamedTuple):
    """Mean and standard deviation of a rate over folds."""

    mean: float
    std: float


def video_scores(scores, instruments, videos) -> VideoScores:
    """The score of a video: the mean of its frames'.

    Args:
      scores: [N] float, of frames. instruments: [N] integers, one for all frames of a video. videos: [N] integers.

    Raises:
      UserError: scores that are not finite, or a video of two instruments. ValueError: lengths differ.

    Example:
      >>> result = video_scores([0.8, 0.6, 0.1], [0, 0, 2], [5, 5, 3])
      >>> result.scores.round(3).tolist(), result.instruments.tolist(), result.videos.tolist()
      ([0.1, 0.7], [2, 0], [3, 5])
    """
    scores = checks.real_array("scores", scores, ndim=1)
    instruments = checks.integer_array("instruments", instruments, scores.size)
    numbers_of, first, index = np.unique(
        checks.integer_array("videos", videos, scores.size), return_index=True, return_inverse=True
    )
    mixed = instruments != instruments[first][index]
    if mixed.any():
        raise UserError(
            f"instruments: needs one for all frames of a video, {numbers_of[index[mixed][0]]} has two"
        )
    frames = np.bincount(index)
    return VideoScores(
        np.bincount(index, weights=scores.astype(np.float64)) / frames, instruments[first], numbers_of
    )


def leave_one_out(folds: Sequence[Mapping[str, float]]) -> dict[str, FoldSummary]:
    """Mean ± standard deviation (n - 1) over folds of every rate, such as APCER, BPCER and ACER, each computed within its fold.

    Args:
      folds: at least two reports with the same names.

    Raises:
      UserError: fewer than two folds, other names, or a rate that is not finite.

    Example:
      >>> leave_one_out([{"acer": 0.1}, {"acer": 0.3}])["acer"].mean
      0.2
    """
    if len(folds) < 2:
        raise UserError(f"folds: needs at least two, got {len(folds)}")
    for fold in folds:
        if fold.keys() != folds[0].keys():
            raise UserError(f"folds: need the same rates, got {sorted(fold)} and {sorted(folds[0])}")
    summary = {}
    for name in folds[0]:
        values = checks.real_array(name, [fold[name] for fold in folds], ndim=1).astype(np.float64)
        summary[name] = FoldSummary(float(values.mean()), float(values.std(ddof=1)))
    return summary


def celeba_spoof_tpr(attack_scores, spoof, fprs) -> float | np.ndarray:
    """True positive rate as CelebA-Spoof prints it, whose positives are the *spoofs* (github.com/ZhangYuanhan-AI/CelebA-Spoof).

        t = the live score at place max(1, int(f L)) - 1 in falling order,   TPR = mean(attack score of spoofs >= t)

    One live image is accepted at least, however small f is; 10E-3, 5E-3 and 10E-4 are printed for 0.01, 0.005 and 0.001.

    Args:
      attack_scores: [N] float, higher = spoof, the opposite of `jaxface.metrics.tpr_at_fpr`.
      spoof: [N] bool or 0/1. fprs: one target in (0, 1) or an array of them.

    Raises:
      UserError: scores that are not finite, no live image or no spoof, or a target outside (0, 1).

    Example:
      >>> celeba_spoof_tpr([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1], 0.01)
      0.5
    """
    targets = checks.rates("fprs", fprs)
    scores = checks.real_array("attack_scores", attack_scores, ndim=1)
    spoof = checks.truth_array("spoof", spoof, scores.size)
    for name, there in (("spoof", spoof), ("live image", ~spoof)):
        if not there.any():
            raise UserError(f"spoof: needs at least one {name}, got none in {scores.size}")
    falling = np.sort(scores[~spoof])[::-1]
    place = np.maximum(1, (targets * falling.size).astype(np.int64)) - 1
    return numbers.plain((scores[spoof][:, None] >= falling[place].ravel()).mean(0).reshape(targets.shape))
