"""Faces by the expression that they show.

Methods: apvit
"""

import abc
import dataclasses
import functools
from typing import Annotated, Literal

from jaxface.checks import AtLeast, Fraction, Integers, Ordered, Range
from jaxface.data.pipeline.samplers import repeat_rare_classes
from jaxface.data.render.expressions import ExpressionSource
from jaxface.data.render.variation import Variation
from jaxface.data.sources.expressions import affectnet, fer_plus, raf_db
from jaxface.data.sources.images import Fit
from jaxface.data.sources.listed_images import Listed, ListedImages, ListedTest
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import FIRST_HELD_OUT, KINDS, DataSpec, Split
from jaxface.paths import local_path, name_text

_rendered = functools.lru_cache(maxsize=8)(ExpressionSource)  # a study opens the same ones once per arm


@KINDS.register("rendered_expressions")
@dataclasses.dataclass(frozen=True)
class RenderedExpressions(DataSpec):
    """Rendered people who show nothing or one of six expressions, as many images of each; the test has other people."""

    identities: Annotated[int, AtLeast(1)] = 200
    """People to train on."""
    per_expression: Annotated[int, AtLeast(1)] = 2
    """Images of each of them with each of the seven expressions."""
    held_out_identities: Annotated[int, AtLeast(1)] = 100
    """People to test; never among those to train on, and the same ones however many those are."""
    held_out_per_expression: Annotated[int, AtLeast(1)] = 1
    """Images of each of these with each expression."""
    strengths: Annotated[tuple[float, float], Range(0.4, 1.5), Ordered()] = (0.6, 1.2)
    """Least and greatest strength of what is shown."""
    variation: Variation = Variation(expression=0.15)
    """How much images differ besides: pose, light, camera, and slight other expressions."""

    @property
    def title(self) -> str:
        return f"rendered expressions {self.identities}x{7 * self.per_expression}"

    def _open(self, identities: int, each: int, image_size: int, seed: int, first: int) -> ExpressionSource:
        return _rendered(
            identities, each, image_size, seed, self.variation, self.strengths, first_identity=first
        )

    def source(self, *, image_size: int, seed: int) -> ExpressionSource:
        return self._open(self.identities, self.per_expression, image_size, seed, 0)

    def evaluation_source(self, *, image_size: int, seed: int) -> ExpressionSource:
        """The people to test."""
        return self._open(
            self.held_out_identities, self.held_out_per_expression, image_size, seed, FIRST_HELD_OUT
        )

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(
            self.source(**arguments), self.evaluation_source(**arguments), self.title, "classification"
        )


@dataclasses.dataclass(frozen=True)
class _Photographs(DataSpec, abc.ABC):
    """What all sets of photographs of expressions have."""

    root: str
    """The folder of the set."""
    balance: Annotated[float, Fraction] = dataclasses.field(default=0.0, kw_only=True)
    """Share below which a class is rare: its images are repeated ⌈√(balance / share)⌉ times in training; 0 repeats none."""
    fit: Fit = dataclasses.field(default="pad", kw_only=True)
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""

    @property
    def title(self) -> str:
        return f"{KINDS.name_of(type(self))} {name_text(local_path('root', self.root).resolve().name)}"

    @abc.abstractmethod
    def _listed(self, part: Literal["train", "test"]) -> Listed:
        """One part of the set."""

    def source(self, *, image_size: int, seed: int) -> Source:
        train = ListedImages(self._listed("train"), image_size=image_size, fit=self.fit)
        return repeat_rare_classes(train, threshold=self.balance) if self.balance else train

    def evaluation_source(self, *, image_size: int, seed: int) -> ListedTest:
        """The test images."""
        return ListedTest(self._listed("test"), image_size=image_size, fit=self.fit)

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(
            self.source(**arguments), self.evaluation_source(**arguments), self.title, "classification"
        )


@KINDS.register("raf_db")
@dataclasses.dataclass(frozen=True)
class RafDb(_Photographs):
    """RAF-DB's seven basic emotions: EmoLabel/list_patition_label.txt and the aligned images in a folder named basic."""

    images: str = "Image/aligned"
    """Folder of the images in it."""

    def _listed(self, part: Literal["train", "test"]) -> Listed:
        return raf_db(self.root, part, images=self.images)


@KINDS.register("fer_plus")
@dataclasses.dataclass(frozen=True)
class FerPlus(_Photographs):
    """FERPlus, eight classes by majority: fer2013new.csv beside fer2013.csv or the folders FER2013Train, …Valid and …Test."""

    test: Literal["PublicTest", "PrivateTest"] = "PrivateTest"
    """Which part to test on."""

    def _listed(self, part: Literal["train", "test"]) -> Listed:
        return fer_plus(self.root, "Training" if part == "train" else self.test)


@KINDS.register("affectnet")
@dataclasses.dataclass(frozen=True)
class AffectNet(_Photographs):
    """AffectNet: training.csv and validation.csv with the images they name, or folders train/<class> and val/<class>."""

    classes: Annotated[int, Integers(7, 8)] = 7
    """Of the lists: 7, or 8 with contempt."""

    def _listed(self, part: Literal["train", "test"]) -> Listed:
        return affectnet(self.root, part, classes=self.classes)
