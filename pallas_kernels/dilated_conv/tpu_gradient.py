"""Gradients of depthwise and cascaded stages on a TPU: one pass over the image and the gradient of its output."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.common import round_up
from pallas_kernels.dilated_conv.reference import activate
from pallas_kernels.dilated_conv.tpu_band import Band, band_rows, cost, pad_channels, parameters


def depthwise_gradient(x, w, gv, *, dilation, interpret):
    """dx and dw of v = w ⋆ x, given dL/dv: one pass over both; each program's part of dw is added up outside, in order."""
    k = w.shape[0]
    reach = k // 2 * dilation
    band = Band(x, reach, band_rows(x, reach, 0, x.shape[-1], backward=True))

    def body(*refs):
        *image_refs, w_ref, dx_ref, dw_ref, x_scratch, g_scratch = refs
        x_refs, g_refs = image_refs[: len(image_refs) // 2], image_refs[len(image_refs) // 2 :]
        first_row, chunk = pl.program_id(1) * band.rows, pl.program_id(2)
        band.assemble(x_scratch, x_refs, first_row, chunk)
        band.assemble(g_scratch, g_refs, first_row, chunk)
        offsets = [(p * dilation, q * dilation - reach) for p in range(k) for q in range(k)]

        def row(i, sums):
            g = band.view(g_scratch, i + reach, 0, band.columns)
            dx = jnp.zeros_like(g)
            for t, (down, right) in enumerate(offsets):
                dx += band.view(g_scratch, i + 2 * reach - down, -right, band.columns) * w_ref[t : t + 1, :]
            dx_ref[i] = dx[: band.width].astype(dx_ref.dtype)
            return tuple(
                total + _fold(band.view(x_scratch, i + down, right, band.columns) * g)
                for total, (down, right) in zip(sums, offsets, strict=True)
            )

        zeros = tuple(jnp.zeros((8, band.block), jnp.float32) for _ in offsets)
        for t, total in enumerate(lax.fori_loop(0, band.rows, row, zeros)):
            dw_ref[t : t + 1, :] = jnp.sum(total, axis=0, keepdims=True)

    dx, program_sums = _backward(
        band, body, x, [gv], [w.reshape(k * k, -1)], k * k, [band.scratch(), band.scratch()], interpret
    )
    return dx, jnp.sum(program_sums, axis=(0, 1)).reshape(w.shape)


def cascade_gradient(x, a, offset, slope, b, gv, *, dilation, activation, exact, interpret):
    """dx, da, dα, dslope and db of v = b ⋆ φ(a ⋆ x + α), given dL/dv; u is computed again."""
    d = dilation
    band = Band(x, d, band_rows(x, d, 0, x.shape[-1], backward=True, cascade=True))

    def body(*refs):
        *image_refs, a_ref, vectors, b_ref, dx_ref, sums_ref, x_scratch, g_scratch, gu_ref = refs
        x_refs, g_refs = image_refs[: len(image_refs) // 2], image_refs[len(image_refs) // 2 :]
        first_row, chunk = pl.program_id(1) * band.rows, pl.program_id(2)
        last = pl.program_id(1) == band.tiles - 1
        band.assemble(x_scratch, x_refs, first_row, chunk)
        band.assemble(g_scratch, g_refs, first_row, chunk)
        taps = [(p, q) for p in range(2) for q in range(2)]

        def middle(i, sums):
            """One row of u, s and gu; a row belongs to the tile that its output row belongs to, the rest to the last."""
            xs = [band.view(x_scratch, i + p * d, (q - 1) * d, band.wide) for p, q in taps]
            u = sum(t * a_ref[n : n + 1, :] for n, t in enumerate(xs)) + vectors[0:1, :]
            s = activate(u, activation, vectors[1:2, :])
            gvs = [band.view(g_scratch, i + (1 - r) * d, -t * d, band.wide) for r, t in taps]
            gs = sum(g * b_ref[n : n + 1, :] for n, g in enumerate(gvs))
            if not exact:
                column = lax.broadcasted_iota(jnp.int32, s.shape, 0)
                inside = (column < band.width) & (first_row + i < band.height)
                s, gs = jnp.where(inside, s, 0.0), jnp.where(inside, gs, 0.0)
            gu = gs
            if activation != "identity":
                below = 0.0 if activation == "relu" else gs * vectors[1:2, :]
                gu = jnp.where(u > 0, gs, below)
            gu_ref[i] = gu
            counted = (i < band.rows) | last
            gu, gs = jnp.where(counted, gu, 0.0), jnp.where(counted, gs, 0.0)
            terms = [gu * t for t in xs] + [gu, gs * jnp.minimum(u, 0.0)]
            # s meets dL/dv of output row i - r·d, which is another tile's where i belongs to that one.
            terms += [jnp.where(counted, g, 0.0) * s for g in gvs]
            return tuple(total + _fold(term) for total, term in zip(sums, terms, strict=True))

        zeros = tuple(jnp.zeros((8, band.block), jnp.float32) for _ in range(10))
        for t, total in enumerate(lax.fori_loop(0, band.rows + d, middle, zeros)):
            sums_ref[t : t + 1, :] = jnp.sum(total, axis=0, keepdims=True)

        def row(i, _):
            dx = sum(
                gu_ref[i + (1 - p) * d, pl.ds((1 - q) * d, band.columns), :] * a_ref[n : n + 1, :]
                for n, (p, q) in enumerate(taps)
            )
            dx_ref[i] = dx[: band.width].astype(dx_ref.dtype)
            return 0

        lax.fori_loop(0, band.rows, row, 0)

    scratches = [
        band.scratch(),
        band.scratch(),
        pltpu.VMEM((band.rows + d, band.wide, band.block), jnp.float32),
    ]
    rows = [a.reshape(4, -1), jnp.stack([offset, slope]), b.reshape(4, -1)]
    dx, program_sums = _backward(band, body, x, [gv], rows, 10, scratches, interpret)
    sums = jnp.sum(program_sums, axis=(0, 1))
    return dx, sums[:4].reshape(a.shape), sums[4], sums[5], sums[6:].reshape(b.shape)


def _fold(value):
    """Sums groups of 8 columns onto one register's sublanes."""
    return jnp.sum(value.reshape(-1, 8, value.shape[-1]), axis=0)


def _backward(band, body, x, others, rows, sums, scratches, interpret):
    """Runs a stencil over x and maps like it; returns dx and each program's `sums` rows of partial sums."""
    n, height, width, channels = x.shape
    total = band.chunks * band.block
    specs = band.specs()
    padded_sums = round_up(sums, 8)

    def per_channel(rows):
        return pl.BlockSpec((rows, band.block), lambda n, i, c: (0, c))

    grid = (n, band.tiles, band.chunks)
    images = [image for image in (x, *others) for _ in specs]

    def cleared(*refs):
        sums_ref = refs[len(images) + len(rows) + 1]
        sums_ref[...] = jnp.zeros_like(sums_ref)
        body(*refs)

    dx, program_sums = pl.pallas_call(
        cleared,
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((n, band.tiles, padded_sums, channels), jnp.float32),
        ],
        grid=grid,
        in_specs=[*specs * (1 + len(others)), *[per_channel(len(r)) for r in rows]],
        out_specs=[
            pl.BlockSpec((None, band.rows, width, band.block), lambda n, i, c: (n, i, 0, c)),
            pl.BlockSpec((None, None, padded_sums, band.block), lambda n, i, c: (n, i, 0, c)),
        ],
        scratch_shapes=scratches,
        compiler_params=parameters(grid, arbitrary=0),
        cost_estimate=cost(4 * x.size * sum(len(r) for r in rows), x, 2 * x.size, *rows),
        interpret=interpret,
    )(*images, *[pad_channels(r, total) for r in rows])
    return dx, program_sums[:, :, :sums]
