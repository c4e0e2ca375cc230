"""Images of classes that people have: lists, folders by class, CUB-200-2011, Clothing1M.

Methods: law, mda, nclpp, ota
"""

import abc
import dataclasses
from typing import Literal

from jaxface.data.sources.class_lists import ClothingPart, clothing1m, cub_200, image_lists
from jaxface.data.sources.images import Fit
from jaxface.data.sources.listed_images import Listed, ListedImages, ListedTest, class_folders
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import KINDS, Split
from jaxface.data.specs.labeled_images import LabeledImages
from jaxface.paths import last_name, local_path


@dataclasses.dataclass(frozen=True)
class _Listed(LabeledImages, abc.ABC):
    """A set whose files say what to train on and what to test."""

    root: str
    """The folder of the set."""
    fit: Fit = dataclasses.field(default="crop", kw_only=True)
    """How a rectangle becomes a square: crop keeps the middle, pad repeats the border, stretch distorts."""

    @property
    def title(self) -> str:
        return f"{KINDS.name_of(type(self))} {last_name('root', self.root)}"

    @abc.abstractmethod
    def _parts(self) -> tuple[Listed, Listed]:
        """What to train on and what to test."""

    def source(self, *, image_size: int, seed: int) -> Source:
        return ListedImages(self._parts()[0], image_size=image_size, fit=self.fit)

    def evaluation_source(self, *, image_size: int, seed: int) -> Source:
        """The test images."""
        return ListedTest(self._parts()[1], image_size=image_size, fit=self.fit)

    def _divide(self, *, image_size: int, seed: int) -> Split:
        train, test = self._parts()
        options = dict(image_size=image_size, fit=self.fit)
        return Split(
            ListedImages(train, **options), ListedTest(test, **options), self.title, "classification"
        )


@KINDS.register("image_lists")
@dataclasses.dataclass(frozen=True)
class ImageLists(_Listed):
    """Two lists of "path label" lines, as those of ImageNet-LT, Places-LT and iNaturalist 2018."""

    train: str = "train.txt"
    """The list to train on; its paths and the file itself are looked for in root."""
    test: str = "test.txt"
    """The list to test."""

    def _parts(self) -> tuple[Listed, Listed]:
        return image_lists(self.root, self.train, self.test)


@KINDS.register("class_folders")
@dataclasses.dataclass(frozen=True)
class ClassFolders(_Listed):
    """Folders by class, as ImageNet's: <root>/train/<class>/<image> and <root>/val/<class>/<image>, or test for val."""

    def _parts(self) -> tuple[Listed, Listed]:
        root = local_path("root", self.root)
        return class_folders(root, "train"), class_folders(root, "test")


@KINDS.register("cub200")
@dataclasses.dataclass(frozen=True)
class Cub200(_Listed):
    """CUB-200-2011: 200 species of birds, 5,994 images to train on and 5,794 to test."""

    def _parts(self) -> tuple[Listed, Listed]:
        return cub_200(self.root, "train"), cub_200(self.root, "test")


@KINDS.register("clothing1m")
@dataclasses.dataclass(frozen=True)
class Clothing1m(_Listed):
    """Clothing1M: 14 kinds of clothes, a million images with labels from the web."""

    labels: Literal["noisy", "clean"] = "noisy"
    """Train on the images with labels from the web, or on those that people have labeled."""
    test: Literal["clean_test", "clean_val"] = "clean_test"
    """Which list to test."""

    def _parts(self) -> tuple[Listed, Listed]:
        train: ClothingPart = "noisy_train" if self.labels == "noisy" else "clean_train"
        return clothing1m(self.root, train), clothing1m(self.root, self.test)
