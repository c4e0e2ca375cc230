"""Losses between a teacher and a student that several methods share: soft targets (arXiv:1503.02531) and features.

What the teacher gives is a constant: no gradient reaches it.

Methods: cckd, coupleface, dcp_nas, ota, qvit, rbonn, rco, sparsevit
"""

import chex
import jax
import jax.numpy as jnp

from jaxface.checks import Positive, check_number
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize


def check_pair(student: jax.Array, teacher: jax.Array, *, name: str, same_size: bool = True) -> None:
    """Checks features or logits of the same examples: [B, D_s] and [B, D_t] float, B ≥ 1.

    Raises:
      AssertionError: ranks or batch sizes disagree.
      ValueError: an empty batch or another dtype than a float one.
      UserError: D_s ≠ D_t where they must be the same.
    """
    chex.assert_rank([student, teacher], 2, custom_message=f"{name} must be [B, D] for student and teacher")
    chex.assert_equal_shape_prefix([student, teacher], 1, custom_message=f"{name} differ in batch")
    if student.shape[0] == 0:
        raise ValueError(f"{name}: needs at least one row, got shape {student.shape}")
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (student, teacher)):
        raise ValueError(f"{name}: needs a float dtype, got {student.dtype} and {teacher.dtype}")
    if same_size and student.shape[1] != teacher.shape[1]:
        raise UserError(
            f"{name}: needs one size for student and teacher, got {student.shape[1]} and {teacher.shape[1]}"
        )


def soft_target_loss(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 4.0
) -> jax.Array:
    """Distillation of soft targets (Hinton et al., arXiv:1503.02531).

        L_i = T² KL( softmax(z_t / T) ‖ softmax(z_s / T) ),        ∂L_i/∂z_s = T (p_s - p_t)

    Args:
      student_logits: [B, K] float.
      teacher_logits: [B, K] float; a constant.
      temperature: T > 0.

    Returns:
      [B] float32 in [0, ∞), unreduced.

    Raises:
      AssertionError, ValueError, UserError: as `check_pair`; a temperature that is not positive.

    Example:
      >>> teacher = jnp.array([[2.0, 0.0, -1.0]])
      >>> float(soft_target_loss(teacher + 5.0, teacher)[0])  # a constant beside the logits changes nothing
      0.0
      >>> float(soft_target_loss(-teacher, teacher)[0]) > 1
      True
    """
    check_pair(student_logits, teacher_logits, name="logits")
    check_number("temperature", temperature, Positive)
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    student, teacher = (
        jax.nn.log_softmax(z.astype(jnp.float32) / temperature, axis=-1)
        for z in (student_logits, teacher_logits)
    )
    return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def mimic_loss(student: jax.Array, teacher: jax.Array, *, unit: bool = False) -> jax.Array:
    """Distance of the student's embedding to the teacher's.

        L_i = ‖ f_i^s - f_i^t ‖²,   with `unit` of the normalized rows, where it is 2 (1 - cos(f_i^s, f_i^t))

    Args:
      student: [B, D] float.
      teacher: [B, D] float; a constant.
      unit: normalize both first; a zero row stays zero and has a finite gradient.

    Returns:
      [B] float32, unreduced.

    Raises:
      AssertionError, ValueError, UserError: as `check_pair`.

    Example:
      >>> student, teacher = jnp.array([[0.0, 2.0]]), jnp.array([[0.0, 1.0]])
      >>> mimic_loss(student, teacher).tolist(), mimic_loss(student, teacher, unit=True).tolist()
      ([1.0], [0.0])
    """
    check_pair(student, teacher, name="embeddings")
    student, teacher = (x.astype(jnp.float32) for x in (student, jax.lax.stop_gradient(teacher)))
    if unit:
        student, teacher = l2_normalize(student), l2_normalize(teacher)
    return jnp.sum(jnp.square(student - teacher), axis=-1)
