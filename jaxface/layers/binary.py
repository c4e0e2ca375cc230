"""Layers whose weights and inputs are signs: estimators of the sign's gradient, scales, convolution and matrix product.

Forward every product is of ±1; backward the gradient passes the signs by a straight-through estimator. A layer here has the
training form, on real arrays; `jaxface.models.binary.to_packed` turns trained ones into packed bits.

Methods: rbonn, bamsprod, dcp_nas
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxface.errors import UserError

Estimator = Literal["clip", "approx_sign", "identity"]
ESTIMATORS: tuple[str, ...] = Estimator.__args__
Scale = Literal["none", "mean_abs", "xnor", "learned"]
SCALES: tuple[str, ...] = Scale.__args__


def approx_sign(x: jax.Array) -> jax.Array:
    """The piecewise quadratic that stands for the sign in the backward pass of Bi-Real Net (arXiv:1808.00278).

        F(x) = -1 (x < -1),  2x + x² (-1 <= x < 0),  2x - x² (0 <= x < 1),  1 (x >= 1);   F'(x) = max(2 - 2|x|, 0)

    Args:
      x: floats of any shape.

    Returns:
      F(x), of x's shape and type.

    Example:
      >>> approx_sign(jnp.array([-1.5, -0.5, 0.25, 1.0])).tolist()
      [-1.0, -0.75, 0.4375, 1.0]
    """
    x = jnp.clip(x, -1, 1)
    return x * (2 - jnp.abs(x))


def sign_slope(x: jax.Array, estimator: Estimator = "approx_sign") -> jax.Array:
    """What an estimator takes for the derivative of the sign: 1{|x| <= 1} (clip), max(2 - 2|x|, 0) (approx_sign), 1 (identity).

    Raises:
      UserError: an unknown estimator.
    """
    check_kind("estimator", estimator, ESTIMATORS)
    if estimator == "clip":
        return (jnp.abs(x) <= 1).astype(x.dtype)
    if estimator == "approx_sign":
        return jnp.maximum(2 - 2 * jnp.abs(x), 0)
    return jnp.ones_like(x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def sign(x: jax.Array, estimator: Estimator = "approx_sign") -> jax.Array:
    """Sign with a straight-through gradient: +1 where x >= 0, else -1; differentiates as `sign_slope`.

    Args:
      x: floats of any shape; a NaN gives -1.
      estimator: of the derivative: clip, approx_sign or identity.

    Returns:
      ±1, of x's shape and type.

    Raises:
      UserError: an unknown estimator.

    Example:
      >>> sign(jnp.array([-0.5, 0.0, 2.0])).tolist()
      [-1.0, 1.0, 1.0]
      >>> jax.grad(lambda x: sign(x, "clip"))(0.5).item()
      1.0
    """
    check_kind("estimator", estimator, ESTIMATORS)
    return jnp.where(x >= 0, 1, -1).astype(x.dtype)


@sign.defjvp
def _sign_jvp(estimator, primals, tangents):
    (x,), (dx,) = primals, tangents
    return sign(x, estimator), sign_slope(x, estimator) * dx


def mean_abs_scale(kernel: jax.Array) -> jax.Array:
    """α_o = mean |w_o| over all axes but the last: the best scale of sgn(w) in the least squares (arXiv:1603.05279).

    Args:
      kernel: [..., O] latent weights.

    Returns:
      [O] ≥ 0, through which no gradient flows.
    """
    return lax.stop_gradient(jnp.mean(jnp.abs(kernel), axis=tuple(range(kernel.ndim - 1))))


def uniform_init(limit: float = 1.0) -> Callable:
    """Initializer of latent weights: uniform on [-limit, limit]."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class ChannelBias(nn.Module):
    """y = x + b with one b per channel, at 0 at the start; before a sign, -b is its learned threshold (arXiv:2003.03488).

    Input and output: [..., C]; the parameter `bias` is [C].

    Example:
      >>> layer, x = ChannelBias(), jnp.zeros((2, 16))
      >>> jax.eval_shape(layer.init, jax.random.key(0), x)["params"]["bias"].shape
      (16,)
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        return x.astype(self.dtype) + bias.astype(self.dtype)


class BinaryConv(nn.Module):
    """Convolution of signs with signs.

        y = α_o · Σ sgn(x) · sgn(w),   and · K with "xnor",   K = mean over the window of mean_c |x|

    What is padded is the sign, with 0: a tap outside adds nothing. Weights learn through the clipped estimator, 1{|w| <= 1}.

    Args:
      features: O, output channels.
      kernel_size: (kh, kw).
      strides: of rows and columns.
      padding: ((top, bottom), (left, right)), "SAME" or "VALID"; half the kernel on every side unless given.
      scale: α: 1 ("none"); mean |w_o| without a gradient ("mean_abs", and "xnor"); or a parameter `scale` [O] that starts
        there ("learned").
      estimator: of the gradient of sgn(x).
      weight_estimator: of the gradient of sgn(w).
      kernel_init: of the latent weights; normal with variance 1 / fan_in unless given.
      real_weights: y = Σ sgn(x) · w instead, the first of two stages of training, which binarizes activations alone.

    x [B, H, W, C] -> [B, Ho, Wo, O]; the parameter `kernel` is [kh, kw, C, O].

    Raises:
      UserError: an unknown scale or estimator, or an input that is not [B, H, W, C].

    Example:
      >>> layer, x = BinaryConv(8), jnp.zeros((1, 6, 6, 4))
      >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape
      (1, 6, 6, 8)
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: str | Sequence[tuple[int, int]] | None = None
    scale: Scale = "mean_abs"
    estimator: Estimator = "approx_sign"
    weight_estimator: Estimator = "clip"
    kernel_init: Callable = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    real_weights: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        del train
        check_kind("scale", self.scale, SCALES)
        check_images(x)
        x = x.astype(self.dtype)
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        padding = half_padding(self.kernel_size) if self.padding is None else self.padding
        if self.real_weights:
            return convolve(sign(x, self.estimator), kernel.astype(self.dtype), self.strides, padding)
        weights = sign(kernel, self.weight_estimator).astype(self.dtype)
        y = convolve(sign(x, self.estimator), weights, self.strides, padding)
        if self.scale == "xnor":
            taps = self.kernel_size[0] * self.kernel_size[1]
            box = jnp.full((*self.kernel_size, 1, 1), 1 / taps, self.dtype)
            y = y * convolve(jnp.mean(jnp.abs(x), axis=-1, keepdims=True), box, self.strides, padding)
        return y * _scale_of(self, kernel).astype(self.dtype)

    def deployed(self, params: Mapping) -> tuple[jax.Array, jax.Array]:
        """Latent weights and scales α [O] of this layer's parameters, for packing.

        Raises:
          UserError: real weights, or a scale that depends on the input ("xnor").
        """
        if self.real_weights or self.scale == "xnor":
            given = "real_weights" if self.real_weights else "scale='xnor'"
            raise UserError(f"conv: needs weights of signs and a scale per channel to pack, got {given}")
        kernel = params["kernel"]
        if self.scale == "learned":
            return kernel, params["scale"]
        ones = jnp.ones(self.features, kernel.dtype)
        return kernel, mean_abs_scale(kernel) if self.scale == "mean_abs" else ones


class BinaryDense(nn.Module):
    """Matrix product of signs with signs, y = α_o · Σ_c sgn(x_c) · sgn(w_co), and · mean_c |x_c| with "xnor".

    Fields as `BinaryConv`. x [..., C] -> [..., O]; the parameter `kernel` is [C, O].

    Raises:
      UserError: an unknown scale or estimator.

    Example:
      >>> layer, x = BinaryDense(8), jnp.zeros((2, 16))
      >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape
      (2, 8)
    """

    features: int
    scale: Scale = "mean_abs"
    estimator: Estimator = "approx_sign"
    weight_estimator: Estimator = "clip"
    kernel_init: Callable = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        del train
        check_kind("scale", self.scale, SCALES)
        x = x.astype(self.dtype)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        y = sign(x, self.estimator) @ sign(kernel, self.weight_estimator).astype(self.dtype)
        if self.scale == "xnor":
            y = y * jnp.mean(jnp.abs(x), axis=-1, keepdims=True)
        return y * _scale_of(self, kernel).astype(self.dtype)


def _scale_of(module: nn.Module, kernel: jax.Array) -> jax.Array:
    if module.scale == "none":
        return jnp.ones(module.features, kernel.dtype)
    if module.scale == "learned":
        return module.param("scale", lambda _: mean_abs_scale(kernel))
    return mean_abs_scale(kernel)


def convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str | Sequence[tuple[int, int]]
) -> jax.Array:
    """Convolution [B, H, W, C] with [kh, kw, C, O], sums in float32; exact below 2²⁴ products of ±1."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=dimensions)


def half_padding(kernel_size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Half the kernel on every side."""
    height, width = (size // 2 for size in kernel_size)
    return (height, height), (width, width)


def check_kind(name: str, value: str, kinds: Sequence[str]) -> None:
    """Raises UserError where `value` is none of the kinds."""
    if value not in kinds:
        raise UserError(f"{name}: needs one of {', '.join(kinds)}, got {value!r}")


def check_images(x: jax.Array) -> None:
    """Raises UserError where x is not [B, H, W, C]."""
    if x.ndim != 4:
        raise UserError(f"x: needs [B, H, W, C], got {x.shape}")
