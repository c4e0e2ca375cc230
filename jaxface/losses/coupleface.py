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

from jaxface.checks import NonNegative, check_number
from jaxface.errors import UserError
from jaxface.losses.distillation import check_pair, mimic_loss

Norm = Literal["l1", "l2"]


class CoupleFaceTerms(NamedTuple):
    """The two parts of `coupleface_loss` before their weights; each [B] float32."""

    consistency: jax.Array  # 1 - cos(f_s, f_t)
    relation: jax.Array  # mean over the K relations of the difference


_ROUNDING = 1e-6  # of a cosine in float32


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

    Example:
      >>> [round(x, 3) for x in relation_aware_loss(jnp.array([[0.5, 0.1]]), jnp.array([[0.3, 0.1]])).tolist()]
      [0.1]
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

    Example:
      >>> student, teacher = jnp.array([[0.0, 2.0]]), jnp.array([[1.0, 0.0]])
      >>> loss, terms = coupleface_loss(student, teacher, (jnp.array([[0.5, 0.1]]), jnp.array([[0.3, 0.1]])))
      >>> [round(x, 3) for x in loss.tolist()]  # 1 - cos = 1, and five times the mean difference 0.1
      [1.5]
    """
    check_number("relation_weight", relation_weight, NonNegative)
    consistency = 0.5 * mimic_loss(student, teacher, unit=True)
    if relations is None:
        return consistency, CoupleFaceTerms(consistency, jnp.zeros_like(consistency))
    relation = relation_aware_loss(*relations, norm=norm)
    return consistency + relation_weight * relation, CoupleFaceTerms(consistency, relation)
