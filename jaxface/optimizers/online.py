"""Online problems of one binary weight, on which optimizers can be told apart exactly.

Methods: bamsprod
"""

import jax
import jax.numpy as jnp
import optax


def online_regret(coefficients: jax.Array, signs: jax.Array) -> jax.Array:
    """Average regret after every step of the linear losses f_t(b) = c_t b.

        regret_t = (1/t) Σ_{s≤t} c_s (b_s - b*),   b* = -sgn(Σ_{s≤T} c_s), the best fixed weight of all T losses

    It is negative where signs were luckier than any fixed one.

    Args:
      coefficients: c [T] float.
      signs: b [T], ±1, as they stood when the loss came.

    Returns:
      [T] float.

    Raises:
      ValueError: the two differ in shape or are not [T].

    Example:
      >>> online_regret(jnp.array([4.0, -1.0, -1.0]), jnp.array([1.0, 1.0, -1.0])).tolist()
      [8.0, 3.0, 2.0]
    """
    if coefficients.ndim != 1 or coefficients.shape != signs.shape:
        raise ValueError(
            f"signs: needs the shape [T] of coefficients {coefficients.shape}, got {signs.shape}"
        )
    best = jnp.where(jnp.sum(coefficients) > 0, -1, 1)
    steps = jnp.arange(1, coefficients.shape[0] + 1)
    return jnp.cumsum(coefficients * (signs - best)) / steps


def simulate_online(
    coefficients: jax.Array, start: float | jax.Array, optimizer: optax.GradientTransformation
) -> tuple[jax.Array, jax.Array]:
    """One latent weight w, whose sign b = sgn(w) meets f_t(b) = c_t b; its straight-through gradient is c_t.

    Args:
      coefficients: c [T] float.
      start: w before the first step, in [-1, 1].
      optimizer: any optax transformation; it keeps w in [-1, 1] itself (`bamsprod`, or a chain that ends in `project_box`).

    Returns:
      weights [T], after every step; and `online_regret` [T].

    Example:
      >>> from jaxface.optimizers import bamsprod
      >>> weights, regret = simulate_online(jnp.ones(20), 1.0, bamsprod(0.2))
      >>> float(weights[0]) > 0, float(weights[-1])  # +1 is wrong in every step
      (True, -1.0)
    """

    def step(carry, coefficient):
        weight, state = carry
        sign = jnp.where(weight >= 0, 1, -1).astype(weight.dtype)
        updates, state = optimizer.update(coefficient, state, weight)
        weight = optax.apply_updates(weight, updates)
        return (weight, state), (weight, sign)

    start = jnp.asarray(start, coefficients.dtype)
    _, (weights, signs) = jax.lax.scan(step, (start, optimizer.init(start)), coefficients)
    return weights, online_regret(coefficients, signs)
