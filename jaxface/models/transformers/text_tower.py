"""A transformer of sentences, as the text tower beside an image network has it (arXiv:2103.00020).

Methods: intern
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.remat import Remat, run_block
from jaxface.models.transformers.vit import Block


class TextFeatures(NamedTuple):
    """What a tower says of sentences: `sentences` [B, E] float32 of their ends, not normalized; `words` [B, L, D] of all."""

    sentences: jax.Array
    words: jax.Array


class TextTower(nn.Module):
    """A pre-norm transformer over tokens, read out at the token that ends a sentence.

        x = table[tokens] + positions;   x = block(x)  `depth` times;   words = LayerNorm(x);   sentence = words[end] W

    Args:
      vocabulary, length: tokens that there are, and in a sentence.
      end, pad: numbers of the token that ends a sentence and of padding, which no token sees.
      features: E of a sentence.
      dim, depth, heads: of the transformer.
      causal: tokens see those before them alone, as in CLIP; otherwise all of a sentence, as who tells masked words needs it.
      remat: "block" stores the inputs of the blocks alone for the backward pass.

    tokens [B, L] integers -> `TextFeatures`. A sentence without an end is read at its last token.

    Raises:
      UserError: heads that do not divide D. AssertionError: sentences of another length.

    Example:
      >>> tower = TextTower(vocabulary=300, length=8, features=16, dim=32, depth=1, heads=2)
      >>> tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
      >>> features, _ = jax.eval_shape(lambda t: tower.init_with_output(jax.random.key(0), t, train=False), tokens)
      >>> features.sentences.shape, features.words.shape
      ((2, 16), (2, 8, 32))
    """

    vocabulary: int
    length: int = 77
    end: int = 2
    pad: int = 0
    features: int = 512
    dim: int = 512
    depth: int = 12
    heads: int = 8
    causal: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        if self.dim % self.heads:
            raise UserError(f"dim: needs a multiple of heads, {self.heads}, got {self.dim}")
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool = False) -> TextFeatures:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if tokens.shape[1] != self.length:
            raise AssertionError(f"tokens: need sentences of {self.length}, got {tokens.shape}")
        x = nn.Embed(
            self.vocabulary,
            self.dim,
            embedding_init=nn.initializers.normal(0.02),
            name="table",
            **types,
        )(tokens)
        positions = self.param(
            "positions", nn.initializers.normal(0.01), (self.length, self.dim), self.param_dtype
        )
        x = x + positions.astype(self.dtype)
        mask = (tokens != self.pad)[:, None, None, :]
        mask = mask | jnp.eye(
            self.length, dtype=bool
        )  # padding sees itself, so that no softmax is over nothing
        if self.causal:
            mask = mask & jnp.tril(jnp.ones((self.length, self.length), bool))
        for i in range(self.depth):
            block = Block(self.heads, name=f"block{i + 1}", **types)
            x = run_block(block, x, remat=self.remat, mask=mask, train=train)
        words = nn.LayerNorm(epsilon=1e-5, name="norm", param_dtype=self.param_dtype)(x)
        ends = jnp.where(
            jnp.any(tokens == self.end, axis=1),
            jnp.argmax(tokens == self.end, axis=1),
            self.length - 1,
        )
        last = jnp.take_along_axis(words, ends[:, None, None], axis=1)[:, 0]
        project = nn.Dense(
            self.features,
            use_bias=False,
            kernel_init=nn.initializers.normal(self.dim**-0.5),
            param_dtype=self.param_dtype,
            name="projection",
        )
        return TextFeatures(project(last).astype(jnp.float32), words)
