"""1:N identification and the distractor protocols, against hand values and loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.errors import UserError
from jaxface.metrics import (
    cmc,
    distractor_rank1,
    distractor_verification,
    mate_scores_above_non_mates,
    normalize,
    rank_k,
    ranks,
    tar_at_far,
    tpir_at_fpir,
    two_gallery_tpir,
)

MATED = np.array([[0.9, 0.2, 0.1], [0.3, 0.8, 0.4], [0.6, 0.5, 0.55], [0.1, 0.7, 0.65]])
MATE = np.array([0, 1, 2, 2])
NON_MATED = np.array([[0.75, 0.1, 0.2], [0.3, 0.35, 0.2], [0.5, 0.45, 0.4], [0.1, 0.05, 0.6]])


def test_rank_one_by_hand():
    assert rank_k(MATED, MATE) == 0.5
    np.testing.assert_array_equal(ranks(MATED, MATE), [1, 1, 2, 2])
    np.testing.assert_array_equal(cmc(MATED, MATE), [0.5, 1, 1])
    np.testing.assert_array_equal(cmc(MATED, MATE, max_rank=5), [0.5, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("fpir", "threshold", "tpir", "free"), [(0.25, 0.6, 0.5, 0.75), (0.5, 0.5, 0.5, 1.0)]
)
def test_tpir_by_hand(fpir, threshold, tpir, free):
    assert tpir_at_fpir(MATED, MATE, NON_MATED, fpir) == (tpir, 1 - tpir, threshold, fpir, True)
    assert tpir_at_fpir(MATED, MATE, NON_MATED, fpir, rank1=False).tpir == free


@pytest.mark.parametrize(("rate", "threshold", "value"), [(0.25, 0.7, 0.5), (0.5, 0.6, 0.75)])
def test_the_script_number_is_another_number(rate, threshold, value):
    assert mate_scores_above_non_mates(MATED, MATE, rate) == (value, threshold)


def test_several_targets_at_once():
    point = tpir_at_fpir(MATED, MATE, NON_MATED, [0.1, 0.25, 0.5])
    np.testing.assert_array_equal(point.tpir, [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(point.fpir, [0, 0.25, 0.5])
    np.testing.assert_array_equal(point.resolvable, [False, True, True])
    np.testing.assert_array_equal(mate_scores_above_non_mates(MATED, MATE, [0.25, 0.5]).rate, [0.5, 0.75])


def test_too_few_non_mated_probes_are_flagged_or_refused():
    point = tpir_at_fpir(MATED, MATE, NON_MATED, 0.1)
    assert (point.threshold, point.fpir, point.resolvable) == (0.75, 0.0, False)
    with pytest.raises(UserError, match=r"fpirs: 0\.1"):
        tpir_at_fpir(MATED, MATE, NON_MATED, 0.1, strict=True)


def test_ties_count_against_the_system():
    constant = np.ones((4, 5))
    mate = np.array([0, 1, 2, 3])
    np.testing.assert_array_equal(ranks(constant, mate), 5)
    assert rank_k(constant, mate, 4) == 0
    assert rank_k(constant, mate, 5) == rank_k(constant, mate, 50) == 1
    point = tpir_at_fpir(constant, mate, constant, 0.5)
    assert (point.tpir, point.fpir) == (0.0, 0.0)  # nothing lies strictly above the common score


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_ranks_agree_with_a_stable_sort_that_puts_the_mate_last(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, size=(rng.integers(1, 8), rng.integers(1, 7))) / 4
    mate = rng.integers(0, scores.shape[1], size=len(scores))
    expected = []
    for row, m in zip(scores, mate, strict=True):
        order = sorted(range(len(row)), key=lambda g, row=row, m=m: (-row[g], g == m))
        expected.append(order.index(m) + 1)
    np.testing.assert_array_equal(ranks(scores, mate), expected)
    np.testing.assert_allclose(
        cmc(scores, mate), [rank_k(scores, mate, k + 1) for k in range(scores.shape[1])]
    )


def test_two_galleries_are_averaged():
    # Six probes: 0-1 have a mate in the first gallery, 2-3 in the second, 4-5 in none.
    rng = np.random.default_rng(3)
    first, second = rng.random((6, 4)), rng.random((6, 5))
    first_mate, second_mate = np.array([0, 2, -1, -1, -1, -1]), np.array([-1, -1, 1, 4, -1, -1])
    result = two_gallery_tpir(first, first_mate, second, second_mate, 0.25, rank1=False)
    one = tpir_at_fpir(first[:2], [0, 2], first[2:], 0.25, rank1=False)
    two = tpir_at_fpir(second[2:4], [1, 4], second[[0, 1, 4, 5]], 0.25, rank1=False)
    assert result.galleries == (one, two)
    assert result.tpir == (one.tpir + two.tpir) / 2
    assert result.fnir == 1 - result.tpir


def test_two_galleries_are_disjoint():
    with pytest.raises(ValueError, match="both galleries"):
        two_gallery_tpir(np.ones((2, 2)), [0, -1], np.ones((2, 2)), [1, -1], 0.5)
    with pytest.raises(ValueError, match="one shape"):
        two_gallery_tpir(np.ones((2, 2)), [0, -1], np.ones((2, 2)), [1], 0.5)
    with pytest.raises(ValueError, match="second: needs 2 probes"):
        two_gallery_tpir(np.ones((2, 2)), [0, -1], np.ones((3, 2)), [-1, 0], 0.5)


@pytest.mark.parametrize(
    ("mated", "mate", "non_mated", "kind", "message"),
    [
        (MATED, MATE[:3], NON_MATED, ValueError, "mate"),
        (MATED, [0, 1, 2, 3], NON_MATED, ValueError, r"mate: needs values in \[0, 3\)"),
        (MATED, MATE, NON_MATED[:, :2], ValueError, "one gallery"),
        (MATED[:0], MATE[:0], NON_MATED, UserError, "similarity: needs at least one"),
        (MATED, MATE, NON_MATED[:0], UserError, "non_mated: needs at least one"),
        (MATED * np.nan, MATE, NON_MATED, UserError, "similarity: needs finite"),
        (MATED, MATE, NON_MATED * np.inf, UserError, "non_mated: needs finite"),
    ],
)
def test_bad_input_is_refused(mated, mate, non_mated, kind, message):
    with pytest.raises(kind, match=message):
        tpir_at_fpir(mated, mate, non_mated, 0.25)


def test_other_refusals():
    with pytest.raises(ValueError, match="k: needs an integer from 1"):
        rank_k(MATED, MATE, 0)
    with pytest.raises(ValueError, match="max_rank"):
        cmc(MATED, MATE, max_rank=0)
    with pytest.raises(UserError, match="gallery of at least 2"):
        mate_scores_above_non_mates(MATED[:, :1], [0] * 4, 0.25)
    with pytest.raises(UserError, match="rates"):
        mate_scores_above_non_mates(MATED, MATE, 1.5)


@pytest.fixture(scope="module")
def crowd():
    """Seven probes of three people (one with a single probe) and 2,500 distractors, more than one block."""
    rng = np.random.default_rng(5)
    labels = np.array([0, 0, 0, 1, 1, 1, 2])
    probes = rng.normal(size=(3, 8))[labels] + 0.7 * rng.normal(size=(7, 8))
    return probes.astype(np.float32), labels, rng.normal(size=(2500, 8)).astype(np.float32)


def test_distractor_rank_one_agrees_with_a_loop(crowd):
    probes, labels, distractors = crowd
    unit, others = np.asarray(normalize(probes)), np.asarray(normalize(distractors))
    sizes = [1, 10, 100, 2060, 2500]
    hits = {n: [] for n in sizes}
    for p in range(len(probes)):
        for m in np.flatnonzero((labels == labels[p]) & (np.arange(len(labels)) != p)):
            for n in sizes:
                hits[n].append(unit[p] @ unit[m] > (others[:n] @ unit[p]).max())
    rates = distractor_rank1(probes, labels, distractors, sizes=sizes)
    np.testing.assert_allclose(rates, [np.mean(hits[n]) for n in sizes])
    assert len(hits[10]) == 12
    assert 0 < rates[-1] < rates[0]


def test_a_distractor_equal_to_the_mate_is_a_miss():
    probes = np.eye(2)  # of one person, cosine 0
    # The distractor is as near to the first probe as its mate is (a tie), and nearer to the second.
    assert distractor_rank1(probes, [0, 0], [[0.0, 1.0]], sizes=[1])[0] == 0
    assert distractor_rank1(probes, [0, 0], [[-1.0, 1.0]], sizes=[1])[0] == 0.5


def test_distractor_verification_brackets_the_exact_rate(crowd):
    probes, labels, distractors = crowd
    unit, others = np.asarray(normalize(probes)), np.asarray(normalize(distractors))
    scores = unit @ unit.T
    genuine = scores[np.triu(labels[:, None] == labels[None], k=1)]
    for far in (0.001, 0.01, 0.1):
        exact = tar_at_far(genuine, (unit @ others.T).ravel(), far)
        found = distractor_verification(probes, labels, distractors, far)
        assert found.tar <= exact.tar <= found.tar_upper
        assert found.far <= far
        assert found.threshold == pytest.approx(exact.threshold, abs=2 / (1 << 16) + 1e-6)


def test_distractor_refusals(crowd):
    probes, labels, distractors = crowd
    with pytest.raises(UserError, match="sizes"):
        distractor_rank1(probes, labels, distractors, sizes=[2501])
    with pytest.raises(UserError, match="two probes"):
        distractor_rank1(probes, np.arange(7), distractors, sizes=[1])
    with pytest.raises(ValueError, match="labels"):
        distractor_verification(probes, labels[:3], distractors, 0.1)
