"""Stages: what a method is to the training loop.

A method is a sequence of stages. The loop knows nothing of methods; a method knows nothing of files, devices or
progress bars.
"""

import dataclasses
import pathlib
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxface.checks import AtLeast, check_number
from jaxface.training.workdir import STAGE_NAME

State = Any  # any pytree of arrays; `jaxface.training.TrainState` for a plain method
Metrics = dict[str, jax.Array]
HostBatch = dict[str, np.ndarray]
Figures = Mapping[str, Callable[[pathlib.Path], pathlib.Path]]
"""Name of a figure -> function that draws it to a path, and returns the path; `<name>.json` is a file that is no image."""
Evaluation = Callable[[State], dict[str, float]]  # one with figures has a method `figures(state) -> Figures`


class Batches(Protocol):
    """An endless iterator over host batches whose position can be saved and restored."""

    def __next__(self) -> HostBatch: ...

    def get_state(self) -> dict: ...

    def set_state(self, state: dict) -> None: ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a method.

    Attributes:
      name: unique in the run, of letters, digits and underscores; names its checkpoints and its records.
      init: (rng, previous_state) -> state. Pure; compiled, so that sharded parameters are born sharded. `previous_state`
        is the final state of the stage before, None in the first.
      step: (state, batch) -> (state, metrics). Pure; the batch is a flat dict with `image` float32 in [-1, 1], the metrics
        are scalars. The same function runs under `jit` over a mesh and under `pmap` (see `jaxface.axes`).
      batches: (state at the start of the stage) -> Batches, so that selections, replay memories and pseudo-labels may depend
        on the state. It must be a function of that state alone: a resumed run calls it again. None in a stage without steps.
      steps: number of optimization steps; 0 for a stage that only computes something.
      refresh: (state) -> state of the same shapes, on the host, before the first step and every `refresh_every` steps: what needs
        a pass over the whole training set, such as the choice of examples for an epoch. A function of the state alone; under
        `pmap` it sees one replica.
      refresh_every: steps from one call to the next; an epoch's, as a rule.
      evaluate: (state) -> metrics as floats, on the host; None to evaluate nothing.
      figures: (state that was evaluated last) -> Figures, asked for at the end; None for those of `evaluate`, if it has some.
      best: key of `evaluate` whose largest value marks the best checkpoint; None to keep only the last ones.
      sharding: name of a leaf or subtree -> PartitionSpec over the axes `data` and `model`. A leaf is sharded so when the name
        occurs in its path (in the optimizer's state too); everything else is replicated.
      compile_init: False for an `init` that reads files and therefore must not be traced.
      description: JSON-like, what the state is of; written beside the stage's checkpoints for those who open the run without its
        method (`workdir.read_description`).
      key: what its random key is derived from, its name unless given. Stages that play one part in runs that are compared, under
        whatever name and after whatever stages, have one key, and so the same initial weights.
    """

    name: str
    init: Callable[[jax.Array, State | None], State]
    step: Callable[[State, dict[str, jax.Array]], tuple[State, Metrics]] | None = None
    batches: Callable[[State], Batches] | None = None
    steps: int = 0
    refresh: Callable[[State], State] | None = None
    refresh_every: int = 1
    evaluate: Evaluation | None = None
    figures: Callable[[State], Figures] | None = None
    best: str | None = None
    sharding: Mapping[str, PartitionSpec] = dataclasses.field(default_factory=dict)
    compile_init: bool = True
    description: Mapping[str, Any] | None = None
    key: str | None = None

    def __post_init__(self):
        check_number("steps", self.steps, AtLeast(0))
        check_number("refresh_every", self.refresh_every, AtLeast(1))
        if not re.fullmatch(STAGE_NAME, self.name):
            raise ValueError(f"name: needs letters, digits and underscores, got {self.name!r}")

    def rng(self, run_rng: jax.Array) -> jax.Array:
        """The stage's random key: `run_rng` folded with a checksum of `key`, or of the name, and of nothing else."""
        return jax.random.fold_in(run_rng, zlib.crc32((self.key or self.name).encode()))


def figures_of(evaluate: Evaluation | None, state: State) -> Figures:
    """What an evaluation draws of the state that it saw last: nothing where it has no method `figures`."""
    draw = getattr(evaluate, "figures", None)
    return {} if draw is None else draw(state)


def no_figures(state: State) -> Figures:
    """For a stage that draws nothing although its evaluation could."""
    del state
    return {}


class Outcome(NamedTuple):
    """What a finished stage leaves; sent back into a generator of stages, so that the next stage may depend on it.

    `best` is the key of `metrics` whose largest value marks the best checkpoint, where the stage has one.
    """

    name: str
    state: State
    metrics: dict[str, float]
    best: str | None = None


Stages = Iterable[Stage] | Generator[Stage, Outcome, None]
