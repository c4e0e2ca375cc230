"""MetaNet: published sizes, the planes of its taps, and blocks that start as their shortcuts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError
from jaxface.layers.metanet import CrossCovariance, FusedMBConv, MBConv, SABlock, XCABlock, make_divisible

IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
SMALL = {"embedding": 5, "repeats": (1, 1, 1, 1, 1, 1), "head_features": 24}
STEM, HEAD = 928, 494080
STAGES = (4048, 163680, 2677280, 2208880, 1795968, 23080128)


def sizes(name):
    network = models.create(name, embedding=1000)
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), IMAGE)["params"]
    parts = {}
    for part, params in shapes.items():
        group = part if part == "head_dense" else part.partition("_")[0]
        parts[group] = parts.get(group, 0) + sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return parts


def test_check_1_published_parameter_counts_of_b4():
    parts = sizes("metanet_b4")
    assert sum(parts.values()) == 31_705_992
    assert parts.pop("head_dense") == 1280 * 1000 + 1000
    assert sum(parts.values()) == 30_424_992
    assert tuple(parts.pop(f"stage{i}") for i in range(1, 7)) == STAGES
    assert parts == {"stem": STEM, "head": HEAD}


@pytest.mark.slow
def test_check_1_published_parameter_count_of_b15():
    assert sum(sizes("metanet_b15").values()) == 1_003_706_020
    b4 = models.create("metanet_b4", embedding=1000)
    assert models.multiply_accumulates(b4, (224, 224, 3)) == pytest.approx(3.17e9, rel=2e-3)


def test_check_3_taps_at_224():
    network = models.create("metanet_b4", **SMALL)
    taps, _ = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x, method="taps"), IMAGE)
    planes = {name: tap.shape[1] for name, tap in taps.items() if name != "pooled"}
    assert planes == {"stride4": 56, "stride8": 28, "stride16": 14, "stride32": 7}
    assert taps["pooled"].shape == (1, 24)
    assert network.level_channels == (64, 128, 192, 384) and network.level_strides == (4, 8, 16, 32)


@pytest.fixture(scope="module")
def tiny():
    network = models.create("metanet_tiny", **SMALL)
    image = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(lambda x: network.init(jax.random.key(0), x, train=False))(image)
    return network, variables, image


def test_output_follows_from_the_levels_one_by_one(tiny):
    network, variables, image = tiny

    @jax.jit
    def both(variables, image):
        taps = network.apply(variables, image, method="taps")
        x = image
        for i in range(4):
            x = network.apply(variables, i, x, method="level")
        return network.apply(variables, image), taps, x

    output, taps, last = both(variables, image)
    dense = variables["params"]["head_dense"]
    np.testing.assert_allclose(output, taps["pooled"] @ dense["kernel"] + dense["bias"], atol=1e-5)
    np.testing.assert_array_equal(last, taps["stride32"])
    assert taps["stride8"].shape == (2, 4, 4, 32) and taps["pooled"].shape == (2, 24)


def applied(block, x):
    return jax.jit(lambda x: block.init_with_output(jax.random.key(0), x, train=False))(x)


MAP = np.random.default_rng(1).normal(size=(2, 6, 6, 8)).astype(np.float32)


def test_check_9_blocks_start_as_their_shortcut():
    blocks = {
        kind: kind(8, **fields)
        for kind, fields in (
            (MBConv, {}),
            (FusedMBConv, {}),
            (SABlock, {"head_dim": 4}),
            (XCABlock, {"head_dim": 4}),
        )
    }
    run = jax.jit(lambda x: [b.init_with_output(jax.random.key(0), x, train=False) for b in blocks.values()])
    for kind, (y, variables) in zip(blocks, run(MAP), strict=True):
        if kind in (MBConv, FusedMBConv):
            np.testing.assert_array_equal(MAP, y)
            continue
        kernel = variables["params"]["positions_filter"]["kernel"]
        padded = np.pad(MAP, ((0, 0), (1, 1), (1, 1), (0, 0)))
        local = sum(padded[:, i : i + 6, j : j + 6] * kernel[i, j, 0] for i in range(3) for j in range(3))
        branch = np.abs(y - MAP - local)
        assert 1e-8 < branch.max() < 2e-5  # float32 of values near 5 resolves 5e-7


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MBConv, FusedMBConv])
def test_check_9_strided_convolutions_start_as_their_shortcut(kind):
    y, variables = applied(kind(12, 2), MAP)
    pooled = jax.lax.reduce_window(
        MAP, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
    params = variables["params"]["shortcut"]
    np.testing.assert_allclose(y, pooled @ params["kernel"][0, 0] + params["bias"], atol=1e-5)


def test_narrow_blocks_keep_their_width_and_strided_ones_have_no_perceptron():
    block = SABlock(12, 2, head_dim=4)
    y, variables = jax.eval_shape(lambda x: block.init_with_output(jax.random.key(0), x, train=False), MAP)
    assert y.shape == (2, 3, 3, 12)
    assert sorted(variables["params"]) == [
        "attention",
        "norm1",
        "positions_filter",
        "positions_shift",
        "scale1",
        "shortcut",
    ]


@pytest.mark.slow
def test_a_window_mixes_what_is_inside_it():
    block = SABlock(8, head_dim=4, window=3)
    y, variables = applied(block, MAP)
    moved = MAP.copy()
    moved[:, 5, 5] += 1.0
    # Past the depthwise filter's reach, the first window sees nothing of the last one.
    difference = np.abs(jax.jit(block.apply)(variables, moved) - y)
    assert difference[:, :3, :3].max() == 0 and difference[:, 3:, 3:].max() > 0


def test_check_8_attention_of_channels_with_one_token():
    layer = CrossCovariance()
    q, k, v = np.random.default_rng(2).normal(size=(3, 2, 1, 2, 4)).astype(np.float32)

    @jax.jit
    def run(q):
        y, variables = layer.init_with_output(jax.random.key(0), q, k, v)
        gradient = jax.grad(lambda q: layer.apply(variables, q, k, v).sum())(0 * q)
        return y, variables["params"]["temperature"], layer.apply(variables, 0 * q, k, v), gradient

    y, temperature, zero, gradient = run(q)
    assert y.shape == q.shape and temperature.tolist() == [[[1.0]], [[1.0]]]
    # Over one token every entry has length 1: the scores are products of signs.
    scores = np.exp(np.sign(q)[..., :, None] * np.sign(k)[..., None, :])
    expected = np.einsum("bnhde,bnhe->bnhd", scores / scores.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(zero, np.broadcast_to(v.mean(-1, keepdims=True), v.shape), atol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_stacked_blocks_compute_what_they_compute_one_by_one():
    fields = {**SMALL, "repeats": (1, 1, 1, 1, 3, 1), "remat": "block"}
    plain, stacked = (models.create("metanet_tiny", scan=scan, **fields) for scan in (False, True))
    image = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(lambda x: plain.init(jax.random.key(0), x, train=False))(image)

    def joined(tree):
        first, second = tree.pop("stage5_block2"), tree.pop("stage5_block3")
        rest = jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)
        return {**tree, "stage5_rest": {"blocks": rest}}

    both = {name: joined(dict(tree)) if "stage5_block2" in tree else tree for name, tree in variables.items()}
    shapes = jax.eval_shape(lambda x: stacked.init(jax.random.key(0), x, train=False), image)
    assert jax.tree.map(jnp.shape, shapes["params"]) == jax.tree.map(jnp.shape, both["params"])

    def loss(network, params, rest):
        run = jax.value_and_grad(
            lambda p: network.apply({**rest, "params": p}, image, train=True, mutable=["batch_stats"])[
                0
            ].sum()
        )
        return jax.jit(run)(params)

    (one, grad), (other, stacked_grad) = (
        loss(net, v["params"], {k: t for k, t in v.items() if k != "params"})
        for net, v in ((plain, variables), (stacked, both))
    )
    np.testing.assert_allclose(one, other, rtol=1e-4)
    leaves = zip(jax.tree.leaves(joined(dict(grad))), jax.tree.leaves(stacked_grad), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4)


def test_channels_are_rounded_as_published():
    assert [make_divisible(n) for n in (1, 8, 11, 12, 20, 96)] == [8, 8, 16, 16, 24, 96]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"head_dim": 7}, "head_dim: needs a divisor of the width 48, got 7"),
        ({"operators": ("mbconv",) * 5 + ("sha",)}, "operators: needs some of mbconv, .*got 'sha'"),
        ({"repeats": (1, 2)}, "repeats: needs one for each of 6 stages, got 2"),
    ],
)
def test_check_12_a_network_that_cannot_be_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        models.create("metanet_tiny", embedding=4, **fields)


def test_check_12_a_head_that_does_not_divide_the_width_of_a_block_is_refused():
    with pytest.raises(UserError, match="head_dim: needs a divisor of the width, 8, got 3"):
        jax.eval_shape(SABlock(8, head_dim=3).init, jax.random.key(0), jnp.zeros((1, 4, 4, 8)))
