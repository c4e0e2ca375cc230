"""Batch normalization whose statistics span the whole global batch, however the step is parallelized.

Methods: cassod, ddc, intern, lifelong
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface import axes
from jaxface.errors import UserError


class OneExample(UserError):
    """Batch statistics of a single value, which is its own mean: the output says nothing of the input."""


class BatchNorm(nn.Module):
    """Batch normalization over every axis but the last (arXiv:1502.03167).

        y = scale · (x - mean) / sqrt(var + epsilon) + bias

    In training mean and variance are those of the *global* batch: under `jit` over a mesh the array is global already;
    where the axis `axes.DATA` is bound (`pmap`, `shard_map`) they are averaged over its replicas. They are computed in
    float32 whatever `dtype` is, in one pass (var = E[x²] - E[x]²: inputs whose mean is hundreds of deviations away lose
    digits). The running averages in `batch_stats` follow

        average <- momentum · average + (1 - momentum) · batch value

    with the biased (divide by N) variance, where PyTorch stores the unbiased one.

    Input and output: [..., C]; the output has `dtype`. `use_scale=False` fixes the scale at 1 (the last normalization of
    a face embedding, whose length the cosine head discards anyway); `scale_init` starts it, zeros for one that ends a residual
    branch.

    Raises:
      OneExample: training with one value per channel, as a batch of one makes of [B, C]: every output would be the bias.

    Example:
      >>> layer, x = BatchNorm(), jnp.zeros((4, 8))
      >>> y, variables = jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x, train=False), x)
      >>> y.shape, sorted(variables)
      ((4, 8), ['batch_stats', 'params'])
    """

    use_scale: bool = True
    use_bias: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    def setup(self):
        self.norm = nn.BatchNorm(
            # Asked again at every trace: the same module serves jit and pmap.
            axis_name=axes.DATA if axes.bound(axes.DATA) else None,
            use_scale=self.use_scale,
            use_bias=self.use_bias,
            scale_init=self.scale_init,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        # Parameters appear under this module's own name, without a level for the wrapped one.
        nn.share_scope(self, self.norm)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if train and not self.is_initializing():
            replicas = jax.lax.axis_size(axes.DATA) if axes.bound(axes.DATA) else 1
            if replicas * math.prod(x.shape[:-1]) < 2:
                raise OneExample(
                    f"batch: batch normalization of {self.name or 'x'} {x.shape} needs at least 2 values of a channel in "
                    "training, got 1; give it 2 examples or more at a time"
                )
        return self.norm(x, use_running_average=not train)


class MaskedBatchNorm(nn.Module):
    """`BatchNorm` in training over some of the examples alone: the statistics of one task in a batch of several.

    The mean and the variance are those of the rows in `where`, over all replicas where `axes.DATA` is bound; every row is
    normalized by them. Parameters and running averages have the names and meanings of `BatchNorm`.

    Input and output: [B, ..., C]; `where` [B] bool, all rows unless given. Where no row is in it, the running averages take the
    place of the statistics and stay as they are.

    Example:
      >>> layer, x = MaskedBatchNorm(), jnp.array([[1.0], [3.0], [100.0]])
      >>> variables = layer.init(jax.random.key(0), x, train=False)
      >>> y, _ = layer.apply(variables, x, train=True, where=jnp.array([True, True, False]), mutable=["batch_stats"])
      >>> y[:2, 0].round(3).tolist()
      [-1.0, 1.0]
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, where: jax.Array | None = None) -> jax.Array:
        features = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (features,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (features,), self.param_dtype)
        averages = [
            self.variable("batch_stats", name, jnp.full, (features,), value, jnp.float32)
            for name, value in (("mean", 0.0), ("var", 1.0))
        ]
        mean, var = (average.value for average in averages)
        if train:
            wide = x.astype(jnp.float32)
            rows = jnp.ones(x.shape[0], bool) if where is None else where
            rows = rows.reshape(-1, *(1,) * (x.ndim - 1)).astype(jnp.float32)
            over = tuple(range(x.ndim - 1))
            # Means of replicas with other numbers of rows: the sums are averaged, and so is the number.
            count = axes.mean(rows.sum()) * math.prod(x.shape[1:-1])
            shares = axes.mean((jnp.sum(wide * rows, over), jnp.sum(jnp.square(wide) * rows, over)))
            first, second = (share / jnp.maximum(count, 1e-6) for share in shares)
            statistics = first, jnp.maximum(second - jnp.square(first), 0.0)
            mean, var = (
                jnp.where(count > 0, new, old) for new, old in zip(statistics, (mean, var), strict=True)
            )
            if not self.is_initializing():
                for average, new in zip(averages, (mean, var), strict=True):
                    average.value = self.momentum * average.value + (1 - self.momentum) * new
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)


class FrozenBatchNorm(nn.Module):
    """Batch normalization as a constant, as detectors keep that of their pretrained backbones.

        y = scale · (x - mean) / sqrt(var + epsilon) + bias

    All four are in `batch_stats`, where nothing trains or updates them, so that they are no parameters.

    Input and output: [..., C]; the output has `dtype`. `train` changes nothing.

    Example:
      >>> layer, x = FrozenBatchNorm(epsilon=0.0), jnp.full((2, 3), 5.0)
      >>> y, variables = layer.init_with_output(jax.random.key(0), x, train=True)
      >>> float(y[0, 0]), sorted(variables), sorted(variables["batch_stats"])
      (5.0, ['batch_stats'], ['bias', 'mean', 'scale', 'var'])
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        del train

        def constant(name, value):
            return self.variable("batch_stats", name, jnp.full, (x.shape[-1],), value, jnp.float32).value

        scale, bias = constant("scale", 1.0), constant("bias", 0.0)
        mean, var = constant("mean", 0.0), constant("var", 1.0)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)
