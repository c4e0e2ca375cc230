"""Evaluation of several networks that tell the same classes apart, alone and together.

Methods: nclpp
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface import metrics
from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.recognition import statistics
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState


class ExpertAccuracy:
    """`evaluate` and `figures` of a stage whose networks are stacked (`jaxface.models.stacked`).

        ensemble/accuracy, /many, /medium, /few      of the mean of the networks' scores
        single/accuracy, /many, /medium, /few        of one network, mean over them
        single/best                                  of the best one
        experts/disagreement                         images for which they do not all say the same
        experts/divergence                           mean symmetric KL over their pairs

    The figure is the ensemble's accuracy of each class over the number of its training images.

    Args:
      model: `(image [B, H, W, C], train=) -> [K, B, C]`; its parameters are those named `experts`.
      source: labeled records of the training classes.
      counts: [C] training images of each class.
      many_above, few_below: as of `metrics.split_accuracy`.
    """

    def __init__(
        self, model: nn.Module, source: Source, counts: np.ndarray, *, many_above: float, few_below: float
    ):
        check_not_empty(source)
        self.source, self.counts = source, np.asarray(counts)
        self.split = functools.partial(
            metrics.split_accuracy, counts=self.counts, many_above=many_above, few_below=few_below
        )

        def scores(variables, batch):
            images = normalize_pixels(batch["image"])
            return jnp.swapaxes(model.apply(variables, images, train=False), 0, 1)

        self._scores = jax.jit(scores)

    def __call__(self, state: TrainState) -> dict[str, float]:
        variables = {"params": state.averaged_params["experts"], **statistics(state.extra)}
        scores = np.swapaxes(map_source(self._scores, self.source, variables), 0, 1).astype(np.float64)
        labels, alone = self.source.labels, scores.argmax(axis=2)
        self._predicted = scores.mean(axis=0).argmax(axis=1)
        each = [{"accuracy": float((p == labels).mean()), **self.split(p, labels)} for p in alone]
        together = {
            "accuracy": float((self._predicted == labels).mean()),
            **self.split(self._predicted, labels),
        }
        return {
            **{f"ensemble/{name}": value for name, value in together.items()},
            **{f"single/{name}": float(np.mean([one[name] for one in each])) for name in each[0]},
            "single/best": max(one["accuracy"] for one in each),
            "experts/disagreement": metrics.disagreement(alone),
            "experts/divergence": metrics.mean_pairwise_divergence(
                np.asarray(jax.nn.log_softmax(scores), np.float64)
            ),
        }

    def figures(self, state: TrainState) -> Figures:
        """The state that was evaluated last, class by class."""
        of_class = metrics.per_class_accuracy(
            self._predicted, self.source.labels, num_classes=len(self.counts)
        )
        return {"classes": functools.partial(figures.save_class_sizes, self.counts, of_class)}
