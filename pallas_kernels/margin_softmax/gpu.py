"""Hopper: a Mosaic GPU product whose epilogue turns cosines into gradients, between library products over chunks of classes.

A chunk's gradient by the raw products, H [B, chunk] in bfloat16, is what the kernel writes; it is small enough to be still in
the L2 cache when the two products that consume it, H W and Hᵀ x, read it. Those are cuBLAS's. So a one-pass head does three
products per class and embedding, none twice, and the cosines themselves never leave the registers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import common
from pallas_kernels.margin_softmax import shards
from pallas_kernels.margin_softmax.heads import Head
from pallas_kernels.margin_softmax.sphere import inverse_norms, through_norms
from pallas_kernels.margin_softmax.xla import over_chunks

_ROWS, _COLUMNS, _DEPTH = 128, 256, 64  # a tile of the product: embeddings, classes, features at a time
_GROUP_ROWS = _ROWS // 2  # two warpgroups share the classes
_PIECE = 64  # classes that the epilogue handles at a time, to bound its registers
_STAGES = 3
_CHUNK_BYTES = 16 << 20  # of H; the L2 cache holds 50 MB
_BY_ROW, _BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


def obstacle(batch: int, classes: int, features: int) -> str | None:
    """Why the kernel cannot run at this size: it always can, odd sizes are padded."""
    del batch, classes, features


def reduce(
    head: Head,
    x: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    *,
    interpret: Any,
) -> jax.Array:
    """As `xla.reduce`."""
    batch = x.shape[0]
    nothing = jnp.zeros((batch,), jnp.float32)
    rows = _rows(x, labels, nothing, nothing, nothing)
    zero = jnp.zeros(rows[0].shape[:1], jnp.float32)

    def step(start, size, carry):
        w, signed = _columns(prototypes, where, start, size)
        products = _epilogue_product(head, rows, w, signed, start, True, interpret)
        if head.one_pass:
            return carry + jnp.sum(products, axis=0)
        peaks, totals = products
        lse = jax.nn.logsumexp(peaks + jnp.log(totals), axis=0)
        return jnp.logaddexp(carry, lse)

    carry = zero if head.one_pass else zero - jnp.inf
    return over_chunks(step, prototypes.shape[0], _chunk(x, prototypes), carry, x)[:batch]


def gradient(
    head: Head,
    x: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    scale: jax.Array,
    shift: jax.Array,
    target_gradient: jax.Array,
    *,
    interpret: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `xla.gradient`."""
    batch, features = x.shape
    rows = _rows(x, labels, scale, shift, target_gradient)
    operand = rows[0]

    def step(start, size, carry):
        dx, dw, sums = carry
        w, signed = _columns(prototypes, where, start, size)
        products = _epilogue_product(head, rows, w, signed, start, False, interpret)
        by_product = products[0] if head.one_pass else products
        if head.one_pass:
            sums = sums + jnp.sum(products[1], axis=0)
        dx = dx + jnp.dot(by_product, w, preferred_element_type=jnp.float32)
        dw_raw = jnp.dot(by_product.T, operand, preferred_element_type=jnp.float32)[:size, :features]
        w = jax.lax.dynamic_slice_in_dim(prototypes, start, size)
        dw_chunk = through_norms(dw_raw, w, jnp.abs(signed[:size, None])).astype(dw.dtype)
        return dx, jax.lax.dynamic_update_slice_in_dim(dw, dw_chunk, start, 0), sums

    carry = (
        jnp.zeros(operand.shape, jnp.float32),
        jax.lax.empty(prototypes.shape, prototypes.dtype),  # every row is written
        jnp.zeros(operand.shape[:1], jnp.float32),
    )
    dx, dw, sums = over_chunks(step, prototypes.shape[0], _chunk(x, prototypes), carry, x)
    dx = through_norms(dx[:batch, :features], x, inverse_norms(x)).astype(x.dtype)
    return dx, dw, sums[:batch]


def _chunk(x, prototypes):
    rows = common.round_up(x.shape[0], _ROWS)
    return min(prototypes.shape[0], common.round_up(common.cdiv(_CHUNK_BYTES, 2 * rows), _COLUMNS))


def _rows(x, labels, scale, shift, target_gradient):
    """What belongs to an embedding, padded to whole tiles: the operand [R, D'] and vectors [R]; label -1 matches nothing."""
    rows, features = -x.shape[0] % _ROWS, -x.shape[1] % _DEPTH
    operand = jnp.pad(x.astype(jnp.bfloat16), ((0, rows), (0, features)))
    vectors = (inverse_norms(x)[:, 0], scale, shift, target_gradient)
    labels = jnp.pad(labels, (0, rows), constant_values=-1)
    return operand, labels, *(jnp.pad(vector, (0, rows)) for vector in vectors)


def _columns(prototypes, where, start, size):
    """A chunk's operand [N, D'] and 1/norms [N], negative for classes that are not among the others; padded to whole tiles."""
    w = jax.lax.dynamic_slice_in_dim(prototypes, start, size)
    inverse = inverse_norms(w)[:, 0]
    if where is not None:
        inverse = jnp.where(jax.lax.dynamic_slice_in_dim(where, start, size), inverse, -inverse)
    columns, features = -size % _COLUMNS, -w.shape[1] % _DEPTH
    operand = jnp.pad(w.astype(jnp.bfloat16), ((0, columns), (0, features)))
    return operand, jnp.pad(inverse, (0, columns), constant_values=-1.0)


def _epilogue_product(head, rows, w, signed, start, only_reduce, interpret):
    """x Wᵀ of a chunk, and what becomes of it tile by tile.

    Returns:
      With `only_reduce`: [tiles of classes, R] sums of a one-pass head, else two of these, maxima and sums of exponentials.
      Without: H [R, N] bfloat16, and for a one-pass head the sums.
    """
    operand, labels, inverse, scale, shift, target_gradient = rows
    (batch, features), classes = operand.shape, w.shape[0]
    partial = shards.struct((classes // _COLUMNS, batch), jnp.float32, operand)
    product = shards.struct((batch, classes), jnp.bfloat16, operand)
    if only_reduce:
        out_type = partial if head.one_pass else (partial, partial)
    else:
        out_type = (product, partial) if head.one_pass else product
    swizzled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))

    def body(
        x_gmem,
        w_gmem,
        first_gmem,
        labels_gmem,
        inverse_gmem,
        scale_gmem,
        shift_gmem,
        target_gmem,
        signed_gmem,
        *refs,
    ):
        *outs, signed_smem, piece_smem, partial_smem, barriers = refs
        group = jax.lax.axis_index("group")
        column_tile, row_tile = jax.lax.axis_index("columns"), jax.lax.axis_index("rows")
        first_row, first_column = row_tile * _ROWS, column_tile * _COLUMNS
        my_rows = pl.ds(first_row + group * _GROUP_ROWS, _GROUP_ROWS)

        def row(ref):
            """A vector of this warpgroup's rows, along the columns of a piece."""
            vector = plgpu.load(ref.at[my_rows], layout=_BY_ROW, optimized=False)
            return jax.lax.broadcast_in_dim(vector, (_GROUP_ROWS, _PIECE), (0,))

        def epilogue(accumulator):
            shape = (_GROUP_ROWS, _PIECE)
            # The classes' 1/norms; each warpgroup fetches its own copy.
            plgpu.barrier_wait(barriers.at[group])
            row_inverse, row_label = row(inverse_gmem), row(labels_gmem)
            sums = plgpu.layout_cast(jnp.zeros((_GROUP_ROWS,), jnp.float32), _BY_ROW)
            peak = plgpu.layout_cast(jnp.full((_GROUP_ROWS,), -1e30, jnp.float32), _BY_ROW)
            for i in range(_COLUMNS // _PIECE):
                columns = slice(i * _PIECE, (i + 1) * _PIECE)
                signed = plgpu.load(signed_smem.at[group, pl.ds(i * _PIECE, _PIECE)], layout=_BY_COLUMN)
                signed = jax.lax.broadcast_in_dim(signed, shape, (1,))
                index = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=plgpu.Layout.WGMMA)
                index = index + (first_gmem[0] + first_column + i * _PIECE)
                is_target = row_label == index
                cosine_scale = row_inverse * jnp.abs(signed)
                cosines = accumulator[:, columns] * cosine_scale
                others = (signed > 0.0) & (row_label != index)
                if only_reduce and not head.one_pass:
                    logits = jnp.where(others, head.logits(cosines), -1e30)
                    raised = jnp.maximum(peak, jnp.max(logits, axis=1))
                    shifted = logits - jax.lax.broadcast_in_dim(raised, shape, (0,))
                    terms = jnp.where(others, jnp.exp(shifted), 0.0)
                    sums = sums * jnp.exp(peak - raised) + jnp.sum(terms, axis=1)
                    peak = raised
                    continue
                slope = jnp.where(others, head.gradient(cosines, row(shift_gmem)), 0.0)
                if head.one_pass:
                    sums += jnp.sum(slope * cosines, axis=1)
                if only_reduce:
                    continue
                by_cosine = jnp.where(is_target, row(target_gmem), row(scale_gmem) * slope)
                by_product = (by_cosine * cosine_scale).astype(jnp.bfloat16)
                # Two slots: the copy of the piece before last must have left its slot.
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                piece_smem[group, i % 2] = by_product
                plgpu.commit_smem()
                place = pl.ds(first_column + i * _PIECE, _PIECE)
                plgpu.copy_smem_to_gmem(piece_smem.at[group, i % 2], outs[0].at[my_rows, place])
            partials = (sums,) if head.one_pass else (peak, sums) if only_reduce else ()
            for k, partial in enumerate(partials):
                out = outs[k - len(partials)]
                partial_smem[group, k] = partial
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(partial_smem.at[group, k], out.at[column_tile, my_rows])
            plgpu.wait_smem_to_gmem(0)

        def compute(run_pipeline):
            plgpu.copy_gmem_to_smem(
                signed_gmem.at[pl.ds(first_column, _COLUMNS)], signed_smem.at[group], barriers.at[group]
            )

            @functools.partial(pl.run_scoped, accumulator=plgpu.ACC((_GROUP_ROWS, _COLUMNS), jnp.float32))
            def _(accumulator):
                run_pipeline(accumulator)
                epilogue(accumulator[...])

        def multiply(_, x_smem, w_smem, accumulator):
            plgpu.wgmma(accumulator, x_smem.at[pl.ds(group * _GROUP_ROWS, _GROUP_ROWS)], w_smem.T)
            plgpu.wgmma_wait(0)
            return accumulator

        plgpu.emit_pipeline_warp_specialized(
            multiply,
            grid=(features // _DEPTH,),
            in_specs=[
                plgpu.BlockSpec((_ROWS, _DEPTH), lambda k: (row_tile, k), transforms=swizzled),
                plgpu.BlockSpec((_COLUMNS, _DEPTH), lambda k: (column_tile, k), transforms=swizzled),
            ],
            max_concurrent_steps=_STAGES,
            memory_registers=40,
            wg_axis="group",
            num_compute_wgs=2,
            compute_context=compute,
        )(x_gmem, w_gmem)

    first = jnp.full((1,), start, jnp.int32)
    return plgpu.kernel(
        body,
        out_type=out_type,
        # Neighboring blocks share the classes, which then come from the L2 cache.
        grid=(classes // _COLUMNS, batch // _ROWS),
        grid_names=("columns", "rows"),
        num_threads=3,
        thread_name="group",
        scratch_types=[
            plgpu.SMEM((2, _COLUMNS), jnp.float32),
            plgpu.SMEM((2, 2, _GROUP_ROWS, _PIECE), jnp.bfloat16, transforms=swizzled),
            plgpu.SMEM((2, 2, _GROUP_ROWS), jnp.float32),
            plgpu.Barrier(num_barriers=2),
        ],
        # The approximate sqrt, exp and division are off by two units in the last place.
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(operand, w, first, labels, inverse, scale, shift, target_gradient, signed)
