"""Rendered people by the expressions that their faces show."""

import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.render.face_model import EXPRESSIONS
from jaxface.data.render.rendered import RenderedSource
from jaxface.data.render.variation import MODERATE, Variation
from jaxface.data.sources.source import Record


class ExpressionSource:
    """Rendered faces whose class is their expression: neutral and the six of the head model, in equal shares for every person.

    One coefficient is drawn from `strengths`, the others are as slight as `variation` draws them, ±0.3 at most; pose, light and
    camera are those of `RenderedSource`, whose records these are.

    Args:
      identities: number of people, ≥ 1.
      per_expression: images of each with each expression, ≥ 1.
      image_size, seed, first_identity: as `RenderedSource`.
      variation: how images differ besides.
      strengths: (least, greatest) coefficient of what is shown, from 0.4 to 1.5.

    Attributes:
      labels: [N] int32 into `class_names`, the names of the expressions; people: [N] int32, number of the person.

    Raises:
      UserError: a number out of its range.
    """

    def __init__(
        self,
        identities: int,
        per_expression: int,
        image_size: int = 112,
        seed: int = 0,
        variation: Variation = MODERATE,
        strengths: tuple[float, float] = (0.6, 1.2),
        *,
        first_identity: int = 0,
    ):
        check_number("per_expression", per_expression, AtLeast(1))
        self._faces = RenderedSource(
            identities,
            per_expression * len(EXPRESSIONS),
            image_size,
            seed,
            variation,
            first_identity=first_identity,
            strengths=strengths,
        )
        self.class_names = list(EXPRESSIONS)
        self.people, self.image_shape = self._faces.labels, self._faces.image_shape
        self.labels = np.arange(len(self._faces), dtype=np.int32) % len(EXPRESSIONS)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        return {**self._faces[index], "label": self.labels[index]}

    def prepare(self, workers: int = 2) -> "ExpressionSource":
        """Renders everything now, in `workers` threads; returns itself."""
        self._faces.prepare(workers)
        return self
