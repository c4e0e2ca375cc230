"""One search for neighbors: every option against the whole matrix, sorted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxface import search
from jaxface.errors import UserError

QUERIES, CANDIDATES, SIZE = 13, 41, 6


def rows(count, seed):
    return np.random.default_rng(seed).normal(size=(count, SIZE)).astype(np.float32)


def by_sorting(scores, allowed, k):
    """(scores, ids) of the k largest allowed scores [Q, N], ties to the lower index; -inf and -1 past those there are."""
    scores = np.where(allowed, scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    return best, np.where(np.isneginf(best), -1, order)


def same(found, expected):
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[0].dtype == jnp.float32 and found[1].dtype == jnp.int32


Q, V = rows(QUERIES, 0), rows(CANDIDATES, 1)
SCORES = Q @ V.T
MASK = np.random.default_rng(2).random((QUERIES, CANDIDATES)) < 0.3
MASK[4] = False
LABELS, CANDIDATE_LABELS = np.arange(QUERIES) % 3, np.arange(CANDIDATES) % 3
EXCLUDED = np.r_[np.argmax(SCORES, axis=1)[:-1], 99].astype(np.int32)  # 99: none
OPTIONS = {
    "all": ({}, np.ones_like(MASK)),
    "mask": ({"mask": MASK}, MASK),
    "labels": (
        {"labels": LABELS, "candidate_labels": CANDIDATE_LABELS},
        LABELS[:, None] != CANDIDATE_LABELS,
    ),
    "exclude": ({"exclude": EXCLUDED}, np.arange(CANDIDATES) != EXCLUDED[:, None]),
    "at_most": ({"at_most": 1.0}, SCORES <= 1.0),
}
OPTIONS["together"] = (
    {name: value for keywords, _ in OPTIONS.values() for name, value in keywords.items()},
    np.logical_and.reduce([allowed for _, allowed in OPTIONS.values()]),
)


@pytest.mark.parametrize("blocks", [(1024, 8192), (5, 7), (13, 4)], ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_neighbors_are_those_of_the_sorted_matrix(option, blocks):
    keywords, allowed = OPTIONS[option]
    found = search.nearest(Q, V, 9, query_block=blocks[0], candidate_block=blocks[1], **keywords)
    same(found, by_sorting(SCORES, allowed, 9))


@pytest.mark.parametrize("k", [1, CANDIDATES])
def test_one_neighbor_and_all_of_them(k):
    same(search.nearest(Q, V, k, query_block=4, candidate_block=10), by_sorting(SCORES, True, k))


@pytest.mark.parametrize("block", [1, 3, 100])
def test_ties_go_to_the_lower_index(block):
    candidates = np.repeat(np.eye(2, dtype=np.float32), [4, 3], axis=0)[[6, 0, 5, 1, 2, 4, 3]]
    _, ids = search.nearest(np.eye(2, dtype=np.float32), candidates, 7, candidate_block=block)
    np.testing.assert_array_equal(ids, [[1, 3, 4, 6, 0, 2, 5], [0, 2, 5, 1, 3, 4, 6]])


@pytest.mark.parametrize(("length", "k"), [(64, 1), (1000, 3), (4999, 1), (4999, 5)])
def test_chunks_give_the_positions_of_the_whole_row(length, k):
    scores = np.random.default_rng(length).integers(0, 40, (50, length)).astype(np.float32)  # many ties
    scores[:, ::3] = -np.inf
    scores[0] = -np.inf
    expected = by_sorting(scores, np.isfinite(scores), k)
    best, positions = search._best_positions(jnp.asarray(scores), k)
    same((best, jnp.where(jnp.isneginf(best), -1, positions)), expected)


def by_distance(queries, candidates):
    """Minus the squared distance, times the candidate's weight."""
    points, weights = candidates["points"], candidates["weights"]
    return -weights * jnp.square(queries["points"][:, None] - points).sum(-1)


def test_another_similarity_of_rows_with_several_parts():
    weights = np.linspace(0.5, 2, CANDIDATES, dtype=np.float32)
    found = search.nearest(
        {"points": Q}, {"points": V, "weights": weights}, 5, similarity=by_distance, candidate_block=6
    )
    scores = -weights * np.square(Q[:, None] - V).sum(-1)
    same(found, by_sorting(scores, True, 5))


def test_in_a_compiled_function_scores_have_their_gradient():
    def total(queries):
        return search.nearest(queries, V, 3, query_block=4, candidate_block=8)[0].sum()

    ids = by_sorting(SCORES, True, 3)[1]
    np.testing.assert_allclose(jax.jit(jax.grad(total))(Q), V[ids].sum(1), rtol=1e-4, atol=1e-5)
    half = search.nearest(jnp.asarray(Q, jnp.bfloat16), jnp.asarray(V, jnp.bfloat16), 3)
    rounded = (np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (Q, V))
    same(half, by_sorting(np.matmul(next(rounded), next(rounded).T), True, 3))


def test_approximate_neighbors_have_the_recall_that_was_asked_for():
    queries, candidates = rows(200, 3), rows(3000, 4)
    exact = by_sorting(queries @ candidates.T, True, 10)[1]
    scores, ids = search.nearest(queries, candidates, 10, approximate=True, recall=0.9, candidate_block=1000)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(np.asarray(ids), exact, strict=True)]) >= 0.9
    own = np.take_along_axis(queries @ candidates.T, np.asarray(ids), axis=1)
    np.testing.assert_allclose(scores, own, rtol=1e-4, atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    text = str(
        jax.make_jaxpr(lambda q, v: search.nearest(q, v, 10, approximate=True, recall=0.9))(
            queries, candidates
        )
    )
    assert "approx_top_k" in text and "recall_target=0.9" in text


@pytest.mark.parametrize("check_vma", [True, False])
def test_shards_of_candidates_are_searched_as_one(check_vma):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    candidates = np.concatenate([V[:20], V[:20]])  # ties between the shards
    exclude = np.arange(QUERIES - 1, dtype=np.int32)

    def everywhere(queries, exclude, candidates):
        found = search.nearest(
            queries, candidates, 12, exclude=exclude, query_block=4, candidate_block=3, axis_name="model"
        )
        return found if not check_vma else jax.tree.map(lambda x: x[None], found)

    whole, shard = PartitionSpec(), PartitionSpec("model")
    mapped = jax.shard_map(
        everywhere,
        mesh=mesh,
        in_specs=(whole, whole, shard),
        out_specs=shard if check_vma else whole,
        check_vma=check_vma,
    )
    scores, ids = jax.jit(mapped)(Q[1:], exclude, candidates)
    if check_vma:
        assert all((copy == ids[0]).all() for copy in ids)
        scores, ids = scores[0], ids[0]
    allowed = np.arange(40) != exclude[:, None]
    same((scores, ids), by_sorting(Q[1:] @ candidates.T, allowed, 12))


def test_memory_stays_at_a_block():
    shapes = [jax.ShapeDtypeStruct((n, 16), jnp.float32) for n in (20_000, 200_000)]
    find = functools.partial(search.nearest, k=10, query_block=256, candidate_block=1024)
    compiled = jax.jit(find).lower(*shapes).compile()
    everything = 20_000 * 200_000 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < everything / 100


@pytest.mark.parametrize("k", [0, CANDIDATES + 1])
def test_a_number_of_neighbors_that_there_is_not(k):
    with pytest.raises(UserError, match=rf"^k: needs 1 to the {CANDIDATES} candidates there are, got {k}$"):
        search.nearest(Q, V, k)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"mask": MASK.T}, r"^mask: needs shape \(13, 41\), got \(41, 13\)"),
        ({"labels": LABELS}, "^labels, candidate_labels: need both"),
        ({"exclude": EXCLUDED[:3]}, r"^exclude: needs shape \(13,\)"),
        ({"candidate_block": 0}, "^query_block, candidate_block: need at least 1, got 1024 and 0"),
        ({"recall": 0.0}, r"^recall: needs a value in \(0, 1\], got 0"),
    ],
)
def test_refusals(keywords, words):
    with pytest.raises(ValueError, match=words):
        search.nearest(Q, V, 2, **keywords)
    with pytest.raises(ValueError, match=r"^candidates: needs arrays with one leading axis"):
        search.nearest(Q, (V, V[:3]), 2)
