"""What sets of images in classes have in common: a training part of unequal classes, of few images, with wrong labels.

Methods: mda, law, nclpp, intern, ota
"""

import abc
import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxface.data.sources.few_data import FewData
from jaxface.data.sources.long_tail import LongTail
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import DataSpec, Split
from jaxface.data.transforms.label_noise import LabelNoise, block_shifts
from jaxface.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabeledImages(DataSpec, abc.ABC):
    """Images in classes that are the same in both parts; a kind says how it is divided (`_divide`)."""

    tail: LongTail = LongTail()
    """Classes of unequal size in the training part, by their true labels."""
    few: FewData = FewData()
    """A part of every class to learn from, after the tail."""
    noise: LabelNoise = LabelNoise()
    """Wrong labels in the training part; its records have `true_label` besides."""

    @abc.abstractmethod
    def _divide(self, *, image_size: int, seed: int) -> Split:
        """Training and held-out part with their true labels."""

    def _taken_for(self, source: Source) -> Mapping[int, int] | None:
        """Class -> the one that asymmetric noise takes it for; None where the set has none."""
        return None

    def plain(self) -> "LabeledImages":
        """The same images, all of them, classes of their own sizes, true labels."""
        return dataclasses.replace(self, tail=LongTail(), few=FewData(), noise=LabelNoise())

    def spoiled(self, train: Source, *, seed: int) -> Source:
        """Training records with the tail, the share and the wrong labels, for a method that first takes clean ones away."""
        train = self.few.apply(self.tail.apply(train, seed=seed), seed=seed)
        targets = None
        if self.noise.kind == "superclass":
            targets = _shifts_in_groups(train)
        elif self.noise.kind == "asymmetric":
            targets = self._taken_for(train)
        return self.noise.apply(train, seed=seed, targets=targets)

    def divide(self, *, image_size: int, seed: int) -> Split:
        split = self._divide(image_size=image_size, seed=seed)
        return split._replace(
            train=self.spoiled(split.train, seed=seed), name=split.name + self.tail.title + self.few.title
        )


def _shifts_in_groups(source: Source) -> dict[int, int]:
    """The next class of the same group for every class.

    Raises:
      UserError: no groups, or a class in two of them.
    """
    groups = getattr(source, "groups", None)
    pairs = [] if groups is None else np.unique(np.stack([source.labels, groups], axis=1), axis=0)
    if len(pairs) != len(source.class_names):
        raise UserError("noise.kind: superclass needs a data set that has every class in one group")
    return block_shifts(pairs[:, 1])
