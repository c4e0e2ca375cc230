"""Bjøntegaard differences between rate-distortion curves, through the package `bjontegaard`."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxface.errors import UserError
from jaxface.extras import optional

METHODS = ("pchip", "akima", "cubic")
Curve = tuple[Sequence[float], Sequence[float]]
"""(rates in bits per pixel, distortions in dB), points of one codec."""


def decibels(similarity: float) -> float:
    """-10 log10(1 - MS-SSIM).

    Example:
      >>> round(decibels(0.99), 4)
      20.0
    """
    return float(-10 * np.log10(np.maximum(1 - similarity, 1e-12)))


def _curve(name: str, curve: Curve, method: str) -> tuple[np.ndarray, np.ndarray]:
    rates, distortions = (np.asarray(values, np.float64) for values in curve)
    least = 4 if method == "cubic" else 3 if method == "akima" else 2
    if rates.shape != distortions.shape or rates.ndim != 1:
        raise ValueError(
            f"{name}: needs as many rates as distortions, got {rates.shape} and {distortions.shape}"
        )
    if len(rates) < least:
        raise UserError(f"{name}: needs at least {least} points for {method}, got {len(rates)}")
    if not (np.isfinite(rates).all() and np.isfinite(distortions).all() and (rates > 0).all()):
        raise UserError(f"{name}: needs positive rates and finite distortions")
    order = np.argsort(rates)
    rates, distortions = rates[order], distortions[order]
    if not ((np.diff(rates) > 0).all() and (np.diff(distortions) > 0).all()):
        raise UserError(f"{name}: needs a distortion in dB that rises with the rate")
    return rates, distortions


def _difference(which: str, anchor: Curve, test: Curve, method: str) -> float:
    if method not in METHODS:
        raise UserError(f"method: needs one of {', '.join(METHODS)}, got {method!r}")
    first, second = _curve("anchor", anchor, method), _curve("test", test, method)
    axis = 1 if which == "bd_rate" else 0
    if max(c[axis].min() for c in (first, second)) >= min(c[axis].max() for c in (first, second)):
        raise UserError("test: its curve and the anchor's have no common range")
    compute: Callable = getattr(optional("bjontegaard", "compression"), which)
    return float(compute(*first, *second, method=method, require_matching_points=False, min_overlap=0))


def bd_rate(anchor: Curve, test: Curve, *, method: str = "pchip") -> float:
    """What a codec saves in rate at equal quality, on average over the range of both curves (Bjøntegaard, VCEG-M33).

        exp(1 / (hi - lo) ∫ (ln r_test - ln r_anchor) dd) - 1

    Args:
      anchor, test: (rates, distortions in dB); two points at least, four for "cubic".
      method: interpolation, "pchip" (monotone), "akima" or "cubic".

    Returns:
      Percent; negative where the test saves.

    Raises:
      UserError: too few points, a rate that is not positive, a curve that does not rise, or no common range.

    Example:
      >>> rates, quality = np.array([0.25, 0.5, 1, 2]), [30, 33, 36, 39]
      >>> round(bd_rate((rates, quality), (0.8 * rates, quality)), 6)
      -20.0
    """
    return _difference("bd_rate", anchor, test, method)


def bd_psnr(anchor: Curve, test: Curve, *, method: str = "pchip") -> float:
    """What a codec gains in dB at equal rate; as `bd_rate` with the axes exchanged.

    Args:
      anchor, test, method: as in `bd_rate`.

    Returns:
      dB; positive where the test is better.

    Raises:
      UserError: as `bd_rate`.

    Example:
      >>> rates, quality = [0.25, 0.5, 1, 2], np.array([30.0, 33, 36, 39])
      >>> round(bd_psnr((rates, quality), (rates, quality + 0.5)), 6)
      0.5
    """
    return _difference("bd_psnr", anchor, test, method)
