"""Attention against its equation, and what a method puts into it: another mixing, another linear layer, other tokens."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.layers import Attention, LayerScale

RNG = np.random.default_rng(0)
TOKENS, OTHERS = (RNG.normal(size=(2, count, 6)).astype(np.float32) for count in (5, 3))


def initial(module, *arrays, **options):
    return jax.jit(lambda *arrays: module.init(jax.random.key(0), *arrays, **options))(*arrays)["params"]


def by_hand(query, key, value, mask=None):
    """Float64: [B, N, D], two heads of three."""
    mixed = []
    for head in range(2):
        q, k, v = (x[..., 3 * head :][..., :3].astype(np.float64) for x in (query, key, value))
        logits = q @ k.transpose(0, 2, 1) / np.sqrt(3)
        if mask is not None:
            logits = np.where(mask, logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed.append(weights / weights.sum(-1, keepdims=True) @ v)
    return np.concatenate(mixed, axis=-1)


def test_tokens_of_another_source():
    params = initial(Attention(2), TOKENS, OTHERS)
    assert set(params) == {"query", "key_value", "out"}
    query = TOKENS @ params["query"]["kernel"]
    key, value = np.split(OTHERS @ params["key_value"]["kernel"], 2, axis=-1)
    expected = by_hand(np.asarray(query), key, value) @ params["out"]["kernel"]
    found = jax.jit(Attention(2).apply)({"params": params}, TOKENS, OTHERS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_masked_key_is_not_seen():
    params = initial(Attention(2), TOKENS)
    query, key, value = np.split(TOKENS @ params["qkv"]["kernel"], 3, axis=-1)
    mask = np.array([True, True, False, True, False])
    expected = by_hand(query, key, value, mask) @ params["out"]["kernel"]
    found = Attention(2).apply({"params": params}, TOKENS, mask=jnp.asarray(mask)[None, None, None])
    np.testing.assert_allclose(found, expected, atol=1e-5)


class Coarse(nn.Module):
    """A mixing with operands rounded to eighths, which tells what each key was worth."""

    @nn.compact
    def __call__(self, query, key, value, *, mask=None, train=False):
        query, key, value = (jnp.round(8 * x) / 8 for x in (query, key, value))
        gain = self.param("gain", nn.initializers.ones, ())
        weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", query, key) / jnp.sqrt(query.shape[-1]))
        self.sow("intermediates", "received", weights.mean((1, 2)))
        return gain * jnp.einsum("bhnm,bmhd->bnhd", weights, value)


def test_a_method_mixes_in_its_own_way():
    module = Attention(2, qkv_bias=False, mix=Coarse, out_init=nn.initializers.zeros)
    params = initial(module, TOKENS)
    assert set(params) == {"qkv", "mix", "out"} and set(params["qkv"]) == {"kernel"}
    found, told = module.apply({"params": params}, TOKENS, mutable=["intermediates"])
    np.testing.assert_array_equal(found, 0)
    received = told["intermediates"]["mix"]["received"][0]
    np.testing.assert_allclose(received.sum(-1), 1, rtol=1e-5)
    params["out"]["kernel"] = np.eye(6, dtype=np.float32)
    found = module.apply({"params": params}, TOKENS)
    rounded = [
        np.round(8 * x) / 8 for x in np.split(np.asarray(TOKENS @ params["qkv"]["kernel"]), 3, axis=-1)
    ]
    np.testing.assert_allclose(found, by_hand(*rounded), atol=1e-5)


def test_another_linear_layer():
    module = Attention(2, dense=partial(nn.DenseGeneral))
    np.testing.assert_allclose(
        module.apply({"params": initial(module, TOKENS)}, TOKENS),
        Attention(2).apply({"params": initial(Attention(2), TOKENS)}, TOKENS),
        atol=1e-6,
    )


def test_heads_divide_the_tokens():
    with pytest.raises(UserError, match="heads: needs a divisor of the token size, 6, got 4"):
        jax.eval_shape(Attention(4).init, jax.random.key(0), TOKENS)


def test_layer_scale():
    module = LayerScale(0.1)
    params = module.init(jax.random.key(0), TOKENS)["params"]
    np.testing.assert_allclose(module.apply({"params": params}, TOKENS), 0.1 * TOKENS, rtol=1e-6)
