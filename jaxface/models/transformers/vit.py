"""The plain vision transformer (arXiv:2010.11929; sizes tiny and small of arXiv:2012.12877)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.models.registry import MODELS

POOLS = ("class", "mean")


class ViT(nn.Module):
    """Pre-norm vision transformer.

        tokens  = Dense(patches) (+ class token) + learned positions
        tokens += attention(LayerNorm(tokens));  tokens += mlp(LayerNorm(tokens))        `depth` times
        output  = Dense(LayerNorm(tokens) of the class token, or their mean)

    Args:
      embedding: features of the last Dense layer: the size of an embedding, or the number of classes; None leaves it out.
      dim: token size D; a multiple of `heads`.
      depth: transformer blocks.
      heads: attention heads.
      patch: side of a square patch in pixels; H and W need to be multiples of it, or a call raises UserError.
      pool: "class" (a learned token is read out) or "mean" (no such token).
      dropout: rate after the positions and in each block's two branches, in [0, 1).
      drop_path: rate at which an example skips a branch in the last block; it grows linearly from 0 in the first
        (stochastic depth, arXiv:1603.09382).

    image [B, H, W, C] float -> [B, E] float32. The positions are learned for the plane the model was initialized with.
    `dtype` is that of the blocks; LayerNorm statistics, softmax and head are float32.
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

    def __post_init__(self):
        if self.pool not in POOLS:
            raise UserError(f"pool: needs one of {', '.join(POOLS)}, got {self.pool!r}")
        if self.dim % self.heads:
            raise UserError(f"dim: needs a multiple of heads, {self.heads}, got {self.dim}")
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        if image.shape[1] % self.patch or image.shape[2] % self.patch:
            raise UserError(
                f"image_size: needs a multiple of the patch, which has {self.patch} pixels, got {image.shape[1:3]}"
            )
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        size = (self.patch, self.patch)
        x = nn.Conv(self.dim, size, size, padding="VALID", name="patches", **types)(image.astype(self.dtype))
        x = x.reshape(x.shape[0], -1, self.dim)
        if self.pool == "class":
            token = self.param("class_token", nn.initializers.zeros, (1, 1, self.dim), self.param_dtype)
            x = jnp.concatenate(
                [jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.dim)), x], axis=1
            )
        positions = self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]), self.param_dtype)
        x = x + positions.astype(x.dtype)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            x = Block(self.heads, dropout=self.dropout, drop_path=rate, name=f"block{i + 1}", **types)(
                x, train=train
            )

        x = nn.LayerNorm(epsilon=1e-6, param_dtype=self.param_dtype, name="head_norm")(x)
        x = x[:, 0] if self.pool == "class" else jnp.mean(x, axis=1)
        if self.embedding is None:
            return x
        return nn.Dense(self.embedding, param_dtype=self.param_dtype, name="head_dense")(x)


class Block(nn.Module):
    """Self-attention and a two-layer perceptron (4 D hidden units, GELU), each normalized before and added after.

    tokens [B, N, D] -> [B, N, D].
    """

    heads: int
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dim = tokens.shape[-1]
        dense = {"kernel_init": nn.initializers.xavier_uniform(), **types}

        y = nn.LayerNorm(epsilon=1e-6, name="norm1", **types)(tokens)
        y = SelfAttention(self.heads, name="attention", **types)(y)
        tokens = tokens + self._branch(y, train)

        y = nn.LayerNorm(epsilon=1e-6, name="norm2", **types)(tokens)
        y = nn.gelu(nn.Dense(4 * dim, name="expand", **dense)(y), approximate=False)
        y = nn.Dense(dim, name="project", **dense)(y)
        return tokens + self._branch(y, train)

    def _branch(self, y: jax.Array, train: bool) -> jax.Array:
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        # One draw for all tokens of an example: the whole branch is skipped or kept.
        return nn.Dropout(self.drop_path, broadcast_dims=(1, 2))(y, deterministic=not train)


class SelfAttention(nn.Module):
    """softmax(q kᵀ / sqrt(D / heads)) v for each head, then a Dense layer. tokens [B, N, D] -> [B, N, D]."""

    heads: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        batch, count, dim = tokens.shape
        dense = {
            "kernel_init": nn.initializers.xavier_uniform(),
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        qkv = nn.Dense(3 * dim, name="qkv", **dense)(tokens)
        query, key, value = jnp.moveaxis(qkv.reshape(batch, count, 3, self.heads, dim // self.heads), 2, 0)
        mixed = jax.nn.dot_product_attention(query, key, value)
        return nn.Dense(dim, name="out", **dense)(mixed.reshape(batch, count, dim))


MODELS.update(
    {
        "vit_tiny": partial(ViT, dim=192, depth=12, heads=3),
        "vit_small": partial(ViT, dim=384, depth=12, heads=6),
        "vit_base": partial(ViT, dim=768, depth=12, heads=12),
        "vit_large": partial(ViT, dim=1024, depth=24, heads=16),
    }
)
