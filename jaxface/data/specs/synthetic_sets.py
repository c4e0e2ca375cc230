"""Synthetic identities as vectors and small images."""

import dataclasses
from typing import Annotated

import numpy as np

from jaxface.checks import AtLeast, Fraction, NonNegative, check_number
from jaxface.data.sources.source import Source, Subset
from jaxface.data.specs.base import FIRST_HELD_OUT, FIRST_SIMULATED, KINDS, DataSpec, Split
from jaxface.data.synthetic.procedural_images import procedural_images
from jaxface.data.synthetic.procedural_vectors import procedural_vectors
from jaxface.data.synthetic.shortcut_digits import shortcut_digits


@KINDS.register("procedural")
@dataclasses.dataclass(frozen=True)
class Procedural(DataSpec):
    """Synthetic identities as vectors of 96 numbers, in confusable groups; for claims about embeddings, in seconds."""

    identities: Annotated[int, AtLeast(2)] = 300
    """People to train on."""
    per_identity: Annotated[int, AtLeast(1)] = 12
    """Records of each of them."""
    held_out_identities: Annotated[int, AtLeast(0)] = 150
    """People to evaluate on, none of whom is trained on; 0 to classify other records of the people trained on."""
    held_out_per_identity: Annotated[int, AtLeast(1)] = 8
    """Records of each person to evaluate on."""
    groups: Annotated[int, AtLeast(1)] = 15
    """Groups of confusable people."""
    noise: Annotated[float, NonNegative] = 0.6
    """Standard deviation of the records of one person, where that of people in a group is 0.7."""

    @property
    def title(self) -> str:
        return f"procedural {self.identities}x{self.per_identity}"

    def source(self, *, image_size: int, seed: int) -> Source:
        return self._people(self.identities, self.per_identity, seed)

    def _people(self, identities: int, per_identity: int, seed: int, *, first: int = 0) -> Source:
        return procedural_vectors(
            identities, per_identity, seed=seed, first_identity=first, groups=self.groups, noise=self.noise
        )

    def divide(self, *, image_size: int, seed: int) -> Split:
        if self.held_out_identities == 0:
            everything = self._people(self.identities, self.per_identity + self.held_out_per_identity, seed)
            later = np.arange(len(everything)) % (self.per_identity + self.held_out_per_identity)
            subsets = (
                Subset(everything, np.flatnonzero(rows))
                for rows in (later < self.per_identity, later >= self.per_identity)
            )
            return Split(*subsets, self.title, "classification")
        for name in ("held_out_identities", "held_out_per_identity"):  # pairs to verify need two of each
            check_number(name, getattr(self, name), AtLeast(2))
        unseen = self._people(
            self.held_out_identities, self.held_out_per_identity, seed, first=FIRST_HELD_OUT
        )
        return Split(self.source(image_size=image_size, seed=seed), unseen, self.title, "verification")

    def simulated(self, count: int, *, image_size: int, seed: int) -> Source:
        return self._people(count, 1, seed, first=FIRST_SIMULATED)


@KINDS.register("procedural_images")
@dataclasses.dataclass(frozen=True)
class ProceduralImages(DataSpec):
    """Synthetic identities as small gray images of waves; for claims about changes of pixels, in seconds."""

    identities: Annotated[int, AtLeast(2)] = 250
    """People to train on."""
    per_identity: Annotated[int, AtLeast(1)] = 12
    """Images of each of them."""
    held_out_identities: Annotated[int, AtLeast(2)] = 100
    """People to evaluate on, none of whom is trained on."""
    held_out_per_identity: Annotated[int, AtLeast(2)] = 15
    """Images of each person to evaluate on."""

    @property
    def title(self) -> str:
        return f"procedural images {self.identities}x{self.per_identity}"

    def source(self, *, image_size: int, seed: int) -> Source:
        return procedural_images(self.identities, self.per_identity, seed=seed, side=image_size)

    def divide(self, *, image_size: int, seed: int) -> Split:
        unseen = procedural_images(
            self.held_out_identities,
            self.held_out_per_identity,
            seed=seed,
            side=image_size,
            first_identity=FIRST_HELD_OUT,
        )
        return Split(self.source(image_size=image_size, seed=seed), unseen, self.title, "verification")


@KINDS.register("shortcut_digits")
@dataclasses.dataclass(frozen=True)
class ShortcutDigits(DataSpec):
    """Digits on a canvas of 16 x 16, half of which offer a shortcut that fails in the test (`shortcut.shortcut_digits`)."""

    reliability: Annotated[float, Fraction] = 0.9
    """Fraction of the training images of that half whose patch tells the digit."""
    noise: Annotated[float, NonNegative] = 0.15
    """Standard deviation of the noise, where white is 1."""

    @property
    def title(self) -> str:
        return "shortcut digits"

    def source(self, *, image_size: int, seed: int) -> Source:
        return self.divide(image_size=image_size, seed=seed).train

    def divide(self, *, image_size: int, seed: int) -> Split:
        subsets = shortcut_digits(reliability=self.reliability, noise=self.noise, seed=seed)
        return Split(*subsets, self.title, "classification")
