"""Rank-1 identification by two modalities of which either may be bad or missing (arXiv:2403.06529).

Methods: acw
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import data, metrics
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, l2_normalize
from jaxface.training.rgbd import RgbdClasses, RgbdFeatures, RgbdNetworks
from jaxface.training.step import TrainState


def projected(params: Mapping, features: RgbdFeatures) -> jax.Array:
    """The linear map of both embeddings, `params["projection"]`: [N, D_r + D_d]."""
    return jnp.concatenate([features.rgb, features.depth], axis=1) @ params["projection"]


class RgbdIdentification:
    """Rank-1 identification of clean and corrupted probes: `evaluate` of a stage.

    People that nobody has seen are enrolled with one clean image each, the other images are the probes; where the classes are
    those of the training, the gallery is the class prototypes. Reports `rank1@<kind>` of the learned fusion for each kind of
    corruption and their mean `rank1`; the same as `<fusion>/rank1...` for every baseline; `confidence@<kind>`, the mean
    confidence in RGB; `rank1@no_rgb` and `@no_depth`, of clean probes with one modality; and `tar@1e-3` over all probes where
    there are enough impostors. The state has the networks and, as `classes`, an `RgbdClasses` in `extra`.

    A fusion is "acw" (`jaxface.metrics.fused_similarities`), "acw_probe" (the same by the probe's confidences alone), "concat"
    (cosines of a linear map of both embeddings, in `params` as `projection` and `prototypes`), or a rule of
    `jaxface.metrics.combine_scores`, of which "fixed" is the weight of the classes.

    Args:
      networks: both frozen networks.
      split: the pairs.
      logits: (params, features) -> confidence logits [N, 2]; asked where `params` has a part named `confidence`.
      fusion: the learned fusion.
      kinds: of `jaxface.data.RGBD_CORRUPTIONS`.
      baselines: names of fusions without a parameter.
      block: probes at a time.

    Raises:
      UserError: nobody to evaluate on with two images.
    """

    def __init__(
        self,
        networks: RgbdNetworks,
        split: data.Split,
        logits: Callable[[Mapping, RgbdFeatures], jax.Array],
        *,
        fusion: str,
        kinds: Sequence[str],
        baselines: Sequence[str],
        block: int = 2048,
    ):
        self.networks, self.logits, self.fusion = networks, logits, fusion
        self.kinds, self.baselines, self.block = kinds, baselines, block
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
        networks, learned = self.networks, self.fusion
        params, classes = jax.device_get((state.averaged_params, state.extra["classes"]))
        if self.to_classes:
            gallery = _class_gallery(classes)
        else:
            gallery = networks.describe_source(state.extra, self.enrolled)
        rates = {name: {} for name in dict.fromkeys((learned, *self.baselines))}
        report, histogram = {}, metrics.ScoreHistogram(low=-8.0, high=8.0)
        for number, kind in enumerate(self.kinds):
            probes = networks.describe_source(state.extra, self.probes, kind, seed=1 + number)
            for name, of_kind in rates.items():
                scores_of = histogram if name == learned else None
                of_kind[kind] = self._rank1(name, params, classes, probes, gallery, scores_of)
            if "confidence" in params:
                confidence = self._confidence(params, probes)
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
            scores = self._scores(name, params, classes, block, gallery)
            correct += metrics.rank1(scores, labels, self.gallery_labels) * len(labels)
            if histogram is not None:
                same = labels[:, None] == self.gallery_labels
                scores = np.clip(scores, histogram.low, histogram.high)
                histogram.add(genuine=scores[same], impostor=scores[~same])
        return correct / len(probes.rgb)

    def _confidence(self, params: Mapping, features: RgbdFeatures, *, enrolled: bool = False) -> jax.Array:
        """a [N] of `jaxface.metrics.confidence_logit`; classes trust both modalities alike."""
        if enrolled and self.to_classes:
            return jnp.zeros(len(features.rgb))
        return metrics.confidence_logit(self.logits(params, features))

    def _scores(
        self, name: str, params: Mapping, classes: RgbdClasses, probes: RgbdFeatures, gallery: RgbdFeatures
    ) -> np.ndarray:
        """[Q, G] scores of a fusion."""
        if name == "concat":
            stored = params["prototypes"] if self.to_classes else projected(params, gallery)
            return np.asarray(cosines(projected(params, probes), stored))
        if name in ("acw", "acw_probe"):
            templates = [
                metrics.RgbdTemplates(features.rgb, features.depth, logit)
                for features, logit in (
                    (probes, self._confidence(params, probes)),
                    (gallery, self._confidence(params, gallery, enrolled=True)),
                )
            ]
            spread = tuple(np.asarray(classes.spread).tolist())
            return np.asarray(
                metrics.fused_similarities(*templates, probe_only=name == "acw_probe", spread=spread)
            )
        rgb = metrics.similarity_matrix(probes.rgb, gallery.rgb)
        depth = metrics.similarity_matrix(probes.depth, gallery.depth)
        rule = classes.weight if name == "fixed" else name
        return np.asarray(metrics.combine_scores(*metrics.equalize(rgb, depth, classes.spread), rule))

    def _missing(self, params, classes: RgbdClasses, probes, gallery) -> dict[str, float]:
        """Clean probes of which one modality is not there."""
        trust = self._confidence(params, gallery, enrolled=True)
        stored = metrics.RgbdTemplates(gallery.rgb, gallery.depth, trust)
        whole = metrics.RgbdTemplates(probes.rgb, probes.depth, self._confidence(params, probes))
        report, labels, present = {}, np.asarray(self.probes.labels), np.ones(len(probes.rgb), bool)
        for name, has in (("no_rgb", (~present, present)), ("no_depth", (present, ~present))):
            _, nearest = metrics.fused_search(
                metrics.missing_modality(whole, *has),
                stored,
                probe_only=self.fusion == "acw_probe",
                spread=tuple(np.asarray(classes.spread).tolist()),
                block=self.block,
            )
            answers = self.gallery_labels[np.asarray(nearest)[:, 0]]
            report[f"rank1@{name}"] = float((answers == labels).mean())
        return report


def _class_gallery(classes: RgbdClasses) -> RgbdFeatures:
    rgb, depth = (np.asarray(l2_normalize(jnp.asarray(sums))) for sums in (classes.rgb, classes.depth))
    return RgbdFeatures(rgb, depth, np.ones(len(rgb)), np.ones(len(rgb)))
