"""APViT as a network: the paper's size, the plain hybrid that it is without pooling, and where gradients end."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError
from jaxface.layers import Attention
from jaxface.models.transformers import apvit
from jaxface.models.transformers.apvit import APViT, StridedStem
from jaxface.models.transformers.vit import Block, ViT

RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)  # 4 x 4 places
FIELDS = {"dim": 8, "depth": 2, "heads": 2, "mlp_ratio": 2.0}
SMALL = APViT(embedding=7, stem="strided", channels=(4,), keep_num=9, keep_rates=(0.9, 0.8), **FIELDS)
kept_patches = jax.jit(apvit.kept_patches, static_argnums=0)
PLAIN = dataclasses.replace(SMALL, keep_num=None, keep_rates=(1.0, 1.0))


@pytest.fixture(scope="module")
def params():
    """Of `SMALL`, whose head has weights."""
    made = jax.jit(SMALL.init)(jax.random.key(0), IMAGE)["params"]
    kernel = jnp.asarray(RNG.normal(size=(8, 7)), jnp.float32)
    return {**made, "head_dense": {"kernel": kernel, "bias": jnp.zeros(7)}}


def test_the_size_of_the_paper():
    """65.2 million parameters: three stages of IR-50 17,611,968, projection 197,376, eight blocks 47,241,216, tokens, head."""
    network = models.create("apvit", embedding=7, keep_num=160)
    image = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
    output, variables = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x), image)
    count = models.parameter_count
    params = variables["params"]
    assert output.shape == (1, 7) and params["positions"].shape == (1, 197, 768)
    assert count(params["stem"]) == 17_611_968 and count(params["patches"]) == 256 * 768 + 768
    assert sum(count(params[f"block{i}"]) for i in range(1, 9)) == 47_241_216
    assert count(variables) == 65_209_543
    assert "bias" not in params["block1"]["attention"]["qkv"]
    assert count(params["block1"]["expand"]) == 768 * 2304 + 2304
    # Its stem has the names and shapes of the first three stages of an iResNet-50 of that unit.
    whole = models.create("iresnet50", block="sface")
    other = jax.eval_shape(lambda x: whole.init(jax.random.key(0), x), image)
    for kind in ("params", "batch_stats"):
        shapes = jax.tree.map(lambda x: x.shape, variables[kind]["stem"])
        assert shapes == jax.tree.map(lambda x: x.shape, {n: other[kind][n] for n in shapes})
    assert {name for name in other["params"] if name not in params["stem"]} == {
        *(f"stage4_block{i}" for i in (1, 2, 3)), "head_norm", "head_dense", "head_embedding",
    }  # fmt: skip


def test_with_everything_kept_it_is_the_plain_hybrid(params):
    """Bit for bit, k = N and rates 1 included."""
    unit = partial(Block, mlp_ratio=2.0, attention=partial(Attention, qkv_bias=False))
    hybrid = ViT(7, dim=8, depth=2, heads=2, patch=1, stem=partial(StridedStem, (4,)), unit=unit)
    whole = dataclasses.replace(PLAIN, keep_num=16)
    expected = jax.jit(hybrid.apply)({"params": params}, IMAGE)
    for network in (PLAIN, whole):
        np.testing.assert_array_equal(jax.jit(network.apply)({"params": params}, IMAGE), expected)
    assert jnp.any(jax.jit(SMALL.apply)({"params": params}, IMAGE) != expected)


def test_kept_patches_by_hand(params):
    """9 of 16 places, then 8 and 6 of them, by the scores of the network itself."""
    blocks = np.asarray(kept_patches(SMALL, {"params": params}, IMAGE))
    assert blocks.shape == (3, 16)
    assert [(blocks > b).sum(axis=1).tolist() for b in range(2)] == [[8] * 3, [6] * 3]
    stem = StridedStem((4,)).apply({"params": params["stem"]}, IMAGE).reshape(3, 16, 4)
    lengths = np.abs(stem @ params["patches"]["kernel"][0, 0] + params["patches"]["bias"]).sum(-1)
    first = np.sort(np.argsort(-lengths, axis=1)[:, :9], axis=1)
    for row in range(3):
        assert set(np.flatnonzero(blocks[row])) <= set(first[row].tolist())
    assert (np.asarray(kept_patches(PLAIN, {"params": params}, IMAGE)) == 2).all()


def test_a_permuted_map_with_its_positions_gives_the_same(params):
    """Of a 1x1 stem, whose map is permuted where the image is."""
    order = RNG.permutation(16)
    network = dataclasses.replace(SMALL, channels=())
    params = {
        **params,
        "patches": {"kernel": params["patches"]["kernel"][:, :, :1], "bias": jnp.full(8, 0.1)},
    }
    params = {name: value for name, value in params.items() if name != "stem"}
    image = IMAGE[:, :4, :4]
    moved = image.reshape(3, 16, 1)[:, order].reshape(image.shape)
    positions = params["positions"]
    permuted = {**params, "positions": positions[:, np.concatenate([[0], order + 1])]}
    run = jax.jit(
        lambda p, x: (network.apply({"params": p}, x), apvit.kept_patches(network, {"params": p}, x))
    )
    (logits, blocks), (same, others) = run(params, image), run(permuted, moved)
    np.testing.assert_allclose(same, logits, atol=1e-5)
    np.testing.assert_array_equal(others, np.asarray(blocks)[:, order])


def test_a_fresh_head_says_nothing_and_trains_alone():
    """Logits 0, loss ln 7, and no gradient for anything but the head."""
    variables = jax.jit(SMALL.init)(jax.random.key(0), IMAGE)

    def loss(params):
        logits = SMALL.apply({"params": params}, IMAGE)
        return -jax.nn.log_softmax(logits)[:, 0].mean(), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    np.testing.assert_array_equal(logits, 0)
    np.testing.assert_allclose(value, 1.945910, atol=1e-6)
    head = gradient.pop("head_dense")
    assert jnp.any(head["kernel"] != 0) and not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_dropped_places_and_dropped_tokens_differ_in_their_gradient(params):
    """Seen at the positions: none for a dropped place, some for a token that is dropped behind the attention."""
    network = dataclasses.replace(SMALL, keep_rates=(0.5, 1.0))

    def loss(positions, image):
        return network.apply({"params": {**params, "positions": positions}}, image)[0, 2]

    image = IMAGE[:1]
    gradient = jax.jit(jax.grad(loss))(params["positions"], image)[0, 1:]
    scored = np.asarray(
        kept_patches(dataclasses.replace(network, keep_rates=(1.0, 1.0)), {"params": params}, image)[0]
    )
    blocks = np.asarray(kept_patches(network, {"params": params}, image)[0])
    size = np.abs(gradient).max(axis=1)
    assert (scored > 0).sum() == 9 and (blocks > 0).sum() == 4
    assert (size[scored == 0] == 0).all()
    assert (size[(scored > 0) & (blocks == 0)] > 0).all()


def test_it_is_described_and_made_again():
    network = models.create("apvit_small", embedding=10, keep_num=28, atp_score="max")
    assert models.from_description(models.describe(network)) == network
    assert models.describe(network)["name"] == "apvit_small"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"keep_rates": (1.0, 1.0)}, "keep_rates: needs one for each of 4 blocks, got 2"),
        ({"keep_rates": (1.0, 1.0, 0.9, 0.0)}, "keep_rates: needs a number above 0 and up to 1, got 0"),
        ({"keep_rates": (1.0, 1.0, 0.9, 1.5)}, "keep_rates: needs a number above 0 and up to 1, got 1.5"),
        ({"keep_num": 0}, "keep_num: needs at least 1, got 0"),
        ({"dim": 30}, "dim: needs a multiple of heads, 4, got 30"),
        ({"stem": "resnet"}, "stem: needs one of iresnet, strided, got 'resnet'"),
        ({"app_score": "energy"}, "app_score: needs one of"),
        ({"atp_score": "energy"}, "atp_score: needs one of"),
    ],
)
def test_refusals(fields, words):
    with pytest.raises(UserError, match=words):
        models.create("apvit_small", **fields)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 24, 24, 1), "keep_num: needs an integer from 1 to 36, got 40"),
        ((1, 32, 24, 1), "image_size: needs a square, got 32x24"),
    ],
)
def test_images_that_do_not_fit(shape, words):
    network = models.create("apvit_small", keep_num=40)
    with pytest.raises(UserError, match=words):
        jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
