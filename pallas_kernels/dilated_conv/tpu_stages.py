"""Depthwise and cascaded stages on a TPU, the pointwise product included; intermediate maps stay in vector memory."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.common import cdiv
from pallas_kernels.dilated_conv.tpu_band import (
    Band,
    accumulate,
    band_rows,
    channel_block,
    cost,
    pad_channels,
    parameters,
    phi,
    store,
)


def depthwise(x, w, offset, slope, pointwise, bias, *, dilation, stride, activation, interpret):
    del stride  # 1, see `obstacle`
    k = w.shape[0]
    taps = w.reshape(k * k, -1)
    matrices = None if pointwise is None else pointwise[None]
    make = functools.partial(
        _forward, "depthwise", x, (taps,), offset, slope, matrices, bias,
        reach=k // 2 * dilation, dilation=dilation, activation=activation, exact=True,
    )  # fmt: skip
    return make(interpret=interpret)


def cascade(x, a, offset, slope, b, pointwise, bias, *, dilation, activation, exact, interpret):
    if a.ndim == 4:
        return _dense_cascade(
            x, a, offset, slope, b, bias,
            dilation=dilation, activation=activation, exact=exact, interpret=interpret,
        )  # fmt: skip
    mode = "ddp" if b.ndim == 3 else "dc"
    taps = (a.reshape(4, -1), b.reshape(4, -1)) if mode == "ddp" else (a.reshape(4, -1),)
    matrices = b.reshape(4, *b.shape[2:]) if mode == "dc" else None if pointwise is None else pointwise[None]
    return _forward(
        mode, x, taps, offset, slope, matrices, bias,
        reach=dilation, dilation=dilation, activation=activation, exact=exact, interpret=interpret,
    )  # fmt: skip


def _first_stage(band, scratch, s_ref, a, vectors, first_row, *, dilation, activation, exact):
    """s = φ(a ⋆ x + α) on rows + d rows; in "per_stage" mode it is zero beyond the image."""

    def row(r, _):
        u = sum(
            band.view(scratch, r + p * dilation, (q - 1) * dilation, band.wide)
            * a[2 * p + q : 2 * p + q + 1, :]
            for p in range(2)
            for q in range(2)
        )
        s = phi(u, vectors, activation)
        if not exact:
            column = lax.broadcasted_iota(jnp.int32, s.shape, 0)
            s = jnp.where((column < band.width) & (first_row + r < band.height), s, 0.0)
        s_ref[r] = s
        return 0

    lax.fori_loop(0, band.rows + dilation, row, 0)


def _forward(mode, x, taps, offset, slope, matrices, bias, *, reach, dilation, activation, exact, interpret):
    """Depthwise or cascaded stages, then one matrix product ("depthwise", "ddp", if any) or four ("dc")."""
    n, height, width, channels = x.shape
    outputs = channels if matrices is None else matrices.shape[-1]
    products = 0 if matrices is None else len(matrices)
    band = Band(x, reach, band_rows(x, reach, products, outputs, cascade=mode != "depthwise"))
    out_block = band.block if matrices is None else _out_block(outputs)
    out_blocks = cdiv(outputs, out_block)
    k = math.isqrt(len(taps[0]))
    total = band.chunks * band.block

    def body(*refs):
        refs = list(refs)
        x_refs = [refs.pop(0) for _ in x_specs]
        tap_refs = [refs.pop(0) for _ in taps]
        vectors = refs.pop(0)
        matrix_ref = refs.pop(0) if products else None
        bias_ref, o_ref, scratch = refs.pop(0), refs.pop(0), refs.pop(0)
        s_ref = None if mode == "depthwise" else refs.pop(0)
        left_ref, sum_ref = refs if products else (None, None)
        first_row = pl.program_id(1) * band.rows
        chunk = pl.program_id(3) if products else pl.program_id(2)
        band.assemble(scratch, x_refs, first_row, chunk)
        if mode != "depthwise":
            _first_stage(
                band, scratch, s_ref, tap_refs[0], vectors, first_row,
                dilation=dilation, activation=activation, exact=exact,
            )  # fmt: skip

        def values(i):
            w = tap_refs[-1]
            if mode == "ddp":
                return sum(
                    s_ref[i + r * dilation, pl.ds(t * dilation, band.columns), :]
                    * w[2 * r + t : 2 * r + t + 1, :]
                    for r in range(2)
                    for t in range(2)
                )
            u = sum(
                band.view(scratch, i + p * dilation, q * dilation - reach, band.columns)
                * w[k * p + q : k * p + q + 1, :]
                for p in range(k)
                for q in range(k)
            )
            return phi(u, vectors, activation)

        if not products:
            store(o_ref, band, lambda i: values(i) + bias_ref[0:1, :])
            return

        def shifted(r, t):
            return lambda i: s_ref[i + r * dilation, pl.ds(t * dilation, band.columns), :]

        lefts = [shifted(r, t) for r in range(2) for t in range(2)] if mode == "dc" else [values]
        accumulate(sum_ref, left_ref, band, lefts, matrix_ref, chunk)

        @pl.when(chunk == band.chunks - 1)
        def _():
            store(o_ref, band, lambda i: sum_ref[band.at(i), :] + bias_ref[0:1, :])

    x_specs = band.specs()

    def per_channel(rows):
        return pl.BlockSpec((rows, band.block), lambda *indices: (0, indices[-1]))

    vectors = pad_channels(jnp.stack([offset, slope]), total)
    operands = [*[x] * len(x_specs), *[pad_channels(t, total) for t in taps], vectors]
    in_specs = [*x_specs, *[per_channel(len(t)) for t in taps], per_channel(2)]
    scratches = [band.scratch()]
    if mode != "depthwise":
        scratches.append(pltpu.VMEM((band.rows + dilation, band.wide, band.block), jnp.float32))
    bias = jnp.zeros(outputs, jnp.float32) if bias is None else bias
    bias = pad_channels(bias[None], out_blocks * out_block)
    if products:
        grid = (n, band.tiles, out_blocks, band.chunks)
        padded = [(0, 0), (0, total - channels), (0, out_blocks * out_block - outputs)]
        operands.append(jnp.pad(matrices, padded).astype(x.dtype))
        in_specs.append(pl.BlockSpec((products, band.block, out_block), lambda n, i, o, c: (0, c, o)))
        in_specs.append(pl.BlockSpec((1, out_block), lambda n, i, o, c: (0, o)))
        out_spec = pl.BlockSpec((None, band.rows, width, out_block), lambda n, i, o, c: (n, i, 0, o))
        scratches.append(pltpu.VMEM((band.rows * band.columns, band.block), x.dtype))
        scratches.append(pltpu.VMEM((band.rows * band.columns, out_block), jnp.float32))
    else:
        grid = (n, band.tiles, band.chunks)
        in_specs.append(per_channel(1))
        out_spec = pl.BlockSpec((None, band.rows, width, band.block), lambda n, i, c: (n, i, 0, c))
    pixels = n * height * width
    macs = pixels * (channels * sum(len(t) for t in taps) + products * channels * outputs)
    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((n, height, width, outputs), x.dtype),
        grid=grid,
        in_specs=in_specs,
        out_specs=out_spec,
        scratch_shapes=scratches,
        compiler_params=parameters(grid),
        cost_estimate=cost(2 * macs, x, pixels * outputs, *operands[len(x_specs) :]),
        interpret=interpret,
    )(*operands, bias)


def _dense_cascade(x, a, offset, slope, b, bias, *, dilation, activation, exact, interpret):
    """Both stages dense: grid (image, band, block of middle channels, chunk of input channels)."""
    n, height, width, channels = x.shape
    middle, outputs = b.shape[2:]
    band = Band(x, dilation, band_rows(x, dilation, 8, outputs, cascade=True))
    m_block = channel_block(middle)
    m_blocks = cdiv(middle, m_block)
    total, m_total = band.chunks * band.block, m_blocks * m_block

    def body(*refs):
        (
            *x_refs,
            a_ref,
            vectors,
            b_ref,
            bias_ref,
            o_ref,
            scratch,
            left_ref,
            u_ref,
            s_ref,
            left2_ref,
            sum_ref,
        ) = refs
        first_row, m, chunk = pl.program_id(1) * band.rows, pl.program_id(2), pl.program_id(3)
        band.assemble(scratch, x_refs, first_row, chunk)
        lefts = [
            lambda i, p=p, q=q: band.view(scratch, i + p * dilation, (q - 1) * dilation, band.wide)
            for p in range(2)
            for q in range(2)
        ]
        accumulate(u_ref, left_ref, band, lefts, a_ref, chunk, rows=band.rows + dilation, columns=band.wide)

        @pl.when(chunk == band.chunks - 1)
        def _():
            def row(r, _):
                u = u_ref[pl.ds(pl.multiple_of(r * band.wide, 8), band.wide), :]
                s = phi(u, vectors, activation)
                if not exact:
                    column = lax.broadcasted_iota(jnp.int32, s.shape, 0)
                    s = jnp.where((column < width) & (first_row + r < height), s, 0.0)
                s_ref[r] = s
                return 0

            lax.fori_loop(0, band.rows + dilation, row, 0)
            lefts = [
                lambda i, r=r, t=t: s_ref[i + r * dilation, pl.ds(t * dilation, band.columns), :]
                for r in range(2)
                for t in range(2)
            ]
            accumulate(sum_ref, left2_ref, band, lefts, b_ref, m)

            @pl.when(m == m_blocks - 1)
            def _():
                store(o_ref, band, lambda i: sum_ref[band.at(i), :] + bias_ref[0:1, :])

    x_specs = band.specs()
    a = jnp.pad(a.reshape(4, channels, middle), [(0, 0), (0, total - channels), (0, m_total - middle)])
    b = jnp.pad(b.reshape(4, middle, outputs), [(0, 0), (0, m_total - middle), (0, 0)])
    bias = (jnp.zeros(outputs, jnp.float32) if bias is None else bias)[None]
    operands = [a.astype(x.dtype), pad_channels(jnp.stack([offset, slope]), m_total), b.astype(x.dtype), bias]
    grid = (n, band.tiles, m_blocks, band.chunks)
    pixels = n * height * width
    first = (band.rows + dilation) * band.wide
    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((n, height, width, outputs), x.dtype),
        grid=grid,
        in_specs=[
            *x_specs,
            pl.BlockSpec((4, band.block, m_block), lambda n, i, m, c: (0, c, m)),
            pl.BlockSpec((2, m_block), lambda n, i, m, c: (0, m)),
            pl.BlockSpec((4, m_block, outputs), lambda n, i, m, c: (0, m, 0)),
            pl.BlockSpec((1, outputs), lambda n, i, m, c: (0, 0)),
        ],
        out_specs=pl.BlockSpec((None, band.rows, width, outputs), lambda n, i, m, c: (n, i, 0, 0)),
        scratch_shapes=[
            band.scratch(),
            pltpu.VMEM((first, band.block), x.dtype),
            pltpu.VMEM((first, m_block), jnp.float32),
            pltpu.VMEM((band.rows + dilation, band.wide, m_block), jnp.float32),
            pltpu.VMEM((band.rows * band.columns, m_block), x.dtype),
            pltpu.VMEM((band.rows * band.columns, outputs), jnp.float32),
        ],
        compiler_params=parameters(grid),
        cost_estimate=cost(8 * pixels * middle * (channels + outputs), x, pixels * outputs, *operands),
        interpret=interpret,
    )(*[x] * len(x_specs), *operands)


def _out_block(outputs):
    return outputs if outputs <= 512 else 512
