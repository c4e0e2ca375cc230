"""How well a network says in which cells of an image something is.

Methods: cassod
"""

import flax.linen as nn
import jax
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.recognition import network_variables
from jaxface.training.step import TrainState


class CellPrecision:
    """Evaluation of a state by the average precision over all cells of all images.

    Args:
      model: (image [B, H, W, C]) -> logits [B, h, w].
      source: records with `cells` [h, w], 1 where something is.
    """

    def __init__(self, model: nn.Module, source: Source):
        check_not_empty(source)
        self.source = source
        self._logits = jax.jit(
            lambda variables, batch: model.apply(variables, normalize_pixels(batch["image"]), train=False)
        )

    def __call__(self, state: TrainState) -> dict[str, float]:
        variables = network_variables(state.averaged_params["backbone"], state.extra)
        logits = map_source(self._logits, self.source, variables)
        cells = np.stack([self.source[i]["cells"] for i in range(len(self.source))])
        return {"cells/average_precision": metrics.average_precision(logits, cells)}
