"""Rematerialization: a block's inner arrays are computed again in the backward pass instead of being stored.

Methods: apvit, fmvit, intern, sparsevit
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn

from jaxface.errors import UserError

Remat = Literal["none", "block"]
"""What a network computes twice: nothing, or each of its blocks, of which only the inputs are stored then."""


def run_block(
    module: nn.Module, *arrays: Any, remat: Remat, call: Callable[..., Any] | None = None, **options: Any
) -> Any:
    """`module(*arrays, **options)`, computed again in the backward pass where `remat` is "block" (arXiv:1604.06174).

    Parameters, statistics, random keys, outputs and gradients are those of the plain call; what falls is the memory between the
    two passes, to the arrays and what the rest of the network stores.

    Args:
      module: a submodule; with `call`, the module in whose compact method this stands.
      *arrays: differentiated arguments.
      remat: "none" or "block".
      call: (module, *arrays) -> output instead, for a block that is no module of its own; it may make submodules.
      **options: static keyword arguments; with `train=False` nothing is computed again.

    Raises:
      UserError: another `remat`.
    """
    if remat not in get_args(Remat):
        raise UserError(f"remat: needs one of {', '.join(get_args(Remat))}, got {remat!r}")

    def run(module, *arrays):
        return (module if call is None else _bound(call, module))(*arrays, **options)

    again = remat == "block" and options.get("train", True)
    return nn.remat(run)(module, *arrays) if again else run(module, *arrays)


def _bound(call, module):
    return lambda *arrays, **options: call(module, *arrays, **options)
