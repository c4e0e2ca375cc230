"""Networks that tell from an image alone how crowded its neighborhood is (arXiv:2103.01559; our reading).

Methods: ida
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.activation import PReLU
from jaxface.layers.norm import BatchNorm


class LIDEstimator(nn.Module):
    """Local discrepancy from an embedding: Dense, ReLU, Dense.

    Args:
      hidden: units of the hidden layer.
      initial: output at the start, where the last weights are 0 (design); the mean of the training targets.
      bounded: end in tanh, whose range is that of a mean cosine. `initial` must then be in (-1, 1).

    embeddings [B, D] float, of unit length -> [B] float32.

    Example:
      >>> jax.eval_shape(LIDEstimator().init_with_output, jax.random.key(0), jnp.zeros((2, 16)))[0].shape
      (2,)
    """

    hidden: int = 256
    initial: float = 0.0
    bounded: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embeddings: jax.Array) -> jax.Array:
        x = nn.Dense(self.hidden, dtype=self.dtype, param_dtype=self.param_dtype, name="hidden1")(embeddings)
        return _head(self, nn.relu(x))


class FeatureMapLIDEstimator(nn.Module):
    """Local discrepancy from the last feature map of a network: BN, mean over the plane, Dense, PReLU, Dense.

    Args:
      hidden: units of the hidden layer.
      initial, bounded: as in `LIDEstimator`.

    features [B, H, W, C] float -> [B] float32; training needs `mutable=["batch_stats"]`.

    Example:
      >>> features = jnp.zeros((2, 4, 4, 16))
      >>> jax.eval_shape(FeatureMapLIDEstimator().init_with_output, jax.random.key(0), features)[0].shape
      (2,)
    """

    hidden: int = 128
    initial: float = 0.0
    bounded: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        x = BatchNorm(dtype=self.dtype, name="norm")(features, train=train).mean((1, 2))
        x = nn.Dense(self.hidden, dtype=self.dtype, param_dtype=self.param_dtype, name="hidden1")(x)
        return _head(self, PReLU(dtype=self.dtype, name="activation")(x))


def _head(module: LIDEstimator | FeatureMapLIDEstimator, x: jax.Array) -> jax.Array:
    if module.bounded and not -1 < module.initial < 1:
        raise UserError(
            f"initial: needs a value in (-1, 1) where the output is bounded, got {module.initial}"
        )
    start = jnp.arctanh(module.initial) if module.bounded else module.initial
    # In float32 whatever the dtype: the differences that matter are those that bfloat16 drops.
    out = nn.Dense(
        1,
        dtype=jnp.float32,
        param_dtype=module.param_dtype,
        kernel_init=nn.initializers.zeros,
        bias_init=nn.initializers.constant(start),
        name="head_dense",
    )(x)[:, 0]
    return jnp.tanh(out) if module.bounded else out
