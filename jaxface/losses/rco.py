"""RCO: what is distilled along a teacher's route, and how hard the next stretch of it would be (arXiv:1904.09149)."""

import chex
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.losses.distillation import mimic_loss, soft_target_loss

_SMALLEST_HARDNESS = 1e-6  # of the present anchor, in a ratio: a student that copies it perfectly has 0


def hint_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Distance of the student's regressed feature to the teacher's (arXiv:1904.09149 names the form; the formula is recalled).

        L_i = ‖ r(h_i^s) - h_i^t ‖²      over all elements of an example

    Args:
      student: r(h^s), [B, ...] float: after the regressor r that gives it the teacher's shape.
      teacher: h^t, [B, ...] float of that shape; a constant.

    Returns:
      [B] float32, unreduced.

    Raises:
      UserError: the shapes differ.
      ValueError: no axis but the batch, an empty batch, or another dtype than a float one.

    Example:
      >>> hint_loss(jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.zeros((2, 2))).tolist()
      [5.0, 0.0]
    """
    if student.shape != teacher.shape:
        raise UserError(
            f"hints: need one shape for student and teacher, got {student.shape} and {teacher.shape}"
        )
    if student.ndim < 2 or 0 in student.shape:
        raise ValueError(f"hints: need shape [B, ...] with B >= 1, got {student.shape}")
    return mimic_loss(*(x.reshape(x.shape[0], -1) for x in (student, teacher)))


def hardness(
    student_logits: jax.Array,
    anchor_logits: jax.Array,
    *,
    temperature: float = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """How far a student is from an anchor of its teacher's route (arXiv:1904.09149; recalled).

        H = mean_x KL( softmax(z_c(x) / T) ‖ softmax(z_s(x) / T) )

    Args:
      student_logits: z_s [N, K] float of held-out examples, in evaluation mode and without augmentation.
      anchor_logits: z_c [N, K] float of the same examples.
      temperature: T > 0; 1 is our choice.
      where: [N] bool, examples that count; all unless given. 0 if none does.

    Returns:
      [] float32, 0 where both agree.

    Raises:
      AssertionError, ValueError, UserError: as `soft_target_loss`.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 2.0]])
      >>> float(hardness(logits, logits)), float(hardness(jnp.zeros((2, 2)), logits)) > 0.1
      (0.0, True)
    """
    values = soft_target_loss(student_logits, anchor_logits, temperature=temperature) / temperature**2
    return values.mean() if where is None else jnp.sum(values * where) / jnp.maximum(jnp.sum(where), 1)


def hardness_ratios(values: jax.Array, current: int) -> jax.Array:
    """How much harder than its own anchor i the others would be for a student (arXiv:1904.09149; recalled).

        r_ij = H_ij / max(H_ii, 1e-6)

    Args:
      values: H_i [M] float, `hardness` of every anchor for the student that was trained on anchor i.
      current: i in [0, M).

    Returns:
      [M] float32; near 1 an anchor is about as easy to imitate as i. The floor of H_ii is our reading.

    Raises:
      AssertionError: the values are not [M].
      ValueError: `current` is no anchor.

    Example:
      >>> [round(x, 2) for x in hardness_ratios(jnp.array([0.1, 0.2, 0.4]), 0).tolist()]
      [1.0, 2.0, 4.0]
    """
    chex.assert_rank(values, 1, custom_message="values must be [M]")
    if not 0 <= current < len(values):
        raise ValueError(f"current: needs an anchor in [0, {len(values)}), got {current}")
    values = jnp.asarray(values, jnp.float32)
    return values / jnp.maximum(values[current], _SMALLEST_HARDNESS)
