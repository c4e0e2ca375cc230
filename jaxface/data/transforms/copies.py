"""Several changed copies of each training image.

Methods: nclpp
"""

import dataclasses
from typing import Annotated

import grain
import numpy as np

from jaxface.checks import AtLeast, check_fields
from jaxface.data.sources.source import Record
from jaxface.data.transforms.augment import Augment, Augmentation


@dataclasses.dataclass(frozen=True)
class Copies:
    """`count` copies of every image, each changed at random on its own, for `jaxface.data.batches`.

    A record's `image` becomes [count, H, W, C]; the first copies are the same however many there are.
    """

    augment: Augment = Augment()
    """How copies are changed."""
    count: Annotated[int, AtLeast(1)] = 2
    """How many there are."""

    active = True  # as `jaxface.data.batches` asks

    def __post_init__(self):
        check_fields(self)

    def transform(self) -> "CopiesTransform":
        """The copies as a grain transformation."""
        return CopiesTransform(self)


class CopiesTransform(grain.transforms.RandomMap):
    """Makes the copies of a record without boxes, landmarks or other maps."""

    def __init__(self, copies: Copies):
        self.copies, self._change = copies, Augmentation(copies.augment)

    def random_map(self, element: Record, rng: np.random.Generator) -> Record:
        """One record; grain calls it with a generator of the record's own."""
        shown = {"image": element["image"]}
        images = [self._change.random_map(shown, rng)["image"] for _ in range(self.copies.count)]
        return {**element, "image": np.stack(images)}
