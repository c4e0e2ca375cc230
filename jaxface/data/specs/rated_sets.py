"""Images with mean opinion scores: drawn ones, and those of benchmarks.

Methods: niqa_attack
"""

import dataclasses
import functools
from typing import Annotated

from jaxface.checks import AtLeast, Fraction, NonNegative, Ordered
from jaxface.data.sources.opinions import RatedSource
from jaxface.data.specs.base import FIRST_HELD_OUT, KINDS, DataSpec, Split
from jaxface.data.synthetic.distorted_leaves import distorted_leaves

# A study opens the same images once per arm.
_drawn = functools.lru_cache(maxsize=8)(distorted_leaves)


@KINDS.register("distorted_leaves")
@dataclasses.dataclass(frozen=True)
class DistortedLeaves(DataSpec):
    """Textured discs that were blurred, got noise, or were coded coarsely, with opinions of 0 to 10; nothing to download."""

    images: Annotated[int, AtLeast(1)] = 500
    """Images to train on."""
    held_out_images: Annotated[int, AtLeast(1)] = 200
    """Other images to evaluate on."""
    leaves: Annotated[int, AtLeast(1)] = 60
    """Discs of an image."""
    texture: Annotated[float, NonNegative] = 0.25
    """Strength of the discs' texture."""
    severity: Annotated[tuple[float, float], Fraction, Ordered()] = (0.0, 1.0)
    """Least and greatest severity of what happened to an image; an opinion is 10 (1 - severity)."""

    @property
    def title(self) -> str:
        return f"distorted leaves {self.images}"

    def _open(self, count: int, image_size: int, seed: int, first: int = 0) -> RatedSource:
        return _drawn(
            count, side=image_size, leaves=self.leaves, texture=self.texture, severity=self.severity, seed=seed, first=first
        )  # fmt: skip

    def source(self, *, image_size: int, seed: int) -> RatedSource:
        return self._open(self.images, image_size, seed)

    def evaluation_source(self, *, image_size: int, seed: int) -> RatedSource:
        """The images to evaluate on."""
        return self._open(self.held_out_images, image_size, seed, FIRST_HELD_OUT)

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(self.source(**arguments), self.evaluation_source(**arguments), self.title, "quality")
