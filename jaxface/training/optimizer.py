"""Optimizers as a user chooses them: one documented dataclass that becomes an optax chain."""

import dataclasses
from typing import Annotated, Literal

import jax
import optax

from jaxface import optimizers
from jaxface.checks import Increasing, NonNegative, OpenFraction, Positive, ProperFraction, check_fields


def decay_mask(params):
    """True for the leaves that weight decay touches: all but biases and the scales of normalizations.

    PReLU slopes and class prototypes are decayed, as in the public face-recognition recipes.
    """

    def decays(path, _):
        return getattr(path[-1], "key", None) not in ("bias", "scale") if path else True

    return jax.tree_util.tree_map_with_path(decays, params)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An update rule with a learning-rate schedule."""

    name: str = "sgd"
    """Update rule: sgd with momentum, adam, adamw; amsgrad and uncorrected_adam, without bias correction; bamsprod, for networks
    with binary layers."""
    learning_rate: Annotated[float, Positive] = 0.1
    """Peak learning rate, > 0."""
    schedule: Literal["constant", "step", "linear", "cosine"] = "step"
    """Shape after the warm-up: constant, divided by 10 at `decay_at`, or falling to 0 linearly or by a half cosine."""
    decay_at: Annotated[tuple[float, ...], OpenFraction, Increasing()] = (0.5, 0.8)
    """Fractions of the run at which the `step` schedule divides the rate by 10, increasing, in (0, 1)."""
    warmup: Annotated[float, ProperFraction] = 0.0
    """Fraction of the run over which the rate rises linearly from 0, in [0, 1)."""
    momentum: Annotated[float, ProperFraction] = 0.9
    """Momentum of SGD (first-moment decay of the others), in [0, 1)."""
    weight_decay: Annotated[float, NonNegative] = 5e-4
    """Weight decay, ≥ 0; biases and normalization scales are exempt. AdamW adds it to the update, the others to the gradient."""
    clip_norm: Annotated[float | None, Positive] = None
    """Largest global gradient norm, > 0; none by default."""

    def learning_rates(self, steps: int) -> optax.Schedule:
        """The learning rate as a function of the step, for a run of `steps` steps."""
        warmup = round(self.warmup * steps)
        rest = max(steps - warmup, 1)
        after = {
            "constant": lambda: optax.constant_schedule(self.learning_rate),
            "step": lambda: optax.piecewise_constant_schedule(
                self.learning_rate, {round(f * steps) - warmup: 0.1 for f in self.decay_at}
            ),
            "linear": lambda: optax.linear_schedule(self.learning_rate, 0.0, rest),
            "cosine": lambda: optax.cosine_decay_schedule(self.learning_rate, rest),
        }[self.schedule]()
        if not warmup:
            return after
        rising = optax.linear_schedule(0.0, self.learning_rate, warmup)
        return optax.join_schedules([rising, after], [warmup])

    def build(self, steps: int, rule: optimizers.NamedRule | None = None) -> optax.GradientTransformation:
        """The optax transformation for a run of `steps` steps; UserError for an unknown name or a field out of its range.

        With `rule`, that one instead of the named one: (momentum, weight decay) -> `optimizers.Rule`.
        """
        check_fields(self, "optimizer.")
        decay = optax.add_decayed_weights(self.weight_decay, mask=decay_mask)
        links = (rule or optimizers.RULES[self.name])(self.momentum, decay)
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        rate = optax.scale_by_learning_rate(self.learning_rates(steps))
        return optax.chain(*clip, *links.direction, rate, *links.last)


def sgd(learning_rate: float = 0.1, **fields) -> Optimizer:
    """SGD with momentum and weight decay, divided by 10 at `decay_at` unless a schedule is given; `fields` as `Optimizer`."""
    return Optimizer(name="sgd", learning_rate=learning_rate, **fields)


def adam(learning_rate: float, *, schedule: str = "cosine", weight_decay: float = 0.0, **fields) -> Optimizer:
    """Adam without weight decay, its rate falling by a half cosine, unless given otherwise; `fields` as `Optimizer`."""
    return Optimizer(
        name="adam", learning_rate=learning_rate, schedule=schedule, weight_decay=weight_decay, **fields
    )
