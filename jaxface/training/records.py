"""What a run writes down as it goes: metrics as JSON lines and as TensorBoard events."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter


class Records:
    """Metrics of a run, one JSON object a line, and the same as TensorBoard scalars.

    The lines hold nothing but what the run computed, so that an interrupted run and an uninterrupted one write the same
    bytes; speeds go to TensorBoard alone.

    Args:
      workdir: where `metrics.jsonl` and `tensorboard/` go.
    """

    def __init__(self, workdir: pathlib.Path):
        self._path = workdir / "metrics.jsonl"
        self._file = self._path.open("r+b" if self._path.exists() else "w+b")
        self._resume_at: int | None = 0
        self._board = SummaryWriter(str(workdir / "tensorboard"))

    def write(self, stage: str, step: int, kind: str, metrics: dict[str, float], *, offset: int = 0) -> None:
        """One line: {"stage", "step", "kind": "train" | "evaluate", **metrics}.

        Args:
          offset: steps of the stages before, added to `step` for TensorBoard's time axis.
        """
        if self._resume_at is not None:
            self._file.truncate(self._resume_at)
            self._file.seek(self._resume_at)
            self._resume_at = None
        line = json.dumps({"stage": stage, "step": step, "kind": kind, **metrics})
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        for key, value in metrics.items():
            self.scalar(f"{stage}/{kind}/{key}", value, offset + step)

    def scalar(self, name: str, value: float, step: int) -> None:
        """A TensorBoard scalar that is no result, such as a speed."""
        self._board.add_scalar(name, value, step)

    def figure(self, name: str, draw: Callable[[pathlib.Path], pathlib.Path], step: int) -> None:
        """Lets `draw` write `<last part of name>.png` in the work directory, and shows it in TensorBoard."""
        path = draw(self._path.parent / f"{name.rsplit('/', 1)[-1]}.png")
        with Image.open(path) as image:
            self._board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def sync(self) -> int:
        """Forces the lines to disk and returns their length in bytes, for `resume_at`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()
        return self._file.tell() if self._resume_at is None else self._resume_at

    def resume_at(self, length: int) -> None:
        """Lets the first new line follow the first `length` bytes.

        What a run wrote after the checkpoint from which it resumes is dropped then, and not before: reopening a finished
        run changes nothing.
        """
        self._resume_at = length

    def close(self) -> None:
        """Writes everything out."""
        self.sync()
        self._file.close()
        self._board.close()


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
