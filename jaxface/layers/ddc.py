"""Depthwise convolution with large or dilated filters, and the layers that are made of it (arXiv:2104.14125).

Methods: ddc
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.context import CONTEXTS, DilatedContext
from jaxface.layers.depthwise import DepthwiseConv, depthwise_conv
from jaxface.layers.norm import BatchNorm
from pallas_kernels import dilated_conv

_he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def depthwise_dilated(x: jax.Array, w: jax.Array, *, dilation: int = 1, stride: int = 1) -> jax.Array:
    """One filter per channel, its taps `dilation` pixels apart, zero padding of (k - 1)/2 · dilation on every side.

        v[n, i, j, c] = Σ_ml w[m, l, c] · x[n, s·i + (m - h)·d, s·j + (l - h)·d, c],   h = (k - 1)/2

    A pixel of v sees (k - 1)·d + 1 pixels of x in both directions, at k² weights of a channel whatever d is.

    Args:
      x: [N, H, W, C] floats; zero outside, and maybe smaller than the filter.
      w: [k, k, C], k odd, of x's dtype.
      dilation: d ≥ 1.
      stride: s ≥ 1; 1 where d > 1.

    Returns:
      [N, ⌈H/s⌉, ⌈W/s⌉, C] of x's dtype. On a CPU it has a reverse-mode derivative only.

    Raises:
      UserError: an even filter, one of other channels, d < 1, or a stride together with a dilation.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.zeros((1, 1, 7, 1)).at[0, 0, 3, 0].set(1.0)
      >>> depthwise_dilated(x, jnp.ones((3, 3, 1)), dilation=2)[0, 0, :, 0].tolist()
      [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    """
    if w.ndim != 3 or w.shape[0] != w.shape[1]:
        raise UserError(f"w: needs [k, k, C], got {list(w.shape)}")
    if x.ndim != 4 or x.shape[-1] != w.shape[-1]:
        raise UserError(f"x: needs [N, H, W, {w.shape[-1]}] for these filters, got {list(x.shape)}")
    check_filter(w.shape[0], dilation, stride)
    padding = w.shape[0] // 2 * dilation
    return depthwise_conv(x, w[:, :, None], stride=stride, padding=padding, dilation=dilation)


def check_filter(kernel_size: int, dilation: int = 1, stride: int = 1) -> None:
    """Raises UserError for an even filter, a dilation below 1, or a stride together with a dilation."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UserError(
            f"kernel_size: needs an odd number, so that the filter has a center; got {kernel_size}"
        )
    if dilation < 1:
        raise UserError(f"dilation: needs at least 1, got {dilation}")
    if stride < 1 or (stride > 1 and dilation > 1):
        raise UserError(f"stride: needs 1, or more where dilation is 1; got {stride} at dilation {dilation}")


class DDCLayer(nn.Module):
    """Depthwise dilated convolution, then a pointwise one (DDC, arXiv:2104.14125).

        y = φ(BN(φ(BN(w ⋆_d x)) · P))

    with filters w [k, k, C] as `depthwise_dilated` and P [C, features]: k²·C + C·features weights where a dense layer has
    k²·C·features. d = 1 is the depthwise-separable unit of MobileNet; with k > 3 as well, the large-kernel one. φ(u) is u where
    positive, elsewhere `negative_slope`·u.

    Args:
      features: channels out.
      kernel_size: k, odd.
      dilation: d ≥ 1.
      stride: of the depthwise convolution, 1 where d > 1.
      norm: batch normalization after each of the two.
      middle: normalization (where `norm`) and φ between them; without, the layer is linear up to its end.
      activate: φ at the end.
      negative_slope: of φ: 0 for ReLU, 0.1 for the leaky one of RetinaFace, 1 for none.

    x [N, H, W, C] -> [N, ⌈H/stride⌉, ⌈W/stride⌉, features] of `dtype`; no biases but those of the normalizations. Both
    convolutions start from He's normal initialization (fan in). `fuse_ddc` makes one pass of it for inference.

    Raises:
      UserError: an even filter, d < 1, or a stride together with a dilation.

    Example:
      >>> layer, x = DDCLayer(16, dilation=2), jnp.zeros((1, 12, 12, 8))
      >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape
      (1, 12, 12, 16)
    """

    features: int
    kernel_size: int = 3
    dilation: int = 1
    stride: int = 1
    norm: bool = True
    middle: bool = True
    activate: bool = True
    negative_slope: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        check_filter(self.kernel_size, self.dilation, self.stride)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = DepthwiseConv(
            (self.kernel_size, self.kernel_size),
            self.stride,
            self.kernel_size // 2 * self.dilation,
            self.dilation,
            kernel_init=_he,
            name="depthwise",
            **types,
        )(x)
        if self.middle:
            if self.norm:
                x = BatchNorm(name="depthwise_norm", **types)(x, train=train)
            x = _phi(x, self.negative_slope)
        x = nn.Dense(self.features, use_bias=False, kernel_init=_he, name="pointwise", **types)(x)
        if self.norm:
            x = BatchNorm(name="pointwise_norm", **types)(x, train=train)
        return _phi(x, self.negative_slope) if self.activate else x


LargeKernelDepthwiseSeparable = functools.partial(DDCLayer, kernel_size=5)
"""A depthwise-separable layer with 5x5 filters."""

CONTEXTS.update(
    {
        "ddc": functools.partial(
            DilatedContext, convolution=functools.partial(DDCLayer, activate=False, negative_slope=0.1)
        )
    }
)


def _phi(x: jax.Array, slope: float) -> jax.Array:
    return nn.relu(x) if slope == 0 else x if slope == 1 else nn.leaky_relu(x, slope)


class FusedDDC(flax.struct.PyTreeNode):
    """A `DDCLayer` for inference: both normalizations folded, one pass of `pallas_kernels.depthwise_conv`.

        y = φ(φ(w ⋆_d x + α) · P + β)

    Attributes:
      depthwise: w [k, k, C].
      middle_bias: α [C].
      pointwise: P [C, O].
      bias: β [O].
      dilation, stride: of w.
      middle_slope: of the first φ below zero; 1 for none.
      slope: of the second.
    """

    depthwise: jax.Array
    middle_bias: jax.Array
    pointwise: jax.Array
    bias: jax.Array
    dilation: int = flax.struct.field(pytree_node=False)
    stride: int = flax.struct.field(pytree_node=False)
    middle_slope: float = flax.struct.field(pytree_node=False)
    slope: float = flax.struct.field(pytree_node=False)

    def __call__(self, x: jax.Array, *, implementation: str | None = None) -> jax.Array:
        """x [N, H, W, C] float32 or bfloat16 -> [N, ⌈H/stride⌉, ⌈W/stride⌉, O]; `implementation` as the kernels take it."""
        middle: dict[str, Any] = {"activation": "prelu", "slope": self.middle_slope}
        if self.middle_slope in (0.0, 1.0):
            middle = {"activation": "relu"} if self.middle_slope == 0 else {}
        y = dilated_conv.depthwise_conv(
            x,
            self.depthwise,
            self.pointwise,
            dilation=self.dilation,
            stride=self.stride,
            mid_bias=self.middle_bias,
            bias=self.bias,
            implementation=implementation,
            **middle,
        )
        return _phi(y, self.slope)


def fuse_ddc(layer: DDCLayer, variables: Mapping) -> FusedDDC:
    """The deployment form of a trained layer.

        BN(v) = γ·(v - μ)/√(σ² + ε) + δ  →  filters · γ/√(σ² + ε), bias δ - μ·γ/√(σ² + ε)

    Args:
      layer: of stride 1 or 2.
      variables: its {"params", "batch_stats"}.

    Returns:
      A layer with the outputs of `layer.apply(variables, x, train=False)`.

    Example:
      >>> layer, x = DDCLayer(4), jnp.ones((1, 4, 4, 2))
      >>> variables = layer.init(jax.random.key(0), x)
      >>> bool(jnp.allclose(fuse_ddc(layer, variables)(x), layer.apply(variables, x), atol=1e-5))
      True
    """
    params, stats = variables["params"], variables.get("batch_stats", {})

    def folded(name):
        if name not in params:
            return 1.0, 0.0
        scale = params[name]["scale"] / jnp.sqrt(stats[name]["var"] + BatchNorm.epsilon)
        return scale, params[name]["bias"] - stats[name]["mean"] * scale

    (first, middle_bias), (second, bias) = folded("depthwise_norm"), folded("pointwise_norm")
    depthwise, pointwise = params["depthwise"]["kernel"][:, :, 0], params["pointwise"]["kernel"]
    return FusedDDC(
        depthwise=depthwise * first,
        middle_bias=jnp.zeros(depthwise.shape[-1]) + middle_bias,
        pointwise=pointwise * second,
        bias=jnp.zeros(pointwise.shape[-1]) + bias,
        dilation=layer.dilation,
        stride=layer.stride,
        middle_slope=float(layer.negative_slope) if layer.middle else 1.0,
        slope=float(layer.negative_slope) if layer.activate else 1.0,
    )
