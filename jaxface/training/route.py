"""The route of a teacher: recorded as it trains, chosen from, and walked by a student (RCO, arXiv:1904.09149).

A route is a list of anchors: the teacher after more and more steps, the last one as it ended.

Methods: dcp_nas, ota, rco
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxface.checks import Integers, Positive, check_number
from jaxface.errors import UserError
from jaxface.training.checkpoints import checkpoint_steps, restore_params
from jaxface.training.distributed import on_host
from jaxface.training.recognition import statistics
from jaxface.training.stages import Stage, no_figures
from jaxface.training.step import TrainState, create_state
from jaxface.training.workdir import stage_folders


class Anchor(NamedTuple):
    """A point of a teacher's route.

    Attributes:
      step: of the teacher's training.
      load: the teacher there, as a state with `params` and the batch statistics in `extra`. It may read a file, so that a long
        route costs no memory.
    """

    step: int
    load: Callable[[], TrainState]

    @classmethod
    def recorded(cls, step: int, state: TrainState) -> "Anchor":
        """The teacher of a stage that ended: its averaged parameters and statistics, kept in host memory without the rest."""
        on_host = _host_state(state)
        return cls(step, lambda: on_host)


def equal_epoch_anchors(num_epochs: int, n: int) -> tuple[int, ...]:
    """Anchors at equal intervals of a training (EEI, arXiv:1904.09149; the rounding is ours).

        e_i = ⌈ i E / n ⌉,   i = 1..n;   e_n = E

    Args:
      num_epochs: E, epochs (or any other unit in which the training is counted).
      n: number of anchors in [1, E].

    Returns:
      n strictly increasing numbers in [1, E].

    Raises:
      UserError: n outside [1, E].
    """
    check_number("anchors", n, Integers(1, num_epochs))
    return tuple(-(-i * num_epochs // n) for i in range(1, n + 1))


def greedy_next_anchor(ratios: Sequence[float], current: int, threshold: float) -> int:
    """The hardest anchor that a student can still learn (greedy search, arXiv:1904.09149; recalled).

        the largest j > i with r_ij <= δ;   i + 1 where there is none, so that the route always ends (design)

    Args:
      ratios: [M] hardness ratios r_ij of the student trained on anchor i (`jaxface.losses.hardness_ratios`); only j > i count.
      current: i in [0, M - 1).
      threshold: δ > 0.

    Raises:
      UserError: δ that is not positive.
      ValueError: no anchor behind `current`, or a ratio behind it that is not finite.
    """
    check_number("threshold", threshold, Positive)
    ratios = np.asarray(ratios, np.float64)
    if ratios.ndim != 1 or not 0 <= current < len(ratios) - 1:
        raise ValueError(f"current: needs an anchor before the last of {ratios.shape}, got {current}")
    if not np.isfinite(ratios[current + 1 :]).all():
        raise ValueError(f"ratios: needs finite values, got {ratios[current + 1 :]}")
    learnable = np.flatnonzero(ratios[current + 1 :] <= threshold)
    return current + 1 + (int(learnable[-1]) if learnable.size else 0)


def check_steps(steps: Sequence[int], *, last: int | None = None, name: str = "route") -> None:
    """Raises UserError unless these are increasing numbers of steps from 1, the last of them `last` where that is given."""
    steps = list(steps)
    if not steps:
        raise UserError(f"{name}: needs at least one anchor, got none")
    if steps[0] < 1 or steps != sorted(set(steps)):
        raise UserError(f"{name}: needs increasing steps from 1, got {', '.join(map(str, steps))}")
    if last is not None and steps[-1] != last:
        raise UserError(f"{name}: needs to end at the teacher's last step, {last}, got {steps[-1]}")


def cut_stage(stage: Stage, at: Sequence[int]) -> list[Stage]:
    """A stage as several that train one after the other exactly as it does: same state, same data, same schedule.

    Each leaves the state at one of its steps, and shares the stage's compiled step. All are evaluated, figures come from the
    last, which has the stage's name; the others are named for the step at which they end, as teacher_80.

    Args:
      stage: with steps, and with batches whose position has a "step" and that do not depend on the state, as those of
        `jaxface.data.batches`.
      at: increasing numbers of steps, the last of them `stage.steps`.

    Raises:
      UserError: steps that do not increase, or end elsewhere.
    """
    check_steps(at, last=stage.steps)
    return [
        dataclasses.replace(
            stage,
            name=stage.name if end == stage.steps else f"{stage.name}_{end}",
            init=stage.init if start == 0 else _previous_state,
            batches=lambda state, start=start: batches_from(stage.batches(state), start),
            steps=end - start,
            figures=stage.figures if end == stage.steps else no_figures,
            key=stage.key or stage.name,
        )
        for start, end in itertools.pairwise((0, *at))
    ]


def _previous_state(rng, previous):
    return previous


def batches_from(batches, step: int):
    """Batches of `jaxface.data.batches`, the next of which is number `step`."""
    batches.set_state({**batches.get_state(), "step": step})
    return batches


def _host_state(state: TrainState) -> TrainState:
    """A state's averaged parameters and batch statistics in host memory, without the rest."""

    params, extra = on_host((state.averaged_params, statistics(state.extra)))
    return create_state(jax.random.key(0), params, extra=extra)


def run_anchors(folder: str | pathlib.Path) -> list[Anchor]:
    """The route that an earlier run left: every checkpoint of its last stage (keep them all with `--cadence.keep`).

    Raises:
      UserError: no run or no checkpoint there.
    """
    stages = stage_folders(folder)
    steps = checkpoint_steps(stages[-1]) if stages else []
    if not steps:
        raise UserError(f"checkpoint: {folder} holds no checkpoints; give the work directory of a run")

    def load(step: int) -> TrainState:
        saved = restore_params(stages[-1], step=step)
        params = {
            name: saved["params"][name] for name in ("backbone", "prototypes") if name in saved["params"]
        }
        return create_state(jax.random.key(0), params, extra=statistics(saved["extra"]))

    return [Anchor(step, lambda step=step: load(step)) for step in steps]


class Route(NamedTuple):
    """Where a teacher's anchors come from.

    Attributes:
      stages: that train the teacher from one record to the next; none where its run is finished.
      steps: of the teacher at each anchor, increasing.
      anchors: of a finished run; a stage that ends makes one (`Anchor.recorded`).
      shapes: of an anchor's state.
    """

    stages: list[Stage]
    steps: Sequence[int]
    anchors: list[Anchor]
    shapes: TrainState

    @classmethod
    def of_stage(cls, stage: Stage, steps: Sequence[int]) -> "Route":
        """Of a teacher that is still to be trained, recorded at some of its steps (`cut_stage`)."""
        shapes = jax.eval_shape(stage.init, jax.eval_shape(lambda: jax.random.key(0)), None)
        return cls(cut_stage(stage, steps), steps, [], shapes)

    @classmethod
    def of_run(cls, folder: str | pathlib.Path) -> "Route":
        """Of a finished run (`run_anchors`)."""
        anchors = run_anchors(folder)
        return cls([], [anchor.step for anchor in anchors], anchors, jax.eval_shape(anchors[-1].load))


def check_same_network(anchor: TrainState, first: TrainState) -> None:
    """Raises UserError unless two points of a route are one network: the same tree of the same shapes."""
    shapes = [
        {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf) for path, leaf in leaves}
        for leaves in (
            jax.tree_util.tree_leaves_with_path({"params": s.params, **statistics(s.extra)})
            for s in (anchor, first)
        )
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        shape, first_shape = (leaves.get(name, "nothing") for leaves in shapes)
        if shape != first_shape:
            raise UserError(
                f"anchors: need one network, {name} is {shape} in one and {first_shape} in another"
            )
