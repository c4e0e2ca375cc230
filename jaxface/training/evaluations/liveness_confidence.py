"""How sure a detector of presentation attacks may be: calibration, ranking and error rates of its margins, corrected or not.

Methods: dpm
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import Split
from jaxface.metrics.spoofing.presentation_attacks import LIVE
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_spoofing
from jaxface.training.map_source import map_source
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState

FPRS = (0.01, 0.005, 0.001)
"""Targets of CelebA-Spoof's table."""


class LivenessConfidence:
    """Evaluation of a state's margins under several names, such as raw and corrected.

    For every margin, of the test unless said otherwise:

        nll@…, ece@…, accuracy@…        of its logistic as the probability of live, at 1/2
        tpr_at_1e-2@…, acer@…, …        what `metrics.spoof_report` says, at the threshold of equal errors of the development set
        spoof_tpr_at_1e-2@…, …          as CelebA-Spoof prints it, with spoofs as positives
        eer@…                           of the development set
        semantic/<group>                accuracy of a group's labels where they are right; attributes on live faces
        variance/clean, variance/bad    mean variance of the captures that stayed as they are, and of the bad ones
        variance/auc                    probability that a bad capture has the larger variance
        development/auc                 of the first margin

    Frames of a video are one test: the mean of their probabilities. Figures: reliability, ROC curves and the scores of one.

    Args:
      answer: (variables, image [B, H, W, C] as in records) -> {margins {name: [B]}, semantics {group: [B, K]}, variance [B] or
        nothing}.
      variables: state -> first argument of `answer`.
      split: with a development set; label 0 is live.

    Raises:
      UserError: as `check_spoofing`.
    """

    def __init__(
        self,
        answer: Callable[[Any, jax.Array], Mapping[str, Any]],
        variables: Callable[[TrainState], Any],
        split: Split,
    ):
        check_spoofing(split)
        self._variables, self._split = variables, split
        self._answer = jax.jit(lambda variables, batch: answer(variables, batch["image"]))

    def _answers(self, state: TrainState, source: Source) -> dict[str, Any]:
        found = map_source(self._answer, source, self._variables(state))
        shown = getattr(source, "shown", lambda index: index)
        itself = np.array([shown(index) == index for index in range(len(source))])
        return jax.tree.map(lambda rows: rows[itself], dict(found)) | {"rows": np.flatnonzero(itself)}

    @staticmethod
    def _tests(source: Source, found: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Margins float64 and instruments of single images, or of videos."""
        labels = np.asarray(source.labels)[found["rows"]]
        margins = {name: np.asarray(m, np.float64) for name, m in found["margins"].items()}
        if not hasattr(source, "videos"):
            return margins, labels
        videos = np.asarray(source.videos)[found["rows"]]
        if len(np.unique(videos)) == len(videos):
            return margins, labels
        for name, margin in margins.items():
            mean = metrics.video_scores(1 / (1 + np.exp(-np.clip(margin, -30, 30))), labels, videos)
            margins[name], instruments = np.log(mean.scores) - np.log1p(-mean.scores), mean.instruments
        return margins, instruments

    def __call__(self, state: TrainState) -> dict[str, float]:
        development, known = self._tests(
            self._split.development, self._answers(state, self._split.development)
        )
        source = self._split.held_out
        found = self._answers(state, source)
        self._margins, self._instruments = self._tests(source, found)
        live, report, self._thresholds = self._instruments == LIVE, {}, {}
        for name, margin in self._margins.items():
            point = metrics.equal_error_threshold(development[name], known)
            self._thresholds[name] = point.threshold
            spoofed = metrics.celeba_spoof_tpr(-margin, ~live, FPRS)
            found_here = {
                "nll": metrics.binary_nll(margin, live),
                "ece": metrics.expected_calibration_error(margin, live),
                **metrics.spoof_report(margin, self._instruments, point.threshold, fprs=FPRS),
                **{
                    f"spoof_tpr_at_{rate:.0e}".replace("e-0", "e-"): float(value)
                    for rate, value in zip(FPRS, spoofed, strict=True)
                },
                "eer": point.eer,
                "accuracy": float(((margin > 0) == live).mean()),
            }
            report |= {f"{key}@{name}": value for key, value in found_here.items()}
        report |= self._semantics(source, found)
        if found.get("variance") is not None:
            report |= self._variance(source, found)
        first = next(iter(development.values()))
        report["development/auc"] = metrics.auc(*metrics.split_presentations(first, known))
        return report

    def _semantics(self, source: Source, found: Mapping[str, Any]) -> dict[str, float]:
        truth, report = getattr(source, "true_semantics", {}), {}
        live = np.asarray(source.labels)[found["rows"]] == LIVE
        for name, logits in found["semantics"].items():
            if name not in truth:
                continue
            true = truth[name][found["rows"]]
            if true.ndim == 2:
                right = ((logits > 0) == (true > 0))[live]
            else:
                right = logits.argmax(axis=1) == true
            report[f"semantic/{name}"] = float(right.mean())
        if report:
            report["semantic/accuracy"] = float(np.mean(list(report.values())))
        return report

    def _variance(self, source: Source, found: Mapping[str, Any]) -> dict[str, float]:
        variance = np.asarray(found["variance"], np.float64)
        report = {"variance/mean": float(variance.mean())}
        if "severity" in source[0]:
            severity = np.array([source[int(i)]["severity"] for i in found["rows"]])
            bad = severity > 0
            if bad.any() and not bad.all():
                report["variance/clean"] = float(variance[~bad].mean())
                report["variance/bad"] = float(variance[bad].mean())
                report["variance/auc"] = metrics.auc(variance[bad], variance[~bad])
        return report

    def figures(self, state: TrainState) -> Figures:
        """Of the state that was evaluated last."""
        live = self._instruments == LIVE
        tables = {name: metrics.reliability_bins(m, live) for name, m in self._margins.items()}
        curves = {name: metrics.roc(m[live], m[~live]) for name, m in self._margins.items()}
        name = list(self._margins)[min(1, len(self._margins) - 1)]
        threshold = self._thresholds[name]
        return {
            "reliability": functools.partial(figures.save_reliability, tables),
            "roc": functools.partial(figures.save_roc, curves),
            "scores": functools.partial(
                figures.save_score_histogram,
                self._margins[name][live],
                self._margins[name][~live],
                threshold=threshold if np.isfinite(threshold) else None,
                names=("live", "attack"),
                xlabel=f"margin, {name}",
            ),
        }
