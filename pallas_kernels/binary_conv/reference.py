"""The definition of a binary convolution: unpack to ±1, pad, convolve. Exact in float32 while K < 2^24."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.binary_conv import packing
from pallas_kernels.binary_conv.geometry import Geometry

_OUTSIDE = {"zero": 0.0, "minus_one": -1.0, "plus_one": 1.0}


def convolve(xp: jax.Array, wp: jax.Array, geometry: Geometry, *, dtype=jnp.float32) -> jax.Array:
    """y[n, h, w, o] = Σ_{i,j,c} x[n, h·s + i - top, w·s + j - left, c] · w[i, j, c, o], int32.

    Args:
      xp: uint32 [N, H, W, C32].
      wp: uint32 [kh, kw, O, C32].
      geometry: the static numbers.
      dtype: of the unpacked operands, which ±1 and 0 fit exactly; sums are float32.
    """
    x = packing.unpack_bits(xp, geometry.channels, dtype=dtype)
    w = packing.unpack_bits(wp, geometry.channels, dtype=dtype)
    x = jnp.pad(x, ((0, 0), *geometry.pads, (0, 0)), constant_values=_OUTSIDE[geometry.pad_mode])
    y = lax.conv_general_dilated(
        x,
        w,
        geometry.strides,
        "VALID",
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    # A library may take the long way round (a fast Fourier transform, Winograd's), which ends beside the integer.
    return jnp.round(y).astype(jnp.int32)


def epilogue(
    dot: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    residual: jax.Array | None,
    prelu: jax.Array | None,
    bias: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """A block's output and its signs.

        t = scale·dot + shift + residual,  out = bfloat16(t if t >= 0 else prelu·t),  bits = [out + bias >= 0]

    Args:
      dot: int32 [..., O].
      scale, shift, prelu, bias: float32 [O].
      residual: [..., O].

    Returns:
      bfloat16 [..., O] and uint32 [..., ⌈O/32⌉].
    """
    out = activate(dot.astype(jnp.float32), scale, shift, residual, prelu).astype(jnp.bfloat16)
    return out, packing.pack_bits(out if bias is None else out.astype(jnp.float32) + bias)


def activate(dot, scale, shift, residual, prelu):
    """float32 scale·dot + shift + residual through PReLU; the arguments broadcast."""
    t = dot * scale + shift
    if residual is not None:
        t = t + residual.astype(jnp.float32)
    return t if prelu is None else jnp.where(t >= 0, t, t * prelu)
