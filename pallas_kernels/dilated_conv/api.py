"""Dilated 2×2 cascades, depthwise large-kernel convolution, and convolution with cross-channel max pooling; NHWC."""

import jax
import jax.numpy as jnp

from pallas_kernels import common
from pallas_kernels.common import KernelError
from pallas_kernels.dilated_conv import gpu, ops, tpu, xla

ACTIVATIONS = ("identity", "relu", "prelu")


def cassod(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    pointwise: jax.Array | None = None,
    *,
    dilation: int,
    kind: str = "ddp",
    mid_scale: jax.Array | None = None,
    mid_bias: jax.Array | None = None,
    activation: str = "identity",
    slope: jax.Array | float | None = None,
    bias: jax.Array | None = None,
    padding: str = "exact",
    implementation: str | None = None,
) -> jax.Array:
    """Two cascaded 2×2 filters of one dilation, in one pass over the image (CASSOD, arXiv:2104.14126).

        u[n,i,j] = γ·Σ_pq a[p,q]·x[n, i-d+p·d, j-d+q·d] + α,   s = φ(u),
        y[n,i,j] = (Σ_rt b[r,t]·s[n, i+r·d, j+t·d])·P + β,     p, q, r, t ∈ {0, 1}

    Without φ the two filters compose to a 3×3 filter of the same dilation (`compose_taps`), and are run as one.

    Args:
      x: [N, H, W, C] float32 or bfloat16; zero outside the image.
      a, b: the taps. kind "ddp": [2, 2, C] and [2, 2, C], both depthwise; "dc": [2, 2, C] depthwise and [2, 2, C, O]
        dense; "cc": [2, 2, C, M] and [2, 2, M, O], both dense. γ, α and φ concern C, C and M channels.
      pointwise: P [C, O], for "ddp" alone; the identity if None.
      dilation: d >= 1.
      mid_scale, mid_bias: γ and α, [C] or [M]; 1 and 0 if None.
      activation: φ: "identity", "relu", or "prelu" (slope·u where u <= 0).
      slope: for "prelu", a number (leaky ReLU) or one per channel; it gets gradients if it is an array.
      bias: β [O]; 0 if None.
      padding: "exact" evaluates u on [0, H+d) × [0, W+d), so that y is centered and a linear cascade equals the zero-padded
        3×3 convolution everywhere. "per_stage" takes s as zero beyond the image; the last d rows and columns of y differ.
      implementation: see `common.Implementation`; None picks.

    Returns:
      [N, H, W, O] of x's type. Sums are float32; matrix products take operands rounded to x's type. NaNs propagate. The
      gradient of "ddp" is a kernel too under "pallas_tpu", around XLA's matrix products; all else has XLA's gradient.

    Raises:
      KernelError: shapes, types or names other than these, or an implementation that cannot run.
    """
    _check_image(x)
    if kind not in ("ddp", "dc", "cc"):
        raise KernelError(f"kind: needs 'ddp', 'dc' or 'cc'; got {kind!r}")
    if padding not in ("exact", "per_stage"):
        raise KernelError(f"padding: needs 'exact' or 'per_stage'; got {padding!r}")
    _check_integer("dilation", dilation, 1)
    channels = x.shape[-1]
    if kind == "cc":
        _check_floating("a", a, (2, 2, channels, None))
        middle = a.shape[-1]
    else:
        _check_floating("a", a, (2, 2, channels))
        middle = channels
    _check_floating("b", b, (2, 2, middle) if kind == "ddp" else (2, 2, middle, None))
    if pointwise is not None:
        if kind != "ddp":
            raise KernelError(
                f"pointwise: needs kind='ddp'; got kind={kind!r}, whose second stage mixes channels"
            )
        _check_floating("pointwise", pointwise, (middle, None))
    outputs = (b if kind != "ddp" else pointwise if pointwise is not None else x).shape[-1]
    offset, slope = _middle(x, middle, mid_scale, mid_bias, activation, slope)
    if bias is not None:
        _check_floating("bias", bias, (outputs,))
        bias = _wide(bias)
    a = _wide(a) if mid_scale is None else _wide(a) * _wide(mid_scale)
    b = _wide(b)
    if kind == "ddp" and activation == "identity" and padding == "exact":
        taps, offset = compose_taps(a, b), offset * jnp.sum(b, axis=(0, 1))
        chosen = _choose(implementation, "depthwise", x, taps, pointwise, dilation=dilation, stride=1)
        options = ops.Options(chosen, activation, dilation)
        return ops.depthwise(x, taps, offset, slope, pointwise, bias, options)
    chosen = _choose(implementation, "cascade", x, a, b, pointwise, dilation=dilation)
    options = ops.Options(
        chosen, activation, dilation, exact=padding == "exact", plain=_plain(xla.plain_cascade(x, a))
    )
    return ops.cascade(x, a, offset, slope, b, pointwise, bias, options)


def depthwise_conv(
    x: jax.Array,
    w: jax.Array,
    pointwise: jax.Array | None = None,
    *,
    dilation: int = 1,
    stride: int = 1,
    mid_scale: jax.Array | None = None,
    mid_bias: jax.Array | None = None,
    activation: str = "identity",
    slope: jax.Array | float | None = None,
    bias: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Depthwise convolution with large or dilated filters, φ, and a pointwise convolution in one pass (DDC, arXiv:2104.14125).

        y[n,i,j] = φ(γ·Σ_ml w[m,l]·x[n, s·i+(m-h)·d, s·j+(l-h)·d] + α)·P + β,   h = (k-1)/2

    Args:
      x: [N, H, W, C] float32 or bfloat16; zero outside the image, which may be smaller than the filter.
      w: [k, k, C], k odd.
      pointwise: P [C, O]; the identity if None.
      dilation: d >= 1.
      stride: s, 1, or 2 where d = 1; the image is padded by h on both sides (not as XLA's "SAME" for even sizes).
      mid_scale, mid_bias, activation, slope: γ, α and φ per channel, as `cassod`.
      bias: β [O]; 0 if None.
      implementation: see `common.Implementation`; None picks. The kernels have stride 1.

    Returns:
      [N, ⌈H/s⌉, ⌈W/s⌉, O] of x's type; precision and gradients as `cassod`.

    Raises:
      KernelError: shapes, types or names other than these, or an implementation that cannot run.
    """
    _check_image(x)
    _check_floating("w", w, (None, None, x.shape[-1]))
    _check_odd(w)
    _check_integer("dilation", dilation, 1)
    _check_integer("stride", stride, 1)
    if stride > 2 or (stride > 1 and dilation > 1):
        raise KernelError(f"stride: needs 1, or 2 with dilation=1; got {stride} with dilation={dilation}")
    if pointwise is not None:
        _check_floating("pointwise", pointwise, (x.shape[-1], None))
    outputs = (x if pointwise is None else pointwise).shape[-1]
    offset, slope = _middle(x, x.shape[-1], mid_scale, mid_bias, activation, slope)
    if bias is not None:
        _check_floating("bias", bias, (outputs,))
        bias = _wide(bias)
    w = _wide(w) if mid_scale is None else _wide(w) * _wide(mid_scale)
    chosen = _choose(implementation, "depthwise", x, w, pointwise, dilation=dilation, stride=stride)
    options = ops.Options(chosen, activation, dilation, stride)
    return ops.depthwise(x, w, offset, slope, pointwise, bias, options)


def conv_ccp(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None = None,
    *,
    groups: int,
    activation: str = "identity",
    slope: float = 0.1,
    return_winner: bool = False,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Convolution and max over groups of R filters; only one map of each group is stored (Condensation-Net, arXiv:2104.14124).

        z[n,i,j,m,r] = β[m·R+r] + Σ_ab w[a,b,:,m·R+r]·x[n, i+a-h, j+b-h],   y[n,i,j,m] = φ(max_r z[n,i,j,m,r])

    φ grows, so it is the same after the maximum as before. A tie belongs to the smallest r, which alone gets the gradient.

    Args:
      x: [N, H, W, C] float32 or bfloat16; zero outside the image.
      w: [k, k, C, M·R], k odd; filters of one group stand side by side.
      bias: β [M·R]; 0 if None.
      groups: R, how many filters share an output channel, 1 to 127.
      activation: φ: "identity", "relu", or "prelu" with one `slope`.
      slope: of "prelu", a number in [0, 1].
      return_winner: also return the r of each maximum, [N, H, W, M] int8.
      implementation: see `common.Implementation`; None picks.

    Returns:
      y [N, H, W, M] of x's type; sums are float32. A NaN in any member of a group propagates. The gradient is XLA's under
      every implementation: R masked convolutions, one at a time.

    Raises:
      KernelError: shapes, types or names other than these, or an implementation that cannot run.
    """
    _check_image(x)
    _check_floating("w", w, (None, None, x.shape[-1], None))
    _check_odd(w)
    _check_integer("groups", groups, 1)
    if groups > 127:
        raise KernelError(f"groups: needs at most 127, the winner is stored as int8; got {groups}")
    if w.shape[-1] % groups:
        raise KernelError(f"groups: needs a divisor of w's {w.shape[-1]} filters; got {groups}")
    _check_activation(activation)
    if activation == "prelu" and (not isinstance(slope, (int, float)) or not 0 <= slope <= 1):
        raise KernelError(
            f"slope: needs a number in [0, 1], so that φ grows and commutes with the maximum; got {slope}"
        )
    if bias is not None:
        _check_floating("bias", bias, (w.shape[-1],))
    bias = jnp.zeros(w.shape[-1], jnp.float32) if bias is None else _wide(bias)
    w, bias = w.reshape(*w.shape[:3], -1, groups), bias.reshape(-1, groups)
    chosen = _choose(implementation, "conv_ccp", x, w)
    options = ops.Options(
        chosen,
        activation,
        slope=float(slope) if activation == "prelu" else 0.0,
        winner=return_winner,
        plain=_plain(xla.plain_conv_ccp(x, w)),
    )
    y, winner = ops.conv_ccp(x, w, bias, options)
    return (y, winner) if return_winner else y


def compose_taps(a: jax.Array, b: jax.Array) -> jax.Array:
    """The one filter that two linear filters in cascade amount to: k[m,l] = Σ a[p,q]·b[r,t] over p+r = m, q+t = l.

    Args:
      a, b: [2, 2] and [2, 2]; depthwise [2, 2, C] and [2, 2, C]; depthwise [2, 2, C] and dense [2, 2, C, O]; or dense
        [2, 2, C, M] and [2, 2, M, O]. Other sizes of filters compose too.

    Returns:
      [3, 3], [3, 3, C], or [3, 3, C, O]: correlation by a then b, of any one dilation, without anything between.

    Raises:
      KernelError: other ranks, or channels that do not fit.

    Example:
      >>> compose_taps(jnp.ones((2, 2)), jnp.ones((2, 2))).tolist()  # two 2×2 filters are one of 3×3
      [[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]
    """
    if (a.ndim, b.ndim) not in ((2, 2), (3, 3), (3, 4), (4, 4)):
        raise KernelError(
            f"a, b: need ranks 2 and 2, 3 and 3, 3 and 4, or 4 and 4; got {a.ndim} and {b.ndim}"
        )
    if a.ndim > 2 and a.shape[-1] != b.shape[2]:
        raise KernelError(f"b: needs as many inputs as a has outputs, {a.shape[-1]}; got {b.shape[2]}")

    def product(p, q):
        if a.ndim == 4:
            return jnp.einsum("cm,rtmo->rtco", a[p, q], b, precision=jax.lax.Precision.HIGHEST)
        return (a[p, q][:, None] if b.ndim == 4 else a[p, q]) * b

    high, wide = a.shape[0], a.shape[1]
    tail = [(0, 0)] * (b.ndim - 2)
    return sum(
        jnp.pad(product(p, q), [(p, high - 1 - p), (q, wide - 1 - q), *tail])
        for p in range(high)
        for q in range(wide)
    )


def _wide(x):
    return jnp.asarray(x, jnp.float32)


def _middle(x, channels, scale, bias, activation, slope):
    """α and the slope as float32 [channels]."""
    _check_activation(activation)
    for name, value in (("mid_scale", scale), ("mid_bias", bias)):
        if value is not None:
            _check_floating(name, value, (channels,))
    if (slope is None) != (activation != "prelu"):
        raise KernelError(
            f"slope: needs activation='prelu', which needs a slope; got {activation!r} and "
            f"{'no slope' if slope is None else 'one'}"
        )
    if slope is not None and jnp.shape(slope) not in ((), (channels,)):
        raise KernelError(f"slope: needs a number or [{channels}]; got {list(jnp.shape(slope))}")
    zeros = jnp.zeros(channels, jnp.float32)
    return zeros if bias is None else _wide(bias), zeros if slope is None else zeros + _wide(slope)


def _plain(faster_on_cpu: bool) -> bool:
    """Whether "xla" is the library's own convolutions: measured to be the faster form for some shapes on CPUs."""
    return faster_on_cpu and common.target_device().platform == "cpu"


def _choose(implementation: str | None, op: str, *arrays, **options) -> str:
    obstacles = {
        "pallas_gpu": gpu.obstacle(op, *arrays, **options),
        "pallas_tpu": tpu.obstacle(op, *arrays, **options),
    }
    return common.choose(implementation, obstacles, op="dilated_conv", facts=facts(op, *arrays, **options))


def facts(op: str, x, *filters, dilation: int = 1, stride: int = 1) -> dict[str, str | bool | int]:
    """What the speed of a "cascade", a "depthwise" or a "conv_ccp" depends on, for `common.choose`.

    Args:
      op: one of these.
      x: [N, H, W, C].
      filters: of the stages, then the pointwise matrix or None; for "conv_ccp" the filters [k, k, C, M, R] alone.
    """
    if op == "conv_ccp":
        outputs, mixed = filters[0].shape[3], f"groups of {filters[0].shape[4]}"
    else:
        last = filters[-1] if filters[-1] is not None else filters[-2]
        outputs, mixed = last.shape[-1], "-".join("none" if f is None else str(f.ndim) for f in filters)
    return {
        "operation": op,
        "mixed": mixed,  # which stages mix channels, by the ranks of their filters
        "dtype": x.dtype.name,
        "stride": stride,
        "pixels": x.shape[0] * x.shape[1] * x.shape[2],
        "side": filters[0].shape[0],
        "dilation": dilation,
        "channels": x.shape[3],
        "outputs": outputs,
    }


def _check_image(x) -> None:
    if getattr(x, "ndim", None) != 4 or 0 in x.shape:
        raise KernelError(f"x: needs [N, H, W, C], nothing empty; got {list(jnp.shape(x))}")
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise KernelError(f"x: needs float32 or bfloat16; got {x.dtype}")


def _check_floating(name: str, array, shape: tuple[int | None, ...]) -> None:
    """`shape` with None where any extent of at least 1 will do."""
    got = jnp.shape(array)
    if len(got) != len(shape) or any(
        have != need if need else have < 1 for have, need in zip(got, shape, strict=True)
    ):
        needs = ", ".join(str(n) if n else "≥1" for n in shape)
        raise KernelError(f"{name}: needs [{needs}]; got {list(got)}")
    if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
        raise KernelError(f"{name}: needs floating numbers; got {jnp.result_type(array)}")


def _check_odd(w) -> None:
    if w.shape[0] != w.shape[1] or w.shape[0] % 2 == 0:
        raise KernelError(f"w: needs an odd, square filter; got {w.shape[0]}×{w.shape[1]}")


def _check_integer(name: str, value, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise KernelError(f"{name}: needs an integer of at least {least}; got {value!r}")


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise KernelError(f"activation: needs one of {', '.join(ACTIVATIONS)}; got {activation!r}")
