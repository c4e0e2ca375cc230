"""Checks that every classification loss over cosines makes at trace time."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError


def check_scores(scores: jax.Array, labels: jax.Array, *, name: str = "cosines") -> None:
    """Checks `scores` [B, C] float with B ≥ 1 against `labels` [B] integers in {-1} ∪ [0, C).

    Raises:
      AssertionError: ranks or batch sizes disagree.
      ValueError: wrong dtype, empty batch, or (where the values are known) a label out of range.
    """
    chex.assert_rank([scores, labels], [2, 1], custom_message=f"{name} must be [B, C] and labels [B]")
    chex.assert_equal_shape_prefix([scores, labels], 1, custom_message=f"{name} and labels differ in batch")
    if scores.shape[0] == 0:
        raise ValueError(f"{name}: needs at least one row, got shape {scores.shape}")
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(f"{name}: needs a float dtype, got {scores.dtype}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels: needs an integer dtype, got {labels.dtype}")
    if not isinstance(labels, jax.core.Tracer):
        values = np.asarray(labels)
        if values.min() < -1 or values.max() >= scores.shape[1]:
            raise ValueError(
                f"labels: needs values in [0, {scores.shape[1]}) or -1, got {values.min()}..{values.max()}"
            )


def check_range(name: str, value, low: float, high: float, *, open_low: bool = False) -> None:
    """Checks a hyper-parameter where its value is known; a traced scalar passes, so that a sweep needs no recompilation.

    Raises:
      UserError: NaN, infinite or outside the range.
    """
    if isinstance(value, jax.core.Tracer):
        return
    number = float(value)
    inside = (low < number if open_low else low <= number) and number <= high
    if not math.isfinite(number) or not inside:
        bracket = "(" if open_low else "["
        raise UserError(f"{name}: needs a finite value in {bracket}{low:g}, {high:g}], got {number:g}")
