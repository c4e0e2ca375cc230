"""Up-G: several expert backbones as one generalist, joined by transfer modules (arXiv:2111.08687)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.intern import TransferModule
from jaxface.models.staged import Features, StagedBackbone


class Generalist(nn.Module):
    """The path of a main expert through which it sees the features of the others.

        x_i^m ← stage_i(x_{i-1}^m) + Σ_a Σ_{j≤i} φ^{m←a}_{j→i}( sg(x_j^a) ),   i = 1 … `stages`

    The auxiliary stages are computed first, from their own features alone; later stages of the main path get nothing. At the
    start every φ is 0, and the output is the main expert's, bit for bit. It is two backbones and bridges, not one trunk.

    Args:
      backbones: one for each expert; parameters have these names.
      main: which of them is trained. The others are auxiliary; no gradient reaches them, and their batch statistics stay.
      stages: how many of the first stages receive.

    image [B, H, W, C] -> the pooled features [B, D] of the main path; `features` gives its maps besides.

    Raises:
      UserError: a main expert that is none of them or has no other beside it, backbones of other strides, or more stages than
        there are.
    """

    backbones: Mapping[str, Any]
    main: str
    stages: int = 3
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.main not in self.backbones:
            raise UserError(f"main: needs one of {', '.join(self.backbones)}, got {self.main!r}")
        if len(self.backbones) < 2:
            raise UserError("backbones: needs a main and an auxiliary one, got 1")
        strides = {name: tuple(b.level_strides)[: self.stages] for name, b in self.backbones.items()}
        for name, values in strides.items():
            if len(values) < self.stages:
                raise UserError(f"stages: {name} has {len(values)}, {self.stages} were to receive")
            if values != strides[self.main]:
                raise UserError(
                    f"backbones: needs maps of the same strides, {self.main} has {strides[self.main]} and {name} {values}"
                )
        super().__post_init__()

    def __hash__(self):
        return hash((tuple(self.backbones.items()), self.main, self.stages, self.dtype))

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """Names of the other experts."""
        return tuple(name for name in self.backbones if name != self.main)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Of the main path's maps."""
        return tuple(self.backbones[self.main].level_channels)

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Of the main path's maps."""
        return tuple(self.backbones[self.main].level_strides)

    def setup(self):
        self.experts = {
            name: backbone.clone(parent=None, name=None) for name, backbone in self.backbones.items()
        }
        self.transfers = {
            name: TransferModule(
                self.level_channels[: self.stages], self.level_strides[: self.stages], dtype=self.dtype
            )
            for name in self.auxiliary
        }

    def _maps(self, backbone: StagedBackbone, image: jax.Array) -> list[jax.Array]:
        maps, x = [], image
        for index in range(self.stages):
            x = backbone.level(index, x)
            maps.append(x)
        return maps

    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        return self.features(image, train=train)["pooled"]

    def features(self, image: jax.Array, *, train: bool = False, trunk: bool = True) -> Features:
        """Features of the main path; with `trunk` False the main expert is in evaluation mode while the transfers train."""
        auxiliary = {name: self._maps(self.experts[name], image) for name in self.auxiliary}
        main, taps, x = self.experts[self.main], [], image
        for index in range(len(self.level_strides)):
            x = main.level(index, x, train=train and trunk)
            if index < self.stages:
                for name, maps in auxiliary.items():
                    x = x + self.transfers[name](maps, index + 1, train=train)
            taps.append(x)
        return {"taps": tuple(taps), "pooled": main.pool(x, train=train and trunk)}


def expert_parameters(name: str) -> str:
    """Where a `Generalist` keeps the parameters, and batch statistics, of an expert."""
    return f"experts_{name}"


def transfer_parameters(name: str) -> str:
    """Where it keeps those of the transfers from an auxiliary expert."""
    return f"transfers_{name}"


def joined_variables(fresh: Mapping, experts: Mapping[str, Mapping]) -> dict:
    """Variables of a `Generalist` whose experts are trained ones.

    Args:
      fresh: {"params", "batch_stats"} that `Generalist.init` has made.
      experts: name -> {"params", and "batch_stats" where it has some} of each expert.

    Returns:
      The variables, transfers as `fresh` has them.
    """
    joined = {collection: dict(values) for collection, values in fresh.items()}
    for name, variables in experts.items():
        for collection, values in variables.items():
            joined[collection][expert_parameters(name)] = values
    return joined
