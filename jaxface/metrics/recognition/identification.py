"""Who of a gallery is on an image? 1:N identification.

A gallery holds one template for each of G identities. A probe is mated if its identity is in the gallery (its
mate), else non-mated. Every tie counts against the system: a gallery entry as similar as the mate outranks
it, so constant scores never look like recognition.
"""

from typing import NamedTuple

import numpy as np

from jaxface import checks
from jaxface.errors import UserError
from jaxface.metrics import numbers


class TpirAtFpir(NamedTuple):
    """Identification rate at a target false positive identification rate; arrays for several targets.

    Attributes:
      tpir: fraction of mated probes found. fnir: 1 - tpir.
      threshold: an answer counts iff its score > threshold.
      fpir: realized fraction of non-mated probes with an answer above the threshold.
      resolvable: whether there are at least 1 / target non-mated probes; where not, no false alarm is allowed
        at all.
    """

    tpir: float | np.ndarray
    fnir: float | np.ndarray
    threshold: float | np.ndarray
    fpir: float | np.ndarray
    resolvable: bool | np.ndarray


class TwoGalleries(NamedTuple):
    """Mean of TPIR and FNIR over two galleries, and the result of each."""

    tpir: float | np.ndarray
    fnir: float | np.ndarray
    galleries: tuple[TpirAtFpir, TpirAtFpir]


class MateScores(NamedTuple):
    """Result of `mate_scores_above_non_mates`; arrays for several targets."""

    rate: float | np.ndarray
    threshold: float | np.ndarray


def ranks(similarity, mate) -> np.ndarray:
    """Rank of each probe's mate, ties against it.

        rank_i = 1 + #{g != mate_i : S_ig >= S_i,mate_i}

    Args:
      similarity: [P, G] float. mate: [P] integers in [0, G).

    Returns:
      [P] int64 in [1, G].

    Raises:
      ValueError: shapes disagree, or a mate outside the gallery.
      UserError: no probes, no gallery, or a score that is not finite.

    Example:
      >>> ranks([[0.9, 0.5], [0.6, 0.4], [0.7, 0.7]], [0, 1, 0]).tolist()  # a tie counts against the mate
      [1, 2, 2]
    """
    similarity, mate = _scored(similarity, mate)
    mate_scores = similarity[np.arange(len(mate)), mate]
    return np.count_nonzero(similarity >= mate_scores[:, None], axis=1)  # the mate itself is the 1


def rank_k(similarity, mate, k: int = 1) -> float:
    """Closed-set identification rate: fraction of probes whose mate has rank <= k (`ranks`); 1 for k >= G.

    Raises:
      ValueError: k < 1, and as `ranks`.

    Example:
      >>> rank_k([[0.9, 0.5], [0.6, 0.4]], [0, 1]), rank_k([[0.9, 0.5], [0.6, 0.4]], [0, 1], k=2)
      (0.5, 1.0)
    """
    checks.check_number("k", k, checks.AtLeast(1))
    return float((ranks(similarity, mate) <= k).mean())


def cmc(similarity, mate, *, max_rank: int | None = None) -> np.ndarray:
    """Cumulative match characteristic: `rank_k` for k = 1..max_rank (G unless given), [max_rank].

    Example:
      >>> cmc([[0.9, 0.5], [0.6, 0.4]], [0, 1]).tolist()
      [0.5, 1.0]
    """
    if max_rank is not None:
        checks.check_number("max_rank", max_rank, checks.AtLeast(1))
    mate_ranks = ranks(similarity, mate)
    max_rank = max_rank or np.shape(similarity)[1]
    counts = np.bincount(mate_ranks, minlength=max_rank + 1)[1 : max_rank + 1]
    return np.cumsum(counts) / len(mate_ranks)


def tpir_at_fpir(mated, mate, non_mated, fpirs, *, rank1: bool = True, strict: bool = False) -> TpirAtFpir:
    """Open-set identification at target false positive identification rates.

        FPIR(t) = fraction of non-mated probes with max_g S > t
        TPIR(t) = fraction of mated probes with mate score > t and rank 1;   FNIR = 1 - TPIR

    For a target f, t is the (floor(f N) + 1)-th largest of the N non-mated maxima, so FPIR(t) <= f.

    Args:
      mated: [P, G] float, mated probes against the gallery. mate: [P] integers in [0, G).
      non_mated: [N, G] float, the other probes against the same gallery.
      fpirs: one target in (0, 1) or an array of them.
      rank1: ask for rank 1 besides the score; False gives the rank-free variant.
      strict: refuse a target that needs more non-mated probes than there are, instead of flagging it.

    Raises:
      ValueError: shapes disagree, or a mate outside the gallery.
      UserError: no probes of either kind, a score that is not finite, a target outside (0, 1), or `strict`
        and N < 1 / f.

    Example:
      >>> mated, non_mated = [[0.9, 0.1], [0.2, 0.6]], [[0.5, 0.1], [0.1, 0.7]]
      >>> float(tpir_at_fpir(mated, [0, 1], non_mated, 0.5).tpir)
      1.0
    """
    targets = checks.rates("fpirs", fpirs)
    mated, mate = _scored(mated, mate)
    non_mated = checks.real_array("non_mated", non_mated, ndim=2)
    if non_mated.shape[1] != mated.shape[1]:
        raise ValueError(f"mated, non_mated: need one gallery, got {mated.shape} and {non_mated.shape}")
    alarms = np.sort(non_mated.max(axis=1))
    allowed = numbers.allowed_count(targets, alarms.size)
    if strict and not (allowed >= 1).all():
        raise UserError(f"fpirs: {targets.min():g} needs more non-mated probes than the {alarms.size} given")
    threshold = alarms[alarms.size - 1 - allowed]
    mate_scores = mated[np.arange(len(mate)), mate]
    # A probe that may not count gets a score that no threshold lets through.
    scores = np.sort(np.where(ranks(mated, mate) == 1, mate_scores, -np.inf) if rank1 else mate_scores)
    tpir = (scores.size - np.searchsorted(scores, threshold, side="right")) / scores.size
    fpir = (alarms.size - np.searchsorted(alarms, threshold, side="right")) / alarms.size
    return TpirAtFpir(
        numbers.plain(tpir),
        numbers.plain(1 - tpir),
        numbers.plain(np.asarray(threshold, np.float64)),
        numbers.plain(fpir),
        numbers.plain(allowed >= 1),
    )


def two_gallery_tpir(first, first_mate, second, second_mate, fpirs, *, rank1: bool = True) -> TwoGalleries:
    """The IJB open-set protocol: two disjoint galleries searched one by one, and averaged.

    Every probe searches both galleries. Its mate is in at most one of them; in the other it is a non-mated
    probe.

    Args:
      first: [P, G1] float, all probes against the first gallery.
      first_mate: [P] integers, the mate in the first gallery, -1 where the probe has none there.
      second, second_mate: the same for the second gallery, [P, G2] and [P].
      fpirs, rank1: as `tpir_at_fpir`.

    Raises:
      ValueError: shapes disagree, a mate outside its gallery, or a probe with a mate in both.
      UserError: as `tpir_at_fpir`; a gallery without mated or without non-mated probes.

    Example:
      >>> first, second = [[0.9, 0.1], [0.2, 0.3]], [[0.1, 0.2], [0.8, 0.1]]  # probe 0 is in the first, 1 in the second
      >>> float(two_gallery_tpir(first, [0, -1], second, [-1, 0], 0.5).tpir)
      1.0
    """
    first_mate, second_mate = np.asarray(first_mate), np.asarray(second_mate)
    if first_mate.shape != second_mate.shape or first_mate.ndim != 1:
        raise ValueError(
            f"first_mate, second_mate: need one shape [P], got {first_mate.shape}, {second_mate.shape}"
        )
    if ((first_mate >= 0) & (second_mate >= 0)).any():
        raise ValueError(
            "first_mate, second_mate: a probe has a mate in both galleries, which need to be disjoint"
        )
    results = []
    for name, similarity, mate in (("first", first, first_mate), ("second", second, second_mate)):
        similarity = checks.real_array(name, similarity, ndim=2)
        if len(similarity) != len(mate):
            raise ValueError(f"{name}: needs {len(mate)} probes, got shape {similarity.shape}")
        has = mate >= 0
        results.append(tpir_at_fpir(similarity[has], mate[has], similarity[~has], fpirs, rank1=rank1))
    tpir = (results[0].tpir + results[1].tpir) / 2
    return TwoGalleries(tpir, 1 - tpir, (results[0], results[1]))


def mate_scores_above_non_mates(similarity, mate, rates) -> MateScores:
    """The "TPIR" of the public ArcFace IJB script (code of arXiv:1801.07698), which is not TPIR at FPIR.

    Both galleries are put together so that every probe has a mate, and for a rate f

        t = the ceil(P f)-th largest non-mate score over all P (G - 1) probe-gallery pairs
        result = mean(mate score > t)

    Several false alarms of one probe count separately, and the mate need not be rank 1. For comparison with
    published numbers of that script only; `tpir_at_fpir` is the measure.

    Args:
      similarity: [P, G] float, G >= 2. mate: [P] integers in [0, G).
      rates: one rate in (0, 1) or an array of them.

    Raises:
      ValueError: shapes disagree, or a mate outside the gallery.
      UserError: empty, not finite, one gallery entry only, or a rate outside (0, 1).

    Example:
      >>> float(mate_scores_above_non_mates([[0.9, 0.1], [0.2, 0.3]], [0, 1], 0.5).rate)
      1.0
    """
    targets = checks.rates("rates", rates)
    similarity, mate = _scored(similarity, mate)
    probes, gallery = similarity.shape
    if gallery < 2:
        raise UserError(
            f"similarity: needs a gallery of at least 2 for non-mate scores, got shape {similarity.shape}"
        )
    others = np.ones(similarity.shape, bool)
    others[np.arange(probes), mate] = False
    false = np.sort(similarity[others])
    lower = numbers.allowed_count(targets, probes)
    position = lower + (lower / probes < targets)  # ceil(P f), safe from rounding of the product
    threshold = false[false.size - position]
    mate_scores = similarity[np.arange(probes), mate]
    rate = (mate_scores[:, None] > threshold.reshape(1, -1)).mean(axis=0).reshape(targets.shape)
    return MateScores(numbers.plain(rate), numbers.plain(np.asarray(threshold, np.float64)))


def _scored(similarity, mate) -> tuple[np.ndarray, np.ndarray]:
    similarity = checks.real_array("similarity", similarity, ndim=2)
    return similarity, checks.index_array("mate", mate, *similarity.shape)
