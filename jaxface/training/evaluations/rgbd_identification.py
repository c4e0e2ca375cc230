"""Rank-1 identification by two modalities of which either may be bad or missing (arXiv:2403.06529).

Methods: acw
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from jaxface import data, metrics
from jaxface.errors import UserError
from jaxface.training.rgbd import RgbdClasses, RgbdFeatures, RgbdNetworks
from jaxface.training.step import TrainState


class ScoreFusion(Protocol):
    """What makes one score of two, by name.

    Attributes:
      name: of the fusion that is learned.
      networks: both frozen networks.
    """

    name: str
    networks: RgbdNetworks

    def confidence(self, params: Mapping, features: RgbdFeatures) -> jax.Array | None:
        """a [N] of `jaxface.metrics.confidence_logit`; None where nothing is learned about confidence."""

    def class_gallery(self, classes: RgbdClasses) -> RgbdFeatures:
        """The classes themselves as a gallery."""

    def scores(
        self,
        name: str,
        params: Mapping,
        classes: RgbdClasses,
        probes: RgbdFeatures,
        gallery: RgbdFeatures,
        *,
        to_classes: bool,
    ) -> np.ndarray:
        """[Q, G] scores of a fusion; `to_classes` where the gallery is the classes themselves."""


class RgbdIdentification:
    """Rank-1 identification of clean and corrupted probes: `evaluate` of a stage.

    People that nobody has seen are enrolled with one clean image each, the other images are the probes; where the classes are
    those of the training, the gallery is the class prototypes. Reports `rank1@<kind>` of the learned fusion for each kind of
    corruption and their mean `rank1`; the same as `<fusion>/rank1...` for every baseline; `confidence@<kind>`, the mean
    confidence in RGB; `rank1@no_rgb` and `@no_depth`, of clean probes with one modality; and `tar@1e-3` over all probes where
    there are enough impostors. The state has the networks and, as `classes`, an `RgbdClasses` in `extra`.

    Args:
      fusion: what is judged.
      split: the pairs.
      kinds: of `jaxface.data.RGBD_CORRUPTIONS`.
      baselines: names of fusions without a parameter.
      block: probes at a time.

    Raises:
      UserError: nobody to evaluate on with two images.
    """

    def __init__(
        self,
        fusion: ScoreFusion,
        split: data.Split,
        *,
        kinds: Sequence[str],
        baselines: Sequence[str],
        block: int = 2048,
    ):
        self.fusion, self.kinds, self.baselines, self.block = fusion, kinds, baselines, block
        labels = np.asarray(split.held_out.labels)
        self.to_classes = split.protocol == "classification"
        if self.to_classes:
            self.probes, self.enrolled = split.held_out, None
            self.gallery_labels = np.arange(len(split.train.class_names))
        else:
            self.gallery_labels, first = np.unique(labels, return_index=True)
            rest = np.setdiff1d(np.arange(len(labels)), first)
            if not rest.size:
                raise UserError("data: identification needs somebody to evaluate on with two images")
            self.enrolled, self.probes = (data.Subset(split.held_out, rows) for rows in (first, rest))

    def __call__(self, state: TrainState) -> dict[str, float]:
        networks, learned = self.fusion.networks, self.fusion.name
        params, classes = jax.device_get((state.averaged_params, state.extra["classes"]))
        if self.to_classes:
            gallery = self.fusion.class_gallery(classes)
        else:
            gallery = networks.describe_source(state.extra, self.enrolled)
        rates = {name: {} for name in dict.fromkeys((learned, *self.baselines))}
        report, histogram = {}, metrics.ScoreHistogram(low=-8.0, high=8.0)
        for number, kind in enumerate(self.kinds):
            probes = networks.describe_source(state.extra, self.probes, kind, seed=1 + number)
            for name, of_kind in rates.items():
                scores_of = histogram if name == learned else None
                of_kind[kind] = self._rank1(name, params, classes, probes, gallery, scores_of)
            confidence = self.fusion.confidence(params, probes)
            if confidence is not None:
                report[f"confidence@{kind}"] = float(jax.nn.sigmoid(confidence).mean())
                if kind == "none":
                    report |= self._missing(params, classes, probes, gallery)
        for name, of_kind in rates.items():
            for prefix in [""] * (name == learned) + [f"{name}/"] * (name in self.baselines):
                report[f"{prefix}rank1"] = float(np.mean(list(of_kind.values())))
                report |= {f"{prefix}rank1@{kind}": rate for kind, rate in of_kind.items()}
        tar = histogram.tar_at_far(1e-3)
        if tar.resolvable:
            report["tar@1e-3"] = float(tar.tar)
        if learned == "fixed":
            report["weight"] = float(classes.weight)
        return report

    def _rank1(self, name, params, classes, probes, gallery, histogram=None) -> float:
        correct = 0
        for start in range(0, len(probes.rgb), self.block):
            block = RgbdFeatures(*(x[start : start + self.block] for x in probes))
            labels = np.asarray(self.probes.labels)[start : start + self.block]
            scores = self.fusion.scores(name, params, classes, block, gallery, to_classes=self.to_classes)
            correct += metrics.rank1(scores, labels, self.gallery_labels) * len(labels)
            if histogram is not None:
                same = labels[:, None] == self.gallery_labels
                scores = np.clip(scores, histogram.low, histogram.high)
                histogram.add(genuine=scores[same], impostor=scores[~same])
        return correct / len(probes.rgb)

    def _missing(self, params, classes: RgbdClasses, probes, gallery) -> dict[str, float]:
        """Clean probes of which one modality is not there."""
        trust = np.zeros(len(gallery.rgb)) if self.to_classes else self.fusion.confidence(params, gallery)
        stored = metrics.RgbdTemplates(gallery.rgb, gallery.depth, trust)
        whole = metrics.RgbdTemplates(probes.rgb, probes.depth, self.fusion.confidence(params, probes))
        report, labels, present = {}, np.asarray(self.probes.labels), np.ones(len(probes.rgb), bool)
        for name, has in (("no_rgb", (~present, present)), ("no_depth", (present, ~present))):
            _, nearest = metrics.fused_search(
                metrics.missing_modality(whole, *has),
                stored,
                probe_only=self.fusion.name == "acw_probe",
                spread=tuple(np.asarray(classes.spread).tolist()),
                block=self.block,
            )
            answers = self.gallery_labels[np.asarray(nearest)[:, 0]]
            report[f"rank1@{name}"] = float((answers == labels).mean())
        return report
