"""Optimizers of some parameters alone, chosen by name.

Methods: rbonn, bamsprod, qvit
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from jaxface.errors import UserError


def name_mask(names: Sequence[str]) -> Callable[[Any], Any]:
    """A function from parameters to a tree of bool: true where one of the names is a key on the way to the leaf.

    Args:
      names: of modules or parameters, such as `("binary",)`; none gives false everywhere.

    Returns:
      The function.

    Example:
      >>> name_mask(("binary",))({"binary": {"kernel": 0}, "norm": {"scale": 0}})
      {'binary': {'kernel': True}, 'norm': {'scale': False}}
    """
    wanted = frozenset(names)
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: not wanted.isdisjoint(_keys(path)), params
    )


def _keys(path):
    return {str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path}


def train_only(
    inner: optax.GradientTransformation, names: Sequence[str]
) -> optax.GradientTransformationExtraArgs:
    """`inner` on the parameters that `name_mask(names)` selects; the others receive no update at all, and cost no state.

    Args:
      inner: the whole optimizer, weight decay and learning rate included.
      names: of modules or parameters; none holds everything at its start, which is a control.

    Returns:
      An optax transformation; `init` raises UserError for a name that occurs nowhere.

    Example:
      >>> import optax
      >>> import jax.numpy as jnp
      >>> params = {"head": {"w": jnp.ones(1)}, "body": {"w": jnp.ones(1)}}
      >>> optimizer = train_only(optax.sgd(0.5), ["head"])
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> updates["head"]["w"].tolist(), updates["body"]["w"].tolist()
      ([-0.5], [0.0])
    """
    mask = name_mask(names)
    chain = optax.chain(
        optax.masked(inner, mask),
        optax.masked(optax.set_to_zero(), lambda params: jax.tree.map(lambda on: not on, mask(params))),
    )

    def init(params):
        known = set().union(*(_keys(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)))
        if missing := sorted(set(names) - known):
            raise UserError(f"train_only: needs names of layers or parameters, got {', '.join(missing)}")
        return chain.init(params)

    return optax.GradientTransformationExtraArgs(init, chain.update)
