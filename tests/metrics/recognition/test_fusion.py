import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError
from jaxface.metrics import RgbdTemplates
from jaxface.metrics.recognition import fusion


def unit(rng, *shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def templates(seed, count):
    rng = np.random.default_rng(seed)
    return RgbdTemplates(unit(rng, count, 6), unit(rng, count, 4), rng.normal(size=count).astype(np.float32))


def products(a, b):
    return a.rgb @ b.rgb.T, a.depth @ b.depth.T


def test_a_pair_by_hand():
    a = metrics.confidence_logit(jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]])))
    np.testing.assert_allclose(a, [np.log(9), np.log(0.25)], rtol=1e-5)
    weight = 0.9 * 0.2 / (0.9 * 0.2 + 0.1 * 0.8)  # 9 / 13 = 0.692308
    np.testing.assert_allclose(metrics.pair_weight(a[:1], a[1:]), [[weight]], atol=1e-6)
    fused = metrics.fuse_scores(jnp.array([[0.1]]), jnp.array([[0.8]]), a[:1], a[1:])
    np.testing.assert_allclose(fused, [[weight * 0.1 + (1 - weight) * 0.8]], atol=1e-6)  # 0.315385
    # A gallery that trusts both alike leaves the probe's own confidence.
    np.testing.assert_allclose(metrics.pair_weight(a[:1], jnp.zeros(1)), [[0.9]], atol=1e-6)
    alone = metrics.fuse_scores(jnp.array([[0.1]]), jnp.array([[0.8]]), a[:1])
    np.testing.assert_allclose(alone, [[0.9 * 0.1 + 0.1 * 0.8]], atol=1e-6)


def test_confidence_from_logits():
    logits = jnp.array([1.2, -0.3])
    expected = 1 / (1 + np.exp(-1.5))  # 0.817574
    np.testing.assert_allclose(jax.nn.softmax(logits), [expected, 1 - expected], atol=1e-6)
    np.testing.assert_allclose(jax.nn.sigmoid(metrics.confidence_logit(logits)), expected, atol=1e-6)
    assert metrics.confidence_logit(jnp.array([[99.0, -99.0], [-99.0, 99.0]])).tolist() == [15, -15]


def test_equal_confidences_rank_as_the_sum():
    probes, gallery = (t._replace(logit=np.zeros(len(t.logit))) for t in (templates(0, 5), templates(1, 7)))
    rgb, depth = products(probes, gallery)
    fused = metrics.fused_similarities(probes, gallery)
    np.testing.assert_allclose(fused, (rgb + depth) / 2, atol=1e-6)
    np.testing.assert_array_equal(np.argsort(fused, axis=1), np.argsort(rgb + depth, axis=1))


@pytest.mark.parametrize(("logit", "part"), [(15.0, 0), (-15.0, 1)])
def test_extreme_confidence_leaves_one_modality(logit, part):
    probes, gallery = (
        t._replace(logit=np.full(len(t.logit), logit)) for t in (templates(0, 5), templates(1, 7))
    )
    fused = metrics.fused_similarities(probes, gallery)
    np.testing.assert_allclose(fused, products(probes, gallery)[part], atol=1e-6)


def test_symmetry_and_bounds():
    one, two = templates(0, 9), templates(1, 8)
    rgb, depth = products(one, two)
    fused = np.asarray(metrics.fused_similarities(one, two))
    np.testing.assert_allclose(fused, metrics.fused_similarities(two, one).T, atol=1e-6)
    assert (fused >= np.minimum(rgb, depth) - 1e-6).all() and (fused <= np.maximum(rgb, depth) + 1e-6).all()
    same = jnp.full((9, 8), 0.7)
    np.testing.assert_array_equal(metrics.fuse_scores(same, same, one.logit, two.logit), same)


def test_longer_features_change_nothing_but_the_confidence():
    rng = np.random.default_rng(0)
    f = rng.normal(size=(4, 6)).astype(np.float32)
    rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f, 3 * f)]
    np.testing.assert_allclose(rows[0] @ rows[0].T, rows[1] @ rows[1].T, atol=1e-6)


@pytest.mark.parametrize("other", [-14.0, 0.0, 14.0])
def test_a_missing_modality_has_no_weight_whatever_the_gallery_says(other):
    probes, gallery = templates(0, 4), templates(1, 6)._replace(logit=np.full(6, other, np.float32))
    rgb, depth = products(probes, gallery)
    yes, no = np.ones(4, bool), np.zeros(4, bool)
    for has, expected in (((yes, no), rgb), ((no, yes), depth)):
        fused = metrics.fused_similarities(metrics.missing_modality(probes, *has), gallery)
        np.testing.assert_allclose(fused, expected, atol=2e-6)
    some = metrics.missing_modality(probes, np.array([1, 0, 1, 1]), np.array([1, 1, 0, 1]))
    np.testing.assert_allclose(some.logit, [probes.logit[0], -15, 15, probes.logit[3]])
    assert (some.rgb[1] == 0).all() and (some.depth[2] == 0).all() and (some.rgb[0] == probes.rgb[0]).all()


def test_nothing_in_common_scores_zero():
    probes = metrics.missing_modality(templates(0, 2), [1, 1], [0, 0])
    gallery = metrics.missing_modality(templates(1, 3), [0, 0, 0], [1, 1, 1])
    np.testing.assert_array_equal(metrics.pair_weight(probes.logit, gallery.logit), np.full((2, 3), 0.5))
    np.testing.assert_array_equal(metrics.fused_similarities(probes, gallery), np.zeros((2, 3)))


@pytest.mark.parametrize("block", [1, 3, 5, 64])
@pytest.mark.parametrize("probe_only", [False, True])
def test_blocks_change_nothing(block, probe_only):
    probes, gallery = templates(0, 11), templates(1, 13)
    whole = metrics.fuse_scores(
        *map(jnp.asarray, products(probes, gallery)),
        jnp.asarray(probes.logit),
        None if probe_only else jnp.asarray(gallery.logit),
        spread=(0.2, 0.4),
    )
    options = dict(probe_only=probe_only, spread=(0.2, 0.4), block=block)
    fused = metrics.fused_similarities(probes, gallery, **options)
    np.testing.assert_allclose(fused, whole, atol=1e-6)
    scores, found = metrics.fused_search(probes, gallery, k=4, **options)
    np.testing.assert_array_equal(found, np.argsort(-np.asarray(fused), axis=1, kind="stable")[:, :4])
    np.testing.assert_allclose(scores, np.take_along_axis(np.asarray(fused), np.asarray(found), 1), atol=1e-6)


def test_a_search_never_holds_all_scores():
    probes, gallery = (RgbdTemplates(*map(jnp.asarray, templates(s, n))) for s, n in ((0, 4096), (1, 1000)))
    compiled = fusion._search.lower(probes, gallery, jnp.ones(2), k=1, probe_only=False, block=64).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 1000 * 4 / 4


def test_ties_go_to_the_first():
    gallery = RgbdTemplates(np.ones((3, 1)), np.ones((3, 1)), np.zeros(3))
    probe = RgbdTemplates(np.ones((1, 1)), np.ones((1, 1)), np.zeros(1))
    assert metrics.fused_search(probe, gallery, k=3)[1].tolist() == [[0, 1, 2]]
    assert metrics.rank1([[0.9, 0.1], [0.2, 0.3]], [7, 8], [7, 8]) == 1.0
    assert metrics.rank1([[0.5, 0.5]], [7], [7, 8]) == 1.0 and metrics.rank1([[0.5, 0.5]], [8], [7, 8]) == 0.0
    # Several images of a person in the gallery: the best of them counts.
    assert metrics.rank1([[0.1, 0.4, 0.9]], [7], [7, 8, 7]) == 1.0


def test_rules_that_are_the_same_for_all_images():
    rgb, depth = np.array([[0.2, 0.8]]), np.array([[0.6, 0.0]])
    for rule, expected in (
        ("rgb", rgb), ("depth", depth), ("sum", [[0.4, 0.4]]), ("max", [[0.6, 0.8]]), (0.25, [[0.5, 0.2]]),
    ):  # fmt: skip
        np.testing.assert_allclose(metrics.combine_scores(rgb, depth, rule), expected, rtol=1e-6)


def test_one_spread_for_both():
    rng = np.random.default_rng(0)
    narrow = np.concatenate([np.full((40, 1), 4.0), rng.normal(size=(40, 8))], axis=1)
    rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (narrow, rng.normal(size=(40, 9)))]
    labels = np.repeat(np.arange(10), 4)
    spread = tuple(metrics.impostor_spread(x, labels) for x in rows)
    other = labels[:, None] != labels
    for sigma, x in zip(spread, rows, strict=True):
        np.testing.assert_allclose(sigma, (x @ x.T)[other].std(), rtol=1e-4)
    assert spread[0] < 0.7 * spread[1]
    equal = metrics.equalize(rows[0] @ rows[0].T, rows[1] @ rows[1].T, spread)
    deviations = [np.asarray(x)[other].std() for x in equal]
    np.testing.assert_allclose(deviations, np.sqrt(spread[0] * spread[1]), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rgb": np.full((3, 6), 0.5, np.float32)}, "gallery.rgb: needs rows of length 1"),
        ({"depth": np.full((3, 4), np.nan, np.float32)}, "gallery.depth: needs finite values"),
        ({"logit": np.full(3, np.inf)}, "gallery.logit: needs finite"),
        ({"logit": np.zeros(2)}, "gallery: rgb, depth and logit need one length"),
        ({"rgb": np.eye(3, dtype=np.float32)}, "need rgb embeddings of one size, got 6 and 3"),
    ],
)
def test_templates_that_cannot_be_compared_are_refused(change, words):
    for search in (metrics.fused_similarities, metrics.fused_search):
        with pytest.raises((UserError, ValueError), match=words):
            search(templates(0, 2), templates(1, 3)._replace(**change))


def test_refusals():
    empty = RgbdTemplates(np.zeros((0, 6)), np.zeros((0, 4)), np.zeros(0))
    with pytest.raises(UserError, match="gallery: needs at least one image"):
        metrics.fused_search(templates(0, 2), empty)
    with pytest.raises(UserError, match="probes: needs at least one image"):
        metrics.fused_similarities(empty, templates(0, 2))
    with pytest.raises(UserError, match="gallery: needs at least one image"):
        metrics.pair_weight(jnp.zeros(2), jnp.zeros(0))
    with pytest.raises(UserError, match="k: needs an integer from 1 to 3, got 4"):
        metrics.fused_search(templates(0, 2), templates(1, 3), k=4)
    with pytest.raises(ValueError, match="query, gallery: need shapes"):
        metrics.fuse_scores(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(UserError, match="spread: needs two positive numbers, got 0"):
        metrics.fuse_scores(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros(2), spread=(1.0, 0.0))
    with pytest.raises(UserError, match="image 1 has neither"):
        metrics.missing_modality(templates(0, 2), [1, 0], [1, 0])
    with pytest.raises(UserError, match="at least two people"):
        metrics.impostor_spread(templates(0, 3).rgb, np.zeros(3, int))
    with pytest.raises(UserError, match="all the same"):
        metrics.impostor_spread(np.ones((4, 1)), np.arange(4))
    with pytest.raises(ValueError, match="logits: needs shape"):
        metrics.confidence_logit(jnp.zeros(3))
    for scores in ([[]], [[np.nan]]):
        with pytest.raises(UserError, match="scores"):
            metrics.rank1(scores, [0], np.zeros(len(scores[0]), int))
