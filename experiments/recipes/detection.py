"""What the experiments on detection share: their common fields, and the training of any detector on any kind of scenes.

Methods: cassod, condensation_net, ddc, rm_pfi, pseco, qdetr
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Protocol

import flax.traverse_util
import jax
import numpy as np

from jaxface import data as inputs
from jaxface import inference, interop, training
from jaxface.checks import AtLeast, NonNegative, Positive, ProperFraction
from jaxface.errors import UserError
from jaxface.interop.architecture import abstract_variables
from jaxface.interop.state_dict import check_variables
from jaxface.layers.remat import Remat
from jaxface.models.detection import Detector, RetinaFace, TrainingPass, init_variables, training_pass
from jaxface.models.detection.feature_pyramid import make_trunk
from jaxface.models.detection.retinaface import Pixels
from jaxface.training.recognition import statistics

LAPTOP_SCENES = inputs.SceneVariation(
    faces=(0, 3),
    sizes=(16.0, 96.0),
    overlap=0.1,
    truncated=0.05,
    tilt=8.0,
    photographs=0.4,
    shapes=(0, 16),
    distractors=(0, 1),
    occluders=0.0,
)
"""Scenes that a small detector learns in minutes: few faces, none below 16 pixels, some clutter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorRecipe:
    """Data, optimizer and length of a run that trains a detector, whichever it is."""

    data: inputs.DataSpec = inputs.ObjectScenes()
    """Images with objects to learn from; others are kept to evaluate on."""
    image_size: Annotated[int, AtLeast(32)] = 32
    """Side of the images, pixels."""
    augment: inputs.ObjectAugment = inputs.ObjectAugment.none()
    """Random changes of the training images; drawn scenes need none, photographs those of the detector's paper."""
    bfloat16: bool = False
    """Compute in bfloat16 (parameters, statistics, outputs and the loss stay float32)."""
    remat: Remat = "none"
    """What of the network the backward pass computes again instead of storing it: nothing, or each block; saves memory."""
    init_from: str | None = None
    """What to start from: a run of the same detector, a bundle, or published weights; a head for other classes starts afresh."""
    trunk_from: str | None = None
    """ResNet weights of ImageNet for the trunk, PyTorch or safetensors; random ones unless given."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adam", learning_rate=3e-3, schedule="cosine", weight_decay=0.0
    )
    """Optimizer and learning-rate schedule."""
    accumulate: Annotated[int, AtLeast(1)] = 1
    """Micro-batches in which a step is computed; saves memory."""
    ema_decay: Annotated[float | None, ProperFraction] = None
    """Decay per step of a moving average of the parameters, which is then evaluated; none by default."""
    batch_size: Annotated[int, AtLeast(1)] = 16
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 900
    """Training steps."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Processes that make or decode images; 0 uses threads."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the initialization and the order of the data."""
    data_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the drawn scenes, and of the split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionRecipe(DetectorRecipe):
    """Data, detector, optimizer and length of a run that trains a RetinaFace.

    The defaults are the laptop's: rendered scenes of 96 x 96, a MobileNetV1-0.25 from random weights.
    """

    data: inputs.DataSpec = inputs.Scenes(scenes=20_000, people=128, variation=LAPTOP_SCENES)
    """Images with objects to learn from; others are kept to evaluate on."""
    image_size: Annotated[int, AtLeast(32)] = 96
    """Side of the images, pixels."""
    augment: inputs.ObjectAugment = inputs.ObjectAugment.none()
    """Random changes of the training images; rendered scenes need none, photographs RetinaFace's."""
    backbone: str = "mobilenet_025"
    """Feature maps at strides 8, 16 and 32: mobilenet_025 or resnet50."""
    context: str = "ssh"
    """Kind of the context modules; `jaxface.layers.CONTEXTS` has them."""
    features: Annotated[int | None, AtLeast(4)] = None
    """Channels of pyramid and context modules, a multiple of 4; the published number of the backbone unless given."""
    anchor_sizes: Annotated[tuple[float, ...], Positive] = (13, 19, 27, 38, 54, 76)
    """Sides of the anchors, pixels: a third of them at each of the strides 8, 16 and 32."""
    match_iou: Annotated[float, Positive] = 0.35
    """Overlap from which an anchor is to find a face."""
    ignore_iou: Annotated[float, Positive] = 0.2
    """Overlap from which an anchor that is to find no face is not background either; published is `match_iou`, where the hardest
    negatives are those beside the faces."""
    negative_ratio: Annotated[float, Positive] = 7.0
    """Negatives in the loss per positive anchor, the hardest of an image."""
    box_weight: Annotated[float, NonNegative] = 1.0
    """Weight of the boxes in the loss; 2 is published."""
    point_weight: Annotated[float, NonNegative] = 0.1
    """Weight of the landmarks in the loss; 1 is published, and leaves a short run little for the rest."""
    pixels: Pixels = "rgb"
    """What the stem sees: rgb in [-1, 1], or bgr in [0, 255] less a mean, as published weights to start from need it."""
    optimizer: training.Optimizer = training.adam(0.02, warmup=0.02)
    """Optimizer and learning-rate schedule; small batches and large steps learn most in minutes."""
    batch_size: Annotated[int, AtLeast(1)] = 8
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 2400
    """Training steps."""
    data_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the rendered people and scenes, and of the split."""


def coco_reference(learning_rate: float, *, epochs: int = 12, root: str = "coco") -> dict:
    """Fields of a `DetectorRecipe`: MMDetection's training on COCO train2017, evaluated on val2017.

    SGD at 0.01 for RetinaNet and 0.02 for Faster R-CNN, momentum 0.9, weight decay 1e-4, 500 steps of warm-up, a tenth of the
    rate after 8 and 11 of 12 epochs, batches of 16, mirror images; stem and first stage of the trunk do not train. An image of
    640 x 480 becomes 1067 x 800 there; here the longer side of all is 1088, on three canvases.
    """
    steps = epochs * 7330  # of the 117,266 images with objects
    shared = dict(max_objects=100, aspects=(1.0, 4 / 3, 3 / 4))
    return dict(
        data=inputs.Coco(
            annotations=f"{root}/annotations/instances_train2017.json",
            images=f"{root}/train2017",
            evaluation_annotations=f"{root}/annotations/instances_val2017.json",
            evaluation_images=f"{root}/val2017",
            **shared,
        ),
        image_size=1088,
        augment=inputs.ObjectAugment.flips(),
        optimizer=training.Optimizer(
            name="sgd",
            learning_rate=learning_rate,
            decay_at=(2 / 3, 11 / 12),
            warmup=500 / steps,
            weight_decay=1e-4,
            frozen=("trunk/stem", "trunk/stage1"),
        ),
        batch_size=16,
        steps=steps,
        workers=8,
    )


def retinaface(recipe: DetectionRecipe, **changes) -> RetinaFace:
    """The detector of a recipe; `changes` to its fields."""
    settings = dict(
        backbone=recipe.backbone,
        context=recipe.context,
        features=recipe.features,
        anchor_sizes=recipe.anchor_sizes,
        match_iou=recipe.match_iou,
        ignore_iou=recipe.ignore_iou,
        negative_ratio=recipe.negative_ratio,
        box_weight=recipe.box_weight,
        point_weight=recipe.point_weight,
        pixels=recipe.pixels,
        bfloat16=recipe.bfloat16,
        remat=recipe.remat,
    )
    return RetinaFace(**{**settings, **changes})


def load(recipe: DetectorRecipe) -> inputs.Split:
    """The data of a recipe, split.

    Raises:
      UserError: data without boxes, or data that cannot be had or split.
    """
    split = inputs.load(recipe.data, image_size=recipe.image_size, seed=recipe.data_seed)
    if split.protocol != "detection":
        raise UserError(
            f"data: needs images with boxes, such as scenes; {split.name} is for {split.protocol}"
        )
    return split


def check_classes(split: inputs.Split, detector: Detector) -> None:
    """Raises UserError unless a detector has as many classes as the objects of the data."""
    names = list(getattr(split.train, "class_names", ("face",)))
    if len(names) != detector.num_classes:
        listed = ", ".join(map(str, names))[:120]
        raise UserError(
            f"num_classes: needs {len(names)}, as {split.name} has ({listed}); got {detector.num_classes}"
        )


def as_asked(recipe: DetectorRecipe, detector: Detector) -> Detector:
    """The detector with the recipe's `bfloat16` and `remat`, where it has such fields and the recipe asks for them."""
    changes: dict[str, object] = {}
    if recipe.bfloat16 and hasattr(detector, "bfloat16"):
        changes["bfloat16"] = True
    if recipe.remat != "none" and hasattr(detector, "remat"):
        changes["remat"] = recipe.remat
    return dataclasses.replace(detector, **changes) if changes else detector


def pretrained(
    recipe: DetectorRecipe,
    detector: Detector,
    size: tuple[int, int],
    class_names: tuple[str, ...] = (),
) -> dict[tuple[str, ...], np.ndarray] | None:
    """Path -> leaf of the variables that `init_from`, or `trunk_from`, gives a detector; None without either.

    Where the two know another number of classes, the layers whose outputs that makes more or fewer have no leaf here: they start
    afresh.

    Raises:
      UserError: no detector there, or another one: names the first tensor that differs; as many classes as `class_names`, those
        of the data, but others.
    """
    if recipe.init_from is None:
        return None if recipe.trunk_from is None else _trunk_weights(recipe.trunk_from, detector, size)
    if recipe.trunk_from is not None:
        raise UserError("trunk_from: needs no init_from, whose trunk it would replace")
    given = inference.open_detector(recipe.init_from)
    if (
        class_names
        and given.detector.num_classes == len(class_names) > 1
        and given.class_names != class_names
    ):
        raise UserError(
            f"init_from: needs the categories of the data, {', '.join(class_names)[:80]}; {recipe.init_from} knows "
            f"{', '.join(given.class_names)[:80]}"
        )
    trained, wanted = (getattr(d, "pixels", None) for d in (given.detector, detector))
    if trained != wanted:
        raise UserError(f"pixels: needs {trained!r}, which {recipe.init_from} was trained on; got {wanted!r}")
    flat = flax.traverse_util.flatten_dict(dict(given.variables))
    if given.detector.num_classes != detector.num_classes:
        expected = flax.traverse_util.flatten_dict(abstract_variables(detector.module, (*size, 3)))
        heads = {
            path
            for path in flat.keys() & expected.keys()
            if flat[path].shape[:-1] == expected[path].shape[:-1] and flat[path].shape != expected[path].shape
        }
        # A layer's output is one: a bias without its kernel would be of neither.
        layers = {path[1:-1] for path in heads}
        fresh = {path: expected[path] for path in expected if path[1:-1] in layers}
        check_variables(flax.traverse_util.unflatten_dict({**flat, **fresh}), detector.module, (*size, 3))
        flat = {path: leaf for path, leaf in flat.items() if path not in fresh}
    else:
        check_variables(given.variables, detector.module, (*size, 3))
    return flat


def _trunk_weights(path: str, detector: Detector, size: tuple[int, int]) -> dict[tuple[str, ...], np.ndarray]:
    if getattr(detector, "trunk", "plain") == "plain":
        raise UserError(
            f"trunk_from: needs a detector on a resnet, got {type(detector).__name__} on another trunk"
        )
    state = interop.unwrapped(interop.read_tensors(path))
    read = interop.read_trunk(state, make_trunk(detector), (*size, 3), source=path)
    flat = flax.traverse_util.flatten_dict(read)
    return {(name, "trunk", *path): leaf for (name, *path), leaf in flat.items()}


class AddedLoss(Protocol):
    """A term beside a detector's own loss, such as what a teacher asks of it."""

    def init(self, rng: jax.Array) -> tuple[Mapping, Mapping]:
        """(parameters that train with the detector's, such as an adapter's; constants that the state carries, such as a teacher's
        variables); either may be empty."""

    def __call__(
        self, params: Mapping, constants: Mapping, trained: TrainingPass, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(scalar, metrics) of the detector's pass over a batch, `image` float32 in [-1, 1]; pure, inside of the step."""


Begin = Callable[[jax.Array, training.TrainState], tuple[dict, dict]]


def detection_stage(
    name: str,
    recipe: DetectorRecipe,
    split: inputs.Split,
    detector: Detector,
    *,
    optimizer: training.Optimizer | None = None,
    steps: int | None = None,
    evaluate: bool = True,
    added: AddedLoss | None = None,
    begin: Begin | None = None,
) -> training.Stage:
    """A stage that trains a detector and says beside its checkpoints what is in them, so that `jaxface detect` opens the run.

    The optimizer and the steps are the recipe's unless given; any detector will do, and no field of the recipe but those of
    `DetectorRecipe` is looked at. `added` is summed to the detector's loss; its parameters are the part `added` of the state's,
    its constants `added` of the state's `extra`. `begin` gives what a detector starts from that the stage before it has made:
    (rng, state of that stage) -> (its parameters, `extra`).

    Raises:
      UserError: a batch size that cannot be used, a detector of another number of classes than the data have, or an `init_from`
        of another detector.
    """
    check_classes(split, detector)
    detector = as_asked(recipe, detector)
    steps = recipe.steps if steps is None else steps
    size = split.train.image_shape[:2]
    names = tuple(getattr(split.train, "class_names", ("face",)))
    start = pretrained(recipe, detector, size, names)

    def loss_fn(params, extra, batch, rng):
        variables = {"params": params["detector"], **statistics(extra)}
        trained = training_pass(detector, variables, batch, rng)
        loss, report = trained.loss, trained.report
        if added is not None:
            more, told = added(params["added"], extra["added"], trained, batch)
            loss, report = loss + more, {**report, **told}
        return loss, ({**extra, **trained.updated}, report)

    chosen = optimizer or recipe.optimizer
    objective = training.Objective(loss_fn, chosen.build(steps, network=("detector", detector.module)))
    if chosen.rates or chosen.frozen:
        shapes, _ = jax.eval_shape(lambda rng: init_variables(detector, rng, size), jax.random.key(0))
        chosen.check_groups({"detector": shapes})

    def init(rng, previous):
        if begin is None:
            params, extra = init_variables(detector, rng, size)
        else:
            params, extra = begin(rng, previous)
        if start is not None:
            fresh = flax.traverse_util.flatten_dict({"params": params, **extra})
            variables = flax.traverse_util.unflatten_dict({**fresh, **start})
            params, extra = variables["params"], statistics(variables)
        parts = {"detector": params}
        if added is not None:
            parts["added"], constants = added.init(jax.random.fold_in(rng, 1))
            extra = {**extra, "added": {**extra.get("added", {}), **constants}}
        return training.create_state(rng, parts, objective, extra=extra, ema=recipe.ema_decay is not None)

    def open_batches():
        return inputs.batches(
            split.train,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            augment=recipe.augment,
            shard=(jax.process_index(), jax.process_count()),
            workers=recipe.workers,
            # Images of several shapes are of one in a batch.
            order=inputs.bucket_order(split.train) if recipe.augment.keeps_shapes else None,
        )

    open_batches()  # reads nothing yet, but refuses what cannot be used
    return training.Stage(
        name=name,
        init=init,
        compile_init=begin is None,
        step=training.gradient_step(
            objective, accumulate=recipe.accumulate, ema_decay=recipe.ema_decay, frozen=chosen.held
        ),
        batches=lambda state: open_batches(),
        steps=steps,
        evaluate=training.ObjectDetection(detector, split.held_out) if evaluate else None,
        best="detection/ap50" if evaluate else None,
        description=inference.detector_description(
            detector, recipe.image_size, names, origin=f"trained on {recipe.data.title}"
        ),
    )
