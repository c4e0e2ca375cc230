"""Quantizers of the attention's operands [B, H, N, d]: learned steps (LSQ) and steps from the data (absolute maximum)."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import KernelError

Granularity = Literal["tensor", "head", "block", "token"]

Q_BLOCK, KV_BLOCK = 128, 64
"""Tokens that share a step under `granularity="block"`, as in SageAttention."""


def code_range(bits: int, *, signed: bool = True) -> tuple[int, int]:
    """Smallest and largest code (Qn, Qp): -2^(b-1), 2^(b-1) - 1, or 0, 2^b - 1 unsigned."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def quantize_lsq(
    x: jax.Array, step: jax.Array, *, bits: int = 8, zero_point: jax.Array | None = None
) -> jax.Array:
    """Codes of a learned-step quantizer: round(clip(x / step + z, Qn, Qp)), half to even (arXiv:1902.08153, eq. 1).

    Args:
      x: float, any shape.
      step: > 0, broadcasts against x.
      bits: 2 to 8; the codes are signed.
      zero_point: offset z in units of codes, rounded before use; broadcasts against x. None: 0.

    Returns:
      int8 in the shape of x.

    Raises:
      KernelError: bits out of range.
    """
    _check_bits("bits", bits)
    low, high = code_range(bits)
    ratio = x.astype(step_dtype(x)) / step
    if zero_point is not None:
        ratio = ratio + jnp.round(zero_point)
    return jnp.round(jnp.clip(ratio, low, high)).astype(jnp.int8)


def lsq_gradients(
    x: jax.Array,
    step: jax.Array,
    d_x_hat: jax.Array,
    *,
    bits: int,
    zero_point: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Backward of x̂ = step · (codes - z), straight through the rounding.

        dx = dx̂ · 1[Qn ≤ x/step + z ≤ Qp],  d step = g Σ dx̂ ρ,  dz = -g Σ dx̂ step · 1[outside],
        ρ = round(y) - y inside (y = x/step + z), the clip bound - z outside,  g = 1/√(numel(x) Qp)

    Args:
      x: [B, H, N, d]; step, zero_point: broadcast against it.
      d_x_hat: gradient with respect to x̂.

    Returns:
      dx in the dtype of x; d step and dz summed to the shape of `step`.
    """
    low, high = code_range(bits)
    y = x.astype(step_dtype(x)) / step
    z = jnp.zeros_like(step) if zero_point is None else jnp.round(zero_point)
    y = y + z
    inside = (y >= low) & (y <= high)
    rho = jnp.where(inside, jnp.round(y) - y, jnp.clip(y, low, high) - z)
    g = 1.0 / math.sqrt(x.size * high)
    axes = tuple(
        i for i in range(x.ndim) if i < x.ndim - step.ndim or step.shape[i - x.ndim + step.ndim] == 1
    )
    d_step = g * jnp.sum(d_x_hat * rho, axes).reshape(step.shape)
    d_zero = None
    if zero_point is not None:
        d_zero = -g * jnp.sum(jnp.where(inside, 0.0, d_x_hat * step), axes).reshape(step.shape)
    return jnp.where(inside, d_x_hat, 0.0).astype(x.dtype), d_step, d_zero


def quantize_absmax(
    x: jax.Array, *, granularity: Granularity = "token", block: int = KV_BLOCK, bits: int = 8
) -> tuple[jax.Array, jax.Array]:
    """Symmetric codes with the step max|x| / Qp of each group; -2^(b-1) never occurs.

    Args:
      x: [B, H, N, d] float.
      granularity: what shares a step: the "tensor", a "head" of one example, a "block" of `block` tokens, or a "token".
      block: tokens per block, the last one shorter; 128 for queries and 64 for keys is usual.
      bits: 2 to 8.

    Returns:
      int8 [B, H, N, d] and float32 steps that broadcast to [B, H, N]: [1, 1, 1], [B, H, 1] or [B, H, N]. The steps of
      blocks come repeated for each token, so no kernel needs to know the partition.

    Raises:
      KernelError: unknown granularity, bits or block out of range, x not of rank 4.
    """
    _check_bits("bits", bits)
    if x.ndim != 4:
        raise KernelError(f"x: needs [B, H, N, d]; got shape {x.shape}")
    if block < 1:
        raise KernelError(f"block: needs at least 1 token; got {block}")
    _, high = code_range(bits)
    size = jnp.max(jnp.abs(x.astype(step_dtype(x))), -1)
    if granularity == "tensor":
        size = jnp.max(size, keepdims=True)
    elif granularity == "head":
        size = jnp.max(size, -1, keepdims=True)
    elif granularity == "block":
        tokens = x.shape[2]
        padded = jnp.pad(size, ((0, 0), (0, 0), (0, -tokens % block)))
        blocks = jnp.max(padded.reshape(*size.shape[:2], -1, block), -1)
        size = jnp.repeat(blocks, block, axis=-1)[..., :tokens]
    elif granularity != "token":
        raise KernelError(f"granularity: needs tensor, head, block or token; got {granularity!r}")
    step = jnp.maximum(size / high, jnp.finfo(jnp.float32).tiny)
    codes = jnp.round(jnp.clip(x.astype(step.dtype) / step[..., None], -high, high))
    return codes.astype(jnp.int8), step


def quantize_channels(x: jax.Array, *, bits: int = 8) -> tuple[jax.Array, jax.Array]:
    """Symmetric codes with one step per head and channel, for values: int8 [B, H, N, d] and float32 [B, H, d]."""
    _check_bits("bits", bits)
    _, high = code_range(bits)
    size = jnp.max(jnp.abs(x.astype(step_dtype(x))), 2)
    step = jnp.maximum(size / high, jnp.finfo(jnp.float32).tiny)
    codes = jnp.round(jnp.clip(x.astype(step.dtype) / step[:, :, None], -high, high))
    return codes.astype(jnp.int8), step


def quantize_smooth(
    k: jax.Array,
    *,
    granularity: Granularity = "block",
    block: int = KV_BLOCK,
    bits: int = 8,
    kv_lengths: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys less their mean over the tokens, quantized by `quantize_absmax` (arXiv:2410.02367, section 4.2).

    Subtracting one vector from all keys of a head adds one constant to each row of logits, which the softmax does not see,
    and takes out the channel offsets that waste the codes' range. The log-sum-exp of the true logits is that of the
    smoothed ones plus c q·mean.

    Args:
      k: [B, H, N, d] float.
      granularity, block, bits: as `quantize_absmax`.
      kv_lengths: [B] int32; tokens from there on are padding: zeroed, and left out of the mean. None: all count.

    Returns:
      int8 codes [B, H, N, d], their steps, and the mean [B, H, 1, d].
    """
    smooth, mean = subtract_mean(k, kv_lengths)
    return *quantize_absmax(smooth, granularity=granularity, block=block, bits=bits), mean


def subtract_mean(k: jax.Array, kv_lengths: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """k less its mean over the valid tokens (zero at the others), and the mean [B, H, 1, d], in float32."""
    k = k.astype(step_dtype(k))
    if kv_lengths is None:
        mean = jnp.mean(k, 2, keepdims=True)
        return k - mean, mean
    valid = (jnp.arange(k.shape[2]) < kv_lengths[:, None])[:, None, :, None]
    count = jnp.maximum(kv_lengths, 1)[:, None, None, None]
    mean = jnp.sum(jnp.where(valid, k, 0.0), 2, keepdims=True) / count
    return jnp.where(valid, k - mean, 0.0), mean


def step_dtype(x: jax.Array) -> jnp.dtype:
    """float64 for float64 operands, else float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _check_bits(name, bits):
    if not 2 <= bits <= 8:
        raise KernelError(f"{name}: needs 2 to 8; got {bits}")
