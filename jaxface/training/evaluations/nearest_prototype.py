"""Evaluation of a state on the classes that it was trained on.

Methods: apvit, sface, ota
"""

import flax.linen as nn
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source
from jaxface.training.distributed import on_host
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.recognition import class_scores, embed_source
from jaxface.training.step import TrainState


class NearestPrototype:
    """Evaluation of a state by closed-set classification: the class of the nearest prototype, or of a linear layer's top score.

    Args:
      model: the network.
      source: labeled records of the training classes.
    """

    def __init__(self, model: nn.Module, source: Source):
        check_not_empty(source)
        self.model, self.source = model, source

    def answers(self, state: TrainState) -> np.ndarray:
        """[N] integers, the class that the state says of every record."""
        params = state.averaged_params
        embeddings = embed_source(self.model, params["backbone"], state.extra, self.source, flip=False)
        classes = len(self.source.class_names)
        if "bias" in params:
            scores = class_scores(on_host(params), embeddings, classes)
            return np.asarray(scores).argmax(axis=1)
        return metrics.nearest_prototype(embeddings, on_host(params["prototypes"])[:classes])

    def __call__(self, state: TrainState) -> dict[str, float]:
        return {"classification/accuracy": float((self.answers(state) == self.source.labels).mean())}
