"""Photographs that people have: folders, TensorFlow data sets, InsightFace training sets and packs."""

import dataclasses
from typing import Annotated

from jaxface.checks import OpenFraction
from jaxface.data.sources.depth import Modality, RgbdFolderSource, of_modality
from jaxface.data.sources.folder import FolderSource
from jaxface.data.sources.groups import JoinedGroups, group_folders
from jaxface.data.sources.images import Fit
from jaxface.data.sources.packs import PackSource
from jaxface.data.sources.recordio import RecordIOFaces
from jaxface.data.sources.source import Source, split_identities
from jaxface.data.sources.tfds_source import TfdsSource
from jaxface.data.specs.base import KINDS, DataSpec, Split
from jaxface.errors import UserError
from jaxface.paths import is_remote, last_name, name_text, user_path


@KINDS.register("folder")
@dataclasses.dataclass(frozen=True)
class Folder(DataSpec):
    """A folder of photographs, one sub-folder per person."""

    root: str
    """The folder: <root>/<person>/<image>; JPEG, PNG, PGM/PPM, BMP or WebP, gray or color."""
    held_out: Annotated[float, OpenFraction] = 0.2
    """Fraction of the people to evaluate on."""
    swap: bool = False
    """Exchange the two subsets: train on the held-out people, evaluate on the others."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""
    strict: bool = False
    """Refuse the folder if any image in it cannot be read, instead of replacing it with another."""

    @property
    def title(self) -> str:
        return f"folder {last_name('root', self.root)}"

    def source(self, *, image_size: int, seed: int) -> FolderSource:
        return FolderSource(self.root, image_size=image_size, fit=self.fit, strict=self.strict)

    def divide(self, *, image_size: int, seed: int) -> Split:
        subsets = split_identities(self.source(image_size=image_size, seed=seed), self.held_out, seed=seed)
        train, held_out = subsets[::-1] if self.swap else subsets
        return Split(train, held_out, self.title, "verification")


@KINDS.register("rgbd_folder")
@dataclasses.dataclass(frozen=True)
class RgbdFolder(DataSpec):
    """A folder of photographs with their depth maps, one sub-folder per person."""

    root: str
    """The folder: <root>/<person>/<name>.png, and <name>_depth.png of 16 bits, mm from the camera, 0 for no reading."""
    held_out: Annotated[float, OpenFraction] = 0.2
    """Fraction of the people to evaluate on."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""
    modality: Modality = "rgbd"
    """What an image is: the photograph, its depth map as gray levels around the nose tip, or one with the other as `depth`."""
    subsets: tuple[str, ...] = ()
    """Parts that are reported one by one, that of the gallery first; the photographs' names say them: NU in 001_NU_2.png."""

    @property
    def title(self) -> str:
        return f"folder {last_name('root', self.root)} ({self.modality})"

    def source(self, *, image_size: int, seed: int) -> Source:
        pairs = RgbdFolderSource(self.root, image_size=image_size, fit=self.fit, subset_names=self.subsets)
        return of_modality(pairs, self.modality)

    def divide(self, *, image_size: int, seed: int) -> Split:
        subsets = split_identities(self.source(image_size=image_size, seed=seed), self.held_out, seed=seed)
        return Split(*subsets, self.title, "verification")


@KINDS.register("groups")
@dataclasses.dataclass(frozen=True)
class GroupFolders(DataSpec):
    """Folders of photographs by group of people."""

    root: str
    """The folder: <root>/<group>/<person>/<image>."""
    held_out: Annotated[float, OpenFraction] = 0.2
    """Fraction of the people of each group to evaluate on."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""

    @property
    def title(self) -> str:
        return f"groups {last_name('root', self.root)}"

    def source(self, *, image_size: int, seed: int) -> Source:
        return JoinedGroups(group_folders(self.root, image_size=image_size, fit=self.fit))

    def divide(self, *, image_size: int, seed: int) -> Split:
        folders = group_folders(self.root, image_size=image_size, fit=self.fit)
        subsets = {name: split_identities(part, self.held_out, seed=seed) for name, part in folders.items()}
        train, held_out = (
            JoinedGroups({name: both[side] for name, both in subsets.items()}) for side in (0, 1)
        )
        return Split(train, held_out, self.title, "verification")


@KINDS.register("tfds")
@dataclasses.dataclass(frozen=True)
class Tfds(DataSpec):
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
    held_out: Annotated[float, OpenFraction] = 0.2
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
            subsets = (
                dataclasses.replace(self, split=split).source(image_size=image_size, seed=seed)
                for split in (self.split, self.test)
            )
            return Split(*subsets, self.title, "classification")
        subsets = split_identities(self.source(image_size=image_size, seed=seed), self.held_out, seed=seed)
        return Split(*subsets, self.title, "verification")


@KINDS.register("recordio")
@dataclasses.dataclass(frozen=True)
class RecordIO(DataSpec):
    """An InsightFace training set: train.rec, train.idx and property."""

    path: str
    """The .rec, or the folder that holds it."""
    held_out: Annotated[float, OpenFraction] = 0.02
    """Fraction of the people to evaluate on."""
    verification: str | None = None
    """A .bin pack to evaluate on instead; then everybody is trained on."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""

    @property
    def title(self) -> str:
        path = user_path("path", self.path)
        path = path if is_remote(path) else path.resolve()
        return f"recordio {name_text(path.parent.name if path.suffix == '.rec' else path.name)}"

    def source(self, *, image_size: int, seed: int) -> RecordIOFaces:
        return RecordIOFaces(self.path, image_size=image_size, fit=self.fit)

    def divide(self, *, image_size: int, seed: int) -> Split:
        # The pack first: it is opened in seconds, and may be refused.
        pack = None
        if self.verification is not None:
            pack = PackSource(user_path("verification", self.verification), image_size=image_size)
        source = self.source(image_size=image_size, seed=seed)
        sources = (source, pack) if pack else split_identities(source, self.held_out, seed=seed)
        return Split(*sources, self.title, "verification")


@KINDS.register("bin")
@dataclasses.dataclass(frozen=True)
class Bin(DataSpec):
    """An InsightFace verification pack: pairs of images to evaluate on, not to learn from."""

    path: str
    """The .bin."""
    fit: Fit = "crop"
    """How a rectangle becomes a square: crop resizes the short side and keeps the middle."""

    @property
    def title(self) -> str:
        return f"bin {name_text(user_path('path', self.path).stem)}"

    def source(self, *, image_size: int, seed: int) -> PackSource:
        return PackSource(self.path, image_size=image_size, fit=self.fit)

    def divide(self, *, image_size: int, seed: int) -> Split:
        raise UserError(
            f"data: needs people to learn from; got pairs, {self.path}: evaluate on them with jaxface evaluate, "
            "or with --data recordio --data.verification"
        )
