"""Class prototypes and cosines: the head of every recognition network.

Methods: acw, cckd, cloak, coupleface, gabn, ida, lrfr, nclpp, sface
"""

import jax
import jax.numpy as jnp


def l2_normalize(x: jax.Array, *, axis: int = -1, eps: float = 1e-12) -> jax.Array:
    """x / ‖x‖ along `axis`, computed as x · rsqrt(max(Σ x², eps)); the zero vector stays zero.

    The derivative of a direction grows as 1 / ‖x‖. Below ‖x‖ = 10⁻⁴ it is scaled by ‖x‖² / 10⁻⁸, and at √eps it is 0: a dead
    example must not get a gradient a million times that of its neighbors.

    Args:
      x: float array.
      axis: the axis of length one afterwards.
      eps: lower bound of the squared norm.

    Returns:
      An array like `x`; the norm itself is computed in float32.
    """
    share = jax.lax.stop_gradient(_squares(x, axis))
    share = jnp.where(share > eps, jnp.minimum(share / 1e-8, 1.0), 0.0)
    dtype, x = (
        x.dtype,
        share * x + jax.lax.stop_gradient((1 - share) * x),
    )  # the value stays, the derivative is scaled
    return (x * jax.lax.rsqrt(jnp.maximum(_squares(x, axis), eps))).astype(dtype)


def _squares(x: jax.Array, axis: int) -> jax.Array:
    return jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axis, keepdims=True)


def cosines(embeddings: jax.Array, prototypes: jax.Array) -> jax.Array:
    """Cosine of every embedding with every class prototype.

        c_ij = ⟨x_i / ‖x_i‖, w_j / ‖w_j‖⟩

    Args:
      embeddings: [B, D] float.
      prototypes: [C, D] float.

    Returns:
      [B, C] float32; within rounding of [-1, 1].

    Raises:
      ValueError: ranks are not 2 or the embedding sizes differ.
    """
    if embeddings.ndim != 2 or prototypes.ndim != 2 or embeddings.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"embeddings, prototypes: need shapes [B, D] and [C, D], got {embeddings.shape} and {prototypes.shape}"
        )
    # True float32 products: TPUs and recent GPUs round float32 operands by default, which a margin of 1e-2 rad would feel.
    return jax.lax.dot_general(
        l2_normalize(embeddings),
        l2_normalize(prototypes),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def init_prototypes(rng: jax.Array, classes: int, size: int, *, std: float = 0.01) -> jax.Array:
    """[classes, size] float32 prototypes from normal(0, std), of length about std √size.

    A loss sees directions alone, but the length counts under plain SGD: a gradient by a longer prototype is shorter, and turns
    it by a smaller angle.
    """
    return std * jax.random.normal(rng, (classes, size), jnp.float32)
