"""Adam and AMSGrad in their forms without a correction of the moments' bias, which optax has not.

Methods: bamsprod
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxface.checks import NonNegative, ProperFraction, check_number
from jaxface.optimizers.rules import RULES, Rule


class UncorrectedAdamState(NamedTuple):
    """Moments like the parameters, in float32 or wider; `nu_max` is None in Adam."""

    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates | None


def scale_by_uncorrected_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *, largest: bool = False
) -> optax.GradientTransformation:
    """m / (sqrt(v) + eps) with moments that start at 0 and stay as they are.

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g²,   v̂ <- max(v̂, v)

    Args:
      b1, b2: decays in [0, 1).
      eps: outside the root, >= 0.
      largest: divide by the root of v̂, which never forgets (AMSGrad, Reddi et al. 2018), instead of v.

    Returns:
      An optax transformation; the updates have the type of the gradients.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> optimizer, w = scale_by_uncorrected_adam(), jnp.array(1.0)
      >>> direction, _ = optimizer.update(jnp.array(2.0), optimizer.init(w), w)
      >>> round(float(direction), 2)  # (0.1 · 2) / √(0.001 · 4)
      3.16
    """
    check_number("b1", b1, ProperFraction)
    check_number("b2", b2, ProperFraction)
    check_number("eps", eps, NonNegative)

    def init(params):
        return UncorrectedAdamState(zeros(params), zeros(params), zeros(params) if largest else None)

    def update(updates, state, params=None):
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu) if largest else None
        divisor = nu_max if largest else nu
        moved = jax.tree.map(lambda m, v, g: (m / (jnp.sqrt(v) + eps)).astype(g.dtype), mu, divisor, updates)
        return moved, UncorrectedAdamState(mu, nu, nu_max)

    return optax.GradientTransformation(init, update)


def uncorrected_adam(
    learning_rate: float | Callable, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam without bias correction: its steps are (1 - b1^t) / sqrt(1 - b2^t) times those of `optax.adam`.

    Args:
      learning_rate: a number or an optax schedule.
      b1, b2, eps: of `scale_by_uncorrected_adam`.

    Returns:
      An optax transformation.

    Example:
      >>> optimizer, w = uncorrected_adam(0.1), jnp.array(1.0)
      >>> updates, _ = optimizer.update(jnp.array(2.0), optimizer.init(w), w)
      >>> round(float(updates), 3)  # -0.1 · (0.1 · 2) / √(0.001 · 4)
      -0.316
    """
    return optax.chain(scale_by_uncorrected_adam(b1, b2, eps), optax.scale_by_learning_rate(learning_rate))


def amsgrad(
    learning_rate: float | Callable, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """AMSGrad as it was published, without bias correction; `optax.amsgrad` corrects the moments before the maximum.

    Args:
      learning_rate: a number or an optax schedule.
      b1, b2, eps: of `scale_by_uncorrected_adam`.

    Returns:
      An optax transformation.

    Example:
      >>> optimizer, w = amsgrad(0.1), jnp.array(1.0)
      >>> updates, _ = optimizer.update(jnp.array(2.0), optimizer.init(w), w)
      >>> round(float(updates), 3)  # -0.1 · (0.1 · 2) / √(0.001 · 4)
      -0.316
    """
    return optax.chain(
        scale_by_uncorrected_adam(b1, b2, eps, largest=True), optax.scale_by_learning_rate(learning_rate)
    )


def zeros(params):
    """Zeros like the parameters, in float32 or wider."""
    return jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)), params)


@RULES.register("uncorrected_adam")
def _uncorrected_adam(momentum, decay):
    return Rule([decay, scale_by_uncorrected_adam(b1=momentum)])


@RULES.register("amsgrad")
def _amsgrad(momentum, decay):
    return Rule([decay, scale_by_uncorrected_adam(b1=momentum, largest=True)])
