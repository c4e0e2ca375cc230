"""Arrays with one row per class, such as a memory of features, which the devices of a run share: written and read in a step.

Inside a step of `JitParallel` a bank is split over the `model` axis of the mesh by rows; elsewhere every device has the whole
of it. The results are the same.

Methods: acw, coupleface
"""

import functools
from collections.abc import Callable
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxface import axes, losses, search
from jaxface.checks import Fraction, check_number, int32_labels
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize
from jaxface.losses.class_features import class_rows

MemoryUpdate = Literal["replace", "ema", "none"]

_SHARD, _ROWS, _WHOLE = PartitionSpec(axes.MODEL), PartitionSpec(axes.DATA), PartitionSpec()


def _on_a_mesh() -> bool:
    return axes.MODEL in jax.sharding.get_abstract_mesh().axis_names


def update_bank(
    update: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    bank: jax.Array,
    values: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """A bank after `update(rows, values, labels)`, which each device applies to its rows, given the batch of all devices.

    Args:
      update: pure; a label of -1 stands for a class whose row is elsewhere.
      bank: [C, …].
      values: [B, …].
      labels: [B] integers in [0, C), or -1 for a value that goes nowhere.
    """
    labels = int32_labels("labels", labels, bank.shape[0], low=-1)
    if axes.bound(axes.DATA):
        values, labels = jax.lax.all_gather((values, labels), axes.DATA, tiled=True)
    if not _on_a_mesh():
        return update(bank, values, labels)

    def on_device(rows, values, labels):
        here = labels - jax.lax.axis_index(axes.MODEL) * rows.shape[0]
        mine = (labels >= 0) & (here >= 0) & (here < rows.shape[0])
        return update(rows, values, jnp.where(mine, here, -1))

    return jax.shard_map(on_device, in_specs=(_SHARD, _WHOLE, _WHOLE), out_specs=_SHARD)(bank, values, labels)


def mined_relations(
    student: jax.Array, teacher: jax.Array, labels: jax.Array, memory: jax.Array, neighbors: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`losses.mined_relations` with the memory and the neighbors [C, …] split over the mesh as `update_bank` has them."""
    if not _on_a_mesh():
        return losses.mined_relations(student, teacher, labels, memory, neighbors)
    mapped = jax.shard_map(
        functools.partial(losses.mined_relations, axis_name=axes.MODEL),
        in_specs=(_ROWS, _ROWS, _ROWS, _SHARD, _SHARD),
        out_specs=(_ROWS, _ROWS),
    )
    return mapped(student, teacher, labels, memory, neighbors)


def add_class_features(sums: jax.Array, features: jax.Array, labels: jax.Array) -> jax.Array:
    """Adds the directions of features to the sums of their classes, a batch at a time.

        sums_c ← sums_c + Σ_{i: y_i = c} f_i / ‖f_i‖

    Over a whole data set, from zeros and normalized, these are the `class_prototypes`.

    Args:
      sums: [C, D] float32.
      features: [B, D] float.
      labels: [B] integers in [0, C), or -1 for a row that does not count (padding, or a class of another shard).

    Returns:
      [C, D] float32.

    Raises:
      AssertionError, ValueError: shapes disagree, another dtype, or (where the values are known) a label out of range.
    """
    chex.assert_rank([sums, features], 2, custom_message="sums must be [C, D] and features [B, D]")
    chex.assert_equal_shape_suffix([sums, features], 1, custom_message="sums and features differ in size")
    chex.assert_equal_shape_prefix(
        [features, labels], 1, custom_message="features and labels differ in batch"
    )
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise ValueError(f"features: needs a float dtype, got {features.dtype}")
    labels = int32_labels("labels", labels, sums.shape[0], low=-1)
    rows = jnp.where(labels >= 0, labels, sums.shape[0])  # -1 would count from the end
    return jnp.asarray(sums).at[rows].add(l2_normalize(jnp.asarray(features, jnp.float32)), mode="drop")


def class_prototypes(features: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """The direction of the mean direction of every class (our reading of arXiv:2204.05502).

        m_c = n( mean_{i: y_i = c} n(f_i) ),        n(x) = x / ‖x‖

    Args:
      features: [N, D] float, usually the teacher's.
      labels: [N] integers in [0, C), or -1 for a row that does not count.
      classes: C ≥ 1.

    Returns:
      [C, D] float32 of unit rows; a class without a feature has a zero row.

    Raises:
      AssertionError, ValueError: as `add_class_features`.
    """
    sums = jnp.zeros((classes, features.shape[-1]), jnp.float32)
    return l2_normalize(add_class_features(sums, features, labels))


def set_rows(bank: jax.Array, rows: jax.Array, labels: jax.Array) -> jax.Array:
    """bank with bank[y_i] = rows_i; of several rows with one label the last one stays, on every device.

    Args:
      bank: [C, …].
      rows: [B, …].
      labels: [B] integers in [0, C), or -1 for a row that goes nowhere.

    Returns:
      Like `bank`; classes without a label are the same bit for bit.
    """
    classes, positions = bank.shape[0], jnp.arange(labels.shape[0])
    labels = int32_labels("labels", labels, classes, low=-1)
    # A scatter of several rows to one place has no order; a maximum of their positions needs none.
    places = jnp.where(labels >= 0, labels, classes)
    last = jnp.full(classes, -1).at[places].max(positions, mode="drop")
    stays = last[jnp.clip(places, 0, classes - 1)] == positions
    places = jnp.where(stays, places, classes)
    return jnp.asarray(bank).at[places].set(rows.astype(bank.dtype), mode="drop")


def update_memory(
    memory: jax.Array,
    features: jax.Array,
    labels: jax.Array,
    *,
    mode: MemoryUpdate = "replace",
    decay: float = 0.9,
) -> jax.Array:
    """The memory after a step: the newest teacher feature of every class (our reading of arXiv:2204.05502).

        replace: E_{y_i} ← n(f_i)        ema: E_{y_i} ← n( ρ E_{y_i} + (1 - ρ) n(f_i) )        none: E

    Of several features of one class in a batch the last one counts (design).

    Args:
      memory: [C, D] float of unit rows; a constant.
      features: [B, D] float, the teacher's; a constant.
      labels: [B] integers in [0, C), or -1 for a row that does not count (a class of another shard).
      mode: which update.
      decay: ρ in [0, 1], of "ema" alone.

    Returns:
      Like `memory`; classes that are not in the batch are the same bit for bit.

    Raises:
      AssertionError, ValueError: shapes disagree, another dtype, or (where the values are known) a label out of range.
      UserError: an unknown mode, or a decay outside [0, 1].
    """
    if mode not in ("replace", "ema", "none"):
        raise UserError(f"mode: needs 'replace', 'ema' or 'none', got {mode!r}")
    check_number("decay", decay, Fraction)
    chex.assert_rank([memory, features], 2, custom_message="memory must be [C, D] and features [B, D]")
    chex.assert_equal_shape_suffix([memory, features], 1, custom_message="memory and features differ in size")
    chex.assert_equal_shape_prefix(
        [features, labels], 1, custom_message="features and labels differ in batch"
    )
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise ValueError(f"features: needs a float dtype, got {features.dtype}")
    labels = int32_labels("labels", labels, memory.shape[0], low=-1)
    memory, features = jax.lax.stop_gradient((memory, features))
    if mode == "none":
        return memory
    rows = l2_normalize(jnp.asarray(features, jnp.float32))
    if mode == "ema":
        old = jnp.asarray(memory, jnp.float32)[jnp.clip(labels, 0, memory.shape[0] - 1)]
        rows = l2_normalize(decay * old + (1 - decay) * rows)
    return set_rows(memory, rows, labels)


def mine_neighbors(
    prototypes: jax.Array,
    neighbors: int,
    of: jax.Array | None = None,
    *,
    valid: jax.Array | None = None,
    block: int = 4096,
) -> jax.Array:
    """Informative mining: for each class the other classes whose prototypes are most similar (arXiv:2204.05502).

        N_c = the K largest of ⟨m_c, m_j⟩ over j ≠ c, in decreasing order, ties to the lower index

    No [C, C] is made (`jaxface.search`). On a mesh the prototypes and `valid` are split as `update_bank` has them, and each
    device searches its rows.

    Args:
      prototypes: [C, D] float of unit rows; constants.
      neighbors: K, 1 ≤ K ≤ C - 1; static.
      of: [Q] integers, the classes to find neighbors of; all by default.
      valid: [C] bool, classes that may be neighbors; all by default. Others are taken only where K asks for more than there are.
      block: rows and columns of a block of products, ≥ 1; static.

    Returns:
      [Q, K] int32; never the class itself.

    Raises:
      AssertionError, ValueError: wrong ranks or dtypes, a class out of range, or a block below 1.
      UserError: K outside [1, C - 1].
    """
    chex.assert_rank(prototypes, 2, custom_message="prototypes must be [C, D]")
    if not jnp.issubdtype(prototypes.dtype, jnp.floating):
        raise ValueError(f"prototypes: needs a float dtype, got {prototypes.dtype}")
    classes = prototypes.shape[0]
    if not 1 <= neighbors <= classes - 1:
        raise UserError(
            f"neighbors: needs at least 1 and at most the {classes - 1} other classes, got {neighbors}"
        )
    valid = jnp.ones(classes, bool) if valid is None else valid
    chex.assert_shape(valid, (classes,), custom_message="valid must be [C]")
    of = int32_labels("of", jnp.arange(classes) if of is None else of, classes)
    prototypes = jax.lax.stop_gradient(jnp.asarray(prototypes, jnp.float32))

    def on_device(prototypes, valid, of, axis_name=None):
        queries = class_rows(prototypes, of, axis_name)
        if axis_name is not None:
            queries = jax.lax.psum(queries, axis_name)
        return search.nearest(
            queries,
            (prototypes, valid),
            neighbors,
            similarity=_valid_first,
            exclude=of,
            query_block=block,
            candidate_block=block,
            axis_name=axis_name,
        )[1]

    if not _on_a_mesh():
        return on_device(prototypes, valid, of)
    mapped = jax.shard_map(
        functools.partial(on_device, axis_name=axes.MODEL),
        in_specs=(_SHARD, _SHARD, _ROWS),
        out_specs=_ROWS,
        check_vma=False,  # every shard merges the same candidates, which no type says
    )
    return mapped(prototypes, valid, of)


def _valid_first(queries: jax.Array, candidates: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cosines; below all of them for candidates that are not valid."""
    prototypes, valid = candidates
    return jnp.where(valid, search.dot_products(queries, prototypes), -2.0)
