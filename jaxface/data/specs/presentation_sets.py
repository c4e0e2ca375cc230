"""Live faces and presentation attacks, as color, depth and infrared: rendered, or from the files of benchmarks.

Methods: fmvit
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from jaxface.checks import AtLeast, Fraction, check_number
from jaxface.data.render.presentation import SPOOFS
from jaxface.data.render.rendered import RenderedSource
from jaxface.data.render.variation import Variation
from jaxface.data.sources.images import Fit
from jaxface.data.sources.presentations import (
    CEFA_INSTRUMENTS,
    Presentation,
    PresentationFiles,
    RenderedPresentations,
    casia_surf,
    cefa,
    presentation_table,
    without,
)
from jaxface.data.sources.source import Source, Subset
from jaxface.data.specs.base import FIRST_HELD_OUT, FIRST_SIMULATED, KINDS, DataSpec, Split
from jaxface.errors import UserError
from jaxface.paths import last_name, local_path

FIRST_DEVELOPMENT = FIRST_HELD_OUT + (1 << 18)
"""Number of the first person of a development set, who is neither trained on nor tested."""


@functools.lru_cache(maxsize=6)
def _rendered(people: int, each: int, image_size: int, seed: int, variation: Variation, first: int):
    # A study opens the same people once per arm; they are rendered once.
    source = RenderedSource(
        people,
        each,
        image_size,
        seed,
        variation,
        first_identity=first,
        with_depth=True,
        with_infrared=True,
    )
    return RenderedPresentations(source)


def _check_unseen(unseen: str | None, instruments: Sequence[str]) -> None:
    if unseen is not None and unseen not in instruments[1:]:
        raise UserError(f"data.unseen: needs an attack among {', '.join(instruments[1:])}, got {unseen!r}")


def _is_other_attack(unseen: str | None):
    """What a test of an attack that was left out leaves out: every other attack."""
    return lambda instrument: unseen is not None and instrument not in ("live", unseen)


@KINDS.register("presentations")
@dataclasses.dataclass(frozen=True)
class Presentations(DataSpec):
    """Rendered live faces, prints, replays, masks and cut-outs with depth and infrared; nothing to download."""

    identities: Annotated[int, AtLeast(1)] = 200
    """People to train on."""
    per_identity: Annotated[int, AtLeast(1)] = 4
    """Presentations of each of them."""
    development_identities: Annotated[int, AtLeast(1)] = 75
    """Other people, to take thresholds on."""
    held_out_identities: Annotated[int, AtLeast(1)] = 200
    """Yet others, to test."""
    unseen: str | None = None
    """An attack left out of training and development; the test then has live faces and that attack alone."""
    spoof: Annotated[float, Fraction] = 0.6
    """Fraction of attacks; the four kinds are equally frequent."""

    @property
    def title(self) -> str:
        without = "" if self.unseen is None else f" without {self.unseen}"
        return f"presentations {self.identities}x{self.per_identity}{without}"

    def _open(self, people: int, first: int, image_size: int, seed: int) -> Source:
        variation = dataclasses.replace(Variation.spoofing(), spoof=self.spoof)
        return _rendered(people, self.per_identity, image_size, seed, variation, first)

    def source(self, *, image_size: int, seed: int) -> Source:
        check_number("data.identities", self.identities, AtLeast(1))
        return self._seen(self._open(self.identities, 0, image_size, seed))

    def _seen(self, source: Source) -> Source:
        _check_unseen(self.unseen, SPOOFS)
        if self.unseen is None:
            return source
        return Subset(source, np.flatnonzero(source.labels != SPOOFS.index(self.unseen)))

    def divide(self, *, image_size: int, seed: int) -> Split:
        _check_unseen(self.unseen, SPOOFS)
        for people, room in ((self.held_out_identities, FIRST_DEVELOPMENT - FIRST_HELD_OUT),
                             (self.development_identities, FIRST_SIMULATED - FIRST_DEVELOPMENT)):  # fmt: skip
            if people > room:
                raise UserError(f"data.held_out_identities: needs at most {room} people, got {people}")
        test = self._open(self.held_out_identities, FIRST_HELD_OUT, image_size, seed)
        if self.unseen is not None:
            test = Subset(test, np.flatnonzero(np.isin(test.labels, (0, SPOOFS.index(self.unseen)))))
        development = self._open(self.development_identities, FIRST_DEVELOPMENT, image_size, seed)
        return Split(
            self.source(image_size=image_size, seed=seed),
            test,
            self.title,
            "spoofing",
            self._seen(development),
        )


class _PresentationFolder(DataSpec):
    """Presentations from files in parts for training, development and test."""

    root: str
    fit: Fit
    unseen: str | None

    @abc.abstractmethod
    def _parts(self) -> tuple[list[Presentation], list[Presentation], list[Presentation], Sequence[str]]:
        """Training, development and test, and the names of the instruments."""

    @property
    def title(self) -> str:
        return f"{KINDS.name_of(type(self))} {last_name('root', self.root)}"

    def source(self, *, image_size: int, seed: int) -> Source:
        return self.divide(image_size=image_size, seed=seed).train

    def divide(self, *, image_size: int, seed: int) -> Split:
        train, development, test, instruments = self._parts()
        _check_unseen(self.unseen, instruments)
        seen = [without(rows, lambda name: name == self.unseen) for rows in (train, development)]
        rest = without(test, _is_other_attack(self.unseen))
        first, second, third = (
            PresentationFiles(rows, instruments, image_size=image_size, fit=self.fit)
            for rows in (*seen, rest)
        )
        return Split(first, third, self.title, "spoofing", second)


@KINDS.register("casia_surf")
@dataclasses.dataclass(frozen=True)
class CasiaSurf(_PresentationFolder):
    """CASIA-SURF: photographs of people, some with parts cut out, against live faces; color, depth and infrared."""

    root: str
    """The folder, with the lists and the images that they name."""
    train: str = "train_list.txt"
    """List to train on: color, depth, infrared, and 1 for live or 0, on each line."""
    development: str = "val_private_list.txt"
    """List to take thresholds on."""
    test: str = "test_private_list.txt"
    """List to test."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""
    unseen: str | None = None
    """Nothing here: its lists do not tell attacks apart."""

    def _parts(self):
        root = local_path("root", self.root)
        parts = [casia_surf(root, name) for name in (self.train, self.development, self.test)]
        return *parts, ("live", "attack")


@KINDS.register("cefa")
@dataclasses.dataclass(frozen=True)
class Cefa(_PresentationFolder):
    """CASIA-SURF CeFA: people of three ethnicities, prints and screens; across ethnicities and instruments by its protocols."""

    root: str
    """The folder, with the lists and what they name."""
    protocol: str = "4@1"
    """Its lists begin with it: 4@1_train.txt, 4@1_dev_ref.txt, 4@1_test_res.txt."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""
    unseen: str | None = None
    """An attack left out of training and development besides, and alone in the test."""

    def _parts(self):
        root = local_path("root", self.root)
        parts = [cefa(root, f"{self.protocol}_{part}.txt") for part in ("train", "dev_ref", "test_res")]
        return *parts, (*CEFA_INSTRUMENTS, "attack")


@KINDS.register("presentation_table")
@dataclasses.dataclass(frozen=True)
class PresentationTable(_PresentationFolder):
    """Presentations listed in a table, such as frames of WMCA; its leave-one-out protocols by `unseen`."""

    root: str
    """The folder, with the table and the images that it names."""
    table: str = "presentations.csv"
    """The table: columns color, depth, infrared (paths), group (train, dev, eval), instrument (live, or an attack) and video."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""
    unseen: str | None = None
    """An attack left out of training and development; the test then has live faces and that attack alone."""

    def _parts(self):
        groups = presentation_table(local_path("root", self.root), self.table)
        attacks = sorted({row.instrument for rows in groups.values() for row in rows} - {"live"})
        return groups["train"], groups["dev"], groups["eval"], ("live", *attacks)
