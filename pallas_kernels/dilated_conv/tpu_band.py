"""A TPU program's band of rows: what a program loads, multiplies and stores, and how tall it may be.

A program takes a band of whole rows. The rows above and below that its filters reach are two further blocks of the same
image, as tall as that reach; the three are put together, in float32 and zero outside the image, in a scratch with a margin of
columns on both sides. A shifted view is then a slice: free along rows, a sublane rotation along columns.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.common import cdiv, round_up
from pallas_kernels.dilated_conv.reference import activate

LANES = 128
# Bytes of a program's blocks and scratches, of the 16 MiB that every generation grants by default.
_VMEM = 11 * 2**20
TALLEST = 64  # rows of a band


class Band:
    """Sizes of one program's piece of an image: `rows` output rows, filters that reach `reach` rows and columns."""

    def __init__(self, x, reach, rows, channels=None):
        _, self.height, self.width, self.channels = x.shape
        self.reach, self.rows = reach, rows
        self.block = channels or channel_block(self.channels)
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


def channel_block(channels):
    return channels if channels <= LANES else LANES


def phi(u, vectors, activation):
    """φ(u + α); `vectors` holds α and the slope as rows."""
    return activate(u + vectors[0:1, :], activation, vectors[1:2, :])


def _dot(left, right):
    exact = left.dtype == jnp.float32
    return jnp.dot(
        left, right, preferred_element_type=jnp.float32, precision=lax.Precision.HIGHEST if exact else None
    )


def store(o_ref, band, rows_of):
    """o_ref[i] = rows_of(i), the columns that exist."""

    def row(i, _):
        o_ref[i] = rows_of(i)[: band.width].astype(o_ref.dtype)
        return 0

    lax.fori_loop(0, band.rows, row, 0)


def accumulate(sum_ref, left_ref, band, lefts, matrix_ref, chunk, *, rows=None, columns=None):
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


def pad_channels(rows, total):
    return jnp.pad(rows.astype(jnp.float32), [(0, 0), (0, total - rows.shape[-1])])


def parameters(grid, arbitrary=None):
    """Images and bands are independent; further axes accumulate, unless `arbitrary` says that fewer do."""
    inner = len(grid) - 2 if arbitrary is None else arbitrary
    semantics = ("parallel",) * (len(grid) - inner) + ("arbitrary",) * inner
    return pltpu.CompilerParams(dimension_semantics=semantics)


def cost(flops, x, written, *small):
    bytes_accessed = (x.size + written) * x.dtype.itemsize + sum(t.size * t.dtype.itemsize for t in small)
    return pl.CostEstimate(flops=flops, bytes_accessed=bytes_accessed, transcendentals=0)


def _bytes(x, reach, rows, products, outputs, *, cascade=False, backward=False, pooled=False, taps=0):
    """Vector memory of one program, blocks twice (they are fetched ahead)."""
    band = Band(x, reach, rows)
    size = x.dtype.itemsize
    lanes, out_lanes = round_up(band.block, LANES), round_up(min(outputs, 512), LANES)
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


def band_rows(x, reach, products, outputs, **kernel):
    """The tallest band that fits, a multiple of `reach` where there are several; 0 if none fits."""
    step = max(reach, 1)

    def fits(rows):
        return _bytes(x, reach, rows, products, outputs, **kernel) <= _VMEM

    height = x.shape[1]
    if height <= TALLEST and fits(height):
        return height
    return max((rows for rows in range(step, max(TALLEST, step) + 1, step) if fits(rows)), default=0)
