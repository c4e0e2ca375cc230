"""Scores of quality models against mean opinion scores: the logistic map between them, and how well they agree."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import real_array
from jaxface.errors import UserError

_ROUNDS = 200  # of the fit
_LEAST_SLOPE = 1e-6


def logistic_map(
    scores: jax.Array, b3: float | jax.Array, b4: float | jax.Array, *, b1: float = 10.0, b2: float = 0.0
) -> jax.Array:
    """Raw scores on the scale of opinions (VQEG; arXiv:2210.00933, section 3).

        q(s) = (b_1 - b_2) / (1 + exp(-(s - b_3) / |b_4|)) + b_2

    Args:
      scores: s [...] float.
      b3: the score in the middle. b4: how fast it rises, not 0.
      b1, b2: the ends of the scale.

    Returns:
      [...] between b2 and b1, rising with s.

    Raises:
      UserError: a `b4` of 0, where it is known.

    Example:
      >>> round(float(logistic_map(jnp.float32(2.0), -0.4135264, 1.6893845)), 5)
      8.0669
    """
    if not isinstance(b4, jax.core.Tracer) and not np.all(np.abs(np.asarray(b4)) > 0):
        raise UserError("b4: needs a number other than 0")
    return (b1 - b2) * jax.nn.sigmoid((scores - b3) / jnp.abs(b4)) + b2


def fit_logistic(scores, opinions, *, b1: float = 10.0, b2: float = 0.0) -> tuple[float, float]:
    """(b_3, b_4) of `logistic_map` that fit opinions best, by damped Gauss-Newton steps on squared errors.

    Args:
      scores: s [N] float; the model's, higher is better.
      opinions: [N], on the scale of b2 to b1.
      b1, b2: the ends of the scale.

    Returns:
      b_3 and b_4 > 0.

    Raises:
      UserError: fewer than 3 scores, scores that are all alike, or NaN. ValueError: two lengths.

    Example:
      >>> scores = np.linspace(-3, 4, 30)
      >>> [round(b, 3) for b in fit_logistic(scores, logistic_map(scores, 0.5, 1.2))]
      [0.5, 1.2]
    """
    s, target = _pair("scores", scores, "opinions", opinions, least=3)
    spread = float(np.std(s))
    slope = np.log(spread / 2)
    middle, damping = float(np.mean(s)), 1e-3

    def residuals(middle, slope):
        rise = 1 / (1 + np.exp(np.clip(-(s - middle) / np.exp(slope), -60, 60)))
        return (b1 - b2) * rise + b2 - target, rise

    error, rise = residuals(middle, slope)
    for _ in range(_ROUNDS):
        steep = (b1 - b2) * rise * (1 - rise)
        width = np.exp(slope)
        jacobian = np.stack([-steep / width, -steep * (s - middle) / width], axis=1)
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ error
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), gradient)
        # A slope of a millionth or a million times the spread of the scores is as flat or as steep as any.
        trial = middle - step[0], float(np.clip(slope - step[1], np.log(spread) - 14, np.log(spread) + 14))
        found, risen = residuals(*trial)
        if found @ found <= error @ error:
            moved = max(abs(trial[0] - middle) / spread, abs(trial[1] - slope))
            (middle, slope), error, rise, damping = trial, found, risen, max(damping / 10, 1e-12)
            if moved < 1e-10:
                break
        else:
            damping *= 10
            if damping > 1e12:
                break
    return float(middle), float(np.exp(slope))


def _pair(first: str, a, second: str, b, *, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    a, b = (real_array(name, x, ndim=1).astype(np.float64) for name, x in ((first, a), (second, b)))
    if len(a) != len(b):
        raise ValueError(f"{second}: needs as many values as {first}, got {len(b)} and {len(a)}")
    if len(a) < least:
        raise UserError(f"{first}: needs at least {least} values, got {len(a)}")
    for name, values in ((first, a), (second, b)):
        if np.ptp(values) == 0:
            raise UserError(f"{name}: needs values that differ, all are {values[0]:g}")
    return a, b


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def srcc(scores, opinions) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
      scores, opinions: [N] float.

    Returns:
      From -1 to 1.

    Raises:
      UserError: fewer than 2 values, values that are all alike, or NaN. ValueError: two lengths.

    Example:
      >>> round(srcc([1.0, 2, 3, 4], [1.0, 2, 4, 4]), 6)
      0.948683
    """
    a, b = _pair("scores", scores, "opinions", opinions)
    return _correlation(_ranks(a), _ranks(b))


def krcc(scores, opinions) -> float:
    """Kendall's rank correlation τ-b, which counts ties on neither side.

        Σ sign(a_i - a_j) sign(b_i - b_j) / √(pairs untied in a · pairs untied in b)

    Args:
      scores, opinions: [N] float.

    Returns:
      From -1 to 1.

    Raises:
      UserError, ValueError: as `srcc`.

    Example:
      >>> round(krcc([1.0, 2, 3, 4], [1.0, 2, 4, 4]), 6)
      0.912871
    """
    a, b = _pair("scores", scores, "opinions", opinions)
    concordant, untied_a, untied_b = 0.0, 0.0, 0.0
    for i in range(len(a) - 1):  # a row at a time: thousands of scores have millions of pairs
        first, second = np.sign(a[i + 1 :] - a[i]), np.sign(b[i + 1 :] - b[i])
        concordant, untied_a, untied_b = (
            concordant + first @ second,
            untied_a + first @ first,
            untied_b + second @ second,
        )
    return float(concordant / np.sqrt(untied_a * untied_b))


def plcc(scores, opinions, *, mapped: bool = True, b1: float = 10.0, b2: float = 0.0) -> float:
    """Pearson's correlation of opinions with scores after the logistic map that fits them best.

    Args:
      scores, opinions: [N] float.
      mapped: fit the map first (`fit_logistic`).
      b1, b2: its ends.

    Returns:
      From -1 to 1.

    Raises:
      UserError, ValueError: as `fit_logistic`.

    Example:
      >>> scores = np.linspace(-3, 4, 30)
      >>> round(plcc(scores, logistic_map(scores, 0.5, 1.2)), 6)
      1.0
    """
    a, b = _pair("scores", scores, "opinions", opinions, least=3 if mapped else 2)
    if mapped:
        middle, slope = fit_logistic(a, b, b1=b1, b2=b2)
        a = b2 + (b1 - b2) / (1 + np.exp(np.clip(-(a - middle) / slope, -60, 60)))
    return _correlation(a, b)
