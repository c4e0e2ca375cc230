"""Attention of the transformers, which a method extends by its fields: another linear layer, or another mixing of values.

Methods: apvit, fmvit, intern, qdetr, sparsevit
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError


class DotProduct(nn.Module):
    """softmax(q kᵀ / √d) v for each head; softmax in float32.

    query [B, N, h, d], key and value [B, M, h, d] -> [B, N, h, d]. `mask` is bool, [B or 1, h or 1, N or 1, M]: where it is False
    a query does not see a key; each query needs a key that it sees. `bias` [B or 1, h or 1, N, M] is added to q kᵀ / √d.
    """

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        del train
        return jax.nn.dot_product_attention(query, key, value, bias, mask)


class Maps(nn.Module):
    """A mixing that also sows its attention maps [B, h, N, M] as `maps` into the collection "attention".

        maps = softmax(q kᵀ / √d + bias) of the float queries and keys, float32

    With it in place of its `mix`, a network has the same parameters under the same names:

        traced = network.clone(unit=partial(Block, attention=partial(Attention, mix=Maps)))
        _, sown = traced.apply(variables, images, mutable=["attention"])
        maps = sown["attention"]["block1"]["attention"]["mix"]["maps"][0]

    Args:
      mix: makes the mixing, as in `Attention`.
    """

    mix: Callable[..., nn.Module] = DotProduct

    def setup(self):
        self.inside = self.mix()
        nn.share_scope(self, self.inside)

    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        mask: jax.Array | None = None,
        **options: Any,
    ) -> Any:
        scores = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32)
        scores = scores / query.shape[-1] ** 0.5
        if (bias := options.get("bias")) is not None:
            scores = scores + bias.astype(scores.dtype)
        self.sow("attention", "maps", jax.nn.softmax(scores, axis=-1, where=mask))
        return self.inside(query, key, value, mask=mask, **options)


class RelativePositions(nn.Module):
    """One learned number per head and offset between two tokens of a window (arXiv:1803.02155, 2103.14030).

        bias[0, a, i, j] = table[(y_i - y_j + h - 1) (2 w - 1) + x_i - x_j + w - 1, a]

    Args:
      heads: of the attention.
      window: (h, w) tokens; token y w + x is that in row y, column x.

    () -> [1, heads, h w, h w] in `param_dtype`.
    """

    heads: int
    window: tuple[int, int]
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> jax.Array:
        height, width = self.window
        offsets = (2 * height - 1) * (2 * width - 1)
        table = self.param(
            "table", nn.initializers.truncated_normal(0.02), (offsets, self.heads), self.param_dtype
        )
        return jnp.moveaxis(table[relative_index(self.window)], -1, 0)[None]


def relative_index(window: tuple[int, int]) -> np.ndarray:
    """The row of the table of `RelativePositions` for every pair of tokens: [h w, h w] int32.

    Example:
      >>> relative_index((1, 3)).tolist()
      [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    """
    height, width = window
    y, x = (axis.reshape(-1) for axis in np.mgrid[:height, :width])
    rows, columns = y[:, None] - y + height - 1, x[:, None] - x + width - 1
    return (rows * (2 * width - 1) + columns).astype(np.int32)


class Attention(nn.Module):
    """Multi-head attention (arXiv:1706.03762): of tokens to themselves, or to those of another source.

        q, k, v = split(Dense_qkv(tokens));                            y = Dense_out(mix(q, k, v))
        q = Dense_query(tokens);  k, v = split(Dense_key_value(context))       with a context
        q = Dense_query(tokens);  k = Dense_key(context);  v = Dense_value(values)     with values of other tokens, too

    Args:
      heads: h, a divisor of D.
      qkv_bias: whether the layers that make q, k and v have a bias.
      dense: makes a linear layer of (features, use_bias=, kernel_init=, dtype=, param_dtype=, name=), such as `flax.linen.Dense`.
      mix: makes the module `mix` that mixes values, (query, key, value, mask=, train=) as `DotProduct`: with quantized operands,
        with a score of the tokens, or by a kernel. It may return a pair, of which the second, a score say, is handed on.
      out_init: initializer of the output layer's kernel; zeros make a residual branch start as nothing.
      bias: makes the module `bias` of (heads, param_dtype=, name=), such as `RelativePositions`, whose () -> [1, h, N, M] `mix`
        gets as `bias=` and adds to the scores; None has none, and `mix` needs to take none.
      features: of the output, D unless given.

    tokens [B, N, D], context [B, M, C] or None, values [B, M, C'] or None, mask as `mix` takes it or None, prior
    [B or 1, h or 1, N, M] to add to the scores or None -> [B, N, features], or a pair where `mix` returns one.

    Raises:
      UserError: heads that do not divide D. ValueError: values without a context.
    """

    heads: int
    qkv_bias: bool = True
    dense: Callable[..., nn.Module] = nn.Dense
    mix: Callable[..., nn.Module] = DotProduct
    out_init: Callable = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    bias: Callable[..., nn.Module] | None = None
    features: int | None = None

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        context: jax.Array | None = None,
        values: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        prior: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array | tuple[jax.Array, Any]:
        dim = tokens.shape[-1]
        if values is not None and context is None:
            raise ValueError("values: need a context, whose keys they go with")
        if dim % self.heads:
            raise UserError(f"heads: needs a divisor of the token size, {dim}, got {self.heads}")

        def project(x, count, name):
            layer = self.dense(
                count * dim,
                use_bias=self.qkv_bias,
                kernel_init=nn.initializers.xavier_uniform(),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )
            split = layer(x).reshape(*x.shape[:2], count, self.heads, dim // self.heads)
            return jnp.moveaxis(split, 2, 0)

        if context is None:
            query, key, value = project(tokens, 3, "qkv")
        elif values is None:
            (query,), (key, value) = project(tokens, 1, "query"), project(context, 2, "key_value")
        else:
            (query,), (key,) = project(tokens, 1, "query"), project(context, 1, "key")
            (value,) = project(values, 1, "value")
        options = {} if prior is None else {"bias": prior}
        if self.bias is not None:
            bias = self.bias(self.heads, param_dtype=self.param_dtype, name="bias")()
            options["bias"] = bias if prior is None else bias + prior
        mixed = self.mix(name="mix")(query, key, value, mask=mask, train=train, **options)
        mixed, *side = mixed if isinstance(mixed, tuple) else (mixed,)
        y = self.dense(
            self.features or dim,
            kernel_init=self.out_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="out",
        )(mixed.reshape(tokens.shape))
        return (y, *side) if side else y


class LayerScale(nn.Module):
    """scale · x with one learned scale per channel (arXiv:2103.17239). x [..., D] -> [..., D].

    Weight decay leaves `scale` alone, as it does those of normalizations.
    """

    start: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.constant(self.start)
        scale = self.param("scale", start, x.shape[-1:], self.param_dtype)
        return x * scale.astype(self.dtype)
