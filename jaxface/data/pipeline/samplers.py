"""Which records a batch holds: strategies for losses that compare the examples of a batch with each other.

Of a random batch over many classes hardly two examples are of one class. The samplers of correlation congruence
(arXiv:1904.01802) draw classes first: any (class-uniform random) or such that look alike (superclass-uniform random).
"""

from typing import Protocol

import numpy as np

from jaxface.checks import AtLeast, Integers, Range, check_number, index_array, integer_array, real_array
from jaxface.data.sources.source import Source, Subset
from jaxface.errors import UserError
from jaxface.extras import optional


class Order(Protocol):
    """A strategy for `jaxface.data.batches`.

    It is a function of its arguments alone, and can be pickled: threads, worker processes, shards and a resumed run ask for
    steps in any order.

    Attributes:
      name: says all that the order depends on besides the labels; a position in the stream belongs to it.
    """

    name: str

    def __call__(self, step: int, *, batch_size: int, seed: int) -> np.ndarray:
        """Numbers of the records in the batch of a step, [batch_size] integers.

        Raises:
          UserError: a batch of that size cannot be drawn.
        """
        ...


class ClassUniform:
    """Class-uniform random batches: B / k classes, uniformly without replacement, and k records of each, one class after
    the other.

    A class with fewer than k records gives some of them twice; otherwise they are drawn without replacement. Classes without
    a record are never drawn.

    Args:
      labels: [N] integers, class of each record.
      per_class: k ≥ 1; the paper recommends 2 or 4, and finds 8 and more harmful.

    Raises:
      UserError: `per_class` < 1, or no record.
    """

    def __init__(self, labels: np.ndarray, *, per_class: int = 4):
        labels = integer_array("labels", labels)
        check_number("per_class", per_class, AtLeast(1))
        if not len(labels):
            raise UserError("labels: needs at least one record, got none")
        self._records = np.argsort(labels, kind="stable")
        self._classes, self._starts, self._counts = np.unique(
            labels[self._records], return_index=True, return_counts=True
        )
        self._per_class = per_class
        self.name = f"class-uniform, {per_class} of a class"

    def _choose(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Positions of `count` distinct classes in `_classes`."""
        return rng.choice(len(self._classes), count, replace=False)

    def __call__(self, step: int, *, batch_size: int, seed: int) -> np.ndarray:
        """[batch_size] numbers of records; see `Order`.

        Raises:
          UserError: k does not divide the batch, or the batch wants more classes than there are.
        """
        each = self._per_class
        if batch_size % each:
            raise UserError(f"per_class: needs a divisor of the batch of {batch_size}, got {each}")
        count = batch_size // each
        if count > len(self._classes):
            least = -(-batch_size // len(self._classes))
            raise UserError(
                f"per_class: needs at least {least} to fill a batch of {batch_size} from {len(self._classes)} classes, got {each}"
            )
        rng = np.random.default_rng([seed, step])
        drawn = [
            self._starts[c] + rng.choice(self._counts[c], each, replace=bool(self._counts[c] < each))
            for c in self._choose(rng, count)
        ]
        return self._records[np.concatenate(drawn)]


class SuperclassUniform(ClassUniform):
    """Superclass-uniform random batches: a superclass, B / k classes inside it, and k records of each.

    So the classes of a batch look alike. Where a superclass has too few classes, all of them are taken, and the rest comes
    from another superclass, drawn like the first (our reading; the paper does not say).

    Args:
      labels: [N] integers in [0, C), class of each record.
      superclasses: [C] integers, superclass of each class; see `superclasses`.
      per_class: k ≥ 1.

    Raises:
      ValueError: `superclasses` does not cover the labels.
      UserError: as `ClassUniform`.
    """

    def __init__(self, labels: np.ndarray, superclasses: np.ndarray, *, per_class: int = 4):
        super().__init__(labels, per_class=per_class)
        superclasses = integer_array("superclasses", superclasses)
        if not 0 <= self._classes[0] <= self._classes[-1] < len(superclasses):
            raise ValueError(
                f"superclasses: needs one per class {self._classes[0]}..{self._classes[-1]}, got {superclasses.shape}"
            )
        of_class = superclasses[self._classes]
        self._members = [np.flatnonzero(of_class == s) for s in np.unique(of_class)]
        self.name = f"superclass-uniform, {per_class} of a class, {len(self._members)} superclasses"

    def _choose(self, rng: np.random.Generator, count: int) -> np.ndarray:
        classes = []
        for s in rng.permutation(len(self._members)):
            classes.append(rng.permutation(self._members[s])[:count])
            count -= len(classes[-1])
            if not count:
                break
        return np.concatenate(classes)


def repeat_factors(frequencies: np.ndarray, *, threshold: float = 0.15) -> np.ndarray:
    """How often the records of a rare class count.

        r_c = max(1, √(threshold / f_c))                                                      (arXiv:1908.03195, section 3)

    Args:
      frequencies: [C] shares of the classes, in (0, 1].
      threshold: share from which a class is not rare, in (0, 1].

    Returns:
      [C] float64, ≥ 1; records are repeated ⌈r_c⌉ times (`repeat_rare_classes`).

    Raises:
      UserError: a number out of its range.

    Example:
      >>> repeat_factors(np.array([0.1, 0.3, 0.6])).round(6).tolist()
      [1.224745, 1.0, 1.0]
    """
    share = Range(0, 1, above=True)
    check_number("threshold", threshold, share)
    for frequency in np.ravel(frequencies):
        check_number("frequencies", frequency, share)
    return np.maximum(1.0, np.sqrt(threshold / np.asarray(frequencies, np.float64)))


def repeat_rare_classes(source: Source, *, threshold: float = 0.15) -> Subset:
    """A source in which each record of a class stands ⌈`repeat_factors`⌉ times, in the order of the source.

    Args:
      source: the records; classes without any are left alone.
      threshold: share from which a class is not rare.
    """
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    copies = np.zeros(len(counts), np.int64)
    present = counts > 0
    copies[present] = np.ceil(repeat_factors(counts[present] / counts.sum(), threshold=threshold))
    return Subset(source, np.repeat(np.arange(len(source)), copies[source.labels]))


def class_means(embeddings: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Mean direction of every class: [C, D] means of the normalized embeddings; zeros where a class has none.

    Args:
      embeddings: [N, D] float.
      labels: [N] integers in [0, C).
      classes: C.

    Raises:
      ValueError: shapes disagree, or a label that is no class. UserError: empty or not finite.

    Example:
      >>> class_means(np.array([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0]]), np.array([0, 1, 1]), 3).tolist()
      [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    embeddings = real_array("embeddings", embeddings, ndim=2).astype(np.float64)
    labels = index_array("labels", labels, len(embeddings), classes)
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    total = np.zeros((classes, embeddings.shape[1]))
    np.add.at(total, labels, unit)
    return total / np.maximum(np.bincount(labels, minlength=classes), 1)[:, None]


def superclasses(features: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Groups of classes that look alike: k-means over one feature vector per class.

    Args:
      features: [C, D] float, such as the `class_means` of a teacher.
      count: number of superclasses, from 1 to C.
      seed: of the initial centers.

    Returns:
      [C] int32 in [0, count).

    Raises:
      UserError: `count` out of its range, or a feature that is not finite.

    Example:
      >>> groups = superclasses(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 2, seed=0)
      >>> bool(groups[0] == groups[1]), bool(groups[0] == groups[2])
      (True, False)
    """
    KMeans = optional("sklearn.cluster", "sets").KMeans
    threadpool_limits = optional("threadpoolctl", "sets").threadpool_limits

    check_number("superclasses", count, Integers(1, len(features)))
    if not np.isfinite(features).all():
        raise UserError("superclasses: needs finite features of the classes, some are NaN or infinite")
    # One thread: the order in which several add up their shares varies, and a resumed run must find the same groups.
    with threadpool_limits(1):
        return KMeans(count, n_init=4, random_state=seed).fit(features).labels_.astype(np.int32)
