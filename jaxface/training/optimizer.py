"""Optimizers as a user chooses them: one documented dataclass that becomes an optax chain."""

import dataclasses
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import optax

from jaxface import optimizers
from jaxface.checks import (
    Increasing,
    NonNegative,
    OpenFraction,
    Positive,
    ProperFraction,
    Range,
    check_fields,
    check_number,
)
from jaxface.errors import UserError
from jaxface.models.depth import depth_order
from jaxface.training.frozen import Frozen


def decay_mask(params):
    """True for the leaves that weight decay touches: all but biases, the scales of normalizations, the steps of quantizers, the
    thresholds of pruned tokens, the extra tokens and positions of transformers, and learned temperatures.

    PReLU slopes and class prototypes are decayed, as in the public face-recognition recipes.
    """
    exempt = ("bias", "scale", "log_step", "zero_point", "thresholds")
    exempt += ("class_token", "distillation_token", "positions", "temperature", "logit_scale")

    def decays(path, _):
        return getattr(path[-1], "key", None) not in exempt if path else True

    return jax.tree_util.tree_map_with_path(decays, params)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An update rule with a learning-rate schedule."""

    name: str = "sgd"
    """Update rule: sgd with momentum, nesterov with Nesterov's, adam, adamw; lion, lars, lamb, muon, adafactor, for large
    networks and batches; amsgrad and uncorrected_adam, without bias correction; radam, rectified; bamsprod, for networks with
    binary layers."""
    learning_rate: Annotated[float, Positive] = 0.1
    """Peak learning rate, > 0."""
    schedule: Literal["constant", "step", "linear", "cosine"] = "step"
    """Shape after the warm-up: constant, multiplied by `decay_by` at `decay_at`, or falling to 0 linearly or by a half cosine."""
    decay_at: Annotated[tuple[float, ...], OpenFraction, Increasing()] = (0.5, 0.8)
    """Fractions of the run at which the `step` schedule lowers the rate, increasing, in (0, 1)."""
    decay_by: Annotated[float, OpenFraction] = 0.1
    """Factor on the rate at each of them, in (0, 1)."""
    warmup: Annotated[float, ProperFraction] = 0.0
    """Fraction of the run over which the rate rises linearly, in [0, 1)."""
    warmup_from: Annotated[float, ProperFraction] = 0.0
    """Fraction of the rate from which it then rises, in [0, 1)."""
    hold: Annotated[float, ProperFraction] = 0.0
    """Fraction of the run, warm-up included, after which a linear or cosine schedule begins to fall, in [0, 1)."""
    momentum: Annotated[float, ProperFraction] = 0.9
    """Momentum of SGD (first-moment decay of the others), in [0, 1)."""
    weight_decay: Annotated[float, NonNegative] = 5e-4
    """Weight decay, ≥ 0; biases, normalization scales, extra tokens and positions are exempt. SGD, Adam and LARS add it to the
    gradient, the others to the update."""
    clip_norm: Annotated[float | None, Positive] = None
    """Largest global gradient norm, > 0; none by default."""
    rates: tuple[str, ...] = ()
    """Factors on the learning rate by part, as head=10 backbone=0.1; of several names for a parameter the one that reaches
    farthest into its path counts. A name is a path, such as backbone/stage1_block1, or its beginning up to a / or _; its first
    part may be left out."""
    layer_decay: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Factor on the learning rate from each part of the network to the one before it, in (0, 1]; the head has the whole rate."""
    frozen: tuple[str, ...] = ()
    """Parts that do not train, named as in `rates`."""
    frozen_statistics: bool = False
    """Batch normalizations of frozen parts use their running averages, which then stay as they are too."""

    def learning_rates(self, steps: int) -> optax.Schedule:
        """The learning rate as a function of the step, for a run of `steps` steps."""
        warmup = round(self.warmup * steps)
        held = max(round(self.hold * steps) - warmup, 0) if self.schedule in ("linear", "cosine") else 0
        rest = max(steps - warmup - held, 1)
        after = {
            "constant": lambda: optax.constant_schedule(self.learning_rate),
            "step": lambda: optax.piecewise_constant_schedule(
                self.learning_rate, {round(f * steps) - warmup: self.decay_by for f in self.decay_at}
            ),
            "linear": lambda: optax.linear_schedule(self.learning_rate, 0.0, rest),
            "cosine": lambda: optax.cosine_decay_schedule(self.learning_rate, rest),
        }[self.schedule]()
        if held:
            after = optax.join_schedules([optax.constant_schedule(self.learning_rate), after], [held])
        if not warmup:
            return after
        rising = optax.linear_schedule(self.warmup_from * self.learning_rate, self.learning_rate, warmup)
        return optax.join_schedules([rising, after], [warmup])

    @property
    def held(self) -> Frozen:
        """What does not train, for the step (`training.gradient_step`)."""
        return Frozen(self.frozen, self.frozen_statistics)

    def check_groups(self, params: Any) -> None:
        """Raises UserError for a name in `rates` or `frozen` that selects none of the parameters, arrays or shapes."""
        optimizers.check_groups("optimizer.rates", self._rates(), params)
        optimizers.check_groups("optimizer.frozen", self.frozen, params)

    def _rates(self) -> dict[str, float]:
        rates = {}
        for item in self.rates:
            name, equals, value = item.partition("=")
            try:
                rates[name] = float(value)
            except ValueError:
                equals = ""
            if not (name and equals):
                raise UserError(f"optimizer.rates: needs NAME=FACTOR, got {item!r}")
            check_number(f"optimizer.rates of {name}", rates[name], Positive)
        return rates

    def build(
        self,
        steps: int,
        rule: optimizers.NamedRule | None = None,
        *,
        network: tuple[str, nn.Module] | None = None,
    ) -> optax.GradientTransformation:
        """The optax transformation for a run of `steps` steps.

        Args:
          steps: of the run.
          rule: instead of the named one: (momentum, weight decay) -> `optimizers.Rule`.
          network: top-level name of its parameters, and the network whose order of parts `layer_decay` follows and whose step
            holds what is frozen (`held`).

        Returns:
          The transformation; its `init` raises UserError for a name in `rates` or `frozen` that selects nothing.

        Raises:
          UserError: an unknown name, a field out of its range, or `layer_decay` or `frozen_statistics` without a network for it.
        """
        check_fields(self, "optimizer.")
        rates = self._rates()
        order = ()
        if self.layer_decay != 1:
            if network is None:
                raise UserError("optimizer.layer_decay: needs a network, which this optimizer does not train")
            order = [[f"{network[0]}/{name}" for name in names] for names in depth_order(network[1])]
        if self.frozen_statistics and (network is None or not self.frozen):
            raise UserError("optimizer.frozen_statistics: needs frozen parts of a network")
        decay = optax.add_decayed_weights(self.weight_decay, mask=decay_mask)
        links = (rule or optimizers.RULES[self.name])(self.momentum, decay)
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        rate = [optax.scale_by_learning_rate(self.learning_rates(steps))]
        if rates or order:
            rate.append(optimizers.scale_groups(rates, depth_order=order, layer_decay=self.layer_decay))
        chain = optax.chain(*clip, *links.direction, *rate, *links.last)
        return optimizers.freeze(chain, self.frozen) if self.frozen else chain


def sgd(learning_rate: float = 0.1, **fields) -> Optimizer:
    """SGD with momentum and weight decay, divided by 10 at `decay_at` unless a schedule is given; `fields` as `Optimizer`."""
    return Optimizer(name="sgd", learning_rate=learning_rate, **fields)


def adam(learning_rate: float, *, schedule: str = "cosine", weight_decay: float = 0.0, **fields) -> Optimizer:
    """Adam without weight decay, its rate falling by a half cosine, unless given otherwise; `fields` as `Optimizer`."""
    return Optimizer(
        name="adam", learning_rate=learning_rate, schedule=schedule, weight_decay=weight_decay, **fields
    )
