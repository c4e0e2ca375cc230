"""What experiments on general backbones share: sources of several tasks, heads on any backbone, and the tasks to measure on.

Methods: intern
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated

import jax

from jaxface import data as inputs
from jaxface.checks import AtLeast, Positive
from jaxface.data.sources.label_graph import DataSource, LabelGraph, label_graph
from jaxface.data.sources.source import Source
from jaxface.data.synthetic.task_canvas import OBJECT_NAMES
from jaxface.errors import UserError
from jaxface.models.detection import RetinaNet
from jaxface.models.task_heads import BoxHead, CellHead, ClassHead, DepthHead, PixelHead, TaskHead
from jaxface.training.general_vision import GvbTask

TASKS = ("classification", "detection", "cells", "segmentation", "depth")
"""What a source may be annotated for here."""
STAND_INS = ("digits", "squares", "shapes", "pedestrians", "pixels", "depth")
"""Names of the tasks that need no download, at least one for each kind of GV-B."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """A source of a task, and what its classes mean among those of the others."""

    name: str
    """Of the source, of letters, digits and underscores."""
    data: inputs.DataSpec
    """Its records; the part to train on, and the other to evaluate on."""
    task: str = "classification"
    """classification, detection, cells, segmentation or depth."""
    classes: tuple[str, ...] = ()
    """Names of the annotated classes, of pixels the background first; those of the data unless given."""
    label_map: tuple[tuple[str, str], ...] = ()
    """Pairs of a class and its concept, where they have other names."""
    parents: tuple[tuple[str, str], ...] = ()
    """Pairs of a concept and what it is a kind of."""
    weight: Annotated[float, Positive] = 1.0
    """Of its loss."""

    def open(self, *, image_size: int, seed: int) -> tuple[DataSource, Source]:
        """(the registered source, held-out records).

        Raises:
          UserError: data or names that cannot be used.
        """
        if self.task not in TASKS:
            raise UserError(f"sources: {self.name} needs a task of {', '.join(TASKS)}, got {self.task!r}")
        split = inputs.load(self.data, image_size=image_size, seed=seed)
        parents: dict[str, tuple[str, ...]] = {}
        for concept, above in self.parents:
            parents[concept] = (*parents.get(concept, ()), above)
        entry = DataSource(
            self.name, split.train, self.task, dict(self.label_map), parents, self.classes, weight=self.weight
        )
        return entry, split.held_out


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """Heads of the dense tasks, whatever the backbone."""

    anchors: Annotated[tuple[float, ...], Positive] = (1.0, 1.5, 2.5, 3.5)
    """Sides of square anchors, in strides of 4 pixels."""
    features: Annotated[int, AtLeast(4)] = 32
    """Channels of pyramids and of heads for pixels."""


def make_head(task: str, classes: int, strides: Sequence[int], spec: HeadSpec = HeadSpec()) -> TaskHead:
    """The head of a task for a backbone whose maps have these strides.

    Boxes: RetinaNet's on the map of stride 4 alone where the coarsest is not coarser, on a feature pyramid otherwise.
    """
    strides = tuple(strides)
    if task == "classification":
        return ClassHead(classes)
    if task == "cells":
        return CellHead()
    if task == "segmentation":
        return PixelHead(classes, spec.features, auxiliary=0)
    if task == "depth":
        return DepthHead(spec.features)
    levels = tuple(sorted({stride for stride in strides if stride >= 4}))
    pyramid = len(levels) > 1
    detector = RetinaNet.small(
        num_classes=classes,
        strides=levels,
        scales=spec.anchors if not pyramid else tuple(anchor for anchor in spec.anchors[:2]),
        features=spec.features if pyramid else None,
        widths=(8,) * len(_steps(levels)),
        steps=_steps(levels),
        head_convs=1 if pyramid else 0,
        head_kernel=3 if pyramid else 1,
    )
    return BoxHead(detector, strides)


def _steps(levels: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of convolutions of a plain trunk that has these levels."""
    return (2,) * (levels[-1].bit_length() - 1)


def open_sources(
    specs: Sequence[SourceSpec], *, image_size: int, seed: int
) -> tuple[list[DataSource], dict[str, Source], LabelGraph]:
    """(sources, held-out records by name, their common label graph).

    Raises:
      UserError: no source, two of one name, or label graphs that contradict each other.
    """
    if not specs:
        raise UserError("sources: needs at least one, got none")
    opened = {spec.name: spec.open(image_size=image_size, seed=seed) for spec in specs}
    entries = [entry for entry, _ in opened.values()]
    if len(entries) < len(specs):
        raise UserError("sources: needs another name for each")
    graph = label_graph([entry for entry in entries if entry.task_type == "classification"] or entries)
    return entries, {name: held_out for name, (_, held_out) in opened.items()}, graph


def stand_in_tasks(
    names: Sequence[str],
    *,
    image_size: int = 24,
    seed: int = 0,
    scenes: int = 2000,
    head: HeadSpec = HeadSpec(),
) -> list[GvbTask]:
    """Tasks of every kind of GV-B on images that are drawn here, of classes that no expert has seen.

        digits       classes      digits 5 to 9 among squares; accuracy
        squares      classes      how many squares there are; mean accuracy of the classes
        shapes       detection    rectangles, discs and crosses; AP50
        pedestrians  detection    digits of one class; log-average miss rate
        pixels       segmentation digit, square, nothing; mean IoU
        depth        depth        of every pixel; RMSE

    Args:
      names: of the tasks. image_size: side of the images, pixels. seed: of the images.
      scenes: to train on, of which a share counts.

    Raises:
      UserError: an unknown name.
    """
    if unknown := sorted(set(names) - set(STAND_INS)):
        raise UserError(f"tasks: needs some of {', '.join(STAND_INS)}, got {unknown[0]!r}")

    def canvas(**fields) -> tuple[Source, Source]:
        spec = inputs.TaskCanvas(scenes=scenes, test_scenes=scenes // 2, digits=(5, 10), **fields)
        split = inputs.load(spec, image_size=image_size, seed=seed)
        return split.train, split.held_out

    def drawn(things: str) -> tuple[Source, Source]:
        spec = inputs.ObjectScenes(
            scenes=scenes, held_out_scenes=scenes // 5, things=things, sizes=(6, 14), noise=0.25
        )
        split = inputs.load(spec, image_size=image_size, seed=seed)
        return split.train, split.held_out

    def dense(task: str, classes: int) -> Callable[[tuple[int, ...]], TaskHead]:
        return lambda strides: make_head(task, classes, strides, head)

    made = {
        "digits": lambda: ("classification", "accuracy", *canvas(), 5, None),
        "squares": lambda: ("classification", "mean_class_accuracy", *canvas(label="count"), 4, None),
        "shapes": lambda: ("detection", "ap50", *drawn("shapes"), 3, dense("detection", 3)),
        "pedestrians": lambda: ("detection", "miss_rate", *drawn("digit"), 1, dense("detection", 1)),
        "pixels": lambda: (
            "segmentation",
            "miou",
            *canvas(),
            1 + len(OBJECT_NAMES),
            dense("segmentation", 3),
        ),
        "depth": lambda: ("depth", "rmse", *canvas(), 0, dense("depth", 1)),
    }
    return [GvbTask(name, *made[name]()) for name in names]


def fresh_key(seed: int, name: str) -> jax.Array:
    """A key for what has a name."""
    return jax.random.fold_in(
        jax.random.key(seed), sum(ord(c) * 131**i for i, c in enumerate(name)) % (1 << 31)
    )
