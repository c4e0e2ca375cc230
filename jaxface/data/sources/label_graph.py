"""Sources of several tasks under one label system: GV-D of INTERN (arXiv:2111.08687).

Methods: intern
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np

from jaxface.checks import Positive, check_number
from jaxface.data.sources.source import Source
from jaxface.errors import UserError

TaskType = Literal["classification", "detection", "cells", "segmentation", "depth", "image_text"]
"""What the annotations of a source are for; cells say on a grid where objects have their centers."""
TASK_TYPES = ("classification", "detection", "cells", "segmentation", "depth", "image_text")
"""All of them."""


class LabelGraph:
    """Concepts and what each is a kind of; a concept may have several parents.

    Attributes:
      concepts: names, sorted.

    Raises:
      UserError: a concept that is its own ancestor, or one that is under two siblings, which exclude each other.

    Example:
      >>> graph = LabelGraph({"cat": ("animal",), "dog": ("animal",)})
      >>> graph.concepts, graph.ancestors("cat"), graph.siblings("cat")
      (('animal', 'cat', 'dog'), ('animal',), ('dog',))
    """

    def __init__(self, parents: Mapping[str, Sequence[str]]):
        self._parents = {name: tuple(dict.fromkeys(above)) for name, above in parents.items()}
        for above in list(self._parents.values()):
            for name in above:
                self._parents.setdefault(name, ())
        self.concepts = tuple(sorted(self._parents))
        self._index = {name: i for i, name in enumerate(self.concepts)}
        self._ancestors: dict[str, tuple[str, ...]] = {}
        for name in self.concepts:
            self._ancestors[name] = self._above(name)
        for name in self.concepts:
            above = set(self._ancestors[name])
            for one in sorted(above):
                if clash := sorted(above & set(self.siblings(one))):
                    raise UserError(
                        f"label_map: {name!r} is under {one!r} and {clash[0]!r}, which exclude each other as kinds of one concept"
                    )

    @classmethod
    def merged(cls, graphs: Mapping[str, Mapping[str, Sequence[str]]]) -> "LabelGraph":
        """One graph of those of several sources, name -> concept -> parents.

        Raises:
          UserError: graphs that contradict each other: together they make a concept its own ancestor, or put one under two that
            exclude each other; the sources are named.
        """
        parents: dict[str, list[str]] = {}
        for graph in graphs.values():
            for name, above in graph.items():
                parents.setdefault(name, []).extend(above)
        try:
            return cls(parents)
        except UserError as error:
            raise UserError(
                f"sources: the label graphs of {', '.join(graphs)} contradict each other; {error}"
            ) from None

    def _above(self, name: str) -> tuple[str, ...]:
        found: list[str] = []
        waiting = list(self._parents[name])
        while waiting:
            concept = waiting.pop(0)
            if concept == name:
                raise UserError(f"label_map: {name!r} is its own ancestor")
            if concept not in found:
                found.append(concept)
                waiting.extend(self._parents[concept])
        return tuple(sorted(found))

    def __len__(self) -> int:
        return len(self.concepts)

    def index(self, concept: str) -> int:
        """Its number; a UserError for one that is not in the graph."""
        if concept not in self._index:
            raise UserError(f"label_map: {concept!r} is no concept of the graph, which has {len(self)}")
        return self._index[concept]

    def ancestors(self, concept: str) -> tuple[str, ...]:
        """What it is a kind of, at any distance."""
        return self._ancestors[self.concepts[self.index(concept)]]

    def siblings(self, concept: str) -> tuple[str, ...]:
        """The other concepts under one of its parents."""
        above = set(self._parents[self.concepts[self.index(concept)]])
        return tuple(name for name in self.concepts if name != concept and above & set(self._parents[name]))


@dataclasses.dataclass(frozen=True)
class DataSource:
    """An entry of the registry: records, what they are annotated for, and what their classes mean.

    Attributes:
      name: of the source.
      source: its records.
      task_type: what its annotations are for.
      label_map: class of the source -> concept; its own names unless given.
      classes: names of the annotated classes, `source.class_names` unless given; of pixels the background first.
      parents: concept -> what it is a kind of, as this source has it.
      modality: of its images.
      weight: of its loss among those of all sources, > 0.
    """

    name: str
    source: Source
    task_type: TaskType
    label_map: Mapping[str, str] = dataclasses.field(default_factory=dict)
    parents: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] = ()
    modality: str = "image"
    weight: Annotated[float, Positive] = 1.0

    def __post_init__(self):
        check_number("weight", self.weight, Positive)
        if self.task_type not in TASK_TYPES:
            raise UserError(f"task_type: needs one of {', '.join(TASK_TYPES)}, got {self.task_type!r}")
        if unknown := sorted(set(self.label_map) - set(self.class_names)):
            raise UserError(f"label_map: {self.name} has no class {unknown[0]!r}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the annotated classes."""
        return self.classes or tuple(map(str, self.source.class_names))

    @property
    def concepts(self) -> tuple[str, ...]:
        """The concept of every class, in the order of `class_names`."""
        return tuple(self.label_map.get(name, name) for name in self.class_names)

    @property
    def graph(self) -> dict[str, tuple[str, ...]]:
        """Concept -> parents: its classes and what they are kinds of."""
        return {name: () for name in self.concepts} | {k: tuple(v) for k, v in self.parents.items()}


def label_graph(sources: Sequence[DataSource]) -> LabelGraph:
    """The graph of several sources together.

    Raises:
      UserError: two sources of one name, or graphs that contradict each other.
    """
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UserError(f"sources: needs another name for each, got {', '.join(names)}")
    return LabelGraph.merged({source.name: source.graph for source in sources})


def unify_labels(graph: LabelGraph, source: DataSource, y: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a class of a source says of every concept.

    The class and its ancestors are positive, its siblings are negative unless they are among those, and nothing is known of the
    rest.

    Args:
      graph: with all concepts of the source.
      source: whose class it is.
      y: [...] integers, numbers of classes.

    Returns:
      (target [..., K] float32 in {0, 1}, mask [..., K] float32, 1 where the concept is known).

    Example:
      >>> from jaxface.data.sources.bundled import ArraySource
      >>> images = ArraySource(np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, int), ["cat"])
      >>> source = DataSource("pets", images, "classification", parents={"cat": ("animal",), "dog": ("animal",), "car": ()})
      >>> [values.tolist() for values in unify_labels(LabelGraph(source.graph), source, 0)]
      [[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 1.0]]
    """
    table = np.zeros((2, len(source.concepts), len(graph)), np.float32)
    for row, concept in enumerate(source.concepts):
        positive = [graph.index(name) for name in (concept, *graph.ancestors(concept))]
        table[1, row, [graph.index(name) for name in graph.siblings(concept)]] = 1
        table[:, row, positive] = 1
    return table[0][y], table[1][y]
