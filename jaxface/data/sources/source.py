"""What a source of images is.

A source is random-access, so that a sampler may shuffle, shard and resume it without reading it. It knows the class
of every record without decoding an image: splits by identity, balanced samplers and verification pairs need that.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from jaxface.checks import OpenFraction, check_number, index_array, integer_array
from jaxface.errors import UserError

Record = dict[str, np.ndarray]
"""One example: a flat dict of arrays, `image` and `label` and what else the source has."""


@runtime_checkable
class Source(Protocol):
    """Random access to records.

    Attributes:
      labels: [N] int32 in [0, len(class_names)), class of each record.
      class_names: one name per class.
      image_shape: (H, W, C) of every image, known without decoding or rendering one.

    A record is a flat dict: `image` uint8 [H, W, 3], `label` int32 scalar, and whatever else the source knows
    (`depth`, `landmarks`, `boxes`, `spoof`, `expression`, `group`). A source that knows the group of every record without
    reading it says so by `groups` [N] int32 and `group_names`, one per group. One whose records have names or places of their
    own, such as files, says so by `record_names` [N], strings or integers. One whose records are of parts that a benchmark
    reports one by one says so by `subsets` [N] int32 and `subset_names`, that of the gallery first.

    One that has a protocol of its own, such as a benchmark's, is judged by `report(features, weights)`, the metrics by name of
    features [N, D] that are not normalized; its records have `weight`, 0 for an image that could not be read.

    One whose records have boxes (`sources.objects.object_fields`) has `max_objects`, the rows of each, and `ground_truth(i)`,
    what is in image i as `jaxface.metrics.detection` takes it; its `class_names` are those of the objects, and its labels zeros.
    Where images have several shapes, `buckets` [N] int32 says which one each record is of.

    One that has all its records in memory gives a batch of them by `take(rows)` (`InMemory`).

    One whose labels may be wrong has `true_labels` [N] int32, and its records `true_label` (`NoisyLabels`).
    """

    labels: np.ndarray
    class_names: Sequence[str]
    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Subset:
    """Some records of a source, in a given order.

    With `relabel=True` the classes that occur are numbered 0..K-1 in their old order, as a classifier over the subset needs.
    """

    def __init__(self, source: Source, indices: np.ndarray, *, relabel: bool = False):
        self._source = source
        self.image_shape = source.image_shape
        self._indices = np.asarray(indices, np.int64)
        labels = integer_array("labels", source.labels)[self._indices]
        if relabel:
            classes, labels = np.unique(labels, return_inverse=True)
            self.class_names = [source.class_names[k] for k in classes]
        else:
            self.class_names = list(source.class_names)
        self.labels = labels.astype(np.int32)

    # Asked for, not copied: rendered faces work their groups out.
    @property
    def groups(self) -> np.ndarray:
        """[N] int32, the group of each record; an AttributeError where the source does not know."""
        return self._source.groups[self._indices]

    @property
    def group_names(self) -> Sequence[str]:
        """Names of the groups, all those of the source."""
        return self._source.group_names

    @property
    def subsets(self) -> np.ndarray:
        """[N] int32, the part of the benchmark that each record is of; an AttributeError where the source does not know."""
        return self._source.subsets[self._indices]

    @property
    def subset_names(self) -> Sequence[str]:
        """Names of the parts, all those of the source."""
        return self._source.subset_names

    @property
    def max_objects(self) -> int:
        """Rows of `boxes`; an AttributeError where records have none."""
        return self._source.max_objects

    @property
    def buckets(self) -> np.ndarray:
        """[N] int32, the shape that each image has; an AttributeError where all have one."""
        return self._source.buckets[self._indices]

    @property
    def true_labels(self) -> np.ndarray:
        """[N] int32; an AttributeError where the labels are not known to be wrong."""
        return self._source.true_labels[self._indices]

    def ground_truth(self, index: int) -> dict[str, np.ndarray]:
        """What is in an image; an AttributeError where the source does not know."""
        return self._source.ground_truth(int(self._indices[index]))

    @property
    def record_names(self) -> Sequence[str] | np.ndarray:
        """[N] names of the records; an AttributeError where the source has none."""
        names = self._source.record_names
        return names[self._indices] if isinstance(names, np.ndarray) else [names[i] for i in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        record = dict(self._source[int(self._indices[index])])
        record["label"] = self.labels[index]
        return record


class WithFields:
    """A source whose records carry further fields: `fields` are arrays [N, ...], of which record i gets row i."""

    def __init__(self, source: Source, **fields: np.ndarray):
        for name, values in fields.items():
            if len(values) != len(source):
                raise ValueError(
                    f"{name}: needs one row for each of {len(source)} records, got {len(values)}"
                )
        self._source, self._fields = source, fields
        self.labels, self.class_names = source.labels, source.class_names
        self.image_shape = source.image_shape

    @property
    def record_names(self) -> Sequence[str] | np.ndarray:
        """[N] names of the records; an AttributeError where the source has none."""
        return self._source.record_names

    @property
    def true_labels(self) -> np.ndarray:
        """[N] int32; an AttributeError where the labels are not known to be wrong."""
        return self._source.true_labels

    @property
    def max_objects(self) -> int:
        """Rows of `boxes`; an AttributeError where records have none."""
        return self._source.max_objects

    @property
    def buckets(self) -> np.ndarray:
        """[N] int32, the shape that each image has; an AttributeError where all have one."""
        return self._source.buckets

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return {**self._source[index], **{name: values[index] for name, values in self._fields.items()}}


class InMemory:
    """A source all of whose records are read at once, so that a batch of them is gathered and not put together (`take`)."""

    def __init__(self, source: Source):
        self._source = source
        self.labels, self.class_names = source.labels, source.class_names
        self.image_shape = source.image_shape
        records = [source[i] for i in range(len(source))]
        self._fields = {name: np.stack([np.asarray(r[name]) for r in records]) for name in records[0]}

    @property
    def record_names(self) -> Sequence[str] | np.ndarray:
        """[N] names of the records; an AttributeError where the source has none."""
        return self._source.record_names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return {name: values[index] for name, values in self._fields.items()}

    def take(self, rows: np.ndarray) -> Record:
        """A batch: every field [len(rows), ...]."""
        return {name: values[rows] for name, values in self._fields.items()}


class NoisyLabels(WithFields):
    """A source with the labels that it is given, some of them wrong; records have `true_label` besides.

    Attributes:
      labels: [N] int32, the given ones.
      true_labels: [N] int32, those of `source`.
      expected_rate: share of wrong labels on average, or None.
    """

    def __init__(self, source: Source, labels: np.ndarray, *, expected_rate: float | None = None):
        """Takes the labels.

        Args:
          source: with the true labels.
          labels: [N] integers in [0, len(source.class_names)).
          expected_rate: share of wrong labels that the noise makes on average, where it is known.

        Raises:
          ValueError: another length, or a label outside the classes.
        """
        labels = index_array("labels", labels, len(source), len(source.class_names)).astype(np.int32)
        super().__init__(source, label=labels, true_label=source.labels)
        self.labels, self.expected_rate = labels, expected_rate

    @property
    def true_labels(self) -> np.ndarray:
        """[N] int32, those of the source."""
        return self._source.labels

    @property
    def groups(self) -> np.ndarray:
        """[N] int32, the group of each record; an AttributeError where the source does not know."""
        return self._source.groups

    @property
    def group_names(self) -> Sequence[str]:
        """Names of the groups."""
        return self._source.group_names


def fingerprint(source: Source) -> dict[str, int | str | None]:
    """What tells data from other data without reading an image, for JSON.

    Args:
      source: the records; one that is none of people may lack labels and class names.

    Returns:
      "photographs" and "people", how many there are; "names of people", "labels" and "names of photographs", digests; None for
      what the source does not know.
    """
    people, labels = getattr(source, "class_names", None), getattr(source, "labels", None)
    return {
        "photographs": len(source),
        "people": None if people is None else len(people),
        "names of people": _digest(people),
        "names of photographs": _digest(getattr(source, "record_names", None)),
        "labels": None if labels is None else _digest(np.asarray(labels, np.int64)),
    }


def _digest(values: Sequence | np.ndarray | None) -> str | None:
    """Of integers or of strings, which need not be UTF-8."""
    if values is None:
        return None
    digest = hashlib.sha256()
    if isinstance(values, np.ndarray):
        digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())
    else:
        for value in values:
            encoded = os.fsencode(str(value))
            digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return digest.hexdigest()[:16]


def split_identities(source: Source, held_out: float, *, seed: int = 0) -> tuple[Subset, Subset]:
    """Splits by class: no identity of the second part occurs in the first.

    Args:
      source: the records.
      held_out: fraction of the classes in the second part, in (0, 1); at least two classes go to either part.
      seed: of the permutation of the classes.

    Returns:
      (training part, held-out part), both relabeled from 0.

    Raises:
      UserError: fewer than four classes, or `held_out` outside (0, 1).
    """
    check_number("held_out", held_out, OpenFraction)
    classes = np.unique(source.labels)
    if len(classes) < 4:
        raise UserError(f"data: a split by identity needs at least 4 people, this source has {len(classes)}")
    count = min(max(round(held_out * len(classes)), 2), len(classes) - 2)
    held_out_classes = np.random.default_rng(seed).permutation(classes)[:count]
    out = np.isin(source.labels, held_out_classes)
    return (
        Subset(source, np.flatnonzero(~out), relabel=True),
        Subset(source, np.flatnonzero(out), relabel=True),
    )
