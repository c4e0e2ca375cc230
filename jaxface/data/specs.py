"""Which data a run uses: descriptions for configurations and the command line, and how to open them.

Images have one size in a run. Faces are split by identity, so that verification is on people the training
never saw.
"""

import abc
import dataclasses
import functools
import pathlib
from typing import Literal, NamedTuple

import numpy as np

from jaxface.data import bundled
from jaxface.data.folder import FolderSource
from jaxface.data.images import Fit
from jaxface.data.packs import PackSource
from jaxface.data.recordio import RecordIOFaces
from jaxface.data.rendered import RenderedSource
from jaxface.data.sources import Source, Subset, split_identities
from jaxface.data.tfds_source import TfdsSource
from jaxface.data.variation import Variation
from jaxface.errors import UserError

_FIRST_HELD_OUT = 1 << 20  # held-out people have numbers that no training range reaches, however many it has


# A study opens the same people once per arm; they are rendered once.
_rendered = functools.lru_cache(maxsize=4)(RenderedSource)


class Split(NamedTuple):
    """Two parts of a data set.

    Attributes:
      train: records to learn from; labels 0..K-1.
      held_out: records to evaluate on. Under "verification" its people are others than those of `train`, and
        its labels say nothing but who is the same; under "classification" the classes are the same.
      name: for tables and file names.
      protocol: how to evaluate.
    """

    train: Source
    held_out: Source
    name: str
    protocol: Literal["verification", "classification"]


@dataclasses.dataclass(frozen=True)
class Faces(abc.ABC):
    """Data for a run; one of the classes below."""

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


@dataclasses.dataclass(frozen=True)
class RenderedFaces(Faces):
    """Faces of made-up people from the renderer; nothing to download."""

    identities: int = 512
    """People to train on."""
    per_identity: int = 16
    """Images of each of them."""
    held_out_identities: int = 100
    """People to evaluate on; never among those to train on, and the same ones however many those are."""
    held_out_per_identity: int = 8
    """Images of each of these."""
    variation: Variation = dataclasses.field(default_factory=Variation)
    """How much the images of one person differ."""

    @property
    def title(self) -> str:
        return f"rendered {self.identities}x{self.per_identity}"

    def source(self, *, image_size: int, seed: int) -> RenderedSource:
        if not 2 <= self.identities <= _FIRST_HELD_OUT:
            raise UserError(f"identities: needs a number from 2 to {_FIRST_HELD_OUT}, got {self.identities}")
        return _rendered(self.identities, self.per_identity, image_size, seed, self.variation)

    def unseen(self, *, image_size: int, seed: int) -> RenderedSource:
        """The people to evaluate on."""
        for name in ("held_out_identities", "held_out_per_identity"):
            if getattr(self, name) < 2:
                raise UserError(f"{name}: pairs to verify need at least 2, got {getattr(self, name)}")
        return _rendered(
            self.held_out_identities,
            self.held_out_per_identity,
            image_size,
            seed,
            self.variation,
            first_identity=_FIRST_HELD_OUT,
        )

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(self.source(**arguments), self.unseen(**arguments), self.title, "verification")


@dataclasses.dataclass(frozen=True)
class Folder(Faces):
    """A folder of photographs, one sub-folder per person."""

    root: str
    """The folder: <root>/<person>/<image>; JPEG, PNG, PGM/PPM, BMP or WebP, grey or colour."""
    held_out: float = 0.2
    """Fraction of the people to evaluate on."""
    swap: bool = False
    """Exchange the two parts: train on the held-out people, evaluate on the others."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""
    strict: bool = False
    """Refuse the folder if any image in it cannot be read, instead of letting another one stand in."""

    @property
    def title(self) -> str:
        return f"folder {pathlib.Path(self.root).expanduser().resolve().name}"

    def source(self, *, image_size: int, seed: int) -> FolderSource:
        return FolderSource(self.root, image_size=image_size, fit=self.fit, strict=self.strict)

    def divide(self, *, image_size: int, seed: int) -> Split:
        parts = split_identities(self.source(image_size=image_size, seed=seed), self.held_out, seed=seed)
        train, held_out = parts[::-1] if self.swap else parts
        return Split(train, held_out, self.title, "verification")


@dataclasses.dataclass(frozen=True)
class Tfds(Faces):
    """A TensorFlow Datasets data set prepared as ArrayRecord (no TensorFlow), such as one that `faces_builder` wrote."""

    name: str = "faces"
    """Its name, or a folder relative to data_dir."""
    split: str = "train"
    """Its split, such as train or train[:80%]."""
    data_dir: str | None = None
    """Where TFDS data sets lie; TFDS' own default unless given."""
    image: str = "image"
    """Name of its image feature."""
    label: str = "label"
    """Name of its feature that says who it is."""
    held_out: float = 0.2
    """Fraction of the people to evaluate on."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""

    @property
    def title(self) -> str:
        return f"tfds {self.name}"

    def source(self, *, image_size: int, seed: int) -> TfdsSource:
        return TfdsSource(
            self.name,
            image_size=image_size,
            split=self.split,
            data_dir=self.data_dir,
            image=self.image,
            label=self.label,
            fit=self.fit,
        )

    def divide(self, *, image_size: int, seed: int) -> Split:
        parts = split_identities(self.source(image_size=image_size, seed=seed), self.held_out, seed=seed)
        return Split(*parts, self.title, "verification")


@dataclasses.dataclass(frozen=True)
class RecordIO(Faces):
    """An InsightFace training set: train.rec, train.idx and property."""

    path: str
    """The .rec, or the folder that holds it."""
    held_out: float = 0.02
    """Fraction of the people to evaluate on."""
    verification: str | None = None
    """A .bin pack to evaluate on instead; then everybody is trained on."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""

    @property
    def title(self) -> str:
        path = pathlib.Path(self.path).expanduser().resolve()
        return f"recordio {path.parent.name if path.suffix == '.rec' else path.name}"

    def source(self, *, image_size: int, seed: int) -> RecordIOFaces:
        return RecordIOFaces(self.path, image_size=image_size, fit=self.fit)

    def divide(self, *, image_size: int, seed: int) -> Split:
        # The pack first: it is opened in seconds, and may be refused.
        pack = PackSource(self.verification, image_size=image_size) if self.verification else None
        source = self.source(image_size=image_size, seed=seed)
        parts = (source, pack) if pack else split_identities(source, self.held_out, seed=seed)
        return Split(*parts, self.title, "verification")


@dataclasses.dataclass(frozen=True)
class Bin(Faces):
    """An InsightFace verification pack: pairs of images to evaluate on, not to learn from."""

    path: str
    """The .bin."""
    fit: Fit = "crop"
    """How a rectangle becomes a square: crop resizes the short side and keeps the middle."""

    @property
    def title(self) -> str:
        return f"bin {pathlib.Path(self.path).stem}"

    def source(self, *, image_size: int, seed: int) -> PackSource:
        return PackSource(self.path, image_size=image_size, fit=self.fit)

    def divide(self, *, image_size: int, seed: int) -> Split:
        raise UserError(
            f"data: needs people to learn from; got pairs, {self.path}: evaluate on them with experiments.evaluate, "
            "or with --data recordio --data.verification"
        )


@dataclasses.dataclass(frozen=True)
class Olivetti(Faces):
    """The Olivetti faces, 40 people x 10, which scikit-learn downloads once (4 MB)."""

    data_home: str | None = None
    """Where scikit-learn keeps its downloads; its own default unless given."""
    held_out: float = 0.5
    """Fraction of the people to evaluate on."""

    @property
    def title(self) -> str:
        return "olivetti"

    def source(self, *, image_size: int, seed: int) -> Source:
        return bundled.olivetti(image_size=image_size, data_home=self.data_home)

    def divide(self, *, image_size: int, seed: int) -> Split:
        parts = split_identities(self.source(image_size=image_size, seed=seed), self.held_out, seed=seed)
        return Split(*parts, self.title, "verification")


@dataclasses.dataclass(frozen=True)
class Lfw(Faces):
    """Labeled Faces in the Wild, which scikit-learn downloads once (233 MB)."""

    data_home: str | None = None
    """Where scikit-learn keeps its downloads; its own default unless given."""
    min_faces: int = 2
    """Fewest photographs of a person who takes part."""
    held_out: float = 0.2
    """Fraction of the people to evaluate on."""

    @property
    def title(self) -> str:
        return "lfw"

    def source(self, *, image_size: int, seed: int) -> Source:
        return bundled.lfw_people(image_size=image_size, data_home=self.data_home, min_faces=self.min_faces)

    def divide(self, *, image_size: int, seed: int) -> Split:
        parts = split_identities(self.source(image_size=image_size, seed=seed), self.held_out, seed=seed)
        return Split(*parts, self.title, "verification")


def _split_samples(source: Source, count: int, name: str, seed: int) -> Split:
    order = np.random.default_rng(seed).permutation(len(source))
    return Split(Subset(source, order[:count]), Subset(source, order[count:]), name, "classification")


@dataclasses.dataclass(frozen=True)
class Digits(Faces):
    """scikit-learn's 1797 handwritten digits: 1000 to train on, 797 to test. They keep their 8x8 grey
    pixels."""

    @property
    def title(self) -> str:
        return "digits"

    def source(self, *, image_size: int, seed: int) -> Source:
        return bundled.digits()

    def divide(self, *, image_size: int, seed: int) -> Split:
        return _split_samples(bundled.digits(), 1000, self.title, seed)


@dataclasses.dataclass(frozen=True)
class LfwSubset(Faces):
    """scikit-image's 200 patches of 25x25 pixels, faces and background: 140 to train on, 60 to test."""

    @property
    def title(self) -> str:
        return "lfw-subset"

    def source(self, *, image_size: int, seed: int) -> Source:
        return bundled.lfw_subset(image_size=image_size)

    def divide(self, *, image_size: int, seed: int) -> Split:
        return _split_samples(self.source(image_size=image_size, seed=seed), 140, self.title, seed)


AnyFaces = RenderedFaces | Folder | Tfds | RecordIO | Bin | Olivetti | Lfw | Digits | LfwSubset
"""The type of a configuration's field that takes any of them on the command line."""


def load(spec: Faces, *, image_size: int = 112, seed: int = 0) -> Split:
    """Opens data and splits it.

    Args:
      spec: which data.
      image_size: side of every image, pixels (digits keep their 8).
      seed: of the rendered people and of the split.

    Raises:
      UserError: the data cannot be had, or not be split; the line names the field of `spec`.
    """
    if image_size < 8:
        raise UserError(f"image_size: needs at least 8 pixels, got {image_size}")
    return spec.divide(image_size=image_size, seed=seed)


def load_all(spec: Faces, *, image_size: int = 112, seed: int = 0) -> Source:
    """Opens data to evaluate on as a whole; of rendered faces only the people that no training sees.

    Args:
      spec: which data; its `held_out` fraction is not used.
      image_size: side of every image, pixels (digits keep their 8).
      seed: of the rendered people.

    Raises:
      UserError: the data cannot be had.
    """
    if image_size < 8:
        raise UserError(f"image_size: needs at least 8 pixels, got {image_size}")
    arguments = dict(image_size=image_size, seed=seed)
    return spec.unseen(**arguments) if isinstance(spec, RenderedFaces) else spec.source(**arguments)
