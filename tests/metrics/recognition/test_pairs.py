"""Pairs of a labeled set: balanced, distinct, deterministic, people kept apart where possible."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.errors import UserError
from jaxface.metrics import all_pairs, draw_pairs, make_pairs
from jaxface.metrics.recognition.pairs import _unrank


def check(labels, pairs, per_fold):
    """What must hold of every draw; returns the people of each fold."""
    folds, indices, same = pairs.folds, pairs.indices, pairs.same
    assert indices.shape == (2 * per_fold * folds, 2)
    assert (indices[:, 0] != indices[:, 1]).all()
    np.testing.assert_array_equal(labels[indices[:, 0]] == labels[indices[:, 1]], same)
    assert len({tuple(sorted(p)) for p in indices.tolist()}) == len(indices)
    assert (same.reshape(folds, -1).sum(1) == per_fold).all()
    return [set(labels[part].ravel().tolist()) for part in np.split(indices, folds)]


def test_all_pairs_of_three():
    pairs = all_pairs(np.array([5, 5, 9]))
    np.testing.assert_array_equal(pairs.indices, [[0, 1], [0, 2], [1, 2]])
    np.testing.assert_array_equal(pairs.same, [True, False, False])


def test_folds_share_no_person_where_there_are_enough():
    labels = np.repeat(np.arange(200), 16)
    pairs = make_pairs(labels)
    people = check(labels, pairs, 300)
    assert pairs.disjoint
    assert sum(map(len, people)) == len(set().union(*people)) == 200


def test_ten_people_are_shared_between_ten_folds():
    labels = np.repeat(np.arange(10), 10)
    pairs = make_pairs(labels)
    check(labels, pairs, 45)  # 450 genuine pairs in all
    assert not pairs.disjoint


def test_asking_for_more_than_disjoint_folds_hold_shares_people():
    labels = np.repeat(np.arange(20), 10)
    assert make_pairs(labels, per_fold=90).disjoint
    # 20 people in 8 folds: some have 2 people and hold 90, all together hold 112 each.
    shared = make_pairs(labels, folds=8, per_fold=112)
    check(labels, shared, 112)
    assert not shared.disjoint


def test_one_person_with_most_images_is_not_the_test():
    labels = np.r_[np.zeros(500, int), np.repeat(np.arange(1, 60), 3)]
    pairs = make_pairs(labels, folds=2, per_fold=60)
    check(labels, pairs, 60)
    famous = (labels[pairs.indices[pairs.same]] == 0).all(axis=1).mean()
    assert famous < 0.05
    couples = labels[pairs.indices[~pairs.same]]
    assert len({tuple(sorted(c)) for c in couples.tolist()}) == 120  # every couple of people once


def test_the_seed_decides():
    labels = np.repeat(np.arange(40), 5)
    one, again, other = make_pairs(labels, seed=1), make_pairs(labels, seed=1), make_pairs(labels, seed=2)
    np.testing.assert_array_equal(one.indices, again.indices)
    assert (one.indices != other.indices).any()


def test_labels_need_not_be_numbered():
    labels = np.random.default_rng(0).permutation(np.repeat([-7, 3, 10**9, 55], 12))
    check(labels, make_pairs(labels, folds=2), 132)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=25),
    st.integers(2, 6),
    st.one_of(st.none(), st.integers(1, 9)),
)
def test_any_set_gives_what_it_promises_or_says_why(sizes, folds, per_fold):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    sizes = np.array(sizes)
    genuine = int((sizes * (sizes - 1) // 2).sum())
    impostor = labels.size * (labels.size - 1) // 2 - genuine
    if min(genuine, impostor) < folds * (per_fold or 1):
        with pytest.raises(UserError, match=r"labels: \d+ folds need"):
            make_pairs(labels, folds=folds, per_fold=per_fold)
        return
    pairs = make_pairs(labels, folds=folds, per_fold=per_fold)
    people = check(labels, pairs, per_fold or len(pairs.same) // (2 * folds))
    if pairs.disjoint:
        assert sum(map(len, people)) == len(set().union(*people))


def test_ranks_of_pairs_are_exact():
    first, second = _unrank(np.arange(45))
    expected = [(i, j) for j in range(10) for i in range(j)]
    np.testing.assert_array_equal(np.stack([first, second], 1), expected)
    for j in (3, 94_906_266, 2**31):  # where a float64 square root starts to round
        low = j * (j - 1) // 2
        assert [tuple(map(int, _unrank(r))) for r in (low, low + j - 1)] == [(0, j), (j - 1, j)]


@pytest.mark.parametrize(
    ("labels", "options", "kind", "message"),
    [
        ([0] * 9, {}, UserError, "at least two people"),
        ([], {}, ValueError, "labels"),
        (np.array([], int), {}, UserError, "at least two people"),
        (
            np.arange(50),
            {},
            UserError,
            "10 folds need 10 genuine and 10 impostor pairs, the set has 0 and 1225",
        ),
        ([0, 0, 1, 1], {"folds": 1}, UserError, "folds: needs an integer from 2"),
        ([0, 0, 1, 1], {"per_fold": 0}, UserError, "per_fold"),
        ([[0, 1]], {}, ValueError, "labels"),
        ([0.5, 1.0], {}, ValueError, "labels"),
    ],
)
def test_bad_input_is_refused(labels, options, kind, message):
    with pytest.raises(kind, match=message):
        make_pairs(labels, **options)


def test_one_record_has_no_pair():
    with pytest.raises(UserError, match="at least two records"):
        all_pairs([3])


def test_pairs_of_a_large_set():
    labels = np.random.default_rng(0).integers(0, 200, 3000)
    labels[0] = 999  # alone
    pairs = draw_pairs(labels, most=50_000, seed=1)
    assert 40_000 < len(pairs.same) <= 50_000
    first, second = pairs.indices.T
    assert (first < second).all() and len(np.unique(first * 3000 + second)) == len(first)
    np.testing.assert_array_equal(pairs.same, labels[first] == labels[second])
    assert 0.05 < pairs.same.mean() < 0.15
    everything = draw_pairs(labels[:100], most=50_000)
    assert len(everything.same) == 4950
