"""Condensation-Net: convolutions of R filters per stored feature map, pooled across channels (arXiv:2104.14124).

    python -m experiments.launch condensation_net --workdir runs/condensation-net
    python -m experiments.launch condensation_net --preset detector --workdir runs/condensed-faces       # a small YOLO
    python -m experiments.launch condensation_net --preset paper --workdir …    # Tiny YOLO, WIDER FACE; built, not trained here
    python -m experiments.reproduce condensation_net --study classes

Differs from the paper in: all that it does not publish of the training (docs/methods/condensation_net.md#choices-of-ours).
"""

import dataclasses
from typing import Annotated, Literal

import jax
import numpy as np

from experiments.recipes import recognition as recipe
from experiments.recipes.detection import DetectionRecipe, detection_stage
from experiments.recipes.heads import HeadSpec
from jaxface import data as inputs
from jaxface import losses, training
from jaxface.checks import AtLeast, Integers, Positive
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.models.detection import TinyYolo

_LAPTOP = DetectionRecipe()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """A classifier or a detector of faces whose layers store M maps of R·M filters.

    The data say which: images of classes, or images with boxes.
    """

    data: inputs.DataSpec = inputs.DigitCanvas()
    """Images of classes to be told apart, or images with boxes around faces."""
    image_size: Annotated[int, AtLeast(8)] = 24
    """Side of the images, pixels."""
    augment: inputs.Augment = inputs.Augment(flip=0.0)
    """Random changes of the training images of a classifier."""
    backbone: Literal["condensed_net", "tiny_yolo"] = "condensed_net"
    """condensed_net: three convolutions, for small images; the detector is a tiny_yolo."""
    embedding: None = None
    """The classifier is the linear layer of the recipe."""
    channels: Annotated[int, AtLeast(1)] = 6
    """condensed_net: M, maps that the first layer stores; the others store twice as many."""
    groups: Annotated[int, Integers(1, 127)] = 2
    """R, filters of each stored map; 1 for plain convolutions."""
    reduce: Literal["max", "mean"] = "max"
    """condensed_net: what is kept of R maps, the maximum, or their mean before the activation (a control: one filter)."""
    corrected: bool = True
    """condensed_net: start with the variance that keeps the signal's power under the maximum; else with He's."""
    quantized: bool = False
    """Binary weights and 2-bit activations in all layers but the first and the classifier, behind batch normalization."""
    widths: Annotated[tuple[int, ...], AtLeast(1)] = TinyYolo.widths
    """tiny_yolo: maps that each layer stores."""
    pools: Annotated[tuple[int, ...], Integers(1, 2)] = TinyYolo.pools
    """tiny_yolo: stride of the 2x2 maximum behind each of the first layers."""
    ccp_layers: Annotated[tuple[int, ...], AtLeast(1)] = TinyYolo.ccp_layers
    """tiny_yolo: layers, counted from 1, of R filters per map."""
    anchor_sizes: tuple[tuple[float, float], ...] = ()
    """tiny_yolo: (height, width) of the anchors, pixels; five that suit the boxes of some of the training images unless given."""
    object_augment: inputs.ObjectAugment = inputs.ObjectAugment.none()
    """Detector: random changes of the training images; photographs need those of YOLO."""
    prototype_std: Annotated[float, Positive] = 0.2
    """Standard deviation of the linear classifier's weights at the start, > 0."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adamw", learning_rate=4e-3, schedule="cosine", weight_decay=1e-4
    )
    """Optimizer and learning-rate schedule."""
    steps: Annotated[int, AtLeast(0)] = 900
    """Training steps."""

    @classmethod
    def paper(cls) -> "Config":
        """WIDER FACE; 1.5 points of FDDB's detection rate at 284 false positives over `groups=1` are the acceptance test."""
        steps = 40_200
        return cls(
            data=inputs.WiderFace(root="wider-face"),
            image_size=416,
            object_augment=inputs.ObjectAugment.yolo(side=416),
            backbone="tiny_yolo",
            batch_size=64,
            optimizer=training.sgd(1e-3, decay_at=(20_000 / steps, 30_000 / steps), warmup=1000 / steps),
            steps=steps,
            workers=8,
        )

    @classmethod
    def detector(cls) -> "Config":
        """A small YOLO with a stride of 8 on rendered scenes."""
        return cls(
            data=_LAPTOP.data,
            image_size=_LAPTOP.image_size,
            backbone="tiny_yolo",
            widths=(8, 16, 32, 64, 64),
            pools=(2, 2, 2),
            ccp_layers=(2, 3, 4, 5),
            anchor_sizes=(
                (16.4, 12.3),
                (27.5, 21.5),
                (48.2, 35.0),
                (78.5, 58.2),
                (120.5, 93.3),
            ),  # of `face_anchors`
            batch_size=_LAPTOP.batch_size,
            optimizer=training.adam(3e-3, warmup=0.05),
            steps=_LAPTOP.steps,
        )


def network(config: Config):
    """The classifier without its linear layer."""
    if config.backbone != "condensed_net":
        raise UserError(f"backbone: needs condensed_net for {config.data.title}, got {config.backbone!r}")
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


def face_anchors(source: inputs.Source, count: int, *, most: int = 200) -> tuple[tuple[float, float], ...]:
    """Sizes of anchors for the boxes of up to `most` records, evenly spread."""
    sizes = []
    for i in range(0, len(source), -(-len(source) // most)):
        record = source[i]
        boxes = record["boxes"][record["box_mask"] & ~record["box_crowd"]]
        sizes.append(boxes[:, 2:] - boxes[:, :2])
    return tuple(map(tuple, losses.cluster_anchors(np.concatenate(sizes), count).round(1).tolist()))


def detector(config: Config, source: inputs.Source) -> TinyYolo:
    """The detector, whose anchors suit the records of `source` where they are not given."""
    return TinyYolo(
        widths=config.widths,
        pools=config.pools,
        ccp_layers=config.ccp_layers,
        ccp_groups=config.groups,
        anchor_sizes=config.anchor_sizes or face_anchors(source, len(TinyYolo.anchor_sizes)),
        num_classes=len(source.class_names),
        quantized=config.quantized,
        bfloat16=config.bfloat16,
        remat=config.remat,
    )


def detection_recipe(config: Config) -> DetectionRecipe:
    """What the configuration says of the training of a detector."""
    names = {field.name for field in dataclasses.fields(DetectionRecipe)}
    shared = [field.name for field in dataclasses.fields(config) if field.name in names]
    others = {"augment", "backbone", "anchor_sizes"}  # of another meaning there
    fields = {name: getattr(config, name) for name in shared if name not in others}
    return DetectionRecipe(augment=config.object_augment, **fields)


def build(config: Config) -> list[training.Stage]:
    """One stage: the classifier, tested on images of the same classes, or the detector, tested on images it never saw."""
    split = inputs.load(config.data, image_size=config.image_size, seed=config.data_seed)
    if split.protocol == "detection":
        recipe.check_no_packs(config, "these data train a detector")
        yolo = detector(config, split.train)
        return [detection_stage("detector", detection_recipe(config), split, yolo)]
    model = network(config)
    head = HeadSpec(loss="linear").build()
    stage = recipe.recognition_stage("classifier", config, split, model, head)
    evaluate = training.Evaluations(stage.evaluate, Winners(model, split.held_out))
    return [dataclasses.replace(stage, evaluate=evaluate)]
