"""Which pairs of a labeled set to compare.

A set without an official pair list gets one in the manner of LFW: ten folds of as many genuine as impostor
pairs, no person in two folds where the set allows it, and people (not images) drawn evenly, so that one with
hundreds of photographs does not become the test.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxface import checks
from jaxface.errors import UserError


class Pairs(NamedTuple):
    """Pairs of records, fold after fold.

    Attributes:
      indices: [P, 2] int32. same: [P] bool.
      folds: number of contiguous parts of equal size; 1 where the order means nothing.
      disjoint: whether no person occurs in two folds.
    """

    indices: np.ndarray
    same: np.ndarray
    folds: int = 10
    disjoint: bool = False


def all_pairs(labels) -> Pairs:
    """Every pair i < j of a labeled set [N], in lexicographic order; N (N - 1) / 2 of them are held at once.

    Raises:
      UserError: fewer than two records.

    Example:
      >>> pairs = all_pairs([7, 7, 8])
      >>> pairs.indices.tolist(), pairs.same.tolist()
      ([[0, 1], [0, 2], [1, 2]], [True, False, False])
    """
    labels = checks.integer_array("labels", labels)
    if labels.size < 2:
        raise UserError(f"labels: pairs need at least two records, got {labels.size}")
    first, second = np.triu_indices(labels.size, k=1)
    indices = np.stack([first, second], axis=1).astype(np.int32)
    return Pairs(indices, labels[first] == labels[second], folds=1)


def make_pairs(labels, *, folds: int = 10, per_fold: int | None = None, seed: int = 0) -> Pairs:
    """Balanced folds of pairs, drawn without replacement and the same for the same seed.

    People are dealt to the folds so that each has about as many genuine pairs. Inside a fold the genuine
    pairs are spread evenly over its people, the impostor pairs over its pairs of people. Where that cannot
    work (ten people make ten folds of one person, who has no impostors), people are shared between folds and
    only the pairs differ: `disjoint` says which.

    Args:
      labels: [N] integers, who is on each record.
      folds: number of folds, at least 2.
      per_fold: genuine pairs in a fold, and as many impostor pairs. None takes what all folds can give, 300
        at most (as LFW); a number that disjoint folds cannot give is drawn from shared people.
      seed: of every draw.

    Returns:
      2 * per_fold * folds pairs; in each fold the genuine ones come first.

    Raises:
      UserError: fewer than two people, fewer genuine or impostor pairs than asked for, or a bad `folds` or
        `per_fold`.

    Example:
      >>> pairs = make_pairs([0, 0, 1, 1, 2, 2, 3, 3], folds=2)
      >>> pairs.same.tolist(), bool(pairs.disjoint)
      ([True, True, False, False, True, True, False, False], True)
    """
    labels = checks.integer_array("labels", labels)
    checks.check_number("folds", folds, checks.AtLeast(2))
    if per_fold is not None:
        checks.check_number("per_fold", per_fold, checks.AtLeast(1))
    members = _members(labels)
    if len(members) < 2:
        raise UserError(f"labels: verification pairs need at least two people, got {len(members)}")
    rng = np.random.default_rng(seed)
    groups = _deal(members, folds, rng)
    disjoint = min(min(_capacities(group)) for group in groups)
    shared = min(_capacities(members)) // folds
    num_pairs = per_fold or min(disjoint or shared, 300)
    if not 0 < num_pairs <= max(disjoint, shared):
        genuine, impostor = _capacities(members)
        need = folds * (per_fold or 1)
        raise UserError(
            f"labels: {folds} folds need {need} genuine and {need} impostor pairs, "
            f"the set has {genuine} and {impostor}"
        )
    if num_pairs <= disjoint:
        drawn = [(_genuine(group, num_pairs, rng), _impostor(group, num_pairs, rng)) for group in groups]
    else:
        genuine = rng.permutation(_genuine(members, num_pairs * folds, rng)).reshape(folds, num_pairs, 2)
        impostor = rng.permutation(_impostor(members, num_pairs * folds, rng)).reshape(folds, num_pairs, 2)
        drawn = list(zip(genuine, impostor, strict=True))
    indices = np.concatenate([np.concatenate(fold) for fold in drawn]).astype(np.int32)
    return Pairs(indices, np.tile(np.arange(2 * num_pairs) < num_pairs, folds), folds, num_pairs <= disjoint)


def draw_pairs(labels, *, most: int = 5_000_000, seed: int = 0) -> Pairs:
    """`all_pairs` of a labeled set; of more than `most` about a tenth genuine and the rest impostors, drawn at random.

    Args:
      labels: [N] integers, who is on each record.
      most: pairs that are held at once; a draw has no pair twice and may be smaller.
      seed: of the draw.

    Raises:
      UserError: fewer than two records.

    Example:
      >>> len(draw_pairs([0, 0, 1, 1, 2], most=100).same)  # few enough to take all
      10
    """
    labels = checks.integer_array("labels", labels)
    count = len(labels)
    if count * (count - 1) // 2 <= most:
        return all_pairs(labels)
    rng = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    _, starts, number, sizes = np.unique(
        labels[order], return_index=True, return_inverse=True, return_counts=True
    )
    place = rng.integers(count, size=most // 10)
    place = place[sizes[number[place]] > 1]
    size, start = sizes[number[place]], starts[number[place]]
    other = start + (place - start + rng.integers(1, size)) % size
    genuine = np.stack([order[place], order[other]], axis=1)
    drawn = rng.integers(count, size=(most - most // 10, 2))
    impostor = drawn[labels[drawn[:, 0]] != labels[drawn[:, 1]]]
    pairs = np.unique(np.sort(np.concatenate([genuine, impostor]), axis=1), axis=0)
    return Pairs(pairs.astype(np.int32), labels[pairs[:, 0]] == labels[pairs[:, 1]], folds=1)


def _members(labels: np.ndarray) -> list[np.ndarray]:
    """Records of each person."""
    if labels.size == 0:
        return []
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _deal(members: list[np.ndarray], folds: int, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """People in `folds` groups; dealt in order of size, so that the groups come out alike."""
    shuffled = [members[k] for k in rng.permutation(len(members))]
    shuffled.sort(key=len, reverse=True)
    return [shuffled[k::folds] for k in range(folds)]


def _capacities(members: list[np.ndarray]) -> tuple[int, int]:
    """How many genuine and impostor pairs there are among some people."""
    sizes = np.array([len(m) for m in members], np.int64)
    genuine = int((sizes * (sizes - 1) // 2).sum())
    total = int(sizes.sum())
    return genuine, total * (total - 1) // 2 - genuine


def _genuine(members: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, 2] distinct pairs of one person each."""
    people = [m for m in members if len(m) > 1]

    def pairs_of(person: int) -> int:
        return len(people[person]) * (len(people[person]) - 1) // 2

    rows = []
    for person, share in _spread(len(people), count, pairs_of, rng):
        first, second = _unrank(rng.choice(pairs_of(person), share, replace=False))
        rows.append(np.stack([people[person][first], people[person][second]], axis=1))
    return np.concatenate(rows)


def _impostor(members: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, 2] distinct pairs of two people each."""

    def images(couple: int) -> tuple[np.ndarray, np.ndarray]:
        first, second = _unrank(couple)
        return members[int(first)], members[int(second)]

    def pairs_of(couple: int) -> int:
        first, second = images(couple)
        return len(first) * len(second)

    rows = []
    for couple, share in _spread(len(members) * (len(members) - 1) // 2, count, pairs_of, rng):
        first, second = images(couple)
        picked = rng.choice(len(first) * len(second), share, replace=False)
        rows.append(np.stack([first[picked // len(second)], second[picked % len(second)]], axis=1))
    return np.concatenate(rows)


def _spread(
    items: int, count: int, capacity: Callable[[int], int], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """(item, share) with shares that add up to `count`, as even as the capacities let them be.

    Every item gets min(capacity, level); what the last level leaves over goes to items drawn at random.
    """
    if count <= items:
        return [(int(item), 1) for item in rng.choice(items, count, replace=False)]
    capacities = np.array([capacity(item) for item in range(items)], np.int64)
    low, high = 0, int(capacities.max())
    while low < high:  # the highest level whose total stays within the count
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(capacities, middle).sum() <= count else (low, middle - 1)
    shares = np.minimum(capacities, low)
    more = rng.permutation(np.flatnonzero(capacities > low))[: count - int(shares.sum())]
    shares[more] += 1
    return [(int(item), int(shares[item])) for item in np.flatnonzero(shares)]


def _unrank(rank) -> tuple[np.ndarray, np.ndarray]:
    """The pair i < j with rank j (j - 1) / 2 + i."""
    rank = np.asarray(rank, np.int64)
    second = np.floor((1 + np.sqrt(8.0 * rank + 1)) / 2).astype(np.int64)
    # The root may round up to the next integer, never down: at rank j (j - 1) / 2 it is exact.
    second = np.where(second * (second - 1) // 2 > rank, second - 1, second)
    return rank - second * (second - 1) // 2, second
