"""How large a network is: parameters and multiply-accumulates, without running it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from jaxface.hardware import network_cycles
from jaxface.models.convolutions import traced_layers


def parameter_count(variables: Mapping) -> int:
    """Number of trained scalars: all of `variables["params"]`, or of `variables` itself if it has no such entry.

    Leaves may be arrays or the shapes that `jax.eval_shape` gives.

    Example:
      >>> from jaxface.models import create
      >>> network = create("mlp_8", embedding=4)
      >>> variables = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2, 2, 1), "float32"))
      >>> parameter_count(variables)
      76
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables.get("params", variables)))


def multiply_accumulates(module: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one forward pass on one image, in convolutions and matrix products.

        convolution: output elements · kernel height · kernel width · input channels per group
        matrix product: output elements · contracted elements

    Args:
      module: a network of `jaxface.models`.
      image_shape: (H, W, C).

    Returns:
      An exact integer; nothing is computed on a device. Normalization, activations and sums are not counted.

    Example:
      >>> from jaxface.models import create
      >>> multiply_accumulates(create("mlp_8", embedding=4), (2, 2, 1))  # 4 · 8 + 8 · 4
      64
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda image: module.init(jax.random.key(0), image, train=False), image)
    layers = traced_layers(
        lambda variables, image: module.apply(variables, image, train=False), variables, image
    )
    return network_cycles(layers).macs if layers else 0


_ARITHMETIC = (
    "add",
    "add_any",
    "sub",
    "mul",
    "div",
    "neg",
    "abs",
    "sign",
    "max",
    "min",
    "clamp",
    "round",
    "floor",
    "ceil",
)
_FUNCTIONS = (
    "exp",
    "exp2",
    "expm1",
    "log",
    "log1p",
    "erf",
    "erfc",
    "tanh",
    "logistic",
    "sqrt",
    "rsqrt",
    "square",
)
_BY_OUTPUT = frozenset((*_ARITHMETIC, *_FUNCTIONS, "integer_pow", "pow"))
_BY_INPUT = frozenset(("reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin", "cumsum"))


def elementwise_operations(function: Callable, *arguments: Any, without: tuple[str, ...] = ()) -> int:
    """Float operations of a function beside its matrix products and convolutions: one per element that an operation gives, or
    that a reduction reads.

    Args:
      function: of arrays.
      *arguments: arrays, or their shapes.
      without: names of modules whose operations are left out, such as those that run once per network and not once per image.

    Returns:
      An exact integer; nothing is computed on a device.

    Example:
      >>> x = jax.ShapeDtypeStruct((3, 4), "float32")
      >>> elementwise_operations(lambda x: jnp.exp(x).sum(axis=1) / 2, x)  # 12 powers, 12 sums, 3 quotients
      27
    """
    return _elementwise(jax.make_jaxpr(function)(*arguments).jaxpr, frozenset(without))


def _elementwise(jaxpr, without) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if not without.isdisjoint(str(equation.source_info.name_stack).split("/")):
            continue
        inner = [
            getattr(part, "jaxpr", part)
            for part in equation.params.values()
            if isinstance(part, core.Jaxpr | core.ClosedJaxpr)
        ]
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += repeats * sum(_elementwise(part, without) for part in inner)
        counted = equation.outvars if equation.primitive.name in _BY_OUTPUT else ()
        counted = equation.invars if equation.primitive.name in _BY_INPUT else counted
        for variable in counted[:1]:
            if jnp.issubdtype(variable.aval.dtype, jnp.floating):
                total += math.prod(variable.aval.shape)
    return total
