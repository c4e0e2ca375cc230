"""Evaluation of a state by verification on people it never saw.

Methods: cckd, coupleface, sface
"""

import functools
from collections.abc import Mapping

import flax.linen as nn
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_verifiable
from jaxface.training.recognition import embed_source
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState


class Verification:
    """Evaluation of a state by verification on people it never saw.

    Args:
      model: the network.
      source: labeled records.
      pairs: as in `jaxface.metrics.verify`; those that the source comes with (a verification pack) unless given.
      seed: of the pairs drawn.
      flip: sum the embeddings of an image and its mirror image; not for what has no mirror image.
      identify: report open-set identification besides (`jaxface.metrics.open_set`); a verification pack, which does not say
        who is on an image, has none.

    Raises:
      UserError: too few people or pairs of them, or too many records for pairs="all".
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        *,
        pairs=None,
        seed: int = 0,
        flip: bool = True,
        identify: bool = False,
    ):
        identify = identify and getattr(source, "pairs", None) is None
        pairs = getattr(source, "pairs", None) if pairs is None else pairs
        self.model, self.source, self.pairs, self.seed, self.flip = model, source, pairs, seed, flip
        self.identify = identify
        check_verifiable(source, pairs, seed=seed, identify=identify)

    def embeddings(self, state: TrainState) -> np.ndarray:
        """[N, D] of the source."""
        params = state.averaged_params
        return embed_source(self.model, params["backbone"], state.extra, self.source, flip=self.flip)

    def __call__(self, state: TrainState) -> dict[str, float]:
        self._last = self.embeddings(state)
        report = metrics.verify(self._last, self.source.labels, pairs=self.pairs, seed=self.seed)
        if self.identify:
            report |= metrics.open_set(self._last, self.source.labels, seed=self.seed)
        return report

    def figures(self, state: TrainState) -> Figures:
        """ROC curve and similarity histogram of the state that was evaluated last."""
        return verification_figures(self._last, self.source.labels, pairs=self.pairs, seed=self.seed)


def verification_figures(embeddings: np.ndarray, labels: np.ndarray, *, pairs=None, seed: int = 0) -> Figures:
    """Name -> function that draws it to a path: the ROC curve and the genuine and impostor similarities."""
    return score_figures({"verification": metrics.verification_scores(embeddings, labels, pairs, seed=seed)})


def score_figures(scores: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figures:
    """Name -> function that draws it to a path: the ROC curves of all, and of a single one the similarities, too.

    Args:
      scores: by name what `jaxface.metrics.verification_scores` says: (scores [P], same [P] bool).
    """
    divided = {name: (values[same], values[~same]) for name, (values, same) in scores.items()}
    drawings = {
        "roc": functools.partial(
            figures.save_roc, {name: metrics.roc(*both) for name, both in divided.items()}
        )
    }
    if len(divided) == 1:
        ((genuine, impostor),) = divided.values()
        threshold = float(metrics.equal_error_rate(genuine, impostor).threshold)
        drawings["similarity"] = functools.partial(
            figures.save_score_histogram, genuine, impostor, threshold=threshold
        )
    return drawings
