"""What kinds of labeled images to be told apart have in common: training sets that are made imperfect.

Methods: nclpp
"""

import abc
import dataclasses

from jaxface.data.sources.long_tail import LongTail
from jaxface.data.specs.base import DataSpec, Split


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabeledImages(DataSpec):
    """Images of classes to be told apart, whose training part can be given a long tail; the test stays as it is."""

    tail: LongTail = LongTail()
    """Classes of unequal size."""

    @property
    def title(self) -> str:
        return self.plain_title + self.tail.title

    @property
    @abc.abstractmethod
    def plain_title(self) -> str:
        """Short name of the data as they are."""

    @abc.abstractmethod
    def plain(self, *, image_size: int, seed: int) -> Split:
        """Training and test part as they are."""

    def divide(self, *, image_size: int, seed: int) -> Split:
        split = self.plain(image_size=image_size, seed=seed)
        return split._replace(train=self.tail.apply(split.train, seed=seed), name=self.title)
