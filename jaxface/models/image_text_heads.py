"""What is trained beside an image network and a text tower to learn images from captions (arXiv:2110.05208, 2111.08687).

Methods: intern
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.layers.norm import BatchNorm


class ImageTextHeads(nn.Module):
    """Projections and predictors on pooled features, words and a map; methods stand for the parts.

        sentences of an image  u = pooled W
        views                  z = BN(W3 ReLU(BN(W2 ReLU(BN(W1 pooled)))));   p = W5 ReLU(BN(W4 z))
        words                  logits = LayerNorm(GELU(W6 word)) W7
        places                 g = W9 ReLU(BN(W8 map))                         of the map's own width

    Args:
      features: D of u.
      projected, hidden: sizes of z and inside of p.
      vocabulary: of the words. word_width: of a word's features.
      place_width: of the map; None leaves the places out.
      start: of θ, where exp(θ) is the scale of the logits; `logit_scale` gives it, at most 100.

    Normalizations and logits are float32 in the last layers; `dtype` is that of the others.
    """

    features: int
    vocabulary: int
    word_width: int
    place_width: int | None = None
    projected: int = 1024
    hidden: int = 512
    start: float = 2.659260036932778
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def dense(size, **options):
            return nn.Dense(size, **types, **options)

        self.image_projection = nn.Dense(self.features, use_bias=False, param_dtype=self.param_dtype)
        self.project = [dense(self.projected, use_bias=False) for _ in range(3)]
        self.project_norm = [BatchNorm(**types) for _ in range(3)]
        self.predict_in, self.predict_norm = dense(self.hidden, use_bias=False), BatchNorm(**types)
        self.predict_out = dense(self.projected)
        self.theta = self.param("logit_scale", nn.initializers.constant(self.start), ())
        self.words_in, self.words_norm = dense(self.word_width), nn.LayerNorm(epsilon=1e-5, **types)
        self.words_out = nn.Dense(self.vocabulary, param_dtype=self.param_dtype)
        if self.place_width is not None:
            self.places_in = dense(self.place_width, use_bias=False)
            self.places_norm, self.places_out = BatchNorm(**types), dense(self.place_width)

    def __call__(self, pooled: jax.Array, words: jax.Array, places: jax.Array | None, *, train: bool):
        """All of it, to initialize."""
        shown = None if self.place_width is None else self.places(places, train=train)
        return self.images(pooled), self.views(pooled, train=train), self.words(words), shown

    def logit_scale(self) -> jax.Array:
        """exp(θ), at most 100."""
        return jnp.minimum(jnp.exp(self.theta), 100.0)

    def images(self, pooled: jax.Array) -> jax.Array:
        """[B, D] float32, not normalized."""
        return self.image_projection(pooled.astype(jnp.float32))

    def views(self, pooled: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """(p, z), [B, projected] each, of features that are not normalized."""
        z = pooled.astype(self.dtype)
        for i, (layer, norm) in enumerate(zip(self.project, self.project_norm, strict=True)):
            z = norm(layer(z), train=train)
            z = nn.relu(z) if i < 2 else z
        hidden = nn.relu(self.predict_norm(self.predict_in(z), train=train))
        return self.predict_out(hidden), z

    def words(self, words: jax.Array) -> jax.Array:
        """Logits [B, L, V] float32 of words [B, L, word_width]."""
        return self.words_out(self.words_norm(nn.gelu(self.words_in(words))).astype(jnp.float32))

    def places(self, level: jax.Array, *, train: bool) -> jax.Array:
        """g [B, h, w, place_width] of a map of that width."""
        hidden = nn.relu(self.places_norm(self.places_in(level), train=train))
        return self.places_out(hidden)
