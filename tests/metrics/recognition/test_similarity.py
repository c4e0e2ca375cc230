"""Blocked similarities: the same numbers as the whole matrix, in less memory."""

import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.errors import UserError
from jaxface.metrics import (
    ScoreHistogram,
    all_pair_similarities,
    all_pairs,
    auc,
    normalize,
    pair_similarities,
    similarity_blocks,
    similarity_matrix,
    tar_at_far,
)


def people(count, per_person, width=16, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count), per_person)
    return np.asarray(
        normalize(rng.normal(size=(count, width))[labels] + noise * rng.normal(size=(labels.size, width)))
    ), labels


@pytest.mark.parametrize("block", [1, 7, 16, 1000])
def test_blocks_cover_the_matrix(block):
    a, b = np.random.default_rng(0).normal(size=(2, 23, 5)).astype(np.float32)
    b = b[:9]
    found = np.full((23, 9), np.nan)
    for rows, columns, scores in similarity_blocks(a, b, block=block):
        assert np.isnan(found[rows, columns]).all()
        found[rows, columns] = scores
    np.testing.assert_allclose(found, a @ b.T, atol=1e-5)


@pytest.mark.parametrize("block", [1, 7, 23, 64])
def test_symmetric_blocks_cover_every_pair_once(block):
    a = np.random.default_rng(1).normal(size=(23, 5)).astype(np.float32)
    seen = np.zeros((23, 23), int)
    for rows, columns, scores in similarity_blocks(a, block=block):
        seen[rows, columns] += 1
        np.testing.assert_allclose(scores, (a @ a.T)[rows, columns], atol=1e-5)
    assert (np.triu(seen) == np.triu(np.ones_like(seen))).all()


def test_every_block_runs_one_program():
    similarity_matrix.clear_cache()
    list(similarity_blocks(np.ones((100, 3), np.float32), block=32))
    assert similarity_matrix._cache_size() == 1


def test_matrix_is_full_float32_and_sharded_like_its_rows():
    a, b = np.random.default_rng(2).normal(size=(2, 16, 64)).astype(np.float32)
    assert "HIGHEST" in str(jax.make_jaxpr(similarity_matrix)(a, b))
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    result = similarity_matrix(jax.device_put(a, rows), b)
    np.testing.assert_allclose(result, a @ b.T, rtol=1e-4, atol=1e-4)
    assert result.sharding.is_equivalent_to(rows, 2)


@pytest.mark.parametrize("block", [3, 64])
def test_all_pairs_split_like_the_whole_matrix(block):
    embeddings, labels = people(9, 4)
    genuine, impostor = all_pair_similarities(embeddings, labels, block=block)
    pairs = all_pairs(labels)
    scores = pair_similarities(embeddings, pairs.indices)
    np.testing.assert_allclose(np.sort(genuine), np.sort(scores[pairs.same]), atol=1e-6)
    np.testing.assert_allclose(np.sort(impostor), np.sort(scores[~pairs.same]), atol=1e-6)
    whole = (embeddings @ embeddings.T)[np.triu_indices(36, k=1)]
    np.testing.assert_allclose(scores, whole, atol=1e-6)


def test_pairs_in_blocks_agree():
    embeddings, labels = people(9, 4)
    indices = all_pairs(labels).indices
    np.testing.assert_allclose(
        pair_similarities(embeddings, indices, block=101), pair_similarities(embeddings, indices), atol=1e-7
    )
    assert pair_similarities(embeddings, np.zeros((0, 2), int)).shape == (0,)


def test_one_person_has_no_impostors_and_strangers_no_genuine():
    genuine, impostor = all_pair_similarities(np.eye(4), np.zeros(4, int))
    assert (genuine.size, impostor.size) == (6, 0)
    genuine, impostor = all_pair_similarities(np.eye(4), np.arange(4))
    assert (genuine.size, impostor.size) == (0, 6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([4, 64, 1 << 12]), st.sampled_from([0.001, 0.01, 0.1, 0.5]))
def test_histogram_brackets_the_exact_rate(seed, bins, far):
    rng = np.random.default_rng(seed)
    genuine = np.clip(rng.normal(0.3, 0.3, 80), -1, 1)
    impostor = np.clip(rng.normal(0, 0.3, 500), -1, 1).round(int(rng.integers(1, 6)))
    histogram = ScoreHistogram(bins=bins)
    for part in np.split(impostor, 5):
        histogram.add(impostor=part)
    histogram.add(genuine=genuine.reshape(8, 10))
    found, exact = histogram.tar_at_far(far), tar_at_far(genuine, impostor, far)
    assert found.far <= exact.far <= far
    assert found.tar <= exact.tar <= found.tar_upper
    assert -1e-12 <= found.threshold - exact.threshold <= 2 / bins + 1e-12
    assert found.far == np.mean(impostor >= found.threshold) or found.threshold == 1.0
    assert found.resolvable == exact.resolvable


def test_histogram_of_all_pairs_agrees_with_the_exact_path():
    embeddings, labels = people(30, 6)
    histogram = ScoreHistogram()
    histogram.add_all_pairs(embeddings, labels, block=50)
    genuine, impostor = all_pair_similarities(embeddings, labels)
    assert (histogram.genuine.sum(), histogram.impostor.sum()) == (genuine.size, impostor.size)
    fars = [1e-3, 1e-2, 1e-1]
    found, exact = histogram.tar_at_far(fars, strict=True), tar_at_far(genuine, impostor, fars)
    assert (found.tar <= exact.tar).all()
    assert (exact.tar <= found.tar_upper).all()
    np.testing.assert_allclose(found.tar, exact.tar, atol=0.01)


def test_histogram_refusals():
    histogram = ScoreHistogram(bins=10)
    for bad in ([3.0], [np.nan], [-np.inf]):
        with pytest.raises(UserError, match="normalize the embeddings"):
            histogram.add(impostor=bad)
    histogram.add(impostor=[1.0 + 1e-6, -1.0 - 1e-6, 0.0])
    np.testing.assert_array_equal(histogram.impostor[[0, 5, 9]], 1)
    with pytest.raises(UserError, match="genuine: needs at least one score"):
        histogram.tar_at_far(0.5)
    histogram.add(genuine=[0.9])
    with pytest.raises(UserError, match="more impostor scores than the 3"):
        histogram.tar_at_far(0.1, strict=True)
    assert histogram.tar_at_far(0.1).resolvable is False
    with pytest.raises(ValueError, match="low < high"):
        ScoreHistogram(low=1.0, high=1.0)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: list(similarity_blocks(np.ones((3, 2)), np.ones((3, 4)))), ValueError, "same width"),
        (lambda: list(similarity_blocks(np.ones((3, 2)), block=0)), ValueError, "block"),
        (lambda: all_pair_similarities(np.ones((3, 2)), [0, 1]), ValueError, "labels"),
        (lambda: all_pair_similarities(np.full((3, 2), np.nan), [0, 1, 1]), UserError, "needs finite"),
        (lambda: pair_similarities(np.ones((3, 2)), [[0, 3]]), ValueError, "pairs"),
        (lambda: pair_similarities(np.ones((3, 2)), [[0.5, 1]]), ValueError, "pairs"),
        (lambda: pair_similarities(np.ones((3, 2)), [0, 1]), ValueError, "pairs"),
    ],
)
def test_bad_input_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_memory_stays_below_the_matrix():
    embeddings, labels = people(400, 5, width=8)
    tracemalloc.start()
    genuine, impostor = all_pair_similarities(embeddings, labels, block=256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = genuine.nbytes + impostor.nbytes
    assert kept == 4 * (2000 * 1999 // 2)
    assert peak < kept + 4e6 < 8 * 2000**2


@pytest.mark.slow
def test_a_set_of_the_size_of_lfw():
    embeddings, labels = people(13_233 // 3, 3, width=8, noise=0.5)
    genuine, impostor = all_pair_similarities(embeddings, labels)
    count = labels.size
    assert genuine.size + impostor.size == count * (count - 1) // 2 == 87_549_528
    exact = tar_at_far(genuine, impostor, [1e-5, 1e-3])
    histogram = ScoreHistogram()
    histogram.add(genuine=genuine, impostor=impostor)
    found = histogram.tar_at_far([1e-5, 1e-3])
    assert (found.tar <= exact.tar).all()
    assert (exact.tar <= found.tar_upper).all()
    assert 0.5 < auc(genuine, impostor) <= 1
