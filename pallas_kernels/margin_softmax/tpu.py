"""Mosaic kernels: blocks of prototypes stream through vector memory, the batch and its gradient stay there.

Tiles lie [classes, batch]: what belongs to a class is then a column that the rows of its prototype reduce to, what belongs
to an embedding a row along the lanes, and sums over classes add registers instead of crossing lanes. Operands of the matrix
unit are bfloat16, everything else is float32.

A batch that is too large to stay is taken in parts by calls that add to the same prototype gradient in place.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import common
from pallas_kernels.margin_softmax import shards
from pallas_kernels.margin_softmax.heads import Head
from pallas_kernels.margin_softmax.sphere import inverse_norms, through_norms

_LANES = 128
_VMEM = (
    13 << 20
)  # of the 16 MiB that a kernel may use on every generation without asking; the compiler needs some
_NT = (((1,), (1,)), ((), ()))
_TN = (((0,), (0,)), ((), ()))


def _vmem(rows: int, classes: int, features: int) -> int:
    """Bytes of the gradient kernel: pipelined blocks twice, and about six tiles between the products."""
    batch = rows * features * (2 + 4) * 2 + rows * 16 * 4 * 2
    prototypes = classes * features * (3 * 4 * 2 + 4 + 2)
    return batch + prototypes + 6 * 4 * classes * min(rows, 256)


def _blocks(batch: int, classes: int, features: int) -> tuple[int, int] | None:
    """(embeddings per call, classes per block), or None if the features leave no room for 128 of each."""
    features = common.round_up(features, _LANES)
    calls = common.cdiv(batch, 2048)
    while (rows := common.round_up(common.cdiv(batch, calls), _LANES)) >= _LANES:
        for size in (512, 256, 128):
            if size <= common.round_up(classes, _LANES) and _vmem(rows, size, features) <= _VMEM:
                return rows, size
        if rows == _LANES:
            return None
        calls += 1
    return None


def obstacle(batch: int, classes: int, features: int) -> str | None:
    """Why the kernels cannot run at this size, or None."""
    if _blocks(batch, classes, features) is None:
        return f"128 classes of {features} features do not fit the vector memory"
    return None


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
    nothing = jnp.zeros((x.shape[0],), jnp.float32)
    reduced = []
    for batch_slice in _batch_slices(x, prototypes, labels, nothing, nothing, nothing):
        reduced.append(_reduce_slice(head, batch_slice, _padded(prototypes), where, interpret))
    return jnp.concatenate(reduced)[: x.shape[0]]


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
    (batch, features), dw = x.shape, None
    padded, dx_slices, sum_slices = _padded(prototypes), [], []
    for batch_slice in _batch_slices(x, prototypes, labels, scale, shift, target_gradient):
        dx, dw, sums = _gradient_slice(head, batch_slice, padded, where, dw, interpret)
        dx_slices.append(dx)
        sum_slices.append(sums)
    dx = jnp.concatenate(dx_slices)[:batch, :features]
    dx = through_norms(dx, x, inverse_norms(x)).astype(x.dtype)
    return dx, dw[:, :features], jnp.concatenate(sum_slices)[:batch]


def _padded(rows):
    """Features up to whole lanes; a copy only where they are none."""
    extra = -rows.shape[1] % _LANES
    return jnp.pad(rows, ((0, 0), (0, extra))) if extra else rows


def _batch_slices(x, prototypes, labels, scale, shift, target_gradient):
    """The batch in equal parts: (embeddings [R, D] bfloat16, labels [1, R], [4, R] inverse norm, scale, shift, target)."""
    size, _ = _blocks(x.shape[0], *prototypes.shape)
    extra = -x.shape[0] % size
    rows = jnp.stack([inverse_norms(x)[:, 0], scale, shift, target_gradient])
    rows = jnp.pad(rows, ((0, 0), (0, extra)))
    labels = jnp.pad(labels, (0, extra), constant_values=-1)[None]
    x = jnp.pad(_padded(x.astype(jnp.bfloat16)), ((0, extra), (0, 0)))
    for start in range(0, x.shape[0], size):
        batch_slice = slice(start, start + size)
        yield x[batch_slice], labels[:, batch_slice], rows[:, batch_slice]


def _splits(blocks: int) -> int:
    """v4 and v5p show two cores as one device; each then takes half of the classes."""
    two = bool(re.search(r"v4|v5p|v5$", common.target_device().kind))
    return 2 if two and blocks > 1 else 1


def _tile_rows(rows: int) -> int:
    return math.gcd(rows, 256)


def _class_tile(w_ref, keep_ref, block, classes):
    """A block of prototypes: rows, 1/norms, indices [n, 1], and which take part as others."""
    w = w_ref[...].astype(jnp.float32)
    index = block * w.shape[0] + jax.lax.broadcasted_iota(jnp.int32, (w.shape[0], 1), 0)
    if classes % w.shape[0]:
        w = jnp.where(index < classes, w, 0.0)  # past the end a block holds anything
    keep = index < classes
    if keep_ref is not None:
        keep &= jnp.broadcast_to(keep_ref[...], (8, w.shape[0])).T[:, :1] > 0.0
    return w, inverse_norms(w), index, keep


def _cosine_tile(w, x, cosine_scale):
    product = jax.lax.dot_general(w, x, _NT, preferred_element_type=jnp.float32)
    return product * cosine_scale


def _grid(classes, size):
    """Grid (splits, blocks of a split), and the block of a grid position; the last split may have one too few."""
    blocks = common.cdiv(classes, size)
    splits = _splits(blocks)
    per_split = common.cdiv(blocks, splits)
    return blocks, (splits, per_split), lambda split, i: jnp.minimum(split * per_split + i, blocks - 1)


def _specs(batch_slice, where, size, features, at):
    """Blocks of the batch (whole), of the prototypes and of `where`."""
    x, labels, rows = batch_slice
    whole = [pl.BlockSpec(a.shape, lambda s, i: (0, 0)) for a in (x, labels, rows)]
    prototypes = pl.BlockSpec((size, features), lambda s, i: (at(s, i), 0))
    keep = [] if where is None else [pl.BlockSpec((1, size), lambda s, i: (0, at(s, i)))]
    return [*whole, prototypes, *keep]


def _keep(where):
    return [] if where is None else [where.astype(jnp.float32)[None]]


def _reduce_slice(head, batch_slice, prototypes, where, interpret):
    x, labels, rows = batch_slice
    classes, features = prototypes.shape
    batch = x.shape[0]
    _, size = _blocks(batch, classes, features)
    blocks, grid, at = _grid(classes, size)
    tile = _tile_rows(batch)

    def kernel(x_ref, labels_ref, rows_ref, w_ref, *refs):
        keep_ref, out_ref = (None, *refs) if where is None else refs
        block = pl.program_id(0) * grid[1] + pl.program_id(1)

        @pl.when(pl.program_id(1) == 0)
        def _():
            out_ref[0, :1] = jnp.full((1, batch), 0.0 if head.one_pass else -jnp.inf)
            out_ref[0, 1:] = jnp.zeros((1, batch), jnp.float32)

        @pl.when(block < blocks)
        def _():
            w, inverse_w, index, keep = _class_tile(w_ref, keep_ref, block, classes)
            w = w.astype(jnp.bfloat16)

            @pl.loop(0, batch // tile)
            def _(i):
                tile_rows = pl.ds(i * tile, tile)
                cosines = _cosine_tile(w, x_ref[tile_rows], inverse_w * rows_ref[:1, tile_rows])
                others = keep & (labels_ref[:, tile_rows] != index)
                if head.one_pass:
                    terms = jnp.where(others, head.gradient(cosines) * cosines, 0.0)
                    out_ref[0, :1, tile_rows] += jnp.sum(terms, axis=0, keepdims=True)
                    return
                logits = jnp.where(others, head.logits(cosines), -jnp.inf)
                peak, total = out_ref[0, :1, tile_rows], out_ref[0, 1:, tile_rows]
                raised = jnp.maximum(peak, jnp.max(logits, axis=0, keepdims=True))
                base = jnp.where(raised == -jnp.inf, 0.0, raised)
                out_ref[0, :1, tile_rows] = raised
                sums = jnp.sum(jnp.exp(logits - base), axis=0, keepdims=True)
                out_ref[0, 1:, tile_rows] = total * jnp.exp(peak - base) + sums

    sums = pl.pallas_call(
        kernel,
        out_shape=shards.struct((grid[0], 2, batch), jnp.float32, x),
        grid=grid,
        in_specs=_specs(batch_slice, where, size, features, at),
        out_specs=pl.BlockSpec((1, 2, batch), lambda s, i: (s, 0, 0)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=_cost(batch, prototypes, products=1, written=0),
        interpret=interpret,
        name="margin_softmax_forward",
    )(x, labels, rows, prototypes, *_keep(where))
    if head.one_pass:
        return jnp.sum(sums[:, 0], axis=0)
    return jax.nn.logsumexp(sums[:, 0] + jnp.log(sums[:, 1]), axis=0)


def _gradient_slice(head, batch_slice, prototypes, where, dw, interpret):
    """(∂L by the raw products' x [R, D] float32, ∂L/∂W plus `dw` [C, D], [R] sums)."""
    x, labels, rows = batch_slice
    classes, features = prototypes.shape
    batch = x.shape[0]
    _, size = _blocks(batch, classes, features)
    blocks, grid, at = _grid(classes, size)
    tile = _tile_rows(batch)

    def kernel(x_ref, labels_ref, rows_ref, w_ref, *refs):
        refs = list(refs)
        keep_ref = None if where is None else refs.pop(0)
        before_ref = None if dw is None else refs.pop(0)
        dw_ref, dx_ref, sums_ref, dw_sum = refs
        block = pl.program_id(0) * grid[1] + pl.program_id(1)

        @pl.when(pl.program_id(1) == 0)
        def _():
            dx_ref[...] = jnp.zeros_like(dx_ref)
            sums_ref[...] = jnp.zeros_like(sums_ref)

        @pl.when(block < blocks)
        def _():
            w, inverse_w, index, keep = _class_tile(w_ref, keep_ref, block, classes)
            operand = w.astype(jnp.bfloat16)
            dw_sum[...] = jnp.zeros_like(dw_sum)

            @pl.loop(0, batch // tile)
            def _(i):
                tile_rows = pl.ds(i * tile, tile)
                inverse, scale, shift, at_target = (rows_ref[k : k + 1, tile_rows] for k in range(4))
                x_tile = x_ref[tile_rows]
                cosine_scale = inverse_w * inverse
                cosines = _cosine_tile(operand, x_tile, cosine_scale)
                is_target = labels_ref[:, tile_rows] == index
                slope = jnp.where(keep, head.gradient(cosines, shift), 0.0)
                if head.one_pass:
                    terms = jnp.where(is_target, 0.0, slope * cosines)
                    sums_ref[0, :, tile_rows] += jnp.sum(terms, axis=0, keepdims=True)
                by_cosine = jnp.where(is_target, at_target, scale * slope)
                by_product = (by_cosine * cosine_scale).astype(jnp.bfloat16)
                dw_sum[...] += jnp.dot(by_product, x_tile, preferred_element_type=jnp.float32)
                dx_ref[0, tile_rows] += jax.lax.dot_general(
                    by_product, operand, _TN, preferred_element_type=jnp.float32
                )

            by_prototypes = through_norms(dw_sum[...], w, inverse_w)
            if before_ref is not None:
                by_prototypes += before_ref[...].astype(jnp.float32)
            dw_ref[...] = by_prototypes.astype(dw_ref.dtype)

    in_specs = _specs(batch_slice, where, size, features, at)
    arguments = [x, labels, rows, prototypes, *_keep(where)]
    aliases = {}
    if dw is not None:
        aliases = {len(arguments): 0}
        in_specs.append(in_specs[3])
        arguments.append(dw)
    dw, dx, sums = pl.pallas_call(
        kernel,
        out_shape=(
            shards.struct(prototypes.shape, prototypes.dtype, x),
            shards.struct((grid[0], batch, features), jnp.float32, x),
            shards.struct((grid[0], 1, batch), jnp.float32, x),
        ),
        grid=grid,
        in_specs=in_specs,
        out_specs=(
            in_specs[3],
            pl.BlockSpec((1, batch, features), lambda s, i: (s, 0, 0)),
            pl.BlockSpec((1, 1, batch), lambda s, i: (s, 0, 0)),
        ),
        scratch_shapes=[pltpu.VMEM((size, features), jnp.float32)],
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=_cost(batch, prototypes, products=3, written=1),
        interpret=interpret,
        name="margin_softmax_gradient",
    )(*arguments)
    return jnp.sum(dx, axis=0), dw, jnp.sum(sums[:, 0], axis=0)


def _cost(batch, prototypes, *, products, written):
    classes, features = prototypes.shape
    return pl.CostEstimate(
        flops=2 * products * batch * classes * features,
        bytes_accessed=(1 + written) * prototypes.size * prototypes.dtype.itemsize + 6 * batch * features,
        transcendentals=3 * batch * classes,
    )
