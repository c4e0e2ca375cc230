"""Images with boxes around faces and other objects."""

import dataclasses
from typing import Annotated

from jaxface.checks import AtLeast
from jaxface.data.render.scenes import SceneSource, SceneVariation
from jaxface.data.sources.source import Source
from jaxface.data.specs.base import FIRST_HELD_OUT, FIRST_SIMULATED, KINDS, DataSpec, Split


@KINDS.register("scenes")
@dataclasses.dataclass(frozen=True)
class Scenes(DataSpec):
    """Scenes with several rendered faces on cluttered backgrounds, for detection; nothing to download."""

    scenes: Annotated[int, AtLeast(1)] = 4096
    """Scenes to train on."""
    held_out_scenes: Annotated[int, AtLeast(1)] = 256
    """Scenes to evaluate on: other people before other backgrounds, the same ones however many are trained on."""
    people: Annotated[int, AtLeast(1)] = 256
    """People in the scenes to train on."""
    held_out_people: Annotated[int, AtLeast(1)] = 64
    """People in the scenes to evaluate on."""
    per_person: Annotated[int, AtLeast(1)] = 2
    """Rendered images of each of them, which scenes change further."""
    variation: SceneVariation = dataclasses.field(default_factory=SceneVariation)
    """How many, small, hidden and cluttered the faces are."""

    @property
    def title(self) -> str:
        return f"scenes {self.scenes}"

    def _open(self, scenes: int, people: int, first: int, image_size: int, seed: int) -> SceneSource:
        return SceneSource(
            scenes, image_size, seed, self.variation,
            people=people, per_person=self.per_person, first_scene=first, first_identity=first,
        )  # fmt: skip

    def source(self, *, image_size: int, seed: int) -> SceneSource:
        return self._open(self.scenes, self.people, 0, image_size, seed)

    def evaluation_source(self, *, image_size: int, seed: int) -> SceneSource:
        return self._open(self.held_out_scenes, self.held_out_people, FIRST_HELD_OUT, image_size, seed)

    def divide(self, *, image_size: int, seed: int) -> Split:
        arguments = dict(image_size=image_size, seed=seed)
        return Split(self.source(**arguments), self.evaluation_source(**arguments), self.title, "detection")

    def simulated(self, count: int, *, image_size: int, seed: int) -> Source:
        return self._open(count, self.held_out_people, FIRST_SIMULATED, image_size, seed)
