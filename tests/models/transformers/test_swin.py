"""Swin against attention over the whole plane in which a token sees its window alone, and what a method puts into it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError
from jaxface.layers import Attention, DotProduct, Maps
from jaxface.models.transformers.swin import PatchMerging, WindowAttention
from jaxface.models.transformers.vit import Block

RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
FIELDS = {"dim": 6, "blocks": (2, 1), "heads": (2, 3), "patch": 2, "window": 4}


def variables_of(module, *arrays):
    """Parameters drawn at random: none is at its initial value."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arrays)
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32) / 2, shapes)


@pytest.mark.parametrize(
    ("plane", "window", "shift"),
    [((8, 8), (4, 4), (0, 0)), ((8, 8), (4, 4), (2, 2)), ((6, 3), (2, 3), (1, 0)), ((9, 6), (3, 3), (1, 1))],
)
def test_a_token_sees_the_window_that_it_is_in(plane, window, shift):
    """Float64 attention of all tokens: seen are those with the same ⌊(y - shift) / h⌋ and ⌊(x - shift) / w⌋."""
    module = WindowAttention(2, plane, window, shift)
    tokens = RNG.normal(size=(2, plane[0] * plane[1], 6)).astype(np.float32)
    variables = variables_of(module, tokens)
    params = jax.tree.map(np.float64, variables["params"])
    assert set(params) == {"qkv", "bias", "out"}

    y, x = (axis.reshape(-1) for axis in np.mgrid[: plane[0], : plane[1]])
    place = np.stack([(y - shift[0]) // window[0], (x - shift[1]) // window[1]])
    seen = (place[:, :, None] == place[:, None]).all(0)
    rows = (y[:, None] - y + window[0] - 1) * (2 * window[1] - 1) + x[:, None] - x + window[1] - 1
    query, key, value = np.split(tokens @ params["qkv"]["kernel"] + params["qkv"]["bias"], 3, axis=-1)
    mixed = []
    for head in range(2):
        q, k, v = (array[..., 3 * head :][..., :3] for array in (query, key, value))
        bias = params["bias"]["table"][np.where(seen, rows, 0), head]
        logits = np.where(seen, q @ k.transpose(0, 2, 1) / np.sqrt(3) + bias, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed.append(weights / weights.sum(-1, keepdims=True) @ v)
    expected = np.concatenate(mixed, -1) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(jax.jit(module.apply)(variables, tokens), expected, atol=2e-5)


def test_four_neighbors_become_a_token_column_by_column():
    module, tokens = PatchMerging((4, 4)), RNG.normal(size=(1, 16, 2)).astype(np.float32)
    variables = variables_of(module, tokens)
    plane, params = np.float64(tokens).reshape(4, 4, 2), jax.tree.map(np.float64, variables["params"])
    square = np.concatenate([plane[2, 0], plane[3, 0], plane[2, 1], plane[3, 1]])  # of the third token
    square = (square - square.mean()) / np.sqrt(square.var() + 1e-5)
    expected = (square * params["norm"]["scale"] + params["norm"]["bias"]) @ params["reduce"]["kernel"]
    found = module.apply(variables, tokens)
    assert found.shape == (1, 4, 4)
    np.testing.assert_allclose(found[0, 2], expected, atol=1e-5)


class Nothing(nn.Module):
    """A mixing that takes the bias and the mask for granted and hands on how many windows there were."""

    @nn.compact
    def __call__(self, query, key, value, *, mask=None, bias=None, train=False):
        assert bias.shape == (1, query.shape[2], query.shape[1], key.shape[1])
        return DotProduct()(query, key, value, mask=mask, bias=bias), jnp.full((1,), query.shape[0])


def test_a_method_gives_the_windows_an_attention_of_its_own():
    plain = models.create("swin_tiny", embedding=5, **{**FIELDS, "blocks": (2,), "heads": (2,)})
    variables = variables_of(plain, IMAGE)
    mix = partial(Maps, mix=Nothing)
    module = plain.clone(attention=partial(Attention, mix=mix), unit=partial(Block, mlp_ratio=4.0))
    shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGE)
    assert jax.tree.structure(shapes["params"]) == jax.tree.structure(variables["params"])
    output, sown = jax.jit(partial(module.apply, mutable=["attention"]))(variables, IMAGE)
    np.testing.assert_allclose(output, jax.jit(plain.apply)(variables, IMAGE), rtol=1e-5)
    maps = [sown["attention"][f"stage1_block{i}"]["attention"]["mix"]["maps"][0] for i in (1, 2)]
    for one in maps:
        assert one.shape == (8, 2, 16, 16)  # two images of four windows
        np.testing.assert_allclose(one.sum(-1), 1, rtol=1e-5)
    assert np.all(maps[0] > 0) and np.mean(maps[1] == 0) > 0.2  # the second block's windows are shifted


def test_the_order_of_parts():
    order = models.create("swin_tiny", **FIELDS).depth_order()
    assert order == (
        ("patches", "patch_norm"),
        ("stage1_block1",),
        ("stage1_block2",),
        ("merge1", "stage2_block1"),
    )


@pytest.mark.parametrize(
    ("fields", "size", "words"),
    [
        ({}, (15, 16), r"image_size: needs multiples of 2 pixels, the tokens of stage 1; got \(15, 16\)"),
        (
            {},
            (12, 16),
            r"image_size: needs multiples of 8 pixels, the windows of stage 1, or fewer pixels than that; got \(12, 16\)",
        ),
        ({"window": 3}, (6, 6), "image_size: needs multiples of 4 pixels, the tokens of stage 2"),
    ],
)
def test_sizes_that_do_not_divide(fields, size, words):
    module = models.create("swin_tiny", embedding=5, **{**FIELDS, **fields})
    with pytest.raises(UserError, match=words):
        jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, *size, 3), np.float32))


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ((2,), "heads: needs one number for each of 2 stages, got 1"),
        ((2, 5), "heads: needs divisors of the token sizes; stage 2 has 12, got 5"),
    ],
)
def test_heads_that_do_not_fit(heads, words):
    with pytest.raises(UserError, match=words):
        models.create("swin_tiny", **{**FIELDS, "heads": heads})
