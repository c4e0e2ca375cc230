"""Trained binary networks as packed bits: 1 bit per weight, one integer comparison per activation, the same outputs.

Methods: rbonn, bamsprod
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from jaxface.errors import UserError
from jaxface.layers.binary import half_padding
from jaxface.models.binary.resnet import BinaryResNet
from jaxface.models.binary.small import BinarySmall
from pallas_kernels import binary_conv
from pallas_kernels.binary_conv import fold_batch_norm, pack_bits, pack_weights

EPSILON = 1e-5  # of `jaxface.layers.BatchNorm`


class RealConv(flax.struct.PyTreeNode):
    """A real convolution with the batch normalization after it folded in: y = conv(x, kernel) + bias."""

    kernel: jax.Array
    bias: jax.Array
    stride: int = flax.struct.field(pytree_node=False, default=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, Ho, Wo, O] float32."""
        height, width = self.kernel.shape[:2]
        if (height, width, self.stride) == (1, 1, 1):
            return x @ self.kernel[0, 0] + self.bias
        pads, dimensions = half_padding((height, width)), ("NHWC", "HWIO", "NHWC")
        strides = (self.stride, self.stride)
        y = lax.conv_general_dilated(x, self.kernel, strides, pads, dimension_numbers=dimensions)
        return y + self.bias


class PackedUnit(flax.struct.PyTreeNode):
    """A binary convolution on bits with all that stands between it and the next one.

        t = scale · conv(bits, weights) + shift + shortcut,   out = PReLU(t),   bits = [out + bias >= 0]

    Attributes:
      weights: uint32 [kh, kw, O, ⌈C/32⌉].
      scale, shift: float32 [O]: batch normalization, scales and biases.
      slope: float32 [O] of the PReLU; None where there is none.
      bias: float32 [O]: minus the threshold of the next layer's signs.
      shortcut: where plane or channels change; None adds the unit's real input.
      channels: C.
      stride: of the convolution.
    """

    weights: jax.Array
    scale: jax.Array
    shift: jax.Array
    slope: jax.Array | None
    bias: jax.Array
    shortcut: RealConv | None
    channels: int = flax.struct.field(pytree_node=False)
    stride: int = flax.struct.field(pytree_node=False)

    def __call__(self, x: jax.Array, bits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Real input [B, H, W, C] and the signs of it, packed -> the same of the next unit, of x's type."""
        residual = x
        if self.shortcut is not None:
            residual = self.shortcut(_mean_pool(x.astype(jnp.float32), self.stride))
        options = {
            "channels": self.channels,
            "strides": self.stride,
            "padding": half_padding(self.weights.shape[:2]),
        }
        if x.dtype == jnp.bfloat16:
            per_channel = (self.scale, self.shift, residual.astype(x.dtype), self.slope, self.bias)
            return binary_conv.binary_conv2d_block(bits, self.weights, *per_channel, **options)
        dot = binary_conv.binary_conv2d(bits, self.weights, **options)
        out = dot.astype(jnp.float32) * self.scale + self.shift + residual
        if self.slope is not None:
            out = jnp.where(out >= 0, out, out * self.slope)
        return out, pack_bits(out + self.bias)


class PackedNetwork(flax.struct.PyTreeNode):
    """A binary network on packed bits; call it under `jax.jit` with images [B, H, W, C] float32.

    Attributes:
      stem: real first layer; [D, O] of a dense one.
      first_bias: float32 [C]: minus the first thresholds.
      units: binary layers, in order.
      last_bias: float32 [O], of the last unit, left over.
      head: kernel and bias of the last Dense layer; None gives the features.
      pooled_stem: whether a 3x3 max-pool (stride 2) follows the stem.
      dtype: of what stands between units: float32 gives the training form's outputs, bfloat16 moves half the bytes and
        takes one fused kernel per unit.
    """

    stem: RealConv | jax.Array
    first_bias: jax.Array
    units: tuple[PackedUnit, ...]
    last_bias: jax.Array
    head: tuple[jax.Array, jax.Array] | None
    pooled_stem: bool = flax.struct.field(pytree_node=False)
    dtype: Any = flax.struct.field(pytree_node=False, default=jnp.float32)

    def entrance(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the first unit reads of images [B, H, W, C]: real features, and the signs of them, packed."""
        image = image.astype(jnp.float32)
        if isinstance(self.stem, RealConv):
            x = self.stem(image)
        else:
            x = image.reshape(image.shape[0], 1, 1, -1) @ self.stem
        if self.pooled_stem:
            x = _max_pool(x)
        x = x.astype(self.dtype)
        return x, pack_bits(x.astype(jnp.float32) + self.first_bias)

    def __call__(self, image: jax.Array) -> jax.Array:
        """[B, H, W, C] float32 -> [B, E] float32, as the training form with `train=False`."""
        x, bits = self.entrance(image)
        for unit in self.units:
            x, bits = unit(x, bits)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32) + self.last_bias
        return x if self.head is None else x @ self.head[0] + self.head[1]


def to_packed(model: nn.Module, variables: Mapping, *, dtype: Any = jnp.float32) -> PackedNetwork:
    """The deployment form of a trained binary network.

    Latent weights become bits (sgn 0 = +1), scales, biases and running statistics of batch normalization become one scale and one
    shift per channel, biases before a sign become its threshold. Only the stem, the 1x1 shortcuts and the head stay real.

    Args:
      model: a `BinaryResNet` or `BinarySmall` with layers that can be packed (a method `deployed`).
      variables: {"params", "batch_stats"} of it.
      dtype: float32, or bfloat16 for what stands between units.

    Returns:
      A network whose `__call__(image)` gives what `model.apply(variables, image, train=False)` gives.

    Raises:
      UserError: another model, a type that is neither, or a layer that has no packed form: real weights, XNOR-Net's scale that
        depends on the input, a latent weight of RBONN that is exactly 0.
    """
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise UserError(f"dtype: needs float32 or bfloat16, got {jnp.dtype(dtype).name}")
    params, stats = variables["params"], variables["batch_stats"]
    if isinstance(model, BinarySmall):
        return _pack_small(model, params, stats, dtype)
    if isinstance(model, BinaryResNet):
        return _pack_resnet(model, params, stats, dtype)
    raise UserError(f"model: needs a BinaryResNet or BinarySmall to pack, got {type(model).__name__}")


def _pack_small(model, params, stats, dtype):
    names = [f"block{i}" for i in range(1, model.depth + 1)]
    zeros = jnp.zeros(model.width)
    thresholds = [params[name]["threshold"]["bias"] for name in names] + [zeros]
    layer = model.conv(model.width, kernel_size=(1, 1))
    units = []
    for name, following in zip(names, thresholds[1:], strict=True):
        kernel, alpha = layer.deployed(params[name]["binary"])
        scale, shift = _folded(alpha, params[name]["norm"], stats[name]["norm"])
        units.append(
            PackedUnit(pack_weights(kernel), scale, shift, None, following, None, kernel.shape[2], 1)
        )
    return PackedNetwork(
        params["input_dense"]["kernel"],
        thresholds[0],
        tuple(units),
        zeros,
        _head(params),
        pooled_stem=False,
        dtype=dtype,
    )


def _pack_resnet(model, params, stats, dtype):
    units = model.units()
    before_sign = [params[name]["bias_before_sign"]["bias"] for name, *_ in units]
    packed = []
    # The bias after a PReLU is not added where it stands, but to all that reads it: thresholds, shifts, shortcuts.
    carried = jnp.zeros(model.channels[0])
    for index, (name, features, stride) in enumerate(units):
        ours, theirs = params[name], stats[name]
        kernel, alpha = model.conv(features, kernel_size=(3, 3)).deployed(ours["binary"])
        scale, shift = _folded(alpha, ours["norm"], theirs["norm"])
        shift = shift + ours["bias_before_prelu"]["bias"]
        shortcut = None
        if "shortcut_conv" in ours:
            shortcut = _real_conv(ours, theirs, "shortcut", 1)
            shortcut = shortcut.replace(bias=shortcut.bias + carried @ shortcut.kernel[0, 0])
        else:
            shift = shift + carried
        carried = ours["bias_after_prelu"]["bias"]
        following = before_sign[index + 1] if index + 1 < len(units) else jnp.zeros(features)
        packed.append(
            PackedUnit(
                pack_weights(kernel),
                scale,
                shift,
                ours["prelu"]["slope"],
                carried + following,
                shortcut,
                kernel.shape[2],
                stride,
            )
        )
    return PackedNetwork(
        _real_conv(params, stats, "stem", 1 if model.small_images else 2),
        before_sign[0],
        tuple(packed),
        carried,
        _head(params),
        pooled_stem=not model.small_images,
        dtype=dtype,
    )


def _folded(alpha, norm, stats):
    return fold_batch_norm(alpha, norm["scale"], norm["bias"], stats["mean"], stats["var"], epsilon=EPSILON)


def _real_conv(params, stats, name, stride):
    scale, shift = _folded(1.0, params[f"{name}_norm"], stats[f"{name}_norm"])
    return RealConv(params[f"{name}_conv"]["kernel"] * scale, shift, stride)


def _head(params):
    if "head_dense" not in params:
        return None
    return params["head_dense"]["kernel"], params["head_dense"]["bias"]


def _max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum (stride 2, one pixel of padding), as maxima of slices, which XLA vectorizes on CPUs."""
    for axis in (1, 2):
        size = x.shape[axis]
        pads = [(0, 0)] * 4
        pads[axis] = (1, 1)
        padded = jnp.pad(x, pads, constant_values=-jnp.inf)
        out = (size - 1) // 2 + 1
        take = functools.partial(lax.slice_in_dim, padded, stride=2, axis=axis)
        slices = [take(start, start + 2 * (out - 1) + 1) for start in range(3)]
        x = functools.reduce(jnp.maximum, slices)
    return x


def _mean_pool(x: jax.Array, stride: int) -> jax.Array:
    """`mean_pool` as sums of slices."""
    if stride == 1:
        return x
    for axis in (1, 2):
        size = x.shape[axis]
        pads = [(0, 0)] * 4
        pads[axis] = (0, -size % stride)
        padded = jnp.pad(x, pads, mode="edge")
        take = functools.partial(lax.slice_in_dim, padded, stride=stride, axis=axis)
        x = sum(take(start, padded.shape[axis]) for start in range(stride)) / stride
    return x
