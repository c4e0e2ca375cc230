"""Binary cross-entropy of what is where, cell by cell.

Methods: cassod
"""

import chex
import jax
import jax.numpy as jnp
import optax


def cell_loss(logits: jax.Array, cells: jax.Array, *, positive_weight: float = 11.0) -> jax.Array:
    """Weighted binary cross-entropy, the mean over the cells of each image.

        L = 1/(h w) Σ ( -w₊ y log σ(z) - (1 - y) log(1 - σ(z)) )

    Args:
      logits: z [B, h, w] float.
      cells: y [B, h, w], 1 where something is and 0 elsewhere; integers, booleans or floats.
      positive_weight: w₊ ≥ 0, against the many cells where nothing is.

    Returns:
      [B] float32.

    Raises:
      AssertionError: shapes disagree.

    Example:
      >>> import jax.numpy as jnp
      >>> losses = cell_loss(jnp.zeros((1, 1, 2)), jnp.array([[[1, 0]]]), positive_weight=3.0)
      >>> [round(x, 3) for x in losses.tolist()]
      [1.386]
    """
    chex.assert_rank(logits, 3)
    chex.assert_equal_shape([logits, cells])
    cells = cells.astype(jnp.float32)
    values = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), cells)
    return jnp.mean(values * (1 + (positive_weight - 1) * cells), axis=(1, 2))
