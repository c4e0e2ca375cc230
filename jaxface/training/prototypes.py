"""The loss against class prototypes that are spread over the devices of a mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxface import axes, losses
from jaxface.checks import int32_labels
from pallas_kernels.margin_softmax import Head


def prototype_rows(classes: int) -> int:
    """How many rows to give the prototypes of so many classes, that they may be split evenly.

    A multiple of the largest power of two that is at most classes / 64: at most 1/64 more, and the same on every number of
    devices, so that a checkpoint moves between them.
    """
    multiple = 1 << max(classes // 64, 1).bit_length() - 1
    return -(-classes // multiple) * multiple


def prototype_loss(
    embeddings: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    head: Head,
    *,
    classes: int,
    rate: float = 1.0,
    rng: jax.Array | None = None,
    where: jax.Array | None = None,
):
    """Mean loss of a batch over any number of classes; nothing of size [B, C] is made, on one device or on many.

    Inside a step of `JitParallel` the embeddings are split over the whole mesh and the prototypes over its `model` axis. Each
    device then sees the embeddings of its column of the mesh and its own classes (`losses.partial_fc_loss`). Elsewhere, under
    `pmap` too, it is the loss of one device.

    Args:
      embeddings: [B, D], not normalized.
      prototypes: [`prototype_rows(classes)`, D].
      labels: [B] integers in [0, classes), or -1 as in `losses.partial_fc_loss`.
      head: see `pallas_kernels.margin_softmax`.
      classes: C.
      rate: fraction of the classes that take part in a step, in (0, 1]; see `losses.sample_classes`.
      rng: key of the sample, needed below rate 1.
      where: [B] bool, False for examples whose loss counts as 0 in the mean over the batch; all count by default.

    Returns:
      (float32 scalar, terms [B]) as `losses.partial_fc_loss`.
    """
    options = {"classes": None if classes == prototypes.shape[0] else classes, "rate": rate}
    labels = int32_labels("labels", labels, classes, low=-1)
    batch = labels.shape[0]
    weights = jnp.full(labels.shape, 1.0 / batch)
    if where is not None:
        weights = jnp.where(where, weights, 0.0)
    mesh = jax.sharding.get_abstract_mesh()
    if axes.MODEL not in mesh.axis_names:
        return losses.partial_fc_loss(
            embeddings, prototypes, labels, head, weights=weights, key=rng, **options
        )

    def on_device(embeddings, prototypes, labels, weights, everyone, rng):
        loss, terms = losses.partial_fc_loss(
            embeddings,
            prototypes,
            labels,
            head,
            weights=weights,
            axis_name=axes.MODEL,
            key=rng,
            batch_labels=everyone,
            **options,
        )
        return jax.lax.psum(loss, axes.DATA), terms

    rows, whole = PartitionSpec(axes.DATA), PartitionSpec()
    mapped = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(rows, PartitionSpec(axes.MODEL), rows, rows, whole, whole),
        out_specs=(whole, rows),
    )
    rng = jax.random.key(0) if rng is None else rng
    return mapped(embeddings, prototypes, labels, weights, labels, rng)
