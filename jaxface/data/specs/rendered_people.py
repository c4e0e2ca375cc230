"""Rendered faces of people who do not exist."""

import dataclasses
import functools
from typing import Annotated

from jaxface.checks import AtLeast, Integers, check_number
from jaxface.data.render.rendered import RenderedSource
from jaxface.data.render.variation import Variation
from jaxface.data.sources.depth import Modality, of_modality
from jaxface.data.sources.groups import JoinedGroups
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import FIRST_HELD_OUT, FIRST_SIMULATED, KINDS, DataSpec, Split
from jaxface.errors import UserError

# A study opens the same people once per arm; they are rendered once.
_rendered = functools.lru_cache(maxsize=8)(RenderedSource)


@KINDS.register("rendered")
@dataclasses.dataclass(frozen=True)
class RenderedFaces(DataSpec):
    """Faces of synthetic people from the renderer; nothing to download."""

    identities: Annotated[int, AtLeast(2)] = 512
    """People to train on."""
    per_identity: Annotated[int, AtLeast(1)] = 16
    """Images of each of them."""
    held_out_identities: Annotated[int, AtLeast(2)] = 100
    """People to evaluate on; never among those to train on, and the same ones however many those are."""
    held_out_per_identity: Annotated[int, AtLeast(2)] = 8
    """Images of each of these."""
    variation: Variation = dataclasses.field(default_factory=Variation)
    """How much the images of one person differ."""
    modality: Modality = "rgb"
    """What an image is: the photograph, its depth map as gray levels around the nose tip, or one with the other as `depth`."""
    first_identity: Annotated[int, AtLeast(0)] = 0
    """Number of the first person to train on; data sets whose ranges do not overlap share nobody."""

    @property
    def title(self) -> str:
        kind = "" if self.modality == "rgb" else f"{self.modality} "
        return f"rendered {kind}{self.identities}x{self.per_identity}"

    def _open(self, *arguments, first: int) -> Source:
        if self.modality == "rgb":
            return _rendered(*arguments, first_identity=first)
        return of_modality(_rendered(*arguments, first_identity=first, with_depth=True), self.modality)

    def source(self, *, image_size: int, seed: int) -> Source:
        check_number("identities", self.identities, Integers(2, FIRST_HELD_OUT - self.first_identity))
        return self._open(
            self.identities, self.per_identity, image_size, seed, self.variation, first=self.first_identity
        )

    def evaluation_source(self, *, image_size: int, seed: int) -> Source:
        """The people to evaluate on."""
        return self._open(
            self.held_out_identities,
            self.held_out_per_identity,
            image_size,
            seed,
            self.variation,
            first=FIRST_HELD_OUT,
        )

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(
            self.source(**arguments), self.evaluation_source(**arguments), self.title, "verification"
        )

    def simulated(self, count: int, *, image_size: int, seed: int) -> Source | None:
        """Photographs; None for another modality."""
        if self.modality != "rgb":
            return None
        return self._open(count, 1, image_size, seed, self.variation, first=FIRST_SIMULATED)


@KINDS.register("toned")
@dataclasses.dataclass(frozen=True)
class TonedFaces(DataSpec):
    """Rendered faces in groups by skin tone, of which some have fewer people to train on."""

    lightest: tuple[float, ...] = (0.0, 0.8)
    """Lightest skin tone of each group, in [0, 1]; 1 is the darkest of all."""
    darkest: tuple[float, ...] = (0.2, 1.0)
    """Darkest skin tone of each group."""
    identities: tuple[int, ...] = (90, 45)
    """People of each group to train on."""
    per_identity: Annotated[int, AtLeast(1)] = 16
    """Images of each of them."""
    held_out_identities: Annotated[int, AtLeast(2)] = 60
    """People of each group to evaluate on; the same ones however many are trained on."""
    held_out_per_identity: Annotated[int, AtLeast(2)] = 8
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
        # Each group draws from its own numbers: the same number under another tone would be the same head.
        return JoinedGroups(
            {
                f"tone-{low:g}-{high:g}": _rendered(
                    number, each, image_size, seed, self.variation,
                    first_identity=first + 2 * FIRST_HELD_OUT * group, tone=(low, high),
                )
                for group, ((low, high), number) in enumerate(zip(tones, numbers, strict=True))
            }
        )  # fmt: skip

    def source(self, *, image_size: int, seed: int) -> Source:
        return self._joined(self.identities, self.per_identity, 0, image_size, seed)

    def divide(self, *, image_size: int, seed: int) -> Split:
        unseen = self._joined(
            (self.held_out_identities,) * len(self.identities),
            self.held_out_per_identity,
            FIRST_HELD_OUT,
            image_size,
            seed,
        )
        return Split(self.source(image_size=image_size, seed=seed), unseen, self.title, "verification")

    def simulated(self, count: int, *, image_size: int, seed: int) -> Source:
        """As many of each group, `count` or a few more in all."""
        groups = len(self.identities)
        return self._joined((-(-count // groups),) * groups, 1, FIRST_SIMULATED, image_size, seed)
