"""What a run tells a service that tracks runs, and how it keeps a service that fails or hangs away from the run."""

import dataclasses
import importlib.util
import json
import logging
import pathlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jaxface.errors import UserError
from jaxface.registry import Registry
from jaxface.training.workdir import write_atomically

logger = logging.getLogger(__name__)

IDS = "trackers.json"
"""File of a work directory: name of a writer -> id of the run that it reports to, so that a resumed run goes on there."""
PATIENCE = 60.0
"""Seconds that the end of a run waits for what has not reached a service."""
_MOST_WAITING = 10_000  # reports that wait for a slow service before new ones are dropped


class Writer(Protocol):
    """One run at a service. Any method may raise anything; the run does not notice.

    `package` is what has to be installed: its name on PyPI and the module that it gives.
    """

    package: tuple[str, str]
    id: str

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers after a step of the run, by name."""

    def figure(self, name: str, path: pathlib.Path, step: int) -> None:
        """A PNG file."""

    def close(self, finished: bool) -> None:
        """Sends everything; `finished` is False for a run that stopped before its end."""


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Which services are told about a run, and as what.

    Attributes:
      writers: names in `WRITERS`.
      project: of Weights & Biases, or the experiment of MLflow.
      name: of the run.
      config: JSON-like, what the run was started with.
    """

    writers: Sequence[str]
    project: str = "jaxface"
    name: str = "run"
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Raises UserError for an unknown writer, one that is named twice, or one whose package is not installed."""
        for writer in self.writers:
            package, module = WRITERS[writer].package
            if importlib.util.find_spec(module) is None:
                raise UserError(
                    f"writers: {writer!r} needs the package {package}: pip install 'jaxface[tracking]'"
                )
        if len(set(self.writers)) < len(self.writers):
            raise UserError(f"writers: needs each name once, got {' '.join(self.writers)}")
        if self.writers and not self.project.strip():
            raise UserError("project: needs a name, got an empty one")


WRITERS: Registry[type[Writer]] = Registry("writers", __package__)
"""Classes of writers, called with the `Tracking`, a folder for files of the service or None, and the id of a run to go on with
or None."""


class _Background:
    """A writer in a thread of its own, to which reports are handed without waiting.

    The first failure is said once, after which the writer is left alone; so is one that is too slow.
    """

    def __init__(self, name: str, open_writer: Callable[[], Writer]):
        self.name = name
        self._open = open_writer
        self._reports: queue.Queue = queue.Queue(_MOST_WAITING)
        self._failed = False
        # A daemon: a service that never answers keeps no process alive.
        self._thread = threading.Thread(target=self._work, name=f"writer {name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        writer = None
        while True:
            report = self._reports.get()
            finished = report if isinstance(report, bool) else None
            if not self._failed:
                try:
                    if finished is None:
                        writer = self._open() if writer is None else writer
                        report(writer)
                    elif writer is not None:  # nothing to say of a run that was finished before
                        writer.close(finished)
                except BaseException as error:  # a library's SystemExit too
                    self._give_up(" ".join(f"{type(error).__name__}: {error}".split())[:300])
            if finished is not None:
                return

    def _give_up(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            logger.warning("writer %s: %s; the run goes on without it", self.name, reason)

    def report(self, call: Callable[[Writer], None]) -> None:
        """Hands a call over; drops it where the writer was given up."""
        try:
            self._reports.put_nowait(call)
        except queue.Full:
            self._give_up("it does not keep up")

    def close(self, finished: bool) -> None:
        """Waits until all is sent, `PATIENCE` seconds at most."""
        try:
            self._reports.put(finished, timeout=0 if self._failed else PATIENCE)
        except queue.Full:
            self._give_up("it does not keep up")
            return
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._give_up(f"not everything was sent within {PATIENCE:.0f} s")


class Trackers:
    """The services of one run. No method raises, and none waits but `close`.

    Args:
      tracking: which, and as what.
      ids: file that remembers the runs at the services.
      folder: for what a service keeps on this machine; None for its own default.
      saved: called after `ids` was written.
    """

    def __init__(
        self,
        tracking: Tracking,
        ids: pathlib.Path,
        folder: pathlib.Path | None = None,
        saved: Callable[[], None] = lambda: None,
    ):
        self._ids, self._saved, self._lock = ids, saved, threading.Lock()
        self._writers = [
            _Background(name, lambda name=name: self._open(name, tracking, folder))
            for name in tracking.writers
        ]

    def _open(self, name: str, tracking: Tracking, folder: pathlib.Path | None) -> Writer:
        writer = WRITERS[name](tracking, folder, self._known().get(name))
        with self._lock:
            known = self._known()
            if known.get(name) != writer.id:
                write_atomically(self._ids, json.dumps({**known, name: writer.id}, indent=2) + "\n")
                self._saved()
        return writer

    def _known(self) -> dict[str, str]:
        try:
            known = json.loads(self._ids.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers after a step of the run, by name."""
        for writer in self._writers:
            writer.report(lambda opened: opened.scalars(dict(values), step))

    def figure(self, name: str, path: pathlib.Path, step: int) -> None:
        """A PNG file that stays where it is."""
        for writer in self._writers:
            writer.report(lambda opened: opened.figure(name, path, step))

    def close(self, finished: bool) -> None:
        """Waits until everything is sent, `PATIENCE` seconds for each service."""
        for writer in self._writers:
            writer.close(finished)
