"""Long tails: training sets whose classes have fewer and fewer examples.

Methods: law, nclpp
"""

import dataclasses
from typing import Annotated, Literal

import numpy as np

from jaxface.checks import AtLeast, Range, check_fields, check_number
from jaxface.data.sources.source import Source, Subset
from jaxface.errors import UserError


def long_tail_counts(
    largest: int, classes: int, imbalance: float, *, profile: Literal["exponential", "step"] = "exponential"
) -> np.ndarray:
    """Examples of each class, from the most frequent to the rarest.

        exponential   n_k = ⌊ n_max · IF^(-k / (C - 1)) ⌋,   k = 0 … C - 1
        step          n_max for the first half of the classes, ⌊ n_max / IF ⌋ for the others

    Args:
      largest: n_max ≥ 1. classes: C ≥ 2.
      imbalance: IF ≥ 1, the largest class over the smallest.
      profile: see above.

    Returns:
      [C] int64, ≥ 1.

    Raises:
      UserError: a class would have no example; a number out of its range.

    Example:
      >>> long_tail_counts(5000, 10, 100).tolist(), int(long_tail_counts(500, 100, 100).sum())
      ([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], 10847)
    """
    check_number("largest", largest, AtLeast(1))
    check_number("imbalance", imbalance, Range(1, np.inf))
    if classes < 2:
        raise UserError(f"classes: a long tail needs at least 2, got {classes}")
    if profile not in ("exponential", "step"):
        raise UserError(f"profile: needs exponential or step, got {profile!r}")
    ranks = np.arange(classes)
    if profile == "step":
        exponents = (ranks >= classes // 2).astype(np.float64)
    else:
        exponents = ranks / (classes - 1)
    # Rounding of the power must not truncate 50 to 49.
    counts = np.floor(largest * float(imbalance) ** -exponents + 1e-9).astype(np.int64)
    if counts.min() < 1:
        raise UserError(
            f"imbalance: needs at most {largest}, the examples of the largest class, got {imbalance:g}: "
            f"{int((counts < 1).sum())} of {classes} classes would have no example left"
        )
    return counts


@dataclasses.dataclass(frozen=True)
class LongTail:
    """Makes training classes smaller, one after another; the test keeps its own."""

    imbalance: Annotated[float, Range(1, 1e6)] = 1.0
    """The largest class over the smallest; 1 leaves all as they are."""
    profile: Literal["exponential", "step"] = "exponential"
    """Sizes that fall from class to class, or two of them."""
    largest: Annotated[int | None, AtLeast(1)] = None
    """Examples of the largest class; as many as every class has unless given."""
    order: Literal["published", "random"] = "published"
    """Class 0 is the largest, as published for CIFAR, or classes are permuted by the seed."""

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self.imbalance > 1 or self.largest is not None

    @property
    def title(self) -> str:
        """What it does to the data, for tables; empty where it does nothing."""
        return f" IF {self.imbalance:g}" if self.active else ""

    def apply(self, source: Source, *, seed: int) -> Source:
        """The first n_k records of a permutation of each class, in the source's order; deterministic in the seed.

        Args:
          source: training records.
          seed: of the permutations, and of the order of the classes.

        Raises:
          UserError: a class that has fewer examples than are to be left, or would have none.
        """
        check_fields(self, "tail.")
        if not self.active:
            return source
        classes = len(source.class_names)
        available = np.bincount(source.labels, minlength=classes)
        largest = int(available.min()) if self.largest is None else self.largest
        if largest < 1:
            empty = source.class_names[int(available.argmin())]
            raise UserError(f"tail: needs examples of every class, {empty!r} has none")
        counts = long_tail_counts(largest, classes, self.imbalance, profile=self.profile)
        rng = np.random.default_rng(seed)
        if self.order == "random":
            counts = counts[rng.permutation(classes)]
        if np.any(short := available < counts):
            k = int(short.argmax())
            raise UserError(
                f"tail.largest: class {source.class_names[k]!r} has {available[k]} examples, {counts[k]} were to be left"
            )
        rows = [rng.permutation(np.flatnonzero(source.labels == k))[: counts[k]] for k in range(classes)]
        return Subset(source, np.sort(np.concatenate(rows)))
