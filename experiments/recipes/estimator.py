"""A small network that tells a number of an image from what a frozen network sees of it, learned by regression.

Methods: ida
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.embedding import FrozenEmbedding
from experiments.recipes.recognition import Recipe, filled_batch_size, training_batches
from jaxface import data as inputs
from jaxface import losses, models, training
from jaxface.checks import AtLeast
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers import FeatureMapLIDEstimator, LIDEstimator


@dataclasses.dataclass(frozen=True)
class EstimatorSpec:
    """The network that tells a number from the embedding alone, or from a feature map."""

    layer: str | None = None
    """Part of the network whose feature map it looks at, such as stage3_block1; the embedding unless given."""
    hidden: Annotated[int | None, AtLeast(1)] = None
    """Units of its hidden layer; 256 on an embedding and 128 on a feature map unless given."""
    steps: Annotated[int, AtLeast(0)] = 400
    """Training steps; 0 leaves it at the mean of the targets."""
    batch_size: Annotated[int, AtLeast(1)] = 512
    """Embeddings or images per step; no more than there are."""
    optimizer: training.Optimizer = training.adam(1e-3)
    """Its optimizer."""


class Estimator:
    """h(x), the estimate: its training on a source, and its values.

    Args:
      recipe: seed, workers and augmentation of the run.
      spec: the network and its training.
      frozen: the embedding that it looks at.
      source: records to learn from.

    Raises:
      UserError: a layer that the network does not have, or images one by one for its batch normalization.
    """

    def __init__(self, recipe: Recipe, spec: EstimatorSpec, frozen: FrozenEmbedding, source: inputs.Source):
        self.recipe, self.spec, self.frozen, self.source = recipe, spec, frozen, source
        self.batch_size = filled_batch_size(source, spec.batch_size)
        if spec.layer is not None:
            layers = models.layer_shapes(frozen.teacher.model, source.image_shape)
            maps = [name for name, shape in layers.items() if len(shape) == 3]
            if spec.layer not in maps:
                raise UserError(f"estimator.layer: needs one of {', '.join(maps)}, got {spec.layer!r}")
            if math.prod(layers[spec.layer][:2]) * self.batch_size < 2:
                raise UserError(
                    f"estimator.batch_size: needs at least 2 for the batch normalization of {spec.layer}, got 1"
                )

    def module(self, initial: float = 0.0) -> LIDEstimator | FeatureMapLIDEstimator:
        """The network, whose output starts at a value."""
        kind = LIDEstimator if self.spec.layer is None else FeatureMapLIDEstimator
        width = {} if self.spec.hidden is None else {"hidden": self.spec.hidden}
        return kind(initial=initial, **width)

    def features(self, extra: Mapping, images: jax.Array) -> jax.Array:
        """What it sees of images: a feature map, or the embeddings that they are."""
        if self.spec.layer is None:
            return images.reshape(len(images), -1)
        return self.frozen.teacher.layer(extra, images, self.spec.layer)

    def estimate(
        self, params: Mapping, extra: Mapping, source: inputs.Source, embeddings: np.ndarray
    ) -> np.ndarray:
        """h(x) [N] of a source with unit embeddings [N, D]; with mirror images where these are embedded.

        Args:
          params: those of the network.
          extra: of a state after `stage`, with the frozen network.
          source, embeddings: the records, and what `frozen` gives for them.
        """
        variables, module = {"params": params, **extra["estimator"]}, self.module()
        if self.spec.layer is None:
            return np.asarray(module.apply(variables, jnp.asarray(embeddings)))

        @jax.jit
        def estimate(arrays, batch):
            (variables, extra), images = arrays, normalize_pixels(batch["image"])
            views = (images, images[:, :, ::-1]) if self.frozen.flip else (images,)
            return sum(module.apply(variables, self.features(extra, view)) for view in views) / len(views)

        return training.map_source(estimate, source, (variables, extra))

    def stage(
        self,
        targets: Callable[[Mapping], np.ndarray],
        carry: Callable[[training.TrainState], dict],
    ) -> training.Stage:
        """Regression of the targets [N] of the source; the embedding is frozen, so that they are computed once.

        Args:
          targets: `extra` with the frozen network -> [N] float.
          carry: state of the stage before -> `extra` of this one.
        """
        spec = self.spec

        # Loss: the squared error of h(x), whose last layer starts at the mean of the targets.
        def loss_fn(params, extra, batch, rng):
            variables = {"params": params["estimator"], **extra["estimator"]}
            seen = self.features(extra, batch["image"])
            if spec.layer is None:
                estimate, updated = self.module().apply(variables, seen), {}
            else:
                estimate, updated = self.module().apply(variables, seen, train=True, mutable=["batch_stats"])
            loss = losses.lid_regression_loss(estimate, batch["target"]).mean()
            return loss, ({**extra, "estimator": dict(updated)}, {})

        objective = training.Objective(loss_fn, spec.optimizer.build(spec.steps))

        def init(rng, previous):
            extra = carry(previous)
            size = self.frozen.embed_once(extra, self.source).shape[1]
            image = jnp.zeros((1, *self.source.image_shape) if spec.layer else (1, size))
            module = self.module(float(targets(extra).mean()))
            variables = dict(module.init(rng, self.features(extra, image)))
            params = {"estimator": variables.pop("params")}
            return training.create_state(rng, params, objective, extra={**extra, "estimator": variables})

        def batches(state):
            source, augment = self.source, inputs.Augment(flip=self.recipe.augment.flip)
            if spec.layer is None:
                rows = self.frozen.embed_once(state.extra, source)
                source, augment = inputs.VectorSource(rows, source.labels), None
            target = targets(state.extra).astype(np.float32)
            return training_batches(
                self.recipe,
                inputs.WithFields(source, target=target),
                batch_size=self.batch_size,
                augment=augment,
            )()

        return training.Stage(
            name="estimator",
            init=init,
            step=training.gradient_step(objective),
            batches=batches if spec.steps else None,
            steps=spec.steps,
            compile_init=False,
        )
