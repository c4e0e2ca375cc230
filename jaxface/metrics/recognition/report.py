"""Embeddings of a labeled set in, the numbers that an experiment reports out."""

from typing import Literal

import numpy as np

from jaxface import checks
from jaxface.errors import UserError
from jaxface.metrics.analysis.discrepancy import group_false_accepts
from jaxface.metrics.recognition.curves import auc, equal_error_rate, tar_at_far
from jaxface.metrics.recognition.pairs import Pairs, make_pairs
from jaxface.metrics.recognition.similarity import all_pair_similarities, pair_similarities
from jaxface.metrics.recognition.verification import cosine_to_squared_l2, normalize, ten_fold_accuracy

PairChoice = Pairs | Literal["all"] | int | None

FARS = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4, "1e-5": 1e-5, "1e-6": 1e-6}
MOST_FOR_ALL = 20_000  # records; 200 million scores, 0.8 GB, and as much again to sort them


def verify(embeddings, labels, *, pairs: PairChoice = None, seed: int = 0) -> dict[str, float]:
    """Verification of a labeled set, as every experiment reports it.

    `verification/accuracy` always is the ten-fold accuracy over balanced folds: of all pairs of a set nearly
    all are impostors, and calling everything different would score near 1. `pairs` chooses what the curve is
    made of.

    Args:
      embeddings: [N, D] float, normalized here (a zero vector stays zero: cosine 0 with everything).
      labels: [N] integers, who is on each record; with a `Pairs`, where they are not used, they may be None.
      pairs: None, balanced folds of up to 300 + 300 pairs (`make_pairs`); a number, that many pairs in all,
        half of them genuine, in balanced folds; "all", every pair i < j for the curve, balanced folds for the
        accuracy; or the official list of a set as a `Pairs` with its folds.
      seed: of the pairs drawn.

    A set with fewer than ten genuine or impostor pairs gets as many folds as it has, at least two.

    Returns:
      "verification/accuracy" and "verification/accuracy_std", mean and population deviation over the folds
      (in [0, 1]); "verification/auc"; "verification/eer"; "verification/tar@1e-1" ...
      "verification/tar@1e-6", rule "at_most", those that the number of impostor pairs can resolve; and
      "verification/threshold@1e-1" ..., the cosine above which a pair then counts as one person.

    Raises:
      ValueError: shapes disagree.
      UserError: an embedding that is not finite, fewer than two people, fewer than two genuine pairs, more
        pairs asked for than there are, or pairs="all" on more than 20,000 records.

    Example:
      >>> embeddings, labels = np.eye(4)[[0, 0, 1, 1, 2, 2, 3, 3]], [0, 0, 1, 1, 2, 2, 3, 3]
      >>> verify(embeddings, labels)["verification/accuracy"]
      1.0
    """
    unit = _unit(embeddings, labels, pairs)
    folds = _folds(labels, None if isinstance(pairs, str) else pairs, seed)
    scores = pair_similarities(unit, folds.indices)
    ten = ten_fold_accuracy(cosine_to_squared_l2(scores.astype(np.float64)), folds.same, folds=folds.folds)
    if isinstance(pairs, str):
        genuine, impostor = all_pair_similarities(unit, labels)
    else:
        genuine, impostor = scores[folds.same], scores[~folds.same]
    report = {
        "verification/accuracy": ten.accuracy,
        "verification/accuracy_std": ten.std,
        "verification/auc": auc(genuine, impostor),
        "verification/eer": equal_error_rate(genuine, impostor).eer,
    }
    points = tar_at_far(genuine, impostor, list(FARS.values()))
    for name, tar, threshold, resolvable in zip(
        FARS, *map(np.atleast_1d, (points.tar, points.threshold, points.resolvable)), strict=True
    ):
        if resolvable:
            report[f"verification/tar@{name}"] = float(tar)
            report[f"verification/threshold@{name}"] = float(threshold)
    return report


def check_verification(labels, pairs: PairChoice = None, *, seed: int = 0) -> None:
    """Refuses what `verify` refuses of these arguments, before anything is embedded.

    Raises:
      ValueError, UserError: as `verify`; pairs of one kind only.
    """
    if isinstance(pairs, Pairs):
        same = np.asarray(pairs.same)
        if same.all() or not same.any():
            raise UserError(f"pairs: needs genuine and impostor ones, all {same.size} are of one kind")
        return
    _check_choice(len(labels), pairs)
    _folds(labels, None if isinstance(pairs, str) else pairs, seed)


def verification_scores(
    embeddings, labels, pairs: PairChoice = None, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The cosines behind the curve of `verify`, for figures: (scores [P] float32, same [P] bool).

    Arguments and refusals of `verify`; with pairs="all" the genuine scores come first.

    Example:
      >>> scores, same = verification_scores(np.eye(4)[[0, 0, 1, 1, 2, 2, 3, 3]], [0, 0, 1, 1, 2, 2, 3, 3], "all")
      >>> scores[same].tolist(), float(scores[~same].max())
      ([1.0, 1.0, 1.0, 1.0], 0.0)
    """
    unit = _unit(embeddings, labels, pairs)
    if isinstance(pairs, str):
        genuine, impostor = all_pair_similarities(unit, labels)
        return np.concatenate([genuine, impostor]), np.arange(genuine.size + impostor.size) < genuine.size
    folds = _folds(labels, pairs, seed)
    return pair_similarities(unit, folds.indices), folds.same


def report_scores(scores, pairs: Pairs, groups=None) -> dict[str, float]:
    """Verification by scores of any range.

    Args:
      scores: [P] float, of the pairs.
      pairs: which ones they are.
      groups: [N] integers, the group of each record; None where it is not known.

    Returns:
      "tar@1e-2" ... "tar@1e-6", those that the number of impostor pairs can resolve; "eer"; and with two groups or more
      "spread@1e-2" and "spread@1e-3": how far the FARs of the groups are apart at the threshold of that FAR, in powers of ten
      (`group_false_accepts` on pairs inside a group).

    Raises:
      ValueError, UserError: as `tar_at_far` and `group_false_accepts`.

    Example:
      >>> from jaxface.metrics import all_pairs
      >>> pairs = all_pairs(np.arange(60) // 2)
      >>> report_scores(np.where(pairs.same, 0.9, 0.1), pairs)["eer"]
      0.0
    """
    scores = np.asarray(scores)
    genuine, impostor = np.sort(scores[pairs.same]), np.sort(scores[~pairs.same])
    rates = {name: far for name, far in FARS.items() if far <= 1e-2}
    points = tar_at_far(genuine, impostor, list(rates.values()))
    report = {
        f"tar@{name}": float(tar)
        for name, tar, resolvable in zip(
            rates, np.atleast_1d(points.tar), np.atleast_1d(points.resolvable), strict=True
        )
        if resolvable
    }
    report["eer"] = equal_error_rate(genuine, impostor).eer
    if groups is not None and len(np.unique(groups)) > 1:
        first, second = (np.asarray(groups)[side] for side in pairs.indices.T)
        inside = ~pairs.same & (first == second)
        for name in ("1e-2", "1e-3"):
            of_groups = group_false_accepts(scores[inside], first[inside], FARS[name], pooled=impostor)
            report[f"spread@{name}"] = of_groups.spread
    return report


def _unit(embeddings, labels, pairs: PairChoice) -> np.ndarray:
    embeddings = checks.real_array("embeddings", embeddings, ndim=2)
    _check_choice(len(embeddings), pairs)
    if not isinstance(pairs, Pairs):
        checks.integer_array("labels", labels, len(embeddings))
    return np.asarray(normalize(embeddings))


def _check_choice(records: int, pairs: PairChoice) -> None:
    if isinstance(pairs, str) and pairs != "all":
        raise UserError(f"pairs: needs 'all', a number, a Pairs or None, got {pairs!r}")
    if isinstance(pairs, str) and records > MOST_FOR_ALL:
        raise UserError(
            f"pairs: 'all' needs at most {MOST_FOR_ALL} records, got {records}; give a number instead"
        )


def _folds(labels, pairs: Pairs | int | None, seed: int) -> Pairs:
    if isinstance(pairs, Pairs):
        return pairs
    labels = np.asarray(labels)
    sizes = np.unique(labels, return_counts=True)[1].astype(np.int64)
    genuine = int((sizes * (sizes - 1) // 2).sum())
    impostor = labels.size * (labels.size - 1) // 2 - genuine
    if sizes.size < 2 or genuine < 2:
        raise UserError(
            f"labels: verification needs two people and two genuine pairs, got {sizes.size} and {genuine}"
        )
    if pairs is None:
        return make_pairs(labels, folds=max(min(10, genuine, impostor), 2), seed=seed)
    if pairs < 20:
        raise UserError(
            f"pairs: a number needs to be at least 20 (ten folds of one of either kind), got {pairs}"
        )
    return make_pairs(labels, per_fold=pairs // 20, seed=seed)
