"""What to call: binary convolutions, dense layers and whole blocks on packed signs."""

import jax
import jax.numpy as jnp

from pallas_kernels import common
from pallas_kernels.binary_conv import geometry as geo
from pallas_kernels.binary_conv import gpu, packing, reference, tpu, xla


def binary_conv2d(
    xp: jax.Array,
    wp: jax.Array,
    *,
    channels: int,
    strides: int | tuple[int, int] = 1,
    padding: geo.Padding = "SAME",
    pad_mode: geo.PadMode = "zero",
    implementation: common.Implementation | None = None,
) -> jax.Array:
    """Convolution of signs with signs, every output exact.

        y[n, h, w, o] = Σ_{i,j,c} x[n, h·s + i - top, w·s + j - left, c] · w[i, j, c, o],   x, w ∈ {-1, +1}

    Args:
      xp: uint32 [N, H, W, ⌈C/32⌉], the signs of `pack_bits(x)`.
      wp: uint32 [kh, kw, O, ⌈C/32⌉], of `pack_weights(w)`. Unused bits of the last word must be 0 in both.
      channels: C, the real number of channels.
      strides: of rows and columns, a number or two.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)).
      pad_mode: "zero", as a convolution of signs pads while it trains (a tap outside adds nothing), or "minus_one",
        "plus_one": what every channel outside reads.
      implementation: see `common.choose`. "xla" counts bits on a CPU, and elsewhere convolves the unpacked signs.

    Returns:
      int32 [N, Ho, Wo, O], in [-K, K] with K = kh·kw·C products.

    Raises:
      KernelError: types, shapes, channels, strides or padding that do not fit, an unknown pad_mode, an implementation that
        cannot run here, or K >= 2^24 where sums are floats. Grouped weights are refused: a depthwise product is too short
        for bits.
    """
    geometry = geometry_of(xp, wp, channels, strides, padding, pad_mode)
    implementation = _choose(implementation, geometry, "convolution")
    if implementation == "xla":
        return xla.convolve(xp, wp, geometry)
    kernel = gpu if implementation.startswith("pallas_gpu") else tpu
    return kernel.convolve(xp, wp, geometry, interpret=common.interpret(implementation))


def binary_dense(
    xp: jax.Array, wp: jax.Array, k: int, *, implementation: common.Implementation | None = None
) -> jax.Array:
    """Matrix product of signs: y[..., o] = Σ_c x[..., c]·w[c, o].

    Args:
      xp: uint32 [..., ⌈K/32⌉], of `pack_bits(x)`.
      wp: uint32 [O, ⌈K/32⌉], of `pack_weights(w)`.
      k: K, the real length of the rows.
      implementation: see `common.choose`.

    Returns:
      int32 [..., O].

    Raises:
      KernelError: as `binary_conv2d`.
    """
    if wp.ndim != 2 or xp.ndim < 1:
        raise common.KernelError(
            f"xp, wp: need [..., ⌈K/32⌉] and [O, ⌈K/32⌉]; got shapes {xp.shape} and {wp.shape}"
        )
    rows = xp.reshape(1, 1, -1, xp.shape[-1])
    y = binary_conv2d(rows, wp[None, None], channels=k, padding="VALID", implementation=implementation)
    return y.reshape(*xp.shape[:-1], wp.shape[0])


def binary_conv2d_block(
    xp: jax.Array,
    wp: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    residual: jax.Array | None = None,
    prelu: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    channels: int,
    strides: int | tuple[int, int] = 1,
    padding: geo.Padding = "SAME",
    pad_mode: geo.PadMode = "zero",
    implementation: common.Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """A binary convolution with all that stands between it and the next one, in one pass.

        t    = scale·y + shift + residual          y: `binary_conv2d`; scale, shift: of `fold_batch_norm`
        out  = bfloat16(t if t >= 0 else prelu·t)  the real shortcut of the next block
        bits = [out + bias >= 0]                   the next block's packed input

    Args:
      xp, wp, channels, strides, padding, pad_mode, implementation: as `binary_conv2d`.
      scale, shift: float [O].
      residual: [N, Ho, Wo, O], float32 or bfloat16, rounded to the latter; None adds nothing.
      prelu: float [O], slope where t < 0; None leaves t as it is.
      bias: float [O], moves the sign's threshold; None stands for 0.

    Returns:
      out bfloat16 [N, Ho, Wo, O] and bits uint32 [N, Ho, Wo, ⌈O/32⌉], the signs of the rounded `out`.

    Raises:
      KernelError: as `binary_conv2d`, or shapes of the other arguments that do not fit.
    """
    geometry = geometry_of(xp, wp, channels, strides, padding, pad_mode)
    per_output = {"scale": scale, "shift": shift, "prelu": prelu, "bias": bias}
    for name, value in per_output.items():
        if value is not None and value.shape != (geometry.outputs,):
            raise common.KernelError(f"{name}: needs shape ({geometry.outputs},); got {value.shape}")
    shape = (geometry.batch, geometry.out_height, geometry.out_width, geometry.outputs)
    if residual is not None and (
        residual.shape != shape or residual.dtype not in (jnp.float32, jnp.bfloat16)
    ):
        raise common.KernelError(
            f"residual: needs float32 or bfloat16 {shape}; got {residual.dtype} {residual.shape}"
        )
    residual = None if residual is None else residual.astype(jnp.bfloat16)
    scale, shift, prelu, bias = (
        None if value is None else value.astype(jnp.float32) for value in per_output.values()
    )
    implementation = _choose(implementation, geometry, "block")
    if implementation == "xla":
        return reference.epilogue(xla.convolve(xp, wp, geometry), scale, shift, residual, prelu, bias)
    kernel = gpu if implementation.startswith("pallas_gpu") else tpu
    return kernel.block(
        xp, wp, geometry, scale, shift, residual, prelu, bias, interpret=common.interpret(implementation)
    )


def padding_correction(
    wp: jax.Array,
    height: int,
    width: int,
    *,
    channels: int,
    strides: int | tuple[int, int] = 1,
    padding: geo.Padding = "SAME",
) -> jax.Array:
    """What turns padding by -1 into padding by 0: y_zero = y_minus_one + correction.

        correction[h, w, o] = Σ over the taps (i, j) that read outside of Σ_c w[i, j, c, o]

    Args:
      wp: uint32 [kh, kw, O, ⌈C/32⌉].
      height, width: H, W of the input.
      channels, strides, padding: as `binary_conv2d`.

    Returns:
      int32 [Ho, Wo, O].

    Raises:
      KernelError: as `binary_conv2d`.
    """
    xp = jax.ShapeDtypeStruct((1, height, width, wp.shape[-1]), jnp.uint32)
    return geo.correction(wp, geometry_of(xp, wp, channels, strides, padding, "zero"))


def _choose(implementation, geometry, operation):
    implementation = common.choose(
        implementation,
        {"pallas_gpu": gpu.obstacle(geometry), "pallas_tpu": tpu.obstacle(geometry)},
        op="binary_conv",
        facts=facts(geometry, operation),
    )
    if implementation == "xla" and xla.method() == "bfloat16" and geometry.products >= 1 << 24:
        raise common.KernelError(
            f"channels: needs K = kh·kw·C < 2^24 where sums are float32; got {geometry.products}"
        )
    return implementation


def facts(geometry: geo.Geometry, operation: str) -> dict[str, str | int]:
    """What the speed of a "convolution" or a "block" depends on, for `common.choose`."""
    g = geometry
    return {
        "operation": operation,
        "pixels": g.batch * g.out_height * g.out_width,
        "taps": g.kernel[0] * g.kernel[1],
        "channels": g.channels,
        "outputs": g.outputs,
    }


def geometry_of(xp, wp, channels, strides, padding, pad_mode) -> geo.Geometry:
    """Checks the arguments of `binary_conv2d` and works out their static numbers."""
    for name, value, layout in (("xp", xp, "[N, H, W, C32]"), ("wp", wp, "[kh, kw, O, C32]")):
        if value.dtype != jnp.uint32 or value.ndim != 4:
            raise common.KernelError(f"{name}: needs packed uint32 {layout}; got {value.dtype} {value.shape}")
    words = xp.shape[-1]
    if wp.shape[-1] != words:
        raise common.KernelError(
            f"wp: needs xp's {words} words of channels (groups are not supported); got {wp.shape[-1]}"
        )
    if not packing.WORD_BITS * (words - 1) < channels <= packing.WORD_BITS * words:
        raise common.KernelError(
            f"channels: needs more than {packing.WORD_BITS * (words - 1)} and at most {packing.WORD_BITS * words} "
            f"for {words} words; got {channels}"
        )
    if pad_mode not in geo.PAD_MODES:
        raise common.KernelError(f"pad_mode: needs one of {', '.join(geo.PAD_MODES)}; got {pad_mode!r}")
    strides = geo.pair("strides", strides)
    kernel = wp.shape[:2]
    pads = geo.resolve_padding(padding, xp.shape[1:3], kernel, strides)
    geometry = geo.Geometry(*xp.shape, channels, wp.shape[2], kernel, strides, pads, pad_mode)
    if min(*kernel, geometry.batch, geometry.outputs, geometry.out_height, geometry.out_width) < 1:
        raise common.KernelError(
            f"xp, wp: need at least one output; got shapes {xp.shape} and {wp.shape} with padding {padding!r}"
        )
    return geometry
