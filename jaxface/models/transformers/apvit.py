"""APViT: a vision transformer over a convolutional map, with attentive pooling of patches and tokens (arXiv:2212.05463)."""

import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import check_number
from jaxface.errors import UserError
from jaxface.layers.apvit import (
    KEEP_RATE,
    ClassAttention,
    PatchPooling,
    PatchScore,
    TokenPooling,
    TokenScore,
    gather_tokens,
)
from jaxface.layers.attention import Attention
from jaxface.layers.remat import Remat
from jaxface.models.depth import DepthOrder
from jaxface.models.recognition.iresnet import IResNetStages
from jaxface.models.registry import MODELS
from jaxface.models.transformers.vit import Block, ViT

Stem = Literal["iresnet", "strided"]


class StridedStem(nn.Module):
    """Convolutions 3x3 of stride 2, each with a rectifier: a stem to be trained from scratch on small images.

    image [B, H, W, C] -> [B, H / 2^L, W / 2^L, F], rounded up, for L numbers of channels of which F is the last.
    """

    channels: tuple[int, ...] = (16, 32)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        del train
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = image
        for i, channels in enumerate(self.channels, start=1):
            layer = nn.Conv(
                channels,
                (3, 3),
                2,
                padding=1,
                kernel_init=nn.initializers.he_normal(),
                name=f"conv{i}",
                **types,
            )
            x = nn.relu(layer(x))
        return x


class APViT(nn.Module):
    """A `ViT` over the map of a convolutional stem, in which telling patches and tokens alone go on.

        map     = stem(image);   F = conv1x1(map)
        tokens  = class token, (F + positions)[k places with the highest scores]              attentive patch pooling
        tokens  = block(tokens), which keeps its share of them between attention and perceptron    attentive token pooling
        output  = head(LayerNorm(class token))

    Args:
      embedding: number of classes, of a last layer that starts at zero; None gives the features of the class token.
      keep_num: k, places of the map that become tokens; None keeps all, right for a stem that is trained from scratch: nothing
        trains the score, which a pretrained face network brings with it.
      keep_rates: share of the tokens that each block keeps, in (0, 1]; one per block.
      app_score, atp_score: how places and tokens are scored.
      stem: "iresnet" (`IResNetStages`) or "strided" (`StridedStem`).
      stages, stem_stride, block: of the former; its weights are those of an `IResNet` of that unit. As published the first three
        stages of iResNet-50.
      channels: of its stages, or of the layers of the latter.
      dim, depth, heads, mlp_ratio, dropout, drop_path: of the transformer (`ViT`, `Block`).
      remat: "block" stores the inputs of residual units and blocks alone for the backward pass.

    image [B, H, W, C] float in [-1, 1], H = W (112 as published: 14x14 places) -> [B, E] float32. The queries, keys and values
    have no bias. With everything kept it is the plain hybrid. `kept_patches` tells which patches reached which block.

    Raises:
      UserError: a field out of its range; a call with an image that is not square, or of fewer places than `keep_num`.
    """

    embedding: int | None = 7
    keep_num: int | None = None
    keep_rates: tuple[float, ...] = (1.0,) * 4 + (0.9,) * 4
    app_score: PatchScore = "sum_abs"
    atp_score: TokenScore = "sum_logits"
    stem: Stem = "iresnet"
    stages: tuple[int, ...] = (3, 4, 14)
    channels: tuple[int, ...] = (64, 128, 256)
    stem_stride: int = 1
    block: str = "sface"
    dim: int = 768
    depth: int = 8
    heads: int = 8
    mlp_ratio: float = 3.0
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        if len(self.keep_rates) != self.depth:
            raise UserError(
                f"keep_rates: needs one for each of {self.depth} blocks, got {len(self.keep_rates)}"
            )
        for rate in self.keep_rates:
            check_number("keep_rates", rate, KEEP_RATE)
        for name, options in (("stem", Stem), ("app_score", PatchScore), ("atp_score", TokenScore)):
            if getattr(self, name) not in get_args(options):
                raise UserError(
                    f"{name}: needs one of {', '.join(get_args(options))}, got {getattr(self, name)!r}"
                )
        if self.keep_num is not None and self.keep_num < 1:
            raise UserError(f"keep_num: needs at least 1, got {self.keep_num}")
        if self.dim % self.heads:
            raise UserError(f"dim: needs a multiple of heads, {self.heads}, got {self.dim}")
        super().__post_init__()

    def setup(self):
        self.transformer = ViT(
            embedding=self.embedding,
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            patch=1,
            dropout=self.dropout,
            drop_path=self.drop_path,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            unit=tuple(self._unit(rate) for rate in self.keep_rates),
            dense=functools.partial(nn.Dense, kernel_init=nn.initializers.zeros),
            stem=self._stem(),
            select=None
            if self.keep_num is None
            else functools.partial(PatchPooling, self.keep_num, self.app_score),
            remat=self.remat,
        )
        nn.share_scope(self, self.transformer)

    def _stem(self):
        if self.stem == "strided":
            return functools.partial(StridedStem, self.channels)
        return functools.partial(
            IResNetStages,
            self.stages,
            self.channels,
            stem_stride=self.stem_stride,
            block=self.block,
            remat=self.remat,
        )

    def _unit(self, rate: float):
        if rate == 1:
            return functools.partial(
                Block,
                mlp_ratio=self.mlp_ratio,
                attention=functools.partial(Attention, qkv_bias=False),
            )
        return functools.partial(
            Block,
            mlp_ratio=self.mlp_ratio,
            attention=functools.partial(Attention, qkv_bias=False, mix=ClassAttention),
            select=functools.partial(TokenPooling, rate, self.atp_score),
        )

    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        if image.shape[1] != image.shape[2]:
            raise UserError(f"image_size: needs a square, got {image.shape[1]}x{image.shape[2]}")
        return self.transformer(image, train=train)

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the head left out."""
        return (
            ("stem",),
            ("patches", "class_token", "positions"),
            *((f"block{i + 1}",) for i in range(self.depth)),
        )


def kept_patches(network: APViT, variables: Mapping, image: jax.Array) -> jax.Array:
    """How many blocks each patch went through whole, attention and perceptron.

    Args:
      network: the network.
      variables: its parameters and statistics.
      image: [B, H, W, C] float.

    Returns:
      [B, N] int32 in [0, depth] for the N places of the map in raster order; 0 also for what never became a token.
    """
    output, sown = network.apply(variables, image, mutable=["kept_tokens"])
    sown = sown.get("kept_tokens", {})
    total = variables["params"]["positions"].shape[1] - 1
    ids = jnp.broadcast_to(jnp.arange(total, dtype=jnp.int32), (len(output), total))
    if "select" in sown:
        ids = sown["select"]["ids"]
    blocks = jnp.zeros((len(output), total), jnp.int32)
    rows = jnp.arange(len(output))[:, None]
    for i in range(network.depth):
        if f"block{i + 1}" in sown:
            left = sown[f"block{i + 1}"]["select"]["ids"]
            ids = gather_tokens(ids[..., None], left)[..., 0]
        blocks = blocks.at[rows, ids].add(1)
    return blocks


_laptop = functools.partial(APViT, keep_rates=(1.0, 1.0, 0.9, 0.9), depth=4, heads=4, mlp_ratio=2.0)

MODELS.update(
    {
        "apvit": APViT,
        # Made to train on two CPU cores: 6 x 6 places of images of 48 pixels, and of 24.
        "apvit_pico": functools.partial(
            _laptop, stages=(1, 1), channels=(16, 32), stem_stride=2, block="insightface", dim=64
        ),
        "apvit_small": functools.partial(_laptop, stem="strided", channels=(16, 32), dim=32),
    }
)
