"""Mutual and fusion attention: the worked numbers of the specification, exact counts, and what a mask may touch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import layers
from jaxface.errors import UserError
from jaxface.layers.fmvit import BRANCHES

KEYS = np.array([[2, 0], [0, 1], [1, 1], [-1, 0]], np.float32)
VALUES = np.array([[1, 0], [0, 1], [2, 2], [3, -1]], np.float32)
QUERY = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
RNG = np.random.default_rng(0)


def heads(rows):
    """[n, 2] as [1, n, 1, 2]."""
    return jnp.asarray(rows, jnp.float32)[None, :, None]


def with_class(rows, first):
    return heads(np.concatenate([np.float32([first]), rows]))


def test_relevance_by_hand():
    query, key = with_class(np.ones((4, 2)), (1, 0)), with_class(KEYS, (7, 7))
    found = layers.cls_relevance(query, key)
    np.testing.assert_allclose(found, [[0.538776, 0.130986, 0.265654, 0.064585]], atol=1e-6)
    assert found.dtype == jnp.float32
    # The mean over heads, of softmaxes of their own.
    two = jnp.concatenate([key, with_class(KEYS[::-1], (0, 0))], axis=2)
    both = layers.cls_relevance(jnp.concatenate([query, query], axis=2), two)
    np.testing.assert_allclose(both, (found + found[:, ::-1]) / 2, atol=1e-6)
    assert layers.cls_relevance(query.astype(jnp.bfloat16), key.astype(jnp.bfloat16)).dtype == jnp.float32


def test_attention_by_hand():
    np.testing.assert_allclose(
        layers.fusion_attention(QUERY, heads(KEYS), heads(VALUES)).ravel(), [1.263838, 0.597708], atol=1e-6
    )
    keep = jnp.array([[False, True, True, False]])
    expected = [1.339523, 1.669762]
    np.testing.assert_allclose(
        layers.fusion_attention(QUERY, heads(KEYS), heads(VALUES), keep).ravel(), expected, atol=1e-6
    )
    # The same in mutual attention, where the class token's own key is as good as absent.
    far, values = with_class(KEYS, (-1000, 0)), with_class(VALUES, (5, 5))
    query = with_class(KEYS, (1, 0))
    np.testing.assert_allclose(
        layers.mutual_attention(query, far, values, keep)[0, 0, 0], expected, atol=1e-6
    )
    found = layers.fusion_attention(QUERY, heads([[0, 1], [3, 0]]), heads([[-1, 1], [0, 2]]))
    np.testing.assert_allclose(found.ravel(), [-0.107042, 1.892958], atol=1e-6)


def test_a_mask_touches_the_class_row_alone_and_leaves_its_own_key():
    query, key, value = (jnp.asarray(RNG.normal(size=(2, 6, 2, 3)), jnp.float32) for _ in range(3))
    keep = jnp.asarray(RNG.random((2, 5)) > 0.5)
    plain = jax.nn.dot_product_attention(query, key, value)
    masked = layers.mutual_attention(query, key, value, keep)
    np.testing.assert_array_equal(masked[:, 1:], plain[:, 1:])
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    for b in range(2):
        seen = np.concatenate([[True], keep[b]])
        for h in range(2):
            weights = np.exp(k[b, :, h] @ q[b, 0, h] / np.sqrt(3)) * seen
            np.testing.assert_allclose(masked[b, 0, h], weights @ v[b, :, h] / weights.sum(), atol=1e-5)
    # Nothing kept: it sees itself.
    nothing = layers.mutual_attention(query, key, value, jnp.zeros((2, 5), bool))
    np.testing.assert_allclose(nothing[:, 0], value[:, 0], atol=1e-6)


@pytest.mark.parametrize("fraction", [0.01, 0.07, 0.5, 0.51, 1.0])
def test_exactly_so_many_patches_even_where_all_are_alike(fraction):
    count = int(np.ceil(round(fraction * 100, 6)))
    for relevance in (np.ones((3, 100)), RNG.integers(0, 4, (3, 100)), RNG.random((3, 100))):
        found = np.asarray(layers.informative_mask(jnp.asarray(relevance), fraction=fraction))
        assert (found.sum(-1) == count).all()
        order = np.argsort(-relevance, axis=-1, kind="stable")[:, :count]
        expected = np.zeros((3, 100), bool)
        np.put_along_axis(expected, order, True, axis=-1)
        np.testing.assert_array_equal(found, expected)


def test_the_threshold_form():
    relevance = jnp.array([[0.4, 0.2, 0.19, 0.21], [0.25, 0.25, 0.25, 0.25]])
    found = layers.informative_mask(relevance, threshold=0.5)
    np.testing.assert_array_equal(found, [[True, True, False, True], [True] * 4])
    for bad in (0.0, 1.5, -0.1):
        with pytest.raises(UserError, match="threshold: needs a number above 0 and up to 1"):
            layers.informative_mask(relevance, threshold=bad)
        with pytest.raises(UserError, match="fraction: needs a number above 0 and up to 1"):
            layers.informative_mask(relevance, fraction=bad)


MAPS = jnp.asarray(RNG.random((3, 4, 16)), jnp.float32)


def guided(others, branch=0, **options):
    return np.asarray(layers.guidance_mask(MAPS[branch], MAPS, jnp.asarray(others), **options))


def test_guidance():
    first, second, third = (np.asarray(layers.informative_mask(m)) for m in MAPS)
    everyone, nobody, one = [False, True, True], [False] * 3, [False, False, True]
    summed = np.asarray(layers.informative_mask(MAPS[1] + MAPS[2]))
    np.testing.assert_array_equal(guided(everyone), summed)
    assert (guided(everyone).sum(-1) == 8).all()
    np.testing.assert_array_equal(guided(everyone, combine="or"), second | third)
    np.testing.assert_array_equal(guided(one, combine="or"), third)
    np.testing.assert_array_equal(guided(one), third)
    np.testing.assert_array_equal(guided(everyone, guide="union"), summed | first)
    np.testing.assert_array_equal(guided(everyone, guide="union", combine="or"), first | second | third)
    np.testing.assert_array_equal(guided(everyone, guide="intersection"), first & second & third)
    np.testing.assert_array_equal(guided(one, guide="intersection"), first & third)
    assert guided(everyone, guide="none").all() and guided(nobody).all()
    np.testing.assert_array_equal(guided(nobody, alone="own"), first)
    noise = jnp.asarray(RNG.random((4, 16)))
    np.testing.assert_array_equal(
        guided(everyone, guide="random", noise=noise), layers.informative_mask(noise)
    )
    assert guided(nobody, guide="random", noise=noise).all()
    # Each image with others of its own.
    rows = np.array([everyone, nobody, one, one])
    mixed = guided(rows)
    for k, row in enumerate(rows):
        np.testing.assert_array_equal(mixed[k], guided(row)[k])


def test_everything_is_kept_at_fraction_one():
    for guide in ("other", "union", "intersection", "none"):
        for combine in ("sum", "or"):
            for others in ([False, True, True], [False, False, False]):
                for alone in ("all", "own"):
                    kept = guided(others, guide=guide, combine=combine, alone=alone, fraction=1.0)
                    assert kept.all()
    assert guided([False] * 3, fraction=0.1).all()  # alone, "all": at any fraction


@pytest.mark.parametrize("option", [{"guide": "self"}, {"combine": "mean"}, {"alone": "none"}])
def test_unknown_options(option):
    (name,) = option
    with pytest.raises(UserError, match=f"{name}: needs one of"):
        guided([False, True, True], **option)


def test_no_gradient_flows_through_masks():
    tokens = jnp.asarray(RNG.normal(size=(3, 2, 9, 4)), jnp.float32)  # [M, B, N + 1, D]
    weights = jnp.asarray(RNG.normal(size=(4, 12)), jnp.float32)

    def projected(weights):
        query, key, value = jnp.split(tokens @ weights, 3, axis=-1)
        return (x[..., None, :] for x in (query, key, value))

    def keep_of(weights):
        query, key, _ = projected(weights)
        relevance = jax.vmap(layers.cls_relevance)(query, key)
        return layers.guidance_mask(relevance[0], relevance, jnp.array([False, True, True]))

    def loss(weights, keep):
        keep = keep_of(weights) if keep is None else keep
        query, key, value = projected(weights)
        return (layers.mutual_attention(query[0], key[0], value[0], keep) ** 2).sum()

    inside = jax.grad(loss)(weights, None)
    np.testing.assert_array_equal(inside, jax.grad(loss)(weights, keep_of(weights)))
    assert np.isfinite(inside).all() and (inside != 0).any()


def test_partners():
    found = layers.partner_matrix(jnp.array([[True, True, True], [False, True, False], [True, False, True]]))
    expected = [
        [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
        [[0, 1, 0], [0, 1, 0], [0, 1, 0]],
        [[0, 0, 1], [1, 0, 1], [1, 0, 0]],
    ]
    np.testing.assert_array_equal(found.astype(int), expected)


def test_fusion_changes_the_class_token_alone_by_what_the_partners_have():
    module, tokens = layers.ClassFusion(2), jnp.asarray(RNG.normal(size=(3, 2, 5, 4)), jnp.float32)
    partners = layers.partner_matrix(jnp.array([True, True, False]))

    def start(key, tokens, row):
        return module.init(key, tokens, row)

    mapped = partial(jax.vmap, axis_name=BRANCHES)
    params = mapped(start)(jax.random.split(jax.random.key(0), 3), tokens, partners)
    run = jax.jit(mapped(module.apply))
    np.testing.assert_array_equal(run(params, tokens, partners), tokens)  # it starts as nothing
    out = params["params"]["attention"]["out"]
    out["kernel"] = jnp.asarray(RNG.normal(size=(3, 4, 4)), jnp.float32)
    first = run(params, tokens, partners)
    np.testing.assert_array_equal(first[:, :, 1:], tokens[:, :, 1:])
    assert (np.abs(first[:, :, 0] - tokens[:, :, 0]).max(-1) > 1e-3).all()
    # The third is nobody's partner; the second's patches, not its class token, reach the first.
    same = run(params, tokens.at[2].add(1.5 * tokens[2, :, ::-1]), partners)
    np.testing.assert_array_equal(same[:2], first[:2])
    same = run(params, tokens.at[1, :, 0].add(jnp.arange(4.0)), partners)
    np.testing.assert_array_equal(same[0], first[0])
    other = run(params, tokens.at[1, :, 1:].multiply(jnp.arange(4.0)), partners)
    assert (other[0, :, 0] != first[0, :, 0]).all()
