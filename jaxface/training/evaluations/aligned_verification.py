"""Verification by scores that are corrected by how crowded the neighborhoods are, beside each other (arXiv:2103.01559).

Methods: ida
"""

from collections.abc import Callable
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


class SupportSets(NamedTuple):
    """Local discrepancies of the same N images, by where their nearest other people are looked for.

    Attributes:
      gallery: among enrolled people.
      generated: among generated faces; None without a generator.
      simulated: among people from where the data come; None where there are none.
      learned: as an estimator tells from the image alone, without deviation.
      oracle: among the other images themselves by their labels; None where these do not say who is who.
      distinct: fraction of the generated faces that were candidates; None without a generator.
    """

    gallery: Discrepancy
    generated: Discrepancy | None
    simulated: Discrepancy | None
    learned: Discrepancy
    oracle: Discrepancy | None
    distinct: float | None = None

    @property
    def by_name(self) -> dict[str, Discrepancy]:
        """Those that there are."""
        named = {name: getattr(self, name) for name in self._fields[:5]}
        return {name: value for name, value in named.items() if value is not None}


class AlignedVerification:
    """Every score on the people to verify, side by side: `evaluate` and `figures` of a stage.

    Reported for each score (cosine, gallery, generated, simulated, learned, oracle, snorm) under its name is what
    `jaxface.metrics.report_scores` says, and that of the chosen one as `verification/…` besides; for each kind of support set
    the `deviation` of its discrepancies and their `correlation` with those of labeled neighbors; `generated/kept`.

    Args:
      source: labeled records; a verification pack brings its pairs, otherwise every pair counts (`jaxface.metrics.draw_pairs`).
      embed: state -> unit embeddings [N, D] of the source.
      support: (state, unit embeddings) -> `SupportSets`.
      score: the chosen one.
      weight: λ of `jaxface.metrics.aligned_similarity`.
      seed: of the pairs drawn.

    Raises:
      UserError: no genuine or no impostor pair; groups inside which there is no impostor pair.
    """

    def __init__(
        self,
        source: Source,
        embed: Callable[[TrainState], np.ndarray],
        support: Callable[[TrainState, np.ndarray], SupportSets],
        *,
        score: str,
        weight: float = 1.0,
        seed: int = 0,
    ):
        _check(source)
        self.source, self.embed, self.support = source, embed, support
        self.score, self.weight, self.seed = score, weight, seed

    def __call__(self, state: TrainState) -> dict[str, float]:
        rows = self.embed(state)
        support = self.support(state, rows)
        pairs = getattr(self.source, "pairs", None)
        if pairs is None:
            pairs = metrics.draw_pairs(self.source.labels, seed=self.seed)
        scores = self._scores(metrics.pair_similarities(rows, pairs.indices), pairs.indices, support)
        report = _describe(support)
        groups = getattr(self.source, "groups", None)
        for name, values in scores.items():
            rates = metrics.report_scores(values, pairs, groups)
            for prefix in [name] + ["verification"] * (name == self.score):
                report |= {f"{prefix}/{key}": value for key, value in rates.items()}
        self._last = scores, pairs.same
        return report

    def _scores(
        self, cosines: np.ndarray, indices: np.ndarray, support: SupportSets
    ) -> dict[str, np.ndarray]:
        first, second = indices.T
        scores = {"cosine": cosines}
        for name, discrepancy in support.by_name.items():
            mean = np.asarray(discrepancy.mean)
            scores[name] = np.asarray(
                metrics.aligned_similarity(cosines, mean[first], mean[second], weight=self.weight)
            )
        virtual = support.simulated if support.generated is None else support.generated
        if self.score in ("snorm", "simulated") and support.simulated is not None:
            virtual = support.simulated
        if virtual is not None:
            mean, deviation = np.asarray(virtual.mean), np.asarray(virtual.deviation)
            scores["snorm"] = np.asarray(
                metrics.adaptive_snorm(
                    cosines, mean[first], deviation[first], mean[second], deviation[second]
                )
            )
        return scores

    def figures(self, state: TrainState) -> Figures:
        """ROC curves of all scores of the state that was evaluated last."""
        scores, same = self._last

        def draw(path):
            curves = {name: metrics.roc(values[same], values[~same]) for name, values in scores.items()}
            return figures.save_roc(curves, path)

        return {"roc": draw}


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


def _describe(support: SupportSets) -> dict[str, float]:
    """Of candidates from the wrong distribution d is nearly constant, and nothing can be gained."""
    report = {} if support.distinct is None else {"generated/kept": support.distinct}
    for name, discrepancy in support.by_name.items():
        mean = np.asarray(discrepancy.mean)
        report[f"{name}/deviation"] = float(mean.std())
        if name != "oracle" and support.oracle is not None and np.ptp(mean) > 1e-6:
            report[f"{name}/correlation"] = float(np.corrcoef(mean, np.asarray(support.oracle.mean))[0, 1])
    return report
