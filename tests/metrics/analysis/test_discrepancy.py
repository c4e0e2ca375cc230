import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError
from jaxface.metrics import (
    adaptive_snorm,
    aligned_similarity,
    filter_candidates,
    gallery_similarity,
    group_false_accepts,
    local_discrepancy,
    local_discrepancy_cap,
    pairwise_aligned_similarity,
)


def plane(*angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def units(count, size=16, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


IMAGES, CANDIDATES = plane(0.0, 0.5), plane(0.2, 1.0, 2.0, -0.3)
SIMILARITY = 0.877583


# Vectors at angles on a circle, worked out in float64: cosines of differences of the angles.
@pytest.mark.parametrize(
    ("k", "mean", "aligned", "deviation", "snorm"),
    [
        (1, (0.980067, 0.955336), -0.090119, (0.0, 0.0), None),
        (2, (0.967702, 0.916460), -0.064498, (0.012365, 0.038877), -4.144102),
        (4, (0.514890, 0.650091), 0.295092, (0.565212, 0.347401), 0.648266),
    ],
)
def test_the_worked_example(k, mean, aligned, deviation, snorm):
    found = local_discrepancy(IMAGES, CANDIDATES, k=k)
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.deviation, deviation, atol=1e-6)
    np.testing.assert_array_equal(found.count, k)
    similarity = IMAGES[0] @ IMAGES[1]
    np.testing.assert_allclose(similarity, SIMILARITY, atol=1e-6)
    np.testing.assert_allclose(aligned_similarity(similarity, *found.mean), aligned, atol=1e-6)
    table = pairwise_aligned_similarity(IMAGES, found.mean, IMAGES, found.mean)
    np.testing.assert_allclose(table[0, 1], aligned, atol=1e-6)
    np.testing.assert_allclose(table, table.T, atol=1e-7)
    if snorm is not None:
        value = adaptive_snorm(
            similarity, found.mean[0], found.deviation[0], found.mean[1], found.deviation[1]
        )
        np.testing.assert_allclose(value, snorm, rtol=1e-4)


def test_a_pair_of_a_sparse_region_passes_one_of_a_crowd():
    np.testing.assert_allclose(aligned_similarity(0.60, 0.45, 0.41), 0.17, atol=1e-6)
    np.testing.assert_allclose(aligned_similarity(0.50, 0.12, 0.10), 0.39, atol=1e-6)


def test_weight_symmetry_rotation():
    rows, candidates = units(5), units(40, seed=1)
    found = local_discrepancy(rows, candidates, k=7)
    cosines = rows @ rows.T
    np.testing.assert_array_equal(
        pairwise_aligned_similarity(rows, found.mean, rows, found.mean, weight=0.0),
        metrics.similarity_matrix(rows, rows),
    )
    first, second = found.mean[:, None], found.mean[None]
    both = aligned_similarity(cosines, first, second, weight=0.7)
    np.testing.assert_array_equal(both, aligned_similarity(cosines, second, first, weight=0.7))
    # With squared distances the correction is added.
    distance = 2 - 2 * cosines + 0.7 * (first + second)
    np.testing.assert_allclose(distance, 2 - 2 * both, atol=1e-6)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(16, 16)))[0].astype(np.float32)
    turned = local_discrepancy(rows @ turn, candidates @ turn, k=7)
    np.testing.assert_allclose(turned.mean, found.mean, atol=1e-6)
    np.testing.assert_allclose(turned.deviation, found.deviation, atol=1e-6)


def test_equal_discrepancies_leave_the_curve():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(0.5, 0.2, 200), rng.normal(0, 0.2, 2000)
    shifted = [np.asarray(aligned_similarity(x, 0.375, 0.375)) for x in (genuine, impostor)]
    fars = [1e-3, 1e-2, 0.1, 0.5]
    before, after = metrics.tar_at_far(genuine, impostor, fars), metrics.tar_at_far(*shifted, fars)
    np.testing.assert_array_equal(before.tar, after.tar)
    np.testing.assert_allclose(before.threshold - after.threshold, 0.375, atol=1e-6)


@pytest.mark.slow
def test_more_neighbors_are_farther_and_more_candidates_nearer():
    rows, candidates = units(6), units(50, seed=1)
    means = [local_discrepancy(rows, candidates, k=k).mean for k in range(1, 51)]
    np.testing.assert_allclose(means[-1], (rows @ candidates.T).mean(1), atol=1e-6)
    assert (np.diff(means, axis=0) <= 1e-6).all()
    growing = [local_discrepancy(rows, candidates[:m], k=5).mean for m in (5, 6, 10, 50)]
    assert (np.diff(growing, axis=0) >= -1e-6).all()


@pytest.mark.parametrize(("tile", "rows"), [(128, 1024), (128, 8), (1003, 5), (3, 37), (10_000, 10_000)])
def test_tiles_change_nothing(tile, rows):
    """37 images, 1003 candidates and 11 neighbors against the whole matrix sorted in numpy."""
    images, candidates = units(37), units(1003, seed=1)
    nearest = -np.sort(-(images @ candidates.T), axis=1)[:, :11]
    found = local_discrepancy(images, candidates, k=11, tile=tile, rows=rows)
    np.testing.assert_allclose(found.mean, nearest.mean(1), atol=1e-6)
    np.testing.assert_allclose(found.deviation, nearest.std(1), atol=1e-6)
    labels, others = np.arange(37) % 5, np.arange(1003) % 5
    usable = labels[:, None] != others[None]
    nearest = -np.sort(-np.where(usable, images @ candidates.T, -9), axis=1)[:, :11]
    for arguments in ({"mask": usable}, {"labels": labels, "candidate_labels": others}):
        found = local_discrepancy(images, candidates, k=11, tile=tile, rows=rows, **arguments)
        np.testing.assert_allclose(found.mean, nearest.mean(1), atol=1e-6)
    found = local_discrepancy(images, candidates, k=11, tile=tile, rows=rows, same_above=0.3)
    below = np.where(images @ candidates.T <= 0.3, images @ candidates.T, -9)
    np.testing.assert_allclose(found.mean, -np.sort(-below, axis=1)[:, :11].mean(1), atol=1e-6)


def test_masked_candidates_never_enter():
    mask = np.array([[False, True, True, True], [True, True, True, True]])
    found = local_discrepancy(IMAGES, CANDIDATES, k=1, mask=mask)
    np.testing.assert_allclose(found.mean[0], 0.955336, atol=1e-6)  # cos 0.3
    same = local_discrepancy(
        IMAGES, CANDIDATES, k=1, labels=np.array([7, 8]), candidate_labels=np.array([7, 1, 2, 3])
    )
    np.testing.assert_array_equal(same.mean, found.mean)
    found = local_discrepancy(IMAGES, CANDIDATES, k=1, same_above=0.97)
    np.testing.assert_allclose(found.mean[0], 0.955336, atol=1e-6)


def test_a_support_set_may_be_small_or_empty():
    mask = np.array([[False, True, False, False], [False, False, False, False]])
    found = local_discrepancy(IMAGES, CANDIDATES, k=3, mask=mask)
    np.testing.assert_array_equal(found.count, [1, 0])
    np.testing.assert_allclose(found.mean[0], np.cos(1.0), atol=1e-6)
    assert found.deviation[0] == 0 and np.isnan(found.mean[1]) and np.isnan(found.deviation[1])
    capped = local_discrepancy_cap(IMAGES, CANDIDATES, 0.9, k_min=2, k_max=3, mask=mask)
    np.testing.assert_array_equal(capped.count, [1, 0])


def test_the_cap_follows_the_crowd():
    images, candidates = units(20, size=4), units(300, size=4, seed=1)
    ordered = -np.sort(-(images @ candidates.T), axis=1)
    for cap, low, high in ((0.8, 1, 300), (0.8, 20, 40), (0.95, 5, 5), (1.0, 3, 9), (-1.0, 3, 9)):
        found = local_discrepancy_cap(images, candidates, cap, k_min=low, k_max=high, tile=64)
        sizes = np.clip((ordered >= cap).sum(1), low, high)
        np.testing.assert_array_equal(found.count, sizes)
        means = [row[:size].mean() for row, size in zip(ordered, sizes, strict=True)]
        np.testing.assert_allclose(found.mean, means, atol=1e-6)
    assert len(set(sizes.tolist())) == 1


def test_gradients():
    grads = jax.grad(lambda s, a, b: aligned_similarity(s, a, b, weight=0.6), argnums=(0, 1, 2))(
        0.3, 0.2, 0.1
    )
    np.testing.assert_allclose(grads, [1.0, -0.3, -0.3], atol=1e-7)
    rows, candidates = jnp.asarray(units(3)), jnp.asarray(units(30, seed=1))

    def mean(rows):
        return local_discrepancy(rows, candidates, k=4, tile=7, rows=2).mean.sum()

    nearest = np.argsort(-(rows @ candidates.T), axis=1)[:, :4]
    np.testing.assert_allclose(jax.grad(mean)(rows), candidates[nearest].mean(1), atol=1e-6)
    single = jax.grad(lambda x: local_discrepancy(x, candidates, k=1).deviation.sum())(rows)
    np.testing.assert_array_equal(single, 0)


def test_compiled_mapped_and_in_bfloat16():
    rows, candidates = units(6), units(64, seed=1)
    expected = local_discrepancy(rows, candidates, k=5)
    compiled = jax.jit(lambda x, v: local_discrepancy(x, v, k=5, tile=10))(rows, candidates)
    mapped = jax.vmap(lambda x: local_discrepancy(x[None], candidates, k=5).mean[0])(rows)
    np.testing.assert_allclose(compiled.mean, expected.mean, atol=1e-6)
    np.testing.assert_allclose(mapped, expected.mean, atol=1e-6)
    half = local_discrepancy(jnp.asarray(rows, jnp.bfloat16), jnp.asarray(candidates, jnp.bfloat16), k=5)
    assert half.mean.dtype == jnp.float32
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (rows, candidates)]
    nearest = -np.sort(-(rounded[0] @ rounded[1].T), axis=1)[:, :5]
    np.testing.assert_allclose(half.mean, nearest.mean(1), atol=1e-6)


def test_a_gallery_leaves_out_the_entry_that_is_compared():
    probes, gallery, k = units(7), units(23, seed=1), 4
    probes[0] = gallery[3]  # the person is there: its entry would spoil the support set
    own = local_discrepancy(
        gallery, gallery, k=k, labels=np.arange(23), candidate_labels=np.arange(23), tile=5
    ).mean
    scores = gallery_similarity(probes, gallery, own, k=k, tile=5, rows=3, weight=0.8)
    cosines = probes @ gallery.T
    for p in range(7):
        for g in range(23):
            others = np.delete(cosines[p], g)
            d = np.sort(others)[-k:].mean()
            np.testing.assert_allclose(scores[p, g], cosines[p, g] - 0.4 * (d + own[g]), atol=2e-6)
    with pytest.raises(UserError, match=r"k: needs at most the other 22 entries of the gallery, got 23"):
        gallery_similarity(probes, gallery, own, k=23)


def test_snorm_divides_by_no_zero():
    assert np.isfinite(adaptive_snorm(0.5, 0.2, 0.0, 0.1, 0.0))
    np.testing.assert_allclose(adaptive_snorm(0.5, 0.2, 0.1, 0.1, 0.2), 0.5 * (3 + 2), rtol=1e-6)


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_generated_faces_are_filtered_in_their_order(block):
    rows = plane(0.0, 0.1, 0.65, 0.7, 1.5, 3.0)
    keep = filter_candidates(rows, duplicates_above=0.8, block=block)  # 0.8 is an angle of 0.6435
    np.testing.assert_array_equal(keep, [True, False, True, False, True, True])
    # A face that is dropped takes no other with it, and the next ones are compared with those that are kept.
    scores = [0.5, 0.95, 0.99, 0.9, 0.89, 1.0]
    keep = filter_candidates(rows, scores, duplicates_above=0.8, block=block)
    np.testing.assert_array_equal(keep, [False, True, False, False, False, True])
    keep = filter_candidates(rows[1:], [0.5, 0.95, 0.99, 1.0, 0.9], duplicates_above=0.8, block=block)
    np.testing.assert_array_equal(keep, [False, True, False, True, True])
    np.testing.assert_array_equal(filter_candidates(rows, duplicates_above=1.0, block=block), True)


def test_rates_of_groups_at_one_threshold():
    scores = np.concatenate([np.linspace(0, 1, 1000), np.linspace(0, 0.5, 1000)])
    groups = np.repeat([3, 5], 1000)
    found = group_false_accepts(scores, groups, 0.3)
    np.testing.assert_array_equal(found.groups, [3, 5])
    np.testing.assert_allclose(
        found.rates, [0.533, 0.067], atol=2e-3
    )  # 2000 · 0.3 = 600 = (1 - t + 1 - 2t) 1000
    np.testing.assert_allclose(found.spread, np.log10(found.rates[0] / found.rates[1]), rtol=1e-6)
    assert (scores > found.threshold).mean() <= 0.3
    none = group_false_accepts(scores, groups, 0.1)
    np.testing.assert_allclose(none.rates, [0.2, 0.0])
    np.testing.assert_allclose(none.spread, np.log10(0.2 / 0.0005), rtol=1e-6)  # as if half a pair passed
    assert group_false_accepts(scores, np.zeros(2000, int), 0.1).spread == 0
    low = group_false_accepts(scores, groups, 0.5, pooled=np.linspace(0, 0.1, 100))
    np.testing.assert_allclose(low.threshold, 0.0495, atol=1e-3)


def test_a_weight_fitted_to_labeled_people():
    """Closed forms: a line through the points, its slope clipped to [0, 1]."""
    labeled = [0.2, 0.3, 0.4, 0.5]
    assert metrics.discrepancy_weight(labeled, [0.1, 0.3, 0.5, 0.7]) == pytest.approx(0.5)  # d* = d / 2 + .15
    assert metrics.discrepancy_weight(labeled, [0.01, 0.02, 0.03, 0.04]) == 1.0  # slope 10
    assert metrics.discrepancy_weight(labeled, [0.7, 0.5, 0.3, 0.1]) == 0.0  # slope -1/2
    assert (
        metrics.discrepancy_weight(labeled, [0.3, 0.3, 0.3, 0.3 + 1e-7]) == 0.0
    )  # a constant, up to rounding
    assert metrics.discrepancy_weight([*labeled, 9.0], [0.1, 0.3, 0.5, 0.7, np.nan]) == pytest.approx(0.5)
    # Deviations of d are (-1, 0, 1) / 10: the slope is 5 (d*_3 - d*_1).
    assert metrics.discrepancy_weight([0.1, 0.5, 0.3], [0.1, 0.2, 0.3]) == pytest.approx(1.0)
    assert metrics.discrepancy_weight([0.1, 0.5, 0.2], [0.1, 0.2, 0.3]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="need one shape"):
        metrics.discrepancy_weight([0.1, 0.2], [0.1, 0.2, 0.3])


def test_mean_cosine_of_pairs():
    """Against all pairs of the matrix, and at both ends: a generator of one face, and opposite ones."""
    rows = units(40)
    np.testing.assert_allclose(
        metrics.mean_pair_cosine(rows), (rows @ rows.T)[np.triu_indices(40, k=1)].mean(), atol=1e-7
    )
    assert metrics.mean_pair_cosine(np.tile(rows[:1], (9, 1))) == pytest.approx(1.0, abs=1e-6)
    assert metrics.mean_pair_cosine(plane(0.0, np.pi)) == pytest.approx(-1.0, abs=1e-6)
    with pytest.raises(UserError, match="rows: pairs need at least two, got 1"):
        metrics.mean_pair_cosine(rows[:1])


BAD = np.concatenate([units(3), 1.01 * units(1)])
HOLED = np.concatenate([units(3), np.full((1, 16), np.nan, np.float32)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: local_discrepancy(BAD, units(4), k=1), "embeddings: needs rows of length 1"),
        (lambda: local_discrepancy(units(4), BAD, k=1), "candidates: needs rows of length 1"),
        (lambda: local_discrepancy(HOLED, units(4), k=1), "embeddings: needs finite values, "),
        (lambda: local_discrepancy(units(4), HOLED, k=1), "candidates: needs finite values, "),
        (
            lambda: local_discrepancy(units(2), units(4), k=0),
            "k: needs 1 to the 4 candidates there are, got 0",
        ),
        (
            lambda: local_discrepancy(units(2), units(4), k=5),
            "k: needs 1 to the 4 candidates there are, got 5",
        ),
        (lambda: local_discrepancy(units(2), units(4)[:0], k=1), "candidates: needs"),
        (
            lambda: local_discrepancy(units(2), units(4), k=1, labels=np.zeros(2, int)),
            "candidate_labels: needed",
        ),
        (
            lambda: local_discrepancy(units(2), units(4), k=1, candidate_labels=np.zeros(4, int)),
            "labels: needed",
        ),
        (lambda: local_discrepancy(units(2), units(4), k=1, same_above=float("nan")), "same_above: needs"),
        (lambda: local_discrepancy(units(2), units(4), k=1, tile=0), "tile: needs"),
        (
            lambda: local_discrepancy_cap(units(2), units(9), 1.1, k_min=1, k_max=2),
            "cap: needs a number from -1 to 1",
        ),
        (
            lambda: local_discrepancy_cap(units(2), units(9), float("nan"), k_min=1, k_max=2),
            "cap: needs a number from -1 to 1",
        ),
        (lambda: local_discrepancy_cap(units(2), units(9), 0.5, k_min=3, k_max=2), "k_min: needs"),
        (
            lambda: local_discrepancy_cap(units(2), units(9), 0.5, k_min=3, k_max=10),
            "k_max: needs 1 to the 9",
        ),
        (lambda: filter_candidates(BAD), "candidates: needs rows of length 1"),
        (
            lambda: filter_candidates(units(3), duplicates_above=2.0),
            "duplicates_above: needs a number from -1 to 1",
        ),
        (lambda: group_false_accepts(np.ones(3), np.ones(3, int), 0.0), "far: needs rates"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: local_discrepancy(units(2, size=8), units(4), k=1),
        lambda: local_discrepancy(units(2)[0], units(4), k=1),
        lambda: local_discrepancy(units(2).astype(int), units(4), k=1),
        lambda: local_discrepancy(units(2), units(4), k=1, mask=np.ones((4, 2), bool)),
        lambda: filter_candidates(units(3), np.ones(2)),
        lambda: group_false_accepts(np.ones(3), np.ones(2), 0.1),
    ],
)
def test_wrong_shapes(call):
    with pytest.raises(ValueError, match=r"needs? ") as caught:
        call()
    assert not isinstance(caught.value, UserError)


def test_memory_stays_at_a_block():
    """A compiled program for 10^5 images and 10^6 candidates, whose similarities would be 400 GB."""
    shapes = (
        jax.ShapeDtypeStruct((100_000, 128), jnp.float32),
        jax.ShapeDtypeStruct((1_000_000, 128), jnp.float32),
    )
    program = jax.jit(lambda x, v: local_discrepancy(x, v, k=50)).lower(*shapes).compile()
    inputs = (100_000 + 1_000_000) * 128 * 4
    assert program.memory_analysis().temp_size_in_bytes < inputs + 3e8


@pytest.mark.slow
def test_a_gallery_of_a_hundred_thousand():
    gallery, probes = units(100_000, size=32), units(300, size=32, seed=1)
    found = local_discrepancy(probes, gallery, k=50)
    nearest = -np.sort(-(probes @ gallery.T), axis=1)[:, :50]
    np.testing.assert_allclose(found.mean, nearest.mean(1), atol=1e-6)
