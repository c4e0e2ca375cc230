"""What a method is compared with, and the step of it that is timed.

A method joins by `CASES`, a tuple of `Case`, in `benchmarks/methods/<slug>.py`.
"""

import dataclasses
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.recipes.recognition import Recipe
from jaxface import training
from jaxface.training.stages import Stages

EARLIER = 4  # steps of what is trained first; RCO records its teacher at each of them


class Work(NamedTuple):
    """A step, the state and the batch that it starts from."""

    step: Callable
    state: Any
    batch: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A method and its baseline.

    Attributes:
      name: of the row; its first word is the method.
      base: default configuration of the method.
      against: what the baseline is.
      work: (configuration, parallel) -> Work.
      baseline: overrides of `base` that make the baseline of it.
    """

    name: str
    base: Recipe
    against: str
    work: Callable[[Any, training.JitParallel], Work]
    baseline: Mapping[str, Any]


def started(stages: Stages, prefix: str, parallel: training.JitParallel) -> Work:
    """The first stage whose name starts with `prefix`, where it begins; those before it are run without being evaluated."""
    reached = []

    def until():
        source, outcome = iter(stages), None
        while not reached:
            stage = source.send(outcome) if isinstance(source, Generator) else next(source)
            stage = dataclasses.replace(stage, evaluate=None, figures=None)
            if stage.name.startswith(prefix):
                reached.append(stage)
                stage = dataclasses.replace(stage, steps=0)
            outcome = yield stage

    state = training.run(until(), parallel=parallel).state
    return Work(reached[0].step, state, next(reached[0].batches(state)))


def stage(build: Callable, name: str) -> Callable[[Any, training.JitParallel], Work]:
    """The work of a stage of an experiment."""
    return lambda config, parallel: started(build(config), name, parallel)
