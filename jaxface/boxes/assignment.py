"""Which box an anchor or a proposal is to predict.

Every function takes padded boxes with a mask, of one image (`vmap` it over a batch), and returns [N] int32: -1 for an anchor
that counts neither way, 0 for background, k > 0 for box k - 1. Results are constants of the differentiation.
"""

import jax
import jax.numpy as jnp

from jaxface.boxes.iou import box_iof, box_iou


def max_iou_assign(
    anchors: jax.Array,
    boxes: jax.Array,
    box_mask: jax.Array,
    *,
    positive: float = 0.5,
    negative: float = 0.4,
    min_positive: float = 0.0,
    low_quality: bool = True,
    crowd: jax.Array | None = None,
    crowd_iof: float = 0.5,
) -> jax.Array:
    """Assignment by thresholds on the IoU, step by step as MMDetection's `MaxIoUAssigner`.

    1. all -1; 2. best IoU < `negative` gives 0; 3. best IoU ≥ `positive` gives that box (the first of equals);
    4. with `low_quality`, every box in order whose best IoU is ≥ `min_positive` takes all anchors that reach exactly that
    IoU, from whatever they had. Without boxes all are 0.

    | stage | positive | negative | min_positive | low_quality |
    |---|---|---|---|---|
    | proposal network | 0.7 | 0.3 | 0.3 | yes |
    | R-CNN head | 0.5 | 0.5 | 0.5 | no |
    | RetinaNet (the defaults) | 0.5 | 0.4 | 0 | yes |

    Args:
      anchors: [N, 4]. boxes: [M, 4] pixels. box_mask: [M] bool, False for padding.
      positive, negative, min_positive: IoU; negative ≤ positive.
      low_quality: whether step 4 is done.
      crowd: [M] bool, regions to ignore: no anchor is assigned to them, and background of which they cover `crowd_iof` of
        the area becomes -1. None where there are none.
      crowd_iof: share of an anchor's area.

    Returns:
      [N] int32.

    Example:
      >>> anchors = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 3.2], [20.0, 20.0, 28.0, 28.0]])
      >>> boxes = jnp.array([[0.0, 0.0, 8.0, 7.0]])
      >>> max_iou_assign(anchors, boxes, jnp.array([True])).tolist()  # its own, neither, background
      [1, -1, 0]
    """
    real = box_mask if crowd is None else box_mask & ~crowd
    iou = _masked_iou(anchors, boxes, real)
    best = iou.max(axis=1)
    assigned = jnp.where(best < negative, 0, -1)
    assigned = jnp.where(best >= positive, iou.argmax(axis=1) + 1, assigned)
    if low_quality:
        best_of_box = iou.max(axis=0)
        claims = (iou == best_of_box) & (best_of_box >= min_positive) & real
        last = jnp.max(jnp.where(claims, jnp.arange(1, iou.shape[1] + 1), 0), axis=1)
        assigned = jnp.where(last > 0, last, assigned)
    return _finish(assigned, anchors, boxes, box_mask, crowd, crowd_iof)


def face_assign(
    anchors: jax.Array,
    boxes: jax.Array,
    box_mask: jax.Array,
    *,
    positive: float = 0.35,
    forced: float = 0.2,
    crowd: jax.Array | None = None,
    crowd_iof: float = 0.5,
) -> jax.Array:
    """RetinaFace's matching (arXiv:1905.00641, as its most-used public implementation).

    An anchor goes to the box of its best IoU, and is positive from `positive` on. Every box then claims its best anchor, a
    later box over an earlier one, which makes that anchor positive where the IoU is at least `forced`. Nothing else is -1
    but what a crowd covers.

    Args:
      anchors: [N, 4]. boxes: [M, 4] pixels. box_mask: [M] bool.
      positive, forced: IoU.
      crowd, crowd_iof: regions to ignore, as for `max_iou_assign`.

    Returns:
      [N] int32.

    Example:
      >>> anchors = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 4.0], [20.0, 20.0, 28.0, 28.0]])
      >>> boxes = jnp.array([[0.0, 0.0, 8.0, 7.0]])
      >>> face_assign(anchors, boxes, jnp.array([True])).tolist()
      [1, 1, 0]
    """
    real = box_mask if crowd is None else box_mask & ~crowd
    iou = _masked_iou(anchors, boxes, real)
    best, index = iou.max(axis=1), iou.argmax(axis=1) + 1
    best_of_box, anchor_of_box = iou.max(axis=0), iou.argmax(axis=0)
    claims = real & (best_of_box > 0)  # a box that touches no anchor claims none
    numbers = jnp.where(claims, jnp.arange(1, boxes.shape[0] + 1), 0)
    last = jnp.zeros_like(index).at[anchor_of_box].max(numbers)
    is_forced = jnp.zeros(index.shape, bool).at[anchor_of_box].max(claims & (best_of_box >= forced))
    index = jnp.where(last > 0, last, index)
    assigned = jnp.where((best >= positive) | is_forced, index, 0)
    return _finish(assigned, anchors, boxes, box_mask, crowd, crowd_iof)


def s3fd_assign(
    anchors: jax.Array,
    boxes: jax.Array,
    box_mask: jax.Array,
    *,
    positive: float = 0.35,
    compensate: float = 0.1,
    max_matches: int = 64,
    crowd: jax.Array | None = None,
    crowd_iof: float = 0.5,
) -> jax.Array:
    """S3FD's matching in two stages, which compensates small faces for the anchors that they miss (arXiv:1708.05237).

    1. An anchor goes to the box of its best IoU where that is ≥ `positive`; N is the mean number of anchors per box,
    rounded down and at least 1 (design). 2. A box with fewer than N takes, of the anchors with IoU > `compensate`, the N
    best that stage 1 left; an anchor that several boxes take goes to the one of the largest IoU.

    Args:
      anchors: [A, 4]. boxes: [M, 4] pixels. box_mask: [M] bool.
      positive, compensate: IoU.
      max_matches: upper bound of N, for static shapes.
      crowd, crowd_iof: regions to ignore, as for `max_iou_assign`.

    Returns:
      [A] int32.

    Example:
      >>> anchors = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 2.0], [20.0, 20.0, 28.0, 28.0]])
      >>> boxes = jnp.array([[0.0, 0.0, 8.0, 7.0]])
      >>> s3fd_assign(anchors, boxes, jnp.array([True])).tolist()
      [1, 0, 0]
    """
    real = box_mask if crowd is None else box_mask & ~crowd
    iou = _masked_iou(anchors, boxes, real)
    first = jnp.where(iou.max(axis=1) >= positive, iou.argmax(axis=1) + 1, 0)
    counts = jnp.sum(first[:, None] == jnp.arange(1, boxes.shape[0] + 1), axis=0)
    mean = jnp.maximum(jnp.sum(counts) // jnp.maximum(jnp.sum(real), 1), 1)
    overlap, index = jax.lax.top_k(iou.T, min(max_matches, anchors.shape[0]))  # [M, K]
    takes = (overlap > compensate) & (jnp.arange(overlap.shape[1]) < mean) & (counts < mean)[:, None]
    rows = jnp.arange(boxes.shape[0])[:, None]
    taken = jnp.zeros((boxes.shape[0], anchors.shape[0]), bool).at[rows, index].max(takes)
    overlap = jnp.where(taken.T, iou, -1.0)
    second = jnp.where(overlap.max(axis=1) > 0, overlap.argmax(axis=1) + 1, 0)
    assigned = jnp.where(first > 0, first, second)
    return _finish(assigned, anchors, boxes, box_mask, crowd, crowd_iof)


def ssh_assign(
    anchors: jax.Array,
    boxes: jax.Array,
    box_mask: jax.Array,
    *,
    positive: float = 0.5,
    negative: float = 0.3,
    crowd: jax.Array | None = None,
    crowd_iof: float = 0.5,
) -> jax.Array:
    """SSH's matching (arXiv:1708.03979): `max_iou_assign` at 0.5 and 0.3 without its step 4, -1 between the thresholds.

    Example:
      >>> anchors = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 3.2], [20.0, 20.0, 28.0, 28.0]])
      >>> boxes = jnp.array([[0.0, 0.0, 8.0, 7.0]])
      >>> ssh_assign(anchors, boxes, jnp.array([True])).tolist()
      [1, -1, 0]
    """
    return max_iou_assign(
        anchors,
        boxes,
        box_mask,
        positive=positive,
        negative=negative,
        low_quality=False,
        crowd=crowd,
        crowd_iof=crowd_iof,
    )


def assigned_rows(assigned: jax.Array, values: jax.Array) -> jax.Array:
    """What belongs to the box of each anchor: values [M, ...] -> [N, ...].

    Args:
      assigned: [N] int32 as the functions above return.
      values: [M, ...], such as boxes, landmarks or masks, M ≥ 1. An anchor without a box gets row 0, for the caller to mask.

    Example:
      >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 8.0, 8.0]])
      >>> assigned_rows(jnp.array([2, 0]), boxes).tolist()  # the first anchor has box 2, counted from 1
      [[4.0, 4.0, 8.0, 8.0], [0.0, 0.0, 4.0, 4.0]]
    """
    return values[jnp.maximum(assigned - 1, 0)]


def assigned_labels(assigned: jax.Array, box_label: jax.Array) -> jax.Array:
    """Class of each anchor as the losses take it: -1 counts neither way, 0 background, k > 0 for class k - 1; [N] int32.

    Args:
      assigned: [N] int32. box_label: [M] integers from 0.

    Example:
      >>> import jax.numpy as jnp
      >>> assigned_labels(jnp.array([-1, 0, 2, 1]), jnp.array([7, 4])).tolist()
      [-1, 0, 5, 8]
    """
    labels = assigned_rows(assigned, box_label).astype(jnp.int32) + 1
    return jnp.where(assigned > 0, labels, assigned)


def _masked_iou(anchors: jax.Array, boxes: jax.Array, real: jax.Array) -> jax.Array:
    """[N, M]: IoU, -1 for padding.

    With 0 there, every anchor would tie for a padded box at `min_positive` 0. The mask is applied after the IoU, so that no
    padded box can be the best of an anchor.
    """
    return jnp.where(real, jax.lax.stop_gradient(box_iou(anchors, boxes)), -1.0)


def _finish(
    assigned: jax.Array,
    anchors: jax.Array,
    boxes: jax.Array,
    box_mask: jax.Array,
    crowd: jax.Array | None,
    crowd_iof: float,
) -> jax.Array:
    assigned = assigned.astype(jnp.int32)
    if crowd is None:
        return assigned
    covered = jnp.where(crowd & box_mask, jax.lax.stop_gradient(box_iof(anchors, boxes)), 0.0)
    return jnp.where((assigned == 0) & (covered.max(axis=1) >= crowd_iof), -1, assigned)
