"""The loop: runs the stages of a method, writes down what they report, and resumes where it was interrupted."""

import collections
import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Generator, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxface.checks import AtLeast, check_fields
from jaxface.errors import UserError
from jaxface.paths import as_os_error, is_remote, user_path
from jaxface.training.checkpoints import Checkpoints
from jaxface.training.parallel import JitParallel, Parallel
from jaxface.training.progress import Progress
from jaxface.training.records import PROFILE, Records
from jaxface.training.stages import Outcome, Stage, Stages, figures_of
from jaxface.training.trace import ProfiledSteps, Trace
from jaxface.training.workdir import stage_folder, write_description, writing
from jaxface.training.writers.base import Tracking

IN_FLIGHT = 2  # steps that may be queued on the device: enough to hide the host, too few to fill the memory


class Diverged(UserError):
    """A loss became NaN or infinite."""


class Interrupted(SystemExit):
    """The run was asked to stop, saved itself, and the same command resumes it."""


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often a run looks at itself, in steps."""

    log_every: Annotated[int, AtLeast(1)] = 20
    """Write the mean of the training metrics every so many steps."""
    evaluate_every: Annotated[int, AtLeast(0)] = 0
    """Evaluate every so many steps besides at the end; 0 for the end alone. What is evaluated is saved first."""
    checkpoint_every: Annotated[int, AtLeast(1)] = 500
    """Save every so many steps besides before evaluations and at the end."""
    keep: Annotated[int, AtLeast(1)] = 2
    """How many of the newest checkpoints to keep; the best one is kept besides."""


class _StopSignal:
    """Remembers SIGTERM and SIGINT, so that the loop can end between two steps."""

    def __init__(self):
        self.received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self):
        def remember(number, _):
            if self.received == number == signal.SIGINT:
                raise KeyboardInterrupt  # asked twice
            self.received = number

        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not the main thread: signals are not ours
                self._old[number] = signal.signal(number, remember)
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def agreed(self, *, meeting: bool) -> int | None:
        """The signal to act on now: one that any process received, so that all stop after the same step.

        Args:
          meeting: whether every process makes this call after the same step; only then do several processes tell each other.
        """
        if jax.process_count() == 1:
            return self.received
        if not meeting:
            return None
        received = multihost_utils.process_allgather(np.int32(self.received or 0))
        return int(received.max()) or None


class _Pending:
    """Metrics of the steps since the last log line; on the device until somebody asks."""

    def __init__(self, rows: list[dict[str, float]] | None = None):
        self._rows: list[dict] = rows or []
        self._num_fetched = len(self._rows)  # rows[:num_fetched] are floats already

    def add(self, metrics: dict[str, jax.Array]) -> None:
        self._rows.append(metrics)

    def rows(self, last_step: int) -> list[dict[str, float]]:
        """All rows as floats.

        Raises:
          Diverged: a loss in them is not finite; the message names the step and the metric.
        """
        fetched = jax.device_get(self._rows[self._num_fetched :])
        self._rows[self._num_fetched :] = [{k: float(v) for k, v in row.items()} for row in fetched]
        first = last_step - len(self._rows) + 1
        for index, row in enumerate(self._rows[self._num_fetched :], self._num_fetched):
            for key, value in row.items():
                if key.rsplit("/", 1)[-1].endswith("loss") and not math.isfinite(value):
                    raise Diverged(f"{key} is {value} at step {first + index}")
        self._num_fetched = len(self._rows)
        return self._rows

    def take_mean(self, last_step: int) -> dict[str, float]:
        """Mean of every metric, after which nothing is pending."""
        rows = self.rows(last_step)
        means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        self._rows, self._num_fetched = [], 0
        return means


class _StageRun:
    """One stage between its first and its last step."""

    def __init__(
        self,
        stage: Stage,
        parallel: Parallel,
        cadence: Cadence,
        folder,
        records: Records | None,
        progress: Progress,
        offset: int,
        trace: Trace | None,
    ):
        self.stage, self.parallel, self.cadence = stage, parallel, cadence
        self.records, self.progress, self.offset, self.trace = records, progress, offset, trace
        self.checkpoints = None if folder is None else Checkpoints(folder, keep=cadence.keep)
        self.folder = folder
        self.batches = None
        self.pending = _Pending()
        self.metrics: dict[str, float] = {}
        self.unjudged = False  # an earlier process saved the state and did not come to evaluate it
        self.complete = False  # every step taken, saved and evaluated by an earlier process

    def start(self, rng: jax.Array, previous) -> tuple[Any, int]:
        """The state to resume from, and its step."""
        stage = self.stage
        state = self.parallel.create(
            stage.init, rng, previous, rules=stage.sharding, compiled=stage.compile_init
        )
        if stage.steps:
            self.batches = stage.batches(self.parallel.single(state))
        if self.checkpoints is None:
            return state, 0
        if self.batches is not None and (position := self.checkpoints.newest_position()) is not None:
            # Other data are refused by name, not by the shapes that they make.
            self.batches.set_state(position["batches"])
        single = jax.eval_shape(lambda: self.parallel.single(state))
        saved = self.checkpoints.restore(single, self.parallel.shardings(single, stage.sharding))
        if saved is None:
            return state, 0
        self.unjudged = not saved.position["evaluated"]
        self.complete = saved.step == stage.steps and not self.unjudged
        self.pending = _Pending(saved.position["pending"])
        self.metrics = saved.position["metrics"]
        if self.batches is not None:
            self.batches.set_state(saved.position["batches"])
        if self.records is not None:
            self.records.resume_at(saved.position["records"])
        return self.parallel.spread(saved.state), saved.step

    def run(self, rng: jax.Array, previous, stop: _StopSignal) -> Outcome:
        try:
            return self._run(rng, previous, stop)
        finally:
            if self.checkpoints is not None:
                self.checkpoints.close()  # whatever ended the stage, a checkpoint being written is finished

    def _run(self, rng: jax.Array, previous, stop: _StopSignal) -> Outcome:
        stage = self.stage
        state, start = self.start(rng, previous)
        # Not before: a run that is refused leaves what it found.
        if self.folder is not None and stage.description is not None and jax.process_index() == 0:
            write_description(self.folder, stage.description)
        done = start
        if start < stage.steps:
            if self.unjudged:
                self.judge(state, start)
            step = self.parallel.compile(stage.step)
            in_flight: collections.deque = collections.deque()
            self.progress.begin(stage.name, stage.steps, start)
            for done in range(start + 1, stage.steps + 1):
                if self.trace is not None:
                    self.trace.before(self.offset + done)
                if stage.refresh is not None and (done - 1) % stage.refresh_every == 0:
                    state = self.parallel.refreshed(state, stage.refresh)
                batch = next(self.batches)
                state, metrics = step(state, batch)
                if self.trace is not None:
                    self.trace.after(self.offset + done, metrics)
                self.pending.add(metrics)
                in_flight.append(metrics)
                if len(in_flight) > IN_FLIGHT:
                    jax.block_until_ready(in_flight.popleft())
                self.progress.step(len(next(iter(batch.values()))))
                self.after_step(state, done, stop)
        if not self.complete:
            # An evaluation or a figure that fails costs no training: the same command resumes from here.
            self.save(state, done, evaluated=not self.evaluates)
            if self.evaluates:
                if self.checkpoints is not None:
                    self.checkpoints.wait()
                self.judge(state, done, draw=True)
        return Outcome(stage.name, self.parallel.single(state), self.metrics, stage.best)

    def after_step(self, state, done: int, stop: _StopSignal) -> None:
        cadence, last = self.cadence, done == self.stage.steps
        logged = done % cadence.log_every == 0 or last
        if logged:
            self.log(done)
        if last:
            return
        asked = stop.agreed(meeting=logged)
        due = self.stage.evaluate and cadence.evaluate_every and done % cadence.evaluate_every == 0
        if due or asked is not None or done % cadence.checkpoint_every == 0:
            self.save(state, done, evaluated=not due)
        if asked is not None:
            self.progress.note(
                f"stopped at step {done} of {self.stage.name}; the same command resumes from here"
            )
            raise Interrupted(0 if asked == signal.SIGTERM else 130)
        if due:
            self.judge(state, done)

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to do with the state once every step is taken."""
        return self.stage.evaluate is not None or self.stage.figures is not None

    def judge(self, state, done: int, *, draw: bool = False) -> None:
        """Evaluates a state that is saved, and says so in its checkpoint."""
        self.evaluate(state, done)
        if draw:
            self.draw(state, done)
        if self.checkpoints is not None:
            self.checkpoints.amend(done, {**self.results(), "evaluated": True})

    def results(self) -> dict[str, Any]:
        """What an evaluation adds to a checkpoint."""
        return {
            "metrics": self.metrics,
            "records": 0 if self.records is None else self.records.sync(),
            "score": self.metrics.get(self.stage.best),
        }

    def log(self, done: int) -> None:
        try:
            means = self.pending.take_mean(done)
        except Diverged as error:
            raise Diverged(f"{error} of stage {self.stage.name}; {self.last_good()}") from None
        self.progress.report(means)
        if self.records is not None:
            self.records.write(self.stage.name, done, "train", means, offset=self.offset)
            speed = {"images_per_second": self.progress.images_per_second}
            self.records.scalars(speed, self.offset + done)

    def last_good(self) -> str:
        if self.checkpoints is None:
            return "no checkpoint was kept"
        self.checkpoints.wait()
        latest = self.checkpoints.latest()
        return f"the last good checkpoint is {latest}" if latest else "there is no checkpoint before it"

    def evaluate(self, state, done: int) -> None:
        if self.stage.evaluate is None:
            return
        self.progress.note(f"evaluating {self.stage.name} at step {done}", transient=True)
        self.metrics = {k: float(v) for k, v in self.stage.evaluate(self.parallel.single(state)).items()}
        if self.records is not None:
            self.records.write(self.stage.name, done, "evaluate", self.metrics, offset=self.offset)

    def draw(self, state, done: int) -> None:
        if self.records is None:
            return
        single, draw = self.parallel.single(state), self.stage.figures
        figures = figures_of(self.stage.evaluate, single) if draw is None else draw(single)
        for name, figure in figures.items():
            self.records.figure(f"{self.stage.name}/{name}", figure, self.offset + done)

    def save(self, state, done: int, *, evaluated: bool) -> None:
        """Saves a state; `evaluated` is False where that is still to be done."""
        if self.checkpoints is None:
            return
        try:
            pending = self.pending.rows(done)  # a checkpoint with a NaN behind it would be no good one
        except Diverged as error:
            raise Diverged(f"{error} of stage {self.stage.name}; {self.last_good()}") from None
        position = {
            "batches": None if self.batches is None else self.batches.get_state(),
            "pending": list(pending),
            **self.results(),
            "score": None,
            "evaluated": evaluated,
        }
        self.checkpoints.save(done, self.parallel.single(state), position)


def run(
    stages: Stages,
    *,
    seed: int = 0,
    parallel: Parallel | None = None,
    cadence: Cadence = Cadence(),
    workdir: str | os.PathLike | None = None,
    progress: bool = False,
    tracking: Tracking | None = None,
    profile: ProfiledSteps | None = None,
) -> Outcome:
    """Runs the stages of a method to the end, or resumes an interrupted run.

    With a work directory, everything that the run needs is saved there: a run stopped at any moment and started again ends
    bit-for-bit where the uninterrupted one ends (same devices, same flags). SIGTERM saves and exits with status 0.

    Args:
      stages: a sequence of stages, or a generator, which is sent the `Outcome` of each stage.
      seed: of the run's random key, from which the key of every stage is derived by what it is, not by its place (`Stage.key`).
      parallel: how to use the devices; `jit` over all of them by default.
      cadence: how often to log, evaluate and save.
      workdir: folder for `checkpoints/`, `metrics.jsonl` and `tensorboard/`, of this machine or an address that
        `jaxface.paths.user_path` takes; None to keep everything in memory.
      progress: whether to show a progress bar (lines of text where there is no terminal).
      tracking: services that are told the same numbers, where there is a work directory.
      profile: steps of which a trace is written to `profile/` of the work directory, by the first process.

    Returns:
      The outcome of the last stage, its `metrics` prefixed with the stage's name where there were several stages.

    Raises:
      Diverged: a loss became NaN or infinite; names the step, the metric and the last good checkpoint.
      Interrupted: a signal asked to stop; everything is saved.
      UserError: no stage, or two stages of one name; a full or read-only work directory; no good checkpoint among those there;
        several processes with a work directory that is an address; a writer whose package is missing; steps to trace behind the
        end of the run, or without a work directory.
    """
    check_fields(cadence, "cadence.")
    parallel = JitParallel() if parallel is None else parallel
    rng = jax.random.key(seed)
    started = time.monotonic()
    if tracking is not None:
        tracking.check()
    if profile is not None:
        if workdir is None:
            raise UserError("profile: needs a workdir to write to")
        if isinstance(stages, Sequence):
            profile.check(sum(stage.steps for stage in stages))
    if workdir is not None:
        workdir = user_path("workdir", workdir)
        if is_remote(workdir) and jax.process_count() > 1:
            raise UserError(
                f"workdir: several processes need a folder that all of them see, such as a mounted bucket, got {workdir}"
            )
        with writing(workdir), as_os_error() if is_remote(workdir) else contextlib.nullcontext():
            workdir.mkdir(parents=True, exist_ok=True)
    writes = workdir is not None and jax.process_index() == 0
    records = Records(workdir, tracking) if writes else None
    outcomes: list[Outcome] = []
    offset = 0
    source = iter(stages)
    with contextlib.ExitStack() as stack:
        if records is not None:
            stack.push(lambda failure, *_: records.close(finished=failure is None))
        bar = stack.enter_context(Progress(enabled=progress and jax.process_index() == 0))
        trace = None
        if profile is not None and records is not None:
            trace = Trace(profile, records.folder / PROFILE, bar.note)
            stack.callback(trace.close)
        stop = stack.enter_context(_StopSignal())
        while True:
            last = outcomes[-1] if outcomes else None
            try:
                stage = source.send(last) if isinstance(source, Generator) else next(source)
            except StopIteration:
                break
            if stage.name in [outcome.name for outcome in outcomes]:
                raise UserError(f"stages: two stages are named {stage.name!r}")
            folder = None if workdir is None else stage_folder(workdir, len(outcomes), stage.name)
            stage_run = _StageRun(stage, parallel, cadence, folder, records, bar, offset, trace)
            outcome = stage_run.run(stage.rng(rng), last.state if last else None, stop)
            # States of earlier stages are let go: a route or a search has many, and who needs one keeps it.
            outcomes = [o._replace(state=None) for o in outcomes] + [outcome]
            offset += stage.steps
        if not outcomes:
            raise UserError("stages: a method needs at least one stage")
        bar.note(f"finished in {time.monotonic() - started:.0f} s")
    if len(outcomes) == 1:
        return outcomes[0]
    merged = {f"{o.name}/{k}": v for o in outcomes for k, v in o.metrics.items()}
    best = next((f"{o.name}/{o.best}" for o in reversed(outcomes) if o.best), None)
    return Outcome(outcomes[-1].name, outcomes[-1].state, merged, best)
