"""Images with mean opinion scores: drawn ones, and those of benchmarks.

Methods: niqa_attack
"""

import abc
import dataclasses
import functools
from typing import Annotated

from jaxface.checks import AtLeast, Fraction, NonNegative, OpenFraction, Ordered
from jaxface.data.sources.opinions import (
    Rated,
    RatedFiles,
    RatedSource,
    csiq,
    kadid10k,
    live,
    opinion_table,
    split_references,
)
from jaxface.data.specs.base import FIRST_HELD_OUT, KINDS, DataSpec, Split
from jaxface.data.synthetic.distorted_leaves import distorted_leaves
from jaxface.paths import last_name, local_path

# A study opens the same images once per arm.
_drawn = functools.lru_cache(maxsize=8)(distorted_leaves)


@KINDS.register("distorted_leaves")
@dataclasses.dataclass(frozen=True)
class DistortedLeaves(DataSpec):
    """Textured discs that were blurred, got noise, or were coded coarsely, with opinions of 0 to 10; nothing to download."""

    images: Annotated[int, AtLeast(1)] = 500
    """Images to train on."""
    held_out_images: Annotated[int, AtLeast(1)] = 200
    """Other images to evaluate on."""
    leaves: Annotated[int, AtLeast(1)] = 60
    """Discs of an image."""
    texture: Annotated[float, NonNegative] = 0.05
    """Strength of the discs' texture."""
    severity: Annotated[tuple[float, float], Fraction, Ordered()] = (0.0, 1.0)
    """Least and greatest severity of what happened to an image; an opinion is 10 (1 - severity)."""

    @property
    def title(self) -> str:
        return f"distorted leaves {self.images}"

    def _open(self, count: int, image_size: int, seed: int, first: int = 0) -> RatedSource:
        return _drawn(
            count, side=image_size, leaves=self.leaves, texture=self.texture, severity=self.severity, seed=seed, first=first
        )  # fmt: skip

    def source(self, *, image_size: int, seed: int) -> RatedSource:
        return self._open(self.images, image_size, seed)

    def evaluation_source(self, *, image_size: int, seed: int) -> RatedSource:
        """The images to evaluate on."""
        return self._open(self.held_out_images, image_size, seed, FIRST_HELD_OUT)

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(self.source(**arguments), self.evaluation_source(**arguments), self.title, "quality")


class _RatedFolder(DataSpec):
    """Images from files with opinions, of which those of some originals are held out."""

    root: str
    held_out: float

    @abc.abstractmethod
    def _rows(self) -> list[Rated]:
        """Every image."""

    @property
    def title(self) -> str:
        return f"{KINDS.name_of(type(self))} {last_name('root', self.root)}"

    def source(self, *, image_size: int, seed: int) -> RatedFiles:
        return RatedFiles(self._rows(), image_size=image_size)

    def divide(self, *, image_size: int, seed: int) -> Split:
        rows = self._rows()
        names = sorted({row.distortion for row in rows})
        train, held_out = (
            RatedFiles(part, image_size=image_size, distortions=names)
            for part in split_references(rows, self.held_out, seed)
        )
        return Split(train, held_out, self.title, "quality")


@KINDS.register("opinion_table")
@dataclasses.dataclass(frozen=True)
class OpinionTable(_RatedFolder):
    """Images with mean opinion scores in a CSV table."""

    root: str
    """The folder, with the table and the images."""
    table: str = "opinions.csv"
    """The table."""
    image: str = "image"
    """Its column of files' names."""
    score: str = "mos"
    """Its column of scores."""
    reference: str | None = None
    """Its column of the image that each is a distortion of; each is its own without one."""
    distortion: str | None = None
    """Its column of what happened to each image."""
    folder: str = "."
    """Where the files' names start, from the folder."""
    lowest: float = 0.0
    """Lower end of the scale."""
    highest: float = 10.0
    """Upper end of the scale."""
    reverse: bool = False
    """Large scores are bad, as those of a DMOS."""
    held_out: Annotated[float, OpenFraction] = 0.2
    """Fraction of the originals whose distortions are held out."""

    def _rows(self) -> list[Rated]:
        return opinion_table(
            local_path("root", self.root), self.table, image=self.image, score=self.score, reference=self.reference,
            distortion=self.distortion, folder=self.folder, low=self.lowest, high=self.highest, reverse=self.reverse,
        )  # fmt: skip


@KINDS.register("kadid10k")
@dataclasses.dataclass(frozen=True)
class Kadid10k(_RatedFolder):
    """KADID-10k: 81 photographs, 25 distortions in five strengths."""

    root: str
    """The folder, with `dmos.csv` and `images/`."""
    held_out: Annotated[float, OpenFraction] = 0.2
    """Fraction of the originals whose distortions are held out."""

    def _rows(self) -> list[Rated]:
        return kadid10k(local_path("root", self.root))


@KINDS.register("csiq")
@dataclasses.dataclass(frozen=True)
class Csiq(_RatedFolder):
    """CSIQ: 30 photographs, six distortions in four or five strengths."""

    root: str
    """The folder, with `csiq_label.txt` and `dst_imgs/`."""
    held_out: Annotated[float, OpenFraction] = 0.2
    """Fraction of the originals whose distortions are held out."""

    def _rows(self) -> list[Rated]:
        return csiq(local_path("root", self.root))


@KINDS.register("live_iqa")
@dataclasses.dataclass(frozen=True)
class LiveIqa(_RatedFolder):
    """LIVE's image quality database, release 2: 29 photographs, five distortions."""

    root: str
    """The folder, with `dmos_realigned.mat`, `refnames_all.mat` and the folders jp2k, jpeg, wn, gblur and fastfading."""
    originals: bool = False
    """Also images of the lists that nothing happened to."""
    held_out: Annotated[float, OpenFraction] = 0.2
    """Fraction of the originals whose distortions are held out."""

    def _rows(self) -> list[Rated]:
        return live(local_path("root", self.root), originals=self.originals)
