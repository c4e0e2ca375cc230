"""Does a recognizer serve every group alike?

Accuracies are fractions in [0, 1]; published tables print them, and their deviation, in percent.
"""

from typing import NamedTuple

import numpy as np

from jaxface import checks
from jaxface.errors import UserError
from jaxface.metrics.recognition.curves import equal_error_rate
from jaxface.metrics.recognition.pairs import Pairs, make_pairs
from jaxface.metrics.recognition.similarity import pair_similarities
from jaxface.metrics.recognition.verification import cosine_to_squared_l2, normalize, ten_fold_accuracy


class Fairness(NamedTuple):
    """How accuracies differ between groups.

    Attributes:
      average: mean over the groups (AVG).
      std: standard deviation over the groups with R - 1 (STD).
      skewed_error_ratio: largest error over smallest (SER), ≥ 1; infinite where some groups have none, 1 where all have none.
      worst: smallest accuracy.
      gap: largest minus smallest.
    """

    average: float
    std: float
    skewed_error_ratio: float
    worst: float
    gap: float


class GroupErrors(NamedTuple):
    """Error rates at one threshold for all groups.

    Attributes:
      threshold: a pair is accepted above it, strictly.
      fmr: [R], fraction of the impostor pairs of each group that are accepted.
      fnmr: [R], fraction of its genuine pairs that are not.
    """

    threshold: float
    fmr: np.ndarray
    fnmr: np.ndarray


class GroupVerification(NamedTuple):
    """Verification group by group.

    Attributes:
      accuracies: [R], ten-fold accuracy with each group's own thresholds.
      errors: at one threshold for all, the equal-error threshold of all pairs together (design): it shows a bias that own
        thresholds hide.
    """

    accuracies: np.ndarray
    errors: GroupErrors


def group_fairness(accuracies) -> Fairness:
    """Average, deviation, skewed error ratio, worst and gap of the accuracies of groups (protocol of RFW, arXiv:1812.00194).

        SER = max_r (1 - a_r) / min_r (1 - a_r)

    Args:
      accuracies: [R ≥ 2] floats in [0, 1].

    Raises:
      ValueError: not one axis.
      UserError: fewer than two groups, or a value that is not in [0, 1].

    Example:
      >>> fairness = group_fairness([0.9, 0.8])
      >>> round(fairness.average, 3), round(fairness.gap, 3), round(fairness.skewed_error_ratio, 3)
      (0.85, 0.1, 2.0)
    """
    values = checks.real_array("accuracies", accuracies, ndim=1).astype(np.float64)
    if values.size < 2:
        raise UserError(f"accuracies: needs at least two groups, got {values.size}")
    if values.min() < 0 or values.max() > 1:
        raise UserError(f"accuracies: needs fractions in [0, 1], got {values.min():g}..{values.max():g}")
    errors = 1.0 - values
    if errors.min() > 0:
        ratio = float(errors.max() / errors.min())
    else:
        ratio = 1.0 if errors.max() == 0 else float("inf")
    return Fairness(
        float(values.mean()), float(values.std(ddof=1)), ratio, float(values.min()), float(np.ptp(values))
    )


def _members(groups, length: int, count: int) -> list[np.ndarray]:
    """Indices of each group; a group without any is refused."""
    if count < 2:
        raise UserError(f"groups: needs at least two, got {count}")
    groups = checks.index_array("groups", groups, length, count)
    members = [np.flatnonzero(groups == group) for group in range(count)]
    absent = [group for group, rows in enumerate(members) if not rows.size]
    if absent:
        raise UserError(f"groups: needs records of each of the {count} groups, got none of group {absent[0]}")
    return members


def group_accuracy(correct, groups, *, count: int) -> np.ndarray:
    """Fraction right in each group, [R].

    Args:
      correct: [N] bool, whether each answer is right.
      groups: [N] integers in [0, R).
      count: R ≥ 2.

    Raises:
      ValueError: shapes disagree, or a group out of range. UserError: a group without records, or R < 2.

    Example:
      >>> group_accuracy([True, False, True, True], [0, 0, 1, 1], count=2).tolist()
      [0.5, 1.0]
    """
    correct = checks.truth_array("correct", correct, np.size(groups))
    return np.array([correct[rows].mean() for rows in _members(groups, correct.size, count)])


def _group_error_rates(scores, same, groups, *, count: int, threshold: float | None = None) -> GroupErrors:
    """False match and false non-match rate of each group at one threshold.

    Args:
      scores: [P] float, similarities of pairs.
      same: [P] bool.
      groups: [P] integers in [0, R), the group of each pair.
      count: R ≥ 2.
      threshold: accept above it, strictly; the equal-error threshold of all pairs together unless given.

    Raises:
      ValueError: shapes disagree, or a group out of range.
      UserError: a group without genuine or without impostor pairs, or R < 2.
    """
    scores = checks.real_array("scores", scores, ndim=1)
    same = checks.truth_array("same", same, scores.size)
    members = _members(groups, scores.size, count)
    for group, rows in enumerate(members):
        if same[rows].all() or not same[rows].any():
            raise UserError(f"groups: needs genuine and impostor pairs of each, group {group} has one kind")
    if threshold is None:
        threshold = float(equal_error_rate(scores[same], scores[~same]).threshold)
    accepted = scores > threshold
    fmr, fnmr = (
        np.array([answer[rows][kind[rows]].mean() for rows in members])
        for answer, kind in ((accepted, ~same), (~accepted, same))
    )
    return GroupErrors(float(threshold), fmr, fnmr)


def _pairs_of_group(labels: np.ndarray, rows: np.ndarray, group: int, seed: int) -> Pairs:
    """Balanced folds among the records `rows`, as indices into all records; few pairs make fewer than ten folds."""
    sizes = np.unique(labels[rows], return_counts=True)[1].astype(np.int64)
    genuine = int((sizes * (sizes - 1) // 2).sum())
    impostor = rows.size * (rows.size - 1) // 2 - genuine
    if sizes.size < 2 or genuine < 2:
        raise UserError(
            f"groups: verification needs two people and two genuine pairs of each group, group {group} has {sizes.size} "
            f"and {genuine}"
        )
    pairs = make_pairs(labels[rows], folds=max(min(10, genuine, impostor), 2), seed=seed)
    return pairs._replace(indices=rows[pairs.indices].astype(np.int32))


def check_group_verification(
    labels, groups, *, count: int, pairs: list[Pairs] | None = None, seed: int = 0
) -> None:
    """Refuses what `group_verification` refuses of these arguments, before anything is embedded.

    Raises:
      ValueError, UserError: as there; pairs of a group that are of one kind only.
    """
    if pairs is None:
        for group, rows in enumerate(_members(groups, len(labels), count)):
            _pairs_of_group(np.asarray(labels), rows, group, seed)
        return
    for group, group_pairs in enumerate(pairs):
        if group_pairs.same.all() or not group_pairs.same.any():
            raise UserError(f"groups: needs genuine and impostor pairs of each, group {group} has one kind")


def group_verification(
    embeddings, labels, groups, *, count: int, pairs: list[Pairs] | None = None, seed: int = 0
) -> GroupVerification:
    """Verification inside each group, as RFW does: pairs never cross groups.

    Args:
      embeddings: [N, D] float, normalized here.
      labels: [N] integers, who is on each record.
      groups: [N] integers in [0, R).
      count: R ≥ 2.
      pairs: of each group, as indices into all the records; unless given balanced folds of each group (`make_pairs`).
      seed: of the pairs drawn.

    Raises:
      ValueError: shapes disagree, or a group out of range.
      UserError: a group without records, with one person or with fewer than two genuine pairs; R < 2.

    Example:
      >>> embeddings = np.tile(np.eye(4), (4, 1))  # four people, four records each
      >>> people, groups = np.tile(np.arange(4), 4), np.tile([0, 0, 1, 1], 4)
      >>> group_verification(embeddings, people, groups, count=2).accuracies.tolist()
      [1.0, 1.0]
    """
    embeddings = checks.real_array("embeddings", embeddings, ndim=2)
    if pairs is None:
        labels = checks.integer_array("labels", labels, len(embeddings))
        pairs = [
            _pairs_of_group(labels, rows, group, seed)
            for group, rows in enumerate(_members(groups, len(embeddings), count))
        ]
    unit = np.asarray(normalize(embeddings))
    scores = [pair_similarities(unit, group_pairs.indices) for group_pairs in pairs]
    accuracies = [
        ten_fold_accuracy(
            cosine_to_squared_l2(values.astype(np.float64)), group_pairs.same, folds=group_pairs.folds
        ).accuracy
        for values, group_pairs in zip(scores, pairs, strict=True)
    ]
    errors = _group_error_rates(
        np.concatenate(scores),
        np.concatenate([group_pairs.same for group_pairs in pairs]),
        np.repeat(np.arange(len(pairs)), [len(values) for values in scores]),
        count=count,
    )
    return GroupVerification(np.array(accuracies), errors)
