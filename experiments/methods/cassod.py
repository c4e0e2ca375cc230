"""CASSOD: a dilated 3×3 filter as two cascaded 2×2 filters, one of them depthwise (arXiv:2104.14126).

    python -m experiments.launch cassod --workdir runs/cassod            # ellipses
    python -m experiments.reproduce cassod --study ellipses

Differs from the paper in: its structures and its recipe could not be read (docs/methods/cassod.md#choices-of-ours).
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxface import data as inputs
from jaxface import layers, losses, training
from jaxface.checks import AtLeast, Positive
from jaxface.errors import UserError
from jaxface.models.detection import CellNet, Structure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A small network that finds faces among ellipses, by one context layer; it has to see their three discs at once."""

    data: inputs.DataSpec = inputs.Ellipses()
    """Images that say cell by cell whether a face has its center there."""
    structure: Structure = "dc"
    """The context layer: a cascade of 2×2 filters (d is depthwise, c dense, p pointwise), or what it is compared with."""
    dilation: Annotated[int, AtLeast(1)] = 2
    """Of the context layer's filters."""
    width: Annotated[int, AtLeast(1)] = 16
    """Channels of the network."""
    narrow: Annotated[int, AtLeast(1)] = 7
    """Channels in the middle of the bottleneck, which has as many weights as the cascade then."""
    positive_weight: Annotated[float, Positive] = 11.0
    """Weight of a cell that holds a center, against the many that hold none."""
    optimizer: training.Optimizer = training.adam(3e-3)
    """Optimizer and learning-rate schedule."""
    batch_size: Annotated[int, AtLeast(1)] = 32
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 1200
    """Training steps."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Processes that read; 0 uses threads, best for what is in memory."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the initialization and of the order of the data."""
    data_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the images."""


def network(config: Config) -> CellNet:
    """The configured network."""
    return CellNet(config.structure, config.dilation, config.width, config.narrow)


def build(config: Config) -> list[training.Stage]:
    """One stage: train the network around its context layer, and find the centers of faces on images it never saw."""
    split = inputs.load(config.data, seed=config.data_seed)
    if split.protocol != "cells":
        raise UserError(f"data: needs records with cells, such as ellipses, got {split.name}")
    model = network(config)

    def loss_fn(params, extra, batch, rng):
        logits = model.apply({"params": params["backbone"]}, batch["image"], train=True)
        loss = losses.cell_loss(logits, batch["cells"], positive_weight=config.positive_weight).mean()
        report = {}
        if "a" in (cascade := params["backbone"]["context"]):
            # Nothing but the loss holds the ratio: neither weight decay nor a normalization follows.
            report["stage_ratio"] = layers.stage_ratio(jax.lax.stop_gradient(cascade))
        return loss, (extra, report)

    objective = training.Objective(loss_fn, config.optimizer.build(config.steps))

    def init(rng, previous):
        image = jnp.zeros((1, *split.train.image_shape))
        return training.create_state(
            rng, {"backbone": model.init(rng, image, train=False)["params"]}, objective, extra={}
        )

    def batches(state):
        return inputs.batches(
            split.train,
            batch_size=config.batch_size,
            seed=config.seed,
            shard=(jax.process_index(), jax.process_count()),
            workers=config.workers,
        )

    batches(None)  # refuses what cannot be used before anything is compiled
    return [
        training.Stage(
            name="cells",
            init=init,
            step=training.gradient_step(objective),
            batches=batches,
            steps=config.steps,
            evaluate=training.CellPrecision(model, split.held_out),
            best="cells/average_precision",
            key="cells",
        )
    ]
