"""Small changes of what a network does not look at, so that it cannot learn from it (ARI, arXiv:2208.12967).

Methods: lifelong
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxface.checks import NonNegative, check_number


def background_mask(attention: jax.Array) -> jax.Array:
    """How much of a change each pixel takes: 1 - W², near 1 where attention W in [0, 1] is low; it has no gradient.

    Example:
      >>> background_mask(jnp.array([0.0, 0.5, 1.0])).tolist()
      [1.0, 0.75, 0.0]
    """
    return 1 - jnp.square(jax.lax.stop_gradient(attention))


def background_attack(
    loss_fn: Callable[[jax.Array], tuple[jax.Array, Any]],
    images: jax.Array,
    mask: jax.Array,
    start: jax.Array,
    *,
    epsilon: float | jax.Array,
    low: float | jax.Array = -1.0,
    high: float | jax.Array = 1.0,
) -> tuple[jax.Array, Any]:
    """One step up the loss from a random start, on the background alone; with a mask of ones FGSM with a random start.

        δ = clip( (δ₀ + ε sign ∇_δ L(x + δ₀)) M, -ε, ε );    x' = clip(x + δ, low, high)

    Args:
      loss_fn: images -> (scalar, what else it computes).
      images: x [B, H, W, C] float in [low, high].
      mask: M [B, H, W, 1] in [0, 1] (`background_mask`).
      start: δ₀ like the images, in [-ε, ε].
      epsilon: ε ≥ 0, a number or [C]. low, high: the same.

    Returns:
      (x', without a gradient; what else the loss computed).

    Raises:
      UserError: a negative ε.

    Example:
      >>> images, mask = jnp.full((1, 1, 1, 1), 0.5), jnp.ones((1, 1, 1, 1))
      >>> changed, _ = background_attack(lambda x: (x.sum(), None), images, mask, 0 * images, epsilon=0.25)
      >>> changed.item()
      0.75
    """
    for value in jnp.ravel(jnp.asarray(epsilon)) if not isinstance(epsilon, jax.core.Tracer) else ():
        check_number("epsilon", value, NonNegative)
    slope, other = jax.grad(loss_fn, has_aux=True)(images + start)
    change = jnp.clip((start + epsilon * jnp.sign(slope)) * mask, -epsilon, epsilon)
    return jax.lax.stop_gradient((jnp.clip(images + change, low, high), other))
