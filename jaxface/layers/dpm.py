"""Heads that say how sure they are: a Gaussian code of features, and the variance that an image gives to a margin (DPM)."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError

LOGVAR_RANGE = 10.0
"""Logarithms of variances are clipped to ± this."""


class Gaussian(NamedTuple):
    """A diagonal Gaussian for every example, and what stands for it: its mean, or a sample of it; [B, D] float32 each."""

    mu: jax.Array
    logvar: jax.Array
    code: jax.Array


def sample_gaussian(key: jax.Array | None, mu: jax.Array, logvar: jax.Array) -> jax.Array:
    """One sample s = μ + exp(l / 2) ε with ε ~ N(0, I); gradients go into μ and l.

    Args:
      key: of the draw.
      mu: [B, D] float. logvar: [B, D] float.

    Returns:
      [B, D] float32.

    Raises:
      UserError: no key. ValueError: another rank or D.

    Example:
      >>> sample_gaussian(jax.random.key(0), jnp.ones((2, 3)), jnp.full((2, 3), -60.0)).tolist()
      [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    check_code(mu, logvar)
    if key is None:
        raise UserError("key: needs a random key to sample with, got none")
    mu, logvar = mu.astype(jnp.float32), logvar.astype(jnp.float32)
    return mu + jnp.exp(logvar / 2) * jax.random.normal(key, mu.shape)


def check_code(mu: jax.Array, logvar: jax.Array) -> None:
    """Raises ValueError unless both are [B, D]."""
    if mu.ndim != 2 or mu.shape != logvar.shape:
        raise ValueError(f"logvar: needs [B, D] as the means, {mu.shape}, got {logvar.shape}")


class GaussianHead(nn.Module):
    """μ = h W_μ + b_μ and l = clip(h W_l + b_l, ±10), the logarithm of σ²; b_l starts at -2.

    Args:
      dim: D.

    features [B, C] float -> `Gaussian` [B, D]. Its code is μ where `deterministic`, else a sample, for which the call needs a key
    `rngs={"sample": key}`.

    Raises:
      UserError: no key to sample with.
    """

    dim: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, deterministic: bool = True) -> Gaussian:
        features = features.astype(jnp.float32)
        mu = nn.Dense(self.dim, param_dtype=self.param_dtype, name="mean")(features)
        start = nn.initializers.constant(-2.0)
        spread = nn.Dense(self.dim, bias_init=start, param_dtype=self.param_dtype, name="log_variance")(
            features
        )
        logvar = jnp.clip(spread, -LOGVAR_RANGE, LOGVAR_RANGE)
        if deterministic:
            return Gaussian(mu, logvar, mu)
        key = self.make_rng("sample") if self.has_rng("sample") else None
        return Gaussian(mu, logvar, sample_gaussian(key, mu, logvar))


class QualityHead(nn.Module):
    """g of `losses.quality_variance`: Dense, ReLU, Dense to one number, whose bias starts at -1.

    Args:
      hidden: features between.

    features [B, C] float, standardized -> [B] float32.
    """

    hidden: int = 24
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(self.hidden, param_dtype=self.param_dtype, name="hidden")(features))
        start = nn.initializers.constant(-1.0)
        return nn.Dense(1, bias_init=start, param_dtype=self.param_dtype, name="output")(x)[:, 0]
