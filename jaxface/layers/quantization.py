"""Learned quantizers, LSQ (arXiv:1902.08153) and LSQ+ (arXiv:2004.09576), and the layers that compute on what they give.

    y = x / α + z,   r = round(clip(y, Qn, Qp)),   x̂ = α (r - z)

A network is made of these layers by its fields (`Attention(dense=, mix=)`, `ViT(conv=, dense=, unit=)`), and `calibrate` gives
every quantizer its first step and its signs from a batch, on the host, before anything is compiled. What they compute
afterwards are floats on integer grids; `jaxface.layers.integer` has the same layers on the integers.

Methods: qdetr, qvit
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxface.checks import Integers, check_number
from jaxface.errors import UserError
from pallas_kernels.common import Implementation
from pallas_kernels.quantized_attention import AttnSteps, quantized_attention

ZeroPoint = Literal["code", "input"]
"""What a zero point is in: "code", x̂ = α (r - z) with z rounded; or "input", x̂ = α r + z with r of (x - z) / α."""
Granularity = Literal["channel", "tensor"]
"""What of a layer's input shares a step: each channel has one, or all have the same, as an integer product needs it."""

QUANTIZATION = "quantization"
"""Collection of the quantizers' first steps; the name of a leaf, "signed" or "unsigned", is static in a compiled function."""
OPERANDS = "attention_operands"
"""Collection into which `QuantizedDotProduct` sows the queries and keys that it quantizes."""

BITS = Integers(2, 8)
NEGATIVE = -1e-5
"""Values below it make a quantizer signed."""
_CALIBRATION = "calibration"
_SIGNS = {"signed": True, "unsigned": False}


def code_range(bits: int, *, signed: bool = True) -> tuple[int, int]:
    """Least and greatest code (Qn, Qp): -2^(b-1), 2^(b-1) - 1, or 0, 2^b - 1 unsigned.

    Raises:
      UserError: bits outside 2 to 8.

    Example:
      >>> code_range(2), code_range(4, signed=False)
      ((-2, 1), (0, 15))
    """
    check_number("bits", bits, BITS)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


class _Grid(NamedTuple):
    """What of a quantizer is static."""

    low: int
    high: int
    axis: int | None
    domain: str
    gradient_scale: float


def lsq_quantize(
    x: jax.Array,
    alpha: jax.Array,
    zero_point: jax.Array | None = None,
    *,
    bits: int,
    signed: bool = True,
    axis: int | None = None,
    numel: int | None = None,
    zero_point_domain: ZeroPoint = "code",
) -> jax.Array:
    """x on the grid of a learned step (arXiv:1902.08153, equations 1 to 3; zero points as arXiv:2004.09576).

        "code":   y = x / α + z̄,     x̂ = α (round(clip(y)) - z̄),   z̄ = round(z)
        "input":  y = (x - z) / α,   x̂ = α round(clip(y)) + z

    Rounding is half to even. Gradients go straight through it and, where Qn ≤ y ≤ Qp (both included), through the clip:

        dx = u·1[in],   dα = g Σ u·(round(y) - y inside, the clipped y less z̄ outside),   dz = g Σ u·(-α, or 1)·1[out]

    with u that of x̂ and g = 1 / √(numel · Qp), over all axes but the step's own.

    Args:
      x: float, any shape; float32 is computed in at least.
      alpha: α > 0: a scalar, or [x.shape[axis]].
      zero_point: z, shaped as α; None for 0.
      bits: b, 2 to 8, static.
      signed: whether codes go from -2^(b-1) to 2^(b-1) - 1, or from 0 to 2^b - 1; static.
      axis: of x, along which steps differ (channels, heads); None for one step. Static.
      numel: elements that g counts; those of x unless given, the batch included.
      zero_point_domain: "code" or "input", static.

    Returns:
      x̂, of x's shape and type.

    Raises:
      UserError: bits or domain out of range, steps of another shape; where the values are known, steps that are not finite and
        positive, or negative values below -1e-5 for an unsigned quantizer.

    Example:
      >>> lsq_quantize(jnp.array([-2.0, 0.24, 0.26, 3.0]), jnp.float32(0.5), bits=2).tolist()
      [-1.0, 0.0, 0.5, 0.5]
    """
    grid, alpha, zero_point = _checked(x, alpha, zero_point, bits, signed, axis, numel, zero_point_domain)
    return _quantize(x, alpha, zero_point, grid)


def lsq_codes(
    x: jax.Array,
    alpha: jax.Array,
    zero_point: jax.Array | None = None,
    *,
    bits: int,
    signed: bool = True,
    axis: int | None = None,
    zero_point_domain: ZeroPoint = "code",
) -> jax.Array:
    """The integers r of `lsq_quantize`, whose arguments these are; no gradient.

    Returns:
      int8 of x's shape; uint8 for unsigned codes of 8 bits, which int8 does not hold.

    Example:
      >>> lsq_codes(jnp.array([-2.0, 0.24, 0.26, 3.0]), jnp.float32(0.5), bits=2).tolist()
      [-2, 0, 1, 1]
    """
    grid, alpha, zero_point = _checked(x, alpha, zero_point, bits, signed, axis, None, zero_point_domain)
    y, _ = _ratio(x, _along(alpha, x, axis), _along(zero_point, x, axis), zero_point_domain)
    return jnp.round(jnp.clip(y, grid.low, grid.high)).astype(jnp.uint8 if grid.high > 127 else jnp.int8)


def lsq_init_alpha(x: jax.Array, *, bits: int, signed: bool = True) -> jax.Array:
    """First step 2 mean|x| / √Qp of a tensor, one for all channels (arXiv:1902.08153, section 2.1); 1 where all of x is 0.

    Example:
      >>> round(float(lsq_init_alpha(jnp.linspace(-1, 1, 9), bits=4)), 7)
      0.4199606
    """
    return _start(jnp.mean(jnp.abs(x.astype(_precise(x)))), code_range(bits, signed=signed)[1])


def lsq_init_zero_point(x: jax.Array, alpha: jax.Array, *, bits: int, signed: bool = True) -> jax.Array:
    """First zero point 0.1 (min x - α Qn) as released with Q-ViT; its unit is that of x, although it is added to codes.

    Example:
      >>> x = jnp.linspace(-1, 1, 9)
      >>> round(float(lsq_init_zero_point(x, lsq_init_alpha(x, bits=4), bits=4)), 6)
      0.235968
    """
    return 0.1 * (jnp.min(x.astype(_precise(x))) - alpha * code_range(bits, signed=signed)[0])


def _start(mean, high):
    alpha = 2 * mean / jnp.sqrt(high)
    return jnp.where(mean > 0, alpha, jnp.ones_like(alpha))


def _precise(x) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _along(value, x, axis):
    """A value per entry of an axis, shaped so that it broadcasts against x."""
    if value is None or axis is None:
        return value
    return value.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def _ratio(x, alpha, zero, domain):
    """y, and what is taken from its codes before they are scaled."""
    x = x.astype(_precise(x))
    if domain == "input":
        return (x if zero is None else x - zero) / alpha, 0.0
    offset = 0.0 if zero is None else jnp.round(zero)
    return x / alpha + offset, offset


def _on_grid(x, alpha, zero, low, high, domain):
    """x̂ in at least float32, of steps and zero points that broadcast; the range may be traced."""
    y, offset = _ratio(x, alpha, zero, domain)
    scaled = (jnp.round(jnp.clip(y, low, high)) - offset) * alpha
    return scaled + zero if domain == "input" and zero is not None else scaled


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _quantize(x, alpha, zero, grid):
    steps = (_along(value, x, grid.axis) for value in (alpha, zero))
    return _on_grid(x, *steps, grid.low, grid.high, grid.domain).astype(x.dtype)


def _forward(x, alpha, zero, grid):
    return _quantize(x, alpha, zero, grid), (x, alpha, zero)


def _backward(grid, saved, u):
    x, alpha, zero = saved
    steps, zeros = (_along(value, x, grid.axis) for value in (alpha, zero))
    y, offset = _ratio(x, steps, zeros, grid.domain)
    inside = (y >= grid.low) & (
        y <= grid.high
    )  # written out: a clip's own gradient at a bound is a half, or none
    precise = u.astype(y.dtype)
    rho = jnp.where(inside, jnp.round(y) - y, jnp.clip(y, grid.low, grid.high) - offset)
    others = tuple(i for i in range(x.ndim) if grid.axis is None or i != grid.axis % x.ndim)

    def total(values, like):
        return (grid.gradient_scale * jnp.sum(values, others)).astype(like.dtype)

    d_zero = None
    if zero is not None:
        slope = 1.0 if grid.domain == "input" else -steps
        d_zero = total(jnp.where(inside, 0.0, precise * slope), zero)
    return jnp.where(inside, u, 0).astype(x.dtype), total(precise * rho, alpha), d_zero


_quantize.defvjp(_forward, _backward)


def _checked(x, alpha, zero_point, bits, signed, axis, numel, domain):
    low, high = code_range(bits, signed=signed)
    if domain not in ("code", "input"):
        raise UserError(f"zero_point_domain: needs 'code' or 'input', got {domain!r}")
    if axis is not None and not -x.ndim <= axis < x.ndim:
        raise UserError(f"axis: needs one of the {x.ndim} axes of x, got {axis}")
    shape = () if axis is None else (x.shape[axis],)
    alpha = jnp.asarray(alpha, _precise(x))
    zero_point = None if zero_point is None else jnp.asarray(zero_point, _precise(x))
    for name, value in (("alpha", alpha), ("zero_point", zero_point)):
        if value is not None and value.shape != shape:
            of = "a scalar, unless an axis is named" if axis is None else f"{shape}, as axis {axis} of x has"
            raise UserError(f"{name}: needs {of}, got shape {value.shape}")
    if not isinstance(alpha, jax.core.Tracer) and not (np.isfinite(alpha) & (np.asarray(alpha) > 0)).all():
        raise UserError(f"alpha: needs finite steps above 0, got {float(np.min(alpha)):g}")
    if not signed and zero_point is None and not isinstance(x, jax.core.Tracer) and x.size:
        least = float(jnp.min(x))
        if least < NEGATIVE:
            raise UserError(f"x: an unsigned quantizer needs values from 0, got {least:g}")
    return _Grid(low, high, axis, domain, 1 / math.sqrt((numel or x.size) * high)), alpha, zero_point


class Steps(NamedTuple):
    """What a quantizer has learned: step and zero point (or None), scalars or one per entry of its axis, and the sign."""

    alpha: jax.Array
    zero_point: jax.Array | None
    signed: bool


class Quantizer(nn.Module):
    """`lsq_quantize` with its parameters: α = α₀ exp(log_step), where α₀ and the sign are those of a calibration.

    Steps learn as logarithms: a step of Adam moves them by a fraction of what they are, and none can reach 0. Parameters are
    `log_step` and, where there is one, `zero_point`, of the axis's size. While a network is initialized, x passes as it is.

    Args:
      bits: b, 2 to 8.
      axis: of x, along which steps differ; None for one step.
      signed: None lets the calibration batch decide: signed where a value is below -1e-5.
      zero_point: its domain; None has none, which is what an integer product is fastest with.
      compat: zero points start as released with Q-ViT (`lsq_init_zero_point`), not at 0.

    x float -> x̂ of its shape and type; with `steps_only`, where x may be a `jax.ShapeDtypeStruct`, the `Steps`.

    Raises:
      UserError: bits out of range, or a quantizer that was not calibrated.

    Example:
      >>> x = jnp.linspace(-1, 1, 9)
      >>> module = Quantizer(bits=2)
      >>> variables = calibrate(module, module.init(jax.random.key(0), x), x)
      >>> [round(v, 3) for v in module.apply(variables, x)[::8].tolist()]
      [-1.111, 1.111]
    """

    bits: int = 8
    axis: int | None = None
    signed: bool | None = None
    zero_point: ZeroPoint | None = None
    compat: bool = False
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any, *, steps_only: bool = False) -> Any:
        check_number("bits", self.bits, BITS)
        shape = () if self.axis is None else (x.shape[self.axis],)
        log_step = self.param("log_step", nn.initializers.zeros, shape, self.param_dtype)
        zero = None
        if self.zero_point is not None:
            zero = self.param("zero_point", nn.initializers.zeros, shape, self.param_dtype)
        if self.is_initializing():
            return Steps(jnp.exp(log_step), zero, self.signed is not False) if steps_only else x
        if self.is_mutable_collection(_CALIBRATION):
            return self._calibrate(x, shape)
        sign = next((sign for sign in _SIGNS if self.has_variable(QUANTIZATION, sign)), None)
        if sign is None:
            raise UserError(
                f"quantizers: {'/'.join(self.path) or 'this one'} is not calibrated; "
                "jaxface.layers.calibrate(module, variables, batch) does it"
            )
        alpha = self.get_variable(QUANTIZATION, sign) * jnp.exp(log_step.astype(jnp.float32))
        if steps_only:
            return Steps(alpha, zero, _SIGNS[sign])
        return lsq_quantize(
            x,
            alpha,
            zero,
            bits=self.bits,
            signed=_SIGNS[sign],
            axis=self.axis,
            zero_point_domain=self.zero_point or "code",
        )

    def _calibrate(self, x, shape):
        """Notes what a step starts from; what comes after this layer sees x̂, as it will in training."""
        ranges = [code_range(self.bits, signed=signed) for signed in (True, False)]
        least = jnp.min(x).astype(jnp.float32)
        signed = least < NEGATIVE if self.signed is None else jnp.asarray(self.signed)
        low, high = (jnp.where(signed, *ends) for ends in zip(*ranges, strict=True))
        alpha = _start(jnp.mean(jnp.abs(x.astype(jnp.float32))), high)
        found = {"signed": signed, "alpha": alpha}
        zero = None
        if self.zero_point is not None:
            zero = 0.1 * (least - alpha * low) if self.compat else jnp.zeros(())
            found["zero_point"] = jnp.full(shape, zero)
        self.put_variable(_CALIBRATION, "found", found)
        return _on_grid(x, alpha, zero, low, high, self.zero_point or "code").astype(x.dtype)


def calibrate(module: nn.Module, variables: Mapping, *arguments: Any, **options: Any) -> dict:
    """Variables whose quantizers all have their first steps and signs, from one pass over a batch.

    Every quantizer sees what those before it make of the batch. What is decided here, signed or not, is part of the structure
    of the result, so that it is static in what is compiled with it; steps learned before are forgotten.

    Args:
      module: of any quantized layers.
      variables: {"params", …} of it; concrete arrays, not traced ones.
      *arguments, **options: of the module's call, such as images and `train=False`.

    Returns:
      The variables with the collection "quantization", which `module.apply` takes and nothing trains.

    Raises:
      UserError: no quantizer in the module, a traced batch, or an input that is not finite.

    Example:
      >>> module, x = QuantizedDense(3, weight_bits=4, input_bits=4), jnp.ones((2, 5))
      >>> variables = calibrate(module, module.init(jax.random.key(0), x), x)
      >>> jax.tree.map(float, variables["quantization"]["input_quantizer"])  # 2 / √15
      {'unsigned': 0.5163977742195129}
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((variables, arguments))):
        raise UserError("calibrate: needs values, to decide on signs before compilation, got traced ones")

    def run(variables, arguments):
        _, updated = module.apply(variables, *arguments, mutable=[_CALIBRATION], **options)
        return updated.get(_CALIBRATION, {})

    found = flatten_dict(jax.device_get(jax.jit(run)(dict(variables), arguments)))
    places = {path[:-2] for path in found}
    if not places:
        raise UserError(f"calibrate: {type(module).__name__} has no quantizer")
    params, first = flatten_dict(variables["params"]), {}
    for place in places:
        values = {name: found[(*place, "found", name)] for name in ("signed", "alpha")}
        if not np.isfinite(values["alpha"]):
            raise UserError(f"calibrate: needs finite inputs, those of {'/'.join(place)} are not")
        first[(*place, "signed" if values["signed"] else "unsigned")] = jnp.asarray(values["alpha"])
        params[(*place, "log_step")] = jnp.zeros_like(params[(*place, "log_step")])
        if (*place, "zero_point") in params:
            params[(*place, "zero_point")] = jnp.asarray(found[(*place, "found", "zero_point")])
    return {**variables, "params": unflatten_dict(params), QUANTIZATION: unflatten_dict(first)}


class QuantizedDense(nn.Module):
    """Linear layer on quantized weights, one step per output channel, and a quantized input.

        y = x̂ Ŵ + b

    Parameters are `kernel` and `bias`, as those of `flax.linen.Dense`, and those of `kernel_quantizer` and `input_quantizer`.

    Args:
      features: O.
      weight_bits: of the kernel, 2 to 8.
      input_bits: of x, 2 to 8; None leaves x as it is.
      granularity: steps of the input per "channel", or one for all of it ("tensor"), as an integer product needs.
      signed: of the input's codes; None lets the calibration decide.
      zero_point, compat: of the input's quantizer.

    x [..., C] -> [..., O].

    Raises:
      UserError: another granularity, or as `Quantizer`.

    Example:
      >>> layer, x = QuantizedDense(8, weight_bits=2, input_bits=2), jnp.zeros((2, 16))
      >>> sorted(jax.eval_shape(layer.init, jax.random.key(0), x)["params"])
      ['bias', 'input_quantizer', 'kernel', 'kernel_quantizer']
    """

    features: int
    use_bias: bool = True
    weight_bits: int = 8
    input_bits: int | None = 8
    granularity: Granularity = "channel"
    signed: bool | None = None
    zero_point: ZeroPoint | None = None
    compat: bool = False
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        x, kernel = _quantized_operands(self, x, kernel)
        return _with_bias(self, x @ kernel)


class QuantizedConv(nn.Module):
    """Convolution of quantized weights, one step per output channel, with a quantized input; fields as `QuantizedDense`.

    x [B, H, W, C] -> [B, Ho, Wo, O]; the parameter `kernel` is [kh, kw, C, O], as that of `flax.linen.Conv`.

    Example:
      >>> layer, x = QuantizedConv(8, (4, 4), (4, 4), "VALID"), jnp.zeros((2, 8, 8, 3))
      >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape
      (2, 2, 2, 8)
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: int | Sequence[int] = (1, 1)
    padding: str | int | Sequence[tuple[int, int]] = "SAME"
    use_bias: bool = True
    weight_bits: int = 8
    input_bits: int | None = 8
    granularity: Granularity = "channel"
    signed: bool | None = None
    zero_point: ZeroPoint | None = None
    compat: bool = False
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        x, kernel = _quantized_operands(self, x, kernel)
        both = len(self.kernel_size)
        strides = (self.strides,) * both if isinstance(self.strides, int) else tuple(self.strides)
        around = self.padding
        padding = [(around, around)] * both if isinstance(around, int) else around
        y = jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return _with_bias(self, y)


def _quantized_operands(layer, x, kernel):
    if layer.granularity not in ("channel", "tensor"):
        raise UserError(f"granularity: needs 'channel' or 'tensor', got {layer.granularity!r}")
    steps = {"param_dtype": layer.param_dtype}
    kernel = Quantizer(layer.weight_bits, axis=-1, signed=True, name="kernel_quantizer", **steps)(kernel)
    x = x.astype(layer.dtype)
    if layer.input_bits is not None:
        x = Quantizer(
            layer.input_bits,
            axis=-1 if layer.granularity == "channel" else None,
            signed=layer.signed,
            zero_point=layer.zero_point,
            compat=layer.compat,
            name="input_quantizer",
            **steps,
        )(x)
    return x, kernel.astype(layer.dtype)


def _with_bias(layer, y):
    if not layer.use_bias:
        return y
    bias = layer.param("bias", nn.initializers.zeros, (layer.features,), layer.param_dtype)
    return y + bias.astype(layer.dtype)


class QuantizedDotProduct(nn.Module):
    """Attention whose two products take quantized operands, with one step per head: a `mix` of `jaxface.layers.Attention`.

        P = softmax(q̂ k̂ᵀ / √d),   o = P̂ v̂

    q, k and v have signed codes, the probabilities unsigned ones; the softmax is float32, and rows of P̂ need not sum to 1.

    Args:
      bits: of all four, or of q, k, v and P.
      zero_point, compat: of q, k and v; P has none.
      rectify: makes the module that queries or keys [B, N, h, d] pass before they are quantized, of (name=); None has none.
      rectified: which of "query" and "key" do.
      implementation: "fake" computes on floats, and learns; others are those of `pallas_kernels.quantized_attention`, None
        the fastest, on the integer codes.

    query [B, N, h, d], key and value [B, M, h, d] -> [B, N, h, d]; `mask` as `DotProduct`, `bias` [1 or B, 1 or h, N, M] is
    added to the logits in float32. Queries and keys before their quantizers are sown into `OPERANDS`.

    Raises:
      UserError: bits that are neither one nor four, a mask for a kernel, or as `Quantizer`.

    Example:
      >>> from jaxface.layers import Attention
      >>> layer = Attention(2, mix=functools.partial(QuantizedDotProduct, bits=4))
      >>> params = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 5, 6)))["params"]
      >>> {name: part["log_step"].shape for name, part in params["mix"].items()}["probability_quantizer"]
      (2,)
    """

    bits: int | tuple[int, int, int, int] = 8
    zero_point: ZeroPoint | None = None
    compat: bool = False
    rectify: Callable[..., nn.Module] | None = None
    implementation: Implementation | Literal["fake"] | None = "fake"
    rectified: tuple[str, ...] = ("query", "key")

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        del train
        if self.rectify is not None:
            query, key = (
                self.rectify(name=f"rectify_{name}")(x) if name in self.rectified else x
                for name, x in (("query", query), ("key", key))
            )
        if not self.is_initializing():  # sown values are no variables of the network
            self.sow(OPERANDS, "query", query)
            self.sow(OPERANDS, "key", key)
        *bits, probability_bits = self.all_bits()
        quantizers = [
            Quantizer(
                b, 2, signed=True, zero_point=self.zero_point, compat=self.compat, name=f"{name}_quantizer"
            )
            for name, b in zip(("query", "key", "value"), bits, strict=True)
        ]
        probability = Quantizer(probability_bits, 1, signed=False, name="probability_quantizer")
        starting = self.is_initializing() or self.is_mutable_collection(_CALIBRATION)
        if self.implementation != "fake" and not starting:
            return self._by_kernel(query, key, value, quantizers, probability, mask, bias)
        q, k, v = (quantize(x) for quantize, x in zip(quantizers, (query, key, value), strict=True))
        logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
        logits = logits / math.sqrt(query.shape[-1])
        logits = logits if bias is None else logits + bias.astype(jnp.float32)
        logits = logits if mask is None else jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
        weights = probability(jax.nn.softmax(logits, axis=-1)).astype(value.dtype)
        return jnp.einsum("bhnm,bmhd->bnhd", weights, v)

    def all_bits(self) -> tuple[int, int, int, int]:
        """Bits of q, k, v and P."""
        bits = (self.bits,) * 4 if isinstance(self.bits, int) else tuple(self.bits)
        if len(bits) != 4:
            raise UserError(f"bits: needs one number, or those of q, k, v and probabilities, got {bits}")
        return bits

    def _by_kernel(self, query, key, value, quantizers, probability, mask, bias):
        if self.zero_point == "input":
            raise UserError("zero_point: a kernel needs None or 'code', got 'input'")
        if mask is not None:
            masked = jnp.where(mask, 0.0, -jnp.inf).astype(jnp.float32)
            bias = masked if bias is None else bias.astype(jnp.float32) + masked
        operands = (query, key, value)
        q, k, v = (quantize(x, steps_only=True) for quantize, x in zip(quantizers, operands, strict=True))
        batch, queries, heads, _ = query.shape
        shape = jax.ShapeDtypeStruct((batch, heads, queries, key.shape[1]), jnp.float32)
        p = probability(shape, steps_only=True)
        zeros = None if self.zero_point is None else AttnSteps(q.zero_point, k.zero_point, v.zero_point)
        mixed: Any = quantized_attention(
            jnp.swapaxes(query, 1, 2),
            jnp.swapaxes(key, 1, 2),
            jnp.swapaxes(value, 1, 2),
            steps=AttnSteps(q.alpha, k.alpha, v.alpha, p.alpha),
            bits=self.all_bits(),
            zero_points=zeros,
            bias=bias,
            implementation=None if self.implementation == "fake" else self.implementation,
        )
        return jnp.swapaxes(mixed, 1, 2)
