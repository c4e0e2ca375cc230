"""Attentive pooling against numbers worked out by hand: scores, selections, counts, and where gradients end."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import layers
from jaxface.errors import UserError
from jaxface.layers.apvit import PatchPooling, TokenPooling, pooled_count

RNG = np.random.default_rng(0)
MAP = jnp.array([[[1.0, -1.0], [-2.0, 1.0], [0.0, 4.0], [3.0, -3.0]]])  # two channels of a 2x2 map
# Rows of the class token over itself and three tokens, of two heads; it does not see itself.
ROWS = jnp.array([[[-np.inf, 3.0, 0.0, 2.0], [-np.inf, 0.0, 2.5, 2.0]]])


def test_the_highest_scores_in_their_order():
    scores = jnp.array([[0.9, 0.1, 0.5, 0.3, 0.8, 0.2]])
    assert layers.top_k_sorted(scores, 3).tolist() == [[0, 2, 4]]
    # Element 0 reserved for the class token, a rate of .6 over the other five: [0, 2, 3, 4].
    others = layers.top_k_sorted(scores[:, 1:], pooled_count(5, 0.6)) + 1
    assert others.tolist() == [[2, 3, 4]] and others.dtype == jnp.int32
    assert layers.top_k_sorted(scores, pooled_count(6, 1)).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert layers.top_k_sorted(jnp.zeros((1, 4)), 2).tolist() == [[0, 1]]


def test_counts_and_operations():
    late = (1, 1, 1, 1, 0.9, 0.9, 0.9, 0.9)
    assert layers.token_counts(160, late)[3:] == (160, 144, 129, 116, 104)
    assert layers.token_counts(28, (1, 1, 0.9, 0.9)) == (28, 28, 25, 22)
    assert layers.token_counts(3, (0.1, 0.1)) == (1, 1)
    macs = partial(layers.transformer_macs, dim=768, mlp_ratio=3)
    table = [macs(count, rates) / 1e9 for count in (196, 160) for rates in ((1,) * 8, late)]
    np.testing.assert_allclose(table, [9.7725, 8.8073, 7.9155, 7.1404], atol=5e-5)
    assert round(1 - table[3] / table[0], 3) == 0.269
    small = partial(layers.transformer_macs, dim=32, mlp_ratio=2)
    dense = small(36, (1,) * 4)
    ratios = [small(28, (1, 1, 0.9, 0.9)) / dense, small(28, (1,) * 4) / dense]
    np.testing.assert_allclose(ratios, [0.708, 0.746], atol=5e-3)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("sum_abs", [2, 3, 4, 6]),
        ("sum", [0, -1, 4, 0]),
        ("sum_squares", [2, 5, 16, 18]),
        ("max", [1, 1, 4, 3]),
        ("max_abs", [1, 2, 4, 3]),
        ("lowest", [-2, -3, -4, -6]),
    ],
)
def test_scores_of_places(method, expected):
    assert layers.app_scores(MAP, method=method).tolist() == [expected]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("sum_logits", [3.0, 2.5, 4.0]),
        ("sum_softmax", [0.753995, 0.627320, 0.618685]),
        ("sum_abs", [3.0, 2.5, 4.0]),
        ("max", [3.0, 2.5, 2.0]),
        ("lowest", [-3.0, -2.5, -4.0]),
    ],
)
def test_scores_of_tokens(method, expected):
    found = layers.atp_scores(ROWS, method=method)
    np.testing.assert_allclose(found, [expected], atol=5e-7)
    every = jnp.stack([ROWS, ROWS + 1], axis=2)  # [B, H, T, T]: the first row is the class token's
    np.testing.assert_allclose(layers.atp_scores(every, method=method), found)


def test_logits_before_and_behind_the_softmax_keep_other_tokens():
    kept = [
        layers.top_k_sorted(layers.atp_scores(ROWS, method=m), 1).item()
        for m in ("sum_logits", "sum_softmax")
    ]
    assert kept == [2, 0]


def test_what_leaves_a_selection_as_it_is():
    features = jnp.asarray(RNG.normal(size=(2, 9, 5)), jnp.float32)
    rows = jnp.asarray(RNG.normal(size=(2, 3, 10)), jnp.float32)
    kept = layers.top_k_sorted(layers.app_scores(features), 4)
    for changed in (3.5 * features, -features):
        np.testing.assert_array_equal(layers.top_k_sorted(layers.app_scores(changed), 4), kept)
    tokens = layers.top_k_sorted(layers.atp_scores(rows), 4)
    moved = rows + jnp.array([0.0, 7.0, 0.0])[:, None]
    np.testing.assert_array_equal(layers.top_k_sorted(layers.atp_scores(moved), 4), tokens)


def test_the_row_of_the_class_token():
    query, key = (jnp.asarray(RNG.normal(size=(2, 4, 3, 5)), jnp.float32) for _ in range(2))
    expected = np.einsum("bhd,bthd->bht", np.float64(query[:, 0]), np.float64(key)) / np.sqrt(5)
    np.testing.assert_allclose(layers.class_logits(query, key), expected, atol=1e-5)
    gradient = jax.grad(lambda q, k: layers.class_logits(q, k).sum(), argnums=(0, 1))(query, key)
    assert not any(jnp.any(g) for g in gradient)


@pytest.mark.parametrize("method", ["random", "channel"])
def test_what_is_drawn_is_drawn_for_an_example(method):
    features = jnp.asarray(RNG.normal(size=(6, 9, 5)), jnp.float32)
    scores = layers.app_scores(features, method=method)
    np.testing.assert_array_equal(layers.app_scores(features[3:4], method=method), scores[3:4])
    if method == "random":
        assert len(set(np.argmax(scores, axis=1).tolist())) > 1 and 0 <= scores.min() <= scores.max() < 1
        rows = jnp.moveaxis(features, 2, 1)
        assert layers.atp_scores(rows, method=method).shape == (6, 8)
    else:
        assert all(
            any(np.array_equal(row, f[:, c]) for c in range(5))
            for row, f in zip(scores, features, strict=True)
        )


def test_positions_are_added_before_patches_are_dropped():
    positions = jnp.arange(8.0).reshape(1, 4, 2)
    kept, ids = layers.attentive_patch_pool(MAP, positions, 2)
    assert ids.tolist() == [[2, 3]]
    assert kept.tolist() == [[[4.0, 9.0], [9.0, 4.0]]]


def test_a_dropped_place_has_no_gradient():
    weights = jnp.asarray(RNG.normal(size=(1, 2, 2)), jnp.float32)
    gradient = jax.grad(lambda f: (weights * layers.attentive_patch_pool(f, jnp.zeros_like(f), 2)[0]).sum())(
        MAP
    )
    np.testing.assert_array_equal(gradient[0, :2], 0)
    np.testing.assert_array_equal(gradient[0, 2:], weights[0])


def test_a_learned_map_has_a_gradient_and_multiplies_the_features():
    module, positions = PatchPooling(2, "attention"), jnp.zeros((1, 4, 2))
    variables = module.init(jax.random.key(0), MAP, positions)
    assert set(variables) == {"params"}

    def total(params):
        kept, sown = module.apply({"params": params}, MAP, positions, mutable=["kept_tokens"])
        return jnp.square(kept).sum(), (kept, sown["kept_tokens"]["ids"])

    (_, (kept, ids)), gradient = jax.value_and_grad(total, has_aux=True)(variables["params"])
    scores = layers.PatchAttention().apply({"params": variables["params"]["attention"]}, MAP)
    np.testing.assert_allclose(kept, layers.gather_tokens(MAP * scores[..., None], ids), rtol=1e-6)
    assert jnp.any(gradient["attention"]["score"]["bias"] != 0)


def test_the_class_token_is_kept_and_never_ranked():
    tokens = jnp.arange(4.0)[None, :, None]
    logits = jnp.array([[[9.0, 3.0, 0.0, 2.0]]])
    pool = partial(TokenPooling(0.7).apply, {}, tokens)
    assert pool(logits).ravel().tolist() == [0, 1, 3]
    assert pool(logits.at[0, 0, 0].set(-9.0)).ravel().tolist() == [0, 1, 3]
    assert TokenPooling(1.0).apply({}, tokens, logits) is tokens


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: layers.top_k_sorted(jnp.zeros((1, 4)), 5), "k: needs an integer from 1 to 4, got 5"),
        (lambda: layers.attentive_patch_pool(MAP, MAP, 0), "keep_num: needs an integer from 1 to 4, got 0"),
        (lambda: layers.token_counts(9, (1, 0.0)), "keep_rates: needs a number above 0 and up to 1, got 0"),
        (lambda: layers.token_counts(9, (1.1,)), "keep_rates: needs a number above 0 and up to 1, got 1.1"),
        (lambda: layers.app_scores(MAP, method="energy"), "app_score: needs one of sum_abs, .*, got 'energy'"),
        (lambda: layers.app_scores(MAP, method="attention"), "app_score: 'attention' needs the map of a"),
        (lambda: layers.atp_scores(ROWS, method="mean"), "atp_score: needs one of sum_logits, .*, got 'mean'"),
    ],
)  # fmt: skip
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()


@pytest.mark.parametrize("call", [lambda: layers.app_scores(MAP[0]), lambda: layers.atp_scores(ROWS[0])])
def test_other_ranks(call):
    with pytest.raises(ValueError, match=r"needs \[B"):
        call()
