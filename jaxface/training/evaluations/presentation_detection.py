"""Live faces told from presentation attacks, with every subset of the sensors.

Methods: fmvit
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import Split
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.metrics.spoofing.presentation_attacks import LIVE
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_spoofing
from jaxface.training.map_source import map_source
from jaxface.training.recognition import network_variables
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState

SENSORS = {"rgb": "image", "depth": "depth", "infrared": "infrared"}
"""The modalities, and the field of a record that each is."""


def sensor_images(batch: Mapping[str, jax.Array], modalities: Sequence[str]) -> dict[str, jax.Array]:
    """What each sensor saw, float32 in [-1, 1]; bytes and floats are taken.

    Raises:
      UserError: an unknown modality.
    """
    check_modalities(modalities)
    return {name: normalize_pixels(batch[SENSORS[name]]) for name in modalities}


def check_modalities(modalities: Sequence[str]) -> None:
    """Raises UserError for a modality that there is not, for none, and for one named twice."""
    unknown = [name for name in modalities if name not in SENSORS]
    if unknown or not modalities or len(set(modalities)) < len(modalities):
        raise UserError(
            f"modalities: needs some of {', '.join(SENSORS)}, got {', '.join(modalities) or 'none'}"
        )


def subsets(modalities: Sequence[str]) -> dict[str, np.ndarray]:
    """Name -> [M] bool of every subset but the empty one, small ones first: rgb, depth, rgb+depth."""
    chosen = [s for size in range(1, len(modalities) + 1) for s in itertools.combinations(modalities, size)]
    return {"+".join(names): np.isin(modalities, names) for names in chosen}


class PresentationDetection:
    """Error rates of a state with every subset of the sensors: `evaluate` of a stage.

    The threshold of a subset is that of equal errors on the development set, seen with the same subset. Reports of each
    `metrics.spoof_report` as `acer@rgb`, `acer_max@rgb+depth`, ..., the development set's `eer@rgb`; `acer@single`, the mean over
    the single sensors; and `development/auc`, the mean over subsets, by which a checkpoint may be chosen.

    Args:
      score: (variables, images by modality [B, ...], available [M] bool) -> [B], higher for live.
      split: with a development set; labels are instruments, 0 of live faces.
      modalities: M names of `SENSORS`.

    Raises:
      UserError: data without a development set, an empty part, or an unknown modality.
    """

    def __init__(
        self,
        score: Callable[[Mapping, Mapping[str, jax.Array], jax.Array], jax.Array],
        split: Split,
        modalities: Sequence[str],
    ):
        check_modalities(modalities)
        check_spoofing(split)
        self.split, self.modalities, self.subsets = split, tuple(modalities), subsets(modalities)
        available = jnp.asarray(np.stack(list(self.subsets.values())))

        def every(variables, batch):
            images = sensor_images(batch, self.modalities)
            return jax.lax.map(lambda there: score(variables, images, there), available).T

        self._scores = jax.jit(every)

    def scores(self, source: Source, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
        """[N, S] of each record with each subset, and its instrument [N]; records that another stands in for are left out."""
        variables = network_variables(state.averaged_params["backbone"], state.extra)
        fields = tuple(SENSORS[name] for name in self.modalities)
        scores = map_source(self._scores, source, variables, fields=fields)
        shown = getattr(source, "shown", lambda index: index)
        itself = np.array([shown(index) == index for index in range(len(source))])
        return scores[itself], np.asarray(source.labels)[itself]

    def __call__(self, state: TrainState) -> dict[str, float]:
        development, known = self.scores(self.split.development, state)
        self._test, self._instruments = self.scores(self.split.held_out, state)
        report, areas, self._thresholds = {}, [], {}
        for column, name in enumerate(self.subsets):
            point = metrics.equal_error_threshold(development[:, column], known)
            self._thresholds[name] = point.threshold
            areas.append(metrics.auc(*metrics.split_presentations(development[:, column], known)))
            found = metrics.spoof_report(self._test[:, column], self._instruments, point.threshold)
            report |= {f"{key}@{name}": value for key, value in found.items()} | {f"eer@{name}": point.eer}
        report["acer@single"] = float(np.mean([report[f"acer@{name}"] for name in self.modalities]))
        report["development/auc"] = float(np.mean(areas))
        return report

    def figures(self, state: TrainState) -> Figures:
        """ROC curves of all subsets, and the scores with all sensors, of the state that was evaluated last."""
        live = self._instruments == LIVE
        curves = {
            name: metrics.roc(self._test[live, column], self._test[~live, column])
            for column, name in enumerate(self.subsets)
        }
        everything, threshold = self._test[:, -1], self._thresholds[list(self.subsets)[-1]]
        return {
            "roc": functools.partial(figures.save_roc, curves),
            "scores": functools.partial(
                figures.save_score_histogram,
                everything[live],
                everything[~live],
                threshold=threshold if np.isfinite(threshold) else None,
                names=("live", "attack"),
                xlabel="liveness with all sensors",
            ),
        }
