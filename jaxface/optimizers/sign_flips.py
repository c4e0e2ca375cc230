"""How many latent weights change their sign in a step.

Methods: rbonn, bamsprod, dcp_nas
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxface.checks import AtLeast, check_number


class SignFlipsState(NamedTuple):
    """The last steps' shares of changed signs.

    Attributes:
      flip_steps: int32 scalar, steps taken.
      flip_shares: float32 [window], a ring whose newest entry is at (flip_steps - 1) mod window.
    """

    flip_steps: jax.Array
    flip_shares: jax.Array


def track_sign_flips(
    leaves: Callable[[Any], Any], window: int = 100
) -> optax.GradientTransformationExtraArgs:
    """Counts, and changes nothing: the last link of a chain, which sees the updates as they will be added.

        share = (weights with [w >= 0] != [w + u >= 0]) / (weights)

    Args:
      leaves: parameters -> tree of bool, the latent weights (`name_mask`).
      window: steps that are remembered, >= 1.

    Returns:
      An optax transformation whose `update` needs `params`; `flip_rate` reads its state.

    Raises:
      UserError: `window` is below 1.

    Example:
      >>> optimizer, w = track_sign_flips(lambda params: True), jnp.array([1.0, 1.0])
      >>> _, state = optimizer.update(jnp.array([-2.0, -0.5]), optimizer.init(w), w)
      >>> float(flip_rate(state))
      0.5
    """
    check_number("window", window, AtLeast(1))

    def init(params):
        leaves(params)
        return SignFlipsState(jnp.zeros((), jnp.int32), jnp.zeros(window))

    def update(updates, state, params=None, **_):
        if params is None:
            raise ValueError("params: needs the parameters, got None")
        wanted = jax.tree.leaves(leaves(params))
        triples = zip(wanted, jax.tree.leaves(params), jax.tree.leaves(updates), strict=True)
        pairs = [(w, u) for on, w, u in triples if on]
        flips = sum((jnp.sum((w >= 0) != (w + u >= 0)) for w, u in pairs), jnp.zeros((), jnp.int32))
        share = flips / max(sum(w.size for w, _ in pairs), 1)
        shares = state.flip_shares.at[state.flip_steps % window].set(share)
        return updates, SignFlipsState(state.flip_steps + 1, shares)

    return optax.GradientTransformationExtraArgs(init, update)


def flip_rate(state: Any) -> jax.Array:
    """Mean share of signs changed per step over the window, from any state that holds one of `track_sign_flips`.

    Args:
      state: of an optimizer.

    Returns:
      float32 scalar in [0, 1]; 0 before the first step.

    Example:
      >>> float(flip_rate(track_sign_flips(lambda params: True).init(jnp.ones(2))))
      0.0
    """
    shares = optax.tree.get(state, "flip_shares")
    steps = optax.tree.get(state, "flip_steps")
    return jnp.sum(shares) / jnp.clip(steps, 1, shares.shape[0])
