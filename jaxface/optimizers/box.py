"""Updates that keep parameters inside a box.

Methods: bamsprod
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def project_box(mask: Any | Callable[[Any], Any] = True) -> optax.GradientTransformation:
    """Cuts updates so that parameters stay in [-1, 1]; the last link of a chain.

        u <- clip(w + u, -1, 1) - w

    Args:
      mask: which parameters: a tree of bool, or a prefix of one, like the parameters; or a function from parameters to it. All
        by default.

    Returns:
      An optax transformation whose `update` needs `params` and raises ValueError without them.

    Example:
      >>> rule = optax.chain(optax.sgd(1.0), project_box())
      >>> w = jnp.array([0.5, -0.5])
      >>> updates, _ = rule.update(jnp.array([-3.0, 0.25]), rule.init(w), w)
      >>> updates.tolist()
      [0.5, -0.25]
    """

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("params: needs the parameters, got None")
        flags = _mask_like(mask, updates)
        return jax.tree.map(lambda on, u, w: box_update(u, w) if on else u, flags, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def box_update(update: jax.Array, weights: jax.Array) -> jax.Array:
    """The update that leads to clip(w + u, -1, 1); NaN stays NaN."""
    return jnp.clip(weights + update, -1, 1) - weights


def _mask_like(mask: Any | Callable[[Any], Any], tree: Any) -> Any:
    mask = mask(tree) if callable(mask) else mask
    return jax.tree.map(lambda on, part: jax.tree.map(lambda _: bool(on), part), mask, tree)
