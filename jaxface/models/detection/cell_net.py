"""A small detector of centers, cell by cell, around one context layer: what a claim about that layer needs, in seconds.

Methods: cassod
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.cassod import CASCADE_KINDS, CascadedDilatedConv
from jaxface.layers.depthwise import DepthwiseConv
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder

Structure = Literal["pointwise", "dense", "separable", "bottleneck", "ddp", "dc", "cc", "cd"]
"""How the 3×3 convolution of a `CellNet` is made."""
STRUCTURES = ("pointwise", "dense", "separable", "bottleneck", *CASCADE_KINDS)
"""All of them."""

_unit = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class CellNet(nn.Module):
    """Logits of "a face has its center here", one for each cell of 2×2 pixels.

        x = ReLU(conv3×3, stride 2);   x = ReLU(x + context(x));   x = ReLU(conv1×1);   logits = conv1×1 - 4

    The context is a linear layer of `width` channels in and out, with a bias:

    | structure | layer | weights, width 16 |
    |---|---|---|
    | pointwise | 1×1 | 256 |
    | dense | 3×3 of the dilation | 2304 |
    | separable | depthwise 3×3 of the dilation, 1×1 | 400 |
    | bottleneck | 3×3 of the dilation to `narrow` channels, 1×1 | 1120 |
    | ddp, dc, cc, cd | `CascadedDilatedConv` of the dilation | 384, 1088, 2048, 1088 |

    All begin alike: unit gain, and He's in the layer's last linear operation. With `remat` "block" the backward pass computes the
    context again.

    image [B, H, W, C] -> [B, ⌈H/2⌉, ⌈W/2⌉] float32.

    Raises:
      UserError: an unknown structure, or what `CascadedDilatedConv` refuses.
    """

    structure: Structure = "dc"
    dilation: int = 2
    width: int = 16
    narrow: int = 7
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(self.width, (3, 3), 2, padding=1, kernel_init=_he, name="stem", **types)(image)
        x = nn.relu(x)
        x = run_block(self, x, remat=self.remat, call=_with_context, train=train, types=types)
        x = nn.relu(nn.Conv(self.width, (1, 1), kernel_init=_he, name="hidden", **types)(x))
        start = nn.initializers.constant(-4.0)  # few cells hold a center
        logits = nn.Conv(1, (1, 1), kernel_init=_unit, bias_init=start, name="logits", **types)(x)
        return logits[..., 0].astype(jnp.float32)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the last one left out."""
        return ("stem",), ("context",), ("hidden",)

    def _context(self, x, train, types):
        spread = {"padding": self.dilation, "kernel_dilation": self.dilation}
        if self.structure in CASCADE_KINDS:
            layer = CascadedDilatedConv(
                self.width, dilation=self.dilation, kind=self.structure, norm="none", name="context", **types
            )
            return layer(x, train=train)
        if self.structure == "pointwise":
            return nn.Conv(self.width, (1, 1), kernel_init=_he, name="context", **types)(x)
        if self.structure == "dense":
            return nn.Conv(self.width, (3, 3), kernel_init=_he, name="context", **spread, **types)(x)
        if self.structure == "separable":
            init = nn.initializers.normal(1 / 3)
            x = DepthwiseConv(
                (3, 3), 1, self.dilation, self.dilation, kernel_init=init, name="context_depthwise", **types
            )(x)
        elif self.structure == "bottleneck":
            x = nn.Conv(
                self.narrow,
                (3, 3),
                use_bias=False,
                kernel_init=_unit,
                name="context_narrow",
                **spread,
                **types,
            )(x)
        else:
            raise UserError(f"structure: needs one of {', '.join(STRUCTURES)}, got {self.structure!r}")
        return nn.Conv(self.width, (1, 1), kernel_init=_he, name="context", **types)(x)


def _with_context(net: CellNet, x: jax.Array, *, train: bool, types: dict) -> jax.Array:
    return nn.relu(x + net._context(x, train, types))


def context_weights(params: dict) -> int:
    """Weights of the context layer of a `CellNet`, its bias not counted."""
    context = {name: tree for name, tree in params.items() if name.startswith("context")}
    return sum(
        leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(context) if path[-1].key != "bias"
    )
