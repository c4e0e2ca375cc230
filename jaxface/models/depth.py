"""The order of a network's parts from the image on, as layer-wise learning rates need it."""

from collections.abc import Sequence

import flax.linen as nn

from jaxface.errors import UserError

DepthOrder = tuple[tuple[str, ...], ...]
"""Groups of names of parts, each behind the one before; a name stands for what begins with it, up to a `/` or `_`."""


def stage_blocks(blocks: Sequence[int], block: str = "block") -> DepthOrder:
    """`stage1_block1`, `stage1_block2`, …, `stage2_block1`, …, each a group, for this many blocks per stage."""
    return tuple(
        (f"stage{i}_{block}{j}",) for i, count in enumerate(blocks, start=1) for j in range(1, count + 1)
    )


def depth_order(module: nn.Module) -> DepthOrder:
    """What a network declares by its method `depth_order`.

    Raises:
      UserError: it declares none.
    """
    declared = getattr(module, "depth_order", None)
    if declared is None:
        raise UserError(
            f"layer_decay: needs a network that declares an order, {type(module).__name__} does not"
        )
    return declared()
