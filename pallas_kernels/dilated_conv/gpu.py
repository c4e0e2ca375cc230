"""Hopper kernels (Mosaic GPU): a window of the image in shared memory, the rest in registers, nothing in between stored.

A program is one warpgroup with `rows` × 64 output pixels. The copy engine brings the window of one chunk of channels, zero
outside the image, so no mask is needed there; shifted views are slices of it. A row of 64 pixels is computed in float32,
16 bytes of neighboring channels per thread, rounded to bfloat16 into a swizzled tile, and multiplied on the tensor cores by
the chunk's matrices. With several chunks the next window is in flight meanwhile; several programs share a multiprocessor.
Gradients are XLA's (`xla.py`).
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import cdiv, round_up
from pallas_kernels.dilated_conv import xla
from pallas_kernels.dilated_conv.reference import activate

_PIXELS = 64  # of a row that one program computes: the rows of one tensor-core tile
_SHARED = 100 * 1024  # bytes that leave room for two programs on a multiprocessor
_SHARED_MOST = 220 * 1024
_ALIGNMENT = 128  # bytes at which a copy into shared memory may begin
_FUSED_OUTPUTS = 128  # a wider pointwise product is left to XLA


class _Plan:
    """How one launch is cut: channels per chunk, rows per program, output channels per block, slots of the window."""

    def __init__(self, x, reach, *, vectors, products=0, sums=1, outputs=0):
        self.reach = reach
        self.products, self.sums = products, sums
        self.vectors = round_up(
            vectors, 2
        )  # two rows of the narrowest chunk are what the copy engine aligns to
        self.size = jnp.dtype(x.dtype).itemsize
        _, self.height, self.width, self.channels = x.shape
        best = None
        for row_bytes, block, count in itertools.product((128, 64, 32), (128, 64, 32, 16), (8, 4, 2, 1)):
            chunk = row_bytes // self.size
            if (chunk > 32 // self.size and chunk // 2 >= self.channels) or (
                block > 16 and block // 2 >= outputs
            ):
                continue  # half of it would do
            if count > 1 and count // 2 >= self.height:
                continue
            self.chunk, self.rows, self.block, self.chunks = chunk, count, block, cdiv(self.channels, chunk)
            # Sums, two to a register of a thread; a stencil beside those of several rows needs registers of its own.
            registers = sums * block * (1 if self.chunks == 1 else count)
            too_many = products and registers > (128 if vectors and block > 64 else 256)
            too_many = too_many or (vectors and products and self.chunks > 1 and row_bytes > 64)
            if too_many or self._bytes() > _SHARED_MOST or max(self.window[:2]) > 256:
                continue
            if self.slots > 1 and math.prod(self.window) * self.size % _ALIGNMENT:
                continue  # the second slot's copies would begin where the copy engine cannot write
            # Loads and stencils of a program per pixel that it owns, done again for each block of outputs.
            cost = self.window[0] * self.window[1] / count * (cdiv(outputs, block) if products else 1)
            cost *= {128: 1.0, 64: 1.3, 32: 1.8}[row_bytes] * (1.0 if self._bytes() <= _SHARED else 1.5)
            if best is None or cost < best[0]:
                best = cost, chunk, count, block
        self.fits = best is not None
        if best:
            _, self.chunk, self.rows, self.block = best
            self.chunks = cdiv(self.channels, self.chunk)

    @property
    def window(self):
        return self.rows + 2 * self.reach, _PIXELS + 2 * self.reach, self.chunk

    @property
    def slots(self):
        return 2 if self.products and self.chunks > 1 else 1

    @property
    def swizzle(self):
        return self.chunk * self.size

    def _bytes(self):
        per_slot = math.prod(self.window) * self.size + self.vectors * self.chunk * 4
        per_slot += self.products * self.sums * self.chunk * self.block * 2
        tiles = min(self.products, 4) * _PIXELS * self.chunk * self.size
        out = _PIXELS * (self.block * 5 if self.products else self.chunk * self.size)
        return self.slots * per_slot + tiles + out + 1024


def depthwise(x, w, offset, slope, pointwise, bias, *, dilation, stride, activation, interpret):
    del stride  # 1, see `obstacle`
    k = w.shape[0]
    reach = k // 2 * dilation
    fused = pointwise is not None and pointwise.shape[1] <= _FUSED_OUTPUTS

    def tiles(view, vector, _):
        """One tile of values: φ(w ⋆ x + α)."""
        u = sum(view(p * dilation, q * dilation) * vector(k * p + q) for p in range(k) for q in range(k))
        return [activate(u + vector(k * k), activation, vector(k * k + 1))]

    return _stencil(
        tiles, x, [*w.reshape(k * k, -1), offset, slope], pointwise[None] if fused else None,
        pointwise, bias, reach=reach, interpret=interpret,
    )  # fmt: skip


def cascade(x, a, offset, slope, b, pointwise, bias, *, dilation, activation, exact, interpret):
    dense = b.ndim == 4
    fused = pointwise is not None and pointwise.shape[1] <= _FUSED_OUTPUTS
    height, width = x.shape[1:3]

    def tiles(view, vector, inside):
        """The four values of s under the second filter, "dc", or their weighted sum, "ddp". Stage 1 is done again for each
        of them: nine loads and twenty multiply-adds instead of a map in shared memory and a barrier."""
        views = {(p, q): view(p * dilation, q * dilation) for p in range(3) for q in range(3)}
        values = []
        for r in range(2):
            for t in range(2):
                u = sum(views[r + p, t + q] * vector(2 * p + q) for p in range(2) for q in range(2))
                s = activate(u + vector(4), activation, vector(5))
                if not exact:
                    s = jnp.where(inside(r * dilation, t * dilation, (height, width)), s, 0.0)
                values.append(s)
        if dense:
            return values
        return [sum(s * vector(6 + n) for n, s in enumerate(values))]

    vectors = [*a.reshape(4, -1), offset, slope]
    matrices = b.reshape(4, *b.shape[2:]) if dense else pointwise[None] if fused else None
    return _stencil(
        tiles, x, vectors if dense else [*vectors, *b.reshape(4, -1)], matrices,
        pointwise, bias, reach=dilation, interpret=interpret,
    )  # fmt: skip


def _stencil(tiles, x, vectors, matrices, pointwise, bias, *, reach, interpret):
    """Σ_t tile_t·matrix_t + β, or the tile itself where there is no matrix; then XLA's product if that was left out."""
    if matrices is None:
        values = _launch(tiles, x, vectors, None, None, reach=reach, interpret=interpret)[0]
        return values if pointwise is None and bias is None else xla.project(values, pointwise, bias, x.dtype)
    return _launch(tiles, x, vectors, matrices[None], bias, reach=reach, interpret=interpret)[0]


def conv_ccp(x, w, bias, *, activation, slope, with_winner, interpret):
    k, _, channels, maps, groups = w.shape
    reach = k // 2
    if channels % 16:  # the copy engine moves multiples of 16 bytes
        missing = round_up(channels, 16) - channels
        x = jnp.pad(x, [(0, 0)] * 3 + [(0, missing)])
        w = jnp.pad(w, [(0, 0)] * 2 + [(0, missing), (0, 0), (0, 0)])
    # [R, taps, C, M]
    matrices = w.reshape(k * k, -1, maps, groups).transpose(3, 0, 1, 2)

    def tiles(view, _, __):
        return [functools.partial(view, p, q, raw=True) for p in range(k) for q in range(k)]

    def pool(members):
        """Running maximum over r of [64, M] sums; the first of equals wins, and a NaN wins over numbers."""
        best, winner = members(0), jnp.zeros((), jnp.int32)
        for r in range(1, groups):
            z = members(r)
            better = (z > best) | ((z != z) & (best == best))
            best, winner = jnp.where(better, z, best), jnp.where(better, r, winner)
        winner = jnp.broadcast_to(winner, best.shape)
        return activate(best, activation, slope), winner

    outputs = _launch(
        tiles, x, [], matrices, bias.T, reach=reach, interpret=interpret, pool=pool, with_winner=with_winner
    )
    return outputs[0], outputs[1] if with_winner else None


def _launch(tiles, x, vectors, matrices, bias, *, reach, interpret, pool=None, with_winner=False):
    """One kernel.

    Args:
      tiles: (view, vector, inside) -> values [64, chunk] of one row, or functions that make them, one per matrix.
      x: [N, H, W, C].
      vectors: [C] each, float32.
      matrices: [sums, products, C, O] or None.
      bias: [O] or [sums, O] or None.
      pool: makes (y, winner) of the `sums` accumulators; the first one is y without it.
    """
    n, height, width, channels = x.shape
    sums, products, _, outputs = (1, 0, 0, channels) if matrices is None else matrices.shape
    plan = _Plan(x, reach, vectors=len(vectors), products=products, sums=sums, outputs=outputs)
    chunk, block, total = plan.chunk, plan.block, plan.chunks * plan.chunk
    out_total = round_up(outputs, block) if products else channels
    # The interpreter has no negative start of a copy, which on the device reads zeros: there the image gets a margin.
    margin = reach if interpret else 0
    image = jnp.pad(x, [(0, 0), (margin, 0), (margin, 0), (0, 0)]) if margin else x
    operands = [image]
    if vectors:
        rows = jnp.stack([jnp.pad(v.astype(jnp.float32), (0, total - channels)) for v in vectors])
        operands.append(jnp.pad(rows, [(0, plan.vectors - len(vectors)), (0, 0)]))
    if products:
        # Input channels last, as the rows of a tile of pixels: both operands then have one swizzle.
        padding = [(0, 0), (0, 0), (0, out_total - outputs), (0, total - channels)]
        operands.append(jnp.pad(matrices.swapaxes(2, 3), padding).astype(x.dtype).reshape(-1, total))
        bias = jnp.zeros((sums, outputs), jnp.float32) if bias is None else bias.reshape(sums, outputs)
        operands.append(jnp.pad(bias.astype(jnp.float32), [(0, 0), (0, out_total - outputs)]))
    layout = plgpu.Layout.SMEM_GMEM_COPY((_PIXELS, chunk), x.dtype, plan.swizzle)
    sums_layout = (
        plgpu.Layout.SMEM_GMEM_COPY((_PIXELS, block), x.dtype, min(block * 2, 128)) if products else None
    )
    columns = cdiv(width, _PIXELS)
    last_axis = out_total // block if products else plan.chunks

    def body(*refs):
        refs = list(refs)
        x_ref = refs.pop(0)
        vectors_ref = refs.pop(0) if vectors else None
        matrices_ref, bias_ref = (refs.pop(0), refs.pop(0)) if products else (None, None)
        o_ref = refs.pop(0)
        winner_ref = refs.pop(0) if with_winner else None
        window, arrived = refs.pop(0), refs.pop(0)
        vectors_s = refs.pop(0) if vectors else None
        matrices_s, tiles_s, sums_s = (
            (refs.pop(0), refs.pop(0), refs.pop(0)) if products else (None, None, None)
        )
        out_s = refs.pop(0)
        winner_s = refs.pop(0) if with_winner else None
        example, part = lax.axis_index("example"), lax.axis_index("part")
        first_row, first_column = lax.axis_index("band") * plan.rows, lax.axis_index("column") * _PIXELS

        def fetch(c, slot):
            channel = pl.ds(c * chunk, chunk)
            rows = pl.ds(first_row - reach + margin, plan.window[0])
            cols = pl.ds(first_column - reach + margin, plan.window[1])
            bar = arrived.at[slot]
            plgpu.copy_gmem_to_smem(x_ref.at[example, rows, cols, channel], window.at[slot], bar)
            if vectors:
                plgpu.copy_gmem_to_smem(vectors_ref.at[:, channel], vectors_s.at[slot], bar)
            for index in range(sums * products):
                source = matrices_ref.at[pl.ds(index * out_total + part * block, block), channel]
                plgpu.copy_gmem_to_smem(source, matrices_s.at[slot * sums * products + index], bar)

        def row_tiles(slot, r):
            def view(down, right, raw=False):
                piece = plgpu.load(
                    window.at[slot, r + down, pl.ds(right, _PIXELS)], layout=layout, optimized=False
                )
                return piece if raw else piece.astype(jnp.float32)

            def vector(index):
                values = plgpu.load(vectors_s.at[slot, index], layout=layout.reduce(0), optimized=False)
                return plgpu.layout_cast(lax.broadcast_in_dim(values, (_PIXELS, chunk), (1,)), layout)

            def inside(down, right, extent):
                column = plgpu.broadcasted_iota(jnp.int32, (_PIXELS, chunk), 0, layout=layout)
                return (column < extent[1] - first_column - right) & (first_row + r + down < extent[0])

            return tiles(view, vector, inside)

        def multiply(slot, r, accumulators):
            made = row_tiles(slot, r)
            for start in range(0, products, 4):
                plgpu.commit_smem()  # no warp still multiplies the tiles that are about to change
                for t, tile in enumerate(made[start : start + 4]):
                    tiles_s[t] = (tile() if callable(tile) else tile).astype(x.dtype)
                plgpu.commit_smem()
                for t in range(min(4, products - start)):
                    for s, accumulator in enumerate(accumulators):
                        matrix = matrices_s.at[(slot * sums + s) * products + start + t]
                        plgpu.wgmma(accumulator, tiles_s.at[t], matrix.transpose((1, 0)))
                plgpu.wgmma_wait(0)

        def finish(r, accumulators):
            def member(s):
                offsets = bias_ref.at[s, pl.ds(part * block, block)]
                values = plgpu.load(offsets, layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
                return accumulators[s][...] + lax.broadcast_in_dim(values, (_PIXELS, block), (1,))

            y, winner = pool(member) if pool else (member(0), None)
            y = by_rows(y)
            store(r, y, by_rows(winner.astype(jnp.float32)) if with_winner else None, block)

        def by_rows(values):
            """From the accumulators' layout to runs of channels, by way of a swizzled tile."""
            plgpu.commit_smem()
            sums_s[...] = values.astype(sums_s.dtype)
            plgpu.commit_smem()
            return plgpu.load(sums_s, layout=sums_layout)

        def store(r, y, winner, channels):
            plgpu.wait_smem_to_gmem(0)
            out_s[...] = y.astype(out_s.dtype)
            if with_winner:
                winner_s[...] = winner.astype(jnp.float32).astype(jnp.int32).astype(jnp.int8)
            plgpu.commit_smem()
            channel = pl.ds(part * channels, channels)

            def copy(columns):
                at = (example, first_row + r, pl.ds(first_column, columns), channel)
                plgpu.copy_smem_to_gmem(out_s.at[pl.ds(0, columns)], o_ref.at[at])
                if with_winner:
                    plgpu.copy_smem_to_gmem(winner_s.at[pl.ds(0, columns)], winner_ref.at[at])

            # A copy of whole pixels is one run of memory to the copy engine: past the end of a row it would go on in the next.
            inside, whole = first_row + r < height, first_column + _PIXELS <= width
            if width >= _PIXELS:
                pl.when(inside & whole)(lambda: copy(_PIXELS))
            if rest := width % _PIXELS:
                pl.when(inside & ~whole)(lambda: copy(rest))

        if not products:
            fetch(part, 0)
            plgpu.barrier_wait(arrived.at[0])

            @pl.loop(0, plan.rows)
            def _(r):
                store(r, row_tiles(0, r)[0], None, chunk)

        elif plan.chunks == 1:
            # A traced 0, whose chunk may reach beyond the channels: the copy engine fills in zeros.
            fetch(part - part, 0)
            plgpu.barrier_wait(arrived.at[0])

            @pl.loop(0, plan.rows)
            def _(r):
                def scope(*accumulators):
                    multiply(0, r, accumulators)
                    finish(r, accumulators)

                pl.run_scoped(scope, *[plgpu.ACC((_PIXELS, block), jnp.float32)] * sums)

        else:

            def scope(*accumulators):
                fetch(0, 0)

                @pl.loop(0, plan.chunks)
                def _(c):
                    slot = lax.rem(c, 2)

                    @pl.when(c + 1 < plan.chunks)
                    def _():
                        # Every thread has read what the copy overwrites.
                        plgpu.commit_smem()
                        fetch(c + 1, 1 - slot)

                    plgpu.barrier_wait(arrived.at[slot])
                    for r in range(plan.rows):
                        multiply(slot, r, accumulators[r * sums : (r + 1) * sums])

                for r in range(plan.rows):
                    finish(r, accumulators[r * sums : (r + 1) * sums])

            pl.run_scoped(scope, *[plgpu.ACC((_PIXELS, block), jnp.float32)] * (sums * plan.rows))
        plgpu.wait_smem_to_gmem(0)

    slots = plan.slots
    scratches = [
        plgpu.SMEM((slots, *plan.window), x.dtype, transforms=_plain(chunk)),
        plgpu.Barrier(num_arrivals=1 + bool(vectors) + products * sums, num_barriers=slots),
    ]
    if vectors:
        scratches.append(plgpu.SMEM((slots, plan.vectors, chunk), jnp.float32))
    if products:
        scratches.append(
            plgpu.SMEM((slots * sums * products, block, chunk), x.dtype, transforms=_tiling(plan.swizzle))
        )
        scratches.append(
            plgpu.SMEM((min(products, 4), _PIXELS, chunk), x.dtype, transforms=_tiling(plan.swizzle))
        )
        scratches.append(plgpu.SMEM((_PIXELS, block), x.dtype, transforms=_tiling(block * 2)))
        scratches.append(plgpu.SMEM((_PIXELS, block), x.dtype, transforms=_plain(block)))
    else:
        scratches.append(plgpu.SMEM((_PIXELS, chunk), x.dtype, transforms=_plain(chunk)))
    out_type = [jax.ShapeDtypeStruct((n, height, width, outputs), x.dtype)]
    if with_winner:
        out_type.append(jax.ShapeDtypeStruct((n, height, width, outputs), jnp.int8))
        scratches.append(plgpu.SMEM((_PIXELS, block), jnp.int8, transforms=_plain(block)))
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratches,
        grid=(n, cdiv(height, plan.rows), columns, last_axis),
        grid_names=("example", "band", "column", "part"),
        interpret=interpret,
    )(*operands)


def _plain(row):
    """Row-major. Left to itself, the compiler tiles columns, and then the image's width would have to be whole tiles."""
    return (plgpu.TilingTransform((row,)),)


def _tiling(row_bytes):
    swizzle = min(row_bytes, 128)
    return plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle)


def obstacle(op, x, *arrays, dilation=1, stride=1) -> str | None:
    """Why these shapes cannot run here, or None."""
    if stride > 1:
        return "it has stride 1"
    if op == "conv_ccp":
        w = arrays[0]
        k, maps, groups = w.shape[0], w.shape[3], w.shape[4]
        if x.dtype != jnp.bfloat16:
            return "its matrix products take bfloat16"
        if maps % 16:
            return f"it stores multiples of 16 maps; got {maps}"
        padded = jax.ShapeDtypeStruct((*x.shape[:3], round_up(x.shape[3], 16)), x.dtype)
        plan = _Plan(padded, k // 2, vectors=0, products=k * k, sums=groups, outputs=maps)
        return None if plan.fits else "a window with its filters is larger than shared memory"
    *filters, pointwise = arrays
    multiple = 16 // x.dtype.itemsize
    if x.shape[-1] % multiple:
        return f"its copies are of multiples of 16 bytes, {multiple} channels; got {x.shape[-1]}"
    matrix = pointwise
    reach, vectors, products = dilation, 10, 0
    if op == "depthwise":
        reach = filters[0].shape[0] // 2 * dilation
        vectors = filters[0].shape[0] ** 2 + 2
    else:
        a, b = filters
        if a.ndim == 4:
            return "it has no first stage that mixes channels"
        if b.ndim == 4:
            matrix, products = b, 4
    if matrix is not None:
        if x.dtype != jnp.bfloat16:
            return "its matrix products take bfloat16"
        if matrix.shape[-1] % 8:
            return f"it stores multiples of 8 channels; got {matrix.shape[-1]}"
        products = products or (1 if matrix.shape[-1] <= _FUSED_OUTPUTS else 0)
    plan = _Plan(x, reach, vectors=vectors, products=products, outputs=matrix.shape[-1] if products else 0)
    return None if plan.fits else "a window of 64 pixels with its halo is larger than shared memory"
