"""Several sources in one stream, a small one more often than its share.

Methods: intern
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxface.checks import Fraction, check_number
from jaxface.data.pipeline.samplers import Order
from jaxface.data.sources.label_graph import DataSource, LabelGraph, label_graph
from jaxface.data.sources.source import Record
from jaxface.errors import UserError


class JoinedSources:
    """Records of several sources, one after the other; labels are those of the concepts, `origin` says which source."""

    def __init__(self, sources: Sequence[DataSource], graph: LabelGraph):
        shapes = {source.source.image_shape for source in sources}
        if len(shapes) != 1:
            raise UserError(f"sources: needs images of one shape, got {', '.join(map(str, sorted(shapes)))}")
        self._sources = [source.source for source in sources]
        self._starts = np.cumsum([0, *map(len, self._sources)])
        maps = [np.array([graph.index(name) for name in source.concepts], np.int32) for source in sources]
        self.labels = np.concatenate(
            [m[np.asarray(s.labels)] for m, s in zip(maps, self._sources, strict=True)]
        ).astype(np.int32)
        self.class_names = graph.concepts
        self.image_shape = shapes.pop()
        self.origin = np.repeat(np.arange(len(sources), dtype=np.int32), np.diff(self._starts))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        number = int(self.origin[index])
        record = self._sources[number][int(index - self._starts[number])]
        return {"image": record["image"], "label": self.labels[index], "origin": self.origin[index]}


class Mix(NamedTuple):
    """Several sources as one.

    Attributes:
      source: all records, labels being concepts.
      order: strategy for `jaxface.data.batches`, which draws source d with its probability and then one of its records.
      probabilities: [sources], they sum to 1.
    """

    source: JoinedSources
    order: Order
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class _MixOrder:
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"mix of {', '.join(f'{n} at {p:.4f}' for n, p in zip(self.sizes, self.probabilities, strict=True))}"

    def __call__(self, step: int, *, batch_size: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, step, 18])
        drawn = rng.choice(len(self.sizes), batch_size, p=self.probabilities)
        sizes = np.asarray(self.sizes)[drawn]
        return np.asarray(self.starts)[drawn] + (rng.random(batch_size) * sizes).astype(np.int64)


def mix_sources(sources: Sequence[DataSource], power: float = 0.5) -> Mix:
    """Sources of one task type as one, of which a record of source d comes with probability

        p_d = w_d n_d^power / Σ w n^power,   n_d records of weight w_d

    so that 1 is every record alike and 0 every source alike.

    Args:
      sources: at least one, of one task type.
      power: in [0, 1].

    Raises:
      UserError: none, other task types or image shapes, contradicting graphs, a power out of its range.
    """
    check_number("power", power, Fraction)
    if not sources:
        raise UserError("sources: needs at least one, got none")
    if len(types := sorted({source.task_type for source in sources})) > 1:
        raise UserError(f"sources: needs one task type to mix, got {' and '.join(types)}")
    joined = JoinedSources(sources, label_graph(sources))
    sizes = np.array([len(source.source) for source in sources], np.float64)
    raw = np.array([source.weight for source in sources]) * sizes**power
    probabilities = raw / raw.sum()
    starts = np.cumsum([0, *sizes[:-1].astype(int)])
    order = _MixOrder(
        tuple(starts.tolist()), tuple(sizes.astype(int).tolist()), tuple(probabilities.tolist())
    )
    return Mix(joined, order, probabilities)
