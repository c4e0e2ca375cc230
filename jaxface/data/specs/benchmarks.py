"""Sets that face recognition is compared on: IJB-B and IJB-C, MegaFace, SCface, TinyFace. Nothing is learned from them."""

import abc
import dataclasses
from typing import Annotated

from jaxface.checks import AtLeast
from jaxface.data.sources.ijb import TemplateSource
from jaxface.data.sources.images import Fit
from jaxface.data.sources.low_resolution_faces import ScfaceSource, TinyFaceSource
from jaxface.data.sources.megaface import MegaFaceSource
from jaxface.data.specs.base import KINDS, DataSpec, Split
from jaxface.errors import UserError
from jaxface.paths import last_name


class Benchmark(DataSpec, abc.ABC):
    """A set with a protocol of its own, which nobody trains on."""

    root: str

    @property
    def title(self) -> str:
        return f"{KINDS.name_of(type(self))} {last_name('root', self.root)}"

    def divide(self, *, image_size: int, seed: int) -> Split:
        raise UserError(
            f"data: needs people to learn from; got a benchmark, {self.root}: evaluate on it with jaxface evaluate"
        )


@KINDS.register("ijb")
@dataclasses.dataclass(frozen=True)
class Ijb(Benchmark):
    """IJB-B or IJB-C in InsightFace's layout: templates verified and, where its lists are there, identified."""

    root: str
    """The folder, with loose_crop/ and meta/."""

    def source(self, *, image_size: int, seed: int) -> TemplateSource:
        return TemplateSource(self.root, image_size=image_size)


@KINDS.register("megaface")
@dataclasses.dataclass(frozen=True)
class MegaFace(Benchmark):
    """MegaFace's challenge 1 in InsightFace's layout: FaceScrub's people among a million distractors."""

    root: str
    """The folder, with facescrub_lst, megaface_lst, both lists of wrong images, facescrub_images/ and megaface_images/."""
    refined: bool = True
    """Use the lists of wrong images; results with and without are some 15 points of rank-1 apart."""

    def source(self, *, image_size: int, seed: int) -> MegaFaceSource:
        return MegaFaceSource(self.root, image_size=image_size, refined=self.refined)


@KINDS.register("scface")
@dataclasses.dataclass(frozen=True)
class Scface(Benchmark):
    """SCface: what surveillance cameras saw at three distances, against one frontal photograph of each person."""

    root: str
    """The folder, with mugshot_frontal_cropped_all/ and surveillance_cameras_distance_1/ to 3/."""
    skip: Annotated[int, AtLeast(0)] = 50
    """Leave out the people with numbers up to this, whom others train on."""
    align: bool = False
    """Align faces by all.txt; otherwise images are taken as they are."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""

    def source(self, *, image_size: int, seed: int) -> ScfaceSource:
        return ScfaceSource(self.root, image_size=image_size, skip=self.skip, align=self.align, fit=self.fit)


@KINDS.register("tinyface")
@dataclasses.dataclass(frozen=True)
class TinyFace(Benchmark):
    """TinyFace's test: faces of about 20 pixels in a gallery with 150,000 distractors."""

    root: str
    """The folder, with Testing_Set/."""
    images: str | None = None
    """Folder with Gallery_Match/, Gallery_Distractor/ and Probe/ of an aligned copy; Testing_Set unless given."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""

    def source(self, *, image_size: int, seed: int) -> TinyFaceSource:
        return TinyFaceSource(self.root, image_size=image_size, images=self.images, fit=self.fit)
