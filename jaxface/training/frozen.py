"""Layers that do not train: no gradient goes into them and, where asked, their batch statistics stay and are what they use."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax

from jaxface.layers.norm import BatchNorm, MaskedBatchNorm
from jaxface.optimizers import selects


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Parts of a network that stay as they are, bit for bit, under an optimizer that leaves them out (`optimizers.freeze`).

    Attributes:
      names: of the parts, as `optimizers.selects` reads them.
      statistics: whether batch normalizations inside them use their running averages, which then stay too.
    """

    names: tuple[str, ...] = ()
    statistics: bool = False

    def __contains__(self, path: str) -> bool:
        return any(selects(name, path) for name in self.names)

    def stopped(self, params: Any) -> Any:
        """The parameters, those of frozen parts without a gradient: nothing before the first trained part is differentiated."""

        def stop(path, leaf):
            frozen = jax.tree_util.keystr(path, simple=True, separator="/") in self
            return jax.lax.stop_gradient(leaf) if frozen else leaf

        return jax.tree_util.tree_map_with_path(stop, params) if self.names else params

    @contextlib.contextmanager
    def held(self, parts: Iterable[str]) -> Iterator[None]:
        """Inside, batch normalizations of frozen parts do not train.

        Args:
          parts: top-level names of the parameters, any of which a network may be.
        """
        if not (self.names and self.statistics):
            yield
            return
        parts = tuple(parts)

        def hold(call, arguments, options, context):
            path = "/".join(context.module.path)
            if (
                isinstance(context.module, BatchNorm | MaskedBatchNorm)
                and context.method_name == "__call__"
                and any(f"{part}/{path}" in self for part in parts)
            ):
                options = {**options, "train": False}
            return call(*arguments, **options)

        with nn.intercept_methods(hold):
            yield
