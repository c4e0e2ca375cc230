"""What guides a generator by a few downstream images: statistics of features, nearness, diversity (for arXiv:2111.12386).

The source says that its generation is guided by downstream images, and nothing that could be read says how: these are ours.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxface.checks import Positive, check_number
from jaxface.errors import UserError

_FLOOR = 1e-2  # of the mean deviation over channels, below which a channel counts as this wide


class FeatureStatistics(NamedTuple):
    """Mean and standard deviation of every channel, [D] float32 each."""

    mean: jax.Array
    deviation: jax.Array


def feature_statistics(features: jax.Array) -> FeatureStatistics:
    """Mean and standard deviation over all axes but the last, √(var + 1e-5).

    Args:
      features: [..., D] float, at least one row.

    Raises:
      UserError: no row.

    Example:
      >>> feature_statistics(jnp.array([[0.0], [2.0]])).mean.tolist()
      [1.0]
    """
    rows = features.reshape(-1, features.shape[-1]).astype(jnp.float32)
    if not len(rows):
        raise UserError("data: statistics need at least one image, got none")
    return FeatureStatistics(rows.mean(0), jnp.sqrt(rows.var(0) + 1e-5))


def statistics_loss(features: jax.Array, target: FeatureStatistics) -> jax.Array:
    """How far the features of a generated batch are, as a whole, from those of the data.

        L = mean_c ((μ_c - μ*_c) / sd*_c)² + mean_c (sd_c / sd*_c - 1)²

    The deviations are at least 0.01 of the mean sd* over channels, so that a channel that is constant in the data counts little,
    and nothing where it is constant in the batch too.

    Args:
      features: [B, ..., D] float of a batch, B ≥ 2.
      target: of the data (`feature_statistics`); a constant.

    Returns:
      [] float32 ≥ 0; 0 for a batch that is the data.

    Raises:
      UserError: one image alone. AssertionError: other channels.

    Example:
      >>> data = jnp.array([[0.0, 1.0], [2.0, 5.0]])
      >>> float(statistics_loss(data, feature_statistics(data)))
      0.0
    """
    if len(features) < 2:
        raise UserError(f"generated images: their statistics need at least 2 at a time, got {len(features)}")
    made = feature_statistics(features)
    chex.assert_equal_shape(
        [made.mean, target.mean], custom_message="features and statistics differ in channels"
    )
    target = jax.lax.stop_gradient(target)
    floor = _FLOOR * target.deviation.mean()
    width = jnp.maximum(target.deviation, floor)
    means = jnp.square((made.mean - target.mean) / width).mean()
    return means + jnp.square(jnp.maximum(made.deviation, floor) / width - 1).mean()


def proximity_loss(images: jax.Array, guides: jax.Array) -> jax.Array:
    """Squared distance of generated images to those that guide them, mean over pixels, where white is 1 and black 0.

        L_i = mean ( (g_i - x_i) / 2 )²

    Args:
      images, guides: [B, H, W, C] float in [-1, 1].

    Returns:
      [B] float32 in [0, 1].

    Example:
      >>> proximity_loss(jnp.ones((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1))).tolist()
      [0.25]
    """
    chex.assert_equal_shape([images, guides], custom_message="images and their guides differ in shape")
    squares = jnp.square((images - guides).astype(jnp.float32)) / 4
    return squares.reshape(len(images), -1).mean(axis=1)


def mode_seeking_loss(images: jax.Array, latents: jax.Array, *, largest: float = 10.0) -> jax.Array:
    """What keeps generated images apart: the ratio of the distances of images and of latents (after arXiv:1903.05628).

        L = - mean_i min( mean |g_i - g_{i+1}| / (mean |z_i - z_{i+1}| + 1e-5), largest ),   i + 1 modulo B

    Without the bound there is no smallest value: two latents that meet would make it as small as one likes.

    Args:
      images: [B, H, W, C] float, B ≥ 2. latents: [B, ...] float they were made from. largest: > 0.

    Returns:
      [] float32 in [-largest, 0].

    Raises:
      UserError: one image alone, or a bound that is not positive.

    Example:
      >>> float(mode_seeking_loss(jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [0.0]])))
      -10.0
    """
    check_number("largest", largest, Positive)
    if len(images) < 2:
        raise UserError(f"generated images: their diversity needs at least 2 at a time, got {len(images)}")

    def apart(x):
        x = x.reshape(len(x), -1).astype(jnp.float32)
        return jnp.abs(x - jnp.roll(x, -1, axis=0)).mean(axis=1)

    return -jnp.minimum(apart(images) / (apart(latents) + 1e-5), largest).mean()
