"""Evaluation of a state on the classes that it was trained on.

Methods: sface
"""

import flax.linen as nn
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.recognition import embed_source
from jaxface.training.step import TrainState


class NearestPrototype:
    """Evaluation of a state by closed-set classification: the class whose prototype is nearest.

    Args:
      model: the network.
      source: labeled records of the training classes.
    """

    def __init__(self, model: nn.Module, source: Source):
        check_not_empty(source)
        self.model, self.source = model, source

    def __call__(self, state: TrainState) -> dict[str, float]:
        params = state.averaged_params
        embeddings = embed_source(self.model, params["backbone"], state.extra, self.source, flip=False)
        correct = metrics.nearest_prototype_accuracy(
            embeddings, np.asarray(params["prototypes"])[: len(self.source.class_names)], self.source.labels
        )
        return {"classification/accuracy": correct}
