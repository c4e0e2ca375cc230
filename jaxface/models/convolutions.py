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
      products: whether matrix products count too: [N, C] x [C, O] as 1 x 1 convolutions on N places, those of several examples or
        heads at a time as groups.

    Returns:
      Shapes, named by the modules that they are in. Depthwise filters, whose form on a CPU is a sum of shifted images, are the
      convolutions that they are elsewhere; other operations are left out. A module that computes its convolutions in another form
      says what they are by a method `conv_specs(input_shape) -> list[ConvSpec]`, which then stands for all inside it.
    """
    declared: dict[str, list[ConvSpec]] = {}

    def declare(call, arguments, keywords, context):
        describe = getattr(context.module, "conv_specs", None)
        if context.method_name == "__call__" and describe is not None:
            declared["/".join(context.module.path)] = describe(arguments[0].shape)
        return call(*arguments, **keywords)

    def forward(variables, image):
        with nn.intercept_methods(declare):
            return module.apply(variables, image, train=False)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda image: module.init(jax.random.key(0), image, train=False), image)
    traced = traced_layers(forward, variables, image, products=products)
    return _with_declared(traced, declared)


def traced_layers(function: Callable, *arguments: Any, products: bool = True) -> list[ConvSpec]:
    """The layers of any function of arrays or their shapes [1, ...]; those of one name are numbered."""
    layers = _layers(jax.make_jaxpr(function)(*arguments).jaxpr, "", products)
    counts: dict[str, int] = {}
    for index, layer in enumerate(layers):
        counts[layer.name] = counts.get(layer.name, 0) + 1
        if counts[layer.name] > 1:
            layers[index] = dataclasses.replace(layer, name=f"{layer.name}#{counts[layer.name]}")
    return layers


def _with_declared(layers: list[ConvSpec], declared: dict[str, list[ConvSpec]]) -> list[ConvSpec]:
    """The layers, of which those inside a module that declares its own are exchanged for these."""
    rest, result = dict(declared), []

    def taken(path):
        return [
            dataclasses.replace(spec, name="/".join(filter(None, (path, spec.name))))
            for spec in rest.pop(path)
        ]

    for layer in layers:
        # The first part of a traced name is the class of the network.
        place = layer.name.partition("/")[2]
        owner = next((path for path in declared if f"{place}/".startswith(f"{path}/")), None)
        if owner is None:
            result.append(layer)
        elif owner in rest:
            result += taken(owner)
    for path in list(rest):  # those of which nothing was traced
        result += taken(path)
    return result


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
    parameters, numbers = equation.params, equation.params["dimension_numbers"]
    left, right, out = (variable.aval for variable in (*equation.invars[:2], equation.outvars[0]))

    def places(aval, axes):
        return (*(aval.shape[axis] for axis in axes[2:]), 1, 1)[:2]

    height, width = places(left, numbers.lhs_spec)
    rows, columns = places(out, numbers.out_spec)
    return ConvSpec(
        height,
        width,
        left.shape[numbers.lhs_spec[1]],
        out.shape[numbers.out_spec[1]],
        places(right, numbers.rhs_spec),
        stride=(*parameters["window_strides"], 1, 1)[:2],
        dilation=(*parameters["rhs_dilation"], 1, 1)[:2],
        groups=parameters["feature_group_count"],
        out_height=rows,
        out_width=columns,
        name=name,
        **_bits(left, right, out),
    )


def _product(equation, name: str) -> ConvSpec:
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    left, right, out = (variable.aval for variable in (*equation.invars[:2], equation.outvars[0]))
    groups = math.prod(left.shape[axis] for axis in batched)
    inner = math.prod(left.shape[axis] for axis in contracted)
    rows, columns = (math.prod(aval.shape) // (groups * inner) for aval in (left, right))
    return ConvSpec(
        rows, 1, groups * inner, groups * columns, 1, groups=groups, name=name, **_bits(left, right, out)
    )


def _bits(left, right, out) -> dict[str, int]:
    names = ("bits_in", "bits_weight", "bits_out")
    return {name: 8 * aval.dtype.itemsize for name, aval in zip(names, (left, right, out), strict=True)}
