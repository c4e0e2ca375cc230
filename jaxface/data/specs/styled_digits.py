"""Some of the digits, in a style of their own: upstream and downstream data that share no class.

Methods: ota
"""

import dataclasses
from typing import Annotated

import numpy as np

from jaxface.checks import Fraction, Integers, NonNegative, OpenFraction
from jaxface.data.sources.bundled import ArraySource, digits
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import KINDS, Split, split_classes
from jaxface.data.specs.labeled_images import LabeledImages
from jaxface.data.transforms.pixels import fractions_to_bytes
from jaxface.errors import UserError


@KINDS.register("styled_digits")
@dataclasses.dataclass(frozen=True, kw_only=True)
class StyledDigits(LabeledImages):
    """scikit-learn's digits of some classes, smeared, fainter and with grain; 8x8 gray pixels."""

    classes: Annotated[tuple[int, ...], Integers(0, 9)] = (0, 1, 2, 3, 4)
    """Which digits; others share no image with them."""
    smear: Annotated[float, Fraction] = 0.0
    """Share of each pixel that becomes the mean of its two neighbors in the row."""
    contrast: Annotated[float, Fraction] = 1.0
    """Factor on the distance of a pixel from the middle gray."""
    grain: Annotated[float, NonNegative] = 0.0
    """Standard deviation of the noise of each pixel, where white is 1."""
    held_out: Annotated[float, OpenFraction] = 0.5
    """Fraction of each class to test on."""

    @property
    def title(self) -> str:
        styled = self.smear or self.grain or self.contrast != 1
        return f"{'styled ' * bool(styled)}digits {''.join(map(str, self.classes))}"

    def source(self, *, image_size: int, seed: int) -> Source:
        if len(set(self.classes)) < len(self.classes) or len(self.classes) < 2:
            raise UserError(f"data.classes: needs two digits or more, each once, got {self.classes}")
        every = digits()
        rows = np.flatnonzero(np.isin(every.labels, self.classes))
        plain = np.stack([every[int(row)]["image"] for row in rows]) / 255
        sides = np.pad(plain, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
        smeared = (1 - self.smear) * plain + self.smear * (sides[:, :, :-2] + sides[:, :, 2:]) / 2
        noise = np.random.default_rng([seed, 0x7374]).normal(size=plain.shape)
        styled = 0.5 + self.contrast * (smeared - 0.5) + self.grain * noise
        labels = np.searchsorted(sorted(self.classes), every.labels[rows])
        return ArraySource(fractions_to_bytes(styled), labels, [str(k) for k in sorted(self.classes)])

    def _divide(self, *, image_size: int, seed: int) -> Split:
        source = self.source(image_size=image_size, seed=seed)
        return split_classes(source, self.held_out, self.title, seed)
