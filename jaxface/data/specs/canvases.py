"""Digits on canvases.

Methods: ddc, condensation_net
"""

import dataclasses
from typing import Annotated

from jaxface.checks import AtLeast, NonNegative
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import KINDS, DataSpec, Split
from jaxface.data.synthetic.digit_canvas import digit_canvas


@KINDS.register("digit_canvas")
@dataclasses.dataclass(frozen=True)
class DigitCanvas(DataSpec):
    """Digits of two sizes anywhere on a cluttered canvas, to be classified; training and test have different digits."""

    copies: Annotated[int, AtLeast(1)] = 6
    """Canvases of each of the 1297 digits to train on."""
    noise: Annotated[float, NonNegative] = 0.08
    """Standard deviation of the noise, where white is 1."""

    @property
    def title(self) -> str:
        return "digit canvas"

    def source(self, *, image_size: int, seed: int) -> Source:
        return self.divide(image_size=image_size, seed=seed).train

    def divide(self, *, image_size: int, seed: int) -> Split:
        subsets = digit_canvas(copies=self.copies, side=image_size, noise=self.noise, seed=seed)
        return Split(*subsets, self.title, "classification")
