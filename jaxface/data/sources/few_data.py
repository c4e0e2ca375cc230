"""Few data: a part of every class to learn from, and the classes that an upstream network has already learned.

Methods: intern, ota
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from jaxface.checks import AtLeast, Range, check_fields, check_number, index_array
from jaxface.data.sources.source import Source, Subset
from jaxface.errors import UserError

_STREAM = 0x6665  # apart from what else draws from the seed of the data
_LARGEST_SHARE = Range(0, 1, above=True)


def stratified_subset(
    labels: np.ndarray,
    fraction: float | None = None,
    seed: int = 0,
    *,
    shots: int | None = None,
    num_classes: int | None = None,
) -> np.ndarray:
    """Rows of a part of every class: the first n_k of a permutation of class k, so that a smaller part lies in a larger one.

        fraction   n_k = max(1, ⌈ fraction · N_k ⌉)
        shots      n_k = shots

    Args:
      labels: [N] integers in [0, num_classes).
      fraction: in (0, 1], or None where `shots` are given.
      seed: of the permutations.
      shots: examples of each class, at least 1.
      num_classes: C; the largest label and one more unless given.

    Returns:
      [n] int64 rows, increasing.

    Raises:
      UserError: neither or both, a number out of its range, a class without an example, or one with fewer than `shots`.

    Example:
      >>> rows = stratified_subset(np.repeat([0, 1, 2], [100, 9, 1]), 0.1)
      >>> np.bincount(np.repeat([0, 1, 2], [100, 9, 1])[rows]).tolist()
      [10, 1, 1]
    """
    if (fraction is None) == (shots is None):
        raise UserError(f"fraction: needs either a fraction or shots, got {fraction} and {shots}")
    if fraction is not None:
        check_number("fraction", fraction, _LARGEST_SHARE)
    if shots is not None:
        check_number("shots", shots, AtLeast(1))
    labels = np.asarray(labels)
    classes = (int(labels.max()) + 1 if len(labels) else 0) if num_classes is None else num_classes
    labels = index_array("labels", labels, len(labels), classes)
    available = np.bincount(labels, minlength=classes)
    if not len(labels) or available.min() < 1:
        raise UserError(f"fraction: class {int(available.argmin()) if classes else 0} would be left empty")
    if shots is not None:
        counts = np.full(classes, shots)
    else:
        # Rounding of the product must not make 11 of 10.
        counts = np.maximum(np.ceil(fraction * available - 1e-9).astype(np.int64), 1)
    if np.any(short := available < counts):
        k = int(short.argmax())
        raise UserError(f"shots: class {k} has {available[k]} examples, {counts[k]} were to be left")
    rng = np.random.default_rng([seed, _STREAM])
    rows = [rng.permutation(np.flatnonzero(labels == k))[: counts[k]] for k in range(classes)]
    return np.sort(np.concatenate(rows))


@dataclasses.dataclass(frozen=True)
class FewData:
    """A part of every class to learn from; the test keeps its own."""

    fraction: Annotated[float, _LARGEST_SHARE] = 1.0
    """Share of each class, rounded up, at least one example; 1 leaves all."""
    shots: Annotated[int | None, AtLeast(1)] = None
    """As many examples of each class, instead of a share."""

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self.fraction < 1 or self.shots is not None

    @property
    def title(self) -> str:
        """What it leaves of the data, for tables; empty where it leaves all."""
        if not self.active:
            return ""
        return f" {self.fraction:.3g}" if self.shots is None else f" {self.shots} shots"

    def apply(self, source: Source, *, seed: int) -> Source:
        """The rows of `stratified_subset`, in the source's order.

        Raises:
          UserError: a share and shots at once, a class that has no example or fewer than `shots`; the class is named.
        """
        check_fields(self, "few.")
        if not self.active:
            return source
        if self.fraction < 1 and self.shots is not None:
            raise UserError(f"few.shots: needs fraction 1, got {self.fraction:g} and {self.shots} shots")
        available = np.bincount(source.labels, minlength=len(source.class_names))
        for name, count in zip(source.class_names, available, strict=True):
            if count < (self.shots or 1):
                field = "fraction" if self.shots is None else "shots"
                wanted = "and needs one" if self.shots is None else f"{self.shots} were to be left"
                raise UserError(f"few.{field}: class {name!r} has {count} examples, {wanted}")
        fraction = None if self.shots is not None else self.fraction
        rows = stratified_subset(source.labels, fraction, seed, shots=self.shots, num_classes=len(available))
        return Subset(source, rows)


def class_record(names: Sequence[str]) -> dict[str, list[str]]:
    """What a stage writes down of the classes it learns from, for its `description`: {"classes": sorted names}.

    Example:
      >>> class_record(["pear", "apple"])
      {'classes': ['apple', 'pear']}
    """
    return {"classes": sorted(str(name) for name in names)}


def check_unseen_classes(
    description: Mapping[str, Any] | None, names: Sequence[str], *, argument: str
) -> None:
    """Refuses an upstream network that was trained on classes of the downstream task.

    Args:
      description: of the upstream stage (`training.read_description`), with `class_record` in it.
      names: downstream classes.
      argument: that names the upstream run, for the message.

    Raises:
      UserError: no record of classes, or a class that is in both.

    Example:
      >>> check_unseen_classes(class_record(["cat"]), ["dog"], argument="generator")
    """
    recorded = None if description is None else description.get("classes")
    if recorded is None:
        raise UserError(
            f"{argument}: needs a run that recorded the classes it was trained on; this one did not"
        )
    if seen := sorted({str(name) for name in names} & set(recorded)):
        more = f" and {len(seen) - 3} more" if len(seen) > 3 else ""
        raise UserError(
            f"{argument}: needs a run of other classes than those to adapt to, it was trained on "
            f"{', '.join(map(repr, seen[:3]))}{more}"
        )
