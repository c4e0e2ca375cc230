"""CASSOD: a dilated 3×3 filter as two cascaded 2×2 filters, one of them depthwise (arXiv:2104.14126).

    python -m experiments.launch cassod --workdir runs/cassod                      # ellipses, half a minute of a core: 0.69
    python -m experiments.launch cassod --preset detector --workdir runs/cassod    # RetinaFace on rendered scenes
    python -m experiments.launch cassod --preset paper --data.root …               # WIDER FACE; built and typed, not trained here
    python -m experiments.reproduce cassod --study ellipses                        # 0.758, dense filter 0.774, bottleneck 0.754

Differs from the paper in: its structures and its recipe could not be read (docs/methods/cassod.md#choices-of-ours).
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from experiments.recipes import detection
from jaxface import data as inputs
from jaxface import layers, losses, training
from jaxface.checks import AtLeast, Positive
from jaxface.errors import UserError
from jaxface.models.detection import CellNet, Structure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(detection.DetectionRecipe):
    """A context layer of cascaded 2×2 filters where it has to see far: three discs at once, or a face at one place of a map.

    Data whose records have cells train the small network around one layer, the `structure`; data whose records have boxes train
    the RetinaFace with context modules of the kind `context`, and of the other fields those of that detector count.
    """

    data: inputs.DataSpec = inputs.Ellipses()
    """Images that say cell by cell whether a face has its center there, or images with boxes."""
    image_size: Annotated[int, AtLeast(32)] = 40
    """Side of the images, pixels; ellipses keep their 40."""
    context: str = "cassod"
    """Kind of the detector's context modules: cassod, cassod_cc, cassod_cd, cassod_ddp, or dilated, their baseline."""
    structure: Structure = "dc"
    """The small network's layer: a cascade of 2×2 filters (d is depthwise, c dense, p pointwise), or what it is compared with."""
    dilation: Annotated[int, AtLeast(1)] = 2
    """Of that layer's filters."""
    width: Annotated[int, AtLeast(1)] = 16
    """Channels of the small network."""
    narrow: Annotated[int, AtLeast(1)] = 7
    """Channels in the middle of its bottleneck, which has as many weights as the cascade then."""
    positive_weight: Annotated[float, Positive] = 11.0
    """Weight of a cell that holds a center, against the many that hold none."""
    optimizer: training.Optimizer = training.adam(3e-3)
    """Optimizer and learning-rate schedule."""
    batch_size: Annotated[int, AtLeast(1)] = 32
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 1200
    """Training steps."""

    @classmethod
    def paper(cls) -> "Config":
        """WIDER FACE by the recipe of the host: RetinaFace with MobileNet-0.25, the dilated filters of its context cascaded."""
        return cls(
            data=inputs.WiderFace(root="wider_face"),
            image_size=1024,  # of which training sees squares, at 640
            augment=inputs.ObjectAugment(side=640),
            anchor_sizes=(16, 32, 64, 128, 256, 512),
            ignore_iou=0.35,
            box_weight=2.0,
            point_weight=1.0,
            optimizer=training.sgd(1e-3, decay_at=(190 / 250, 220 / 250)),
            batch_size=32,
            steps=250 * (12_880 // 32),
            workers=8,
        )

    @classmethod
    def detector(cls) -> "Config":
        """The same detector on rendered scenes of 96 × 96 by the laptop's recipe."""
        laptop = detection.DetectionRecipe()
        fields = {field.name: getattr(laptop, field.name) for field in dataclasses.fields(laptop)}
        return cls(**{**fields, "context": "cassod"})


def network(config: Config) -> CellNet:
    """The small network around the configured layer."""
    return CellNet(config.structure, config.dilation, config.width, config.narrow, remat=config.remat)


def cells_stage(config: Config, split: inputs.Split) -> training.Stage:
    """Trains the small network to say in which cells faces have their centers, and asks for those of images it never saw."""
    model = network(config)

    def loss_fn(params, extra, batch, rng):
        logits = model.apply({"params": params["backbone"]}, batch["image"], train=True)
        loss = losses.cell_loss(logits, batch["cells"], positive_weight=config.positive_weight).mean()
        cascade, report = params["backbone"]["context"], {}
        if (
            "a" in cascade
        ):  # nothing but the loss holds the ratio: neither weight decay nor a normalization follows
            report["stage_ratio"] = layers.stage_ratio(jax.lax.stop_gradient(cascade))
        return loss, (extra, report)

    rule = config.optimizer.build(config.steps, network=("backbone", model))
    objective = training.Objective(loss_fn, rule)

    def init(rng, previous):
        image = jnp.zeros((1, *split.train.image_shape))
        params = {"backbone": model.init(rng, image, train=False)["params"]}
        return training.create_state(rng, params, objective, extra={}, ema=config.ema_decay is not None)

    def open_batches():
        return inputs.batches(
            split.train,
            batch_size=config.batch_size,
            seed=config.seed,
            shard=(jax.process_index(), jax.process_count()),
            workers=config.workers,
        )

    open_batches()  # reads nothing yet, but refuses what cannot be used
    return training.Stage(
        name="cells",
        init=init,
        step=training.gradient_step(
            objective,
            accumulate=config.accumulate,
            ema_decay=config.ema_decay,
            frozen=config.optimizer.held,
        ),
        batches=lambda state: open_batches(),
        steps=config.steps,
        evaluate=training.CellPrecision(model, split.held_out),
        best="cells/average_precision",
    )


def build(config: Config) -> list[training.Stage]:
    """One stage: the small network on cells, or the detector on boxes."""
    split = inputs.load(config.data, image_size=config.image_size, seed=config.data_seed)
    if split.protocol == "cells":
        return [cells_stage(config, split)]
    if split.protocol == "detection":
        return [detection.detection_stage("detector", config, split, detection.retinaface(config))]
    raise UserError(f"data: needs records with cells or boxes, such as ellipses or scenes, got {split.name}")
