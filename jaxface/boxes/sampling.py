"""A sample of anchors or proposals to train on, with static shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxface.checks import AtLeast, Fraction, check_number


class Sample(NamedTuple):
    """Chosen rows, the positives first; each [num]."""

    indices: jax.Array  # int32 into the rows; 0 where not valid
    valid: jax.Array  # bool; False where there were not enough rows
    positive: jax.Array  # bool; False where not valid


def sample_rois(
    key: jax.Array | None,
    assigned: jax.Array,
    *,
    num: int = 512,
    positive_fraction: float = 0.25,
    priority: jax.Array | None = None,
) -> Sample:
    """At most num · fraction positives, the rest negatives, at random or the hardest first (arXiv:1506.01497; SSH's mining).

    With fewer positives more negatives are taken; with too few of both the sample is smaller.

    Args:
      key: of `jax.random.key`; None where `priority` is given.
      assigned: [N] integers as `max_iou_assign` returns: above 0 positive, 0 negative, -1 never taken.
      num: slots. positive_fraction: in [0, 1]; the product is rounded down.
      priority: [N] float instead of random numbers, the largest first, of equal ones the first; finite.

    Returns:
      The sample; `vmap` it over images.

    Raises:
      ValueError: shapes, or neither or both of key and priority. UserError: a number out of range.

    Example:
      >>> assigned = jnp.array([1, 0, -1, 0])
      >>> sample = sample_rois(None, assigned, num=2, positive_fraction=0.5, priority=jnp.arange(4.0))
      >>> sample_mask(sample, 4).tolist()  # the positive one, and the negative one that comes first
      [True, False, False, True]
    """
    check_number("num", num, AtLeast(1))
    check_number("positive_fraction", positive_fraction, Fraction)
    if (key is None) == (priority is None):
        raise ValueError("key, priority: needs one of them")
    if assigned.ndim != 1 or (priority is not None and priority.shape != assigned.shape):
        raise ValueError(f"assigned: needs [N], and priority its shape, got {assigned.shape}")
    if priority is None:
        assert key is not None  # one of the two is given
        priority = jax.random.uniform(key, assigned.shape)
    priority = jax.lax.stop_gradient(priority.astype(jnp.float32))
    most = int(num * positive_fraction)
    positives, is_positive = _best(priority, assigned > 0, most)
    negatives, is_negative = _best(priority, assigned == 0, num)
    taken = jnp.sum(is_positive)
    # Slot i holds positive i, or negative i - taken.
    slot = jnp.arange(num)
    positive = slot < taken
    shifted = jnp.clip(slot - taken, 0, num - 1)
    valid = positive | is_negative[shifted]
    first = positives[jnp.minimum(slot, most - 1)] if most else jnp.zeros(num, jnp.int32)
    indices = jnp.where(positive, first, negatives[shifted])
    return Sample(jnp.where(valid, indices, 0).astype(jnp.int32), valid, positive)


def sample_mask(sample: Sample, length: int) -> jax.Array:
    """[length] bool: which rows are in the sample.

    Example:
      >>> sample = sample_rois(None, jnp.array([1, 0, 0]), num=2, positive_fraction=0.5, priority=jnp.arange(3.0))
      >>> sample_mask(sample, 3).tolist()
      [True, False, True]
    """
    return jnp.zeros(length, bool).at[sample.indices].max(sample.valid)


def _best(priority: jax.Array, mask: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Indices [count] of the largest priorities in the mask, and whether there are that many."""
    values, indices = jax.lax.top_k(jnp.where(mask, priority, -jnp.inf), min(count, mask.size))
    padding = count - values.size
    return jnp.pad(indices, (0, padding)), jnp.pad(values > -jnp.inf, (0, padding))
