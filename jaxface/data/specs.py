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
from jaxface.data.depth import DepthImages, Modality, RgbdFolderSource, RgbdImages
from jaxface.data.folder import FolderSource
from jaxface.data.groups import JoinedGroups, group_folders
from jaxface.data.images import Fit
from jaxface.data.packs import PackSource
from jaxface.data.procedural import procedural_vectors
from jaxface.data.procedural_images import procedural_images
from jaxface.data.recordio import RecordIOFaces
from jaxface.data.rendered import RenderedSource
from jaxface.data.shortcut import shortcut_digits
from jaxface.data.sources import Source, Subset, WithFields, split_identities
from jaxface.data.tfds_source import TfdsSource
from jaxface.data.variation import Variation
from jaxface.errors import UserError

_FIRST_HELD_OUT = 1 << 20  # held-out people have numbers that no training range reaches, however many it has


# A study opens the same people once per arm; they are rendered once.
_rendered = functools.lru_cache(maxsize=8)(RenderedSource)


def _of_modality(source: Source, modality: Modality) -> Source:
    """A source with depth as a run wants it: its photographs, its depth as images, or both."""
    return {"rgb": lambda source: source, "depth": DepthImages, "rgbd": RgbdImages}[modality](source)


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


def _check_pairs(spec: Faces) -> None:
    """Raises UserError unless the people to evaluate on make genuine and impostor pairs."""
    for name in ("held_out_identities", "held_out_per_identity"):
        if getattr(spec, name) < 2:
            raise UserError(f"{name}: pairs to verify need at least 2, got {getattr(spec, name)}")


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
    modality: Modality = "rgb"
    """What an image is: the photograph, its depth map as grey levels around the nose tip, or one with the other as `depth`."""
    first_identity: int = 0
    """Number of the first person to train on; data sets whose ranges do not overlap share nobody."""

    @property
    def title(self) -> str:
        kind = "" if self.modality == "rgb" else f"{self.modality} "
        return f"rendered {kind}{self.identities}x{self.per_identity}"

    def _open(self, *arguments, first: int) -> Source:
        if self.modality == "rgb":
            return _rendered(*arguments, first_identity=first)
        return _of_modality(_rendered(*arguments, first_identity=first, with_depth=True), self.modality)

    def source(self, *, image_size: int, seed: int) -> Source:
        if self.first_identity < 0:
            raise UserError(f"first_identity: needs a number from 0, got {self.first_identity}")
        most = _FIRST_HELD_OUT - self.first_identity
        if not 2 <= self.identities <= most:
            raise UserError(f"identities: needs a number from 2 to {most}, got {self.identities}")
        return self._open(
            self.identities, self.per_identity, image_size, seed, self.variation, first=self.first_identity
        )

    def unseen(self, *, image_size: int, seed: int) -> Source:
        """The people to evaluate on."""
        _check_pairs(self)
        return self._open(
            self.held_out_identities,
            self.held_out_per_identity,
            image_size,
            seed,
            self.variation,
            first=_FIRST_HELD_OUT,
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
class RgbdFolder(Faces):
    """A folder of photographs with their depth maps, one sub-folder per person."""

    root: str
    """The folder: <root>/<person>/<name>.png, and <name>_depth.png of 16 bits, mm from the camera, 0 for no reading."""
    held_out: float = 0.2
    """Fraction of the people to evaluate on."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""
    modality: Modality = "rgbd"
    """What an image is: the photograph, its depth map as grey levels around the nose tip, or one with the other as `depth`."""

    @property
    def title(self) -> str:
        return f"folder {pathlib.Path(self.root).expanduser().resolve().name} ({self.modality})"

    def source(self, *, image_size: int, seed: int) -> Source:
        return _of_modality(RgbdFolderSource(self.root, image_size=image_size, fit=self.fit), self.modality)

    def divide(self, *, image_size: int, seed: int) -> Split:
        parts = split_identities(self.source(image_size=image_size, seed=seed), self.held_out, seed=seed)
        return Split(*parts, self.title, "verification")


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
    test: str | None = None
    """A split with the same classes to evaluate on instead, by classification; then every class is trained on."""
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
        if self.test is not None:
            parts = (
                dataclasses.replace(self, split=split).source(image_size=image_size, seed=seed)
                for split in (self.split, self.test)
            )
            return Split(*parts, self.title, "classification")
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
class DigitHalves(Faces):
    """The halves of scikit-learn's digits as two modalities: 450 left and 450 other right halves, and whole digits as pairs."""

    modality: Modality = "rgbd"
    """Left halves, right halves (of other digits), or pairs: the left half as the image, the right half as its `depth`."""
    paired: int = 300
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


@dataclasses.dataclass(frozen=True)
class Procedural(Faces):
    """Made-up identities as vectors of 96 numbers, in confusable groups; for claims about embeddings, in seconds."""

    identities: int = 300
    """People to train on."""
    per_identity: int = 12
    """Records of each of them."""
    held_out_identities: int = 150
    """People to evaluate on, none of whom is trained on; 0 to classify other records of the people trained on."""
    held_out_per_identity: int = 8
    """Records of each person to evaluate on."""
    groups: int = 15
    """Groups of confusable people."""
    noise: float = 0.6
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
        if self.identities < 2:
            raise UserError(f"identities: needs at least 2, got {self.identities}")
        if self.held_out_identities == 0:
            everything = self._people(self.identities, self.per_identity + self.held_out_per_identity, seed)
            later = np.arange(len(everything)) % (self.per_identity + self.held_out_per_identity)
            parts = (
                Subset(everything, np.flatnonzero(chosen))
                for chosen in (later < self.per_identity, later >= self.per_identity)
            )
            return Split(*parts, self.title, "classification")
        _check_pairs(self)
        unseen = self._people(
            self.held_out_identities, self.held_out_per_identity, seed, first=_FIRST_HELD_OUT
        )
        return Split(self.source(image_size=image_size, seed=seed), unseen, self.title, "verification")


@dataclasses.dataclass(frozen=True)
class ProceduralImages(Faces):
    """Made-up identities as small grey images of waves; for claims about changes of pixels, in seconds."""

    identities: int = 250
    """People to train on."""
    per_identity: int = 12
    """Images of each of them."""
    held_out_identities: int = 100
    """People to evaluate on, none of whom is trained on."""
    held_out_per_identity: int = 15
    """Images of each person to evaluate on."""

    @property
    def title(self) -> str:
        return f"procedural images {self.identities}x{self.per_identity}"

    def source(self, *, image_size: int, seed: int) -> Source:
        return procedural_images(self.identities, self.per_identity, seed=seed, side=image_size)

    def divide(self, *, image_size: int, seed: int) -> Split:
        if self.identities < 2:
            raise UserError(f"identities: needs at least 2, got {self.identities}")
        _check_pairs(self)
        unseen = procedural_images(
            self.held_out_identities,
            self.held_out_per_identity,
            seed=seed,
            side=image_size,
            first_identity=_FIRST_HELD_OUT,
        )
        return Split(self.source(image_size=image_size, seed=seed), unseen, self.title, "verification")


@dataclasses.dataclass(frozen=True)
class TonedFaces(Faces):
    """Rendered faces in groups by skin tone, of which some have fewer people to train on."""

    lightest: tuple[float, ...] = (0.0, 0.8)
    """Lightest skin tone of each group, in [0, 1]; 1 is the darkest of all."""
    darkest: tuple[float, ...] = (0.2, 1.0)
    """Darkest skin tone of each group."""
    identities: tuple[int, ...] = (90, 45)
    """People of each group to train on."""
    per_identity: int = 16
    """Images of each of them."""
    held_out_identities: int = 60
    """People of each group to evaluate on; the same ones however many are trained on."""
    held_out_per_identity: int = 8
    """Images of each of these."""
    variation: Variation = Variation(noise=(0.02, 0.02))
    """How much the images of one person differ; the camera's noise is the same for all, so dark skin has less contrast."""

    @property
    def title(self) -> str:
        return f"toned {'+'.join(map(str, self.identities))}x{self.per_identity}"

    def _joined(self, numbers: tuple[int, ...], each: int, first: int, image_size: int, seed: int) -> Source:
        tones = list(zip(self.lightest, self.darkest, strict=False))
        if not len(self.lightest) == len(self.darkest) == len(self.identities):
            given = len(self.lightest), len(self.darkest), len(self.identities)
            raise UserError(f"identities: needs as many groups as lightest and darkest, got {given}")
        if len(set(tones)) < len(tones):
            raise UserError(f"lightest: needs groups that differ in it or in darkest, got {tones}")
        # Groups draw from numbers of their own: the same number under another tone would be the same head.
        return JoinedGroups(
            {
                f"tone-{low:g}-{high:g}": _rendered(
                    number, each, image_size, seed, self.variation,
                    first_identity=first + 2 * _FIRST_HELD_OUT * group, tone=(low, high),
                )
                for group, ((low, high), number) in enumerate(zip(tones, numbers, strict=True))
            }
        )  # fmt: skip

    def source(self, *, image_size: int, seed: int) -> Source:
        return self._joined(self.identities, self.per_identity, 0, image_size, seed)

    def divide(self, *, image_size: int, seed: int) -> Split:
        _check_pairs(self)
        unseen = self._joined(
            (self.held_out_identities,) * len(self.identities),
            self.held_out_per_identity,
            _FIRST_HELD_OUT,
            image_size,
            seed,
        )
        return Split(self.source(image_size=image_size, seed=seed), unseen, self.title, "verification")


@dataclasses.dataclass(frozen=True)
class GroupFolders(Faces):
    """Folders of photographs by group of people."""

    root: str
    """The folder: <root>/<group>/<person>/<image>."""
    held_out: float = 0.2
    """Fraction of the people of each group to evaluate on."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""

    @property
    def title(self) -> str:
        return f"groups {pathlib.Path(self.root).expanduser().resolve().name}"

    def source(self, *, image_size: int, seed: int) -> Source:
        return JoinedGroups(group_folders(self.root, image_size=image_size, fit=self.fit))

    def divide(self, *, image_size: int, seed: int) -> Split:
        folders = group_folders(self.root, image_size=image_size, fit=self.fit)
        parts = {name: split_identities(part, self.held_out, seed=seed) for name, part in folders.items()}
        train, held_out = (
            JoinedGroups({name: both[side] for name, both in parts.items()}) for side in (0, 1)
        )
        return Split(train, held_out, self.title, "verification")


@dataclasses.dataclass(frozen=True)
class ShortcutDigits(Faces):
    """Digits on a canvas of 16 x 16, half of which offer a shortcut that fails in the test (`shortcut.shortcut_digits`)."""

    reliability: float = 0.9
    """Fraction of the training images of that half whose patch tells the digit."""
    noise: float = 0.15
    """Standard deviation of the noise, where white is 1."""

    @property
    def title(self) -> str:
        return "shortcut digits"

    def source(self, *, image_size: int, seed: int) -> Source:
        return self.divide(image_size=image_size, seed=seed).train

    def divide(self, *, image_size: int, seed: int) -> Split:
        parts = shortcut_digits(reliability=self.reliability, noise=self.noise, seed=seed)
        return Split(*parts, self.title, "classification")


AnyFaces = (
    RenderedFaces
    | Folder
    | RgbdFolder
    | Tfds
    | RecordIO
    | Bin
    | Olivetti
    | Lfw
    | Digits
    | DigitHalves
    | LfwSubset
    | Procedural
    | ProceduralImages
    | TonedFaces
    | GroupFolders
    | ShortcutDigits
)
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
