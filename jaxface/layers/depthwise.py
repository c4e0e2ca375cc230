"""Depthwise convolution that is fast on a CPU too."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class DepthwiseConv(nn.Module):
    """One filter per channel, without bias.

        y[b, h, w, c] = Σ_ij x[b, s·h + i - p, s·w + j - p, c] · kernel[i, j, 0, c]

    with stride s and zero padding p on each side. [B, H, W, C] -> [B, (H + 2p - k) // s + 1, (W + 2p - k) // s + 1, C].

    On a CPU this is a sum of shifted images, which vectorizes over channels: measured 2 to 40 times faster than XLA's
    grouped convolution, and up to 250 times for the input gradient of a strided one. Other devices get the convolution
    (design).
    """

    kernel_size: tuple[int, int]
    stride: int = 1
    padding: int = 0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, 1, x.shape[-1]), self.param_dtype)
        return depthwise_conv(
            x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, padding=self.padding
        )


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """The function of `DepthwiseConv`: x [B, H, W, C], kernel [k, k, 1, C], of one dtype, which the result has.

    On a CPU it has a reverse-mode derivative only (no `jax.jvp`).
    """
    if x.shape[1:3] == kernel.shape[:2] and not padding:
        # The kernel covers the plane, as the head of MobileFaceNet does: a weighted mean, not a convolution.
        return jnp.einsum("bhwc,hwc->bc", x, kernel[:, :, 0])[:, None, None]
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_shifted_sum, stride, padding),
        default=partial(_grouped_convolution, stride, padding),
    )


def _grouped_convolution(stride: int, padding: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _shifted_sum(stride: int, padding: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _sum_of_taps(stride, padding, x, kernel)


def _sum_of_taps(stride, padding, x, kernel):
    rows, columns = kernel.shape[:2]
    x = _pad(x, padding)
    height = (x.shape[1] - rows) // stride * stride + 1
    width = (x.shape[2] - columns) // stride * stride + 1
    return sum(
        x[:, i : i + height : stride, j : j + width : stride] * kernel[i, j, 0]
        for i in range(rows)
        for j in range(columns)
    )


def _pad(x, padding):
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _forward(stride, padding, x, kernel):
    return _sum_of_taps(stride, padding, x, kernel), (x, kernel)


def _backward(stride, padding, saved, g):
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: _sum_of_taps(stride, padding, x, kernel), x)(g)
    padded = _pad(x, padding)
    height, width = ((n - 1) * stride + 1 for n in g.shape[1:3])
    columns = kernel.shape[1]

    def one_tap(_, tap):
        # A loop, not k² slices side by side: XLA fuses those into a pass over the image that is several times slower.
        window = lax.dynamic_slice(
            padded, (0, tap // columns, tap % columns, 0), (x.shape[0], height, width, x.shape[3])
        )
        return None, jnp.sum(window[:, ::stride, ::stride] * g, axis=(0, 1, 2), dtype=jnp.float32)

    _, taps = lax.scan(one_tap, None, jnp.arange(kernel.shape[0] * columns))
    return dx, taps.reshape(kernel.shape).astype(kernel.dtype)


_shifted_sum.defvjp(_forward, _backward)
