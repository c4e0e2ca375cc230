"""A convolution that one definition gives a real form, one of binary activations, one of binary weights, and one of packed bits.

What DCP-NAS's Parent and Child, and its two steps of retraining, need of a layer (arXiv:2306.15390; the weights as released).
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.errors import UserError
from jaxface.layers.binary import check_images, check_kind, convolve, mean_abs_scale, sign
from jaxface.layers.depthwise import depthwise_conv
from jaxface.layers.rbonn import bilinear_binarize
from pallas_kernels.binary_conv import binary_conv2d, pack_bits, pack_weights, unpack_bits

Form = Literal["real", "signs", "binary", "packed"]
"""Real weights and inputs; real weights, and signs as inputs where wanted; binary weights besides; the same from packed bits."""
ScaleRule = Literal["learned", "released"]
"""β of the weights β sgn(w): learned through its own gradient, or 0.02 |M| with the released rule (`bilinear_binarize`)."""
BETA = 0.02


class OneBitConv(nn.Module):
    """A convolution, by `form`:

        real     Σ x · w                    binary   β_o Σ sgn(x) · sgn(w)
        signs    Σ sgn(x) · w               packed   the same on bits, one a weight

    Where `sign_inputs` is False, x takes the place of sgn(x), and only the weights are binary. Depthwise layers are so in the
    released networks, as are those before a cell.

    Args:
      features: O; C where depthwise.
      kernel_size: k, of rows and columns.
      stride, dilation: of rows and columns; the padding keeps the plane at stride 1.
      depthwise: one filter per channel.
      sign_inputs: whether the inputs are signs; never of a depthwise layer.
      form: which.
      scale: how β is learned.
      forward_mode: whether `jax.jvp` is taken of it (`depthwise_conv`).

    x [B, H, W, C] -> [B, ⌈H / stride⌉, ⌈W / stride⌉, O]. Parameters: `kernel` [k, k, C or 1, O], and `scale` [O] where binary;
    packed, `bits` uint32 [k, k, O, ⌈C/32⌉] ([k, k, 1, ⌈C/32⌉] where depthwise) instead of the kernel.

    Raises:
      UserError: an unknown form or scale, signs into a depthwise layer, or an input that is not [B, H, W, C].

    Example:
      >>> layer, x = OneBitConv(8, 3, stride=2), jnp.zeros((1, 6, 6, 4))
      >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape
      (1, 3, 3, 8)
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    sign_inputs: bool = True
    form: Form = "binary"
    scale: ScaleRule = "learned"
    forward_mode: bool = False
    kernel_init: Callable = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, implementation: str | None = None) -> jax.Array:
        check_kind("form", self.form, get_args(Form))
        check_kind("scale", self.scale, get_args(ScaleRule))
        check_images(x)
        if self.depthwise and self.sign_inputs:
            raise UserError("sign_inputs: needs False of a depthwise layer")
        channels, side = x.shape[-1], self.kernel_size
        shape = (side, side, 1 if self.depthwise else channels, self.features)
        x = x.astype(self.dtype)
        if self.form == "packed":
            return self._packed(x, shape, implementation)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if self.form == "binary":
            scale = self.param("scale", lambda _: first_scale(kernel, self.scale))
            if self.scale == "learned":
                kernel = sign(kernel, "clip") * scale
            else:
                kernel = bilinear_binarize(kernel, jnp.abs(scale), beta=BETA)
        if self.sign_inputs and self.form != "real":
            x = sign(x, "approx_sign")
        return self._convolve(x, kernel.astype(self.dtype), implementation)

    def _convolve(self, x, kernel, implementation):
        padding = (self.kernel_size - 1) * self.dilation // 2
        if self.depthwise:
            return depthwise_conv(
                x,
                kernel,
                stride=self.stride,
                padding=padding,
                dilation=self.dilation,
                implementation=implementation,
                forward_mode=self.forward_mode,
            )
        strides, pads = (self.stride, self.stride), ((padding, padding), (padding, padding))
        return convolve(x, kernel, strides, pads)

    def _packed(self, x, shape, implementation):
        rows, columns, inputs, outputs = shape
        words = -(-max(inputs, outputs if self.depthwise else 0) // 32)
        stored = (rows, columns, 1 if self.depthwise else outputs, words)
        bits = self.param("bits", nn.initializers.zeros, stored, jnp.uint32)
        scale = self.param("scale", nn.initializers.ones, (outputs,), self.param_dtype).astype(self.dtype)
        if self.sign_inputs:
            padding = (self.kernel_size - 1) * self.dilation // 2
            dots = binary_conv2d(
                pack_bits(x),
                bits,
                channels=inputs,
                strides=self.stride,
                padding=((padding, padding), (padding, padding)),
            )
            return dots.astype(self.dtype) * scale
        if self.depthwise:
            signs = unpack_bits(bits, outputs)
        else:
            signs = jnp.swapaxes(unpack_bits(bits, inputs), 2, 3)
        return self._convolve(x, (signs * scale).astype(self.dtype), implementation)


def first_scale(kernel: jax.Array, rule: ScaleRule) -> jax.Array:
    """The parameter `scale` [O] under which β is mean |w|."""
    return mean_abs_scale(kernel) / (1.0 if rule == "learned" else BETA)


def started_from(params: dict, trained: dict, rule: ScaleRule) -> dict:
    """Parameters of a binary network that goes on with those of real weights: all that both have, and scales that suit them.

    Args:
      params: fresh ones, nested.
      trained: of the same network of another form.
      rule: how the scales are learned.
    """
    merged: dict[str, Any] = {
        name: started_from(value, trained[name], rule)
        if isinstance(value, dict) and name in trained
        else trained.get(name, value)
        for name, value in params.items()
    }
    if "kernel" in merged and "scale" in merged and "scale" not in trained:
        return {**merged, "scale": first_scale(merged["kernel"], rule)}
    return merged


def packed_params(params: dict, rule: ScaleRule) -> dict:
    """Parameters of a binary network of `OneBitConv` for its packed form: bits in place of every latent kernel with a scale.

    Args:
      params: nested; what is no such layer stays as it is.
      rule: of the scales.

    Raises:
      UserError: a latent weight of exactly 0 under the released rule, which trains as 0 and has no sign; a layer of real weights.
    """
    if "kernel" in params and "scale" in params:
        kernel, scale = params["kernel"], params["scale"]
        scale = scale if rule == "learned" else BETA * jnp.abs(scale)
        if zeros := int(jnp.sum(kernel == 0)):
            raise UserError(f"kernel: needs latent weights other than 0 to pack, got {zeros} zeros")
        depthwise = kernel.shape[2] == 1 and kernel.shape[0] > 1
        bits = pack_weights(jnp.swapaxes(kernel, 2, 3) if depthwise else kernel)
        return {"bits": bits, "scale": scale}
    return {
        name: packed_params(value, rule) if isinstance(value, dict) else value
        for name, value in params.items()
    }
