"""Non-maximum suppression with static shapes."""

import jax
import jax.numpy as jnp

from jaxface.boxes.geometry import SMALLEST, box_array
from jaxface.checks import AtLeast, Fraction, check_number

TILE = 128  # boxes decided together; measured on a CPU, where 64 to 256 are alike


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    classes: jax.Array | None = None,
    *,
    iou_threshold: float,
    max_outputs: int,
) -> tuple[jax.Array, jax.Array]:
    """Greedy non-maximum suppression, exactly: a box goes where a better one that stays overlaps it by more than the threshold.

        stays_i = valid_i ∧ ¬∃ j better than i: stays_j ∧ class_j = class_i ∧ iou_ij > threshold

    Tiles of boxes by falling score are decided one after the other: those that stay of earlier tiles suppress, and inside the
    tile the equation is iterated until nothing changes. After t rounds its t best boxes are final, so that this ends at the
    greedy answer, in a handful of rounds. Work is K² / 2 overlaps, memory grows with K alone.

    Args:
      boxes: [K, 4] pixels. scores: [K] float; -inf or NaN for what is none. Of equal scores the first is the better.
      classes: [K] integers, across which nothing is suppressed; None for one class.
      iou_threshold: suppress strictly above it, in [0, 1].
      max_outputs: how many indices to return; fewer boxes may stay.

    Returns:
      (indices [max_outputs] int32 into `boxes`, best score first; valid [max_outputs] bool). Where not valid the index is 0.
      `vmap` it over images.

    Raises:
      ValueError: shapes. UserError: NaN, infinite or inverted boxes, where the values are known, or a number out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> boxes = jnp.array([[0.0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16]])
      >>> indices, valid = nms(boxes, jnp.array([0.7, 0.8, 0.9]), iou_threshold=0.5, max_outputs=3)
      >>> indices[valid].tolist()
      [2, 0]
    """
    boxes = box_array("boxes", boxes)
    if (
        boxes.ndim != 2
        or scores.shape != boxes.shape[:1]
        or (classes is not None and classes.shape != scores.shape)
    ):
        shapes = boxes.shape, scores.shape, None if classes is None else classes.shape
        raise ValueError(f"boxes, scores, classes: needs [K, 4], [K] and [K] or None, got {shapes}")
    check_number("iou_threshold", iou_threshold, Fraction)
    check_number("max_outputs", max_outputs, AtLeast(1))
    boxes, scores = jax.lax.stop_gradient((boxes, scores.astype(jnp.float32)))
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    order = jnp.argsort(-scores, stable=True)
    tile = min(TILE, boxes.shape[0])
    padding = -boxes.shape[0] % tile
    # Coordinates first, so that the overlaps of a tile are a few vector operations.
    corners = jnp.pad(boxes[order], ((0, padding), (0, 0))).T
    groups = None if classes is None else jnp.pad(classes[order], (0, padding))
    valid = jnp.pad(scores[order] > -jnp.inf, (0, padding))

    def cut(start):
        rows = jax.lax.dynamic_slice(corners, (0, start * tile), (4, tile))
        return rows, None if groups is None else jax.lax.dynamic_slice(groups, (start * tile,), (tile,))

    def suppresses(better, worse):
        """[tile, tile] bool, row over column."""
        (a, class_a), (b, class_b) = better, worse
        overlapping = _overlap(a, b) > iou_threshold
        return overlapping if class_a is None else overlapping & (class_a[:, None] == class_b)

    def decide(number, stays):
        mine = cut(number)

        def by_earlier(other, left):
            better = jax.lax.dynamic_slice(stays, (other * tile,), (tile,))
            return left & ~jnp.any(suppresses(cut(other), mine) & better[:, None], axis=0)

        left = jax.lax.dynamic_slice(valid, (number * tile,), (tile,))
        left = jax.lax.fori_loop(0, number, by_earlier, left)
        inside = jnp.triu(suppresses(mine, mine), 1)

        def again(state):
            stay, _ = state
            new = left & ~jnp.any(inside & stay[:, None], axis=0)
            return new, jnp.any(new != stay)

        stay, _ = jax.lax.while_loop(lambda state: state[1], again, (left, jnp.array(True)))
        return jax.lax.dynamic_update_slice(stays, stay, (number * tile,))

    stays = jax.lax.fori_loop(0, valid.size // tile, decide, jnp.zeros_like(valid))
    count = jnp.cumsum(stays)
    positions = jnp.searchsorted(count, jnp.arange(1, max_outputs + 1))
    found = jnp.arange(max_outputs) < count[-1]
    return jnp.where(found, order[jnp.minimum(positions, order.size - 1)], 0).astype(jnp.int32), found


def _overlap(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU [N, M] of boxes as coordinates [4, N] and [4, M], as `box_iou` has it."""
    y0, x0 = (jnp.maximum(a[i][:, None], b[i]) for i in (0, 1))
    y1, x1 = (jnp.minimum(a[i][:, None], b[i]) for i in (2, 3))
    intersection = jnp.maximum(y1 - y0, 0.0) * jnp.maximum(x1 - x0, 0.0)
    area_a, area_b = (jnp.maximum(c[2] - c[0], 0.0) * jnp.maximum(c[3] - c[1], 0.0) for c in (a, b))
    union = area_a[:, None] + area_b - intersection
    return jnp.where(union > SMALLEST, intersection / jnp.maximum(union, SMALLEST), 0.0)
