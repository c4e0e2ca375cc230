"""Relations of embeddings with one feature per class, which may be one shard of many.

Methods: coupleface
"""

import chex
import jax
import jax.numpy as jnp

from jaxface.checks import AtLeast, check_number, check_unit_rows, int32_labels, nan_outside
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize
from jaxface.losses.distillation import check_pair


def _own_rows(numbers: jax.Array, rows: int, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """(row on this shard, whether it is on this shard) of class numbers."""
    here = numbers - (0 if axis_name is None else jax.lax.axis_index(axis_name) * rows)
    return jnp.clip(here, 0, rows - 1), (here >= 0) & (here < rows)


def class_rows(bank: jax.Array, numbers: jax.Array, axis_name: str | None) -> jax.Array:
    """bank[numbers], zero where the row lives on another shard of the mesh axis (None: there are no shards)."""
    here, mine = _own_rows(numbers, bank.shape[0], axis_name)
    return jnp.where(mine[..., None], jnp.asarray(bank)[here], 0)


def _sum(x, axis_name: str | None):
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def mined_relations(
    student: jax.Array,
    teacher: jax.Array,
    labels: jax.Array,
    memory: jax.Array,
    neighbors: jax.Array,
    *,
    axis_name: str | None = None,
    block: int = 16,
) -> tuple[jax.Array, jax.Array]:
    """The relations of each example: cosines with what the memory holds of its class's neighbors (arXiv:2204.05502).

        r_ik = ⟨ f_i / ‖f_i‖, E_{N_{y_i}[k]} ⟩        for the student's and the teacher's f_i

    Both embeddings are compared with the same teacher features. The rows of the memory are gathered `block` neighbors at a
    time, and again in the backward pass, so that no [B, K, D] is made. With shards each computes the products with its own
    rows, and [B, K] numbers are summed over them; no row travels.

    Args:
      student: [B, D] float.
      teacher: [B, D] float; a constant.
      labels: [B] integers in [0, C); where the values are not known, one out of range gives NaN.
      memory: [C, D] float of unit rows, zero for a class without images (relation 0 on both sides); a constant. With
        `axis_name` the rows of this shard.
      neighbors: [C, K] integers in [0, C), numbered over all shards; the rows of this shard.
      axis_name: mesh axis of the shards, inside `jax.shard_map`.
      block: neighbors at a time, ≥ 1; static.

    Returns:
      (student's, teacher's), each [B, K] float32 in [-1, 1].

    Raises:
      AssertionError, ValueError: shapes disagree, another dtype, an empty batch, or (where the values are known) a label or a
        neighbor that is no class.
      UserError: sizes of student and teacher differ, K > C - 1, a block below 1, or (where the values are known) a memory whose
        rows are neither of unit length nor zero.

    Example:
      >>> memory = jnp.eye(3)  # a unit row of every class
      >>> student, teacher = jnp.array([[0.0, 3.0, 4.0]]), jnp.array([[0.0, 0.0, 1.0]])
      >>> neighbors = jnp.array([[1, 2], [0, 2], [0, 1]])
      >>> ours, theirs = mined_relations(student, teacher, jnp.array([0]), memory, neighbors)
      >>> [round(x, 2) for x in ours[0].tolist()], theirs[0].tolist()
      ([0.6, 0.8], [0.0, 1.0])
    """
    check_pair(student, teacher, name="embeddings")
    chex.assert_rank([memory, neighbors], 2, custom_message="memory must be [C, D] and neighbors [C, K]")
    chex.assert_equal_shape_prefix(
        [memory, neighbors], 1, custom_message="memory and neighbors differ in classes"
    )
    chex.assert_equal_shape_suffix(
        [memory, teacher], 1, custom_message="memory and embeddings differ in size"
    )
    classes = memory.shape[0] if axis_name is None else None
    labels = int32_labels("labels", labels, classes)
    chex.assert_equal_shape_prefix(
        [student, labels], 1, custom_message="embeddings and labels differ in batch"
    )
    neighbors = int32_labels("neighbors", neighbors.reshape(-1), classes).reshape(neighbors.shape)
    count = neighbors.shape[1]
    if classes is not None and not 1 <= count <= classes - 1:
        raise UserError(
            f"neighbors: needs at least 1 and at most the {classes - 1} other classes, got {count}"
        )
    check_number("block", block, AtLeast(1))
    check_unit_rows("memory", memory, zeros=True)
    teacher, memory = jax.lax.stop_gradient((teacher, memory))
    both = jnp.stack([l2_normalize(x.astype(jnp.float32)) for x in (student, teacher)], axis=1)
    numbers = _sum(class_rows(neighbors, labels, axis_name), axis_name)

    @jax.checkpoint
    def products(numbers):  # [B, k] -> [B, 2, k]
        rows = class_rows(memory, numbers, axis_name).astype(jnp.float32)
        return jnp.einsum("bsd,bkd->bsk", both, rows, precision=jax.lax.Precision.HIGHEST)

    if count <= block:
        relations = products(numbers)
    else:
        parts = -(-count // block)
        padded = jnp.pad(numbers, ((0, 0), (0, parts * block - count)))
        relations = jax.lax.map(products, padded.reshape(-1, parts, block).swapaxes(0, 1))
        relations = jnp.moveaxis(relations, 0, 2).reshape(*both.shape[:2], parts * block)[..., :count]
    shards = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    relations = (
        _sum(relations, axis_name) + nan_outside(labels, memory.shape[0] * shards, low=0)[:, None, None]
    )
    return relations[:, 0], relations[:, 1]
