"""Plain vision transformers: ViT (arXiv:2010.11929) and DeiT, which has a second token to be taught by (arXiv:2012.12877)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.activation import exact_gelu
from jaxface.layers.attention import Attention, LayerScale
from jaxface.layers.remat import Remat, run_block
from jaxface.models.depth import DepthOrder
from jaxface.models.registry import MODELS

POOLS = ("class", "mean")


class Block(nn.Module):
    """Attention and a two-layer perceptron, each normalized before and added after.

        tokens += s1 · attention(LayerNorm(tokens));   tokens += s2 · project(φ(expand(LayerNorm(tokens))))

    Args:
      heads: of the attention.
      mlp_ratio: hidden units of the perceptron per channel.
      layer_scale: start of s1 and s2 per channel (`LayerScale`); None has none.
      dropout: rate in both branches, in [0, 1).
      drop_path: rate at which an example skips a branch, in [0, 1).
      attention: makes the attention of (heads, dtype=, param_dtype=, name=): `Attention` with other fields, or another module.
      dense: makes the perceptron's layers, as in `Attention`.
      activation: φ.
      select: makes the module `select` of (tokens [B, N, D], second value of the attention) -> [B, M, D], which drops tokens
        between the two branches; None drops none.
      epsilon: of both normalizations.

    tokens [B, N, D] -> [B, N, D], or [B, M, D] where tokens were dropped; `mask` goes to the attention. Where the attention
    returns a pair, so does the block, with the same second value.
    """

    heads: int
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    attention: Callable[..., nn.Module] = Attention
    dense: Callable[..., nn.Module] = nn.Dense
    activation: Callable[[jax.Array], jax.Array] = exact_gelu
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    select: Callable[..., nn.Module] | None = None
    epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, mask: jax.Array | None = None, train: bool
    ) -> jax.Array | tuple[jax.Array, Any]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dim = tokens.shape[-1]
        dense = {"kernel_init": nn.initializers.xavier_uniform(), **types}

        y = nn.LayerNorm(epsilon=self.epsilon, name="norm1", **types)(tokens)
        y = self.attention(self.heads, name="attention", **types)(y, mask=mask, train=train)
        y, *side = y if isinstance(y, tuple) else (y,)
        tokens = tokens + self._branch(y, "scale1", train)
        if self.select is not None:
            tokens = self.select(name="select")(tokens, *side)

        y = nn.LayerNorm(epsilon=self.epsilon, name="norm2", **types)(tokens)
        y = self.activation(self.dense(round(self.mlp_ratio * dim), name="expand", **dense)(y))
        y = self.dense(dim, name="project", **dense)(y)
        tokens = tokens + self._branch(y, "scale2", train)
        return (tokens, *side) if side else tokens

    def _branch(self, y: jax.Array, scale: str, train: bool) -> jax.Array:
        if self.layer_scale is not None:
            y = LayerScale(self.layer_scale, self.dtype, self.param_dtype, name=scale)(y)
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        # One draw for all tokens of an example: the whole branch is skipped or kept.
        return nn.Dropout(self.drop_path, broadcast_dims=(1, 2))(y, deterministic=not train)


class Encoder(nn.Module):
    """Takes tokens through blocks, one after another: what a network of its own order of blocks, or with something between
    them, replaces.

    blocks, of tokens [B, N, D], `mask` and `train`; tokens [B, N, D] -> [B, M, D].
    """

    @nn.compact
    def __call__(
        self,
        blocks: Sequence[nn.Module],
        tokens: jax.Array,
        *,
        mask: jax.Array | None = None,
        remat: Remat = "none",
        train: bool,
    ) -> jax.Array:
        masked = {} if mask is None else {"mask": mask}
        for block in blocks:
            tokens = run_block(block, tokens, remat=remat, train=train, **masked)
            tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        return tokens


class ViT(nn.Module):
    """Pre-norm vision transformer.

        tokens  = patches(image) (+ class token, + distillation token) + learned positions
        tokens  = block(tokens)                                                           `depth` times
        output  = head(LayerNorm(tokens) of the class token, or of their mean)
                  ½ (head(class token) + distillation_head(distillation token))           with `distilled`

    Args:
      embedding: features of the last Dense layer: the size of an embedding, or the number of classes; None leaves it out.
      dim: token size D; a multiple of `heads`.
      depth: transformer blocks.
      heads: attention heads.
      patch: side of a square patch in pixels; H and W need to be multiples of it, or a call raises UserError.
      pool: "class" (a learned token is read out) or "mean" (no such token).
      distilled: a second token with a head of its own, which learns from a teacher; with pool "class".
      layer_scale: start of a learned factor per channel on each branch; None has none.
      dropout: rate after the positions and in each block's two branches, in [0, 1).
      drop_path: rate at which an example skips a branch in the last block; it grows linearly from 0 in the first
        (stochastic depth, arXiv:1603.09382).
      unit: makes a block of (heads, layer_scale=, dropout=, drop_path=, dtype=, param_dtype=, name=): `Block`, or with other
        fields, `functools.partial(Block, attention=functools.partial(Attention, mix=…))`; or a sequence, one for each block.
      encoder: makes the module that takes tokens through the blocks, as `Encoder`, which it does in order; it may drop tokens.
        The network's `mask`, where one is given, goes to it.
      stem: makes the network `stem` of (image, train=) -> map [B, h, w, C] that stands before the patches, whose pixels are then
        places of the map (a hybrid: patch 1 makes a token of each); None has none.
      select: makes the module `select` of (patches [B, N, D], their positions [1, N, D]) -> [B, M, D], which adds the positions
        and may drop patches; None drops none.
      conv: makes the layer of the patches, as `flax.linen.Conv`.
      dense: makes the heads, as `flax.linen.Dense`.
      remat: "block" stores the blocks' inputs alone for the backward pass.

    image [B, H, W, C] float -> [B, E] float32; with `separate`, of a distilled network, the outputs of its two heads, which are
    averaged else. The positions are learned for the plane the model was initialized with. `dtype` is that of the blocks;
    LayerNorm statistics, softmax and heads are float32.
    """

    embedding: int | None = 512
    dim: int = 192
    depth: int = 12
    heads: int = 3
    patch: int = 16
    pool: str = "class"
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    distilled: bool = False
    layer_scale: float | None = None
    unit: Callable[..., nn.Module] | Sequence[Callable[..., nn.Module]] = Block
    encoder: Callable[..., nn.Module] = Encoder
    conv: Callable[..., nn.Module] = nn.Conv
    dense: Callable[..., nn.Module] = nn.Dense
    stem: Callable[..., nn.Module] | None = None
    select: Callable[..., nn.Module] | None = None
    remat: Remat = "none"

    def __post_init__(self):
        if self.pool not in POOLS:
            raise UserError(f"pool: needs one of {', '.join(POOLS)}, got {self.pool!r}")
        if self.distilled and self.pool != "class":
            raise UserError(f"distilled: needs pool 'class', got {self.pool!r}")
        if self.dim % self.heads:
            raise UserError(f"dim: needs a multiple of heads, {self.heads}, got {self.dim}")
        if isinstance(self.unit, Sequence) and len(self.unit) != self.depth:
            raise UserError(f"unit: needs one for each of {self.depth} blocks, got {len(self.unit)}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        separate: bool = False,
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        if separate and not self.distilled:
            raise UserError("separate: needs a distilled network, which has two heads")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = image.astype(self.dtype)
        if self.stem is not None:
            x = self.stem(name="stem", **types)(x, train=train)
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise UserError(
                f"image_size: needs a multiple of the patch, which has {self.patch} pixels, got {x.shape[1:3]}"
            )

        size = (self.patch, self.patch)
        x = self.conv(self.dim, size, size, padding="VALID", name="patches", **types)(x)
        x = x.reshape(x.shape[0], -1, self.dim)
        extra = ["class_token"] * (self.pool == "class") + ["distillation_token"] * self.distilled
        tokens = [
            self.param(name, nn.initializers.zeros, (1, 1, self.dim), self.param_dtype) for name in extra
        ]
        tokens = [jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.dim)) for token in tokens]
        shape = (1, len(tokens) + x.shape[1], self.dim)
        positions = self.param("positions", nn.initializers.normal(0.02), shape, self.param_dtype)
        first, positions = jnp.split(positions.astype(x.dtype), [len(tokens)], axis=1)
        x = x + positions if self.select is None else self.select(name="select")(x, positions)
        x = jnp.concatenate([jnp.concatenate(tokens, axis=1) + first, x], axis=1) if tokens else x
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        units = self.unit if isinstance(self.unit, Sequence) else [self.unit] * self.depth
        blocks = [
            unit(
                self.heads,
                layer_scale=self.layer_scale,
                dropout=self.dropout,
                drop_path=self.drop_path * i / max(self.depth - 1, 1),
                name=f"block{i + 1}",
                **types,
            )
            for i, unit in enumerate(units)
        ]
        masked = {} if mask is None else {"mask": mask}
        x = self.encoder(name="encoder")(blocks, x, remat=self.remat, train=train, **masked)

        x = nn.LayerNorm(epsilon=1e-6, param_dtype=self.param_dtype, name="head_norm")(x)
        pooled = [x[:, i] for i in range(len(tokens))] or [jnp.mean(x, axis=1)]
        if self.embedding is not None:
            pooled = [
                self.dense(self.embedding, param_dtype=self.param_dtype, name=name)(one)
                for name, one in zip(("head_dense", "distillation_dense"), pooled, strict=False)
            ]
        if separate:
            return tuple(pooled)
        return (pooled[0] + pooled[1]) / 2 if self.distilled else pooled[0]

    def depth_order(self) -> DepthOrder:
        """Names of the parts from the image on, the heads left out."""
        first = [] if self.stem is None else [("stem",)]
        first.append(("patches", "class_token", "distillation_token", "positions"))
        return *first, *((f"block{i + 1}",) for i in range(self.depth))


_tiny = partial(ViT, dim=192, depth=12, heads=3)
_small = partial(ViT, dim=384, depth=12, heads=6)
_base = partial(ViT, dim=768, depth=12, heads=12)

MODELS.update(
    {
        "vit_tiny": _tiny,
        "vit_small": _small,
        "vit_base": _base,
        "vit_large": partial(ViT, dim=1024, depth=24, heads=16),
        # DeiT without its second token is the ViT of that size.
        "deit_tiny_distilled": partial(_tiny, distilled=True),
        "deit_small_distilled": partial(_small, distilled=True),
        "deit_base_distilled": partial(_base, distilled=True),
    }
)
