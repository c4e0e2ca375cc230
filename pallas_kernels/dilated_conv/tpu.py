"""TPU kernels: channels on lanes, columns on sublanes, rows leading; intermediate maps stay in vector memory.

A program takes a band of whole rows. The rows above and below that its filters reach are two further blocks of the same
image, as tall as that reach; the three are put together, in float32 and zero outside the image, in a scratch with a margin of
columns on both sides. A shifted view is then a slice: free along rows, a sublane rotation along columns.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.common import cdiv, round_up
from pallas_kernels.dilated_conv.reference import activate

_LANES = 128
_VMEM = (
    11 * 2**20
)  # bytes of a program's blocks and scratches, of the 16 MiB that every generation grants by default
_TALLEST = 64  # rows of a band


class _Band:
    """Sizes of one program's piece of an image: `rows` output rows, filters that reach `reach` rows and columns."""

    def __init__(self, x, reach, rows, channels=None):
        _, self.height, self.width, self.channels = x.shape
        self.reach, self.rows = reach, rows
        self.block = channels or _channel_block(self.channels)
        self.chunks = cdiv(self.channels, self.block)
        self.tiles = cdiv(self.height, rows)
        packing = 8 * 4 // jnp.dtype(x.dtype).itemsize
        self.columns = round_up(self.width, packing)  # computed, so that rows of a matrix operand are aligned
        self.left = round_up(reach, 8)
        self.wide = round_up(self.columns + reach, packing)  # of an intermediate map
        self.padded = self.left + round_up(self.wide + reach, 8)

    def specs(self, chunk=lambda *rest: rest[-1]):
        """Block specs of the band, the rows above and the rows below; `chunk` finds the channel block in the grid indices."""

        def spec(rows, index):
            return pl.BlockSpec(
                (None, rows, self.width, self.block), lambda n, i, *rest: (n, index(i), 0, chunk(*rest))
            )

        band = spec(self.rows, lambda i: i)
        if self.tiles == 1 or self.reach == 0:
            return [band]
        ratio, last = self.rows // self.reach, cdiv(self.height, self.reach) - 1
        above = spec(self.reach, lambda i: jnp.maximum(i * ratio - 1, 0))
        below = spec(self.reach, lambda i: jnp.minimum((i + 1) * ratio, last))
        return [band, above, below]

    def scratch(self):
        return pltpu.VMEM((self.rows + 2 * self.reach, self.padded, self.block), jnp.float32)

    def assemble(self, scratch, refs, first_row, chunk):
        """Fills `scratch`: row r is image row first_row - reach + r, column c is image column c - left."""
        self._clear_margins(scratch)
        self._place(scratch, refs[0], self.reach, first_row, chunk)
        if len(refs) > 1:
            self._place(scratch, refs[1], 0, first_row - self.reach, chunk)
            self._place(scratch, refs[2], self.reach + self.rows, first_row + self.rows, chunk)
        elif self.reach:
            blank = jnp.zeros((self.reach, self.width, self.block), jnp.float32)
            columns = pl.ds(self.left, self.width)
            scratch[: self.reach, columns, :] = blank
            scratch[self.reach + self.rows :, columns, :] = blank

    def _clear_margins(self, scratch):
        height, right = self.rows + 2 * self.reach, self.left + self.width
        if self.left:
            scratch[:, : self.left, :] = jnp.zeros((height, self.left, self.block), jnp.float32)
        if self.padded > right:
            scratch[:, right:, :] = jnp.zeros((height, self.padded - right, self.block), jnp.float32)

    def _place(self, scratch, ref, at, first_row, chunk):
        """Rows of a block, whose overhanging rows and channels are undefined."""

        def row(r, _):
            value = ref[r].astype(jnp.float32)
            image_row = first_row + r
            inside = (image_row >= 0) & (image_row < self.height)
            if self.channels % self.block:
                lane = lax.broadcasted_iota(jnp.int32, value.shape, 1)
                inside = inside & (lane < self.channels - chunk * self.block)
            scratch[at + r, pl.ds(self.left, self.width), :] = jnp.where(inside, value, 0.0)
            return 0

        lax.fori_loop(0, ref.shape[0], row, 0)

    def at(self, row):
        """Where an image row stands in a matrix of one row per pixel."""
        return pl.ds(pl.multiple_of(row * self.columns, 8), self.columns)

    def view(self, scratch, row, column, columns):
        """Image columns column … column + columns of scratch row `row`."""
        return scratch[row, pl.ds(self.left + column, columns), :]


def _channel_block(channels):
    return channels if channels <= _LANES else _LANES


def _phi(u, vectors, activation):
    """φ(u + α); `vectors` holds α and the slope as rows."""
    return activate(u + vectors[0:1, :], activation, vectors[1:2, :])


def _first_stage(band, scratch, s_ref, a, vectors, first_row, *, dilation, activation, exact):
    """s = φ(a ⋆ x + α) on rows + d rows; in "per_stage" mode it is zero beyond the image."""

    def row(r, _):
        u = sum(
            band.view(scratch, r + p * dilation, (q - 1) * dilation, band.wide)
            * a[2 * p + q : 2 * p + q + 1, :]
            for p in range(2)
            for q in range(2)
        )
        s = _phi(u, vectors, activation)
        if not exact:
            column = lax.broadcasted_iota(jnp.int32, s.shape, 0)
            s = jnp.where((column < band.width) & (first_row + r < band.height), s, 0.0)
        s_ref[r] = s
        return 0

    lax.fori_loop(0, band.rows + dilation, row, 0)


def _dot(left, right):
    exact = left.dtype == jnp.float32
    return jnp.dot(
        left, right, preferred_element_type=jnp.float32, precision=lax.Precision.HIGHEST if exact else None
    )


def _store(o_ref, band, rows_of):
    """o_ref[i] = rows_of(i), the columns that exist."""

    def row(i, _):
        o_ref[i] = rows_of(i)[: band.width].astype(o_ref.dtype)
        return 0

    lax.fori_loop(0, band.rows, row, 0)


# --- forward ----------------------------------------------------------------------------------------------------------


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


def _forward(mode, x, taps, offset, slope, matrices, bias, *, reach, dilation, activation, exact, interpret):
    """Depthwise or cascaded stages, then one matrix product ("depthwise", "ddp", if any) or four ("dc")."""
    n, height, width, channels = x.shape
    outputs = channels if matrices is None else matrices.shape[-1]
    products = 0 if matrices is None else len(matrices)
    band = _Band(x, reach, _rows(x, reach, products, outputs, cascade=mode != "depthwise"))
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
            return _phi(u, vectors, activation)

        if not products:
            _store(o_ref, band, lambda i: values(i) + bias_ref[0:1, :])
            return

        def shifted(r, t):
            return lambda i: s_ref[i + r * dilation, pl.ds(t * dilation, band.columns), :]

        lefts = [shifted(r, t) for r in range(2) for t in range(2)] if mode == "dc" else [values]
        _accumulate(sum_ref, left_ref, band, lefts, matrix_ref, chunk)

        @pl.when(chunk == band.chunks - 1)
        def _():
            _store(o_ref, band, lambda i: sum_ref[band.at(i), :] + bias_ref[0:1, :])

    x_specs = band.specs()

    def per_channel(rows):
        return pl.BlockSpec((rows, band.block), lambda *indices: (0, indices[-1]))

    vectors = _pad(jnp.stack([offset, slope]), total)
    given = [*[x] * len(x_specs), *[_pad(t, total) for t in taps], vectors]
    in_specs = [*x_specs, *[per_channel(len(t)) for t in taps], per_channel(2)]
    scratches = [band.scratch()]
    if mode != "depthwise":
        scratches.append(pltpu.VMEM((band.rows + dilation, band.wide, band.block), jnp.float32))
    bias = jnp.zeros(outputs, jnp.float32) if bias is None else bias
    bias = _pad(bias[None], out_blocks * out_block)
    if products:
        grid = (n, band.tiles, out_blocks, band.chunks)
        padded = [(0, 0), (0, total - channels), (0, out_blocks * out_block - outputs)]
        given.append(jnp.pad(matrices, padded).astype(x.dtype))
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
        compiler_params=_parameters(grid),
        cost_estimate=_cost(2 * macs, x, pixels * outputs, *given[len(x_specs) :]),
        interpret=interpret,
    )(*given, bias)


def _accumulate(sum_ref, left_ref, band, lefts, matrix_ref, chunk, *, rows=None, columns=None):
    """sum += Σ_t left_t·matrix_t, where left_t(i) makes row i of the left operand; from 0 in the first chunk."""
    rows, columns = rows or band.rows, columns or band.columns
    for t, left in enumerate(lefts):

        def row(i, _, left=left):
            at = pl.multiple_of(i * columns, 8)
            left_ref[pl.ds(at, columns), :] = left(i).astype(left_ref.dtype)
            return 0

        lax.fori_loop(0, rows, row, 0)
        product = _dot(left_ref[...], matrix_ref[t])
        if t == 0:

            @pl.when(chunk == 0)
            def _(product=product):
                sum_ref[...] = product

            @pl.when(chunk > 0)
            def _(product=product):
                sum_ref[...] += product

        else:
            sum_ref[...] += product


def _dense_cascade(x, a, offset, slope, b, bias, *, dilation, activation, exact, interpret):
    """Both stages dense: grid (image, band, block of middle channels, chunk of input channels)."""
    n, height, width, channels = x.shape
    middle, outputs = b.shape[2:]
    band = _Band(x, dilation, _rows(x, dilation, 8, outputs, cascade=True))
    m_block = _channel_block(middle)
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
        _accumulate(u_ref, left_ref, band, lefts, a_ref, chunk, rows=band.rows + dilation, columns=band.wide)

        @pl.when(chunk == band.chunks - 1)
        def _():
            def row(r, _):
                u = u_ref[pl.ds(pl.multiple_of(r * band.wide, 8), band.wide), :]
                s = _phi(u, vectors, activation)
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
            _accumulate(sum_ref, left2_ref, band, lefts, b_ref, m)

            @pl.when(m == m_blocks - 1)
            def _():
                _store(o_ref, band, lambda i: sum_ref[band.at(i), :] + bias_ref[0:1, :])

    x_specs = band.specs()
    a = jnp.pad(a.reshape(4, channels, middle), [(0, 0), (0, total - channels), (0, m_total - middle)])
    b = jnp.pad(b.reshape(4, middle, outputs), [(0, 0), (0, m_total - middle), (0, 0)])
    bias = (jnp.zeros(outputs, jnp.float32) if bias is None else bias)[None]
    given = [a.astype(x.dtype), _pad(jnp.stack([offset, slope]), m_total), b.astype(x.dtype), bias]
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
        compiler_params=_parameters(grid),
        cost_estimate=_cost(8 * pixels * middle * (channels + outputs), x, pixels * outputs, *given),
        interpret=interpret,
    )(*[x] * len(x_specs), *given)


def conv_ccp(x, w, bias, *, activation, slope, keep_winner, interpret):
    """Grid (image, band, block of M, r, chunk of C): one group member after another against a running maximum."""
    n, height, width, channels = x.shape
    k, _, _, kept, groups = w.shape
    reach = k // 2
    band = _Band(x, reach, _rows(x, reach, 1, min(kept, _LANES), pooled=True, taps=k * k))
    m_block = _channel_block(kept)
    m_blocks = cdiv(kept, m_block)
    total, m_total = band.chunks * band.block, m_blocks * m_block
    # [R, taps, C, M]
    filters = w.reshape(k * k, channels, kept, groups).transpose(3, 0, 1, 2)
    filters = jnp.pad(filters, [(0, 0), (0, 0), (0, total - channels), (0, m_total - kept)]).astype(x.dtype)
    offsets = _pad(bias.T, m_total)[:, None]

    def body(*refs):
        *refs, scratch, left_ref, z_ref, best_ref, index_ref = refs
        *refs, winner_ref = refs if keep_winner else (*refs, None)
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
        _accumulate(z_ref, left_ref, band, lefts, w_ref, chunk)

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
                _store(o_ref, band, lambda i: activate(best_ref[band.at(i), :], activation, slope))
                if keep_winner:
                    _store(winner_ref, band, lambda i: index_ref[band.at(i), :])

    x_specs = band.specs()
    grid = (n, band.tiles, m_blocks, groups, band.chunks)
    out_spec = pl.BlockSpec((None, band.rows, width, m_block), lambda n, i, m, r, c: (n, i, 0, m))
    pixels, matrix_rows = n * height * width, band.rows * band.columns
    outputs = [x.dtype, jnp.int8] if keep_winner else [x.dtype]
    y, *winner = pl.pallas_call(
        body,
        out_shape=[jax.ShapeDtypeStruct((n, height, width, kept), dtype) for dtype in outputs],
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
        compiler_params=_parameters(grid),
        cost_estimate=_cost(2 * pixels * k * k * channels * kept * groups, x, pixels * kept * 2, filters),
        interpret=interpret,
    )(*[x] * len(x_specs), filters, offsets)
    return y, winner[0] if keep_winner else None


# --- backward ---------------------------------------------------------------------------------------------------------


def depthwise_gradient(x, w, gv, *, dilation, interpret):
    """dx and dw of v = w ⋆ x, given dL/dv: one pass over both; each program's part of dw is added up outside, in order."""
    k = w.shape[0]
    reach = k // 2 * dilation
    band = _Band(x, reach, _rows(x, reach, 0, x.shape[-1], backward=True))

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

    dx, parts = _backward(
        band, body, x, [gv], [w.reshape(k * k, -1)], k * k, [band.scratch(), band.scratch()], interpret
    )
    return dx, jnp.sum(parts, axis=(0, 1)).reshape(w.shape)


def cascade_gradient(x, a, offset, slope, b, gv, *, dilation, activation, exact, interpret):
    """dx, da, dα, dslope and db of v = b ⋆ φ(a ⋆ x + α), given dL/dv; u is computed again."""
    d = dilation
    band = _Band(x, d, _rows(x, d, 0, x.shape[-1], backward=True, cascade=True))

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
            mine = (i < band.rows) | last
            gu, gs = jnp.where(mine, gu, 0.0), jnp.where(mine, gs, 0.0)
            parts = [gu * t for t in xs] + [gu, gs * jnp.minimum(u, 0.0)]
            # s meets dL/dv of output row i - r·d, which is another tile's where i belongs to that one.
            parts += [jnp.where(mine, g, 0.0) * s for g in gvs]
            return tuple(total + _fold(part) for total, part in zip(sums, parts, strict=True))

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
    dx, parts = _backward(band, body, x, [gv], rows, 10, scratches, interpret)
    sums = jnp.sum(parts, axis=(0, 1))
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

    dx, parts = pl.pallas_call(
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
        compiler_params=_parameters(grid, arbitrary=0),
        cost_estimate=_cost(4 * x.size * sum(len(r) for r in rows), x, 2 * x.size, *rows),
        interpret=interpret,
    )(*images, *[_pad(r, total) for r in rows])
    return dx, parts[:, :, :sums]


# --- sizes ------------------------------------------------------------------------------------------------------------


def _pad(rows, total):
    return jnp.pad(rows.astype(jnp.float32), [(0, 0), (0, total - rows.shape[-1])])


def _out_block(outputs):
    return outputs if outputs <= 512 else 512


def _parameters(grid, arbitrary=None):
    """Images and bands are independent; further axes accumulate, unless `arbitrary` says that fewer do."""
    inner = len(grid) - 2 if arbitrary is None else arbitrary
    semantics = ("parallel",) * (len(grid) - inner) + ("arbitrary",) * inner
    return pltpu.CompilerParams(dimension_semantics=semantics)


def _cost(flops, x, written, *small):
    bytes_accessed = (x.size + written) * x.dtype.itemsize + sum(t.size * t.dtype.itemsize for t in small)
    return pl.CostEstimate(flops=flops, bytes_accessed=bytes_accessed, transcendentals=0)


def _bytes(x, reach, rows, products, outputs, *, cascade=False, backward=False, pooled=False, taps=0):
    """Vector memory of one program, blocks twice (they are fetched ahead)."""
    band = _Band(x, reach, rows)
    size = x.dtype.itemsize
    lanes, out_lanes = round_up(band.block, _LANES), round_up(min(outputs, 512), _LANES)
    image = (rows + 2 * reach) * band.columns * lanes * size * 2
    scratch = (rows + 2 * reach) * band.padded * lanes * 4
    middle = (rows + reach) * band.wide * lanes * 4 if cascade else 0
    if backward:
        return 2 * (image + scratch) + middle + rows * band.columns * lanes * size * 2
    matrix_rows = rows * band.columns
    matrices = max(products, taps) * lanes * out_lanes * size * 2
    if products > 4:  # both stages dense: operands and sums of the first one too
        matrices += (rows + reach) * band.wide * lanes * (size + 4)
    sums = matrix_rows * (
        (lanes if products else 0) * size + out_lanes * 4 * (3 if pooled else 1 if products else 0)
    )
    product = matrix_rows * out_lanes * 4 if products else 0
    out = matrix_rows * out_lanes * (size + pooled) * 2 if products else matrix_rows * lanes * size * 2
    return image + scratch + middle + matrices + sums + product + out


def _rows(x, reach, products, outputs, **kernel):
    """The tallest band that fits, a multiple of `reach` where there are several; 0 if none fits."""
    step = max(reach, 1)

    def fits(rows):
        return _bytes(x, reach, rows, products, outputs, **kernel) <= _VMEM

    height = x.shape[1]
    if height <= _TALLEST and fits(height):
        return height
    return max((rows for rows in range(step, max(_TALLEST, step) + 1, step) if fits(rows)), default=0)


def obstacle(op, x, *arrays, dilation=1, stride=1) -> str | None:
    """Why these shapes cannot run here, or None."""
    if stride > 1:
        return "it has stride 1"
    *filters, pointwise = (*arrays, None) if op == "conv_ccp" else arrays
    if op == "conv_ccp":
        k = filters[0].shape[0]
        rows = _rows(x, k // 2, 1, min(filters[0].shape[-1], _LANES), pooled=True, taps=k * k)
    elif op == "depthwise":
        reach = filters[0].shape[0] // 2 * dilation
        products, outputs = (0, x.shape[-1]) if pointwise is None else (1, pointwise.shape[-1])
        rows = _rows(x, reach, products, outputs)
        rows = min(rows, _rows(x, reach, 0, x.shape[-1], backward=True))
    else:
        a, b = filters
        dense = b.ndim == 4
        products = (8 if a.ndim == 4 else 4) if dense else 0 if pointwise is None else 1
        outputs = b.shape[-1] if dense or pointwise is None else pointwise.shape[-1]
        rows = _rows(x, dilation, products, outputs, cascade=True)
        if not dense:
            rows = min(rows, _rows(x, dilation, 0, x.shape[-1], backward=True, cascade=True))
        if a.ndim == 4 and outputs > 512:
            return f"two dense stages are for at most 512 output channels; got {outputs}"
    if rows == 0:
        return f"a band of {x.shape[2]} columns with its halo is larger than the vector memory"
    return None
