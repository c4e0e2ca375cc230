"""Rank-1 identification by two modalities of which either may be bad or missing (arXiv:2403.06529).

Methods: acw
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import data, metrics
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, l2_normalize
from jaxface.training.distributed import on_host
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
    confidence in RGB; `rank1@no_rgb` and `@no_depth`, of clean probes with one modality; `weight`, where one weight for all is
    among the fusions; and `tar@1e-3` over all probes where there are enough impostors. The state has the networks and, as
    `classes`, an `RgbdClasses` in `extra`.

    Where the records are of parts of a benchmark (`subsets` of a source, such as Lock3DFace's NU, FE, PS, OC, TM), nothing is
    corrupted: the parts stand in the place of the kinds, `rank1@NU` and so on, and the gallery is everybody's first image of the
    first of them.

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
      UserError: nobody to evaluate on with two images, somebody without an image of the first subset, or a subset without a
        probe.
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
        self.to_classes = split.protocol == "classification"
        self.subsets: dict[str, np.ndarray] = {}  # name -> positions of its probes
        if self.to_classes:
            self.probes, self.enrolled = split.held_out, None
            self.gallery_labels = np.arange(len(split.train.class_names))
        else:
            self._enroll(split.held_out)

    def _enroll(self, source: data.Source) -> None:
        """Everybody's first image is the gallery, that of the first subset where there are subsets; the rest are probes."""
        labels, names = np.asarray(source.labels), getattr(source, "subset_names", ())
        subsets = np.asarray(source.subsets) if names else np.zeros(len(labels), np.int32)
        candidates = np.flatnonzero(subsets == 0)
        self.gallery_labels, first = np.unique(labels[candidates], return_index=True)
        missing = np.setdiff1d(labels, self.gallery_labels)
        if missing.size:
            raise UserError(
                f"subsets: the gallery needs an image of {names[0]} of everybody, {source.class_names[missing[0]]} has none"
            )
        first = candidates[first]
        rest = np.setdiff1d(np.arange(len(labels)), first)
        if not rest.size:
            raise UserError("data: identification needs somebody to evaluate on with two images")
        self.enrolled, self.probes = (data.Subset(source, rows) for rows in (first, rest))
        self.subsets = {name: np.flatnonzero(subsets[rest] == i) for i, name in enumerate(names)}
        for name, rows in self.subsets.items():
            if not rows.size:
                raise UserError(f"subsets: needs a probe of each, there is none of {name}")

    def _conditions(self, extra: Mapping) -> Iterator[tuple[str, RgbdFeatures, np.ndarray]]:
        """(name, features, labels) of the probes of every subset, or of all under every kind of corruption."""
        labels = np.asarray(self.probes.labels)
        if self.subsets:
            clean = self.networks.describe_source(extra, self.probes)
            for name, rows in self.subsets.items():
                yield name, RgbdFeatures(*(x[rows] for x in clean)), labels[rows]
        else:
            for number, kind in enumerate(self.kinds):
                yield kind, self.networks.describe_source(extra, self.probes, kind, seed=1 + number), labels

    def __call__(self, state: TrainState) -> dict[str, float]:
        networks, learned = self.networks, self.fusion
        params, classes = on_host((state.averaged_params, state.extra["classes"]))
        if self.to_classes:
            gallery = _class_gallery(classes)
        else:
            gallery = networks.describe_source(state.extra, self.enrolled)
        rates = {name: {} for name in dict.fromkeys((learned, *self.baselines))}
        report, histogram, clean = {}, metrics.ScoreHistogram(low=-8.0, high=8.0), []
        for kind, probes, labels in self._conditions(state.extra):
            for name, of_kind in rates.items():
                scores_of = histogram if name == learned else None
                of_kind[kind] = self._rank1(name, params, classes, probes, labels, gallery, scores_of)
            if "confidence" in params:
                confidence = self._confidence(params, probes)
                report[f"confidence@{kind}"] = float(jax.nn.sigmoid(confidence).mean())
                if self.subsets or kind == "none":
                    clean.append((probes, labels))
        if clean:
            features, labels = zip(*clean, strict=True)
            probes, labels = (
                RgbdFeatures(*map(np.concatenate, zip(*features, strict=True))),
                np.concatenate(labels),
            )
            report |= self._missing(params, classes, probes, labels, gallery)
        for name, of_kind in rates.items():
            for prefix in [""] * (name == learned) + [f"{name}/"] * (name in self.baselines):
                report[f"{prefix}rank1"] = float(np.mean(list(of_kind.values())))
                report |= {f"{prefix}rank1@{kind}": rate for kind, rate in of_kind.items()}
        tar = histogram.tar_at_far(1e-3)
        if tar.resolvable:
            report["tar@1e-3"] = float(tar.tar)
        if "fixed" in rates:
            report["weight"] = float(classes.weight)
        return report

    def _rank1(self, name, params, classes, probes, probe_labels, gallery, histogram=None) -> float:
        correct = 0
        for start in range(0, len(probes.rgb), self.block):
            block = RgbdFeatures(*(x[start : start + self.block] for x in probes))
            labels = probe_labels[start : start + self.block]
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

    def _missing(self, params, classes: RgbdClasses, probes, labels, gallery) -> dict[str, float]:
        """Clean probes of which one modality is not there."""
        trust = self._confidence(params, gallery, enrolled=True)
        stored = metrics.RgbdTemplates(gallery.rgb, gallery.depth, trust)
        whole = metrics.RgbdTemplates(probes.rgb, probes.depth, self._confidence(params, probes))
        report, present = {}, np.ones(len(labels), bool)
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
