"""Vision transformers of few bits: a ViT, DeiT or Swin with other layers in its fields, on floats to train, on integers to run.

Methods: qdetr, qvit
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxface.checks import Integers, check_fields
from jaxface.errors import UserError
from jaxface.hardware import LowBitCost, Product, low_bit_cost
from jaxface.layers import (
    Attention,
    DotProduct,
    InformationRectification,
    IntegerConv,
    IntegerDense,
    QuantizedConv,
    QuantizedDense,
    QuantizedDotProduct,
    integer_params,
    lsq_codes,
)
from jaxface.layers.quantization import OPERANDS, QUANTIZATION, Granularity, ZeroPoint
from jaxface.layers.qvit import RectificationForm
from jaxface.models.counting import elementwise_operations
from jaxface.models.transformers.swin import Swin
from jaxface.models.transformers.vit import ViT, exact_gelu

Operands = tuple[jax.Array, jax.Array]
QUANTIZED = (QuantizedDense, QuantizedConv)
LARGEST_ACTIVATION = 10.0


@dataclasses.dataclass(frozen=True)
class Precision:
    """Of how many bits a transformer's matrix products are, and what its quantizers share and have."""

    bits: Annotated[int, Integers(2, 8)] = 2
    """Bits of weights and inputs of all linear layers, of queries, keys, values and probabilities: 2 to 8."""
    edge_bits: Annotated[int, Integers(2, 8)] = 8
    """Bits of the layer of the patches and of the heads, weights and inputs."""
    granularity: Granularity = "tensor"
    """What of a layer's input shares a step: all of it, as integer products need, or each channel, as released."""
    zero_point: ZeroPoint | None = None
    """Zero points of inputs, queries, keys and values: none, in units of codes as released, or of the input as printed."""
    compat: bool = False
    """Zero points start as released, where there are some, and not at 0."""
    rectify: RectificationForm | None = "code"
    """Rectification of queries and keys: as released, as printed, or none."""


def clipped_gelu(x: jax.Array) -> jax.Array:
    """GELU within ±10, which Q-ViT quantizes."""
    return jnp.clip(exact_gelu(x), -LARGEST_ACTIVATION, LARGEST_ACTIVATION)


def quantized(model: nn.Module, precision: Precision) -> nn.Module:
    """A transformer with every matrix product on quantized operands; `jaxface.layers.calibrate` gives it its first steps.

    Its parameters are those of the model under the same names, and the quantizers' and rectifications' besides. Normalizations,
    softmaxes, residuals, biases, tokens and positions stay float.

    Args:
      model: a `ViT` (DeiT) or `Swin`.
      precision: of it.

    Raises:
      UserError: another model, or a field out of its range.

    Example:
      >>> from jaxface import models
      >>> module = quantized(models.create("vit_tiny", embedding=3, dim=8, depth=1, heads=2), Precision(bits=4))
      >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
      >>> sorted(jax.eval_shape(module.init, jax.random.key(0), image)["params"]["block1"]["attention"]["qkv"])
      ['bias', 'input_quantizer', 'kernel', 'kernel_quantizer']
    """
    check_fields(precision, "precision.")
    shared = {name: getattr(precision, name) for name in ("granularity", "zero_point", "compat")}
    inner = {"weight_bits": precision.bits, "input_bits": precision.bits, **shared}
    edge = {"weight_bits": precision.edge_bits, "input_bits": precision.edge_bits, **shared}
    return _composed(
        model,
        dense=functools.partial(QuantizedDense, **inner),
        edge_dense=functools.partial(QuantizedDense, **edge),
        conv=functools.partial(QuantizedConv, **edge),
        mix=_mix(precision, "fake"),
    )


def _mix(precision: Precision, implementation: str | None) -> Callable[..., nn.Module]:
    rectify = None
    if precision.rectify is not None:
        rectify = functools.partial(InformationRectification, form=precision.rectify)
    return functools.partial(
        QuantizedDotProduct,
        bits=precision.bits,
        zero_point=precision.zero_point,
        compat=precision.compat,
        rectify=rectify,
        implementation=implementation,
    )


def _composed(model, *, dense, edge_dense, conv, mix) -> nn.Module:
    """The model with these layers; other fields of its blocks and attentions stay."""
    fields: dict[str, Any] = {"conv": conv, "dense": edge_dense}
    layers = {"dense": dense, "mix": mix}
    if isinstance(model, Swin):
        fields["attention"] = functools.partial(model.attention, **layers)
        fields["merging"] = functools.partial(model.merging, dense=dense)
        fields["unit"] = functools.partial(model.unit, dense=dense, activation=clipped_gelu)
    elif isinstance(model, ViT):
        attention = getattr(model.unit, "keywords", {}).get("attention", Attention)
        fields["unit"] = functools.partial(
            model.unit,
            attention=functools.partial(attention, **layers),
            dense=dense,
            activation=clipped_gelu,
        )
    else:
        raise UserError(f"model: needs a ViT, DeiT or Swin to quantize, got {type(model).__name__}")
    return model.clone(**fields)


def to_integer(
    model: nn.Module,
    precision: Precision,
    variables: Mapping,
    image_shape: tuple[int, int, int],
    *,
    implementation: str | None = None,
) -> tuple[nn.Module, dict]:
    """The deployment form of a trained quantized transformer: products of int8 codes with int32 sums, attention by a kernel.

    Args:
      model: the float model that `quantized` took.
      precision: with one step for the input of a layer.
      variables: {"params", "quantization"}, trained.
      image_shape: (H, W, C).
      implementation: of `pallas_kernels.quantized_attention`; None for the fastest.

    Returns:
      (module, variables); the module's outputs are those of the quantized one, up to the rounding of float sums.

    Raises:
      UserError: steps per channel, zero points in units of the input, or variables of another model or that are not calibrated.
    """
    if precision.granularity != "tensor":
        raise UserError(
            f"granularity: integer products need one step for a layer's input ('tensor'), got {precision.granularity!r}"
        )
    if precision.zero_point == "input":
        raise UserError("zero_point: integer attention needs None or 'code', got 'input'")
    if QUANTIZATION not in variables:
        raise UserError("variables: need the collection 'quantization', which jaxface.layers.calibrate makes")
    module = _composed(
        model,
        dense=IntegerDense,
        edge_dense=IntegerDense,
        conv=IntegerConv,
        mix=_mix(precision, implementation),
    )
    layers = _layers(quantized(model, precision), variables, image_shape)

    @jax.jit
    def converted(params, starts):
        params, starts = flatten_dict(params), flatten_dict(starts)
        for path, layer in layers.items():
            inside, there = (_taken(flat, path) for flat in (params, starts))
            made = integer_params(layer, {"params": inside, QUANTIZATION: there})
            params |= {(*path, *name): leaf for name, leaf in flatten_dict(made).items()}
        return {"params": unflatten_dict(params), QUANTIZATION: unflatten_dict(starts)}

    return module, converted(variables["params"], variables[QUANTIZATION])


def _taken(flat: dict, path: tuple[str, ...]) -> dict:
    """What is under a path, taken out of a flat dict."""
    names = [name for name in flat if name[: len(path)] == path]
    return unflatten_dict({name[len(path) :]: flat.pop(name) for name in names})


def _layers(module, variables, image_shape) -> dict[tuple[str, ...], nn.Module]:
    """Path -> quantized layer."""
    layers = {}

    def watch(call, arguments, options, context):
        if isinstance(context.module, QUANTIZED) and context.method_name == "__call__":
            layers[context.module.path] = context.module
        return call(*arguments, **options)

    def run(variables, image):
        with nn.intercept_methods(watch):
            return module.apply(variables, image, train=False)

    jax.eval_shape(run, dict(variables), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return layers


def sown_operands(sown: Mapping) -> list[Operands]:
    """(queries, keys) [B, N, h, d] of each layer, from the first on, of what a pass has sown into the collection `OPERANDS`."""
    flat = flatten_dict(sown[OPERANDS])
    layers = sorted({path[:-1] for path in flat}, key=_place)
    return [tuple(flat[(*layer, name)][0] for name in ("query", "key")) for layer in layers]


def _place(path: tuple[str, ...]) -> list:
    """Blocks in the order of their numbers: block10 after block9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", "/".join(path))]


def query_codes(sown: Mapping, variables: Mapping, bits: int) -> list[jax.Array]:
    """The codes int8 [B, N, h, d] of the queries of each layer, of what a pass has sown, in the order of `sown_operands`.

    Args:
      sown: of `QuantizedDotProduct`.
      variables: {"params", "quantization"} of the network.
      bits: of the queries.
    """
    codes = []
    flat, starts, params = (
        flatten_dict(tree) for tree in (sown[OPERANDS], variables[QUANTIZATION], variables["params"])
    )
    for layer in sorted({path[:-1] for path in flat}, key=_place):
        place = (*layer, "query_quantizer")
        alpha = starts[(*place, "signed")] * jnp.exp(params[(*place, "log_step")])
        zero = params.get((*place, "zero_point"))
        codes.append(lsq_codes(flat[(*layer, "query")][0], alpha, zero, bits=bits, axis=2))
    return codes


def apply_with_operands(
    model: nn.Module, variables: Mapping, image: jax.Array, **options: Any
) -> tuple[Any, list[Operands]]:
    """One pass of a float transformer that also returns the queries and keys [B, N, h, d] of each layer, from the first on.

    Args:
      model: whose attentions mix by `jaxface.layers.DotProduct`.
      variables: of it.
      image: [B, H, W, C].
      **options: of the call; blocks are not rematerialized without `train=True`.
    """
    operands = []

    def watch(call, arguments, keywords, context):
        if isinstance(context.module, DotProduct) and context.method_name == "__call__":
            operands.append(tuple(arguments[:2]))
        return call(*arguments, **keywords)

    with nn.intercept_methods(watch):
        output = model.apply(variables, image, **options)
    return output, operands


def matrix_products(module: nn.Module, image_shape: tuple[int, int, int]) -> list[Product]:
    """The linear layers, convolutions and attention products of one image with their bits, in the order in which they run.

    Args:
      module: a transformer, float or `quantized`.
      image_shape: (H, W, C).
    """
    rows = []

    def watch(call, arguments, options, context):
        output = call(*arguments, **options)
        layer = context.module
        if context.method_name == "__call__":
            name = "/".join(layer.path)
            if isinstance(layer, (nn.Dense, nn.Conv, *QUANTIZED)):
                rows.append(_linear(name, layer, arguments[0].shape, output.shape))
            elif isinstance(layer, DotProduct | QuantizedDotProduct):
                rows.extend(_attention(name, layer, *(x.shape for x in arguments[:2])))
        return output

    def run(image):
        with nn.intercept_methods(watch):
            return module.init(jax.random.key(0), image, train=False)

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return rows


def _linear(name, layer, inputs, outputs) -> Product:
    taps = int(np.prod(getattr(layer, "kernel_size", ())))
    bits = (getattr(layer, "weight_bits", 32), getattr(layer, "input_bits", 32) or 32)
    weights = taps * inputs[-1] * outputs[-1]
    macs = weights * int(np.prod(outputs[:-1]))
    return Product(name, macs, weights, int(np.prod(inputs)), *bits)


def _attention(name, layer, query, key) -> list[Product]:
    batch, queries, heads, size = query
    bits = layer.all_bits() if isinstance(layer, QuantizedDotProduct) else (32,) * 4
    scores = batch * heads * queries * key[1]
    elements = batch * heads * size * np.array([queries, key[1]])
    return [
        Product(f"{name}/scores", scores * size, 0, int(elements.sum()), bits[1], bits[0]),
        Product(f"{name}/values", scores * size, 0, scores + int(elements[1]), bits[2], bits[3]),
    ]


def transformer_cost(module: nn.Module, image_shape: tuple[int, int, int]) -> LowBitCost:
    """Operations and bytes of a transformer on one image, its elementwise float operations included.

    Quantizers of weights are left out, which run once for all images; those of activations count.

    Args:
      module: float or `quantized`.
      image_shape: (H, W, C).

    Returns:
      `jaxface.hardware.low_bit_cost` of its products.

    Example:
      >>> from jaxface import models
      >>> model = models.create("vit_tiny", embedding=3, dim=8, depth=1, heads=2)
      >>> float_cost, low = (transformer_cost(m, (32, 32, 3)) for m in (model, quantized(model, Precision(bits=4))))
      >>> float_cost.macs == low.macs, float_cost.weight_bytes / low.weight_bytes > 4
      (True, True)
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    variables = {**variables, QUANTIZATION: _assumed(variables["params"])}
    elementwise = elementwise_operations(
        lambda variables, x: module.apply(variables, x, train=False),
        variables,
        image,
        without=("kernel_quantizer",),
    )
    return low_bit_cost(matrix_products(module, image_shape), elementwise=elementwise)


def _assumed(params: Mapping) -> dict:
    """Shapes of first steps for every quantizer."""
    places = [path[:-1] for path in flatten_dict(params) if path[-1] == "log_step"]
    sign = {True: "unsigned", False: "signed"}
    step = jax.ShapeDtypeStruct((), jnp.float32)
    return unflatten_dict({(*path, sign[path[-1] == "probability_quantizer"]): step for path in places})
