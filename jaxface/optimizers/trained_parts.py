"""Optimizers of some parameters alone, chosen by name.

Methods: rbonn, bamsprod
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
      The function. It raises UserError for a name that occurs nowhere.
    """
    wanted = frozenset(names)

    def mask(params):
        seen = set()

        def selects(path, _):
            here = {str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path} & wanted
            seen.update(here)
            return bool(here)

        tree = jax.tree_util.tree_map_with_path(selects, params)
        if missing := sorted(wanted - seen):
            raise UserError(f"train_only: needs names of layers or parameters, got {', '.join(missing)}")
        return tree

    return mask


def train_only(
    inner: optax.GradientTransformation, names: Sequence[str]
) -> optax.GradientTransformationExtraArgs:
    """`inner` on the parameters that `name_mask(names)` selects; the others receive no update at all, and cost no state.

    Args:
      inner: the whole optimizer, weight decay and learning rate included.
      names: of modules or parameters; none holds everything at its start, which is a control.

    Returns:
      An optax transformation; `init` and `update` raise UserError for a name that occurs nowhere.
    """
    mask = name_mask(names)
    return optax.chain(
        optax.masked(inner, mask),
        optax.masked(optax.set_to_zero(), lambda params: jax.tree.map(lambda on: not on, mask(params))),
    )
