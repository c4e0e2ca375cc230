"""DDC: depthwise convolutions with dilated or large filters for hardware that streams filter taps (arXiv:2104.14125).

    python -m experiments.launch ddc --workdir runs/ddc
    python -m experiments.launch ddc --preset detector --workdir runs/ddc-faces     # RetinaFace with DDC context modules
    python -m experiments.launch ddc --preset paper --workdir …     # MobileNetV1 5x5 on ImageNet; built, not trained here
    python -m experiments.reproduce ddc --study classes

Differs from the paper in: nearly all of the training, which the paper does not publish (docs/methods/ddc.md#choices-of-ours).
"""

import dataclasses
from typing import Annotated

from experiments.recipes import recognition as recipe
from experiments.recipes.detection import DetectionRecipe, detection_stage, retinaface
from experiments.recipes.heads import HeadSpec
from jaxface import data as inputs
from jaxface import training
from jaxface.checks import AtLeast, NonNegative, Positive
from jaxface.errors import UserError

_LAPTOP = DetectionRecipe()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """A classifier whose depthwise filters have a size and dilations, or a detector of faces whose context modules have them.

    The data say which: images of classes, or images with boxes.
    """

    data: inputs.DataSpec = inputs.DigitCanvas()
    """Images of classes to be told apart, or images with boxes around faces."""
    image_size: Annotated[int, AtLeast(8)] = 24
    """Side of the images, pixels."""
    augment: inputs.Augment = inputs.Augment(flip=0.0)
    """Random changes of the training images of a classifier."""
    backbone: str = "separable_net"
    """Classifier: separable_net (three layers, for small images) or mobilenet_v1; detector: mobilenet_025 or resnet50."""
    embedding: None = None
    """The classifier is the linear layer of the recipe."""
    depthwise_kernel: Annotated[int, AtLeast(1)] = 3
    """Classifier: side k of the depthwise filters, odd; 3 with dilations for DDC layers, 5 for large kernels."""
    dilations: Annotated[tuple[int, ...], AtLeast(1)] = (1, 2, 2)
    """separable_net: dilation of each layer; equal ones above 1 leave holes in the field of view."""
    channels: Annotated[int, AtLeast(1)] = 24
    """separable_net: channels of every layer."""
    width: Annotated[float, Positive] = 1.0
    """mobilenet_v1: factor of the numbers of channels."""
    context: str = "ddc"
    """Detector: kind of the context modules; ssh is RetinaFace's, dilated has dense filters where ddc has DDC layers."""
    anchor_sizes: Annotated[tuple[float, ...], Positive] = _LAPTOP.anchor_sizes
    """Detector: sides of the anchors, pixels: a third of them at each of the strides 8, 16 and 32."""
    ignore_iou: Annotated[float, Positive] = _LAPTOP.ignore_iou
    """Detector: overlap from which an anchor that is to find no face is not background either; 0.35 is published."""
    box_weight: Annotated[float, NonNegative] = _LAPTOP.box_weight
    """Detector: weight of the boxes in the loss; 2 is published."""
    point_weight: Annotated[float, NonNegative] = _LAPTOP.point_weight
    """Detector: weight of the landmarks in the loss; 1 is published."""
    object_augment: inputs.ObjectAugment = inputs.ObjectAugment.none()
    """Detector: random changes of the training images; photographs need RetinaFace's."""
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
        """ImageNet, MobileNetV1 with 5x5 filters; a point over the same run with 3x3 ones is the acceptance test."""
        batch, epochs = 256, 90
        return cls(
            data=inputs.Tfds(name="imagenet2012", test="validation", fit="crop"),
            image_size=224,
            augment=inputs.Augment(flip=0.5, crop=1.0, crop_scale=(0.5, 1.0)),
            backbone="mobilenet_v1",
            depthwise_kernel=5,
            prototype_std=0.01,
            bfloat16=True,
            batch_size=batch,
            optimizer=training.sgd(0.1, schedule="cosine", warmup=5 / epochs, weight_decay=4e-5),
            steps=epochs * 1_281_167 // batch,
            workers=16,
        )

    @classmethod
    def wider(cls) -> "Config":
        """WIDER FACE, RetinaFace on MobileNetV1-0.25 with DDC context modules: a fifth fewer parameters than with SSH's."""
        batch = 32
        return cls(
            data=inputs.WiderFace(root="wider-face"),
            image_size=1024,
            object_augment=inputs.ObjectAugment(side=640),
            backbone="mobilenet_025",
            anchor_sizes=(16, 32, 64, 128, 256, 512),
            ignore_iou=0.35,
            box_weight=2.0,
            point_weight=1.0,
            batch_size=batch,
            optimizer=training.sgd(1e-3, decay_at=(190 / 250, 220 / 250)),
            steps=250 * 12_880 // batch,
            workers=8,
        )

    @classmethod
    def detector(cls) -> "Config":
        """The same detector on rendered scenes."""
        return cls(
            data=_LAPTOP.data,
            image_size=_LAPTOP.image_size,
            backbone=_LAPTOP.backbone,
            batch_size=_LAPTOP.batch_size,
            optimizer=_LAPTOP.optimizer,
            steps=_LAPTOP.steps,
        )


def network(config: Config):
    """The classifier without its linear layer."""
    fields = {"depthwise_kernel": config.depthwise_kernel}
    if config.backbone == "separable_net":
        fields |= {"channels": config.channels, "dilations": config.dilations}
    elif config.backbone == "mobilenet_v1":
        fields |= {"width": config.width}
    else:
        raise UserError(
            f"backbone: needs separable_net or mobilenet_v1 for {config.data.title}, got {config.backbone!r}"
        )
    return recipe.network(config, **fields)


def detection_recipe(config: Config) -> DetectionRecipe:
    """What the configuration says of a detector."""
    names = {field.name for field in dataclasses.fields(DetectionRecipe)} - {"augment"}
    shared = [field.name for field in dataclasses.fields(config) if field.name in names]
    return DetectionRecipe(augment=config.object_augment, **{name: getattr(config, name) for name in shared})


def build(config: Config) -> list[training.Stage]:
    """One stage: the classifier, tested on images of the same classes; or the detector, tested on images it never saw."""
    split = inputs.load(config.data, image_size=config.image_size, seed=config.data_seed)
    if split.protocol == "detection":
        recipe.check_no_packs(config, "these data train a detector")
        faces = detection_recipe(config)
        return [detection_stage("detector", faces, split, retinaface(faces))]
    head = HeadSpec(loss="linear").build()
    return [recipe.recognition_stage("classifier", config, split, network(config), head)]
