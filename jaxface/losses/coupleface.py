"""CoupleFace: distillation of the relations between an image and the identities easily taken for its own (arXiv:2204.05502).

Our reading of the paper: its modules and their order are the paper's (feature consistency, informative mining over identity
prototypes, relation-aware distillation with a memory of teacher features); the formulas are reconstructed, and each choice is
an argument. Two arrays have one row per class and may be one shard of many (`axis_name`): the memory of teacher features and
the table of neighbors. What the teacher gives, the memory included, is a constant: no gradient reaches it.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize
from jaxface.losses.checks import check_range
from jaxface.losses.distillation import check_pair, mimic_loss

Norm = Literal["l1", "l2"]
MemoryUpdate = Literal["replace", "ema", "none"]


class CoupleFaceTerms(NamedTuple):
    """The two parts of `coupleface_loss` before their weights; each [B] float32."""

    consistency: jax.Array  # 1 - cos(f_s, f_t)
    relation: jax.Array  # mean over the K relations of the difference


def _check_classes(name: str, labels: jax.Array, classes: int | None, *, low: int = 0) -> None:
    """Labels are [B] integers and, where their values are known, in [low, classes)."""
    chex.assert_rank(labels, 1, custom_message=f"{name} must be [B]")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name}: needs an integer dtype, got {labels.dtype}")
    if classes is not None and not isinstance(labels, jax.core.Tracer) and labels.size:
        values = np.asarray(labels)
        if values.min() < low or values.max() >= classes:
            raise ValueError(
                f"{name}: needs values in [{low}, {classes}), got {values.min()}..{values.max()}"
            )


def _own_rows(numbers: jax.Array, rows: int, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """(row on this shard, whether it is on this shard) of class numbers."""
    here = numbers - (0 if axis_name is None else jax.lax.axis_index(axis_name) * rows)
    return jnp.clip(here, 0, rows - 1), (here >= 0) & (here < rows)


def _rows(bank: jax.Array, numbers: jax.Array, axis_name: str | None) -> jax.Array:
    """bank[numbers], zero where the row lives on another shard."""
    here, mine = _own_rows(numbers, bank.shape[0], axis_name)
    return jnp.where(mine[..., None], jnp.asarray(bank)[here], 0)


def _sum(x, axis_name: str | None):
    return x if axis_name is None else jax.lax.psum(x, axis_name)


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
    _check_classes("labels", labels, sums.shape[0], low=-1)
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


_ROUNDING = 1e-6  # of a cosine in float32
_OWN, _WITHOUT_IMAGES = -3.0, -2.0  # below every cosine; the own class comes last of all


def mine_neighbors(
    prototypes: jax.Array,
    neighbors: int,
    *,
    valid: jax.Array | None = None,
    of: jax.Array | None = None,
    block: int = 4096,
    axis_name: str | None = None,
) -> jax.Array:
    """Informative mining: for each class the other classes whose prototypes are most similar (arXiv:2204.05502).

        N_c = the K largest of ⟨m_c, m_j⟩ over j ≠ c, in decreasing order, ties to the lower index

    The products are made in blocks of [block, block] with a running top K, so that no [C, C] is.

    Args:
      prototypes: [C, D] float of unit rows; with `axis_name` the rows of a shard, of which the r-th has classes rC to rC + C - 1.
      neighbors: K, 1 ≤ K ≤ C - 1 over all shards; static.
      valid: [C] bool, classes that may be neighbors; all by default. Others are taken only where K asks for more than there are.
      of: [Q] integers, the classes to find neighbors of; all by default.
      block: rows and columns of a block of products, ≥ 1; static.
      axis_name: mesh axis of the shards, inside `jax.shard_map`; `of` is the same on all of them.

    Returns:
      [Q, K] int32, numbered over all shards; never the class itself.

    Raises:
      AssertionError, ValueError: wrong ranks or dtypes, or a block below 1.
      UserError: K outside [1, C - 1].
    """
    chex.assert_rank(prototypes, 2, custom_message="prototypes must be [C, D]")
    if not jnp.issubdtype(prototypes.dtype, jnp.floating):
        raise ValueError(f"prototypes: needs a float dtype, got {prototypes.dtype}")
    rows = prototypes.shape[0]
    shard, shards = (
        (0, 1) if axis_name is None else (jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name))
    )
    classes = rows * shards
    if not 1 <= neighbors <= classes - 1:
        raise UserError(
            f"neighbors: needs at least 1 and at most the {classes - 1} other classes, got {neighbors}"
        )
    if block < 1:
        raise ValueError(f"block: needs at least 1, got {block}")
    valid = jnp.ones(rows, bool) if valid is None else valid
    chex.assert_shape(valid, (rows,), custom_message="valid must be [C]")
    of = jnp.arange(classes) if of is None else of
    _check_classes("of", of, classes)
    of = of.astype(jnp.int32)
    prototypes = jax.lax.stop_gradient(prototypes.astype(jnp.float32))
    queries = _sum(_rows(prototypes, of, axis_name), axis_name)

    width = min(block, rows)
    columns = -(-rows // width)
    padded = jnp.pad(prototypes, ((0, columns * width - rows), (0, 0))).reshape(columns, width, -1)
    numbers = jnp.arange(columns * width)
    # Above the products where they count, and in their place where they do not.
    instead = jnp.where(jnp.pad(valid, (0, columns * width - rows)), jnp.inf, _WITHOUT_IMAGES)
    instead = jnp.where(numbers < rows, instead, -jnp.inf).reshape(columns, width)
    numbers = (numbers + shard * rows).astype(jnp.int32).reshape(columns, width)

    def of_block(block_of):
        own, query = block_of

        def merge(best, column):
            rows, instead, numbers = column
            products = jnp.matmul(query, rows.T, precision=jax.lax.Precision.HIGHEST)
            products = jnp.where(jnp.isposinf(instead), products, instead)
            products = jnp.where(
                numbers == own[:, None], jnp.where(jnp.isneginf(instead), instead, _OWN), products
            )
            # What is best so far comes first: it has the lower indices, and `top_k` keeps the first of equals.
            scores = jnp.concatenate([best[0], products], axis=1)
            indices = jnp.concatenate([best[1], jnp.broadcast_to(numbers, products.shape)], axis=1)
            scores, chosen = jax.lax.top_k(scores, neighbors)
            return (scores, jnp.take_along_axis(indices, chosen, axis=1)), None

        shape = (own.shape[0], neighbors)
        nothing = jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.int32)
        return jax.lax.scan(merge, nothing, (padded, instead, numbers))[0]

    height = max(min(block, of.shape[0]), 1)
    lines = -(-of.shape[0] // height)
    fill = ((0, lines * height - of.shape[0]), (0, 0))
    scores, found = jax.lax.map(
        of_block,
        (jnp.pad(of, fill[0]).reshape(lines, height), jnp.pad(queries, fill).reshape(lines, height, -1)),
    )
    scores, found = (x.reshape(lines * height, neighbors)[: of.shape[0]] for x in (scores, found))
    if axis_name is None:
        return found
    scores, found = (jax.lax.all_gather(x, axis_name, axis=1, tiled=True) for x in (scores, found))
    return jnp.take_along_axis(found, jax.lax.top_k(scores, neighbors)[1], axis=1)


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
    check_range("decay", decay, 0.0, 1.0)
    chex.assert_rank([memory, features], 2, custom_message="memory must be [C, D] and features [B, D]")
    chex.assert_equal_shape_suffix([memory, features], 1, custom_message="memory and features differ in size")
    chex.assert_equal_shape_prefix(
        [features, labels], 1, custom_message="features and labels differ in batch"
    )
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise ValueError(f"features: needs a float dtype, got {features.dtype}")
    _check_classes("labels", labels, memory.shape[0], low=-1)
    memory, features = jax.lax.stop_gradient((memory, features))
    if mode == "none":
        return memory
    rows = l2_normalize(jnp.asarray(features, jnp.float32))
    if mode == "ema":
        old = jnp.asarray(memory, jnp.float32)[jnp.clip(labels, 0, memory.shape[0] - 1)]
        rows = l2_normalize(decay * old + (1 - decay) * rows)
    return set_rows(memory, rows, labels)


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
      labels: [B] integers in [0, C).
      memory: [C, D] float of unit rows, zero for a class without images (relation 0 on both sides); a constant. With
        `axis_name` the rows of this shard.
      neighbors: [C, K] integers in [0, C), numbered over all shards; the rows of this shard.
      axis_name: mesh axis of the shards, inside `jax.shard_map`.
      block: neighbors at a time, ≥ 1; static.

    Returns:
      (student's, teacher's), each [B, K] float32 in [-1, 1].

    Raises:
      AssertionError, ValueError: shapes disagree, another dtype, an empty batch, or (where the values are known) a label or a
        neighbor that is no class, or a memory whose rows are neither of unit length nor zero.
      UserError: sizes of student and teacher differ, or K > C - 1.
    """
    check_pair(student, teacher, name="embeddings")
    chex.assert_rank([memory, neighbors], 2, custom_message="memory must be [C, D] and neighbors [C, K]")
    chex.assert_equal_shape_prefix(
        [memory, neighbors], 1, custom_message="memory and neighbors differ in classes"
    )
    chex.assert_equal_shape_suffix(
        [memory, teacher], 1, custom_message="memory and embeddings differ in size"
    )
    chex.assert_equal_shape_prefix(
        [student, labels], 1, custom_message="embeddings and labels differ in batch"
    )
    classes = memory.shape[0] if axis_name is None else None
    _check_classes("labels", labels, classes)
    _check_classes("neighbors", neighbors.reshape(-1), classes)
    count = neighbors.shape[1]
    if classes is not None and not 1 <= count <= classes - 1:
        raise UserError(
            f"neighbors: needs at least 1 and at most the {classes - 1} other classes, got {count}"
        )
    if block < 1:
        raise ValueError(f"block: needs at least 1, got {block}")
    if not isinstance(memory, jax.core.Tracer):
        lengths = np.linalg.norm(np.asarray(memory, np.float32), axis=1)
        wrong = (np.abs(lengths - 1) > 1e-2) & (lengths > 0)
        if wrong.any():
            raise ValueError(f"memory: needs rows of length 1 or 0, got {lengths[wrong][0]:g}")
    teacher, memory = jax.lax.stop_gradient((teacher, memory))
    both = jnp.stack([l2_normalize(x.astype(jnp.float32)) for x in (student, teacher)], axis=1)
    numbers = _sum(_rows(neighbors, labels, axis_name), axis_name)

    @jax.checkpoint
    def products(numbers):  # [B, k] -> [B, 2, k]
        rows = _rows(memory, numbers, axis_name).astype(jnp.float32)
        return jnp.einsum("bsd,bkd->bsk", both, rows, precision=jax.lax.Precision.HIGHEST)

    if count <= block:
        relations = products(numbers)
    else:
        parts = -(-count // block)
        padded = jnp.pad(numbers, ((0, 0), (0, parts * block - count)))
        relations = jax.lax.map(products, padded.reshape(-1, parts, block).swapaxes(0, 1))
        relations = jnp.moveaxis(relations, 0, 2).reshape(*both.shape[:2], parts * block)[..., :count]
    relations = _sum(relations, axis_name)
    return relations[:, 0], relations[:, 1]


def relation_aware_loss(
    student_relations: jax.Array,
    teacher_relations: jax.Array,
    *,
    norm: Norm = "l1",
    where: jax.Array | None = None,
) -> jax.Array:
    """Relation-aware distillation: how far the student's relations are from the teacher's (our reading of arXiv:2204.05502).

        L_i = 1/K Σ_k |r^s_ik - r^t_ik|        with norm "l2" the square instead

    The gradient of |x| at 0 is taken as 0, and what rounding may leave of 0 (10⁻⁶) counts as 0. For relations with unit vectors
    L_i ≤ ‖n(f^s_i) - n(f^t_i)‖ (l1). It is a mean over the relations: a sum in its place would want a weight
    K times smaller.

    Args:
      student_relations: [B, K] float.
      teacher_relations: [B, K] float; a constant.
      norm: "l1" or "l2" (design).
      where: [B, K] bool, the relations that count; all by default. An example without any has loss 0.

    Returns:
      [B] float32, unreduced.

    Raises:
      AssertionError, ValueError: shapes disagree, another dtype or an empty batch.
      UserError: an unknown norm.
    """
    if norm not in ("l1", "l2"):
        raise UserError(f"norm: needs 'l1' or 'l2', got {norm!r}")
    check_pair(student_relations, teacher_relations, name="relations")
    student, teacher = (x.astype(jnp.float32) for x in (student_relations, teacher_relations))
    difference = student - jax.lax.stop_gradient(teacher)
    if norm == "l1":
        # |x| as x sign(x), whose derivative at 0 is 0: that of `jnp.abs` is 1 there. Two roundings of one cosine are equal.
        sign = jnp.where(jnp.abs(difference) > _ROUNDING, jnp.sign(difference), 0.0)
        difference = jax.lax.stop_gradient(sign) * difference
    else:
        difference = jnp.square(difference)
    if where is None:
        return difference.mean(axis=1)
    chex.assert_equal_shape([difference, where], custom_message="where must be [B, K]")
    return jnp.sum(jnp.where(where, difference, 0.0), axis=1) / jnp.maximum(where.sum(axis=1), 1)


def coupleface_loss(
    student: jax.Array,
    teacher: jax.Array,
    relations: tuple[jax.Array, jax.Array] | None = None,
    *,
    relation_weight: float = 5.0,
    norm: Norm = "l1",
) -> tuple[jax.Array, CoupleFaceTerms]:
    """CoupleFace: feature consistency and mined mutual relations (our reading of arXiv:2204.05502).

        L_i = 1 - cos(f^s_i, f^t_i) + α 1/K Σ_k |r^s_ik - r^t_ik|

    Two students at the same distance from the teacher may differ in the second term.

    Args:
      student: [B, D] float.
      teacher: [B, D] float, of the same images; a constant.
      relations: r^s and r^t, each [B, K] float, usually of `mined_relations` with the memory of teacher features; r^t is a
        constant. None is the first term alone.
      relation_weight: α ≥ 0; the paper's is unknown to us, 5 is ours for the mean over K (design).
      norm: as `relation_aware_loss`.

    Returns:
      ([B] float32, unreduced; its terms, each [B]).

    Raises:
      AssertionError, ValueError, UserError: as `mimic_loss` and `relation_aware_loss`; a negative weight.
    """
    check_range("relation_weight", relation_weight, 0.0, float("inf"))
    consistency = 0.5 * mimic_loss(student, teacher, unit=True)
    if relations is None:
        return consistency, CoupleFaceTerms(consistency, jnp.zeros_like(consistency))
    relation = relation_aware_loss(*relations, norm=norm)
    return consistency + relation_weight * relation, CoupleFaceTerms(consistency, relation)
