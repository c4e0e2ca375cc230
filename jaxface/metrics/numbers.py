"""Counts and numbers as the metrics return them."""

import numpy as np


def allowed_count(rate: np.ndarray, total: int) -> np.ndarray:
    """Largest integer k with k / total <= rate.

    Rounding makes floor(.29 * 100) = 28, although 29 of 100 is a rate of .29: the quotient is what is
    compared.
    """
    count = np.floor(rate * total).astype(np.int64)
    return np.where((count + 1) / total <= rate, count + 1, count)


def plain(values):
    """A Python number where there is one value without axes, the array otherwise."""
    values = np.asarray(values)
    return values.item() if values.ndim == 0 else values
