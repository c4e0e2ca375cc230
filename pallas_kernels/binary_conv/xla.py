"""Binary convolution through XLA: the production path on CPUs, and on every device that has no kernel here.

On a CPU a word of 32 products is one XOR and one population count. The sums over taps and words are written out, so that XLA
fuses them into one loop over the outputs and holds nothing else; past 40 terms that loop would outgrow the registers, and a
loop over groups of words adds them to the output in turns. A CPU with an int8 matrix unit (AMX) is faster still on unpacked
int8 matrices. Elsewhere the values are unpacked for the matrix unit: bfloat16 holds ±1 and float32 sums them exactly.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import common
from pallas_kernels.binary_conv import packing, reference
from pallas_kernels.binary_conv.geometry import Geometry, correction, pad_pixels

_UNROLLED = 40  # terms of one fused sum
_WORDS_PER_STEP = 16


def convolve(xp: jax.Array, wp: jax.Array, geometry: Geometry) -> jax.Array:
    """int32 [N, Ho, Wo, O]; see `reference.convolve`."""
    return METHODS[method()](xp, wp, geometry)


def method() -> str:
    """What `convolve` does here: "popcount" on a CPU, "int8" on one with AMX, "bfloat16" elsewhere."""
    if common.target_device().platform != "cpu":
        return "bfloat16"
    return "int8" if "amx_int8" in common.cpu_flags() else "popcount"


def _popcount(xp, wp, geometry):
    (kh, kw), (sh, sw) = geometry.kernel, geometry.strides
    height, width = geometry.out_height, geometry.out_width
    x = pad_pixels(xp, geometry)
    w = jnp.swapaxes(wp, -1, -2)  # outputs last: one vector register holds one word of several outputs
    shape = (geometry.batch, height, width, geometry.outputs)
    extent = ((height - 1) * sh + 1, (width - 1) * sw + 1)

    def add(total, pixels, words):
        for c in range(words.shape[0]):
            total = total + lax.population_count(pixels[..., c, None] ^ words[c]).astype(jnp.int32)
        return total

    if kh * kw * geometry.words <= _UNROLLED:
        different = jnp.zeros(shape, jnp.int32)
        for i in range(kh):
            for j in range(kw):
                pixels = x[:, i : i + extent[0] : sh, j : j + extent[1] : sw]
                different = add(different, pixels, w[i, j])
    else:
        step = min(_WORDS_PER_STEP, geometry.words)
        groups = common.cdiv(geometry.words, step)
        missing = groups * step - geometry.words
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
        w = jnp.pad(w, ((0, 0), (0, 0), (0, missing), (0, 0))).reshape(-1, step, geometry.outputs)

        def body(index, different):
            tap, group = index // groups, index % groups
            corner = (0, tap // kw, tap % kw, group * step)
            pixels = lax.dynamic_slice(x, corner, (geometry.batch, *extent, step))[:, ::sh, ::sw]
            return add(different, pixels, lax.dynamic_index_in_dim(w, index, 0, keepdims=False))

        different = lax.fori_loop(0, kh * kw * groups, body, jnp.zeros(shape, jnp.int32))
    y = geometry.products - 2 * different
    return y + correction(wp, geometry) if geometry.corrected else y


def _int8(xp, wp, geometry):
    (kh, kw), (sh, sw) = geometry.kernel, geometry.strides
    height, width = geometry.out_height, geometry.out_width
    x = pad_pixels(xp, geometry)
    taps = [
        x[:, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    rows = packing.unpack_bits(jnp.stack(taps, axis=-2), geometry.channels, dtype=jnp.int8)
    w = packing.unpack_bits(jnp.moveaxis(wp, 2, 0), geometry.channels, dtype=jnp.int8)
    y = lax.dot_general(
        rows.reshape(-1, geometry.products),
        w.reshape(geometry.outputs, geometry.products),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.int32,
    ).reshape(geometry.batch, height, width, geometry.outputs)
    return y + correction(wp, geometry) if geometry.corrected else y


METHODS = {
    "popcount": _popcount,
    "int8": _int8,
    "bfloat16": functools.partial(reference.convolve, dtype=jnp.bfloat16),
}
