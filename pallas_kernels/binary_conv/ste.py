"""The training form: signs forward, straight-through estimators backward."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import common
from pallas_kernels.binary_conv import geometry as geo
from pallas_kernels.binary_conv import packing

Estimator = Literal["clip", "approx_sign", "identity"]
ESTIMATORS: tuple[str, ...] = Estimator.__args__

_OUTSIDE = {"minus_one": -1, "plus_one": 1}


def binary_conv2d_ste(
    x: jax.Array,
    w: jax.Array,
    alpha: jax.Array,
    ste: Estimator = "clip",
    *,
    strides: int | tuple[int, int] = 1,
    padding: geo.Padding = "SAME",
    pad_mode: geo.PadMode = "zero",
) -> jax.Array:
    """Binary convolution with gradients for real activations, latent weights and scales.

        y = Σ sgn(x) · α·sgn(w),   sgn(0) = +1
        dx = convᵀ(dy, α·sgn(w)) · F'(x),   dw = α · (sgn(x) ⋆ dy) · 1{|w| <= 1},   dα_o = Σ sgn(w_o)·(sgn(x) ⋆ dy)_o

    with F' = 1{|x| <= 1} ("clip"), max(2 - 2|x|, 0) ("approx_sign", Bi-Real Net, arXiv:1808.00278) or 1 ("identity"). The
    convolution is XLA's on values of ±1: bfloat16 with float32 sums, exact below 2^24 products (float32 on a CPU).

    Kept for the backward pass: "clip" two bits per activation, "identity" one, "approx_sign" x itself; and the weights.

    Args:
      x: [N, H, W, C], float32 or bfloat16.
      w: [kh, kw, C, O], latent weights.
      alpha: [O], scales of the outputs.
      ste: the estimator of sgn' for activations.
      strides, padding, pad_mode: as `binary_conv2d`; what is padded is the sign.

    Returns:
      [N, Ho, Wo, O] of x's type.

    Raises:
      KernelError: unknown estimator or padding, or shapes that do not fit.
    """
    if ste not in ESTIMATORS:
        raise common.KernelError(f"ste: needs one of {', '.join(ESTIMATORS)}; got {ste!r}")
    if x.ndim != 4 or w.ndim != 4 or x.shape[3] != w.shape[2]:
        raise common.KernelError(
            f"x, w: need [N, H, W, C] and [kh, kw, C, O], ungrouped; got shapes {x.shape} and {w.shape}"
        )
    if alpha.shape != w.shape[3:]:
        raise common.KernelError(f"alpha: needs shape {w.shape[3:]}; got {alpha.shape}")
    for name, value in (("x", x), ("w", w), ("alpha", alpha)):
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise common.KernelError(f"{name}: needs floats; got {value.dtype}")
    if pad_mode not in geo.PAD_MODES:
        raise common.KernelError(f"pad_mode: needs one of {', '.join(geo.PAD_MODES)}; got {pad_mode!r}")
    strides = geo.pair("strides", strides)
    pads = geo.resolve_padding(padding, x.shape[1:3], w.shape[:2], strides)
    return _ste(ste, strides, pads, pad_mode, x, w, alpha)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _ste(ste, strides, pads, pad_mode, x, w, alpha):
    dtype = jnp.float32 if common.target_device().platform == "cpu" else jnp.bfloat16
    y = _convolve(_sign(x, dtype), _sign(w, dtype), strides, pads, pad_mode)
    return (y * alpha).astype(x.dtype)


def _forward(ste, strides, pads, pad_mode, x, w, alpha):
    y = _ste(ste, strides, pads, pad_mode, x, w, alpha)
    if ste == "approx_sign":
        return y, (x, None, w, alpha, None)
    mask = packing.pack_bits(jnp.abs(x) <= 1) if ste == "clip" else None
    # An empty array carries what the bits have forgotten: the channels and the type.
    return y, (packing.pack_bits(x), mask, w, alpha, jnp.zeros((0, x.shape[-1]), x.dtype))


def _backward(ste, strides, pads, pad_mode, saved, dy):
    x, mask, w, alpha, like = saved
    dtype = dy.dtype
    if ste == "approx_sign":
        signs, slope = _sign(x, dtype), jnp.maximum(2 - 2 * jnp.abs(x), 0)
    else:
        channels = like.shape[-1]
        signs, slope = packing.unpack_bits(x, channels, dtype=dtype), 1
        if mask is not None:
            slope = packing.unpack_bits(mask, channels, dtype=jnp.int8) > 0
    weights = _sign(w, dtype)
    convolve = functools.partial(_convolve, strides=strides, pads=pads, pad_mode=pad_mode, accumulate=dtype)
    _, transpose = jax.vjp(convolve, signs, weights)
    scaled = dy.astype(jnp.float32) * alpha
    dx = transpose(scaled.astype(dtype))[0]
    dweights = transpose(dy)[1].astype(jnp.float32)
    dalpha = jnp.sum(dweights * weights.astype(jnp.float32), axis=(0, 1, 2))
    dw = dweights * alpha * (jnp.abs(w) <= 1)
    input_type = dtype if like is None else like.dtype
    return (dx * slope).astype(input_type), dw.astype(w.dtype), dalpha.astype(alpha.dtype)


_ste.defvjp(_forward, _backward)


def _sign(x, dtype):
    return jnp.where(x >= 0, 1, -1).astype(dtype)


def _convolve(x, w, strides, pads, pad_mode, accumulate=jnp.float32):
    if pad_mode != "zero":
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=_OUTSIDE[pad_mode])
        pads = ((0, 0), (0, 0))
    return lax.conv_general_dilated(
        x, w, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), preferred_element_type=accumulate
    )
