"""The loss of YOLOv2 (arXiv:1612.08242), as darknet has it, and what its outputs mean.

Each cell of a grid has A anchors, boxes of given sizes around its center; an output is (t_x, t_y, t_w, t_h, t_o) and a score per
class for each of them.

Methods: condensation_net
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.boxes import box_iof, box_iou
from jaxface.boxes.iou import paired_iou
from jaxface.checks import AtLeast, Fraction, NonNegative, check_number
from jaxface.errors import UserError

_LARGEST_LOG = (
    6.0  # of a size over its anchor's: what is larger would overflow before it could be learned from
)


class YoloBoxes(NamedTuple):
    """What outputs [B, h, w, A, 5 + C] say, all float32.

    Attributes:
      boxes: [B, h, w, A, 4] (y0, x0, y1, x1) pixels.
      objectness: [B, h, w, A] in [0, 1].
      classes: [B, h, w, A, C], probabilities given an object.
    """

    boxes: jax.Array
    objectness: jax.Array
    classes: jax.Array


class YoloTerms(NamedTuple):
    """The loss and its parts, sums over an image, means over the batch; float32 scalars."""

    total: jax.Array
    coordinates: jax.Array
    objects: jax.Array
    background: jax.Array
    classes: jax.Array
    overlap: jax.Array  # mean IoU of the responsible anchors' boxes with their objects


def decode_yolo(outputs: jax.Array, anchor_sizes, stride: int) -> YoloBoxes:
    """Boxes and scores of a grid of outputs.

        b_x = (σ(t_x) + c_x) · stride,   b_w = a_w · e^{t_w},   likewise y and h;   objectness σ(t_o),   classes softmax

    Args:
      outputs: [B, h, w, A, 5 + C].
      anchor_sizes: [A, 2] (height, width) pixels.
      stride: side of a cell, pixels.

    Returns:
      `YoloBoxes`.

    Raises:
      UserError: another number of anchors, or no class.

    Example:
      >>> import jax.numpy as jnp
      >>> decode_yolo(jnp.zeros((1, 1, 1, 1, 6)), [(16, 8)], 32).boxes.reshape(4).tolist()
      [8.0, 12.0, 24.0, 20.0]
    """
    sizes = np.asarray(anchor_sizes, np.float32).reshape(-1, 2)
    if outputs.ndim != 5 or outputs.shape[3] != len(sizes) or outputs.shape[4] < 6:
        raise UserError(
            f"outputs: needs [B, h, w, {len(sizes)}, 5 + C] for {len(sizes)} anchors; got {list(outputs.shape)}"
        )
    outputs = outputs.astype(jnp.float32)
    cells = np.stack(list(np.mgrid[: outputs.shape[1], : outputs.shape[2]]), axis=-1).astype(np.float32)
    centers = (jax.nn.sigmoid(outputs[..., 1::-1]) + cells[:, :, None]) * stride
    half = sizes * jnp.exp(jnp.minimum(outputs[..., 3:1:-1], _LARGEST_LOG)) / 2
    return YoloBoxes(
        jnp.concatenate([centers - half, centers + half], axis=-1),
        jax.nn.sigmoid(outputs[..., 4]),
        jax.nn.softmax(outputs[..., 5:]),
    )


def responsible_anchors(boxes: jax.Array, anchor_sizes, grid: tuple[int, int], stride: int) -> jax.Array:
    """Which output is to find each object: that of the cell its center is in, and of the anchor whose shape overlaps it most.

    Args:
      boxes: [M, 4] pixels.
      anchor_sizes: [A, 2] (height, width) pixels.
      grid: (h, w) cells.
      stride: side of a cell, pixels.

    Returns:
      [M] int32 in [0, h·w·A): (row · w + column) · A + anchor, the first of equally good ones.
    """
    sizes = jnp.asarray(anchor_sizes, jnp.float32)
    extents = boxes[:, 2:] - boxes[:, :2]

    def cornered(sizes):
        return jnp.concatenate([jnp.zeros_like(sizes), sizes], axis=-1)

    anchor = jnp.argmax(box_iou(cornered(extents), cornered(sizes)), axis=1)
    cell = jnp.floor((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).astype(jnp.int32)
    cell = jnp.clip(cell, 0, jnp.array(grid) - 1)
    return ((cell[:, 0] * grid[1] + cell[:, 1]) * len(sizes) + anchor).astype(jnp.int32)


def yolo_loss(
    outputs: jax.Array,
    boxes: jax.Array,
    box_mask: jax.Array,
    box_label: jax.Array,
    *,
    anchor_sizes,
    stride: int,
    box_crowd: jax.Array | None = None,
    image_size: jax.Array | None = None,
    object_weight: float = 5.0,
    background_weight: float = 1.0,
    ignore_iou: float = 0.6,
    rescore: bool = True,
) -> YoloTerms:
    """Squared errors of coordinates and objectness, cross-entropy of classes.

        responsible for an object of box g:  Σ (σ(t_x) - g_x)² + (σ(t_y) - g_y)² + (t_w - ln g_w/a_w)² + (t_h - ln g_h/a_h)²
                                             + object_weight · (σ(t_o) - IoU(b, g))²  -  log softmax(classes)[label]
        elsewhere, where no object overlaps b by ignore_iou:  background_weight · σ(t_o)²

    with g_x, g_y the place of the center in its cell. Of two objects with one responsible output the later counts. No gradient
    flows through the target IoU.

    Args:
      outputs: [B, h, w, A, 5 + C].
      boxes: [B, M, 4] (y0, x0, y1, x1) pixels.
      box_mask: [B, M] bool, which of them are real.
      box_label: [B, M] int in [0, C).
      anchor_sizes: [A, 2] (height, width) pixels.
      stride: side of a cell, pixels.
      box_crowd: [B, M] bool, regions to ignore: no object, and what lies in them by half is no background either.
      image_size: [B, 2] (height, width) before padding; cells whose center is outside count neither way.
      object_weight, background_weight: ≥ 0.
      ignore_iou: in [0, 1].
      rescore: whether the target of the objectness is the overlap, else 1.

    Returns:
      `YoloTerms`; of an image without objects only the background counts.

    Raises:
      UserError: outputs of another shape, or a weight out of its range.

    Example:
      >>> outputs = jnp.zeros((1, 2, 2, 1, 6))  # 2 x 2 cells of 8 pixels, one anchor, one class
      >>> boxes, mask = jnp.array([[[0.0, 0.0, 8.0, 8.0]]]), jnp.array([[True]])
      >>> terms = yolo_loss(outputs, boxes, mask, jnp.array([[0]]), anchor_sizes=[(8.0, 8.0)], stride=8)
      >>> float(terms.coordinates), float(terms.background)  # the box is right, three empty cells say 1/2
      (0.0, 0.75)
    """
    for name, value, allowed in (
        ("object_weight", object_weight, NonNegative),
        ("background_weight", background_weight, NonNegative),
        ("ignore_iou", ignore_iou, Fraction),
    ):
        check_number(name, value, allowed)
    decoded = decode_yolo(outputs, anchor_sizes, stride)
    height, width, per_cell = outputs.shape[1:4]
    sizes = jnp.asarray(anchor_sizes, jnp.float32)
    crowd = jnp.zeros_like(box_mask) if box_crowd is None else box_crowd
    if image_size is None:
        image_size = jnp.full((len(outputs), 2), jnp.iinfo(jnp.int32).max)
    centers = (np.stack(list(np.mgrid[:height, :width]), axis=-1).reshape(-1, 2) + 0.5) * stride

    def of_image(output, decoded, boxes, real, labels, crowd, size):
        output = output.reshape(height * width * per_cell, -1).astype(jnp.float32)
        predicted, objectness = (x.reshape(len(output), *x.shape[3:]) for x in decoded[:2])
        objects, ignored = real & ~crowd, real & crowd
        rows = responsible_anchors(boxes, anchor_sizes, (height, width), stride)
        numbers = jnp.where(objects, jnp.arange(len(boxes)) + 1, 0)
        number = jnp.zeros(len(output), jnp.int32).at[rows].max(numbers)
        responsible, number = number > 0, jnp.maximum(number - 1, 0)
        target = boxes[number]
        overlap = paired_iou(jax.lax.stop_gradient(predicted), target)

        fraction = (target[:, :2] + target[:, 2:]) / 2 / stride
        fraction = fraction - jnp.clip(jnp.floor(fraction), 0, jnp.array([height, width]) - 1)
        extents = jnp.maximum(target[:, 2:] - target[:, :2], 1e-3)
        logs = jnp.log(extents / sizes[jnp.arange(len(output)) % per_cell])
        places = jnp.concatenate([jax.nn.sigmoid(output[:, 1::-1]), output[:, 3:1:-1]], axis=1)
        misplaced = jnp.sum((places - jnp.concatenate([fraction, logs], axis=1)) ** 2, axis=1)
        wanted = overlap if rescore else jnp.ones_like(overlap)
        logits = jax.nn.log_softmax(output[:, 5:])
        unlike = -jnp.take_along_axis(logits, labels[number][:, None].astype(jnp.int32), axis=1)[:, 0]

        stopped = jax.lax.stop_gradient(predicted)
        free = jnp.max(jnp.where(objects, box_iou(stopped, boxes), 0), axis=1) < ignore_iou
        free &= jnp.max(jnp.where(ignored, box_iof(stopped, boxes), 0), axis=1) < 0.5
        free &= jnp.repeat(jnp.all(centers < size, axis=1), per_cell) & ~responsible

        def over(mask, values):
            return jnp.sum(jnp.where(mask, values, 0))

        return (
            over(responsible, misplaced),
            object_weight * over(responsible, (objectness - wanted) ** 2),
            background_weight * over(free, objectness**2),
            over(responsible, unlike),
            over(responsible, overlap),
            jnp.sum(responsible),
        )

    *terms, overlaps, counts = jax.vmap(of_image)(
        outputs, decoded, boxes.astype(jnp.float32), box_mask, box_label, crowd, image_size
    )
    terms = [term.mean() for term in terms]
    return YoloTerms(sum(terms), *terms, jnp.sum(overlaps) / jnp.maximum(jnp.sum(counts), 1))


def cluster_anchors(sizes, count: int, *, seed: int = 0, iterations: int = 100) -> np.ndarray:
    """Sizes of anchors for a set of boxes: k-means with the distance 1 - IoU of boxes with a common center.

    Args:
      sizes: [N, 2] (height, width) > 0 of the objects.
      count: A anchors, at most N.
      seed: of the first centers, drawn by distance (k-means++).
      iterations: at most so many.

    Returns:
      [A, 2] float64, by growing area.

    Raises:
      UserError: fewer boxes than anchors, or sizes that are not positive.

    Example:
      >>> cluster_anchors([(10, 10), (12, 10), (50, 60), (54, 60)], 2).tolist()
      [[11.0, 10.0], [52.0, 60.0]]
    """
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    check_number("count", count, AtLeast(1))
    if len(sizes) < count:
        raise UserError(f"sizes: needs at least as many boxes as anchors, {count}; got {len(sizes)}")
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise UserError("sizes: needs positive heights and widths")

    def overlaps(centers):
        shared = np.minimum(sizes[:, None], centers).prod(axis=-1)
        return shared / (sizes.prod(axis=1)[:, None] + centers.prod(axis=1) - shared)

    rng = np.random.default_rng(seed)
    centers = sizes[rng.integers(len(sizes), size=1)]
    while len(centers) < count:
        far = (1 - overlaps(centers).max(axis=1)) ** 2
        draw = rng.choice(len(sizes), p=far / far.sum() if far.sum() > 0 else None)
        centers = np.concatenate([centers, sizes[draw : draw + 1]])
    nearest = None
    for _ in range(iterations):
        previous, nearest = nearest, overlaps(centers).argmax(axis=1)
        if previous is not None and (previous == nearest).all():
            break
        for k in np.unique(nearest):
            centers[k] = sizes[nearest == k].mean(axis=0)
    return centers[np.argsort(centers.prod(axis=1), kind="stable")]
