"""Scenes of digits or shapes, for detectors.

Methods: rm_pfi, pseco, qdetr, intern
"""

import dataclasses
import functools
from typing import Annotated

from jaxface.checks import AtLeast, NonNegative, Ordered
from jaxface.data.specs.base import FIRST_HELD_OUT, FIRST_SIMULATED, KINDS, DataSpec, Split
from jaxface.data.synthetic.object_scenes import ObjectSceneSource, Things, object_scenes

# A study opens the same scenes once per arm; they are drawn once.
_drawn = functools.lru_cache(maxsize=8)(object_scenes)


@KINDS.register("object_scenes")
@dataclasses.dataclass(frozen=True)
class ObjectScenes(DataSpec):
    """Small gray scenes of digits or shapes with exact boxes, for detection; nothing to download."""

    scenes: Annotated[int, AtLeast(1)] = 2000
    """Scenes to train on."""
    held_out_scenes: Annotated[int, AtLeast(1)] = 400
    """Scenes to evaluate on: other digits, the same scenes however many are trained on."""
    things: Things = "digit"
    """What lies in them: digit (one class), digits (ten classes), or shapes (rectangle, disc, cross)."""
    objects: Annotated[tuple[int, int], AtLeast(0), Ordered()] = (1, 2)
    """Least and greatest number of objects in a scene."""
    sizes: Annotated[tuple[int, int], AtLeast(6), Ordered()] = (10, 18)
    """Least and greatest side of an object, pixels."""
    noise: Annotated[float, NonNegative] = 0.2
    """Standard deviation of the noise, where white is 1 and black 0."""

    @property
    def title(self) -> str:
        return f"{self.things} scenes {self.scenes}"

    def _open(self, count: int, image_size: int, seed: int, first: int = 0) -> ObjectSceneSource:
        return _drawn(
            count, things=self.things, side=image_size, objects=self.objects, sizes=self.sizes, noise=self.noise,
            unseen=first > 0, seed=seed, first=first,
        )  # fmt: skip

    def source(self, *, image_size: int, seed: int) -> ObjectSceneSource:
        return self._open(self.scenes, image_size, seed)

    def evaluation_source(self, *, image_size: int, seed: int) -> ObjectSceneSource:
        return self._open(self.held_out_scenes, image_size, seed, FIRST_HELD_OUT)

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(self.source(**arguments), self.evaluation_source(**arguments), self.title, "detection")

    def simulated(self, count: int, *, image_size: int, seed: int) -> ObjectSceneSource:
        return self._open(count, image_size, seed, FIRST_SIMULATED)
