"""Classes that arrive task by task, and the few exemplars that are kept of those that came before.

Everything is a function of the source's order and of seeds: the same run sees the same sessions.

Methods: lifelong
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np

from jaxface.checks import AtLeast, check_number, integer_array
from jaxface.data.sources.source import Source, Subset
from jaxface.errors import UserError

Tasks = tuple[tuple[int, ...], ...]
"""The classes of each task, in the order in which they arrive."""


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """Which classes make a task, and in which order the tasks arrive."""

    count: Annotated[int, AtLeast(1)] = 5
    """Tasks, which share the classes evenly."""
    order: Literal["labels", "shuffled"] = "labels"
    """Classes by their numbers, or shuffled once, whatever the seed of the run."""
    order_seed: Annotated[int, AtLeast(0)] = 1993
    """Seed of that shuffle; that of most published protocols."""
    given: tuple[str, ...] = ()
    """The classes of each task instead, as 0,1 2,3 4,5 for three tasks."""

    def classes(self, num_classes: int) -> Tasks:
        """The tasks of a data set with so many classes.

        Raises:
          UserError: classes that cannot be shared evenly, or a list that `check_tasks` refuses.

        Example:
          >>> TaskSpec(count=2).classes(4)
          ((0, 1), (2, 3))
          >>> TaskSpec(given=("3,0", "2,1")).classes(4)
          ((3, 0), (2, 1))
        """
        if self.given:
            try:
                tasks = tuple(tuple(int(item) for item in task.split(",")) for task in self.given)
            except ValueError:
                raise UserError(
                    f"tasks.given: needs numbers of classes such as 0,1 2,3; got {' '.join(self.given)}"
                ) from None
            check_tasks(tasks, num_classes, name="tasks.given")
            return tasks
        check_number("tasks.count", self.count, AtLeast(1))
        if num_classes % self.count:
            raise UserError(f"tasks.count: needs a divisor of the {num_classes} classes, got {self.count}")
        order = np.arange(num_classes)
        if self.order == "shuffled":
            order = np.random.default_rng(self.order_seed).permutation(num_classes)
        return tuple(tuple(map(int, task)) for task in order.reshape(self.count, -1))


def check_tasks(tasks: Sequence[Sequence[int]], num_classes: int, *, name: str = "tasks") -> None:
    """Holds a list of tasks to what it needs to be.

    Raises:
      UserError: no task or an empty one, a class that does not exist, or one that is there twice.
    """
    if not tasks or not all(len(task) for task in tasks):
        raise UserError(f"{name}: needs at least one task, and at least one class in each")
    every = [k for task in tasks for k in task]
    for k in every:
        if not 0 <= k < num_classes:
            raise UserError(f"{name}: needs classes from 0 to {num_classes - 1}, got {k}")
        if every.count(k) > 1:
            raise UserError(f"{name}: needs every class once, {k} is there {every.count(k)} times")


class TaskOrdered(Subset):
    """The records whose classes are in a list of tasks, with the classes numbered in the order in which they arrive.

    So the classes of task t are one range of numbers, behind those of the tasks before it.

    Args:
      source: the records.
      tasks: classes of each task.

    Attributes:
      tasks: [N] int32, the task of each record.
      ranges: (first, behind the last) of the numbers of each task's classes.

    Raises:
      UserError: what `check_tasks` refuses, or a class without a record.

    Example:
      >>> from jaxface.data import digits
      >>> source = TaskOrdered(digits(), ((7, 3), (0, 1)))
      >>> source.class_names, source.ranges, sorted(set(source.tasks.tolist()))
      (['7', '3', '0', '1'], [(0, 2), (2, 4)], [0, 1])
    """

    def __init__(self, source: Source, tasks: Sequence[Sequence[int]]):
        check_tasks(tasks, len(source.class_names))
        order = np.concatenate([np.asarray(task, np.int64) for task in tasks])
        number = np.full(len(source.class_names), -1)
        number[order] = np.arange(len(order))
        labels = number[integer_array("labels", source.labels)]
        super().__init__(source, np.flatnonzero(labels >= 0))
        self.labels = labels[labels >= 0].astype(np.int32)
        self.class_names = [source.class_names[k] for k in order]
        counts = np.bincount(self.labels, minlength=len(order))
        if not counts.all():
            raise UserError(
                f"data: needs records of every class, there are none of {self.class_names[counts.argmin()]!r}"
            )
        ends = np.cumsum([len(task) for task in tasks])
        self.ranges = [(int(end) - len(task), int(end)) for end, task in zip(ends, tasks, strict=True)]
        self.tasks = np.searchsorted(ends, self.labels, side="right").astype(np.int32)


def check_memory(memory: int, seen: int) -> None:
    """Raises UserError for a memory that cannot hold an exemplar of each of the classes seen; 0 is no memory."""
    check_number("memory", memory, AtLeast(0))
    if 0 < memory < seen:
        raise UserError(
            f"memory: needs at least one exemplar for each of {seen} classes, or 0 for no memory; got {memory}"
        )


def exemplar_rows(labels: np.ndarray, seen: int, memory: int, *, seed: int | None = None) -> np.ndarray:
    """Which records a memory holds once the first `seen` classes have been learned.

        ⌊memory / seen⌋ of every class, the first ones in the order of the source, so that lists only ever get shorter

    Args:
      labels: [N] integers, classes numbered as they arrive (`TaskOrdered`).
      seen: number of classes that have arrived, ≥ 1.
      memory: most exemplars in all; 0 for none.
      seed: of a draw of the exemplars instead of the first ones; lists of one seed only get shorter too.

    Returns:
      Increasing rows [≤ memory]; of a class with fewer records all.

    Raises:
      UserError: a memory smaller than one exemplar per class.

    Example:
      >>> exemplar_rows(np.array([0, 1, 0, 0, 1, 1, 2]), 2, 5).tolist()
      [0, 1, 2, 4]
    """
    check_number("seen", seen, AtLeast(1))
    check_memory(memory, seen)
    labels = integer_array("labels", labels)
    order = np.arange(len(labels))
    if seed is not None:
        order = np.random.default_rng([seed, 7]).permutation(len(labels))
    rows = [order[labels[order] == k][: memory // seen] for k in range(seen)]
    return np.sort(np.concatenate(rows))


def session_source(
    source: TaskOrdered, session: int, memory: int, *, keep_all: bool = False, seed: int | None = None
) -> Subset:
    """What a session learns from: every record of its task, and the memory of the classes before it, in the source's order.

    Args:
      source: records whose classes are numbered as they arrive.
      session: s, from 0.
      memory: most exemplars in all; 0 for none.
      keep_all: every record of the tasks before it instead of a memory (learning them together).
      seed: of the exemplars (`exemplar_rows`).

    Returns:
      The records; their labels and class names are those of `source`.
    """
    check_number("session", session, AtLeast(0))
    new = np.flatnonzero(source.tasks == session)
    if session == 0:
        old = new[:0]
    elif keep_all:
        old = np.flatnonzero(source.tasks < session)
    else:
        old = exemplar_rows(source.labels, source.ranges[session][0], memory, seed=seed)
    return Subset(source, np.sort(np.concatenate([old, new])))
