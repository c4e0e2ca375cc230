"""What a run writes down as it goes: metrics as JSON lines, as TensorBoard events, and for the services that track it."""

import contextlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from jaxface.paths import user_path
from jaxface.training.mirror import Mirror
from jaxface.training.workdir import writing
from jaxface.training.writers.base import IDS, Trackers, Tracking

logger = logging.getLogger(__name__)

PROFILE = "profile"
"""Folder of a work directory with the traces of `--profile`."""
_PUSH_EVERY = 60.0  # seconds after which lines go to a work directory elsewhere, checkpoint or not


class Records:
    """Metrics of a run, one JSON object a line, and the same as TensorBoard scalars and for services that track runs.

    The lines hold nothing but what the run computed, so that an interrupted run and an uninterrupted one write the same
    bytes; speeds go to the others alone. A work directory elsewhere (`gs://…`) gets the lines with every checkpoint and every
    minute, for nothing can be appended there.

    Every method raises UserError where the disk is full or cannot be written. What a service does harms nothing.

    Args:
      workdir: where `metrics.jsonl` and `tensorboard/` go.
      tracking: the services besides.
    """

    def __init__(self, workdir: str | os.PathLike, tracking: Tracking | None = None):
        workdir = user_path("workdir", workdir)
        self._path = workdir / "metrics.jsonl"
        with writing(workdir):
            self._mirror = Mirror(workdir)
            self.folder = self._mirror.local
            for name in (self._path.name, IDS):
                self._mirror.pull(name)
            lines = self.folder / self._path.name
            self._file = lines.open("r+b" if lines.exists() else "w+b")
            (self.folder / "tensorboard").mkdir(exist_ok=True)
            # Not a SummaryWriter: its thread dies of a full disk, and the run would wait for it for ever.
            self._board = EventsWriter(str(self.folder / "tensorboard" / "events"))
        self._resume_at: int | None = 0
        self._pushed = time.monotonic()
        self._trackers = Trackers(
            tracking or Tracking(()),
            self.folder / IDS,
            None if self._mirror.remote else self.folder,
            saved=lambda: self._mirror.push(IDS),
        )

    def write(self, stage: str, step: int, kind: str, metrics: dict[str, float], *, offset: int = 0) -> None:
        """One line: {"stage", "step", "kind": "train" | "evaluate", **metrics}.

        Args:
          offset: steps of the stages before, added to `step` for TensorBoard's time axis.
        """
        line = json.dumps({"stage": stage, "step": step, "kind": kind, **metrics})
        with writing(self._path):
            if self._resume_at is not None:
                self._file.truncate(self._resume_at)
                self._file.seek(self._resume_at)
                self._resume_at = None
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            if self._mirror.remote and time.monotonic() - self._pushed > _PUSH_EVERY:
                self._push()
        self.scalars({f"{stage}/{kind}/{key}": value for key, value in metrics.items()}, offset + step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers for TensorBoard and the services alone: what is no result, such as a speed."""
        for name, value in values.items():
            self._show(summary.scalar(name, value), step)
        self._trackers.scalars(values, step)

    def figure(self, name: str, draw: Callable[[pathlib.Path], pathlib.Path], step: int) -> None:
        """Lets `draw` write `<last part of name>.png` in the work directory, and shows it in TensorBoard.

        A name that has an ending of its own, such as `policy.json`, is of a file that is no image and is shown nowhere.
        """
        file = name.rsplit("/", 1)[-1]
        image_file = not pathlib.PurePath(file).suffix
        file += ".png" * image_file
        with writing(self._path.parent / file):
            path = draw(self.folder / file)
            self._mirror.push(path.name)
        if not image_file:
            return
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._show(summary.image(name, pixels, dataformats="HWC"), step)
        self._trackers.figure(name, path, step)

    def _show(self, shown: summary.Summary, step: int) -> None:
        with writing(self._path.parent / "tensorboard"):
            self._board.write_event(Event(wall_time=time.time(), step=step, summary=shown))

    def sync(self) -> int:
        """Forces the lines to disk and returns their length in bytes, for `resume_at`."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()
            self._push()
        return self._file.tell() if self._resume_at is None else self._resume_at

    def _push(self) -> None:
        for name in (self._path.name, "tensorboard", PROFILE):
            self._mirror.push(name)
        self._pushed = time.monotonic()

    def resume_at(self, length: int) -> None:
        """Lets the first new line follow the first `length` bytes.

        What a run wrote after the checkpoint from which it resumes is dropped then, and not before: reopening a finished
        run changes nothing.
        """
        size = (self.folder / self._path.name).stat().st_size
        if size < length:
            logger.warning("%s has lost its end: %d of %d bytes remain", self._path, size, length)
        self._resume_at = min(length, size)

    def close(self, *, finished: bool = True) -> None:
        """Writes everything out.

        Args:
          finished: False for a run that stopped before its end, which the services are told.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._mirror.close)
            stack.callback(self._trackers.close, finished)
            stack.enter_context(writing(self._path))
            stack.enter_context(contextlib.closing(self._board))
            stack.enter_context(contextlib.closing(self._file))
            self.sync()


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in user_path("path", path).read_text().splitlines()]
