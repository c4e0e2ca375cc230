"""Shift and add: a dilated correlation as a sum of shifted windows of the image, and its gradients in the same form.

Zero-inserted kernels, which XLA makes of dilated convolutions on GPUs, do not occur here; XLA fuses the sum of a depthwise
stage into one loop. The gradients serve every implementation (arguments and static options as in `ops.py`).
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.dilated_conv.reference import activate


def wide(x: jax.Array) -> jax.Array:
    """x in the type that sums are kept in: float32, or float64 for float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def window(x: jax.Array, start: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """x[:, start:start+size] on both image axes, zero outside the image."""
    spatial = [(-s, s + n - extent, 0) for s, n, extent in zip(start, size, x.shape[1:3], strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])


def _taps(w, dilation, start):
    for p in range(w.shape[0]):
        for q in range(w.shape[1]):
            yield p, q, (start[0] + p * dilation, start[1] + q * dilation)


def _dot(equation, left, right, dtype):
    """A matrix product of operands of type `dtype`, summed in float32 (float64 for float64)."""
    exact = jnp.promote_types(dtype, jnp.float32)
    return jnp.einsum(
        equation,
        left.astype(dtype),
        right.astype(dtype),
        preferred_element_type=exact,
        precision=lax.Precision.HIGHEST if dtype == exact else None,
    )


def correlate(x, w, dilation, start, size, dtype):
    """Σ_pq w[p, q]·x[i + start + p·d, j + start + q·d]: depthwise for w [k, k, C], dense for w [k, k, C, O]."""
    if w.ndim == 3:
        return sum(wide(window(x, at, size)) * wide(w[p, q]) for p, q, at in _taps(w, dilation, start))
    terms = (
        _dot("nhwc,co->nhwo", window(x, at, size), w[p, q], dtype) for p, q, at in _taps(w, dilation, start)
    )
    return sum(terms)


def correlate_transposed(g, w, dilation, start, size, dtype):
    """The gradient of `correlate` by x, where g is its output's and `size` is x's."""
    shifted = [(p, q, window(g, (-at[0], -at[1]), size)) for p, q, at in _taps(w, dilation, start)]
    if w.ndim == 3:
        return sum(wide(t) * wide(w[p, q]) for p, q, t in shifted)
    return sum(_dot("nhwo,co->nhwc", t, w[p, q], dtype) for p, q, t in shifted)


def correlate_taps(g, x, w, dilation, start, dtype):
    """The gradient of `correlate` by w, where g is its output's."""
    size = g.shape[1:3]
    windows = [window(x, at, size) for _, _, at in _taps(w, dilation, start)]
    if w.ndim == 3:
        taps = [jnp.sum(wide(t) * wide(g), axis=(0, 1, 2)) for t in windows]
    else:
        taps = [_dot("nhwc,nhwo->co", t, g, dtype) for t in windows]
    return jnp.stack(taps).reshape(w.shape)


def activate_gradient(g, u, activation, slope):
    """Gradients by u and by `slope` of a loss whose gradient by φ(u) is g."""
    if activation == "identity":
        return g, jnp.zeros_like(slope)
    if activation == "relu":
        return jnp.where(u > 0, g, 0), jnp.zeros_like(slope)
    return jnp.where(u > 0, g, g * slope), jnp.sum(g * jnp.minimum(u, 0), axis=(0, 1, 2))


def project(v, pointwise, bias, dtype):
    """v·P + β, rounded to `dtype`."""
    if pointwise is not None:
        v = _dot("nhwc,co->nhwo", v, pointwise, dtype)
    return (v if bias is None else v + bias).astype(dtype)


def project_gradient(g, v, pointwise, bias, dtype):
    """Gradients by v, P and β; None for what is None."""
    by_bias = None if bias is None else jnp.sum(wide(g), axis=(0, 1, 2)).astype(bias.dtype)
    if pointwise is None:
        return wide(g), None, by_bias
    by_pointwise = _dot("nhwc,nhwo->co", v, g, dtype).astype(pointwise.dtype)
    return _dot("nhwo,co->nhwc", g, pointwise, dtype), by_pointwise, by_bias


# --- CASSOD -----------------------------------------------------------------------------------------------------------


def stages(image: tuple[int, int], dilation: int, exact: bool) -> tuple[tuple, tuple]:
    """(start, output size) of both stages. Exact: the first also fills the d rows and columns beyond the image."""
    first = tuple(n + dilation for n in image) if exact else image
    return ((-dilation, -dilation), first), ((0, 0), image)


def plain_cascade(x, a) -> bool:
    """Whether whole dilated convolutions are the faster form on a CPU: in float32, if both stages are dense.

    A sum of four matrix products passes over its map four times; a dense convolution does so once, and only depthwise and
    grouped ones are slow there.
    """
    return a.ndim == 4 and x.dtype == jnp.float32


def cascade(x, a, offset, slope, b, pointwise, bias, *, dilation, activation, exact, plain=False):
    if plain:  # dense stages, so there is no P
        before, after = ((0, 0), (dilation, dilation)) if exact else ((0, dilation), (dilation, 0))
        u = _convolve(x, a, x.dtype, padding=after, dilation=dilation) + offset
        v = _convolve(activate(u, activation, slope), b, x.dtype, padding=before, dilation=dilation)
        return project(v, None, bias, x.dtype)
    (start, size), (start2, size2) = stages(x.shape[1:3], dilation, exact)
    u = correlate(x, a, dilation, start, size, x.dtype) + offset
    v = correlate(activate(u, activation, slope), b, dilation, start2, size2, x.dtype)
    return project(v, pointwise, bias, x.dtype)


def cascade_gradient(
    g, x, a, offset, slope, b, pointwise, bias, *, dilation, activation, exact, stencil=None
):
    """`stencil` computes the part between x and V by another kernel: (x, a, offset, slope, b, gv) -> (dx, da, dα, dλ, db)."""
    (start, size), (start2, size2) = stages(x.shape[1:3], dilation, exact)
    u = correlate(x, a, dilation, start, size, x.dtype) + offset
    s = activate(u, activation, slope)
    v = None if pointwise is None else correlate(s, b, dilation, start2, size2, x.dtype)
    gv, by_pointwise, by_bias = project_gradient(g, v, pointwise, bias, x.dtype)
    if stencil is not None:
        by_x, by_a, by_offset, by_slope, by_b = stencil(x, a, offset, slope, b, gv)
        return by_x, by_a, by_offset, by_slope, by_b, by_pointwise, by_bias
    by_b = correlate_taps(gv, s, b, dilation, start2, x.dtype)
    gs = correlate_transposed(gv, b, dilation, start2, size, x.dtype)
    gu, by_slope = activate_gradient(gs, u, activation, slope)
    by_a = correlate_taps(gu, x, a, dilation, start, x.dtype)
    by_x = correlate_transposed(gu, a, dilation, start, size2, x.dtype)
    by_offset = jnp.sum(gu, axis=(0, 1, 2))
    return (
        by_x.astype(x.dtype),
        by_a.astype(a.dtype),
        by_offset,
        by_slope,
        by_b.astype(b.dtype),
        by_pointwise,
        by_bias,
    )


# --- depthwise --------------------------------------------------------------------------------------------------------


def depthwise(x, w, offset, slope, pointwise, bias, *, dilation, stride, activation):
    s = activate(_depthwise(x, w, dilation, stride) + offset, activation, slope)
    return project(s, pointwise, bias, x.dtype)


def _depthwise(x, w, dilation, stride):
    reach = w.shape[0] // 2 * dilation
    if stride == 1:
        return correlate(x, w, dilation, (-reach, -reach), x.shape[1:3], x.dtype)
    size = tuple(1 + (n - 1) // stride * stride for n in x.shape[1:3])
    windows = ((p, q, window(x, at, size)) for p, q, at in _taps(w, dilation, (-reach, -reach)))
    return sum(wide(t[:, ::stride, ::stride]) * wide(w[p, q]) for p, q, t in windows)


def depthwise_gradient(g, x, w, offset, slope, pointwise, bias, *, dilation, stride, activation):
    reach = w.shape[0] // 2 * dilation

    def stencil(x, w, gu):
        gaps = [(0, 0, 0), (0, 0, stride - 1), (0, 0, stride - 1), (0, 0, 0)]
        gu = lax.pad(gu, jnp.zeros((), gu.dtype), gaps)
        by_x = correlate_transposed(gu, w, dilation, (-reach, -reach), x.shape[1:3], x.dtype)
        return by_x, correlate_taps(gu, x, w, dilation, (-reach, -reach), x.dtype)

    u = _depthwise(x, w, dilation, stride) + offset
    return depthwise_gradient_around(
        g, u, x, w, offset, slope, pointwise, bias, activation=activation, stencil=stencil
    )


def depthwise_gradient_around(g, u, x, w, offset, slope, pointwise, bias, *, activation, stencil):
    """The gradients, given u = w ⋆ x + α and a `stencil` that makes dx and dw of (x, w, du). A linear op needs no u."""
    s = activate(u, activation, slope) if pointwise is not None else None
    gs, by_pointwise, by_bias = project_gradient(g, s, pointwise, bias, x.dtype)
    gu, by_slope = activate_gradient(gs, u, activation, slope)
    by_x, by_w = stencil(x, w, gu)
    by_offset = jnp.sum(gu, axis=(0, 1, 2))
    return by_x.astype(x.dtype), by_w.astype(w.dtype), by_offset, by_slope, by_pointwise, by_bias


# --- convolution and cross-channel pooling ----------------------------------------------------------------------------


def plain_conv_ccp(x, w) -> bool:
    """Whether one convolution by all filters is the faster form on a CPU: in float32, if its map is no larger than the filters.

    Filters of one group stand side by side, so that taking one of each is a copy of them all; on small maps of many channels
    that is what costs. The map of all members is then as small beside the filters, and is stored.
    """
    pixels, taps = math.prod(x.shape[:3]), math.prod(w.shape[:3])
    return pixels <= taps and x.dtype == jnp.float32


def conv_ccp(x, w, bias, *, activation, slope, plain=False):
    """One filter of each group at a time, with a running maximum: two maps of [N, H, W, M] live, whatever R is.

    `plain`: all filters at once, and the maximum over the stored members.
    """
    if plain:
        z = _convolve(x, w.reshape(*w.shape[:3], -1), x.dtype)
        z = z.reshape(*z.shape[:3], *w.shape[3:]) + bias
        winner = jnp.argmax(z, axis=-1).astype(jnp.int8)  # the first of equals; a NaN wins
        return activate(jnp.max(z, axis=-1), activation, slope).astype(x.dtype), winner

    def step(best, filter_r):
        index, kernel, offset = filter_r
        z = _convolve(x, kernel, x.dtype) + offset
        better = (z > best[0]) | (jnp.isnan(z) & ~jnp.isnan(best[0]))
        return (jnp.where(better, z, best[0]), jnp.where(better, index, best[1])), None

    kernels, offsets = jnp.moveaxis(w, -1, 0), jnp.moveaxis(bias, -1, 0)
    first = _convolve(x, kernels[0], x.dtype) + offsets[0]
    indices = jnp.arange(1, w.shape[-1], dtype=jnp.int8)
    start = (first, jnp.zeros(first.shape, jnp.int8))
    (best, winner), _ = lax.scan(step, start, (indices, kernels[1:], offsets[1:]))
    return activate(best, activation, slope).astype(x.dtype), winner


def conv_ccp_gradient(g, x, w, bias, winner, y, *, activation, slope):
    """Each group's gradient goes to its first winner: R masked convolutions, one at a time."""
    gz, _ = activate_gradient(wide(g), wide(y), activation, slope)
    reach = w.shape[0] // 2

    def step(by_x, filter_r):
        index, kernel = filter_r
        dz = jnp.where(winner == index, gz, 0)
        flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        # The image's channels as a batch and its examples as channels: [k, k, C, M] from x and dz.
        by_kernel = _convolve(x, dz, x.dtype, layout=("CHWN", "IHWO", "HWNC"), padding=(reach, reach))
        return by_x + _convolve(dz, flipped, x.dtype), (by_kernel, jnp.sum(dz, axis=(0, 1, 2)))

    start = jnp.zeros(x.shape, gz.dtype)
    indices = jnp.arange(w.shape[-1], dtype=jnp.int8)
    by_x, (by_w, by_bias) = lax.scan(step, start, (indices, jnp.moveaxis(w, -1, 0)))
    return (
        by_x.astype(x.dtype),
        jnp.moveaxis(by_w, 0, -1).astype(w.dtype),
        jnp.moveaxis(by_bias, 0, -1).astype(bias.dtype),
    )


def _convolve(x, kernel, dtype, layout=("NHWC", "HWIO", "NHWC"), padding=None, dilation=1):
    reach = kernel.shape[0] // 2
    exact = jnp.promote_types(dtype, jnp.float32)
    return lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        (1, 1),
        [padding or (reach, reach)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=layout,
        preferred_element_type=exact,
        precision=lax.Precision.HIGHEST if dtype == exact else None,
    )
