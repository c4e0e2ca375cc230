"""A teacher that is the mean of its students (arXiv:1703.01780), inside of a training step.

Methods: pseco
"""

from collections.abc import Callable

import jax
import optax

from jaxface.training.step import TrainState

TEACHER = "teacher"
"""Name in `extra` under which a loss finds the teacher's parameters."""


def mean_teacher_step(
    step: Callable[[TrainState, dict], tuple[TrainState, dict]],
    momentum: Callable[[jax.Array], jax.Array],
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """A step before which the teacher moves towards the student; its losses see the teacher in `extra["teacher"]`.

        θ_T ← m_t θ_T + (1 - m_t) θ_S,    then the student's step t

    The teacher is the state's `ema`, so that it is what is evaluated; `create_state` needs `ema=True`. Parameters alone are
    averaged: statistics are shared, as those of frozen normalizations are.

    Args:
      step: (state, batch) -> (state, metrics) that leaves `ema` as it is (`gradient_step` without a decay).
      momentum: step -> m_t in [0, 1]; 0 copies the student bit for bit.

    Returns:
      step(state, batch) -> (state, metrics); metrics has `teacher_momentum` besides.
    """

    def with_teacher(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        if state.ema is None:
            raise ValueError("ema: needs a state with a moving average, create_state(…, ema=True)")
        kept = momentum(state.step)
        # m θ_T + (1 - m) θ_S in this form is θ_S exactly where m is 0.
        teacher = optax.incremental_update(state.params, state.ema, 1.0 - kept)
        state = state.replace(ema=teacher, extra={**state.extra, TEACHER: teacher})
        state, metrics = step(state, batch)
        extra = {name: value for name, value in state.extra.items() if name != TEACHER}
        return state.replace(extra=extra), {**metrics, "teacher_momentum": kept}

    return with_teacher
