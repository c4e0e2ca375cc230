"""Convolution and the maximum over groups of filters on a TPU; the map of all members is never stored."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.common import cdiv
from pallas_kernels.dilated_conv.reference import activate
from pallas_kernels.dilated_conv.tpu_band import (
    LANES,
    Band,
    accumulate,
    band_rows,
    channel_block,
    cost,
    pad_channels,
    parameters,
    store,
)


def conv_ccp(x, w, bias, *, activation, slope, with_winner, interpret):
    """Grid (image, band, block of M, r, chunk of C): one group member after another against a running maximum."""
    n, height, width, channels = x.shape
    k, _, _, maps, groups = w.shape
    reach = k // 2
    band = Band(x, reach, band_rows(x, reach, 1, min(maps, LANES), pooled=True, taps=k * k))
    m_block = channel_block(maps)
    m_blocks = cdiv(maps, m_block)
    total, m_total = band.chunks * band.block, m_blocks * m_block
    # [R, taps, C, M]
    filters = w.reshape(k * k, channels, maps, groups).transpose(3, 0, 1, 2)
    filters = jnp.pad(filters, [(0, 0), (0, 0), (0, total - channels), (0, m_total - maps)]).astype(x.dtype)
    offsets = pad_channels(bias.T, m_total)[:, None]

    def body(*refs):
        *refs, scratch, left_ref, z_ref, best_ref, index_ref = refs
        *refs, winner_ref = refs if with_winner else (*refs, None)
        *x_refs, w_ref, b_ref, o_ref = refs
        band_index, m, r, chunk = (pl.program_id(axis) for axis in (1, 2, 3, 4))

        # The window outlives a grid step: it is put together again only when it changes.
        @pl.when((chunk > 0) | (band.chunks > 1) | ((m == 0) & (r == 0)))
        def _():
            band.assemble(scratch, x_refs, band_index * band.rows, chunk)

        lefts = [
            lambda i, p=p, q=q: band.view(scratch, i + p, q - reach, band.columns)
            for p in range(k)
            for q in range(k)
        ]
        accumulate(z_ref, left_ref, band, lefts, w_ref, chunk)

        @pl.when(chunk == band.chunks - 1)
        def _():
            z = z_ref[...] + b_ref[0:1, :]
            best = jnp.where(r == 0, -jnp.inf, best_ref[...])
            index = jnp.where(r == 0, 0, index_ref[...])
            better = (r == 0) | (z > best) | ((z != z) & (best == best))
            best, index = jnp.where(better, z, best), jnp.where(better, r, index)
            best_ref[...], index_ref[...] = best, index

            @pl.when(r == groups - 1)
            def _():
                store(o_ref, band, lambda i: activate(best_ref[band.at(i), :], activation, slope))
                if with_winner:
                    store(winner_ref, band, lambda i: index_ref[band.at(i), :])

    x_specs = band.specs()
    grid = (n, band.tiles, m_blocks, groups, band.chunks)
    out_spec = pl.BlockSpec((None, band.rows, width, m_block), lambda n, i, m, r, c: (n, i, 0, m))
    pixels, matrix_rows = n * height * width, band.rows * band.columns
    outputs = [x.dtype, jnp.int8] if with_winner else [x.dtype]
    y, *winner = pl.pallas_call(
        body,
        out_shape=[jax.ShapeDtypeStruct((n, height, width, maps), dtype) for dtype in outputs],
        grid=grid,
        in_specs=[
            *x_specs,
            pl.BlockSpec((None, k * k, band.block, m_block), lambda n, i, m, r, c: (r, 0, c, m)),
            pl.BlockSpec((None, 1, m_block), lambda n, i, m, r, c: (r, 0, m)),
        ],
        out_specs=[out_spec] * len(outputs),
        scratch_shapes=[
            band.scratch(),
            pltpu.VMEM((matrix_rows, band.block), x.dtype),
            pltpu.VMEM((matrix_rows, m_block), jnp.float32),
            pltpu.VMEM((matrix_rows, m_block), jnp.float32),
            pltpu.VMEM((matrix_rows, m_block), jnp.int32),
        ],
        compiler_params=parameters(grid),
        cost_estimate=cost(2 * pixels * k * k * channels * maps * groups, x, pixels * maps * 2, filters),
        interpret=interpret,
    )(*[x] * len(x_specs), filters, offsets)
    return y, winner[0] if with_winner else None
