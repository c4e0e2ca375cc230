"""The convolutions and matrix products of a network as shapes, for `jaxface.hardware`; nothing is computed."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from jaxface.hardware import ConvSpec, layer_cycles


def convolution_specs(
    module: nn.Module, image_shape: tuple[int, int, int], *, products: bool = True
) -> list[ConvSpec]:
    """The layers of one forward pass on one image, in the order in which they are computed.

    Args:
      module: a network of `jaxface.models`: (image [B, H, W, C], train=) -> anything.
      image_shape: (H, W, C).
      products: whether matrix products count too: [N, C] x [C, O] as 1 x 1 convolutions on N places, those of B examples or heads
        at a time as B groups.

    Returns:
      Shapes, named by the modules that they are in. Depthwise filters, whose form on a CPU is a sum of shifted images, are the
      convolutions that they are elsewhere; all other operations are left out.

    Raises:
      ValueError: an image of a shape that the network does not take.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda image: module.init(jax.random.key(0), image, train=False), image)
    return traced_layers(
        lambda variables, image: module.apply(variables, image, train=False),
        variables,
        image,
        products=products,
    )


def traced_layers(function: Callable, *arguments: Any, products: bool = True) -> list[ConvSpec]:
    """`convolution_specs` of any function of arrays or their shapes [1, ...]."""
    traced = jax.make_jaxpr(function)(*arguments)
    layers = _layers(traced.jaxpr, "", products)
    counts: dict[str, int] = {}
    named = []
    for layer in layers:
        counts[layer.name] = counts.get(layer.name, 0) + 1
        again = counts[layer.name]
        named.append(dataclasses.replace(layer, name=f"{layer.name}#{again}") if again > 1 else layer)
    return named


def _layers(jaxpr: core.Jaxpr, scope: str, products: bool) -> list[ConvSpec]:
    layers = []
    for equation in jaxpr.eqns:
        parameters = equation.params
        name = "/".join(part for part in (scope, str(equation.source_info.name_stack)) if part)
        if equation.primitive.name == "conv_general_dilated":
            layers.append(_convolution(equation, name))
        elif equation.primitive.name == "dot_general":
            if products:
                layers.append(_product(equation, name))
        elif "branches" in parameters:
            # Forms of one operation, by platform, of which some are written without a convolution.
            forms = [_layers(branch.jaxpr, name, products) for branch in parameters["branches"]]
            layers += max(forms, key=lambda form: sum(layer_cycles(form).macs) if form else 0)
        else:
            inner = [p for p in parameters.values() if isinstance(p, core.Jaxpr | core.ClosedJaxpr)]
            once = [layer for p in inner for layer in _layers(getattr(p, "jaxpr", p), name, products)]
            layers += once * (parameters["length"] if equation.primitive.name == "scan" else 1)
    return layers


def _convolution(equation, name: str) -> ConvSpec:
    parameters = equation.params
    numbers = parameters["dimension_numbers"]
    lhs, rhs = (variable.aval for variable in equation.invars[:2])
    out = equation.outvars[0].aval

    def size(shape, spec):
        places = [shape[axis] for axis in spec[2:]]
        return (*places, 1, 1)[:2] if len(places) < 3 else (places[0], math.prod(places[1:]))

    def pair(values):
        return (*values, 1, 1)[:2]

    (height, width), kernel, (rows, columns) = (
        size(aval.shape, spec)
        for aval, spec in zip((lhs, rhs, out), (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec), strict=True)
    )  # fmt: skip
    return ConvSpec(
        height,
        width,
        lhs.shape[numbers.lhs_spec[1]],
        out.shape[numbers.out_spec[1]],
        kernel,
        stride=pair(parameters["window_strides"]),
        dilation=pair(parameters["rhs_dilation"]),
        groups=parameters["feature_group_count"],
        bits_in=_bits(lhs),
        bits_weight=_bits(rhs),
        bits_out=_bits(out),
        out_height=rows * out.shape[numbers.out_spec[0]],
        out_width=columns,
        name=name,
    )


def _product(equation, name: str) -> ConvSpec:
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    lhs, rhs = (variable.aval for variable in equation.invars[:2])
    out = equation.outvars[0].aval
    groups = math.prod(lhs.shape[axis] for axis in batched)
    inner = math.prod(lhs.shape[axis] for axis in contracted)
    places = math.prod(lhs.shape) // (groups * inner)
    columns = math.prod(rhs.shape) // (groups * inner)
    return ConvSpec(
        places,
        1,
        groups * inner,
        groups * columns,
        1,
        groups=groups,
        bits_in=_bits(lhs),
        bits_weight=_bits(rhs),
        bits_out=_bits(out),
        name=name,
    )


def _bits(aval) -> int:
    return 8 * aval.dtype.itemsize
