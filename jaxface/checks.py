"""Checks of arguments, configurations and arrays, one wording for each.

A range stands on the field it is of, `steps: Annotated[int, AtLeast(0)]`, and `check_fields` holds a whole configuration
to its ranges. A value that a transformation traces is not known yet and passes.
"""

import dataclasses
import functools
import itertools
import math
import types
import typing
from typing import Annotated, Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError

UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of a unit vector may be; in bfloat16 half a unit in the last place of 1 where that is more."""


@dataclasses.dataclass(frozen=True)
class Range:
    """A finite number from `low` to `high`; `above` and `below` leave out the ends."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.low < value if self.above else self.low <= value)
            and (value < self.high if self.below else value <= self.high)
        )

    def __str__(self) -> str:
        finite = "" if math.isfinite(self.low) and math.isfinite(self.high) else "finite "
        ends = []
        if math.isfinite(self.low):
            ends.append(f"{'above' if self.above else 'from'} {self.low:g}")
        if math.isfinite(self.high):
            ends.append(f"{'below' if self.below else 'up to'} {self.high:g}")
        closed = not self.above and not self.below
        return f"a {finite}number {' and '.join(ends)}".replace(
            " and up to", " to" if closed else " and up to"
        ).rstrip()


class Integers(Range):
    """An integer from `low` to `high`."""

    def __contains__(self, value: float) -> bool:
        return super().__contains__(value) and float(value).is_integer()

    def __str__(self) -> str:
        return f"an integer from {self.low:g}" + (f" to {self.high:g}" if math.isfinite(self.high) else "")


def AtLeast(low: int) -> Integers:
    """An integer from `low`."""
    return Integers(low)


Positive = Range(0, above=True)
NonNegative = Range(0)
Fraction = Range(0, 1)
ProperFraction = Range(0, 1, below=True)
"""From 0 and below 1: a decay, a warm-up."""
OpenFraction = Range(0, 1, above=True, below=True)
Cosine = Range(-1, 1)
Angle = Range(0, math.pi)
"""Radians."""


@dataclasses.dataclass(frozen=True)
class Increasing:
    """Of a tuple: every value is larger than the one before it."""


@dataclasses.dataclass(frozen=True)
class Ordered:
    """Of a pair (low, high): low is at most high."""


def check_number(name: str, value, allowed: Range) -> None:
    """Holds a number to a range.

    Args:
      name: of the argument.
      value: a number; a traced one passes, so that a sweep needs no recompilation.
      allowed: the range.

    Raises:
      UserError: NaN, infinite or outside the range.
    """
    if not isinstance(value, jax.core.Tracer) and float(value) not in allowed:
        got = f"{value}" if isinstance(value, int) else f"{float(value):g}"
        raise UserError(f"{name}: needs {allowed}, got {got}")


def check_fields(config: Any, prefix: str = "") -> None:
    """Holds the fields of a dataclass, and of the dataclasses inside it, to what their annotations declare.

    A range on a tuple is one of each of its values; None passes.

    Args:
      config: a dataclass.
      prefix: of the fields' names in messages, such as "optimizer.".

    Raises:
      UserError: `steps: needs an integer from 0, got -1`.
    """
    for name, declared in _declared(type(config)).items():
        _check_value(f"{prefix}{name}", getattr(config, name), declared)


def _check_value(name: str, value: Any, declared: tuple) -> None:
    if dataclasses.is_dataclass(value):
        check_fields(value, f"{name}.")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            if dataclasses.is_dataclass(item):
                check_fields(item, f"{name}[{index}].")
        pairs = list(itertools.pairwise(value))
        for rule in declared:
            if isinstance(rule, Range):
                for item in value:
                    check_number(name, item, rule)
            elif isinstance(rule, Increasing) and not all(a < b for a, b in pairs):
                raise UserError(f"{name}: needs increasing values, got {_listed(value)}")
            elif isinstance(rule, Ordered) and not all(a <= b for a, b in pairs):
                raise UserError(f"{name}: needs least <= greatest, got {_listed(value)}")
    elif value is not None:
        for rule in declared:
            check_number(name, value, rule)


def _listed(values: tuple) -> str:
    return ", ".join(f"{value:g}" for value in values)


@functools.cache
def _declared(kind: type) -> dict[str, tuple]:
    """Field -> what is declared of it."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: _rules(hints[field.name]) for field in dataclasses.fields(kind)}


def _rules(hint: Any) -> tuple:
    if typing.get_origin(hint) is Annotated:
        inner, *metadata = typing.get_args(hint)
        return *(m for m in metadata if isinstance(m, Range | Increasing | Ordered)), *_rules(inner)
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        return tuple(rule for argument in typing.get_args(hint) for rule in _rules(argument))
    return ()


# Arrays that may be traced: shapes and types always, values where they are known.


def check_finite(name: str, values: jax.Array) -> None:
    """Raises UserError where a value is known to be NaN or infinite."""
    if not isinstance(values, jax.core.Tracer):
        _need_finite(name, np.asarray(values, np.float32))


def check_scores(name: str, scores: jax.typing.ArrayLike, *, when: str = "") -> None:
    """Raises UserError where a score is known to be outside [0, 1] or NaN; `when` says under which choice it has to be in it."""
    if isinstance(scores, jax.core.Tracer):
        return
    values = np.asarray(scores, np.float32)
    if not ((values >= 0) & (values <= 1)).all():
        condition = f" {when}" if when else ""
        raise UserError(
            f"{name}: needs scores in [0, 1]{condition}, got {values.min():g} to {values.max():g}"
        )


def check_unit_rows(name: str, rows: jax.typing.ArrayLike, *, zeros: bool = False) -> None:
    """Holds rows [..., D] to length 1, within `UNIT_TOLERANCE`.

    Args:
      name: of the argument.
      rows: floating; a traced array passes.
      zeros: whether a row of zeros passes too, for what is missing.

    Raises:
      UserError: NaN, infinity or another length.
    """
    if isinstance(rows, jax.core.Tracer):
        return
    check_finite(name, rows)
    lengths = np.linalg.norm(np.asarray(rows, np.float32), axis=-1)
    # Unit vectors in bfloat16 are rounded to 2e-3 of their entries.
    rounded = float(jnp.finfo(rows.dtype).eps) / 2 if jnp.issubdtype(rows.dtype, jnp.floating) else 0.0
    tolerance = max(UNIT_TOLERANCE, rounded)
    wrong = (np.abs(lengths - 1) > tolerance) & ~(zeros & (lengths == 0))
    if wrong.any():
        raise UserError(f"{name}: needs rows of length 1{' or 0' * zeros}, got {lengths[wrong][0]:g}")


def int32_labels(name: str, labels: jax.Array, classes: int | None, *, low: int = 0) -> jax.Array:
    """`labels` [B] of any integer type as int32, held to [low, classes).

    Every public function begins with it: a narrower type may hold neither the number of the classes, nor an offset, nor the
    -1 of nobody, and what is computed in it wraps around without a word.

    Args:
      name: of the argument.
      labels: [B] integers; a traced array passes.
      classes: C; None where it is not known.
      low: 0, or -1 where that stands for nobody.

    Raises:
      AssertionError: another rank.
      ValueError: another dtype or, where the values are known, a label out of range.
    """
    if not isinstance(labels, jax.Array):
        labels = np.asarray(labels)
    chex.assert_rank(labels, 1, custom_message=f"{name} must be [B]")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name}: needs an integer dtype, got {labels.dtype}")
    if not isinstance(labels, jax.core.Tracer):
        if classes is not None:
            _need_inside(name, np.asarray(labels), low, classes)
        elif jnp.iinfo(labels.dtype).max > jnp.iinfo(jnp.int32).max:
            _need_inside(name, np.asarray(labels), -(2**31), 2**31)
    return jnp.asarray(labels, jnp.int32)


def nan_outside(labels: jax.Array, classes: int | jax.Array, *, low: int = -1) -> jax.Array:
    """[B] float32: 0 for labels in [low, classes), NaN for others.

    What every loss adds, since a traced label out of range can be told in no other way.
    """
    return jnp.where((labels < low) | (labels >= classes), jnp.nan, jnp.float32(0))


def scored_labels(scores: jax.Array, labels: jax.Array, *, name: str = "cosines") -> jax.Array:
    """`int32_labels` in {-1} ∪ [0, C) for `scores` [B, C] float with B ≥ 1.

    Raises:
      AssertionError: ranks or batch sizes disagree.
      ValueError: wrong dtype, empty batch, or (where the values are known) a label out of range.
    """
    if not isinstance(labels, jax.Array):
        labels = np.asarray(labels)
    chex.assert_rank([scores, labels], [2, 1], custom_message=f"{name} must be [B, C] and labels [B]")
    chex.assert_equal_shape_prefix([scores, labels], 1, custom_message=f"{name} and labels differ in batch")
    if scores.shape[0] == 0:
        raise ValueError(f"{name}: needs at least one row, got shape {scores.shape}")
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(f"{name}: needs a float dtype, got {scores.dtype}")
    return int32_labels("labels", labels, scores.shape[1], low=-1)


# Arrays on the host, to compute a number from.


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
    _need_finite(name, array)
    return array


def unit_rows(name: str, values) -> np.ndarray:
    """`values` as a finite matrix whose rows have length 1, or 0 for what is missing; otherwise a UserError."""
    rows = real_array(name, values, ndim=2)
    check_unit_rows(name, rows, zeros=True)
    return rows


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


def integer_array(name: str, values, length: int | None = None) -> np.ndarray:
    """`values` as [length] int64, labels for one; of any length with None. A ValueError names what is not."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu" or length not in (None, array.size):
        wanted = "[N]" if length is None else f"({length},)"
        raise ValueError(f"{name}: needs integers of shape {wanted}, got {array.dtype} {array.shape}")
    if array.size and array.dtype == np.uint64:
        _need_inside(name, array, 0, 1 << 63)
    return array.astype(np.int64)


def index_array(name: str, values, length: int, bound: int) -> np.ndarray:
    """`integer_array` in [0, bound)."""
    array = integer_array(name, values, length)
    _need_inside(name, array, 0, bound)
    return array


def rates(name: str, values) -> np.ndarray:
    """Target error rates as float64 of any shape, every one in (0, 1); otherwise a UserError."""
    array = np.asarray(values, np.float64)
    if array.size == 0 or not ((array > 0) & (array < 1)).all():
        raise UserError(f"{name}: needs rates strictly between 0 and 1, got {values}")
    return array


def _need_finite(name: str, array: np.ndarray) -> None:
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise UserError(f"{name}: needs finite values, {bad} of {array.size} are NaN or infinite")


def _need_inside(name: str, array: np.ndarray, low: int, bound: int) -> None:
    if array.size and (array.min() < low or array.max() >= bound):
        allowed = f"[0, {bound}) or -1" if low == -1 else f"[{low}, {bound})"  # -1 is nobody
        raise ValueError(f"{name}: needs values in {allowed}, got {array.min()}..{array.max()}")
