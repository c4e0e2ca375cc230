"""The l2 normalization and its gradient, kept outside the matrix products.

    cos_ij = u_i v_j (x_i · W_j),    u_i = 1/‖x_i‖,  v_j = 1/‖W_j‖

The products take the raw rows, so bfloat16 rows enter them without a second rounding, and with H_ij = u_i v_j ∂L/∂cos_ij,
the gradient by the raw product, both gradients are one product and a projection:

    ∂L/∂x_i = (H W)_i - u_i² (x_i · (H W)_i) x_i,    ∂L/∂W_j = (Hᵀ x)_j - v_j² (W_j · (Hᵀ x)_j) W_j

Below ‖row‖ = 10⁻⁴, where the derivative of a direction grows without end, both are scaled by ‖row‖² / 10⁻⁸; at the
floor they are 0.
"""

import jax
import jax.numpy as jnp

FLOOR = 1e-12
"""Least squared norm: below it rows are divided by 1e-6, so the zero row has cosine 0."""
FADING = 1e-8
"""Squared norm below which the gradient fades."""


def inverse_norms(rows: jax.Array) -> jax.Array:
    """[..., D] -> [..., 1] float32, 1/max(‖row‖, 1e-6)."""
    rows = rows.astype(jnp.float32)
    return jax.lax.rsqrt(jnp.maximum(jnp.sum(rows * rows, axis=-1, keepdims=True), FLOOR))


def through_norms(gradient: jax.Array, rows: jax.Array, inverse: jax.Array) -> jax.Array:
    """The gradient by `rows` from the one by the raw product; each [..., D], `inverse` [..., 1]."""
    rows = rows.astype(jnp.float32)
    along = inverse * inverse * jnp.sum(gradient * rows, axis=-1, keepdims=True)
    share = jnp.minimum(1.0 / (FADING * inverse * inverse), 1.0)
    return jnp.where(inverse < 0.999 * FLOOR**-0.5, share, 0.0) * (gradient - along * rows)
