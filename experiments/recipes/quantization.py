"""What experiments with learned quantizers share: where a student starts, and how fast its steps learn.

Methods: qdetr, qvit
"""

import dataclasses
from typing import Any

import flax.linen as nn
import optax

from jaxface import optimizers, training
from jaxface.training.frozen import Frozen


@dataclasses.dataclass(frozen=True)
class StepRate:
    """A rule under which the logarithms of the quantizers' steps have a learning rate of their own."""

    rule: training.Optimizer
    factor: float

    @property
    def rates(self) -> tuple[str, ...]:
        """As the rule's, as all below."""
        return self.rule.rates

    @property
    def frozen(self) -> tuple[str, ...]:
        return self.rule.frozen

    @property
    def held(self) -> Frozen:
        return self.rule.held

    def check_groups(self, params: Any) -> None:
        self.rule.check_groups(params)

    def build(
        self, steps: int, *, network: tuple[str, nn.Module] | None = None
    ) -> optax.GradientTransformation:
        """The optax transformation."""
        scaled = optax.masked(optax.scale(self.factor), optimizers.name_mask(("log_step",)))
        return optax.chain(self.rule.build(steps, network=network), scaled)


def started_from(params: dict, float_params: dict) -> dict:
    """Parameters of the student: the teacher's where it has them, and fresh ones of quantizers and rectifications."""
    return {
        name: started_from(value, float_params[name])
        if isinstance(value, dict) and name in float_params
        else float_params.get(name, value)
        for name, value in params.items()
    }
