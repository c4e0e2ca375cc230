"""What a source does with a record that cannot be read: another one of the same class stands in."""

import abc
import logging
import threading
from collections.abc import Iterable, Sequence

import numpy as np

from jaxface.data.sources.images import CorruptImage
from jaxface.data.sources.source import Record
from jaxface.errors import UserError

_log = logging.getLogger("jaxface.data")


class StandInSource(abc.ABC):
    """A source over untrusted images, in which every record exists and every label is true.

    In the place of an image that does not decode stands the next one of its class that does, always the same
    one. The first is reported in the log; all are counted in `corrupt`. Safe to read from several threads and
    to pickle.
    """

    labels: np.ndarray
    class_names: Sequence[str]
    image_shape: tuple[int, int, int]
    _OF = "of its class"

    def __init__(self):
        self._bad: set[int] = set()
        self._stand_ins: dict[int, int] = {}
        self._lock = threading.Lock()

    @abc.abstractmethod
    def _read(self, index: int) -> Record:
        """The record itself; raises CorruptImage."""

    @abc.abstractmethod
    def _describe(self, index: int) -> str:
        """What to call the record in a message."""

    @property
    def corrupt(self) -> int:
        """Images that did not decode, among those asked for so far."""
        return len(self._bad)

    def shown(self, index: int) -> int:
        """Which record was given for `index` when it was last asked for: itself, or its stand-in."""
        return self._stand_ins.get(index, index)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[index]
        try:
            return self._read(index)
        except CorruptImage as error:
            self._count(index, error)
        same = self._alike(index)
        for candidate in np.roll(same, -int(np.searchsorted(same, index)) - 1)[:-1].tolist():
            if candidate in self._bad:
                continue
            try:
                record = self._read(candidate)
            except CorruptImage as error:
                self._count(candidate, error)
            else:
                self._stand_ins[index] = candidate
                return record
        raise UserError(f"data: no image of {self._kind(index)} can be read any more")

    def _alike(self, index: int) -> np.ndarray:
        """Records of which one may stand in for another, in order: those of its class."""
        return np.flatnonzero(self.labels == self.labels[index])

    def _kind(self, index: int) -> str:
        """What these records have in common, for a message."""
        return self.class_names[self.labels[index]]

    def _count(self, index: int, error: CorruptImage) -> None:
        with self._lock:
            first = not self._bad
            self._bad.add(index)
        if first:
            _log.warning(
                "%s cannot be read (%s): another image %s stands in, here and for any further one",
                self._describe(index),
                error,
                self._OF,
            )

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())


def any_readable(read, candidates: Iterable, what: str) -> bool:
    """Whether `read` gives at least one of the candidates; says in the log that `what` is left out if not."""
    reason = "no image"
    for candidate in candidates:
        try:
            read(candidate)
            return True
        except CorruptImage as error:
            reason = str(error)
    _log.warning("left out %s: none of its images can be read (%s)", what, reason)
    return False
