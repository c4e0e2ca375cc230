"""What every description of data has in common, the table of their kinds, and how to open them.

Images have one size in a run. Faces are split by identity, so that verification is on people the training never saw.
"""

import abc
import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from jaxface.checks import AtLeast, check_fields, check_number
from jaxface.data.sources.source import Source, Subset
from jaxface.registry import Registry

FIRST_HELD_OUT = 1 << 20
"""Number of the first held-out person; no training range reaches it, however many people it has."""
FIRST_SIMULATED = FIRST_HELD_OUT + (1 << 19)
"""Number of the first person that a run makes besides, who is neither trained nor evaluated on."""

KINDS: Registry[type["DataSpec"]] = Registry("data", "jaxface.data.specs")
"""Kinds of data by the name that the command line and configurations use."""


class Split(NamedTuple):
    """Two parts of a data set.

    Attributes:
      train: records to learn from; labels 0..K-1.
      held_out: records to evaluate on. Under "verification" its people are others than those of `train`, and
        its labels say nothing but who is the same; under "classification" the classes are the same; under "detection"
        records have boxes (`sources.objects.object_fields`); under "cells" they say of every cell of the image whether
        something is there; under "spoofing" labels are what is presented, 0 a live face and the others attack instruments; under
        "images" there is one class, which says nothing; under "quality" records have `opinion`, 0 to 10, and a label says what
        happened to the image.
      name: for tables and file names.
      protocol: how to evaluate; under "dense" records have `pixel_label` or `depth` for every pixel.
      development: records to take thresholds on, of people that are in neither part; None where the protocol has none.
    """

    train: Source
    held_out: Source
    name: str
    protocol: Literal[
        "verification", "classification", "detection", "cells", "dense", "spoofing", "images", "quality"
    ]
    development: Source | None = None


def split_samples(source: Source, count: int, name: str, seed: int) -> Split:
    """`count` records at random to learn from and the others to classify."""
    order = np.random.default_rng(seed).permutation(len(source))
    return Split(Subset(source, order[:count]), Subset(source, order[count:]), name, "classification")


def split_classes(source: Source, held_out: float, name: str, seed: int) -> Split:
    """A fraction of every class to classify, at least one record of it, and the others, at least one, to learn from."""
    rng = np.random.default_rng(seed)
    train, tested = [], []
    for label in range(len(source.class_names)):
        rows = rng.permutation(np.flatnonzero(source.labels == label))
        count = min(max(round(held_out * len(rows)), 1), len(rows) - 1)
        tested.append(rows[:count])
        train.append(rows[count:])
    subsets = (Subset(source, np.sort(np.concatenate(rows))) for rows in (train, tested))
    return Split(*subsets, name, "classification")


@dataclasses.dataclass(frozen=True)
class DataSpec(abc.ABC):
    """Data for a run: a frozen dataclass that a module of `jaxface.data.specs`, or of your own, registers in `KINDS`."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """Short name for tables."""

    @abc.abstractmethod
    def source(self, *, image_size: int, seed: int) -> Source:
        """Every record that may be learned from."""

    @abc.abstractmethod
    def divide(self, *, image_size: int, seed: int) -> Split:
        """Training and held-out part."""

    def evaluation_source(self, *, image_size: int, seed: int) -> Source:
        """Every record to evaluate on, where the network was trained on other data."""
        return self.source(image_size=image_size, seed=seed)

    def simulated(self, count: int, *, image_size: int, seed: int) -> Source | None:
        """`count` further people from where the data come, one record each, whom nobody has seen; None where there are none."""
        return None


def load(spec: DataSpec, *, image_size: int = 112, seed: int = 0) -> Split:
    """Opens data and splits it.

    Args:
      spec: which data.
      image_size: side of every image, pixels (digits keep their 8).
      seed: of the rendered people and of the split.

    Raises:
      UserError: the data cannot be had, or not be split; the line names the field of `spec`.
    """
    check_number("image_size", image_size, AtLeast(8))
    check_fields(spec)
    return spec.divide(image_size=image_size, seed=seed)


def load_all(spec: DataSpec, *, image_size: int = 112, seed: int = 0) -> Source:
    """Opens data to evaluate on as a whole; of rendered faces only the people that no training sees.

    Args:
      spec: which data; its `held_out` fraction is not used.
      image_size: side of every image, pixels (digits keep their 8).
      seed: of the rendered people.

    Raises:
      UserError: the data cannot be had.
    """
    check_number("image_size", image_size, AtLeast(8))
    check_fields(spec)
    return spec.evaluation_source(image_size=image_size, seed=seed)
