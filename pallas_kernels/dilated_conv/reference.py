"""The definitions, by XLA's own convolutions. Slow on a GPU, and every intermediate is stored."""

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def activate(u: jax.Array, activation: str, slope: jax.Array | float | None) -> jax.Array:
    """φ(u): u, max(u, 0), or u where positive and slope·u elsewhere ("prelu")."""
    if activation == "identity":
        return u
    if activation == "relu":
        return jnp.maximum(u, 0)
    return jnp.where(u > 0, u, slope * u)


def cassod(
    x, a, b, pointwise=None, *, dilation, kind, mid_scale, mid_bias, activation, slope, bias, padding
) -> jax.Array:
    """y = (b ⋆ φ(γ·(a ⋆ x) + α))·P + β, ⋆ a 2×2 correlation of this dilation; arguments as `api.cassod`."""
    after = (dilation, 0) if padding == "per_stage" else (dilation, dilation)
    u = _convolve(_wide(x), a, [after] * 2, dilation=dilation)
    s = activate(_affine(u, mid_scale, mid_bias), activation, _wide(slope))
    before = (0, dilation) if padding == "per_stage" else (0, 0)
    return _project(_convolve(s, b, [before] * 2, dilation=dilation), pointwise, bias).astype(x.dtype)


def depthwise_conv(
    x, w, pointwise=None, *, dilation, stride, mid_scale, mid_bias, activation, slope, bias
) -> jax.Array:
    """y = φ(γ·(w ⋆ x) + α)·P + β; arguments as `api.depthwise_conv`."""
    reach = (w.shape[0] // 2) * dilation
    v = _convolve(_wide(x), w, [(reach, reach)] * 2, dilation=dilation, stride=stride)
    s = activate(_affine(v, mid_scale, mid_bias), activation, _wide(slope))
    return _project(s, pointwise, bias).astype(x.dtype)


def conv_ccp(x, w, bias, *, groups, activation, slope) -> tuple[jax.Array, jax.Array]:
    """y = φ(max_r z_r) and the first r that attains it; arguments as `api.conv_ccp`."""
    reach = w.shape[0] // 2
    z = _convolve(_wide(x), w, [(reach, reach)] * 2)
    z = z if bias is None else z + bias
    z = z.reshape(*z.shape[:-1], -1, groups)
    winner = jnp.argmax(z, axis=-1)
    best = jnp.take_along_axis(z, winner[..., None], axis=-1)[..., 0]
    return activate(best, activation, slope).astype(x.dtype), winner.astype(jnp.int8)


def _wide(x):
    return x if x is None else x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _convolve(x, w, padding, *, dilation=1, stride=1):
    """Depthwise for w [k, k, C], dense for w [k, k, C, O]."""
    depthwise = w.ndim == 3
    return lax.conv_general_dilated(
        x,
        (w[:, :, None, :] if depthwise else w).astype(x.dtype),
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
        feature_group_count=x.shape[-1] if depthwise else 1,
        precision=lax.Precision.HIGHEST,
    )


def _affine(u, scale, bias):
    u = u if scale is None else u * scale
    return u if bias is None else u + bias


def _project(v, pointwise, bias):
    if pointwise is not None:
        v = jnp.einsum("nhwc,co->nhwo", v, pointwise.astype(v.dtype), precision=lax.Precision.HIGHEST)
    return v if bias is None else v + bias
