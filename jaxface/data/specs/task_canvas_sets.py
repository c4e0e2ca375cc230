"""Canvases of a digit among squares, annotated for every task.

Methods: intern
"""

import dataclasses
from typing import Annotated

from jaxface.checks import AtLeast, Integers, NonNegative, Ordered
from jaxface.data.specs.base import FIRST_HELD_OUT, KINDS, Split
from jaxface.data.specs.labeled_images import LabeledImages
from jaxface.data.synthetic.task_canvas import TaskCanvasSource, TaskLabel, task_canvas


@KINDS.register("task_canvas")
@dataclasses.dataclass(frozen=True)
class TaskCanvas(LabeledImages):
    """A digit among squares on noise, with classes, boxes, pixels and depth; test canvases have other handwriting."""

    scenes: Annotated[int, AtLeast(1)] = 3000
    """Canvases to train on."""
    test_scenes: Annotated[int, AtLeast(1)] = 1000
    """Canvases to test."""
    digits: Annotated[tuple[int, int], Integers(0, 10), Ordered()] = (0, 5)
    """First digit that occurs, and the one behind the last."""
    squares: Annotated[tuple[int, int], AtLeast(0), Ordered()] = (0, 3)
    """Least and greatest number of squares."""
    background: Annotated[float, NonNegative] = 0.25
    """Standard deviation of the noise on the pixels, where white is 1."""
    label: TaskLabel = "digit"
    """What the label says: digit, or count of squares."""

    @property
    def title(self) -> str:
        return f"canvas {self.label}s {self.digits[0]}-{self.digits[1] - 1}"

    def _open(self, count: int, *, image_size: int, seed: int, first: int) -> TaskCanvasSource:
        return task_canvas(
            count,
            side=image_size,
            digits=self.digits,
            squares=self.squares,
            noise=self.background,
            label=self.label,
            unseen=first > 0,
            seed=seed,
            first=first,
        )

    def source(self, *, image_size: int, seed: int) -> TaskCanvasSource:
        return self._open(self.scenes, image_size=image_size, seed=seed, first=0)

    def evaluation_source(self, *, image_size: int, seed: int) -> TaskCanvasSource:
        """The canvases to test."""
        return self._open(self.test_scenes, image_size=image_size, seed=seed, first=FIRST_HELD_OUT)

    def _divide(self, *, image_size: int, seed: int) -> Split:
        opened = (part(image_size=image_size, seed=seed) for part in (self.source, self.evaluation_source))
        return Split(*opened, self.title, "classification")
