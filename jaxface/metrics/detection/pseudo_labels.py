"""How good pseudo boxes are, where the truth is known after all.

Methods: pseco
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxface.boxes import box_iou
from jaxface.checks import OpenFraction, check_number


class PseudoLabelCounts(NamedTuple):
    """Counts over images, float32 scalars; sums of them are those of all."""

    right: jax.Array  # pseudo boxes that overlap an object of their class
    pseudo: jax.Array  # pseudo boxes
    objects: jax.Array  # true ones
    overlap: jax.Array  # sum over the pseudo boxes of the best IoU with an object of their class

    def report(self) -> dict[str, jax.Array]:
        """`precision`, `recall`, `overlap` (mean IoU) and `per_object`, how many pseudo boxes an object has.

        Of a batch without pseudo boxes precision and overlap are 0, of one without objects recall is.
        """
        pseudo, objects = jnp.maximum(self.pseudo, 1), jnp.maximum(self.objects, 1)
        return {
            "precision": self.right / pseudo,
            "recall": self.right / objects,
            "overlap": self.overlap / pseudo,
            "per_object": self.pseudo / objects,
        }


def pseudo_label_counts(
    pseudo_boxes: jax.Array,
    pseudo_labels: jax.Array,
    pseudo_mask: jax.Array,
    boxes: jax.Array,
    box_label: jax.Array,
    box_mask: jax.Array,
    *,
    iou_threshold: float = 0.5,
) -> PseudoLabelCounts:
    """Counts for the precision and the recall of pseudo boxes (arXiv:2203.16317, as released).

        precision = right / pseudo boxes,   recall = right / objects;   right: IoU > iou_threshold with an object of its class

    An object that two pseudo boxes find counts twice, so that recall may exceed 1; `per_object` tells.

    Args:
      pseudo_boxes: [..., D, 4]. pseudo_labels: [..., D] integers. pseudo_mask: [..., D] bool.
      boxes: [..., M, 4]. box_label: [..., M] integers. box_mask: [..., M] bool.
      iou_threshold: in (0, 1); IoU of exactly that is wrong.

    Returns:
      Sums over all images.

    Example:
      >>> box = jnp.array([[0.0, 0, 10, 10]])
      >>> two = jnp.array([[0.0, 0, 10, 8], [20, 20, 30, 30]])
      >>> labels, real = jnp.zeros(2, int), jnp.ones(2, bool)
      >>> counts = pseudo_label_counts(two, labels, real, box, labels[:1], real[:1])
      >>> {name: float(value) for name, value in counts.report().items()}
      {'precision': 0.5, 'recall': 1.0, 'overlap': 0.4000000059604645, 'per_object': 2.0}
    """
    check_number("iou_threshold", iou_threshold, OpenFraction)
    matrix = box_iou
    for _ in pseudo_boxes.shape[:-2]:
        matrix = jax.vmap(matrix)
    same = pseudo_labels[..., :, None] == box_label[..., None, :]
    overlap = jnp.where(same & box_mask[..., None, :], matrix(pseudo_boxes, boxes), 0.0).max(axis=-1)
    overlap = jnp.where(pseudo_mask, overlap, 0.0)
    return PseudoLabelCounts(
        right=jnp.sum(overlap > iou_threshold).astype(jnp.float32),
        pseudo=jnp.sum(pseudo_mask).astype(jnp.float32),
        objects=jnp.sum(box_mask).astype(jnp.float32),
        overlap=jnp.sum(overlap),
    )
