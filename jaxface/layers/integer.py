"""Quantized layers on integers, for inference: int8 codes of inputs and weights, int32 sums, one scale per output channel.

    y = α_x α_w (r_x + o) (.) r_w + b = s_o Σ_c r_xc r_wco + b'_o,        o of a zero point, folded into b'

`jaxface.models.transformers.to_integer` makes their variables of a trained network's.

Methods: qvit
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.quantization import (
    QUANTIZATION,
    QuantizedConv,
    QuantizedDense,
    code_range,
    lsq_codes,
)

_SHIFT = 128  # of unsigned codes of 8 bits, which int8 does not hold


class _Input(nn.Module):
    """round(clip((x - before) / step + after)) less a shift, as int8."""

    @nn.compact
    def __call__(self, x):
        before, step, after, low, high, shift = (
            self.param(name, nn.initializers.ones, ())
            for name in ("before", "step", "after", "low", "high", "shift")
        )
        y = (x.astype(jnp.float32) - before) / step + after
        return (jnp.round(jnp.clip(y, low, high)) - shift).astype(jnp.int8)


class IntegerDense(nn.Module):
    """`QuantizedDense` with one step for its input, on integers; fields as `flax.linen.Dense`.

    x [..., C] -> [..., O]. Parameters: `codes` int8 [C, O], `scale` and `bias` float32 [O], and those of `input`.

    Example:
      >>> layer, x = IntegerDense(8), jnp.zeros((2, 16))
      >>> jax.eval_shape(layer.init, jax.random.key(0), x)["params"]["codes"].dtype.name
      'int8'
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        codes = self.param("codes", nn.initializers.zeros, (x.shape[-1], self.features), jnp.int8)
        x8 = _Input(name="input")(x)
        contracted = (((x.ndim - 1,), (0,)), ((), ()))
        return _scaled(self, jax.lax.dot_general(x8, codes, contracted, preferred_element_type=jnp.int32))


class IntegerConv(nn.Module):
    """`QuantizedConv` with one step for its input, on integers, of patches that nothing pads; fields as `flax.linen.Conv`.

    x [B, H, W, C] -> [B, Ho, Wo, O]; `codes` is [kh, kw, C, O].

    Raises:
      UserError: another padding than "VALID".
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: Sequence[int] = (1, 1)
    padding: str = "VALID"
    use_bias: bool = True
    kernel_init: Callable | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.padding != "VALID":
            raise UserError(f"padding: integer convolutions need 'VALID', got {self.padding!r}")
        shape = (*self.kernel_size, x.shape[-1], self.features)
        codes = self.param("codes", nn.initializers.zeros, shape, jnp.int8)
        total = jax.lax.conv_general_dilated(
            _Input(name="input")(x),
            codes,
            tuple(self.strides),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=jnp.int32,
        )
        return _scaled(self, total)


def _scaled(layer, total):
    scale, bias = (layer.param(name, nn.initializers.zeros, (layer.features,)) for name in ("scale", "bias"))
    return (total.astype(jnp.float32) * scale + bias).astype(layer.dtype)


def integer_params(layer: QuantizedDense | QuantizedConv, variables: Mapping) -> dict:
    """Parameters of an `IntegerDense` or `IntegerConv` that computes what a trained layer does.

    Args:
      layer: the trained one.
      variables: its {"params", "quantization"}.

    Returns:
      Its weights as int8, whatever their bits.

    Raises:
      UserError: steps per channel of the input, which no integer product can have, or an input that is not quantized.

    Example:
      >>> from jaxface.layers import calibrate
      >>> layer, x = QuantizedDense(3, granularity="tensor"), jnp.linspace(-1, 1, 8).reshape(2, 4)
      >>> variables = calibrate(layer, layer.init(jax.random.key(0), x), x)
      >>> integers = IntegerDense(3).apply({"params": integer_params(layer, variables)}, x)
      >>> bool(jnp.allclose(integers, layer.apply(variables, x), atol=1e-5))
      True
    """
    if layer.input_bits is None or layer.granularity != "tensor":
        given = "none" if layer.input_bits is None else f"one per {layer.granularity}"
        raise UserError(
            f"granularity: integer products need one step for a layer's input ('tensor'), got {given}"
        )
    params, starts = variables["params"], variables[QUANTIZATION]

    def read(name):
        ((sign, start),) = starts[name].items()
        return start * jnp.exp(params[name]["log_step"]), sign == "signed"

    weight_step, _ = read("kernel_quantizer")
    step, signed = read("input_quantizer")
    low, high = code_range(layer.input_bits, signed=signed)
    zero = params["input_quantizer"].get("zero_point", jnp.zeros(()))
    code_domain = layer.zero_point != "input"
    shift = _SHIFT if high > 127 else 0
    offset = shift - jnp.round(zero) if code_domain else shift + zero / step
    codes = lsq_codes(params["kernel"], weight_step, bits=layer.weight_bits, axis=-1)
    scale = step * weight_step
    sums = codes.astype(jnp.int32).sum(axis=tuple(range(codes.ndim - 1)))
    return {
        "codes": codes,
        "scale": scale,
        "bias": params.get("bias", 0.0) + scale * offset * sums,
        "input": {
            "before": jnp.zeros(()) if code_domain else zero,
            "step": step,
            "after": jnp.round(zero) if code_domain else jnp.zeros(()),
            **{
                name: jnp.asarray(float(value))
                for name, value in (("low", low), ("high", high), ("shift", shift))
            },
        },
    }
