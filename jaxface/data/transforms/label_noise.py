"""Label noise: which given label a true one gets, as a matrix, and one draw from it.

Row i of a matrix is the true class, column j the given label; rows sum to 1.

Methods: mda, law
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np

from jaxface.checks import ProperFraction, check_number, index_array
from jaxface.data.sources.source import NoisyLabels, Source
from jaxface.errors import UserError

_STREAM = 0x6E6F  # apart from what else draws from the seed of the data


def _check(rate: float, num_classes: int, fewest: int = 2) -> None:
    check_number("rate", rate, ProperFraction)
    if num_classes < fewest:
        raise UserError(f"rate: label noise needs at least {fewest} classes, got {num_classes}")


def symmetric_noise(num_classes: int, rate: float) -> np.ndarray:
    """A label becomes another class with probability `rate`: M = (1 - rate) I + rate (11ᵀ - I) / (C - 1).

    Args:
      num_classes: C, at least 2.
      rate: in [0, 1).

    Returns:
      [C, C] float64.

    Raises:
      UserError: a rate outside [0, 1), or one class.

    Example:
      >>> symmetric_noise(4, 0.3)[0].round(3).tolist()
      [0.7, 0.1, 0.1, 0.1]
    """
    _check(rate, num_classes)
    matrix = np.full((num_classes, num_classes), rate / (num_classes - 1))
    np.fill_diagonal(matrix, 1 - rate)
    return matrix


def uniform_noise(num_classes: int, rate: float) -> np.ndarray:
    """A label is drawn anew with probability `rate`, itself included: M = (1 - rate) I + rate 11ᵀ / C.

    So a share rate (C - 1) / C of the labels is wrong. Arguments as `symmetric_noise`.

    Example:
      >>> uniform_noise(4, 0.3)[0].round(3).tolist()
      [0.775, 0.075, 0.075, 0.075]
    """
    _check(rate, num_classes)
    return (1 - rate) * np.eye(num_classes) + rate / num_classes


def pairflip_noise(num_classes: int, rate: float) -> np.ndarray:
    """A label becomes the next class with probability `rate`, the last one the first.

    Args:
      num_classes: C, at least 2.
      rate: in [0, 0.5): from there on the next class is as likely as the true one.

    Raises:
      UserError: another rate, or one class.

    Example:
      >>> pairflip_noise(4, 0.45)[3].round(2).tolist()
      [0.45, 0.0, 0.0, 0.55]
    """
    _check(rate, num_classes)
    if rate >= 0.5:
        raise UserError(f"rate: pairs flip with a rate below 0.5, got {rate:g}")
    return (1 - rate) * np.eye(num_classes) + rate * np.roll(np.eye(num_classes), 1, axis=1)


def class_dependent_noise(num_classes: int, rate: float, targets: Mapping[int, int]) -> np.ndarray:
    """A label of some classes becomes one other class with probability `rate`; the others stay.

    Args:
      num_classes: C.
      rate: in [0, 1).
      targets: class -> the one that it is taken for.

    Raises:
      UserError: a rate outside [0, 1). ValueError: a class outside [0, C), or one that is taken for itself.

    Example:
      >>> class_dependent_noise(3, 0.4, {0: 2})[0].round(2).tolist()
      [0.6, 0.0, 0.4]
    """
    _check(rate, num_classes)
    sources = index_array("targets", [*targets], len(targets), num_classes)
    labels = index_array("targets", [*targets.values()], len(targets), num_classes)
    if (sources == labels).any():
        raise ValueError(f"targets: class {sources[sources == labels][0]} is taken for itself")
    matrix = np.eye(num_classes)
    matrix[sources, sources] = 1 - rate
    matrix[sources, labels] = rate
    return matrix


def block_shifts(blocks: np.ndarray) -> dict[int, int]:
    """The next class of its block for every class, the last one's being the first.

    Args:
      blocks: [C] integers, the block of each class; those of one class alone have no other.

    Example:
      >>> block_shifts(np.array([0, 0, 1, 0, 1]))
      {0: 1, 1: 3, 3: 0, 2: 4, 4: 2}
    """
    targets = {}
    for block in np.unique(blocks):
        members = np.flatnonzero(blocks == block)
        if len(members) > 1:
            targets |= dict(zip(members.tolist(), np.roll(members, -1).tolist(), strict=True))
    return targets


def draw_labels(labels: np.ndarray, matrix: np.ndarray, *, seed: int) -> np.ndarray:
    """One given label for every true one, from its row of a matrix.

    Args:
      labels: [N] integers in [0, C), the true ones.
      matrix: [C, C], rows of probabilities.
      seed: of the draw.

    Returns:
      [N] int32.

    Raises:
      ValueError: labels outside the classes, or a matrix whose rows are no probabilities.

    Example:
      >>> draw_labels(np.zeros(8, int), class_dependent_noise(3, 0.5, {0: 2}), seed=0).tolist()
      [0, 2, 0, 0, 0, 2, 2, 2]
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix: needs [C, C], got {matrix.shape}")
    if (matrix < 0).any() or not np.allclose(matrix.sum(axis=1), 1, atol=1e-9):
        raise ValueError("matrix: needs rows of probabilities that sum to 1")
    labels = index_array("labels", labels, len(labels), len(matrix))
    bounds = np.cumsum(matrix, axis=1)[labels]
    drawn = np.random.default_rng([seed, _STREAM]).random((len(labels), 1))
    # The last bound may be just below 1 in floating point.
    return np.minimum((drawn >= bounds).sum(axis=1), len(matrix) - 1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class LabelNoise:
    """Wrong labels among those to learn from, drawn once; nothing at rate 0."""

    kind: Literal["symmetric", "uniform", "pairflip", "asymmetric", "superclass"] = "symmetric"
    """symmetric: one of the other classes; uniform: any class, the true one included; pairflip: the next class; asymmetric: the
    classes that this data set's are taken for; superclass: the next class of the same group."""
    rate: Annotated[float, ProperFraction] = 0.0
    """Probability of a draw, in [0, 1); under pairflip below 0.5."""

    def matrix(self, num_classes: int, targets: Mapping[int, int] | None) -> np.ndarray:
        """[C, C]; `targets` are the classes that others are taken for, of the last two kinds.

        Raises:
          UserError: a rate outside the range, or no targets where they are needed.
        """
        try:
            match self.kind:
                case "symmetric":
                    return symmetric_noise(num_classes, self.rate)
                case "uniform":
                    return uniform_noise(num_classes, self.rate)
                case "pairflip":
                    return pairflip_noise(num_classes, self.rate)
        except UserError as error:
            raise UserError(f"noise.{error}") from None
        if not targets:
            raise UserError(
                f"noise.kind: this data set has no {self.kind} noise; symmetric, uniform and pairflip it has"
            )
        return class_dependent_noise(num_classes, self.rate, targets)

    def apply(self, source: Source, *, seed: int, targets: Mapping[int, int] | None = None) -> Source:
        """The source with the labels that it is given, `true_label` in every record; the source itself at rate 0.

        Args:
          source: with true labels.
          seed: of the draw.
          targets: of the kinds `asymmetric` and `superclass`, class -> the one that it is taken for.

        Raises:
          UserError: what `matrix` refuses, or a class whose last label is gone.
        """
        if self.rate == 0:
            return source
        matrix = self.matrix(len(source.class_names), targets)
        labels = draw_labels(source.labels, matrix, seed=seed)
        gone = np.setdiff1d(source.labels, labels)
        if len(gone):
            raise UserError(
                f"noise.rate: leaves class {source.class_names[gone[0]]} without an example, got {self.rate:g}"
            )
        expected = 1 - float(np.diag(matrix)[source.labels].mean())
        return NoisyLabels(source, labels, expected_rate=expected)
