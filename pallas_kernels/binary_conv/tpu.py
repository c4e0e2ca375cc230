"""Binary convolution on TPUs: packed patches are unpacked in vector memory and multiplied by the matrix unit.

XLA gathers the patches while they are packed, K/8 bytes for each output pixel, with *pixels on lanes*: the patches are
[K/32 words, pixels], which HBM holds without filler (a last axis of C/32 words would be padded to 128) and which unpacks
without a relayout. A word's bytes are sublanes to the vector unit, so one shift and one AND give plane i of 4096 elements:

    plane_i = (words >> i) & 0x01010101, read as int8 [4·words, pixels],   i = 0 … 7

and y = W·planes, the columns of W permuted alike, is one matrix product with int32 sums. v4, whose matrix unit has no int8,
takes 16 planes of two bfloat16 each. A set bit becomes 2, so that with s the sum of w over set bits y = 2s - Σw. Zero padding
adds Σ_c w of the taps outside: those are further rows of the same product, whose bits say "outside" and become 1, and whose
weights are those sums, split into parts that int8 holds.

The block's epilogue follows on the tile. Its signs become words by two more products, with powers of two up to 2^15.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import common
from pallas_kernels.binary_conv import geometry as geo
from pallas_kernels.binary_conv import packing, reference

_LARGEST_SHARE = 127
_WORDS_PER_STEP = 160  # of K, at most: 5120 products


def obstacle(geometry: geo.Geometry) -> str | None:
    """Why this convolution cannot run here, or None."""
    if geometry.products >= 1 << 24:
        return f"it needs K = kh·kw·C < 2^24, got {geometry.products}"
    return None


def matrix_types(kind: str) -> tuple[type, type]:
    """Types of operands and sums of a TPU's matrix unit, by the chip's name; interpreted on a CPU, those of newer chips."""
    device = common.Device("tpu", kind)
    return (
        (jnp.int8, jnp.int32)
        if device.int8_mxu or not kind.startswith("TPU")
        else (jnp.bfloat16, jnp.float32)
    )


def convolve(xp, wp, geometry: geo.Geometry, *, interpret, types=None) -> jax.Array:
    """int32 [N, Ho, Wo, O]; see `reference.convolve`. `types` as of `matrix_types`, by default this device's."""
    (y,) = _call(xp, wp, geometry, None, None, interpret, types)
    return y.reshape(geometry.batch, geometry.out_height, geometry.out_width, geometry.outputs)


def block(xp, wp, geometry: geo.Geometry, scale, shift, residual, prelu, bias, *, interpret):
    """bfloat16 [N, Ho, Wo, O] and uint32 [N, Ho, Wo, ⌈O/32⌉]; see `reference.epilogue`."""
    prelu = jnp.ones_like(scale) if prelu is None else prelu
    bias = jnp.zeros_like(scale) if bias is None else bias
    if residual is not None:
        residual = residual.reshape(-1, geometry.outputs)
    out, words = _call(xp, wp, geometry, jnp.stack([scale, shift, prelu, bias]), residual, interpret)
    shape = geometry.batch, geometry.out_height, geometry.out_width
    words = lax.bitcast_convert_type(words[: common.cdiv(geometry.outputs, packing.WORD_BITS)].T, jnp.uint32)
    return out.reshape(*shape, -1), words.reshape(*shape, -1)


def _call(xp, wp, geometry, epilogue, residual, interpret, types=None):
    """[(M, O) int32], or with an epilogue [(M, O) bfloat16, (words, M) int32]."""
    dtype, sums = types or matrix_types(common.target_device().kind)
    patches, weights, total = _operands(xp, wp, geometry, dtype)
    rows, pixels = patches.shape
    steps = common.cdiv(rows, _WORDS_PER_STEP)
    step = common.round_up(common.cdiv(rows, steps), 8)
    outputs = common.round_up(geometry.outputs, 128)
    # The weights of one step are held twice: 128 of them in bfloat16 take what 256 take in int8.
    widest = (512 if dtype == jnp.int8 else 256) if step > 80 else 512
    tile_o = next(t for t in (512, 384, 256, 128) if t <= widest and outputs % t == 0)
    tile_m = 512 if step <= 80 and tile_o <= 256 else 256

    patches = jnp.pad(patches, ((0, steps * step - rows), (0, 0)))
    weights = jnp.pad(
        weights, ((0, outputs - geometry.outputs), (0, steps * step - rows), (0, 0)), constant_values=0
    )
    weights = _plane_order(weights, steps, dtype)
    total = jnp.pad(total, (0, outputs - geometry.outputs))[None]

    operands = [patches, weights, total]
    in_specs = [
        pl.BlockSpec((step, tile_m), lambda m, o, k: (k, m)),
        pl.BlockSpec((tile_o, step * packing.WORD_BITS), lambda m, o, k: (o, k)),
        pl.BlockSpec((1, tile_o), lambda m, o, k: (0, o)),
    ]
    tile_spec = pl.BlockSpec((tile_m, tile_o), lambda m, o, k: (m, o))
    if epilogue is None:
        out_types, out_specs = [jax.ShapeDtypeStruct((pixels, geometry.outputs), jnp.int32)], [tile_spec]
    else:
        # A bias of -inf leaves the bits of channels that do not exist unset.
        missing = ((0, 0), (0, outputs - geometry.outputs))
        epilogue = jnp.concatenate(
            [jnp.pad(epilogue[:3], missing), jnp.pad(epilogue[3:], missing, constant_values=-jnp.inf)]
        )
        operands += [epilogue, *_word_weights(tile_o)]
        in_specs += [pl.BlockSpec((4, tile_o), lambda m, o, k: (0, o))]
        in_specs += [pl.BlockSpec((tile_o // 32, tile_o), lambda m, o, k: (0, 0))] * 2
        if residual is not None:
            operands, in_specs = [*operands, residual], [*in_specs, tile_spec]
        out_types = [
            jax.ShapeDtypeStruct((pixels, geometry.outputs), jnp.bfloat16),
            jax.ShapeDtypeStruct((outputs // 32, pixels), jnp.int32),
        ]
        out_specs = [tile_spec, pl.BlockSpec((tile_o // 32, tile_m), lambda m, o, k: (o, m))]

    bytes_out = sum(np.prod(t.shape) * t.dtype.itemsize for t in out_types)
    return pl.pallas_call(
        functools.partial(
            _kernel,
            dtype,
            sums,
            geometry.kernel[0] * geometry.kernel[1] * geometry.words,
            residual is not None,
        ),
        out_shape=out_types,
        grid=(common.cdiv(pixels, tile_m), outputs // tile_o, steps),
        in_specs=in_specs,
        out_specs=out_specs,
        scratch_shapes=[pltpu.VMEM((tile_o, tile_m), sums)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * geometry.macs,
            bytes_accessed=int(bytes_out + sum(v.size * v.dtype.itemsize for v in operands)),
            transcendentals=0,
        ),
        interpret=interpret,
        name="binary_conv",
    )(*operands)


def _kernel(dtype, sums, data_words, has_residual, patches, weights, total, *refs):
    *inputs, accumulator = refs
    outputs = 1 if len(inputs) == 1 else 2
    inputs, results = inputs[:-outputs], inputs[-outputs:]
    k = pl.program_id(2)

    @pl.when(k == 0)
    def _():
        accumulator[...] = jnp.zeros_like(accumulator)

    row = k * patches.shape[0] + lax.broadcasted_iota(jnp.int32, patches.shape, 0)
    planes = _unpack(patches[...], row < data_words, dtype)
    accumulator[...] += jnp.dot(weights[...], planes, preferred_element_type=sums)

    @pl.when(k == pl.num_programs(2) - 1)
    def _():
        dot = accumulator[...].T.astype(jnp.int32) - total[...]
        if outputs == 1:
            results[0][...] = dot
            return
        scale, shift, prelu, bias = (inputs[0][i : i + 1, :] for i in range(4))
        residual = inputs[3][...] if has_residual else None
        out = reference.activate(dot.astype(jnp.float32), scale, shift, residual, prelu).astype(jnp.bfloat16)
        results[0][...] = out
        signs = jnp.where(out.astype(jnp.float32) + bias >= 0, 1.0, 0.0).astype(jnp.bfloat16)
        low, high = (
            lax.dot_general(
                power[...], signs, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
            ).astype(jnp.int32)
            for power in inputs[1:3]
        )
        results[1][...] = low | (high << 16)


def _unpack(words, data, dtype):
    """int32 [W, pixels] -> [32·W, pixels]: plane by plane, each [W·parts, pixels] of bytes or half-words.

    A set bit becomes 2 in the rows of `data`, else 1.
    """
    # The bit patterns of 1 and 2 in every byte or half-word; a product with a single bit per part cannot carry.
    bits, lowest, one, two = (8, 0x01010101, 1, 2) if dtype == jnp.int8 else (16, 0x00010001, 0x3F80, 0x4000)
    value = jnp.where(data, jnp.int32(two), jnp.int32(one))
    ones = (lax.shift_right_logical(words, jnp.int32(i)) & jnp.int32(lowest) for i in range(bits))
    return jnp.concatenate([pltpu.bitcast(plane * value, dtype) for plane in ones], axis=0)


def _plane_order(weights, steps, dtype):
    """[O, words, 32] -> [O, words·32] of dtype, the columns of each K step in the order of `_unpack`'s rows."""
    bits = 8 if dtype == jnp.int8 else 16
    outputs, words, _ = weights.shape
    split = weights.reshape(outputs, steps, words // steps, packing.WORD_BITS // bits, bits)
    return jnp.moveaxis(split, -1, 2).reshape(outputs, -1).astype(dtype)


def _word_weights(tile_o):
    """Two bfloat16 [tile_o / 32, tile_o]: powers of two that sum 32 signs to the low and the high half of their word."""
    channel = np.arange(tile_o)
    in_word = (channel // 32)[None] == np.arange(tile_o // 32)[:, None]
    low = np.where(channel % 32 < 16, 2.0 ** (channel % 16), 0.0)
    high = np.where(channel % 32 >= 16, 2.0 ** (channel % 16), 0.0)
    return [jnp.asarray(in_word * powers, jnp.bfloat16) for powers in (low, high)]


def _operands(xp, wp, geometry, dtype):
    """int32 patches [words, M], int8 weights [O, words, 32] and int32 [O] of what a zero sum stands for."""
    (kh, kw), (sh, sw) = geometry.kernel, geometry.strides
    height, width = geometry.out_height, geometry.out_width
    if geometry.pointwise:
        patches = xp.reshape(-1, geometry.words).T
    else:
        x = jnp.moveaxis(geo.pad_pixels(xp, geometry), -1, 0)
        taps = [
            x[:, :, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw]
            for i in range(kh)
            for j in range(kw)
        ]
        patches = jnp.concatenate(taps).reshape(kh * kw * geometry.words, -1)
    signs = packing.unpack_bits(wp, geometry.words * packing.WORD_BITS, dtype=jnp.int8)
    weights = jnp.moveaxis(signs, 2, 0).reshape(geometry.outputs, -1, packing.WORD_BITS)
    sums = jnp.sum(signs[..., : geometry.channels], axis=-1, dtype=jnp.int32).reshape(kh * kw, -1)
    if geometry.corrected:
        outside, shares = _outside_rows(geometry, sums)
        patches = jnp.concatenate([patches, outside])
        weights = jnp.concatenate([weights, shares], axis=1)
    return lax.bitcast_convert_type(patches, jnp.int32), weights, jnp.sum(sums, axis=0)


def _outside_rows(geometry, sums):
    """uint32 [words, M] and int8 [O, words, 32]: bits that say which taps are outside, and their shares of Σ_c w.

    Args:
      sums: int32 [taps, O], Σ_c w, at most C in size.
    """
    rows, columns = geo.outside(geometry)
    outside = (rows[:, None, :, None] | columns[None, :, None, :]).reshape(
        rows.shape[0], columns.shape[0], -1
    )
    shares = common.cdiv(geometry.channels, _LARGEST_SHARE)
    words = packing.pack_bits(jnp.asarray(np.repeat(outside, shares, axis=-1)))
    words = jnp.broadcast_to(
        jnp.moveaxis(words, -1, 0)[:, None], (words.shape[-1], geometry.batch, *outside.shape[:2])
    )
    # Σ_c w = Σ over the shares j of (Σ_c w + j) // shares.
    split = (sums[:, None] + jnp.arange(shares)[:, None]) // shares
    split = split.reshape(-1, geometry.outputs).T.astype(jnp.int8)
    split = jnp.pad(split, ((0, 0), (0, words.shape[0] * packing.WORD_BITS - split.shape[1])))
    return words.reshape(words.shape[0], -1), split.reshape(geometry.outputs, -1, packing.WORD_BITS)
