"""Ellipses, some of which are faces.

Methods: cassod
"""

import dataclasses
import functools
from typing import Annotated

from jaxface.checks import AtLeast, NonNegative
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import FIRST_HELD_OUT, KINDS, DataSpec, Split
from jaxface.data.synthetic.ellipses import ellipses

# A study opens the same images once per arm; they are drawn once.
_drawn = functools.lru_cache(maxsize=4)(ellipses)


@KINDS.register("ellipses")
@dataclasses.dataclass(frozen=True)
class Ellipses(DataSpec):
    """Ellipses with dark discs on 40 x 40 pixels; in which of 20 x 20 cells is the center of a face? (`jaxface.data.ellipses`)"""

    images: Annotated[int, AtLeast(1)] = 4000
    """Images to train on."""
    held_out_images: Annotated[int, AtLeast(1)] = 600
    """Other images to test."""
    noise: Annotated[float, NonNegative] = 0.25
    """Standard deviation of the noise, where an ellipse is 0.4 to 1 brighter than the ground."""

    @property
    def title(self) -> str:
        return f"ellipses {self.images}"

    def source(self, *, image_size: int, seed: int) -> Source:
        return _drawn(self.images, seed=seed, noise=self.noise)

    def divide(self, *, image_size: int, seed: int) -> Split:
        unseen = _drawn(self.held_out_images, seed=seed, first=FIRST_HELD_OUT, noise=self.noise)
        return Split(self.source(image_size=image_size, seed=seed), unseen, self.title, "cells")
