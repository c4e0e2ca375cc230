"""Boxes as arrays: what every function on them begins with."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError

SMALLEST = 1e-6
"""Areas and sides up to here count as none, so that nothing divides by them."""


def box_array(name: str, boxes: jax.Array) -> jax.Array:
    """`boxes` [..., 4] as float32, (y0, x0, y1, x1).

    Args:
      name: of the argument.
      boxes: [..., 4] of any numeric type; the values of a traced array are not looked at.

    Raises:
      ValueError: the last axis is not of 4. UserError: a coordinate is NaN or infinite, or y1 < y0 or x1 < x0, as in boxes
        of (x, y, width, height).
    """
    if np.ndim(boxes) < 1 or np.shape(boxes)[-1] != 4:
        raise ValueError(f"{name}: needs boxes of shape [..., 4], got {np.shape(boxes)}")
    if not isinstance(boxes, jax.core.Tracer):
        values = np.asarray(boxes, np.float32).reshape(-1, 4)
        if not np.isfinite(values).all():
            bad = values[~np.isfinite(values).all(axis=1)][0]
            raise UserError(f"{name}: needs finite coordinates, got {_listed(bad)}")
        inverted = (values[:, 2] < values[:, 0]) | (values[:, 3] < values[:, 1])
        if inverted.any():
            raise UserError(
                f"{name}: needs (y0, x0, y1, x1) with y0 <= y1 and x0 <= x1, got {_listed(values[inverted][0])}"
            )
    return jnp.asarray(boxes).astype(jnp.float32)


def _listed(box: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"


def centers_and_sizes(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(centers (x, y), sizes (width, height)) of boxes [..., 4], each [..., 2]: the order in which deltas are published."""
    first, last = boxes[..., 1::-1], boxes[..., 3:1:-1]  # (x0, y0), (x1, y1)
    return (first + last) / 2, last - first


def box_area(boxes: jax.Array) -> jax.Array:
    """Areas [...] float32 of boxes [..., 4]; 0 where a side would be negative.

    Example:
      >>> import jax.numpy as jnp
      >>> float(box_area(jnp.array([1.0, 2.0, 4.0, 6.0])))
      12.0
    """
    sides = jnp.maximum(boxes[..., 2:].astype(jnp.float32) - boxes[..., :2].astype(jnp.float32), 0.0)
    return sides[..., 0] * sides[..., 1]


def clip_boxes(boxes: jax.Array, image_size: jax.Array | tuple[int, int]) -> jax.Array:
    """Boxes [..., 4] cut to the image, [0, height] × [0, width].

    Args:
      boxes: [..., 4] pixels.
      image_size: (height, width), or an array whose shape [..., 2] fits the boxes'.

    Returns:
      [..., 4] float32.

    Example:
      >>> import jax.numpy as jnp
      >>> clip_boxes(jnp.array([-3.0, 2.0, 40.0, 90.0]), (32, 64)).tolist()
      [0.0, 2.0, 32.0, 64.0]
    """
    size = jnp.asarray(image_size, jnp.float32)
    return jnp.clip(boxes.astype(jnp.float32), 0.0, jnp.concatenate([size, size], axis=-1))
