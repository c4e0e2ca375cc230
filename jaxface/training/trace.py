"""A trace of some steps of a run, as `jax.profiler` writes it and TensorBoard's profile tab, XProf or Perfetto opens it."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable

import jax

from jaxface.errors import UserError


@dataclasses.dataclass(frozen=True)
class ProfiledSteps:
    """The steps to trace, counted from 1 over all stages of a run, both ends among them."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> "ProfiledSteps":
        """FIRST:LAST; raises UserError for anything else, or where FIRST < 1 or LAST < FIRST."""
        match = re.fullmatch(r"\s*([0-9]{1,18}):([0-9]{1,18})\s*", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"profile: needs FIRST:LAST, two steps with 1 ≤ FIRST ≤ LAST, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"

    def check(self, steps: int) -> None:
        """Raises UserError where a run of so many steps ends before the first of these."""
        if self.first > steps:
            raise UserError(
                f"profile: needs steps from 1 to {steps}, which is where the run ends, got {self}"
            )


class Trace:
    """Traces the steps that it is told of; a resumed run those of them that it takes.

    Args:
      steps: which.
      folder: where the trace goes.
      note: called with a line when it is there.
    """

    def __init__(self, steps: ProfiledSteps, folder: pathlib.Path, note: Callable[[str], None]):
        self._steps, self._folder, self._note = steps, folder, note
        self._traced: list[int] = []
        self._running = contextlib.ExitStack()
        self._active = False

    def before(self, step: int) -> None:
        """Before the batch of a step is asked for."""
        if not self._active and self._steps.first <= step <= self._steps.last:
            jax.profiler.start_trace(str(self._folder))
            self._active = True
        if self._active:
            self._running.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))
            self._traced.append(step)

    def after(self, step: int, outputs) -> None:
        """After a step was started; `outputs` are what it computes."""
        if self._active:
            self._running.close()
            if step >= self._steps.last:
                jax.block_until_ready(outputs)
                self.stop()

    def stop(self) -> None:
        """Writes the trace, also where the run ends within it."""
        if self._active:
            self._running.close()
            self._active = False
            jax.profiler.stop_trace()
            self._note(f"steps {self._traced[0]} to {self._traced[-1]} are traced in {self._folder.name}/")

    def close(self) -> None:
        """`stop`, and a line where no step was traced."""
        self.stop()
        if not self._traced:
            self._note(f"profile: no step of {self._steps} was taken, so none is traced")
