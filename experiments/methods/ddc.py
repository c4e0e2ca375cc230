"""DDC: depthwise convolutions with dilated or large filters for hardware that streams filter taps (arXiv:2104.14125).

    python -m experiments.launch ddc --workdir runs/ddc
    python -m experiments.launch ddc --preset paper --data.data_dir …     # MobileNetV1 5x5, ImageNet; built and typed, not trained here
    python -m experiments.reproduce ddc --study classes

Differs from the paper in: nearly everything about training, which the paper does not publish (docs/methods/ddc.md#choices-of-ours).
"""

import dataclasses
from typing import Annotated

from experiments.recipes import recognition as recipe
from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import recognition_stage
from jaxface import data as inputs
from jaxface import training
from jaxface.checks import AtLeast, Positive

LINEAR = HeadSpec(loss="linear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """A classifier whose depthwise filters have a size and, in the network for small images, dilations."""

    data: inputs.DataSpec = inputs.DigitCanvas()
    """Images of classes to be told apart."""
    image_size: Annotated[int, AtLeast(8)] = 24
    """Side of the images, pixels."""
    augment: inputs.Augment = inputs.Augment(flip=0.0)
    """Random changes of the training images."""
    backbone: str = "separable_net"
    """Network: separable_net (three layers, for small images) or mobilenet_v1."""
    embedding: None = None
    """The classifier is the linear layer of the recipe."""
    depthwise_kernel: Annotated[int, AtLeast(1)] = 3
    """Side k of the depthwise filters, odd; 3 with dilations for DDC layers, 5 for large kernels."""
    dilations: Annotated[tuple[int, ...], AtLeast(1)] = (1, 2, 2)
    """separable_net: dilation of each layer; equal ones above 1 leave holes in the field of view."""
    channels: Annotated[int, AtLeast(1)] = 24
    """separable_net: channels of every layer."""
    width: Annotated[float, Positive] = 1.0
    """mobilenet_v1: factor of the numbers of channels."""
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
            data=inputs.Tfds(name="imagenet2012", test="validation"),
            image_size=224,
            augment=inputs.Augment(),
            backbone="mobilenet_v1",
            depthwise_kernel=5,
            prototype_std=0.01,
            bfloat16=True,
            batch_size=batch,
            optimizer=training.sgd(0.1, schedule="cosine", warmup=5 / epochs, weight_decay=4e-5),
            steps=epochs * 1_281_167 // batch,
            workers=16,
        )


def network(config: Config):
    """The classifier without its linear layer."""
    fields = {"depthwise_kernel": config.depthwise_kernel}
    if config.backbone == "separable_net":
        fields |= {"channels": config.channels, "dilations": config.dilations}
    elif config.backbone == "mobilenet_v1":
        fields |= {"width": config.width}
    return recipe.network(config, **fields)


def build(config: Config) -> list[training.Stage]:
    """One stage: train the classifier, test it on images of the same classes."""
    model = network(config)  # refuses what it cannot be before any data is opened
    split = recipe.load(config)
    return [recognition_stage("classifier", config, split, model, LINEAR.build())]
