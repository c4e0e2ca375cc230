"""Update rules by the name that a configuration gives, each registered beside its definition.

Methods: bamsprod, nclpp
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import optax

from jaxface.registry import Registry


class Rule(NamedTuple):
    """The links of a chain around the learning rate.

    Attributes:
      direction: before it: from gradients to the direction of the step.
      last: after it: what needs the step as it will be added.
    """

    direction: Sequence[optax.GradientTransformation]
    last: Sequence[optax.GradientTransformation] = ()


NamedRule = Callable[[float, optax.GradientTransformation], Rule]
"""(momentum in [0, 1), weight decay as a transformation) -> Rule."""

RULES: Registry[NamedRule] = Registry("optimizer.name", "jaxface.optimizers")
"""Every rule by name."""


@RULES.register("sgd")
def _sgd(momentum, decay):
    return Rule([decay, optax.trace(momentum)])


@RULES.register("nesterov")
def _nesterov(momentum, decay):
    return Rule([decay, optax.trace(momentum, nesterov=True)])


@RULES.register("adam")
def _adam(momentum, decay):
    return Rule([decay, optax.scale_by_adam(b1=momentum)])


@RULES.register("adamw")
def _adamw(momentum, decay):
    return Rule([optax.scale_by_adam(b1=momentum), decay])
