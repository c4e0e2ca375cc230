"""What a vision transformer has besides plain blocks: a distillation token, scaled branches, blocks of a method."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError
from jaxface.layers import Attention, Maps
from jaxface.layers.attention import DotProduct
from jaxface.models.transformers.vit import Block, Encoder

IMAGE = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
FIELDS = {"dim": 12, "depth": 2, "heads": 2, "patch": 8}


def create(**fields):
    module = models.create("vit_tiny", embedding=5, **FIELDS, **fields)
    return module, jax.jit(lambda image: module.init(jax.random.key(0), image))(IMAGE)


def test_the_two_heads_of_a_distilled_network_are_averaged():
    module, variables = create(distilled=True)
    assert variables["params"]["positions"].shape == (1, 2 + 4, 12)
    apply = jax.jit(module.apply, static_argnames=("separate",))
    variables["params"]["distillation_token"] = jnp.full((1, 1, 12), 0.5)
    both = apply(variables, IMAGE, separate=True)
    assert jnp.all(both[0] != both[1])
    np.testing.assert_allclose(apply(variables, IMAGE), (both[0] + both[1]) / 2, rtol=1e-6)


def test_branches_scaled_by_nothing_leave_the_tokens():
    module, variables = create(layer_scale=0.0)
    assert {"scale1", "scale2"} < set(variables["params"]["block1"])
    flat = {**variables["params"], "head_norm": variables["params"]["head_norm"]}
    flat["positions"] = jnp.zeros_like(flat["positions"])
    np.testing.assert_array_equal(module.apply({"params": flat}, IMAGE), 0)  # the class token starts at 0


class Masked(nn.Module):
    """A mixing in which no token sees the last one."""

    @nn.compact
    def __call__(self, query, key, value, *, mask=None, train=False):
        seen = jnp.arange(key.shape[1]) < key.shape[1] - 1
        return DotProduct()(query, key, value, mask=seen[None, None, None], train=train)


def test_a_method_gives_the_blocks_an_attention_of_its_own():
    unit = partial(Block, attention=partial(Attention, mix=Masked), mlp_ratio=2.0)
    module, variables = create(unit=unit)
    assert variables["params"]["block1"]["expand"]["kernel"].shape == (12, 24)
    changed = IMAGE.copy()
    changed[:, 8:, 8:] = 0.3  # the last patch
    found = [jax.jit(module.apply)(variables, image) for image in (IMAGE, changed)]
    np.testing.assert_array_equal(*found)


def test_attention_maps_are_those_of_the_queries_and_keys():
    """Of the first block, whose tokens are those of the image: softmax(q kᵀ / √d) in float64."""
    unit = partial(Block, attention=partial(Attention, mix=Maps))
    module = models.create("vit_tiny", embedding=5, **{**FIELDS, "depth": 1}, unit=unit)
    run = jax.jit(partial(module.init_with_output, mutable=True, capture_intermediates=True))
    _, sown = run(jax.random.key(0), IMAGE)
    assert set(sown["params"]["block1"]["attention"]) == {"qkv", "out"}
    qkv = np.float64(sown["intermediates"]["block1"]["attention"]["qkv"]["__call__"][0])
    query, key, _ = qkv.reshape(2, 5, 3, 2, 6).transpose(2, 0, 3, 1, 4)
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(6)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    (maps,) = sown["attention"]["block1"]["attention"]["mix"]["maps"]
    np.testing.assert_allclose(maps, weights / weights.sum(-1, keepdims=True), rtol=1e-4)


class Scored(nn.Module):
    """A mixing that hands on how long each value is."""

    @nn.compact
    def __call__(self, query, key, value, *, mask=None, train=False):
        return DotProduct()(query, key, value, mask=mask), jnp.linalg.norm(value, axis=(2, 3))


class Longest(nn.Module):
    """The two tokens with the highest score."""

    @nn.compact
    def __call__(self, tokens, score):
        return jnp.take_along_axis(tokens, jax.lax.top_k(score, 2)[1][..., None], axis=1)


class Backwards(Encoder):
    """The last block first; the shapes that it saw are on record."""

    @nn.compact
    def __call__(self, blocks, tokens, *, remat="none", train):
        for block in blocks[::-1]:
            tokens, score = block(tokens, train=train)
            self.sow("seen", "scores", score)
        return tokens


@pytest.mark.parametrize("remat", ["none", "block"])
def test_a_method_drops_tokens_within_blocks(remat):
    unit = partial(Block, attention=partial(Attention, mix=Scored), select=Longest)
    module, variables = create(unit=unit, remat=remat)
    assert jax.jit(partial(module.apply, train=True))(variables, IMAGE).shape == (2, 5)


def test_a_method_takes_tokens_through_the_blocks_in_its_own_way():
    unit = partial(Block, attention=partial(Attention, mix=Scored), select=Longest)
    module, variables = create(unit=unit, encoder=Backwards)
    params = {"params": variables["params"]}
    _, seen = jax.jit(partial(module.apply, mutable=["seen"]))(params, IMAGE)
    assert [score.shape for score in seen["seen"]["encoder"]["scores"]] == [(2, 5), (2, 2)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"distilled": True, "pool": "mean"}, "distilled: needs pool 'class', got 'mean'"),
        ({"pool": "max"}, "pool: needs one of class, mean, got 'max'"),
        ({"heads": 5}, "dim: needs a multiple of heads, 5, got 12"),
    ],
)
def test_refusals(fields, words):
    with pytest.raises(UserError, match=words):
        models.create("vit_tiny", embedding=5, **{**FIELDS, **fields})


def test_a_network_with_one_head_has_no_two_outputs():
    module, variables = create()
    with pytest.raises(UserError, match="separate: needs a distilled network"):
        module.apply(variables, IMAGE, separate=True)


def test_the_order_of_parts():
    order = models.create("vit_tiny").depth_order()
    assert order[0] == ("patches", "class_token", "distillation_token", "positions")
    assert order[1:] == tuple((f"block{i}",) for i in range(1, 13))
