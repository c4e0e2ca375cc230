"""What a quantized vision transformer learns from its float teacher (Q-ViT, arXiv:2210.06707): who attends to whom, and classes.

The similarity patterns that are compared are N × N, one per head and example. The loss makes none of them: its norms are those of
products of d × d.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxface.checks import Fraction, check_number
from jaxface.errors import UserError
from jaxface.layers.qvit import information_rectification
from jaxface.losses.distillation import check_pair
from jaxface.losses.softmax import cross_entropy

EPSILON = 1e-6  # beside the norm of a pattern
TINY = 1e-12  # inside the root of a distance

Operands = tuple[jax.Array, jax.Array]
"""Queries and keys of a layer, [B, N, h, d] each."""


def similarity_pattern(x: jax.Array, *, eps: float = EPSILON) -> jax.Array:
    """How alike the tokens of each head are: G = S / (‖S‖_F + ε), S = x xᵀ (arXiv:2210.06707, equation 12).

    Multiplying x by a number or a rotation changes nothing.

    Args:
      x: [..., N, d] float, queries or keys.
      eps: ε.

    Returns:
      [..., N, N] of norm 1; `dgd_loss` compares such matrices without making them.

    Example:
      >>> [round(v, 3) for v in similarity_pattern(jnp.diag(jnp.array([1.0, 2.0]))).diagonal().tolist()]
      [0.243, 0.97]
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    similarity = x @ jnp.swapaxes(x, -1, -2)
    return similarity / (jnp.linalg.norm(similarity, axis=(-2, -1), keepdims=True) + eps)


def dgd_loss(
    student: Sequence[Operands],
    teacher: Sequence[Operands],
    *,
    standardize_teacher: bool = False,
    reduction: Literal["mean", "sum"] = "mean",
    norm_scope: Literal["sample_head", "tensor"] = "sample_head",
    center_tokens: Literal[False, "keys", "both"] = False,
) -> jax.Array:
    """Distribution-guided distillation (arXiv:2210.06707, equation 13): the student's patterns are the teacher's.

        L = Σ_l Σ_h mean_B ( ‖G_q^T - G_q‖_F + ‖G_k^T - G_k‖_F ),    G = S / ‖S‖_F,   S = x xᵀ

    With a = x / √‖S‖ of the student, b of the teacher, u = a + b and w = a - b, the distance of two patterns is
    ‖a aᵀ - b bᵀ‖² = ½ (⟨uᵀu, wᵀw⟩ + tr (uᵀw)²): O(N d²), nothing of N × N is stored, and nothing cancels where the two are one.

    Args:
      student: of every layer the queries and keys before their quantizers, rectified where the student does that.
      teacher: of the same layers; constants.
      standardize_teacher: rectify the teacher's with γ = 1, β = 0 first. A rectified student cannot reach a raw teacher's
        pattern, whose diagonal is not constant.
      reduction: "mean" over the 2 Σ_l h_l terms, or "sum", as printed.
      norm_scope: what has norm 1: the pattern of each head of each example, or all of a layer's.
      center_tokens: take out the mean over the tokens first, of the "keys", whose softmax does not see it, or of "both".

    Returns:
      [] float32, from 0; the mean is at most √2 for patterns of norm 1.

    Raises:
      UserError: as many layers, heads, examples or tokens are not in both, or an unknown option.

    Example:
      >>> x, t = (jnp.diag(jnp.array(v))[None, :, None] for v in ([1.0, 2.0], [1.0, 1.0]))
      >>> round(float(dgd_loss([(x, t)], [(t, t)], reduction="sum")), 4)
      0.5339
    """
    _check_kind("reduction", reduction, ("mean", "sum"))
    _check_kind("norm_scope", norm_scope, ("sample_head", "tensor"))
    _check_kind("center_tokens", center_tokens, (False, "keys", "both"))
    if not len(student) == len(teacher) > 0:
        raise UserError(
            f"teacher: needs as many layers as the student, {len(student)}, and at least one, got {len(teacher)}"
        )
    total, terms = jnp.zeros((), jnp.float32), 0
    for layer, pairs in enumerate(zip(student, teacher, strict=True)):
        for name, x, t in zip(("queries", "keys"), *pairs, strict=True):
            chex.assert_rank([x, t], 4, custom_message=f"{name} of layer {layer + 1} must be [B, N, h, d]")
            if x.shape[:3] != t.shape[:3]:
                raise UserError(
                    f"teacher: needs the examples, tokens and heads of the student's {name} of layer {layer + 1}, "
                    f"{x.shape[:3]}, got {t.shape[:3]}"
                )
            t = jax.lax.stop_gradient(t)
            if standardize_teacher:
                t = information_rectification(t.astype(jnp.float32))
            centered = center_tokens == "both" or (center_tokens == "keys" and name == "keys")
            # One layer's products at a time: the backward pass makes them again.
            distance = jax.checkpoint(
                functools.partial(_pattern_distance, centered=centered, whole=norm_scope == "tensor")
            )
            total += distance(x, t)
            terms += 1 if norm_scope == "tensor" else x.shape[2]
    return total / terms if reduction == "mean" else total


def _pattern_distance(x, t, *, centered, whole):
    """Σ_h mean_B of the distance of two patterns; one distance where the `whole` tensor has norm 1."""
    spread = max(x.shape[-1], t.shape[-1])
    a, b = (_unit(y, spread, centered, whole) for y in (x, t))
    u, w = a + b, a - b
    uu, ww, uw = _gram(u, u), _gram(w, w), _gram(u, w)
    squared = 0.5 * jnp.sum(uu * ww + uw * jnp.swapaxes(uw, -1, -2), axis=(-2, -1))  # [B, h]
    if whole:
        return jnp.sqrt(jnp.maximum(squared.sum(), 0) + TINY)
    return jnp.sqrt(jnp.maximum(squared, 0) + TINY).mean(axis=0).sum()


def _unit(y, spread, centered, whole):
    """y / √‖y yᵀ‖, padded with channels of 0, which change no pattern."""
    y = y.astype(jnp.float32)
    y = y - y.mean(axis=1, keepdims=True) if centered else y
    squares = jnp.sum(jnp.square(_gram(y, y)), axis=(-2, -1))  # of ‖y yᵀ‖, which is ‖yᵀ y‖
    squares = jnp.broadcast_to(squares.sum(), squares.shape) if whole else squares
    # Inside the root, so that a head of zeros has a gradient.
    size = jnp.sqrt(squares + TINY**2) + EPSILON
    y = y * jax.lax.rsqrt(size)[:, None, :, None]
    return jnp.pad(y, ((0, 0), (0, 0), (0, 0), (0, spread - y.shape[-1])))


def _gram(a, b):
    return jnp.einsum("bnhd,bnhe->bhde", a, b, precision=jax.lax.Precision.HIGHEST)


def hard_distillation_loss(
    class_logits: jax.Array,
    distillation_logits: jax.Array,
    labels: jax.Array,
    teacher_logits: jax.Array,
    *,
    alpha: float = 0.5,
) -> jax.Array:
    """Hard distillation of DeiT (arXiv:2012.12877, equation 3): one head learns the labels, one the teacher's top classes.

        L_i = (1 - α) CE(z_i, y_i) + α CE(z'_i, argmax_j t_ij)

    A network with one head gives it twice.

    Args:
      class_logits: z [B, C] float.
      distillation_logits: z' [B, C] float.
      labels: y [B] integers.
      teacher_logits: t [B, C] float; a constant.
      alpha: α in [0, 1].

    Returns:
      [B] float32 in [0, ∞), unreduced.

    Raises:
      AssertionError, ValueError, UserError: shapes, types or labels as `cross_entropy`; α outside [0, 1].

    Example:
      >>> z, d = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([[0.5, 1.0, 0.0]])
      >>> round(float(hard_distillation_loss(z, d, jnp.array([0]), jnp.array([[0.0, 9.0, 0.0]]))[0]), 6)
      0.425058
    """
    check_number("alpha", alpha, Fraction)
    check_pair(class_logits, distillation_logits, name="logits")
    check_pair(distillation_logits, teacher_logits, name="logits")
    top = jnp.argmax(jax.lax.stop_gradient(teacher_logits), axis=1)
    return (1 - alpha) * cross_entropy(class_logits, labels) + alpha * cross_entropy(distillation_logits, top)


def _check_kind(name, value, kinds):
    if value not in kinds:
        raise UserError(f"{name}: needs one of {', '.join(map(repr, kinds))}, got {value!r}")
