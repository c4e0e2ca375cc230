"""What a person sees during a run."""

import sys
import time

from rich import progress as bars
from rich.console import Console


class Progress:
    """A live bar on a terminal (images/s, loss, time left); a line of text now and then elsewhere.

    Args:
      enabled: False shows nothing.
      every: seconds between two lines where there is no terminal.
    """

    def __init__(self, *, enabled: bool = True, every: float = 10.0):
        self._console = Console(stderr=True, highlight=False)
        self._enabled, self._every = enabled, every
        self._live = enabled and self._console.is_terminal
        self._bar = bars.Progress(
            bars.TextColumn("[bold]{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[speed]}"),
            bars.TextColumn("{task.fields[loss]}"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = None
        self.images_per_second = 0.0

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def begin(self, name: str, steps: int, done: int) -> None:
        """A new stage of `steps` steps, of which `done` were done before."""
        if self._task is not None:
            self._bar.stop_task(self._task)
        self._task = self._bar.add_task(name, total=steps, completed=done, speed="compiling", loss="")
        self._name, self._steps, self._done = name, steps, done
        self._since, self._images, self._spoken = None, 0, time.monotonic()
        self._first = done

    def step(self, images: int) -> None:
        """One step over so many images was handed to the device."""
        self._done += 1
        self._images += images
        self._bar.update(self._task, completed=self._done)

    def report(self, metrics: dict[str, float]) -> None:
        """The metrics of a log line; also the moment at which speed is measured, since they were waited for."""
        now = time.monotonic()
        if self._since is not None:
            self.images_per_second = self._images / max(now - self._since, 1e-9)
            self._images, self._since = 0, now
        else:  # the first interval holds the compilation
            self._images, self._since, self._first = 0, now, self._done
            self._clock = now
        loss = next((f"loss {v:.4g}" for k, v in metrics.items() if k.endswith("loss")), "")
        speed = f"{self.images_per_second:,.0f} images/s" if self.images_per_second else "warming up"
        self._bar.update(self._task, speed=speed, loss=loss)
        if (
            self._enabled
            and not self._live
            and (now - self._spoken >= self._every or self._done == self._steps)
        ):
            steps = self._done - self._first
            remaining = (
                f", {(now - self._clock) / steps * (self._steps - self._done):.0f} s left" if steps else ""
            )
            self._say(f"{self._name} {self._done}/{self._steps}  {speed}  {loss}{remaining}")
            self._spoken = now

    def note(self, text: str, *, transient: bool = False) -> None:
        """A line beside the bar; a transient one only where a bar would hide the wait."""
        if self._enabled and (self._live or not transient):
            self._say(text)

    def _say(self, text: str) -> None:
        if self._live:
            self._console.print(text)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
