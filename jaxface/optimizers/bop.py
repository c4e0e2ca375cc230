"""Bop: flips binary weights whose gradients have long pointed against them (arXiv:1906.02107).

Methods: bamsprod
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxface.checks import NonNegative, Range, check_number
from jaxface.optimizers.uncorrected_adam import zeros


class BopState(NamedTuple):
    """Steps taken, int32, and the running mean of the gradients, in float32 or wider."""

    count: jax.Array
    mu: optax.Updates


def bop(gamma: float | Callable = 1e-4, threshold: float = 1e-8) -> optax.GradientTransformation:
    """The binary optimizer of Helwegen et al. 2019: no step size, a weight keeps its sign or changes it.

        m <- (1 - gamma) m + gamma g,   sgn(w) <- -sgn(w) where |m| > threshold and sgn(m) = sgn(w)

    Weights may be ±1 or have magnitudes, which stay: the update is -2w or 0 (of w = 0, whose sign is +1, the smallest negative
    number). Parameters that are no binary weights need a rule of their own, as `optax.partition` gives it.

    Args:
      gamma: adaptivity rate in (0, 1], or an optax schedule of it.
      threshold: τ ≥ 0, of |m|, in units of the gradient.

    Returns:
      An optax transformation whose `update` needs `params` and raises ValueError without them. A weight whose running mean is
      NaN gets a NaN.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> optimizer, w = bop(gamma=1.0), jnp.array([1.0, -1.0])
      >>> updates, _ = optimizer.update(jnp.array([0.5, 0.5]), optimizer.init(w), w)
      >>> (w + updates).tolist()  # the gradient has the sign of the first, which flips
      [-1.0, -1.0]
    """
    if not callable(gamma):
        check_number("gamma", gamma, Range(0, 1, above=True))
    check_number("threshold", threshold, NonNegative)

    def init(params):
        return BopState(jnp.zeros((), jnp.int32), zeros(params))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("params: needs the weights, whose signs it flips, got None")
        rate = gamma(state.count) if callable(gamma) else gamma
        mu = jax.tree.map(lambda m, g: (1 - rate) * m + rate * g, state.mu, updates)

        def flip(m, w):
            same_sign = (m > 0) == (w >= 0)
            away = jnp.where(w == 0, -jnp.finfo(w.dtype).tiny, -2 * w)
            moved = jnp.where((jnp.abs(m) > threshold) & same_sign, away, jnp.zeros_like(w))
            return jnp.where(jnp.isnan(m), jnp.nan, moved).astype(w.dtype)

        return jax.tree.map(flip, mu, params), BopState(state.count + 1, mu)

    return optax.GradientTransformation(init, update)
