"""Convolutions whose maps are pooled over groups of channels before anything is stored (Condensation-Net, arXiv:2104.14124).

R filters share one stored map: z [.., M·R] → max over each R neighbors → y [.., M]. The maps z are virtual: for inference the
maximum is taken while they are computed, so that R times the filters need no more memory for feature maps.

Methods: condensation_net
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxface.checks import Positive, check_number
from jaxface.errors import UserError
from jaxface.hardware import ConvSpec
from jaxface.layers.binary import mean_abs_scale, sign
from jaxface.layers.norm import BatchNorm
from pallas_kernels import dilated_conv

Reduce = Literal["max", "min", "mean", "sum"]
REDUCTIONS: tuple[str, ...] = Reduce.__args__
_STEP, _LEVELS = (
    0.538,
    3,
)  # the half-wave quantizer of 2 bits: best in the mean square for max(x, 0) of a unit normal
_MOST_GROUPS = 127  # the winner is stored as int8


def cross_channel_pool(z: jax.Array, groups: int, reduce: Reduce = "max") -> jax.Array:
    """One map of every R neighboring ones.

        y[.., m] = max_{0 ≤ r < R} z[.., m·R + r]

    Args:
      z: [..., M·R] floats.
      groups: R, 1 to 127.
      reduce: max, min, mean or sum.

    Returns:
      [..., M]. Of equal members the first is the maximum (or minimum) and alone receives the gradient, which `jnp.max` would
      split. A NaN propagates; -inf loses to everything.

    Raises:
      UserError: R out of its range or no divisor of the channels, an unknown reduction, or integers, whose scale is unknown.

    Example:
      >>> cross_channel_pool(jnp.array([1.0, -2.0, 0.5, 3.0, 0.0, 0.0, -1.0, -1.0]), 2).tolist()
      [1.0, 3.0, 0.0, -1.0]
    """
    members = _members(z, groups)
    if reduce not in REDUCTIONS:
        raise UserError(f"reduce: needs one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    if reduce in ("mean", "sum"):
        return getattr(jnp, reduce)(members, axis=-1)
    pick = jnp.argmax if reduce == "max" else jnp.argmin
    picked = pick(members, axis=-1, keepdims=True) == jnp.arange(groups)
    return jnp.sum(
        jnp.where(picked, members, 0), axis=-1
    )  # its gradient is a mask, where a gather has a scatter


def cross_channel_argmax(z: jax.Array, groups: int) -> jax.Array:
    """Which of every R neighboring maps `cross_channel_pool` takes, the first of equals: [..., M·R] -> int8 [..., M] below R.

    Example:
      >>> cross_channel_argmax(jnp.array([1.0, -2.0, 0.5, 3.0, 0.0, 0.0, -1.0, -1.0]), 2).tolist()
      [0, 1, 0, 0]
    """
    return jnp.argmax(_members(z, groups), axis=-1).astype(jnp.int8)


def _members(z: jax.Array, groups: int) -> jax.Array:
    """[..., M, R]."""
    _check_groups(groups)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise UserError(f"z: needs floats, integers multiplied by their scale; got {z.dtype}")
    if z.shape[-1] % groups:
        raise UserError(f"groups: needs a divisor of the {z.shape[-1]} channels, got {groups}")
    return z.reshape(*z.shape[:-1], z.shape[-1] // groups, groups)


def _check_groups(groups: int) -> None:
    if not 1 <= groups <= _MOST_GROUPS:
        raise UserError(f"groups: needs a number from 1 to {_MOST_GROUPS}, got {groups}")


def condense(
    z: jax.Array,
    groups: int,
    *,
    reduce: Reduce = "max",
    negative_slope: float = 0.1,
    activate_after: bool = True,
) -> jax.Array:
    """Pooling over groups of channels and a leaky rectifier f, in either order.

        y = f(max_r z_r)        f(u) = u where u > 0, negative_slope · u elsewhere

    For max and min both orders are equal if f does not fall anywhere, and after the pooling it is applied to R times fewer
    numbers. For mean and sum they differ: after the pooling, the R filters are no more than one filter, their mean.

    Args:
      z: [..., M·R] floats.
      groups: R, 1 to 127.
      reduce: as `cross_channel_pool`.
      negative_slope: of f; 1 is no activation at all.
      activate_after: f after the pooling, else before it.

    Returns:
      [..., M].

    Raises:
      UserError: as `cross_channel_pool`; or f after a mean or a sum, or after a maximum with a slope below 0.

    Example:
      >>> condense(jnp.array([1.0, -2.0, -3.0, -4.0]), 2, negative_slope=0.5).tolist()
      [1.0, -1.5]
    """
    if activate_after and negative_slope != 1:
        if reduce in ("mean", "sum"):
            raise UserError(
                f"activate_after: needs False for reduce={reduce!r}, whose filters would amount to one; got True"
            )
        if negative_slope < 0:
            raise UserError(
                "negative_slope: needs at least 0 after the pooling, an activation that falls does not commute with it; "
                f"got {negative_slope}"
            )
    f = functools.partial(nn.leaky_relu, negative_slope=negative_slope)
    return (
        f(cross_channel_pool(z, groups, reduce))
        if activate_after
        else cross_channel_pool(f(z), groups, reduce)
    )


@functools.cache
def condensation_gain(groups: int, negative_slope: float = 0.1) -> float:
    """g² such that weights of variance g² / fan_in keep the second moment of the signal.

        g² = 1 / E[f(max_{r<R} z_r)²],   z_r ~ N(0, 1) independent,   fan_in = k²·C whatever R is

    He's 2 is g² for R = 1 and ReLU; with more members the maximum is larger, and the signal would grow with every layer.

    Args:
      groups: R ≥ 1.
      negative_slope: of the leaky rectifier f.

    Returns:
      1.980, 1.099 and 0.648 for R = 1, 2 and 4 at a slope of 0.1.

    Example:
      >>> [round(condensation_gain(groups), 3) for groups in (1, 2, 4)]
      [1.98, 1.099, 0.648]
    """
    _check_groups(groups)
    t = np.linspace(-12, 12, 24_001)
    density = np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    below = np.cumsum(density) * (t[1] - t[0])
    f = np.where(t > 0, t, negative_slope * t)
    return float(1 / np.sum(f**2 * groups * density * np.minimum(below, 1) ** (groups - 1) * (t[1] - t[0])))


def binary_weight(w: jax.Array) -> jax.Array:
    """Signs of the weights times the mean of |w| of each filter; straight-through gradient where |w| ≤ 1 (arXiv:1603.05279).

        b = α · sgn(w),   α_o = mean |w_o|,   ∂b/∂w ≈ α · 1{|w| ≤ 1}

    Args:
      w: [..., O] latent weights; sgn(0) = +1.

    Returns:
      [..., O] of w's dtype.

    Example:
      >>> binary_weight(jnp.array([[0.5], [-1.5]]))[:, 0].tolist()
      [1.0, -1.0]
    """
    return sign(w, "clip") * mean_abs_scale(w)


@jax.custom_vjp
def hwgq2(x: jax.Array) -> jax.Array:
    """Half-wave Gaussian quantizer of 2 bits (arXiv:1702.00953): what is positive becomes the nearest of 0.538, 1.076 and 1.614.

    All else becomes 0. The levels are the equidistant ones that are nearest, in the mean square, to max(x, 0) of a unit normal x,
    so it belongs behind a batch normalization. It does not fall anywhere, so it commutes with a maximum.

    Args:
      x: floats of any shape.

    Returns:
      Of x's shape and dtype; the gradient is 1 where 0 < x < 1.614, else 0.

    Example:
      >>> [round(x, 3) for x in hwgq2(jnp.array([-1.0, 0.0, 0.1, 0.9, 5.0])).tolist()]
      [0.0, 0.0, 0.538, 1.076, 1.614]
    """
    return jnp.where(x > 0, jnp.clip(jnp.rint(x / _STEP), 1, _LEVELS) * _STEP, 0).astype(x.dtype)


def _hwgq2_forward(x):
    return hwgq2(x), x


def _hwgq2_backward(x, g):
    return (jnp.where((x > 0) & (x < _LEVELS * _STEP), g, 0),)


hwgq2.defvjp(_hwgq2_forward, _hwgq2_backward)


class CondensationConv(nn.Module):
    """A convolution of R·M filters, of whose maps M are left: the training form, which computes them all.

        z = BN(K ⋆ x)  or  K ⋆ x + β        y = maximum over 2x2 pixels of f(max_r z_r)

    Args:
      features: M, maps that are stored.
      groups: R, 1 to 127; 1 is a plain convolution.
      kernel_size: k, odd.
      stride: of the convolution.
      norm: batch normalization of all R·M maps, before the pooling; else a bias.
      reduce: max or min, before f; mean or sum, after f, unless the slope is 1 (no f).
      negative_slope: of f, the leaky rectifier; ≥ 0.
      quantized: binary weights (`binary_weight`), and f is `hwgq2`.
      pool: stride of a maximum over 2x2 pixels at the end, 1 or 2; 0 for none.
      gain: g², weights start with variance g² / (k²·C); that which keeps the signal's power (`condensation_gain`) unless given.

    x [N, H, W, C] -> [N, ⌈H/stride⌉, ⌈W/stride⌉, M] of `dtype`, zeros around the image; ⌈H/(stride · pool)⌉ where pixels are
    pooled. Filter m·R + r is member r of map m. The collection "intermediates" receives `winner` [N, H', W', M], the member
    that each value is of, where the caller wants it.
    `fuse_condensation` makes the form for inference.

    Raises:
      UserError: an even filter, R out of its range, or what `condense` refuses.

    Example:
      >>> layer, x = CondensationConv(8, groups=2), jnp.zeros((1, 6, 6, 4))  # 16 filters, 8 maps that are stored
      >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape
      (1, 6, 6, 8)
    """

    features: int
    groups: int = 2
    kernel_size: int = 3
    stride: int = 1
    norm: bool = True
    reduce: Reduce = "max"
    negative_slope: float = 0.1
    quantized: bool = False
    pool: int = 0
    gain: float | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        _check_groups(self.groups)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size: needs an odd number, got {self.kernel_size}")
        if self.pool not in (0, 1, 2):
            raise UserError(f"pool: needs 0, 1 or 2, got {self.pool}")
        if self.gain is not None:
            check_number("gain", self.gain, Positive)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        side, filters = self.kernel_size, self.features * self.groups
        gain = condensation_gain(self.groups, self.negative_slope) if self.gain is None else self.gain
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(gain, "fan_in", "normal"),
            (side, side, x.shape[-1], filters),
            self.param_dtype,
        )
        kernel = binary_weight(kernel) if self.quantized else kernel
        z = _convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        if self.norm:
            z = BatchNorm(name="norm", dtype=self.dtype, param_dtype=self.param_dtype)(z, train=train)
        else:
            # Not all 0: of equal filters none would ever be told from the others.
            start = nn.initializers.normal(0.01 if self.groups > 1 else 0.0)
            z = z + self.param("bias", start, (filters,), self.param_dtype).astype(self.dtype)
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "winner", cross_channel_argmax(z, self.groups))
        after = self.reduce in ("max", "min") or self.negative_slope == 1
        if not self.quantized:
            y = condense(
                z, self.groups, reduce=self.reduce, negative_slope=self.negative_slope, activate_after=after
            )
        elif after:
            y = hwgq2(cross_channel_pool(z, self.groups, self.reduce))
        else:
            y = cross_channel_pool(hwgq2(z), self.groups, self.reduce)
        return _pool_pixels(y, self.pool)

    def conv_specs(self, input_shape: tuple[int, int, int, int]) -> list[ConvSpec]:
        """What the fused form computes and stores, for `jaxface.hardware`: 8-bit maps unless they are quantized."""
        _, height, width, channels = input_shape
        weights, outputs = (1, 2) if self.quantized else (8, 8)
        return [
            ConvSpec(
                height,
                width,
                channels,
                self.features * self.groups,
                self.kernel_size,
                self.stride,
                bits_weight=weights,
                bits_out=outputs,
                channel_pool=self.groups,
                pool_stride=max(self.pool, 1),
            )
        ]


def _pool_pixels(y: jax.Array, stride: int) -> jax.Array:
    return nn.max_pool(y, (2, 2), (stride, stride), "SAME") if stride else y


def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    padding = kernel.shape[0] // 2  # "SAME" would pad a strided convolution on one side only
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv_ccp_running(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    groups: int,
    stride: int = 1,
    negative_slope: float = 0.1,
) -> jax.Array:
    """f(max_r (K_r ⋆ x + β_r)) with one member at a time: what is alive is the maximum so far and one more map, whatever R is.

    It is the algorithm of the paper's hardware, by `lax.scan`; `pallas_kernels.dilated_conv.conv_ccp` is the kernel.

    Args:
      x: [N, H, W, C] floats, zero outside.
      kernel: [k, k, C, M·R], k odd.
      bias: [M·R].
      groups: R, 1 to 127.
      stride: of the convolution.
      negative_slope: of the leaky rectifier f, ≥ 0.

    Returns:
      [N, ⌈H/stride⌉, ⌈W/stride⌉, M] of x's dtype. Ties, NaN and -inf as `cross_channel_pool`.

    Raises:
      UserError: as `cross_channel_pool`, or a slope below 0.
    """
    if negative_slope < 0:
        raise UserError(
            f"negative_slope: needs at least 0, f is applied to the maximum; got {negative_slope}"
        )
    members = jnp.moveaxis(_members(kernel, groups), -1, 0), _members(bias, groups).T

    def one_more(best, member):
        filters, offset = member
        z = _convolve(x, filters, stride) + offset
        return jnp.where((z > best) | jnp.isnan(z), z, best), None

    first = _convolve(x, members[0][0], stride) + members[1][0]
    best, _ = lax.scan(one_more, first, jax.tree.map(lambda member: member[1:], members))
    return nn.leaky_relu(best, negative_slope)


class FusedCondensation(flax.struct.PyTreeNode):
    """A `CondensationConv` for inference, its normalization folded: y = f(max_r (K_r ⋆ x + β_r)) alone is stored.

    Attributes:
      kernel: K [k, k, C, M·R].
      bias: β [M·R].
      groups: R.
      stride: of the convolution; the kernel of `pallas_kernels` is for stride 1, other strides run `conv_ccp_running`.
      negative_slope: of f.
      quantized: f is `hwgq2`.
      pool: stride of the maximum over 2x2 pixels; 0 for none.
    """

    kernel: jax.Array
    bias: jax.Array
    groups: int = flax.struct.field(pytree_node=False)
    stride: int = flax.struct.field(pytree_node=False)
    negative_slope: float = flax.struct.field(pytree_node=False)
    quantized: bool = flax.struct.field(pytree_node=False)
    pool: int = flax.struct.field(pytree_node=False)

    def __call__(self, x: jax.Array, *, implementation: str | None = None) -> jax.Array:
        """x [N, H, W, C] float32 or bfloat16 -> as `CondensationConv`; `implementation` as the kernels take it."""
        slope = 1.0 if self.quantized else self.negative_slope
        if self.stride == 1:
            activation: dict[str, Any] = {} if slope == 1 else {"activation": "prelu", "slope": slope}
            y: Any = dilated_conv.conv_ccp(  # an array, since no winner is asked for
                x, self.kernel, self.bias, groups=self.groups, implementation=implementation, **activation
            )
        else:
            y = conv_ccp_running(
                x,
                self.kernel.astype(x.dtype),
                self.bias.astype(x.dtype),
                groups=self.groups,
                stride=self.stride,
                negative_slope=slope,
            )
        return _pool_pixels(hwgq2(y) if self.quantized else y, self.pool)


def fuse_condensation(layer: CondensationConv, variables: Mapping) -> FusedCondensation:
    """The deployment form of a trained layer.

        K' = K · γ/√(σ² + ε),   β' = δ - μ · γ/√(σ² + ε)

    filter by filter, before the maximum, with which scales that differ within a group do not commute.

    Args:
      layer: with the reduction max.
      variables: its {"params", "batch_stats"}.

    Returns:
      A layer with the outputs of `layer.apply(variables, x, train=False)`.

    Raises:
      UserError: another reduction.

    Example:
      >>> layer, x = CondensationConv(4, groups=2), jnp.ones((1, 4, 4, 2))
      >>> variables = layer.init(jax.random.key(0), x)
      >>> fused = fuse_condensation(layer, variables)
      >>> bool(jnp.allclose(fused(x), layer.apply(variables, x), atol=1e-5))
      True
    """
    if layer.reduce != "max":
        raise UserError(f"reduce: needs 'max', of which there is a fused form; got {layer.reduce!r}")
    params, kernel = variables["params"], variables["params"]["kernel"]
    kernel = binary_weight(kernel) if layer.quantized else kernel
    bias = params.get("bias")
    if layer.norm:
        stats = variables["batch_stats"]["norm"]
        scale = params["norm"]["scale"] / jnp.sqrt(stats["var"] + BatchNorm.epsilon)
        kernel, bias = kernel * scale, params["norm"]["bias"] - stats["mean"] * scale
    return FusedCondensation(
        kernel=kernel,
        bias=bias,
        groups=layer.groups,
        stride=layer.stride,
        negative_slope=float(layer.negative_slope),
        quantized=layer.quantized,
        pool=layer.pool,
    )
