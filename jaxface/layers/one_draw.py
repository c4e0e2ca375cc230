"""Initial weights out of one random draw.

A program that draws every weight by itself takes a second or two of compilation for each; networks of many small layers wait for
minutes. Layers whose initializers are `drawn` take theirs from one draw inside `init_at_once`, and draw by themselves elsewhere.

Methods: edic
"""

import contextvars
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_taken: contextvars.ContextVar = contextvars.ContextVar("jaxface_one_draw", default=None)


class _Draw:
    """Normal numbers that are given out in turn; without numbers it counts how many are asked for."""

    def __init__(self, numbers: jax.Array | None = None):
        self.numbers, self.given = numbers, 0

    def take(self, shape: tuple[int, ...]) -> jax.Array:
        start, self.given = self.given, self.given + math.prod(shape)
        if self.numbers is None:
            return jnp.zeros(shape)
        return self.numbers[start : self.given].reshape(shape)


def drawn(initializer: nn.initializers.Initializer, *, scale: float = 1.0, mode: str = "fan_in"):
    """An initializer of its own elsewhere; inside `init_at_once` normal with the variance scale / fan.

    Args:
      initializer: that of a layer alone.
      scale: of the variance.
      mode: "fan_in", "fan_avg", or "none" for a standard deviation of `scale` whatever the shape.
    """

    def init(rng, shape, dtype=jnp.float32):
        source = _taken.get()
        if source is None:
            return initializer(rng, shape, dtype)
        inputs = math.prod(shape[:-1])
        outputs = math.prod(shape[:-2]) * shape[-1] if len(shape) > 1 else 1
        fan = {"fan_in": inputs, "fan_avg": (inputs + outputs) / 2}.get(mode)
        std = scale if fan is None else math.sqrt(scale / fan)
        return (std * source.take(shape)).astype(dtype)

    return init


kernel = drawn(nn.initializers.lecun_normal())
"""Flax's default of a layer's weights: variance 1 / fan in."""
near_zero = drawn(nn.initializers.normal(1e-3), scale=1e-3, mode="none")
"""Standard deviation 0.001, for the last layer of what is added to something that is right at the start."""


def init_at_once(module: nn.Module, rng: jax.Array, *arguments: Any) -> Any:
    """`module.init(rng, *arguments)` whose `drawn` weights come from one draw.

    Args:
      module: the network. rng: key. arguments: of its call.

    Returns:
      Its variables.
    """

    def run(source):
        token = _taken.set(source)
        try:
            return module.init(rng, *arguments)
        finally:
            _taken.reset(token)

    count = _Draw()
    jax.eval_shape(lambda: run(count))
    return run(_Draw(jax.random.normal(jax.random.fold_in(rng, 1), (count.given,))))
