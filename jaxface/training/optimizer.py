"""Optimizers as a user chooses them: one documented dataclass that becomes an optax chain."""

import dataclasses
from typing import Literal

import jax
import optax

from jaxface.errors import UserError


def decay_mask(params):
    """True for the leaves that weight decay touches: all but biases and the scales of normalizations.

    PReLU slopes and class prototypes are decayed, as in the public face-recognition recipes.
    """

    def decays(path, _):
        return getattr(path[-1], "key", None) not in ("bias", "scale") if path else True

    return jax.tree_util.tree_map_with_path(decays, params)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """SGD with momentum, Adam or AdamW, with a learning-rate schedule."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """Update rule."""
    learning_rate: float = 0.1
    """Peak learning rate, > 0."""
    schedule: Literal["constant", "step", "linear", "cosine"] = "step"
    """Shape after the warm-up: constant, divided by 10 at `decay_at`, or falling to 0 linearly or by a half cosine."""
    decay_at: tuple[float, ...] = (0.5, 0.8)
    """Fractions of the run at which the `step` schedule divides the rate by 10, increasing, in (0, 1)."""
    warmup: float = 0.0
    """Fraction of the run over which the rate rises linearly from 0, in [0, 1)."""
    momentum: float = 0.9
    """Momentum of SGD (first-moment decay of Adam), in [0, 1)."""
    weight_decay: float = 5e-4
    """Weight decay, ≥ 0; biases and normalization scales are exempt. SGD adds it to the gradient, AdamW to the update."""
    clip_norm: float | None = None
    """Largest global gradient norm, > 0; none by default."""

    def check(self) -> None:
        """Raises UserError for a field out of its range."""
        if not self.learning_rate > 0:
            raise UserError(f"optimizer.learning_rate: needs a positive number, got {self.learning_rate}")
        if not 0 <= self.warmup < 1:
            raise UserError(f"optimizer.warmup: needs a fraction in [0, 1), got {self.warmup}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"optimizer.momentum: needs a value in [0, 1), got {self.momentum}")
        if not self.weight_decay >= 0:
            raise UserError(f"optimizer.weight_decay: needs a value of at least 0, got {self.weight_decay}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"optimizer.clip_norm: needs a positive number, got {self.clip_norm}")
        if list(self.decay_at) != sorted(set(self.decay_at)) or not all(0 < f < 1 for f in self.decay_at):
            raise UserError(f"optimizer.decay_at: needs increasing fractions in (0, 1), got {self.decay_at}")

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

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation for a run of `steps` steps."""
        self.check()
        decay = optax.add_decayed_weights(self.weight_decay, mask=decay_mask)
        rule = {
            "sgd": lambda: [decay, optax.trace(self.momentum)],
            "adam": lambda: [decay, optax.scale_by_adam(b1=self.momentum)],
            "adamw": lambda: [optax.scale_by_adam(b1=self.momentum), decay],
        }[self.name]()
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        return optax.chain(*clip, *rule, optax.scale_by_learning_rate(self.learning_rates(steps)))


def sgd(learning_rate: float = 0.1, **fields) -> Optimizer:
    """SGD with momentum and weight decay, divided by 10 at `decay_at` unless a schedule is given; `fields` as `Optimizer`."""
    return Optimizer(name="sgd", learning_rate=learning_rate, **fields)


def adam(learning_rate: float, *, schedule: str = "cosine", weight_decay: float = 0.0, **fields) -> Optimizer:
    """Adam without weight decay, its rate falling by a half cosine, unless given otherwise; `fields` as `Optimizer`."""
    return Optimizer(
        name="adam", learning_rate=learning_rate, schedule=schedule, weight_decay=weight_decay, **fields
    )
