"""Data sets that scikit-learn and scikit-image bring or download."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import numpy as np

from jaxface.checks import AtLeast, Integers, OpenFraction
from jaxface.data.sources import bundled
from jaxface.data.sources.depth import Modality
from jaxface.data.sources.source import Source, Subset, WithFields, split_identities
from jaxface.data.specs.base import KINDS, DataSpec, Split, split_classes, split_samples
from jaxface.data.specs.labeled_images import LabeledImages
from jaxface.data.specs.small_image_sets import DIGIT_CONFUSIONS
from jaxface.errors import UserError


@KINDS.register("olivetti")
@dataclasses.dataclass(frozen=True)
class Olivetti(DataSpec):
    """The Olivetti faces, 40 people x 10, which scikit-learn downloads once (4 MB)."""

    data_home: str | None = None
    """Where scikit-learn keeps its downloads; its own default unless given."""
    held_out: Annotated[float, OpenFraction] = 0.5
    """Fraction of the people to evaluate on."""

    @property
    def title(self) -> str:
        return "olivetti"

    def source(self, *, image_size: int, seed: int) -> Source:
        return bundled.olivetti(image_size=image_size, data_home=self.data_home)

    def divide(self, *, image_size: int, seed: int) -> Split:
        subsets = split_identities(self.source(image_size=image_size, seed=seed), self.held_out, seed=seed)
        return Split(*subsets, self.title, "verification")


@KINDS.register("lfw")
@dataclasses.dataclass(frozen=True)
class Lfw(DataSpec):
    """Labeled Faces in the Wild, which scikit-learn downloads once (233 MB)."""

    data_home: str | None = None
    """Where scikit-learn keeps its downloads; its own default unless given."""
    min_faces: Annotated[int, AtLeast(1)] = 2
    """Fewest photographs of a person who takes part."""
    held_out: Annotated[float, OpenFraction] = 0.2
    """Fraction of the people to evaluate on."""

    @property
    def title(self) -> str:
        return "lfw"

    def source(self, *, image_size: int, seed: int) -> Source:
        return bundled.lfw_people(image_size=image_size, data_home=self.data_home, min_faces=self.min_faces)

    def divide(self, *, image_size: int, seed: int) -> Split:
        subsets = split_identities(self.source(image_size=image_size, seed=seed), self.held_out, seed=seed)
        return Split(*subsets, self.title, "verification")


@KINDS.register("digits")
@dataclasses.dataclass(frozen=True)
class Digits(LabeledImages):
    """scikit-learn's 1797 handwritten digits: 1000 to train on, 797 to test. They keep their 8x8 gray
    pixels."""

    mirrored: bool = False
    """Each digit is mirrored or not, with probability ½, so that a mirror image may be a digit; in both parts."""

    test_per_class: Annotated[int | None, Integers(1, 170)] = None
    """Test as many of each class, and train on all others, instead."""

    @property
    def title(self) -> str:
        return "digits"

    def source(self, *, image_size: int, seed: int) -> Source:
        source = bundled.digits()
        if not self.mirrored:
            return source
        images = np.stack([source[i]["image"] for i in range(len(source))])
        turned = np.random.default_rng([seed, 0x6D69]).random(len(images)) < 0.5
        images = np.where(turned[:, None, None, None], images[:, :, ::-1], images)
        return bundled.ArraySource(images, source.labels, source.class_names)

    def _divide(self, *, image_size: int, seed: int) -> Split:
        source = self.source(image_size=image_size, seed=seed)
        if self.test_per_class is None:
            return split_samples(source, 1000, self.title, seed)
        order = np.random.default_rng(seed).permutation(len(source))
        labels = source.labels[order]
        rank = np.array([np.count_nonzero(labels[:i] == label) for i, label in enumerate(labels)])
        tested = rank < self.test_per_class
        parts = (Subset(source, order[~tested]), Subset(source, order[tested]))
        return Split(*parts, self.title, "classification")

    def _taken_for(self, source: Source) -> Mapping[int, int]:
        return DIGIT_CONFUSIONS


@KINDS.register("digit_halves")
@dataclasses.dataclass(frozen=True)
class DigitHalves(DataSpec):
    """The halves of scikit-learn's digits as two modalities: 450 left and 450 other right halves, and whole digits as pairs."""

    modality: Modality = "rgbd"
    """Left halves, right halves (of other digits), or pairs: the left half as the image, the right half as its `depth`."""
    paired: Annotated[int, Integers(10, 300)] = 300
    """Digits whose both halves are learned from, at most 300; 597 others are tested on."""

    @property
    def title(self) -> str:
        return {"rgb": "left halves", "depth": "right halves", "rgbd": "digit halves"}[self.modality]

    def source(self, *, image_size: int, seed: int) -> Source:
        return self._halves(bundled.digits())

    def _halves(self, source: Source) -> Source:
        images = np.stack([source[i]["image"] for i in range(len(source))])
        left, right = images[:, :, :4], images[:, :, 4:]
        shown = bundled.ArraySource(
            np.ascontiguousarray(right if self.modality == "depth" else left),
            source.labels,
            source.class_names,
        )
        return WithFields(shown, depth=right) if self.modality == "rgbd" else shown

    def divide(self, *, image_size: int, seed: int) -> Split:
        if not 10 <= self.paired <= 300:
            raise UserError(f"paired: needs a number from 10 to 300, got {self.paired}")
        source = bundled.digits()
        order = np.random.default_rng(seed).permutation(len(source))
        rows = {"rgb": order[:450], "depth": order[450:900], "rgbd": order[900 : 900 + self.paired]}
        train, held_out = (self._halves(Subset(source, part)) for part in (rows[self.modality], order[1200:]))
        return Split(train, held_out, self.title, "classification")


@KINDS.register("lfw_subset")
@dataclasses.dataclass(frozen=True)
class LfwSubset(DataSpec):
    """scikit-image's 200 patches of 25x25 pixels, faces and background: 140 to train on, 60 to test."""

    @property
    def title(self) -> str:
        return "lfw-subset"

    def source(self, *, image_size: int, seed: int) -> Source:
        return bundled.lfw_subset(image_size=image_size)

    def divide(self, *, image_size: int, seed: int) -> Split:
        return split_samples(self.source(image_size=image_size, seed=seed), 140, self.title, seed)


@KINDS.register("lfw_patches")
@dataclasses.dataclass(frozen=True)
class LfwPatches(DataSpec):
    """The same patches as face or not a face, with as many of either class in both parts."""

    held_out: Annotated[float, OpenFraction] = 0.3
    """Fraction of the patches to test on."""

    @property
    def title(self) -> str:
        return "lfw-patches"

    def source(self, *, image_size: int, seed: int) -> Source:
        return bundled.lfw_subset(image_size=image_size)

    def divide(self, *, image_size: int, seed: int) -> Split:
        source = self.source(image_size=image_size, seed=seed)
        return split_classes(source, self.held_out, self.title, seed)
