"""Images with captions.

Methods: intern
"""

import dataclasses
import functools
from typing import Annotated

from jaxface.checks import (
    AtLeast,
    Fraction,
    Integers,
    NonNegative,
    OpenFraction,
    Ordered,
    Range,
    check_number,
)
from jaxface.data.render.face_captions import CAPTIONED, CaptionedSource
from jaxface.data.render.variation import Variation
from jaxface.data.sources.captioned_files import CaptionedFiles, captioned_files
from jaxface.data.sources.images import Fit
from jaxface.data.specs.base import FIRST_HELD_OUT, KINDS, DataSpec, Split
from jaxface.data.synthetic.captioned_canvas import CaptionedCanvasSource
from jaxface.data.synthetic.task_canvas import task_canvas
from jaxface.paths import local_path, name_text

_captioned = functools.lru_cache(maxsize=8)(CaptionedSource)  # a study opens the same ones once per arm


@KINDS.register("captioned_faces")
@dataclasses.dataclass(frozen=True)
class CaptionedFaces(DataSpec):
    """Rendered people with captions that tell who it is, the pose, the expression and what the person looks like."""

    identities: Annotated[int, AtLeast(2)] = 512
    """People to train on."""
    per_identity: Annotated[int, AtLeast(1)] = 7
    """Images of each of them; the k-th shows expression k mod 7."""
    held_out_identities: Annotated[int, AtLeast(2)] = 100
    """People to evaluate on; never among those to train on."""
    held_out_per_identity: Annotated[int, AtLeast(1)] = 7
    """Images of each of these."""
    first_identity: Annotated[int, AtLeast(0)] = 0
    """Number of the first person to train on; data sets whose ranges do not overlap share nobody."""
    mentioned: Annotated[float, Fraction] = 0.9
    """Probability that a caption mentions an attribute."""
    strengths: Annotated[tuple[float, float], Range(0.4, 1.5), Ordered()] = (0.7, 1.3)
    """Least and greatest strength of the expression that is shown."""
    variation: Variation = CAPTIONED
    """How people and images differ."""

    @property
    def title(self) -> str:
        return f"captioned {self.identities}x{self.per_identity}"

    def _open(self, identities: int, each: int, image_size: int, seed: int, first: int) -> CaptionedSource:
        return _captioned(
            identities,
            each,
            image_size,
            seed,
            self.variation,
            mentioned=self.mentioned,
            strengths=self.strengths,
            first_identity=first,
        )

    def source(self, *, image_size: int, seed: int) -> CaptionedSource:
        check_number("identities", self.identities, Integers(2, FIRST_HELD_OUT - self.first_identity))
        return self._open(self.identities, self.per_identity, image_size, seed, self.first_identity)

    def evaluation_source(self, *, image_size: int, seed: int) -> CaptionedSource:
        """The people to evaluate on."""
        return self._open(
            self.held_out_identities, self.held_out_per_identity, image_size, seed, FIRST_HELD_OUT
        )

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(
            self.source(**arguments), self.evaluation_source(**arguments), self.title, "verification"
        )


@KINDS.register("captioned_canvas")
@dataclasses.dataclass(frozen=True)
class CaptionedCanvas(DataSpec):
    """A digit among squares, with captions that tell which, how many squares and where; test canvases have other handwriting."""

    scenes: Annotated[int, AtLeast(1)] = 2000
    """Canvases to train on."""
    test_scenes: Annotated[int, AtLeast(1)] = 500
    """Canvases to test."""
    digits: Annotated[tuple[int, int], Integers(0, 10), Ordered()] = (0, 5)
    """First digit that occurs, and the one behind the last."""
    squares: Annotated[tuple[int, int], AtLeast(0), Ordered()] = (0, 3)
    """Least and greatest number of squares, 9 at most."""
    background: Annotated[float, NonNegative] = 0.25
    """Standard deviation of the noise on the pixels, where white is 1."""

    @property
    def title(self) -> str:
        return f"captioned canvas {self.digits[0]}-{self.digits[1] - 1}"

    def _open(self, count: int, image_size: int, seed: int, first: int) -> CaptionedCanvasSource:
        check_number("squares", self.squares[1], Integers(0, 9))
        canvases = task_canvas(
            count,
            side=image_size,
            digits=self.digits,
            squares=self.squares,
            noise=self.background,
            unseen=first > 0,
            seed=seed,
            first=first,
        )
        return CaptionedCanvasSource(canvases, seed=seed, first=first)

    def source(self, *, image_size: int, seed: int) -> CaptionedCanvasSource:
        return self._open(self.scenes, image_size, seed, 0)

    def evaluation_source(self, *, image_size: int, seed: int) -> CaptionedCanvasSource:
        """The canvases to test."""
        return self._open(self.test_scenes, image_size, seed, FIRST_HELD_OUT)

    def divide(self, *, image_size: int, seed: int) -> Split:
        opened = (part(image_size=image_size, seed=seed) for part in (self.source, self.evaluation_source))
        return Split(*opened, self.title, "classification")


@KINDS.register("captioned_files")
@dataclasses.dataclass(frozen=True)
class CaptionedPhotographs(DataSpec):
    """Photographs with captions from files: a table of "path<TAB>caption" lines, such as Conceptual Captions."""

    root: str
    """The folder that paths start from."""
    table: str = "captions.tsv"
    """The table in it, UTF-8."""
    held_out: Annotated[float, OpenFraction] = 0.01
    """Share of the photographs that captions are looked for in and not learned from, in (0, 1)."""
    fit: Fit = "crop"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""

    @property
    def title(self) -> str:
        return f"captions {name_text(local_path('root', self.root).resolve().name)}"

    def _parts(self, image_size: int, seed: int) -> tuple[CaptionedFiles, CaptionedFiles]:
        return captioned_files(
            self.root, self.table, held_out=self.held_out, image_size=image_size, seed=seed, fit=self.fit
        )

    def source(self, *, image_size: int, seed: int) -> CaptionedFiles:
        return self._parts(image_size, seed)[0]

    def evaluation_source(self, *, image_size: int, seed: int) -> CaptionedFiles:
        """The photographs that are held out."""
        return self._parts(image_size, seed)[1]

    def divide(self, *, image_size: int, seed: int) -> Split:
        return Split(*self._parts(image_size, seed), self.title, "classification")
