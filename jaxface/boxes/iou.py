"""Overlap of boxes: intersection over union, over the first one's area, and the generalized form.

Boxes are (y0, x0, y1, x1), continuous, without the +1 of inclusive pixels. All is float32 whatever the inputs are. A union,
area or enclosure of at most 1e-6 counts as no overlap, with gradient 0: degenerate and padded boxes give finite numbers.
"""

import jax
import jax.numpy as jnp

from jaxface.boxes.geometry import SMALLEST, box_area, box_array


def box_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of every pair.

        iou = |a ∩ b| / |a ∪ b|

    Args:
      a: [..., N, 4]. b: [..., M, 4], with the same leading axes or none.

    Returns:
      [..., N, M] float32 in [0, 1].

    Raises:
      ValueError: shapes. UserError: NaN, infinite or inverted boxes, where the values are known.

    Example:
      >>> import jax.numpy as jnp
      >>> box_iou(jnp.array([[0.0, 0, 2, 2]]), jnp.array([[0.0, 1, 2, 2], [0, 2, 2, 4]])).tolist()
      [[0.5, 0.0]]
    """
    return paired_iou(*_every_pair(a, b))


def box_iof(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over the area of the first box, of every pair: how much of `a` lies in a region to ignore.

        iof = |a ∩ b| / |a|

    Arguments, result and errors as for `box_iou`.

    Example:
      >>> import jax.numpy as jnp
      >>> box_iof(jnp.array([[0.0, 0, 2, 2]]), jnp.array([[0.0, 1, 9, 9]])).tolist()
      [[0.5]]
    """
    a, b = _every_pair(a, b)
    return _ratio(_intersection(a, b), box_area(a))


def box_giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalized intersection over union of every pair (arXiv:1902.09630).

        giou = iou - (|C| - |a ∪ b|) / |C|,        C the smallest box around both

    Arguments and errors as for `box_iou`.

    Returns:
      [..., N, M] float32 in (-1, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> box_giou(jnp.array([[0.0, 0, 1, 1]]), jnp.array([[0.0, 3, 1, 4]])).tolist()
      [[-0.5]]
    """
    return paired_giou(*_every_pair(a, b))


def paired_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of the boxes a [..., 4] and b [..., 4] at the same place; shapes broadcast, [...] float32.

    Example:
      >>> float(paired_iou(jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([0.0, 0.0, 2.0, 1.0])))
      0.5
    """
    a, b = box_array("a", a), box_array("b", b)
    intersection = _intersection(a, b)
    return _ratio(intersection, box_area(a) + box_area(b) - intersection)


def paired_giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalized intersection over union of boxes at the same place: `paired_iou`'s arguments; `1 - paired_giou` is a loss.

    Example:
      >>> a, b = jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([0.0, 3.0, 1.0, 4.0])
      >>> float(paired_giou(a, b))  # apart by half of what encloses both
      -0.5
    """
    a, b = box_array("a", a), box_array("b", b)
    intersection = _intersection(a, b)
    union = box_area(a) + box_area(b) - intersection
    enclosure = box_area(
        jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], axis=-1)
    )
    return _ratio(intersection, union) - _ratio(enclosure - union, enclosure)


def _every_pair(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = box_array("a", a), box_array("b", b)
    return a[..., :, None, :], b[..., None, :, :]


def _intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    first, last = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    sides = jnp.maximum(last - first, 0.0)
    return sides[..., 0] * sides[..., 1]


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole, and 0 without a gradient where the whole is nothing."""
    something = whole > SMALLEST
    return jnp.where(something, part / jnp.where(something, whole, 1.0), 0.0)
