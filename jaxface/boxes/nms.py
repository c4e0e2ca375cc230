"""Non-maximum suppression with static shapes."""

import jax
import jax.numpy as jnp

from jaxface.boxes.geometry import box_array
from jaxface.boxes.iou import box_iou


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

    is solved as a fixed point: after t rounds the t best are final, so it ends, and in a handful of rounds.

    Args:
      boxes: [K, 4] pixels. scores: [K] float; -inf for what is none. Of equal scores the first is the better.
      classes: [K] integers, across which nothing is suppressed; None for one class.
      iou_threshold: suppress strictly above it.
      max_outputs: how many indices to return; fewer boxes may stay.

    Returns:
      (indices [max_outputs] int32 into `boxes`, best score first; valid [max_outputs] bool). Where not valid the index is 0.
      `vmap` it over images.

    Raises:
      ValueError: shapes. UserError: NaN, infinite or inverted boxes or a NaN score, where the values are known.
    """
    boxes = box_array("boxes", boxes)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores.astype(jnp.float32))
    order = jnp.argsort(-scores, stable=True)
    ranked = boxes[order]
    suppresses = jnp.triu(box_iou(ranked, ranked) > iou_threshold, 1)
    if classes is not None:
        suppresses &= classes[order][:, None] == classes[order]
    valid = scores[order] > -jnp.inf

    def round_(state):
        stays, _ = state
        new = valid & ~jnp.any(suppresses & stays[:, None], axis=0)
        return new, jnp.any(new != stays)

    stays, _ = jax.lax.while_loop(lambda state: state[1], round_, (valid, jnp.array(True)))
    count = jnp.cumsum(stays)
    positions = jnp.searchsorted(count, jnp.arange(1, max_outputs + 1))
    found = jnp.arange(max_outputs) < count[-1]
    return jnp.where(found, order[jnp.minimum(positions, order.size - 1)], 0).astype(jnp.int32), found
