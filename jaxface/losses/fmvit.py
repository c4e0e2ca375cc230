"""FM-ViT: every branch tells live faces from attacks (arXiv:2305.03277)."""

import chex
import jax
import jax.numpy as jnp
import optax


def branch_loss(logits: jax.Array, live: jax.Array, available: jax.Array | None = None) -> jax.Array:
    """Binary cross-entropy of every branch that is available, summed over branches.

        L_b = Σ_m a_m (log(1 + exp o_mb) - y_b o_mb)

    Args:
      logits: [M, B] float, o, above 0 for live.
      live: [B] bool or 0/1, y.
      available: [M] or [B, M] bool, a; all unless given.

    Returns:
      [B] float32; gradients are at most 1 per logit.

    Raises:
      AssertionError: ranks or batch sizes disagree.

    Example:
      >>> round(float(branch_loss(jnp.zeros((2, 1)), jnp.array([1]), jnp.array([True, False]))[0]), 4)
      0.6931
    """
    live = jnp.asarray(live)
    chex.assert_rank([logits, live], [2, 1], custom_message="logits must be [M, B] and live [B]")
    chex.assert_equal(logits.shape[1], live.shape[0])
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), live.astype(jnp.float32)[None])
    if available is not None:
        there = available[:, None] if available.ndim == 1 else available.T
        losses = jnp.where(there, losses, 0.0)
    return losses.sum(axis=0)
