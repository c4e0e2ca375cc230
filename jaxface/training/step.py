"""The state of a plain method, and a step of gradient descent on one or several objectives."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxface import axes
from jaxface.checks import ProperFraction, check_number
from jaxface.errors import UserError
from jaxface.training.frozen import Frozen

Params = Any
LossFunction = Callable[[Params, Any, dict[str, jax.Array], jax.Array], tuple[jax.Array, tuple[Any, dict]]]


class TrainState(flax.struct.PyTreeNode):
    """Everything that a run needs to resume.

    Attributes:
      step: int32 scalar, steps taken.
      rng: key of the run; a step uses `fold_in(rng, step)`, so that it depends on nothing that is not saved.
      params: trained parameters, a dict by part ("backbone", "prototypes", …).
      extra: what the network carries but nothing differentiates, such as `{"batch_stats": …}` or a frozen teacher.
      opt_state: one optimizer state per objective.
      ema: exponential moving average of `params`, or None.
    """

    step: jax.Array
    rng: jax.Array
    params: Params
    extra: Any
    opt_state: tuple
    ema: Params | None = None

    @property
    def averaged_params(self) -> Params:
        """The parameters to evaluate: the moving average where there is one."""
        return self.params if self.ema is None else self.ema


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss, the parameters that it trains and their optimizer.

    Attributes:
      loss: (params, extra, batch, rng) -> (scalar, (new extra, metrics)).
      optimizer: any optax transformation.
      trains: top-level names of `params` that receive gradients; None for all. The others are constants of this loss.
      name: prefix of its metrics where a step has several objectives.
    """

    loss: LossFunction
    optimizer: optax.GradientTransformation
    trains: tuple[str, ...] | None = None
    name: str = ""

    def select(self, params: Params) -> Params:
        """The part of `params` that this objective trains."""
        if self.trains is None:
            return params
        missing = [name for name in self.trains if name not in params]
        if missing:
            raise ValueError(f"trains: {missing} not in params, which has {sorted(params)}")
        return {name: params[name] for name in self.trains}


def create_state(
    rng: jax.Array, params: Params, *objectives: Objective, extra: Any = None, ema: bool = False
) -> TrainState:
    """A state at step 0 with the optimizer state of every objective."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rng=rng,
        params=params,
        extra={} if extra is None else extra,
        opt_state=tuple(objective.optimizer.init(objective.select(params)) for objective in objectives),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
    )


def example_keys(state: TrainState, count: int) -> jax.Array:
    """A key for each of the `count` examples that a step sees on this device.

    The same however the batch is split over devices, and another one in every step.

    Args:
      state: of the step.
      count: examples of the batch on this device, static.

    Returns:
      [count] keys.
    """
    # Far from the folds that the step itself takes.
    step = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), 1 << 16)
    first = jax.lax.axis_index(axes.DATA) * count if axes.bound(axes.DATA) else 0
    return jax.vmap(functools.partial(jax.random.fold_in, step))(first + jnp.arange(count))


def _microbatches(batch: dict, count: int) -> dict:
    """[B, …] -> [count, B / count, …], dealt out in turn so that every device keeps its own rows."""

    def deal(x):
        if x.shape[0] % count:
            raise UserError(f"accumulate: {count} does not divide the batch of {x.shape[0]} on a device")
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    return jax.tree.map(deal, batch)


def _gradients(
    objective: Objective, state: TrainState, batch: dict, rng: jax.Array, accumulate: int, frozen: Frozen
):
    """Gradients, new extra and metrics of one objective; the mean over micro-batches where `accumulate` > 1."""

    def loss_of(trained, extra, batch, rng):
        params = trained if objective.trains is None else {**state.params, **trained}
        with frozen.held(params):
            return objective.loss(frozen.stopped(params), extra, batch, rng)

    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
    trained = objective.select(state.params)
    if accumulate == 1:
        (loss, (extra, metrics)), gradients = value_and_grad(trained, state.extra, batch, rng)
        return gradients, extra, {"loss": loss, **metrics}

    def add(carry, inputs):
        extra, total = carry
        small, index = inputs
        (loss, (extra, metrics)), gradients = value_and_grad(
            trained, extra, small, jax.random.fold_in(rng, index)
        )
        return (extra, jax.tree.map(jnp.add, total, gradients)), {"loss": loss, **metrics}

    zeros = jax.tree.map(jnp.zeros_like, trained)
    inputs = (_microbatches(batch, accumulate), jnp.arange(accumulate))
    (extra, total), metrics = jax.lax.scan(add, (state.extra, zeros), inputs)
    return jax.tree.map(lambda g: g / accumulate, total), extra, jax.tree.map(lambda m: m.mean(0), metrics)


def gradient_step(
    *objectives: Objective,
    accumulate: int = 1,
    ema_decay: float | None = None,
    frozen: Frozen | None = None,
):
    """A pure training step.

    The objectives are taken in order, each on the parameters that the one before has updated (a discriminator, then its
    generator). Under `pmap` gradients and metrics are averaged over the replicas.

    Args:
      objectives: one or several; those given to `create_state`, in the same order.
      accumulate: number of micro-batches into which a batch is cut; gradients are averaged over them, so that memory falls and
        the step stays the same (batch statistics excepted, which see one micro-batch after the other).
      ema_decay: in [0, 1), decay of the moving average per step; the state needs to be created with `ema=True`.
      frozen: parts whose gradients are 0; the objectives' optimizers leave them out.

    Returns:
      step(state, batch) -> (state, metrics); metrics hold `loss`, `gradient_norm` and what the losses report.

    Raises:
      ValueError: no objective, or two objectives without different names.
      UserError: `ema_decay` outside [0, 1).
    """
    names = [objective.name for objective in objectives]
    if not objectives or len(set(names)) != len(names):
        raise ValueError(f"objectives: needs at least one, each with its own name, got {names}")

    frozen = frozen or Frozen()
    if ema_decay is not None:
        check_number("ema_decay", ema_decay, ProperFraction)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(state.rng, state.step)
        if axes.bound(axes.DATA):
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axes.DATA))
        opt_states, reported = [], {}
        for index, objective in enumerate(objectives):
            gradients, extra, metrics = _gradients(
                objective, state, batch, jax.random.fold_in(rng, index), accumulate, frozen
            )
            gradients, metrics = axes.mean((gradients, metrics))
            trained = objective.select(state.params)
            updates, opt_state = objective.optimizer.update(gradients, state.opt_state[index], trained)
            updated = optax.apply_updates(trained, updates)
            params = updated if objective.trains is None else {**state.params, **updated}
            state = state.replace(params=params, extra=extra)
            opt_states.append(opt_state)
            metrics = {**metrics, "gradient_norm": optax.tree.norm(gradients)}
            prefix = f"{objective.name}/" if objective.name else ""
            reported |= {prefix + key: value for key, value in metrics.items()}
        ema = state.ema
        if ema_decay is not None:
            ema = optax.incremental_update(state.params, ema, 1.0 - ema_decay)
        return state.replace(step=state.step + 1, opt_state=tuple(opt_states), ema=ema), reported

    return step
