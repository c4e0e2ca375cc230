"""Digits on canvases.

Methods: apvit, ddc, condensation_net, sparsevit, lifelong
"""

import dataclasses
from typing import Annotated

from jaxface.checks import AtLeast, Fraction, NonNegative, Ordered
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import KINDS, DataSpec, Split
from jaxface.data.synthetic.cluttered_digits import cluttered_digits
from jaxface.data.synthetic.digit_canvas import digit_canvas
from jaxface.data.synthetic.textured_digits import textured_digits


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


@KINDS.register("cluttered_digits")
@dataclasses.dataclass(frozen=True)
class ClutteredDigits(DataSpec):
    """One digit of several sizes on a canvas of noise, to be classified; training and test have different digits."""

    scenes: Annotated[int, AtLeast(1)] = 8000
    """Scenes to train on, of 1300 digits."""
    test_scenes: Annotated[int, AtLeast(1)] = 1000
    """Scenes to test, of 497 other digits."""
    scales: Annotated[tuple[int, ...], AtLeast(1)] = (1, 2)
    """Sizes of the digits as multiples of 8 pixels, in equal shares; their records' `scale`."""
    noise: Annotated[tuple[float, float], Fraction, Ordered()] = (0.5, 0.5)
    """Least and greatest amplitude of the noise, where white is 1; it is drawn for each scene."""
    test_noise: Annotated[tuple[float, float] | None, Fraction, Ordered()] = None
    """Those of the test scenes, which are the same otherwise; as in training unless given."""

    @property
    def title(self) -> str:
        return "cluttered digits"

    def source(self, *, image_size: int, seed: int) -> Source:
        return self.divide(image_size=image_size, seed=seed).train

    def divide(self, *, image_size: int, seed: int) -> Split:
        subsets = cluttered_digits(**dataclasses.asdict(self), side=image_size, seed=seed)
        return Split(*subsets, self.title, "classification")


@KINDS.register("textured_digits")
@dataclasses.dataclass(frozen=True)
class TexturedDigits(DataSpec):
    """Digits before a background that tells the class in training and nothing in the test, to be classified."""

    correlation: Annotated[float, Fraction] = 0.9
    """Fraction of the training images whose background is that of their digit."""
    contrast: Annotated[float, Fraction] = 0.5
    """Brightness of the background, where white is 1; 0 for plain digits."""
    anywhere: bool = True
    """Digits lie anywhere on the canvas, or else in its middle."""

    @property
    def title(self) -> str:
        return "textured digits" if self.contrast else "digits on a canvas"

    def source(self, *, image_size: int, seed: int) -> Source:
        return self.divide(image_size=image_size, seed=seed).train

    def divide(self, *, image_size: int, seed: int) -> Split:
        subsets = textured_digits(**dataclasses.asdict(self), side=image_size, seed=seed)
        return Split(*subsets, self.title, "classification")
