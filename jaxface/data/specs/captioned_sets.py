"""Images with captions.

Methods: intern
"""

import dataclasses
import functools
from typing import Annotated

from jaxface.checks import AtLeast, Fraction, Integers, Ordered, Range, check_number
from jaxface.data.render.face_captions import CAPTIONED, CaptionedSource
from jaxface.data.render.variation import Variation
from jaxface.data.specs.base import FIRST_HELD_OUT, KINDS, DataSpec, Split

_captioned = functools.lru_cache(maxsize=8)(CaptionedSource)  # a study opens the same ones once per arm


@KINDS.register("captioned_faces")
@dataclasses.dataclass(frozen=True)
class CaptionedFaces(DataSpec):
    """Rendered people with captions that tell who it is, the pose, the expression and what the person looks like."""

    identities: Annotated[int, AtLeast(2)] = 512
    """People to train on."""
    per_identity: Annotated[int, AtLeast(1)] = 7
    """Images of each of them; the k-th shows expression k mod 7."""
    held_out_identities: Annotated[int, AtLeast(2)] = 100
    """People to evaluate on; never among those to train on."""
    held_out_per_identity: Annotated[int, AtLeast(1)] = 7
    """Images of each of these."""
    first_identity: Annotated[int, AtLeast(0)] = 0
    """Number of the first person to train on; data sets whose ranges do not overlap share nobody."""
    mentioned: Annotated[float, Fraction] = 0.9
    """Probability that a caption mentions an attribute."""
    strengths: Annotated[tuple[float, float], Range(0.4, 1.5), Ordered()] = (0.7, 1.3)
    """Least and greatest strength of the expression that is shown."""
    variation: Variation = CAPTIONED
    """How people and images differ."""

    @property
    def title(self) -> str:
        return f"captioned {self.identities}x{self.per_identity}"

    def _open(self, identities: int, each: int, image_size: int, seed: int, first: int) -> CaptionedSource:
        return _captioned(
            identities,
            each,
            image_size,
            seed,
            self.variation,
            mentioned=self.mentioned,
            strengths=self.strengths,
            first_identity=first,
        )

    def source(self, *, image_size: int, seed: int) -> CaptionedSource:
        check_number("identities", self.identities, Integers(2, FIRST_HELD_OUT - self.first_identity))
        return self._open(self.identities, self.per_identity, image_size, seed, self.first_identity)

    def evaluation_source(self, *, image_size: int, seed: int) -> CaptionedSource:
        """The people to evaluate on."""
        return self._open(
            self.held_out_identities, self.held_out_per_identity, image_size, seed, FIRST_HELD_OUT
        )

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(
            self.source(**arguments), self.evaluation_source(**arguments), self.title, "verification"
        )
