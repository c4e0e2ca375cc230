"""Images without classes: what a codec learns from.

Methods: edic
"""

import dataclasses
import functools
from typing import Annotated

import numpy as np

from jaxface.checks import AtLeast, NonNegative, OpenFraction
from jaxface.data.sources.patches import (
    BUNDLED,
    BUNDLED_HELD_OUT,
    bundled_photograph,
    folder_photographs,
    patches,
)
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import FIRST_HELD_OUT, KINDS, DataSpec, Split
from jaxface.data.synthetic.dead_leaves import dead_leaves, moving_leaves
from jaxface.errors import UserError

# A study opens the same images once per arm.
_drawn = functools.lru_cache(maxsize=8)(dead_leaves)
_moving = functools.lru_cache(maxsize=4)(moving_leaves)


@KINDS.register("dead_leaves")
@dataclasses.dataclass(frozen=True)
class DeadLeaves(DataSpec):
    """Overlapping discs of random sizes and colors; for claims about codecs, nothing to download."""

    images: Annotated[int, AtLeast(1)] = 1500
    """Images to train on."""
    held_out_images: Annotated[int, AtLeast(1)] = 200
    """Other images to evaluate on."""
    leaves: Annotated[int, AtLeast(1)] = 60
    """Discs of an image."""

    @property
    def title(self) -> str:
        return f"dead leaves {self.images}"

    def source(self, *, image_size: int, seed: int) -> Source:
        return _drawn(self.images, side=image_size, leaves=self.leaves, seed=seed)

    def evaluation_source(self, *, image_size: int, seed: int) -> Source:
        return _drawn(
            self.held_out_images, side=image_size, leaves=self.leaves, seed=seed, first=FIRST_HELD_OUT
        )

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(self.source(**arguments), self.evaluation_source(**arguments), self.title, "images")


@KINDS.register("moving_leaves")
@dataclasses.dataclass(frozen=True)
class MovingLeaves(DataSpec):
    """Clips of dead leaves that move, a background and discs over it; for claims about video codecs."""

    clips: Annotated[int, AtLeast(1)] = 400
    """Clips to train on."""
    held_out_clips: Annotated[int, AtLeast(1)] = 60
    """Other clips to evaluate on."""
    frames: Annotated[int, AtLeast(2)] = 3
    """Frames of a clip."""
    leaves: Annotated[int, AtLeast(1)] = 60
    """Discs of the background."""
    movers: Annotated[int, AtLeast(0)] = 4
    """Discs that move over it, each on its own."""
    speed: Annotated[float, NonNegative] = 3.0
    """The most, pixels a frame."""

    @property
    def title(self) -> str:
        return f"moving leaves {self.clips}"

    def _open(self, count: int, image_size: int, seed: int, first: int = 0) -> Source:
        return _moving(
            count, frames=self.frames, side=image_size, leaves=self.leaves, movers=self.movers, speed=self.speed,
            seed=seed, first=first,
        )  # fmt: skip

    def source(self, *, image_size: int, seed: int) -> Source:
        return self._open(self.clips, image_size, seed)

    def evaluation_source(self, *, image_size: int, seed: int) -> Source:
        return self._open(self.held_out_clips, image_size, seed, FIRST_HELD_OUT)

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(self.source(**arguments), self.evaluation_source(**arguments), self.title, "images")


@KINDS.register("patches")
@dataclasses.dataclass(frozen=True)
class Patches(DataSpec):
    """Patches of photographs: those that scikit-image and scikit-learn bring, or of a folder of images."""

    root: str | None = None
    """A folder of images of any size; the bundled photographs unless given."""
    per_photograph: Annotated[int, AtLeast(1)] = 400
    """The most patches of one photograph."""
    held_out: Annotated[float, OpenFraction] = 0.2
    """Fraction of a folder's photographs to evaluate on; of the bundled ones three are."""

    @property
    def title(self) -> str:
        return f"patches of {'bundled photographs' if self.root is None else self.root}"

    def photographs(self, *, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """({name: photograph} to learn from, and to evaluate on), whole.

        Raises:
          UserError: a folder with fewer than two images.
        """
        if self.root is None:
            return tuple(
                {name: bundled_photograph(name) for name in names} for names in (BUNDLED, BUNDLED_HELD_OUT)
            )
        pictures = folder_photographs(self.root)
        if len(pictures) < 2:
            raise UserError(f"root: needs at least two photographs, {self.root} has one")
        order = np.random.default_rng(seed).permutation(len(pictures))
        count = min(max(round(self.held_out * len(pictures)), 1), len(pictures) - 1)
        names = list(pictures)
        parts = (sorted(order[count:]), sorted(order[:count]))
        train, held_out = ({names[i]: pictures[names[i]] for i in part} for part in parts)
        return train, held_out

    def _cut(self, pictures: dict[str, np.ndarray], image_size: int, seed: int) -> Source:
        return patches(
            list(pictures.values()), side=image_size, per_photograph=self.per_photograph, seed=seed
        )

    def source(self, *, image_size: int, seed: int) -> Source:
        return self._cut(self.photographs(seed=seed)[0], image_size, seed)

    def evaluation_source(self, *, image_size: int, seed: int) -> Source:
        return self._cut(self.photographs(seed=seed)[1], image_size, seed)

    def divide(self, *, image_size: int, seed: int) -> Split:
        train, held_out = (self._cut(part, image_size, seed) for part in self.photographs(seed=seed))
        return Split(train, held_out, self.title, "images")
