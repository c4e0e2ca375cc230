"""The three operations behind the public functions, on complete arguments, with their gradients.

Parameters of the depthwise kind, offsets and slopes are float32 arrays; what stage does not exist is None. γ is already
folded into the taps, and a linear cascade is already one 3×3 stage.
"""

import dataclasses
import functools

import jax

from pallas_kernels import common
from pallas_kernels.dilated_conv import gpu, tpu, xla


@dataclasses.dataclass(frozen=True)
class Options:
    """What is static.

    `exact` concerns cascades, `stride` depthwise convolutions, `slope` and `winner` cross-channel pooling; `plain` says that
    "xla" is whole convolutions of the library, where `xla.plain_cascade` and `xla.plain_conv_ccp` prefer them.
    """

    implementation: str
    activation: str
    dilation: int = 1
    stride: int = 1
    exact: bool = True
    slope: float = 0.0
    winner: bool = False
    plain: bool = False

    @property
    def kernels(self):
        """The module of Pallas kernels, None for XLA's."""
        base = self.implementation.removesuffix("_interpret")
        return {"xla": None, "pallas_gpu": gpu, "pallas_tpu": tpu}[base]

    @property
    def interpret(self):
        return common.interpret(self.implementation)


# --- cascades: y = (b ⋆ φ(a ⋆ x + α))·P + β ----------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
@functools.partial(jax.jit, static_argnums=(7,))
def cascade(x, a, offset, slope, b, pointwise, bias, options: Options):
    static = dict(dilation=options.dilation, activation=options.activation, exact=options.exact)
    if options.kernels is None:
        return xla.cascade(x, a, offset, slope, b, pointwise, bias, **static, plain=options.plain)
    return options.kernels.cascade(
        x, a, offset, slope, b, pointwise, bias, **static, interpret=options.interpret
    )


def _cascade_forward(x, a, offset, slope, b, pointwise, bias, options):
    return cascade(x, a, offset, slope, b, pointwise, bias, options), (
        x,
        a,
        offset,
        slope,
        b,
        pointwise,
        bias,
    )


@functools.partial(jax.jit, static_argnums=(0,))
def _cascade_backward(options, saved, g):
    x, a, offset, slope, b, pointwise, bias = saved
    static = dict(dilation=options.dilation, activation=options.activation, exact=options.exact)
    if options.kernels is not tpu or b.ndim == 4:  # a dense stage's gradients are matrix products
        return xla.cascade_gradient(g, *saved, **static)
    static |= dict(interpret=options.interpret)
    v = None if pointwise is None else options.kernels.cascade(x, a, offset, slope, b, None, None, **static)
    gv, by_pointwise, by_bias = xla.project_gradient(g, v, pointwise, bias, x.dtype)
    by_x, by_a, by_offset, by_slope, by_b = options.kernels.cascade_gradient(
        x, a, offset, slope, b, gv.astype(x.dtype), **static
    )
    return by_x, by_a, by_offset, by_slope, by_b, by_pointwise, by_bias


cascade.defvjp(_cascade_forward, _cascade_backward)


# --- depthwise: y = φ(w ⋆ x + α)·P + β ---------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
@functools.partial(jax.jit, static_argnums=(6,))
def depthwise(x, w, offset, slope, pointwise, bias, options: Options):
    static = dict(dilation=options.dilation, stride=options.stride, activation=options.activation)
    if options.kernels is None:
        return xla.depthwise(x, w, offset, slope, pointwise, bias, **static)
    return options.kernels.depthwise(
        x, w, offset, slope, pointwise, bias, **static, interpret=options.interpret
    )


def _depthwise_forward(x, w, offset, slope, pointwise, bias, options):
    return depthwise(x, w, offset, slope, pointwise, bias, options), (x, w, offset, slope, pointwise, bias)


@functools.partial(jax.jit, static_argnums=(0,))
def _depthwise_backward(options, saved, g):
    x, w, offset, slope, pointwise, bias = saved
    static = dict(dilation=options.dilation, stride=options.stride)
    if options.kernels is not tpu:
        return xla.depthwise_gradient(g, *saved, **static, activation=options.activation)
    u = None
    if pointwise is not None or options.activation != "identity":
        u = options.kernels.depthwise(
            x, w, offset, slope, None, None, **static, activation="identity", interpret=options.interpret
        )

    def stencil(x, w, gu):
        return options.kernels.depthwise_gradient(
            x, w, gu.astype(x.dtype), dilation=options.dilation, interpret=options.interpret
        )

    return xla.depthwise_gradient_around(g, u, *saved, activation=options.activation, stencil=stencil)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


# --- convolution and cross-channel pooling: y = φ(max_r z_r) -----------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
@functools.partial(jax.jit, static_argnums=(3,))
def conv_ccp(x, w, bias, options: Options):
    """(y, winner) for w [k, k, C, M, R] and bias [M, R]; the winner is None unless `options.winner`."""
    static = dict(activation=options.activation, slope=options.slope)
    if options.kernels is None:
        y, winner = xla.conv_ccp(x, w, bias, **static, plain=options.plain)
        return y, winner if options.winner else None
    return options.kernels.conv_ccp(
        x, w, bias, **static, with_winner=options.winner, interpret=options.interpret
    )


def _conv_ccp_forward(x, w, bias, options):
    y, winner = conv_ccp(x, w, bias, dataclasses.replace(options, winner=True))
    return (y, winner if options.winner else None), (x, w, bias, winner, y)


@functools.partial(jax.jit, static_argnums=(0,))
def _conv_ccp_backward(options, saved, g):
    return xla.conv_ccp_gradient(g[0], *saved, activation=options.activation, slope=options.slope)


conv_ccp.defvjp(_conv_ccp_forward, _conv_ccp_backward)
