"""Boxes and points relative to anchors, as heads predict them.

Boxes are (y0, x0, y1, x1) and points (x, y), in pixels; deltas keep the published order (dx, dy, dw, dh), so that published
weights need no permutation. RetinaFace's and SSD's variances (0.1, 0.2), and the R-CNN head's deviations, are
`stds=(0.1, 0.1, 0.2, 0.2)`.
"""

import math

import jax
import jax.numpy as jnp

from jaxface.boxes.geometry import SMALLEST, box_array, centers_and_sizes, clip_boxes

Four = tuple[float, float, float, float]
LARGEST_LOG_RATIO = math.log(1000 / 16)


def encode_boxes(
    anchors: jax.Array, boxes: jax.Array, *, stds: Four = (1.0, 1.0, 1.0, 1.0), means: Four | float = 0.0
) -> jax.Array:
    """Deltas from anchors to boxes (arXiv:1504.08083, SSD's form with `stds`).

        dx = (x_box - x_anchor) / w_anchor,   dw = ln(w_box / w_anchor),   likewise dy, dh;   then (d - mean) / std

    with x, y of the centers.

    Args:
      anchors: [..., 4]. boxes: [..., 4], one for each anchor. A side of at most 1e-6 counts as 1, so that padded and
        degenerate boxes give finite deltas; their loss is for the caller to mask.
      stds: of (dx, dy, dw, dh), > 0. means: of the same, or one number.

    Returns:
      [..., 4] float32 (dx, dy, dw, dh).

    Raises:
      ValueError: shapes. UserError: NaN, infinite or inverted boxes, where the values are known.

    Example:
      >>> import jax.numpy as jnp
      >>> encode_boxes(jnp.array([10.0, 10, 50, 30]), jnp.array([5.0, 15, 45, 35])).tolist()
      [0.25, -0.125, 0.0, 0.0]
    """
    anchor_centers, anchor_sizes = centers_and_sizes(box_array("anchors", anchors))
    centers, sizes = centers_and_sizes(box_array("boxes", boxes))
    anchor_sizes, sizes = (jnp.where(side > SMALLEST, side, 1.0) for side in (anchor_sizes, sizes))
    shift = (centers - anchor_centers) / anchor_sizes
    # The difference of two logarithms has a bounded gradient in either box; their quotient may overflow first.
    deltas = jnp.concatenate([shift, jnp.log(sizes) - jnp.log(anchor_sizes)], axis=-1)
    return (deltas - _four("means", means)) / _four("stds", stds)


def decode_boxes(
    anchors: jax.Array,
    deltas: jax.Array,
    *,
    stds: Four = (1.0, 1.0, 1.0, 1.0),
    means: Four | float = 0.0,
    max_log_ratio: float = LARGEST_LOG_RATIO,
    image_size: jax.Array | tuple[int, int] | None = None,
) -> jax.Array:
    """Boxes that deltas mean, the inverse of `encode_boxes`.

    Args:
      anchors: [..., 4] pixels. deltas: [..., 4] (dx, dy, dw, dh) of any float type.
      stds, means: as encoded with.
      max_log_ratio: dw and dh are held to ± this; ln(1000 / 16) of Detectron by default, so that nothing overflows.
      image_size: (height, width), to which the boxes are cut; None cuts nothing.

    Returns:
      [..., 4] float32 (y0, x0, y1, x1) pixels.

    Raises:
      ValueError: shapes. UserError: NaN, infinite or inverted anchors, where the values are known.

    Example:
      >>> anchor = jnp.array([0.0, 0.0, 10.0, 10.0])
      >>> decode_boxes(anchor, jnp.zeros(4)).tolist()  # no deltas: the anchor itself
      [0.0, 0.0, 10.0, 10.0]
    """
    centers, sizes = centers_and_sizes(box_array("anchors", anchors))
    if deltas.shape[-1] != 4:
        raise ValueError(f"deltas: needs shape [..., 4], got {deltas.shape}")
    deltas = deltas.astype(jnp.float32) * _four("stds", stds) + _four("means", means)
    centers = centers + deltas[..., :2] * sizes
    half = sizes * jnp.exp(jnp.clip(deltas[..., 2:], -max_log_ratio, max_log_ratio)) / 2
    boxes = jnp.concatenate([(centers - half)[..., ::-1], (centers + half)[..., ::-1]], axis=-1)
    return boxes if image_size is None else clip_boxes(boxes, image_size)


def encode_points(anchors: jax.Array, points: jax.Array, *, std: float = 0.1) -> jax.Array:
    """Points relative to anchors, as RetinaFace's landmarks: (p - center) / (std · size).

    Args:
      anchors: [..., 4]. points: [..., P, 2] (x, y) pixels, P for each anchor.
      std: > 0; RetinaFace's first variance by default.

    Returns:
      [..., P, 2] float32.

    Raises:
      ValueError: shapes. UserError: NaN, infinite or inverted anchors, where the values are known.

    Example:
      >>> [round(x, 2) for x in encode_points(jnp.array([0.0, 0.0, 10.0, 10.0]), jnp.array([[6.0, 5.0]]))[0].tolist()]
      [1.0, 0.0]
    """
    centers, sizes = centers_and_sizes(box_array("anchors", anchors))
    sizes = jnp.where(sizes > SMALLEST, sizes, 1.0)
    return (_points("points", points) - centers[..., None, :]) / (std * sizes[..., None, :])


def decode_points(anchors: jax.Array, deltas: jax.Array, *, std: float = 0.1) -> jax.Array:
    """Points [..., P, 2] (x, y) pixels that deltas [..., P, 2] mean, the inverse of `encode_points`.

    Example:
      >>> decode_points(jnp.array([0.0, 0.0, 10.0, 10.0]), jnp.array([[1.0, 0.0]])).tolist()
      [[6.0, 5.0]]
    """
    centers, sizes = centers_and_sizes(box_array("anchors", anchors))
    return centers[..., None, :] + _points("deltas", deltas) * (std * sizes[..., None, :])


def _four(name: str, values: Four | float) -> jax.Array:
    array = jnp.asarray(values, jnp.float32)
    if array.shape not in ((), (4,)):
        raise ValueError(f"{name}: needs 4 numbers (dx, dy, dw, dh), got shape {array.shape}")
    return array


def _points(name: str, points: jax.Array) -> jax.Array:
    if points.ndim < 2 or points.shape[-1] != 2:
        raise ValueError(f"{name}: needs shape [..., P, 2], got {points.shape}")
    return points.astype(jnp.float32)


def normalized_boxes(boxes: jax.Array, image_size: jax.Array | tuple[int, int]) -> jax.Array:
    """Boxes [..., 4] as set predictors have them: (center x, center y, width, height) over (W, H, W, H), [..., 4] float32.

    Args:
      boxes: [..., 4] (y0, x0, y1, x1) pixels.
      image_size: (height, width), or an array [..., 2] that fits the boxes'.

    Raises:
      ValueError: shapes. UserError: NaN, infinite or inverted boxes, where the values are known.

    Example:
      >>> import jax.numpy as jnp
      >>> normalized_boxes(jnp.array([0.0, 50, 20, 100]), (40, 200)).tolist()
      [0.375, 0.25, 0.25, 0.5]
    """
    centers, sizes = centers_and_sizes(box_array("boxes", boxes))
    size = jnp.asarray(image_size, jnp.float32)[..., ::-1]
    return jnp.concatenate([centers / size, sizes / size], axis=-1)


def boxes_of_normalized(normalized: jax.Array, image_size: jax.Array | tuple[int, int]) -> jax.Array:
    """The inverse of `normalized_boxes`: [..., 4] (y0, x0, y1, x1) pixels.

    Example:
      >>> boxes_of_normalized(jnp.array([0.5, 0.5, 1.0, 0.5]), (100, 200)).tolist()
      [25.0, 0.0, 75.0, 200.0]
    """
    size = jnp.asarray(image_size, jnp.float32)
    centers = normalized[..., 1::-1].astype(jnp.float32) * size
    half = normalized[..., 3:1:-1].astype(jnp.float32) * size / 2
    return jnp.concatenate([centers - half, centers + half], axis=-1)
