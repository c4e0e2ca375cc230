"""AS-ViT's budget: the mean work of the images of a batch is pulled to a target (arXiv:2209.13802)."""

import jax
import jax.numpy as jnp

from jaxface.checks import Positive, check_number


def budget_loss(macs: jax.Array, target: float, *, axis_name: str | None = None) -> jax.Array:
    """How far the mean work of a batch is from a target (arXiv:2209.13802).

        L = | mean_b F_b - F | / F

    In the paper the difference is in 10⁹ multiply-accumulates: a weight of 2 there is one of 2 F here, and means the same for
    networks of any size.

    Args:
      macs: F_b [B] float, work of each image in any unit, differentiable in the tokens that it kept.
      target: F > 0 in that unit.
      axis_name: mapped axis over which the batch is spread.

    Returns:
      [] float32 ≥ 0; the sign of its gradient is that of the excess.

    Raises:
      ValueError: an empty batch, or other than one row. UserError: a target out of its range.

    Example:
      >>> float(budget_loss(jnp.array([3.0, 5.0]), 2.0))
      1.0
    """
    check_number("target", target, Positive)
    if macs.ndim != 1 or not macs.shape[0]:
        raise ValueError(f"macs: needs [B] with B >= 1, got {macs.shape}")
    mean = jnp.mean(macs.astype(jnp.float32))
    mean = mean if axis_name is None else jax.lax.pmean(mean, axis_name)
    return jnp.abs(mean / target - 1)
