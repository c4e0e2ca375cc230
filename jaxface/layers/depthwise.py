"""Depthwise convolution that is fast on a CPU too.

Methods: ddc, dcp_nas, intern
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxface.errors import UserError


class DepthwiseConv(nn.Module):
    """One filter per channel, without bias.

        y[b, h, w, c] = Σ_ij x[b, s·h + i·d - p, s·w + j·d - p, c] · kernel[i, j, 0, c]

    with stride s, dilation d and zero padding p on each side. [B, H, W, C] ->
    [B, (H + 2p - K) // s + 1, (W + 2p - K) // s + 1, C]
    for K = (k - 1)·d + 1.

    On a CPU this is a sum of shifted images, which vectorizes over channels: measured 2 to 40 times faster than XLA's
    grouped convolution, and up to 250 times for the input gradient of a strided one. Other devices get the convolution
    (design); `implementation` of a call is that of `depthwise_conv`.

    Example:
      >>> layer, x = DepthwiseConv((3, 3), stride=2, padding=1), jnp.zeros((1, 12, 12, 8))
      >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape
      (1, 6, 6, 8)
    """

    kernel_size: tuple[int, int]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, x: jax.Array, *, implementation: str | None = None) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, 1, x.shape[-1]), self.param_dtype)
        return depthwise_conv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            implementation=implementation,
        )


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    implementation: str | None = None,
    forward_mode: bool = False,
) -> jax.Array:
    """The function of `DepthwiseConv`: x [B, H, W, C], kernel [k, k, 1, C], of one dtype, which the result has.

    Args:
      implementation: "convolution", "shifted_sum" (which has a reverse-mode derivative only, no `jax.jvp`), or None: the sum
        on a CPU and the convolution elsewhere, decided when the program is lowered. Exporters to formats that have no such
        decision ask for the convolution.
      forward_mode: whether `jax.jvp` is taken of it; the sum on a CPU is then one that JAX differentiates in both ways, whose
        gradient by the kernel is slower.

    Raises:
      UserError: another implementation.

    Example:
      >>> jax.eval_shape(depthwise_conv, jnp.zeros((1, 12, 12, 8)), jnp.zeros((3, 3, 1, 8))).shape
      (1, 10, 10, 8)
    """
    if implementation not in (None, *_IMPLEMENTATIONS):
        raise UserError(
            f"implementation: needs {' or '.join(_IMPLEMENTATIONS)}, or None; got {implementation!r}"
        )
    if x.shape[1:3] == kernel.shape[:2] and not padding and dilation == 1:
        # The kernel covers the plane, as the head of MobileFaceNet does: a weighted mean, not a convolution.
        return jnp.einsum("bhwc,hwc->bc", x, kernel[:, :, 0])[:, None, None]
    functions = {
        name: partial(function, stride, padding, dilation) for name, function in _IMPLEMENTATIONS.items()
    }
    if implementation is not None:
        return functions[implementation](x, kernel)
    on_cpu = partial(_sum_of_taps, stride, padding, dilation) if forward_mode else functions["shifted_sum"]
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=functions["convolution"])


def _grouped_convolution(
    stride: int, padding: int, dilation: int, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _shifted_sum(stride: int, padding: int, dilation: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _sum_of_taps(stride, padding, dilation, x, kernel)


def _sum_of_taps(stride, padding, dilation, x, kernel):
    rows, columns = kernel.shape[:2]
    x = _pad(x, padding)
    height = (x.shape[1] - (rows - 1) * dilation - 1) // stride * stride + 1
    width = (x.shape[2] - (columns - 1) * dilation - 1) // stride * stride + 1
    return sum(
        x[:, i : i + height : stride, j : j + width : stride] * kernel[i // dilation, j // dilation, 0]
        for i in range(0, rows * dilation, dilation)
        for j in range(0, columns * dilation, dilation)
    )


def _pad(x, padding):
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _forward(stride, padding, dilation, x, kernel):
    return _sum_of_taps(stride, padding, dilation, x, kernel), (x, kernel)


def _backward(stride, padding, dilation, saved, g):
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: _sum_of_taps(stride, padding, dilation, x, kernel), x)(g)
    padded = _pad(x, padding)
    height, width = ((n - 1) * stride + 1 for n in g.shape[1:3])
    columns = kernel.shape[1]
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def one_tap(_, tap):
        # A loop, not k² slices side by side: XLA fuses those into a pass over the image that is several times slower.
        corner = (0, tap // columns * dilation, tap % columns * dilation, 0)
        window = lax.dynamic_slice(padded, corner, (x.shape[0], height, width, x.shape[3]))
        return None, jnp.sum(window[:, ::stride, ::stride] * g, axis=(0, 1, 2), dtype=wide)

    _, taps = lax.scan(one_tap, None, jnp.arange(kernel.shape[0] * columns))
    return dx, taps.reshape(kernel.shape).astype(kernel.dtype)


_shifted_sum.defvjp(_forward, _backward)

_IMPLEMENTATIONS = {"convolution": _grouped_convolution, "shifted_sum": _shifted_sum}
