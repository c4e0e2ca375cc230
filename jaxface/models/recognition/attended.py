"""Networks that say where they look, and may see the rows of one task alone (ARI, arXiv:2208.12967).

Methods: lifelong
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.layers.lifelong import SpatialAttention, gem_pool
from jaxface.layers.norm import MaskedBatchNorm
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder, stage_blocks
from jaxface.models.registry import MODELS


class AttendedResNet(nn.Module):
    """A narrow residual network whose first features are weighted by an attention map over the plane.

        stem    conv3x3;  W = SpatialAttention;  ReLU(BN(W · conv))
        stages  two residual blocks each, all with stride 1; 2x2 max-pools behind those of `pool_after`
        head    GeM over the plane (p = 3), Dense without bias

    The published network for CIFAR-100 has the default widths and 1.40 million parameters.

    Args:
      embedding: features of the last Dense layer, the number of classes; None leaves it out.
      channels: channels of each stage; those of the stem are the first's.
      blocks: residual blocks of each stage.
      pool_after: stages behind which the plane is halved, from 1; 0 is the stem.
      remat: "block" stores the inputs of the residual blocks alone for the backward pass.

    image [B, H, W, C] -> [B, embedding] float32; with `attention=True` also W [B, H, W, 1]. `where` [B] bool are the rows that
    count for batch statistics in training. `dtype` is that of stem and stages; the head is float32.
    """

    attends: ClassVar[bool] = True

    embedding: int | None = 512
    channels: tuple[int, ...] = (21, 42, 85, 170)
    blocks: int = 2
    pool_after: tuple[int, ...] = (2, 3)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        where: jax.Array | None = None,
        attention: bool = False,
    ):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        features = nn.Conv(self.channels[0], (3, 3), name="stem_conv", **types)(image.astype(self.dtype))
        weights = SpatialAttention(name="stem_attention", **types)(features, train=train, where=where)
        features = features * weights.astype(self.dtype)
        x = nn.relu(MaskedBatchNorm(name="stem_norm", **types)(features, train=train, where=where))
        if 0 in self.pool_after:
            x = nn.max_pool(x, (2, 2), (2, 2))
        for i, width in enumerate(self.channels, start=1):
            for j in range(1, self.blocks + 1):
                block = AttendedBlock(width, widen=x.shape[-1] != width, name=f"stage{i}_block{j}", **types)
                x = run_block(block, x, remat=self.remat, train=train, where=where)
            if i in self.pool_after:
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = gem_pool(x)
        if self.embedding is not None:
            x = nn.Dense(self.embedding, use_bias=False, param_dtype=self.param_dtype, name="head_dense")(x)
        return (x, weights) if attention else x

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem",), *stage_blocks((self.blocks,) * len(self.channels))


class AttendedBlock(nn.Module):
    """relu( BN(conv(relu(BN(conv(x))))) + x ), with BN(conv(x)) instead of x where the channels change; all 3x3 with a bias.

    [B, H, W, C] -> [B, H, W, features].
    """

    features: int
    widen: bool
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, where: jax.Array | None = None) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def unit(x, name):
            x = nn.Conv(self.features, (3, 3), name=f"{name}_conv", **types)(x)
            return MaskedBatchNorm(name=f"{name}_norm", **types)(x, train=train, where=where)

        y = unit(nn.relu(unit(x, "first")), "second")
        return nn.relu(y + (unit(x, "shortcut") if self.widen else x))


class AttendedMLP(nn.Module):
    """The published network for MNIST: an attention map from a convolution weighs the pixels, then a perceptron.

        W = SpatialAttention(conv3x3 to 3 channels), one sigmoid;  flatten(W · x), Dense and ReLU per hidden layer, Dense

    Args:
      embedding: features of the last Dense layer, which has no bias; None leaves it out.
      hidden: features of the hidden layers.
      remat: "block" computes the hidden layers again in the backward pass.

    image [B, H, W, C] -> [B, embedding] float32; with `attention=True` also W [B, H, W, 1]. `where` changes nothing, as there
    are no batch statistics.
    """

    attends: ClassVar[bool] = True

    embedding: int | None = 512
    hidden: tuple[int, ...] = (400, 400)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        where: jax.Array | None = None,
        attention: bool = False,
    ):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = image.astype(self.dtype)
        features = nn.Conv(3, (3, 3), name="stem_conv", **types)(x)
        weights = SpatialAttention(normalize=False, name="stem_attention", **types)(features, train=train)
        x = (x * weights.astype(self.dtype)).reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden, start=1):
            layer = nn.Dense(width, name=f"hidden{i}", **types)
            x = run_block(layer, x, remat=self.remat, call=lambda layer, x: nn.relu(layer(x)))
        x = x.astype(jnp.float32)
        if self.embedding is not None:
            x = nn.Dense(self.embedding, use_bias=False, param_dtype=self.param_dtype, name="head_dense")(x)
        return (x, weights) if attention else x

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return ("stem",), *((f"hidden{i}",) for i in range(1, len(self.hidden) + 1))


MODELS.update({"attended_resnet": AttendedResNet, "attended_mlp": AttendedMLP})
