"""Which changed images still look like their original, which of them is the counterexample, and how robust that leaves a model.

On the host, of arrays of scores. The definitions are those of arXiv:2210.00933.

Methods: niqa_attack
"""

import numpy as np

from jaxface.checks import Fraction, NonNegative, Positive, check_number, real_array
from jaxface.errors import UserError

_SMALLEST = 1e-6  # change of a score that counts as one


def jnd_from_trials(same: np.ndarray, *, threshold: float = 0.75) -> np.ndarray:
    """Images below the just noticeable difference by yes/no trials: at least `threshold` of their trials found them the same.

    Args:
      same: [K, N], 1 where an observer could not tell image k from its original and 0 where they could; NaN where they were not
        asked.
      threshold: in (0, 1].

    Returns:
      [K] bool; an image without a trial is not below it.

    Raises:
      UserError: an answer that is neither, or a threshold out of its range.
      ValueError: no [K, N].

    Example:
      >>> jnd_from_trials(np.array([[1, 1, 1, 0], [1, 1, 0, 0]])).tolist()
      [True, False]
    """
    check_number("threshold", threshold, Fraction)
    check_number("threshold", threshold, Positive)
    answers = np.asarray(same, np.float64)
    if answers.ndim != 2:
        raise ValueError(f"same: needs [K, N], got shape {answers.shape}")
    asked = ~np.isnan(answers)
    if not np.isin(answers[asked], (0, 1)).all():
        raise UserError("same: needs 0, 1 or NaN")
    count = asked.sum(1)
    # In whole trials, so that 75 % of 20 are 15 whatever 0.75 is in binary.
    return (count > 0) & (np.where(asked, answers, 0).sum(1) >= threshold * count - 1e-9)


def jnd_proxy(
    largest_change: np.ndarray,
    similarity: np.ndarray,
    decibels: np.ndarray | None = None,
    *,
    largest: float | None = 4 / 255,
    least_similarity: float = 0.985,
    least_decibels: float | None = None,
) -> np.ndarray:
    """A stand-in for observers: an image passes as its original if no pixel changed much and its SSIM is high.

    Of the images that people accepted nearly all had no pixel changed by more than 4 of 255 levels; the other two bounds are
    ours. What is chosen by it is to be called so: it is no one's judgment.

    Args:
      largest_change: [...] max |x - x₀| in units of the range (`chebyshev`).
      similarity: [...] SSIM of x and x₀.
      decibels: [...] PSNR, infinite for equal images; needed where it has a bound.
      largest: of the first, with a tolerance of a thousandth of a level; None for no bound.
      least_similarity: of the second.
      least_decibels: of the third; None for no bound.

    Returns:
      [...] bool.

    Raises:
      UserError: a bound on the PSNR without it, or a negative `largest`.

    Example:
      >>> jnd_proxy(np.array([4, 4, 5]) / 255, np.array([0.99, 0.9, 0.99])).tolist()
      [True, False, False]
    """
    passes = np.asarray(similarity) >= least_similarity
    if largest is not None:
        check_number("largest", largest, NonNegative)
        passes = passes & (np.asarray(largest_change) <= largest + 1e-3 / 255)
    if least_decibels is not None:
        if decibels is None:
            raise UserError("decibels: needs the PSNR, which has a bound; got none")
        passes = passes & (np.asarray(decibels) >= least_decibels)
    return passes


def select_counterexample(
    scores: np.ndarray, reference: float, below_jnd: np.ndarray, distances: np.ndarray | None = None
) -> tuple[int | None, float]:
    """The changed image that still looks like its original and whose score is farthest from the original's.

        argmax_{k below the JND} |f(x_k) - f(x₀)|

    Args:
      scores: [K] f(x_k). reference: f(x₀). below_jnd: [K] bool.
      distances: [K] D(x_k, x₀); of equal changes the image with the smaller one is taken, then the first.

    Returns:
      (k, |f(x_k) - f(x₀)|); (None, 0.0) where no image is below the JND.

    Raises:
      UserError: a score that is not finite. ValueError: lengths that differ.

    Example:
      >>> select_counterexample(np.array([5.0, 2.0, 9.0]), 6.0, np.array([True, True, False]))
      (1, 4.0)
    """
    scores = real_array("scores", scores, ndim=1)
    below = np.asarray(below_jnd, bool)
    distances = np.zeros(len(scores)) if distances is None else np.asarray(distances)
    if not scores.shape == below.shape == distances.shape:
        raise ValueError(
            f"below_jnd, distances: need the shape of scores, {scores.shape}, got {below.shape}, {distances.shape}"
        )
    if not below.any():
        return None, 0.0
    changes = np.abs(scores - reference)
    places = np.flatnonzero(below)
    best = min(places, key=lambda k: (-changes[k], distances[k], k))
    return int(best), float(changes[best])


def robustness_r(
    scores: np.ndarray, attacked: np.ndarray, *, highest: float = 10.0, lowest: float = 0.0
) -> float:
    """How little an attack moves the scores of what it could, larger is more robust.

        R = 1/S Σ_i ln( max(b₁ - f(x_i), f(x_i) - b₂) / |f(x_i) - f(x_i*)| )

    The base of the logarithm is not printed; the natural one fits the paper's numbers. A change below 1e-6 counts as that.

    Args:
      scores: [S] f(x_i) in [b₂, b₁]. attacked: [S] f(x_i*), of images with a counterexample alone.
      highest, lowest: b₁ > b₂, the ends of the scale.

    Returns:
      R; NaN of no image.

    Raises:
      UserError: a score outside the scale, or one that is not finite. ValueError: lengths that differ.

    Example:
      >>> round(robustness_r(np.array([7, 3]), np.array([4, 5])), 6)
      1.05003
    """
    before, after = (np.asarray(values, np.float64) for values in (scores, attacked))
    if before.ndim != 1 or before.shape != after.shape:
        raise ValueError(f"attacked: needs the shape of scores, [S], got {after.shape} and {before.shape}")
    if not before.size:
        return float("nan")
    for name, values in (("scores", before), ("attacked", after)):
        if not (np.isfinite(values).all() and values.min() >= lowest and values.max() <= highest):
            raise UserError(
                f"{name}: needs values in [{lowest:g}, {highest:g}], got {values.min():g} to {values.max():g}"
            )
    room = np.maximum(highest - before, before - lowest)
    return float(np.mean(np.log(room / np.maximum(np.abs(before - after), _SMALLEST))))
