"""What gives a student's feature maps the channels of its teacher's (arXiv:2112.04840); it is dropped after the training."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import AtLeast, check_number


class FeatureAdapter(nn.Module):
    """A linear map of the channels of every place, one for all levels: maps [..., Q_s] -> [..., features].

        φ(F) = F W + b

    `dtype` and `param_dtype` are as everywhere.

    Args:
      features: channels of the teacher's maps.

    Raises:
      UserError: fewer than one.

    Example:
      >>> import jax
      >>> adapter, level = FeatureAdapter(features=6), jnp.ones((1, 4, 4, 2))
      >>> adapter.apply(adapter.init(jax.random.key(0), level), level).shape
      (1, 4, 4, 6)
    """

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, level: jax.Array) -> jax.Array:
        check_number("features", self.features, AtLeast(1))
        return nn.Dense(self.features, dtype=self.dtype, param_dtype=self.param_dtype, name="linear")(level)
