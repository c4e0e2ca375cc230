"""Anchors: boxes of fixed sizes at every cell of feature maps, computed on the host while a program is traced."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, Positive, check_fields
from jaxface.errors import UserError

S3FD_STRIDES = (4, 8, 16, 32, 64, 128)
"""Pixels between neighboring cells of each of S3FD's levels (arXiv:1708.05237)."""
S3FD_SIZES = ((16,), (32,), (64,), (128,), (256,), (512,))
"""Sides of the anchors on each of those levels, pixels: four times the stride."""


@dataclasses.dataclass(frozen=True)
class AnchorSpec:
    """Anchors of every scale and ratio around the corner of each cell (Faster R-CNN, RetinaNet).

    The defaults are RetinaNet's, 9 per cell of P3 to P7 (arXiv:1708.02002). The proposal network of Faster R-CNN with feature
    pyramids has `AnchorSpec(strides=(4, 8, 16, 32, 64), scales=(8.0,))`.
    """

    strides: Annotated[tuple[int, ...], AtLeast(1)] = (8, 16, 32, 64, 128)  # pixels per cell, of every level
    scales: Annotated[tuple[float, ...], Positive] = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))  # in strides
    ratios: Annotated[tuple[float, ...], Positive] = (0.5, 1.0, 2.0)  # height / width
    whole: bool = False  # stride · scale is cut, and corners around the cell are rounded, to whole pixels, as torchvision has it

    def __post_init__(self):
        check_fields(self)

    @property
    def per_cell(self) -> int:
        """Anchors of a cell: one for each scale and ratio."""
        return len(self.scales) * len(self.ratios)


def make_anchors(level_shapes: Sequence[tuple[int, int]], spec: AnchorSpec) -> np.ndarray:
    """Anchors of a pyramid.

        width = stride · scale / √ratio,   height = stride · scale · √ratio,   center (x, y) = (column, row) · stride

    Order: level, row, column, then ratio-major and scale-minor, as a head's output [B, H, W, A, 4] flattened.

    Args:
      level_shapes: (rows, columns) of every level's map.
      spec: one stride per level.

    Returns:
      [A, 4] float32 (y0, x0, y1, x1) pixels, not cut to the image.

    Raises:
      UserError: another number of levels than of strides.

    Example:
      >>> print(make_anchors([(2, 3)], AnchorSpec(strides=(8,)))[4].round(3))
      [-20.159 -20.159  20.159  20.159]
    """
    _check_levels(level_shapes, spec.strides)
    ratios, scales = (grid.ravel() for grid in np.meshgrid(np.sqrt(spec.ratios), spec.scales, indexing="ij"))

    def sizes(stride):
        """(height, width) of the anchors of a cell, pixels."""
        sides = np.floor(scales * stride + 1e-6) if spec.whole else scales * stride
        pairs = np.stack([sides * ratios, sides / ratios], axis=-1)
        return 2 * np.round(pairs / 2) if spec.whole else pairs

    return np.concatenate(
        [
            _around_cells(rows_columns, stride, sizes(stride), offset=0.0)
            for rows_columns, stride in zip(level_shapes, spec.strides, strict=True)
        ]
    )


def square_anchors(
    image_size: int | tuple[int, int],
    strides: Sequence[int] = (8, 16, 32),
    sizes: Sequence[Sequence[float]] = ((16, 32), (64, 128), (256, 512)),
) -> np.ndarray:
    """Square anchors around the middle of each cell, as face detectors have them; the defaults are RetinaFace's and SSH's.

        center = (column + ½, row + ½) · stride,    maps of ⌈height / stride⌉ × ⌈width / stride⌉ cells

    Order: level, row, column, size. S3FD's (arXiv:1708.05237) are `square_anchors(640, S3FD_STRIDES, S3FD_SIZES)`.

    Args:
      image_size: side or (height, width), pixels, ≥ 1.
      strides: of every level. sizes: the sides of every level's anchors, pixels.

    Returns:
      [A, 4] float32 (y0, x0, y1, x1) pixels, not cut to the image: 16,800 for RetinaFace at 640², 34,125 for S3FD.

    Raises:
      UserError: an empty image, or another number of levels in `sizes` than in `strides`.

    Example:
      >>> square_anchors(640).shape, square_anchors(640)[0].tolist()
      ((16800, 4), [-4.0, -4.0, 12.0, 12.0])
    """
    height, width = (image_size, image_size) if isinstance(image_size, int | np.integer) else image_size
    if height < 1 or width < 1:
        raise UserError(f"image_size: needs at least one pixel, got {height} x {width}")
    if len(sizes) != len(strides):
        raise UserError(f"sizes: needs those of {len(strides)} levels, as strides has, got {len(sizes)}")
    return np.concatenate(
        [
            _around_cells(
                (math.ceil(height / stride), math.ceil(width / stride)),
                stride,
                np.stack([np.asarray(sides, np.float64)] * 2, axis=-1),
                offset=0.5,
            )
            for stride, sides in zip(strides, sizes, strict=True)
        ]
    )


def valid_anchors(
    level_shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    per_cell: int | Sequence[int],
    image_size: jax.Array,
) -> jax.Array:
    """Which anchors belong to a cell of the image and not of what it was padded with.

    Args:
      level_shapes: (rows, columns) of every level's map, of the padded image.
      strides: of every level. per_cell: anchors of a cell, one number or one per level.
      image_size: [2] integers (height, width) before padding; rows up to ⌈height / stride⌉ are the image's.

    Returns:
      [A] bool in the order of `make_anchors` and `square_anchors`; `vmap` it over images.

    Raises:
      UserError: another number of levels than of strides.

    Example:
      >>> valid_anchors([(2, 2)], [8], 1, jnp.array([8, 16])).tolist()  # the second row of cells is padding
      [True, True, False, False]
    """
    _check_levels(level_shapes, strides)
    counts = [per_cell] * len(strides) if isinstance(per_cell, int) else per_cell
    size = jnp.asarray(image_size)
    masks = []
    for (rows, columns), stride, count in zip(level_shapes, strides, counts, strict=True):
        inside = (jnp.arange(rows) * stride < size[0])[:, None] & (jnp.arange(columns) * stride < size[1])
        masks.append(jnp.repeat(inside.ravel(), count))
    return jnp.concatenate(masks)


def _around_cells(shape: tuple[int, int], stride: int, sizes: np.ndarray, *, offset: float) -> np.ndarray:
    """[rows · columns · S, 4] float32 of `sizes` [S, 2] (height, width) around every cell's (index + offset) · stride."""
    rows, columns = ((np.arange(count) + offset) * stride for count in shape)
    centers = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)[:, :, None]
    corners = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=-1)
    return corners.reshape(-1, 4).astype(np.float32)


def _check_levels(level_shapes: Sequence[tuple[int, int]], strides: Sequence[int]) -> None:
    if len(level_shapes) != len(strides):
        raise UserError(f"level_shapes: needs {len(strides)} levels, as strides has, got {len(level_shapes)}")
