"""Frozen teachers: a finished network that travels in a student's state and answers inside its step."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np

from jaxface.data.sources.ijb import TemplateSource
from jaxface.data.sources.source import Source
from jaxface.models import apply_with_layer
from jaxface.training.recognition import (
    class_scores,
    embed_source,
    embed_templates,
    network_variables,
    statistics,
)
from jaxface.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Teacher:
    """An embedding network that is only asked, never trained.

    Its parameters are part of the student's `extra`: no gradient reaches them, they are saved with the student, and another
    teacher of the same shape (`installed` again) needs no compilation.

    Attributes:
      model: module with `(image [B, H, W, C], train=) -> [B, D]`.
      key: its name in `extra`; a student with several teachers names each.
    """

    model: nn.Module
    key: str = "teacher"

    def installed(self, extra: Mapping, state: TrainState) -> dict:
        """`extra` of a student with the teacher of a finished stage in it: its averaged parameters and statistics."""
        variables = network_variables(state.averaged_params["backbone"], state.extra)
        known = {name: state.averaged_params.get(name) for name in ("prototypes", "bias")}
        variables |= {name: weights for name, weights in known.items() if weights is not None}
        return {**extra, self.key: variables}

    def embeddings(self, extra: Mapping, images: jax.Array) -> jax.Array:
        """[B, D] of images in evaluation mode, not normalized; constants for any gradient."""
        variables = network_variables(extra[self.key]["params"], extra[self.key])
        return jax.lax.stop_gradient(self.model.apply(variables, images, train=False))

    def layer(self, extra: Mapping, images: jax.Array, name: str) -> jax.Array:
        """[B, …], what a part of the network gives for images in evaluation mode (`jaxface.models.apply_with_layer`)."""
        variables = network_variables(extra[self.key]["params"], extra[self.key])
        return jax.lax.stop_gradient(apply_with_layer(self.model, variables, images, layer=name)[1])

    def embed(self, extra: Mapping, source: Source, *, flip: bool = False) -> np.ndarray:
        """[N, D] of every record of a source, in order and on the host (`embed_source`)."""
        frozen = extra[self.key]
        return embed_source(self.model, frozen["params"], statistics(frozen), source, flip=flip)

    def class_scores(
        self, extra: Mapping, embeddings: jax.Array, classes: int, *, scale: float = 1.0
    ) -> jax.Array:
        """[B, C] of the teacher's own `embeddings`, by the classes that it was trained on (`training.class_scores`)."""
        return jax.lax.stop_gradient(class_scores(extra[self.key], embeddings, classes, scale=scale))

    def embed_templates(self, extra: Mapping, source: TemplateSource, *, flip: bool = False) -> np.ndarray:
        """[T, D] unit embeddings of the templates of a source (`jaxface.training.embed_templates`)."""
        frozen = extra[self.key]
        return embed_templates(self.model, frozen["params"], statistics(frozen), source, flip=flip)
