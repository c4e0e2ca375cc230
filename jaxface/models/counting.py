"""How large a network is: parameters and multiply-accumulates, without running it."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core


def parameter_count(variables: Mapping) -> int:
    """Number of trained scalars: all of `variables["params"]`, or of `variables` itself if it has no such entry.

    Leaves may be arrays or the shapes that `jax.eval_shape` gives.
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
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda image: module.init(jax.random.key(0), image, train=False), image)
    traced = jax.make_jaxpr(lambda variables, image: module.apply(variables, image, train=False))(
        variables, image
    )
    return _count(traced.jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        parameters = equation.params
        out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            # Everything in the kernel but its output channels: height · width · input channels per group.
            total += out * math.prod(kernel) // kernel[parameters["dimension_numbers"].rhs_spec[0]]
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            total += out * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif "branches" in parameters:
            # Branches are forms of one operation (by platform), and some are written without a convolution.
            total += max(_count(branch.jaxpr) for branch in parameters["branches"])
        else:
            inner = [p for p in parameters.values() if isinstance(p, (core.Jaxpr, core.ClosedJaxpr))]
            count = sum(_count(getattr(p, "jaxpr", p)) for p in inner)
            total += count * (parameters["length"] if equation.primitive.name == "scan" else 1)
    return total
