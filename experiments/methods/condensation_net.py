"""Condensation-Net: convolutions of R filters per stored feature map, pooled across channels (arXiv:2104.14124).

    python -m experiments.launch condensation-net --workdir runs/condensation-net
    python -m experiments.reproduce condensation-net --study classes

Differs from the paper in: nearly everything about training, which the paper does not publish
(docs/methods/condensation_net.md#choices-of-ours).
"""

import dataclasses
from typing import Annotated, Literal

import jax
import numpy as np

from experiments.recipes import recognition as recipe
from experiments.recipes.heads import HeadSpec
from jaxface import data as inputs
from jaxface import training
from jaxface.checks import AtLeast, Integers, Positive
from jaxface.data.transforms.pixels import normalize_pixels

LINEAR = HeadSpec(loss="linear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """A classifier whose layers store M maps of R·M filters."""

    data: inputs.DataSpec = inputs.DigitCanvas()
    """Images of classes to be told apart."""
    image_size: Annotated[int, AtLeast(8)] = 24
    """Side of the images, pixels."""
    augment: inputs.Augment = inputs.Augment(flip=0.0)
    """Random changes of the training images."""
    backbone: Literal["condensed_net"] = "condensed_net"
    """Network: three convolutions for small images."""
    embedding: None = None
    """The classifier is the linear layer of the recipe."""
    channels: Annotated[int, AtLeast(1)] = 6
    """M, maps that the first layer stores; the others store twice as many."""
    groups: Annotated[int, Integers(1, 127)] = 2
    """R, filters of each stored map; 1 for plain convolutions."""
    reduce: Literal["max", "mean"] = "max"
    """What is kept of the R maps: the maximum, or their mean before the activation (a control, which is one filter)."""
    corrected: bool = True
    """Start with the variance that keeps the signal's power under the maximum; else with He's."""
    quantized: bool = False
    """Binary weights and 2-bit activations in all layers but the first and the classifier, behind batch normalization."""
    prototype_std: Annotated[float, Positive] = 0.2
    """Standard deviation of the linear classifier's weights at the start, > 0."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adamw", learning_rate=4e-3, schedule="cosine", weight_decay=1e-4
    )
    """Optimizer and learning-rate schedule."""
    steps: Annotated[int, AtLeast(0)] = 900
    """Training steps."""


def network(config: Config):
    """The classifier without its linear layer."""
    fields = ("channels", "groups", "reduce", "corrected", "quantized")
    return recipe.network(config, **{name: getattr(config, name) for name in fields})


class Winners:
    """Which members of the groups are the maximum, over all places of all records.

    Reported are the share of filters that never are (`idle`), and the mean over the groups of the share of the most frequent
    member (`top`), which is 1/R where all win equally often and 1 where a group is one filter.

    Args:
      model: a network of `CondensationConv` layers.
      source: records.
    """

    def __init__(self, model, source: inputs.Source):
        self.model, self.source = model, source

    def __call__(self, state: training.TrainState) -> dict[str, float]:
        shares = np.concatenate([share for share in self._shares(state)])
        return {
            "condensation/idle": float((shares == 0).mean()),
            "condensation/top": float(shares.max(axis=1).mean()),
        }

    def _shares(self, state: training.TrainState) -> list[np.ndarray]:
        """[M, R] of each layer."""
        groups = self.model.groups

        def shares(variables, batch):
            _, told = self.model.apply(
                variables, normalize_pixels(batch["image"]), train=False, mutable=["intermediates"]
            )
            winners = jax.tree.leaves(told["intermediates"])
            return tuple(jax.nn.one_hot(w, groups).mean(axis=(1, 2)) for w in winners)

        variables = training.network_variables(state.averaged_params["backbone"], state.extra)
        return [layer.mean(axis=0) for layer in training.map_source(jax.jit(shares), self.source, variables)]


def build(config: Config) -> list[training.Stage]:
    """One stage: train the classifier, test it on images of the same classes, and see which filters are used."""
    model = network(config)  # refuses what it cannot be before any data is opened
    split = recipe.load(config)
    stage = recipe.recognition_stage("classifier", config, split, model, LINEAR.build())
    evaluate = training.Evaluations(stage.evaluate, Winners(model, split.held_out))
    return [dataclasses.replace(stage, evaluate=evaluate)]
