"""Verification by scores that are corrected by how crowded the neighborhoods are, beside each other (arXiv:2103.01559).

Methods: ida
"""

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source
from jaxface.errors import UserError
from jaxface.metrics import Discrepancy
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_verifiable
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState

TELLING = 0.3
"""Correlation with the discrepancy among labeled people below which candidates say little of it."""
_log = logging.getLogger("jaxface.training")


class SupportSet(NamedTuple):
    """How crowded the neighborhoods of the N images to verify are, by one kind of candidates.

    Attributes:
      discrepancy: of the images.
      weight: λ in [0, 1], how much of it is subtracted.
      facts: what is reported of the candidates, by name.
    """

    discrepancy: Discrepancy
    weight: float = 1.0
    facts: Mapping[str, float] = {}


def fitted_support(
    discrepancy: Discrepancy, labeled, on_gallery, *, candidates=None, weight: float | None = None
) -> SupportSet:
    """A kind of candidates with the weight that suits it on labeled people (`jaxface.metrics.discrepancy_weight`).

    Args:
      discrepancy: of the N images to verify, among the candidates.
      labeled: d* [T], of labeled gallery images among their other people.
      on_gallery: d [T], of the same images among the candidates.
      candidates: [M, D] unit embeddings, where there are some.
      weight: λ; fitted unless given.

    Returns:
      The set; its facts are the `correlation` of d with d*, where both vary, and the `pair_cosine` of the candidates.
    """
    labeled, on_gallery = np.asarray(labeled, np.float64), np.asarray(on_gallery, np.float64)
    facts = {}
    known = np.isfinite(on_gallery)
    if known.any() and min(np.ptp(labeled[known]), np.ptp(on_gallery[known])) > 1e-6:
        facts["correlation"] = float(np.corrcoef(labeled[known], on_gallery[known])[0, 1])
    if candidates is not None and len(candidates) > 1:
        facts["pair_cosine"] = metrics.mean_pair_cosine(candidates)
    fitted = metrics.discrepancy_weight(labeled, on_gallery) if weight is None else weight
    return SupportSet(discrepancy, fitted, facts)


class AlignedVerification:
    """Every score on the people to verify, side by side: `evaluate` and `figures` of a stage.

    Reported under the name of each score (`cosine`, every kind of candidates, and `snorm`, which is the s-norm of the gallery's
    support sets) is what `jaxface.metrics.report_scores` says, and that of the chosen one as `verification/…` besides. For each
    kind of candidates: its `weight`, its facts, the `deviation` of the discrepancies, and their `held_out_correlation` with those
    of labeled neighbors, where there are. One line of the log names the kinds that say little (`TELLING`).

    Args:
      source: labeled records; official pairs, of records or of templates, come with it, otherwise every pair counts
        (`jaxface.metrics.draw_pairs`).
      embed: state -> unit embeddings [N, D] of what is paired.
      support: (state, unit embeddings) -> `SupportSet` by kind; `gallery` is always among them, `oracle` where labels tell who is
        who.
      score: the chosen one.
      seed: of the pairs drawn.

    Raises:
      UserError: no genuine or no impostor pair; groups inside which there is no impostor pair.
    """

    def __init__(
        self,
        source: Source,
        embed: Callable[[TrainState], np.ndarray],
        support: Callable[[TrainState, np.ndarray], Mapping[str, SupportSet]],
        *,
        score: str,
        seed: int = 0,
    ):
        _check(source)
        self.source, self.embed, self.support = source, embed, support
        self.score, self.seed = score, seed

    def __call__(self, state: TrainState) -> dict[str, float]:
        rows = self.embed(state)
        support = self.support(state, rows)
        pairs = getattr(self.source, "pairs", None)
        if pairs is None:
            pairs = metrics.draw_pairs(self.source.labels, seed=self.seed)
        scores = _scores(metrics.pair_similarities(rows, pairs.indices), pairs.indices, support)
        report = _describe(support)
        groups = getattr(self.source, "groups", None)
        for name, values in scores.items():
            rates = metrics.report_scores(values, pairs, groups)
            for prefix in [name] + ["verification"] * (name == self.score):
                report |= {f"{prefix}/{key}": value for key, value in rates.items()}
        self._last = scores, pairs.same
        return report

    def figures(self, state: TrainState) -> Figures:
        """ROC curves of all scores of the state that was evaluated last."""
        scores, same = self._last

        def draw(path):
            curves = {name: metrics.roc(values[same], values[~same]) for name, values in scores.items()}
            return figures.save_roc(curves, path)

        return {"roc": draw}


def _scores(
    cosines: np.ndarray, indices: np.ndarray, support: Mapping[str, SupportSet]
) -> dict[str, np.ndarray]:
    first, second = indices.T
    scores = {"cosine": cosines}
    for name, kind in support.items():
        mean = np.asarray(kind.discrepancy.mean)
        aligned = metrics.aligned_similarity(cosines, mean[first], mean[second], weight=kind.weight)
        scores[name] = np.asarray(aligned)
    mean, deviation = (np.asarray(x) for x in support["gallery"].discrepancy[:2])
    snorm = metrics.adaptive_snorm(cosines, mean[first], deviation[first], mean[second], deviation[second])
    return {**scores, "snorm": np.asarray(snorm)}


def _check(source: Source) -> None:
    """Refuses records of which no curve can be made."""
    pairs, groups = getattr(source, "pairs", None), getattr(source, "groups", None)
    if pairs is not None:
        check_verifiable(source, pairs)
        return
    labels = np.asarray(source.labels)
    people, counts = np.unique(labels, return_counts=True)
    if len(people) < 2 or counts.max() < 2:
        raise UserError(
            f"data: verification needs two people and somebody with two records, got {len(people)} people"
        )
    if groups is not None and len(np.unique(groups)) > 1:
        inside = np.unique(np.stack([np.asarray(groups), labels]), axis=1)[0]
        if np.unique(inside, return_counts=True)[1].max() < 2:
            raise UserError("data: false accepts by group need a group of two people, every group has one")


def _describe(support: Mapping[str, SupportSet]) -> dict[str, float]:
    """Of candidates from the wrong distribution d says little of the crowd, and nothing can be gained."""
    report, dull = {}, []
    oracle = np.asarray(support["oracle"].discrepancy.mean) if "oracle" in support else None
    for name, kind in support.items():
        mean = np.asarray(kind.discrepancy.mean)
        report |= {f"{name}/weight": kind.weight, f"{name}/deviation": float(mean.std())}
        report |= {f"{name}/{fact}": value for fact, value in kind.facts.items()}
        if oracle is not None and name != "oracle" and min(np.ptp(mean), np.ptp(oracle)) > 1e-6:
            report[f"{name}/held_out_correlation"] = float(np.corrcoef(mean, oracle)[0, 1])
        if (correlation := kind.facts.get("correlation", 1.0)) < TELLING:
            pair_cosine = kind.facts.get("pair_cosine")
            alike = "" if pair_cosine is None else f", mean pair cosine {pair_cosine:.2f}"
            dull.append(f"{name} (correlation {correlation:.2f}{alike}, weight {kind.weight:.2f})")
    if dull:
        _log.warning("candidates that say little of how crowded a neighborhood is: %s", "; ".join(dull))
    return report
