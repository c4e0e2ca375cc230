"""Groups of parameters by the names of their parts: rates of their own, rates by depth, and groups that do not move.

A name selects the parameters below a part of the network: those whose path is the name or begins with it, up to a `/` or `_`. The
path may be taken without its first part, so that `stem`, `backbone/stem` and `backbone/stem_conv` all select
`backbone/stem_conv/kernel`; `stage1` does not select `stage10_block1`.

Methods: sparsevit
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import optax

from jaxface.errors import UserError
from jaxface.registry import nearest


def selects(name: str, path: str) -> bool:
    """Whether a name selects the parameter at a path.

    Example:
      >>> selects("stage1", "backbone/stage1_block2/conv1/kernel"), selects("stage1", "backbone/stage10_block1/conv1/kernel")
      (True, False)
    """
    return _reach(name, path) > 0


def check_groups(argument: str, names: Iterable[str], params: Any) -> None:
    """Holds names to the parameters that there are.

    Args:
      argument: what the names are called, for the message.
      names: of parts.
      params: a tree of arrays or shapes.

    Raises:
      UserError: a name that selects no parameter; the nearest one is told.
    """
    paths = _paths(params)
    for name in names:
        if not any(selects(name, path) for path in paths):
            raise UserError(f"{argument}: {name!r} selects no parameter{nearest(name, _parts(paths))}")


def scale_groups(
    rates: Mapping[str, float],
    *,
    depth_order: Sequence[Sequence[str]] = (),
    layer_decay: float = 1.0,
) -> optax.GradientTransformation:
    """Updates times a factor by group; it goes behind the learning rate.

        factor = rate · layer_decay^(n - i)

    with the rate of the name that reaches farthest into the parameter's path, 1 where none selects it, and i = 0 … n - 1 its
    group in `depth_order`; what is in no group, as the head, has the power 0 (arXiv:2106.08254).

    Args:
      rates: name -> factor.
      depth_order: groups of names from the image on.
      layer_decay: in (0, 1].

    Returns:
      An optax transformation without state; `init` raises UserError for a name in `rates` that selects nothing.
    """
    depths = {name: len(depth_order) - i for i, names in enumerate(depth_order) for name in names}

    def factor(path):
        return rates.get(_nearest(rates, path), 1.0) * layer_decay ** depths.get(_nearest(depths, path), 0)

    def init(params):
        check_groups("rates", rates, params)
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        factors = _map_paths(factor, updates)
        return jax.tree.map(lambda u, f: u if f == 1 else u * f, updates, factors), state

    return optax.GradientTransformation(init, update)


def freeze(
    inner: optax.GradientTransformation, names: Sequence[str]
) -> optax.GradientTransformationExtraArgs:
    """`inner` on all parameters but those that the names select, which receive no update at all and cost no state.

    Args:
      inner: the whole optimizer, weight decay and learning rate included.
      names: of parts.

    Returns:
      An optax transformation; `init` raises UserError for a name that selects nothing.
    """

    def trained(params):
        return _map_paths(lambda path: not any(selects(name, path) for name in names), params)

    chain = optax.chain(
        optax.masked(inner, trained),
        optax.masked(optax.set_to_zero(), lambda params: jax.tree.map(lambda on: not on, trained(params))),
    )

    def init(params):
        check_groups("frozen", names, params)
        return chain.init(params)

    return optax.GradientTransformationExtraArgs(init, chain.update)


def _map_paths(function: Callable[[str], Any], tree: Any) -> Any:
    """A tree of `function(path)`; what another transformation masks stays masked."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: function(jax.tree_util.keystr(path, simple=True, separator="/")), tree
    )


def _paths(tree: Any) -> list[str]:
    return jax.tree.leaves(_map_paths(lambda path: path, tree))


def _reach(name: str, path: str) -> int:
    """Where in the path the name ends; 0 where it does not select it."""
    starts = (0, len(path.partition("/")[0]) + 1)
    return max(
        (i + len(name) for i in starts if f"{path[i:]}/".startswith((f"{name}/", f"{name}_"))), default=0
    )


def _nearest(names: Iterable[str], path: str) -> str | None:
    """The name that says most of the path."""
    name = max(names, key=lambda name: _reach(name, path), default=None)
    return name if name is not None and _reach(name, path) else None


def _parts(paths: Iterable[str]) -> set[str]:
    """Names that select something: the first two parts of every path, whole and up to an underscore."""
    names = set()
    for path in paths:
        first, *rest = path.split("/")[:2]
        names |= {first, *rest, *(part.partition("_")[0] for part in rest)}
    return names
