"""Features of regions, from the level of a pyramid that fits their size."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.boxes.geometry import box_array
from jaxface.checks import AtLeast, check_number

_BLOCK_ON_CPU, _BLOCK = (
    8,
    128,
)  # regions whose gradients are scattered together: what caches, and what memory hold


def roi_levels(boxes: jax.Array, *, levels: int = 4, finest: float = 56.0) -> jax.Array:
    """Level of a pyramid for each region (arXiv:1612.03144, eq. 1, as MMDetection computes it).

        level = clip(⌊log₂(√(width · height) / finest + 10⁻⁶)⌋, 0, levels - 1)

    Args:
      boxes: [..., 4] pixels.
      levels: of the pyramid. finest: below 2 · `finest` pixels a region is of the finest level, 0.

    Returns:
      [...] int32.

    Example:
      >>> import jax.numpy as jnp
      >>> roi_levels(jnp.array([[0.0, 0, 111.9, 111.9], [0, 0, 112, 112], [0, 0, 448, 448]])).tolist()
      [0, 1, 3]
    """
    check_number("levels", levels, AtLeast(1))
    sides = jnp.maximum(box_array("boxes", boxes)[..., 2:] - boxes[..., :2], 0.0)
    size = jnp.sqrt(sides[..., 0] * sides[..., 1]) / finest + 1e-6
    # Comparisons with powers of two are exact; a logarithm of float32 may fall short of an integer.
    return jnp.sum(size[..., None] >= 2.0 ** jnp.arange(1, levels), axis=-1, dtype=jnp.int32)


def roi_align(
    features: Sequence[jax.Array],
    boxes: jax.Array,
    levels: jax.Array | None = None,
    *,
    strides: Sequence[float],
    output_size: int = 7,
    samples: int = 2,
    aligned: bool = True,
) -> jax.Array:
    """Features of regions, averaged from bilinear samples (RoIAlign, arXiv:1703.06870).

    A region is divided into output_size² bins, each bin has samples² points at `start + (i + ½) · bin / samples`, and a bin's
    feature is the mean of the maps there. A point outside [-1, size] in either direction counts as 0; elsewhere the nearest
    cells count. All levels are one table, of which each region reads its own level only.

    Args:
      features: maps [B, H, W, C] of every level, of one B and C.
      boxes: [B, R, 4] pixels. levels: [B, R] integers; None for one level.
      strides: pixels per cell, of every level.
      output_size: bins along a side. samples: of a bin along a side.
      aligned: cell centers are at +½, as pixels' are: coordinates / stride - ½. False is the first version, without the ½ and
        with regions of one cell at least.

    Returns:
      [B, R, output_size, output_size, C] in the maps' type; sums are float32.

    Raises:
      ValueError: shapes, or another number of levels. UserError: NaN, infinite or inverted boxes where the values are known,
        or a number out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> ramp = (jnp.arange(8.0) + 10 * jnp.arange(8.0)[:, None])[None, ..., None]
      >>> box = jnp.array([[[1.0, 1, 5, 5]]])
      >>> roi_align([ramp], box, strides=[1], output_size=2)[0, 0, ..., 0].tolist()
      [[16.5, 18.5], [36.5, 38.5]]
    """
    boxes = box_array("boxes", boxes)
    check_number("output_size", output_size, AtLeast(1))
    check_number("samples", samples, AtLeast(1))
    if len(features) != len(strides) or not features:
        raise ValueError(
            f"strides: needs one for each of the {len(features)} maps, at least 1, got {len(strides)}"
        )
    batch, channels = features[0].shape[0], features[0].shape[-1]
    for level, maps in enumerate(features):
        if maps.ndim != 4 or (maps.shape[0], maps.shape[-1]) != (batch, channels):
            raise ValueError(f"features[{level}]: needs [{batch}, H, W, {channels}], got {maps.shape}")
    if boxes.ndim != 3 or boxes.shape[0] != batch:
        raise ValueError(f"boxes: needs [{batch}, R, 4], got {boxes.shape}")
    if levels is None:
        if len(features) > 1:
            raise ValueError("levels: needs the level of every box where there are several maps")
        levels = jnp.zeros(boxes.shape[:2], jnp.int32)
    sizes = np.array([maps.shape[1:3] for maps in features])  # [L, 2]
    offsets = np.cumsum([0, *sizes.prod(axis=1)])[:-1]
    table = jnp.concatenate([maps.reshape(batch, -1, channels) for maps in features], axis=1)
    levels = jnp.clip(levels, 0, len(features) - 1)
    cells = boxes / jnp.asarray(strides, jnp.float32)[levels][..., None] - (0.5 if aligned else 0.0)
    first, last = cells[..., :2], cells[..., 2:]
    if not aligned:
        last = jnp.maximum(last, first + 1.0)
    index, weight = _taps(first, last, jnp.asarray(sizes)[levels], output_size, samples)
    rows = (
        jnp.asarray(offsets)[levels][..., None, None]
        + index[:, :, 0] * jnp.asarray(sizes[:, 1])[levels][..., None, None]
    )
    # All images are one table, so that a batch is pooled, and its gradient scattered, as one list of regions.
    rows += jnp.arange(batch)[:, None, None, None] * table.shape[1]
    taps = (rows, index[:, :, 1], weight[:, :, 0], weight[:, :, 1])
    merged = [values.reshape(-1, *values.shape[2:]) for values in taps]
    pooled = _pooled(table.reshape(-1, channels), *merged)
    return pooled.reshape(*boxes.shape[:2], *pooled.shape[1:]).astype(features[0].dtype)


def _taps(
    first: jax.Array, last: jax.Array, size: jax.Array, bins: int, samples: int
) -> tuple[jax.Array, jax.Array]:
    """Which cells along each axis a bin reads, and how much each counts.

    Args:
      first, last: [B, R, 2] corners (y, x) in cells. size: [B, R, 2] cells (rows, columns) of the level.

    Returns:
      (index [B, R, 2, bins, 2 · samples] int32, weight of the same shape).
    """
    steps = (jnp.arange(bins * samples) + 0.5) / (bins * samples)
    points = first[..., None] + (last - first)[..., None] * steps
    limit = size[..., None].astype(jnp.float32)
    inside = (points >= -1.0) & (points <= limit)
    points = jnp.clip(points, 0.0, limit - 1)
    low = jnp.floor(points)
    high = jnp.minimum(low + 1, limit - 1)
    part = points - low
    index = jnp.stack([low, high], axis=-1).astype(jnp.int32)
    weight = jnp.stack([1 - part, part], axis=-1) * inside[..., None] / samples
    shape = (*points.shape[:-1], bins, 2 * samples)
    return index.reshape(shape), weight.reshape(shape)


@jax.custom_vjp
def _pooled(
    table: jax.Array, rows: jax.Array, columns: jax.Array, row_weight: jax.Array, column_weight: jax.Array
) -> jax.Array:
    """[R, bins, bins, C] float32: for each bin the weighted sum over its taps along both axes.

    A tap at a time, so that nothing larger than the result is kept; one gather of all taps is larger by their number.

    Args:
      table: [cells, C]. rows: [R, bins, taps], where the row of a tap begins in the table. columns: [R, bins, taps].
      row_weight, column_weight: [R, bins, taps].
    """
    total = jnp.zeros((*rows.shape[:2], columns.shape[1], table.shape[-1]), jnp.float32)
    for y in range(rows.shape[-1]):
        for x in range(columns.shape[-1]):
            cells = rows[:, :, None, y] + columns[:, None, :, x]
            weight = row_weight[:, :, None, y] * column_weight[:, None, :, x]
            values = table.at[cells].get(mode="promise_in_bounds")
            total += weight[..., None] * values.astype(jnp.float32)
    return total


def _pooled_forward(*arguments: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _pooled(*arguments), arguments


def _pooled_backward(arguments: tuple[jax.Array, ...], gradient: jax.Array) -> tuple:
    """Of the table by one scatter for a few regions at a time, of the weights by the same gathers as forward.

    The transpose that JAX derives has one scatter over all regions for each pair of taps: on a CPU it takes six times as long.
    """
    table, rows, columns, row_weight, column_weight = arguments
    scattered = jax.lax.platform_dependent(
        rows,
        columns,
        row_weight,
        column_weight,
        gradient,
        cpu=partial(_scattered, cells=len(table), block=_BLOCK_ON_CPU),
        default=partial(_scattered, cells=len(table), block=_BLOCK),
    )
    of_row, of_column = jnp.zeros_like(row_weight), jnp.zeros_like(column_weight)
    for y in range(rows.shape[-1]):
        for x in range(columns.shape[-1]):
            cells = rows[:, :, None, y] + columns[:, None, :, x]
            values = table.at[cells].get(mode="promise_in_bounds").astype(jnp.float32)
            product = jnp.sum(gradient * values, axis=-1)  # [R, bins, bins]
            of_row = of_row.at[..., y].add(jnp.einsum("rij,rj->ri", product, column_weight[..., x]))
            of_column = of_column.at[..., x].add(jnp.einsum("rij,ri->rj", product, row_weight[..., y]))
    zeros = (np.zeros(index.shape, jax.dtypes.float0) for index in (rows, columns))
    return scattered.astype(table.dtype), *zeros, of_row, of_column


def _scattered(
    rows: jax.Array,
    columns: jax.Array,
    row_weight: jax.Array,
    column_weight: jax.Array,
    gradient: jax.Array,
    *,
    cells: int,
    block: int,
) -> jax.Array:
    """[cells, C] float32: what each cell gives to the regions, `block` regions at a time."""
    count, channels = len(rows), gradient.shape[-1]
    block = min(block, count)

    def in_blocks(values):
        padded = jnp.pad(values, [(0, -count % block)] + [(0, 0)] * (values.ndim - 1))
        return padded.reshape(-1, block, *values.shape[1:])

    def add(total, some):
        rows, columns, row_weight, column_weight, gradient = some
        index = rows[:, :, None, :, None] + columns[:, None, :, None, :]
        weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
        values = weight[..., None] * gradient[:, :, :, None, None, :].astype(jnp.float32)
        return total.at[index.ravel()].add(values.reshape(-1, channels), mode="promise_in_bounds"), None

    some = tuple(map(in_blocks, (rows, columns, row_weight, column_weight, gradient)))
    return jax.lax.scan(add, jnp.zeros((cells, channels), jnp.float32), some)[0]


_pooled.defvjp(_pooled_forward, _pooled_backward)
