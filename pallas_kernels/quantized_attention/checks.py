"""Refusals of the attention's arguments: one line that names the argument and what it needs.

Values are looked at where they are known, that is, outside a trace.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.common import KernelError
from pallas_kernels.quantized_attention import quantizers
from pallas_kernels.quantized_attention.steps import AttnSteps, Mode


def _known(x) -> np.ndarray | None:
    """The values of an array that is not being traced."""
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)


def check_operands(q, k, v):
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise KernelError(f"{name}: needs [B, H, N, d]; got shape {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise KernelError(f"{name}: needs floats (codes go to quantized_attention_codes); got {x.dtype}")
    if not q.dtype == k.dtype == v.dtype:
        raise KernelError(f"k, v: need q's dtype {q.dtype}; got {k.dtype}, {v.dtype}")
    check_shapes(q, k, v, "q", "k", "v")


def check_shapes(q, k, v, q_name, k_name, v_name):
    if k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise KernelError(f"{k_name}: needs q's batch, heads and head size {q.shape}; got {k.shape}")
    if v.shape != k.shape:
        raise KernelError(
            f"{v_name}: needs the batch, heads, tokens and head size of k {k.shape}; got {v.shape}"
        )
    if 0 in q.shape or 0 in k.shape:
        raise KernelError(f"{q_name}, {k_name}: need at least one element; got shapes {q.shape}, {k.shape}")


def check_mode(mode, bits):
    if mode not in Mode.__args__:
        raise KernelError(f"mode: needs 'lsq' or 'ptq'; got {mode!r}")
    bits = tuple(bits)
    if len(bits) != 4 or not all(isinstance(b, int) and 2 <= b <= 8 for b in bits):
        raise KernelError(f"bits: needs four integers of 2 to 8 for q, k, v, p; got {bits}")
    return bits


def check_steps(steps, mode, q_shape, k_shape, dtype):
    batch, heads, queries, d = q_shape
    last = {"q": queries, "k": k_shape[2], "v": d}
    arrays = {}
    for name in "qkvp":
        step = getattr(steps, name)
        if step is None:
            arrays[name] = None
            continue
        step = jnp.asarray(step, dtype)
        per_head = step.shape in ((), (heads,))
        rows = step.ndim == 3 and all(
            size in (1, full)
            for size, full in zip(step.shape, (batch, heads, last.get(name, 1)), strict=True)
        )
        if not per_head and not (rows and mode == "ptq" and name != "p"):
            shapes = f"a scalar or [H] = [{heads}]"
            if mode == "ptq":
                shapes += f", or {(batch, heads, last.get(name, 1))} with 1 anywhere"
            raise KernelError(f"steps.{name}: needs {shapes}; got shape {step.shape}")
        values = _known(step)
        if values is not None and not (np.isfinite(values).all() and (values > 0).all()):
            raise KernelError(f"steps.{name}: needs finite steps above 0; got {np.min(values)}")
        arrays[name] = step
    return AttnSteps(**arrays)


def check_zero_points(zero_points, heads, dtype):
    """Zero points as arrays, None if they are known to be 0."""
    if zero_points is None:
        return None
    if zero_points.p is not None and (_known(zero_points.p) is None or np.any(_known(zero_points.p) != 0)):
        raise KernelError("zero_points.p: needs None or 0, probabilities have no offset; got another value")
    arrays = [jnp.asarray(z, dtype) for z in zero_points[:3]]
    for name, zero in zip("qkv", arrays, strict=True):
        if zero.shape not in ((), (heads,)):
            raise KernelError(
                f"zero_points.{name}: needs a scalar or [H] = [{heads}]; got shape {zero.shape}"
            )
    if all(_known(zero) is not None and not np.any(_known(zero)) for zero in arrays):
        return None
    return AttnSteps(*arrays)


def check_codes(name, codes, bits):
    values = _known(codes) if bits < 8 else None  # int8 holds nothing but 8-bit codes
    if values is None or not values.size:
        return
    low, high = quantizers.code_range(bits)
    if values.min() < low or values.max() > high:
        raise KernelError(
            f"{name}: needs {bits}-bit codes of {low}..{high}; got {values.min()}..{values.max()}"
        )


def check_bias(bias, q_shape, k_shape):
    if bias is None:
        return
    full = (*q_shape[:3], k_shape[2])
    fits = bias.ndim == 4 and all(
        size == whole or (size == 1 and i < 3)
        for i, (size, whole) in enumerate(zip(bias.shape, full, strict=True))
    )
    if not fits:
        raise KernelError(f"bias: needs {full}, with 1 in any of the first three; got shape {bias.shape}")
    if not jnp.issubdtype(bias.dtype, jnp.floating):
        raise KernelError(f"bias: needs floats; got {bias.dtype}")


def check_lengths(name, lengths, batch, tokens):
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise KernelError(f"{name}: needs [{batch}] integers; got shape {lengths.shape} of {lengths.dtype}")
    values = _known(lengths)
    if values is not None and (values.min() < 0 or values.max() > tokens):
        raise KernelError(
            f"{name}: needs 0 to {tokens}, the number of tokens; got {values.min()}..{values.max()}"
        )


def check_segments(name, ids, shape):
    if ids.shape != shape or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise KernelError(f"{name}: needs {shape} integers; got shape {ids.shape} of {ids.dtype}")
    values = _known(ids)
    if values is not None and (np.diff(values, axis=1) < 0).any():
        raise KernelError(f"{name}: needs ids that do not decrease along a row; got some that do")
