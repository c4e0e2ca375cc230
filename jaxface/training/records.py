"""What a run writes down as it goes: metrics as JSON lines and as TensorBoard events."""

import contextlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from jaxface.training.workdir import writing

logger = logging.getLogger(__name__)


class Records:
    """Metrics of a run, one JSON object a line, and the same as TensorBoard scalars.

    The lines hold nothing but what the run computed, so that an interrupted run and an uninterrupted one write the same
    bytes; speeds go to TensorBoard alone.

    Every method raises UserError where the disk is full or cannot be written.

    Args:
      workdir: where `metrics.jsonl` and `tensorboard/` go.
    """

    def __init__(self, workdir: pathlib.Path):
        self._path = workdir / "metrics.jsonl"
        with writing(workdir):
            self._file = self._path.open("r+b" if self._path.exists() else "w+b")
            (workdir / "tensorboard").mkdir(exist_ok=True)
            # Not a SummaryWriter: its thread dies of a full disk, and the run would wait for it for ever.
            self._board = EventsWriter(str(workdir / "tensorboard" / "events"))
        self._resume_at: int | None = 0

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
        for key, value in metrics.items():
            self.scalar(f"{stage}/{kind}/{key}", value, offset + step)

    def scalar(self, name: str, value: float, step: int) -> None:
        """A TensorBoard scalar that is no result, such as a speed."""
        self._show(summary.scalar(name, value), step)

    def figure(self, name: str, draw: Callable[[pathlib.Path], pathlib.Path], step: int) -> None:
        """Lets `draw` write `<last part of name>.png` in the work directory, and shows it in TensorBoard."""
        path = self._path.parent / f"{name.rsplit('/', 1)[-1]}.png"
        with writing(path):
            path = draw(path)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._show(summary.image(name, pixels, dataformats="HWC"), step)

    def _show(self, shown: summary.Summary, step: int) -> None:
        with writing(self._path.parent / "tensorboard"):
            self._board.write_event(Event(wall_time=time.time(), step=step, summary=shown))

    def sync(self) -> int:
        """Forces the lines to disk and returns their length in bytes, for `resume_at`."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()
        return self._file.tell() if self._resume_at is None else self._resume_at

    def resume_at(self, length: int) -> None:
        """Lets the first new line follow the first `length` bytes.

        What a run wrote after the checkpoint from which it resumes is dropped then, and not before: reopening a finished
        run changes nothing.
        """
        size = self._path.stat().st_size
        if size < length:
            logger.warning("%s has lost its end: %d of %d bytes remain", self._path, size, length)
        self._resume_at = min(length, size)

    def close(self) -> None:
        """Writes everything out."""
        with writing(self._path), contextlib.closing(self._board), contextlib.closing(self._file):
            self.sync()


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
