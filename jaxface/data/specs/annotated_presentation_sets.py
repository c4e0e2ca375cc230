"""Live faces and attacks of one camera with semantic labels besides: rendered, digits that stand for them, and benchmarks.

Methods: dpm
"""

import dataclasses
import functools
from typing import Annotated

import numpy as np

from jaxface.checks import AtLeast, Fraction, Integers, OpenFraction, ProperFraction
from jaxface.data.render.presentation import SPOOFS
from jaxface.data.render.rendered import RenderedSource
from jaxface.data.render.sampling import ILLUMINATIONS
from jaxface.data.render.variation import Variation
from jaxface.data.sources import bundled, liveness_files
from jaxface.data.sources.images import Fit
from jaxface.data.sources.liveness_files import CapturedFaces
from jaxface.data.sources.semantics import WithSemantics, redraw_semantics
from jaxface.data.sources.source import Record, Source
from jaxface.data.specs.base import FIRST_HELD_OUT, KINDS, DataSpec, Split
from jaxface.data.specs.presentation_sets import FIRST_DEVELOPMENT
from jaxface.data.transforms.captures import BadCaptures, CaptureNoise
from jaxface.errors import UserError
from jaxface.paths import last_name, local_path

RENDERED_ATTRIBUTES = ("expressive", "dark skin", "turned", "nodding", "gray hair")
"""0/1 of a rendered face: an expression that is named; the darker half of the skin tones; 8 degrees from the front, sideways, or
5 up or down; hair above a gray of 0.15."""


class _RenderedFaces:
    """Rendered presentations of one camera: label and `spoof` are what is presented; `people` [N] int32."""

    class_names = SPOOFS

    def __init__(self, source: RenderedSource, depth: bool):
        self._source, self._depth = source, depth
        self.image_shape, self.people = source.image_shape, source.labels

    @functools.cached_property
    def labels(self) -> np.ndarray:
        return self._source.facts["spoof"]

    @functools.cached_property
    def semantics(self) -> dict[str, np.ndarray]:
        facts = self._source.facts
        pitch, yaw, _ = np.abs(np.rad2deg(facts["pose"])).T
        attributes = [facts["expression"] != 0, facts["group"] >= 3, yaw > 8, pitch > 5, facts["hair"] > 0.15]
        lamp = np.where(self.labels == 0, 0, 1 + facts["illumination"])
        return {
            "attributes": np.stack(attributes, 1).astype(np.int32),
            "spoof_type": self.labels,
            "illumination": lamp,
        }

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        shown = {"image": record["image"], "label": record["spoof"], "spoof": record["spoof"]}
        if self._depth:
            shown["depth"] = np.rint(255 * np.clip(record["depth"] / 132, 0, 1)).astype(np.uint8)
        return shown


@functools.lru_cache(maxsize=6)
def _rendered(
    people: int, each: int, image_size: int, seed: int, variation: Variation, first: int, depth: bool
):
    # A study opens the same people once per arm; they are rendered once.
    source = RenderedSource(people, each, image_size, seed, variation, first_identity=first, with_depth=depth)
    return _RenderedFaces(source, depth)


@KINDS.register("annotated_presentations")
@dataclasses.dataclass(frozen=True)
class AnnotatedPresentations(DataSpec):
    """Rendered live faces and attacks with spoof type, illumination and attributes, some of them wrong, and bad captures in the
    test; nothing to download."""

    identities: Annotated[int, AtLeast(1)] = 150
    """People to train on."""
    per_identity: Annotated[int, AtLeast(1)] = 4
    """Presentations of each of them."""
    development_identities: Annotated[int, AtLeast(1)] = 75
    """Other people, to take thresholds on and to fit the quality on."""
    held_out_identities: Annotated[int, AtLeast(1)] = 200
    """Yet others, to test."""
    spoof: Annotated[float, Fraction] = 0.6
    """Fraction of attacks; the four kinds are equally frequent."""
    semantic_noise: Annotated[float, ProperFraction] = 0.0
    """η, share of the semantic labels of the training that is drawn anew, uniformly."""
    labeled: Annotated[int | None, AtLeast(1)] = None
    """Training images of which it is said whether they are live; all by default."""
    captures: CaptureNoise = CaptureNoise(share=0.4)
    """Bad captures in the test."""
    depth: bool = False
    """Records have the depth of what was presented besides, for geometric heads."""

    @property
    def title(self) -> str:
        return f"annotated presentations {self.identities}x{self.per_identity}"

    def _open(self, people: int, first: int, image_size: int, seed: int) -> _RenderedFaces:
        variation = dataclasses.replace(Variation.spoofing(), spoof=self.spoof)
        return _rendered(people, self.per_identity, image_size, seed, variation, first, self.depth)

    def source(self, *, image_size: int, seed: int) -> Source:
        opened = self._open(self.identities, 0, image_size, seed)
        return _annotated(
            opened, opened.semantics, _rendered_names(), seed, self.semantic_noise, self.labeled
        )

    def divide(self, *, image_size: int, seed: int) -> Split:
        if self.held_out_identities > FIRST_DEVELOPMENT - FIRST_HELD_OUT:
            raise UserError(
                f"data.held_out_identities: needs at most {FIRST_DEVELOPMENT - FIRST_HELD_OUT} people, "
                f"got {self.held_out_identities}"
            )
        test = self._open(self.held_out_identities, FIRST_HELD_OUT, image_size, seed)
        development = self._open(self.development_identities, FIRST_DEVELOPMENT, image_size, seed)
        names = _rendered_names()
        return Split(
            self.source(image_size=image_size, seed=seed),
            BadCaptures(WithSemantics(test, names, test.semantics), self.captures, seed=seed),
            self.title,
            "spoofing",
            WithSemantics(development, names, development.semantics),
        )


def _rendered_names() -> dict[str, tuple[str, ...]]:
    return {
        "attributes": RENDERED_ATTRIBUTES,
        "spoof_type": SPOOFS,
        "illumination": ("live", *ILLUMINATIONS),
    }


def _annotated(source, values, names, seed, noise, labeled=None) -> WithSemantics:
    """Training records whose semantic labels are noisy, and of which some are known to be live or not."""
    known = None
    if labeled is not None:
        if labeled > len(source):
            raise UserError(f"data.labeled: needs at most the {len(source)} training images, got {labeled}")
        known = np.zeros(len(source), bool)
        known[np.random.default_rng([seed, 0x6B6E]).permutation(len(source))[:labeled]] = True
        if len(np.unique(source.labels[known] == 0)) < 2:
            raise UserError(
                f"data.labeled: needs live faces and attacks among {labeled} images, has one kind"
            )
    given = redraw_semantics(values, names, noise, seed=seed)
    return WithSemantics(source, names, given, true=values, known=known)


@KINDS.register("digit_presentations")
@dataclasses.dataclass(frozen=True)
class DigitPresentations(DataSpec):
    """scikit-learn's digits as presentations: 5 to 9 are live, 0 to 4 attacks; which digit it is, is the semantic label."""

    training: Annotated[int, Integers(20, 1400)] = 700
    """Digits to train on."""
    development: Annotated[int, Integers(20, 700)] = 300
    """Others, to take thresholds on and to fit the quality on; the rest is tested."""
    semantic_noise: Annotated[float, ProperFraction] = 0.0
    """η, share of the semantic labels of the training that is drawn anew among the ten digits."""
    labeled: Annotated[int | None, AtLeast(2)] = None
    """Training digits of which it is said whether they are live; all by default."""
    captures: CaptureNoise = CaptureNoise.mixed(0.4)
    """Bad captures in the test: noise mixed in."""

    @property
    def title(self) -> str:
        return f"digit presentations {self.training}"

    def source(self, *, image_size: int, seed: int) -> Source:
        return self.divide(image_size=image_size, seed=seed).train

    def divide(self, *, image_size: int, seed: int) -> Split:
        digits = bundled.digits()
        first, second = self.training, self.training + self.development
        if second > len(digits) - 100:
            raise UserError(
                f"data.training: needs at most {len(digits) - 100} digits with the development set, got {second}"
            )
        order = np.random.default_rng(seed).permutation(len(digits))
        parts = [self._part(digits, rows) for rows in np.split(order, [first, second])]
        names = {"digit": tuple(map(str, range(10)))}
        values = [{"digit": digits.labels[rows]} for rows in np.split(order, [first, second])]
        train = _annotated(parts[0], values[0], names, seed, self.semantic_noise, self.labeled)
        test = BadCaptures(WithSemantics(parts[2], names, values[2]), self.captures, seed=seed)
        return Split(train, test, self.title, "spoofing", WithSemantics(parts[1], names, values[1]))

    @staticmethod
    def _part(digits: bundled.ArraySource, rows: np.ndarray) -> bundled.ArraySource:
        images = np.stack([digits[int(i)]["image"] for i in rows])
        return bundled.ArraySource(images, (digits.labels[rows] < 5).astype(np.int32), ["live", "attack"])


class _CapturedFolder(DataSpec):
    """Captured faces from the files of a benchmark."""

    root: str
    fit: Fit

    @property
    def title(self) -> str:
        return f"{KINDS.name_of(type(self))} {last_name('root', self.root)}"

    def source(self, *, image_size: int, seed: int) -> Source:
        return self.divide(image_size=image_size, seed=seed).train

    def _open(self, faces, instruments, image_size: int) -> CapturedFaces:
        return CapturedFaces(faces, instruments, image_size=image_size, fit=self.fit)


@KINDS.register("celeba_spoof")
@dataclasses.dataclass(frozen=True)
class CelebaSpoof(_CapturedFolder):
    """CelebA-Spoof: ten spoof types, four illuminations and attributes of CelebA beside live or spoof; faces are cut out."""

    root: str
    """The folder, with `Data` and `metas`."""
    train: str = "metas/intra_test/train_label.json"
    """Labels to train on."""
    test: str = "metas/intra_test/test_label.json"
    """Labels to test."""
    development: Annotated[float, OpenFraction] = 0.2
    """Fraction of the training people set aside, to take thresholds on and to fit the quality on."""
    semantic_noise: Annotated[float, ProperFraction] = 0.0
    """η, share of the semantic labels of the training that is drawn anew, uniformly."""
    fit: Fit = "stretch"
    """How a rectangle becomes a square: stretch distorts, as released; pad repeats the border, crop keeps the middle."""

    def divide(self, *, image_size: int, seed: int) -> Split:
        root = local_path("root", self.root)
        names = {
            "attributes": liveness_files.CELEBA_ATTRIBUTES,
            "spoof_type": liveness_files.CELEBA_SPOOFS,
            "illumination": liveness_files.CELEBA_ILLUMINATIONS,
        }
        faces, values = liveness_files.celeba_spoof(root, self.train)
        tested, asked = liveness_files.celeba_spoof(root, self.test)
        aside = liveness_files.set_people_aside([face.person for face in faces], self.development, seed=seed)
        out = np.array([face.person in aside for face in faces])
        parts = []
        for rows in (np.flatnonzero(~out), np.flatnonzero(out)):
            opened = self._open([faces[i] for i in rows], liveness_files.CELEBA_SPOOFS, image_size)
            parts.append((opened, {name: column[rows] for name, column in values.items()}))
        test = self._open(tested, liveness_files.CELEBA_SPOOFS, image_size)
        return Split(
            _annotated(*parts[0], names, seed, self.semantic_noise),
            WithSemantics(test, names, asked),
            self.title,
            "spoofing",
            WithSemantics(parts[1][0], names, parts[1][1]),
        )


@KINDS.register("oulu_npu")
@dataclasses.dataclass(frozen=True)
class OuluNpu(_CapturedFolder):
    """OULU-NPU: six phones, three sessions, two printers and two displays; its four protocols."""

    root: str
    """The folder, with `Train_files`, `Dev_files` and `Test_files`, in each a folder of frames for every video."""
    protocol: Annotated[int, Integers(1, 4)] = 1
    """1: another session in the test; 2: another printer and display; 3: another phone; 4: all of these."""
    phone: Annotated[int, Integers(1, 6)] = 1
    """The phone that protocols 3 and 4 test."""
    frames: Annotated[int, AtLeast(1)] = 10
    """Frames of a video, spread evenly."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""

    def divide(self, *, image_size: int, seed: int) -> Split:
        root = local_path("root", self.root)
        train, development, test = (
            self._open(
                liveness_files.oulu_npu(root, part, self.protocol, self.phone, self.frames),
                liveness_files.OULU_INSTRUMENTS,
                image_size,
            )
            for part in liveness_files.OULU_PARTS
        )
        return Split(train, test, self.title, "spoofing", development)


@KINDS.register("siw")
@dataclasses.dataclass(frozen=True)
class Siw(_CapturedFolder):
    """SiW: prints and replays on four screens; its three protocols."""

    root: str
    """The folder, with `Train` and `Test`, in each live/<subject>/<video> and spoof/<subject>/<video>, folders of frames."""
    protocol: Annotated[int, Integers(1, 3)] = 1
    """1: trains on the first 60 frames of videos; 2: one screen left out; 3: prints or replays left out."""
    fold: Annotated[int, Integers(1, 4)] = 1
    """The screen that protocol 2 tests; in protocol 3 1 tests replays, 2 prints."""
    frames: Annotated[int, AtLeast(1)] = 10
    """Frames of a video, spread evenly."""
    development: Annotated[float, OpenFraction] = 0.2
    """Fraction of the training people set aside, to take thresholds on and to fit the quality on."""
    fit: Fit = "pad"
    """How a rectangle becomes a square: pad repeats the border, crop keeps the middle, stretch distorts."""

    def divide(self, *, image_size: int, seed: int) -> Split:
        root = local_path("root", self.root)
        trained, tested = (
            liveness_files.siw(root, test, self.protocol, self.fold, self.frames) for test in (False, True)
        )
        aside = liveness_files.set_people_aside(
            [face.person for face in trained], self.development, seed=seed
        )
        parts = ([f for f in trained if (f.person in aside) == out] for out in (False, True))
        train, development, test = (
            self._open(faces, liveness_files.SIW_INSTRUMENTS, image_size) for faces in (*parts, tested)
        )
        return Split(train, test, self.title, "spoofing", development)
