"""What sets of images in classes have in common: classes of unequal size among those to learn from.

Methods: nclpp
"""

import abc
import dataclasses

from jaxface.data.sources.long_tail import LongTail
from jaxface.data.specs.base import DataSpec, Split


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabeledImages(DataSpec, abc.ABC):
    """Images in classes that are the same in both parts; a kind says how it is divided (`_divide`)."""

    tail: LongTail = LongTail()
    """Classes of unequal size in the training part."""

    @abc.abstractmethod
    def _divide(self, *, image_size: int, seed: int) -> Split:
        """Training and held-out part as they are."""

    def divide(self, *, image_size: int, seed: int) -> Split:
        split = self._divide(image_size=image_size, seed=seed)
        train = self.tail.apply(split.train, seed=seed)
        return split._replace(train=train, name=split.name + self.tail.title)
