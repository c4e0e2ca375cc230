"""What every evaluation asks of its input before it computes a number."""

import numpy as np

from jaxface.errors import UserError


def real_array(name: str, values, *, ndim: int) -> np.ndarray:
    """`values` as a non-empty, finite floating array of `ndim` axes; float32 and float64 keep their type.

    Raises:
      ValueError: wrong number of axes.
      UserError: empty, or a value is NaN or infinite.
    """
    array = np.asarray(values)
    if array.ndim != ndim:
        raise ValueError(f"{name}: needs {ndim} axes, got shape {array.shape}")
    if array.size == 0:
        raise UserError(f"{name}: needs at least one value, got shape {array.shape}")
    if array.dtype not in (np.float32, np.float64):
        # bfloat16 and float16 fit in float32; integers and booleans need float64.
        array = array.astype(np.float64 if array.dtype.kind in "iub" else np.float32)
    if not np.isfinite(array).all():
        bad = int(np.size(array) - np.isfinite(array).sum())
        raise UserError(f"{name}: needs finite values, {bad} of {array.size} are NaN or infinite")
    return array


def truth_array(name: str, values, length: int) -> np.ndarray:
    """`values` as [length] bool; 0/1 integers are taken, anything else is refused with a ValueError."""
    array = np.asarray(values)
    if array.shape != (length,):
        raise ValueError(f"{name}: needs shape ({length},), got {array.shape}")
    if array.dtype != bool:
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"{name}: needs booleans or 0/1, got dtype {array.dtype} with other values")
        array = array.astype(bool)
    return array


def index_array(name: str, values, length: int, bound: int) -> np.ndarray:
    """`values` as [length] int64 in [0, bound); a ValueError names what is not."""
    array = np.asarray(values)
    if array.shape != (length,) or array.dtype.kind not in "iu":
        raise ValueError(f"{name}: needs integers of shape ({length},), got {array.dtype} {array.shape}")
    if length and (array.min() < 0 or array.max() >= bound):
        raise ValueError(f"{name}: needs values in [0, {bound}), got {array.min()}..{array.max()}")
    return array.astype(np.int64)


def rates(name: str, values) -> np.ndarray:
    """Target error rates as float64 of any shape, every one in (0, 1); otherwise a UserError."""
    array = np.asarray(values, np.float64)
    if array.size == 0 or not ((array > 0) & (array < 1)).all():
        raise UserError(f"{name}: needs rates strictly between 0 and 1, got {values}")
    return array


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
