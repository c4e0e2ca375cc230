"""MNIST, CIFAR-10 and CIFAR-100: images in classes that people have as published.

Methods: mda, law, nclpp, lifelong, dcp_nas
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from jaxface.data.sources import small_images
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import KINDS, Split
from jaxface.data.specs.labeled_images import LabeledImages
from jaxface.data.transforms.label_noise import block_shifts

DIGIT_CONFUSIONS = {7: 1, 2: 7, 3: 8, 5: 6, 6: 5}
"""What digits are taken for in asymmetric noise."""


@dataclasses.dataclass(frozen=True)
class _Published(LabeledImages, abc.ABC):
    """A set with a part to train on and a part to test; its images keep their size."""

    root: str
    """The folder of the set."""

    @abc.abstractmethod
    def _open(self) -> Callable[[str, str], Source]:
        """A reader of (root, train or test)."""

    def source(self, *, image_size: int, seed: int) -> Source:
        return self._open()(self.root, "train")

    def evaluation_source(self, *, image_size: int, seed: int) -> Source:
        """The part to test."""
        return self._open()(self.root, "test")

    def _divide(self, *, image_size: int, seed: int) -> Split:
        parts = (self._open()(self.root, part) for part in ("train", "test"))
        return Split(*parts, self.title, "classification")


@KINDS.register("mnist")
@dataclasses.dataclass(frozen=True)
class Mnist(_Published):
    """MNIST, or a set in its form: 60,000 gray images of 28x28 to train on, 10,000 to test; idx files, gzipped or not."""

    @property
    def title(self) -> str:
        return "mnist"

    def _open(self) -> Callable[[str, str], Source]:
        return small_images.mnist

    def _taken_for(self, source: Source) -> Mapping[int, int]:
        return DIGIT_CONFUSIONS


@KINDS.register("cifar10")
@dataclasses.dataclass(frozen=True)
class Cifar10(_Published):
    """CIFAR-10: 50,000 color images of 32x32 to train on, 10,000 to test; python pickles, read and not run, or binary."""

    @property
    def title(self) -> str:
        return "cifar10"

    def _open(self) -> Callable[[str, str], Source]:
        return small_images.cifar10

    def _taken_for(self, source: Source) -> Mapping[int, int]:
        return {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}  # truck automobile, bird airplane, cat dog, dog cat, deer horse


@KINDS.register("cifar100")
@dataclasses.dataclass(frozen=True)
class Cifar100(_Published):
    """CIFAR-100: the same in 100 classes of 20 superclasses. Asymmetric noise shifts inside blocks of five classes in the order
    of their names, as public code does, which are no superclasses; superclass noise shifts inside these."""

    @property
    def title(self) -> str:
        return "cifar100"

    def _open(self) -> Callable[[str, str], Source]:
        return small_images.cifar100

    def _taken_for(self, source: Source) -> Mapping[int, int]:
        return block_shifts(np.arange(len(source.class_names)) // 5)
