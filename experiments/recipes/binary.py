"""What experiments on binary networks share: a network, which of its layers train, and how many signs still flip.

Methods: rbonn, bamsprod
"""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax
import optax

from experiments.recipes.recognition import Recipe, Rule, recognition_stage
from jaxface import data as inputs
from jaxface import losses, optimizers, training
from jaxface.checks import AtLeast, Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryRecipe(Recipe):
    """Digits, read by a network of which the binary layers alone train: with trained real layers, accuracy is blind to them."""

    data: inputs.DataSpec = inputs.Digits()
    """Images to learn from."""
    augment: inputs.Augment = inputs.Augment(flip=0.0)
    """Random changes of the training images."""
    image_size: Annotated[int, AtLeast(8)] = 8
    """Side of the images, pixels."""
    backbone: str = "binary_small"
    """Network; its binary layers are called `binary`."""
    embedding: Annotated[int | None, AtLeast(1)] = None
    """Size of an embedding; None takes the features before the classifier."""
    prototype_std: Annotated[float, Positive] = 0.125
    """Standard deviation of the linear classifier's weights at the start, > 0."""
    train_only: tuple[str, ...] | None = ("binary",)
    """Names of the layers or parameters that train; none at all is the control that holds everything at its random start. None
    trains everything."""
    flip_window: Annotated[int, AtLeast(1)] = 100
    """Steps over which the share of changed signs is averaged."""
    batch_size: Annotated[int, AtLeast(1)] = 64
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 400
    """Training steps."""


@dataclasses.dataclass(frozen=True)
class PartialRule:
    """A rule for the parameters that a recipe trains, which counts the flips of binary weights.

    Attributes:
      rule: for those parameters.
      recipe: says which, and over how many steps flips are averaged.
    """

    rule: Rule
    recipe: BinaryRecipe

    def build(
        self, steps: int, *, network: tuple[str, nn.Module] | None = None
    ) -> optax.GradientTransformation:
        """The optax transformation; its `init` raises UserError for a name in `train_only` that occurs nowhere."""
        built = self.rule.build(steps, network=network)
        if self.recipe.train_only is not None:
            built = optimizers.train_only(built, self.recipe.train_only)
        return optax.chain(built, optimizers.track_sign_flips(binary_kernels, self.recipe.flip_window))


def binary_kernels(params):
    """True for the latent weights: the leaves `kernel` of the layers called `binary`."""
    masks = (optimizers.name_mask((name,))(params) for name in ("binary", "kernel"))
    return jax.tree.map(lambda inside, kernel: inside and kernel, *masks)


def binary_stage(
    name: str,
    recipe: BinaryRecipe,
    split: inputs.Split,
    model,
    rule: Rule,
    head: losses.Head | None = None,
) -> training.Stage:
    """A stage that trains a binary network, or the layers of it that the recipe names, under a rule.

    Reported are the accuracy of the recipe's evaluation and `signs/flip_rate`, the share of binary weights that changed their
    sign per step at the end. The loss is that of a linear classifier unless a head is given.
    """
    stage = recognition_stage(
        name, recipe, split, model, head or losses.Linear(), optimizer=PartialRule(rule, recipe)
    )
    return dataclasses.replace(stage, evaluate=training.Evaluations(stage.evaluate, training.sign_flips))
