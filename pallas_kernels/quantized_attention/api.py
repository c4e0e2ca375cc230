"""Attention on quantised operands: what to call, its checks, the choice of an implementation and its gradients."""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import common
from pallas_kernels.common import KernelError
from pallas_kernels.quantized_attention import gpu, quantizers, tile, tpu, xla

Mode = Literal["lsq", "ptq"]


class AttnSteps(NamedTuple):
    """Quantisation steps (or zero points) of an attention's four operands.

    Attributes:
      q, k: scalar, [H] (per head), or, mode "ptq", [B or 1, H or 1, N or 1] as `quantize_absmax` returns them.
      v: scalar, [H], or, mode "ptq", [B or 1, H or 1, d] as `quantize_channels` returns them.
      p: scalar or [H] in mode "lsq"; None in mode "ptq", whose step is static.
    """

    q: jax.Array | float
    k: jax.Array | float
    v: jax.Array | float
    p: jax.Array | float | None = None


class _Config(NamedTuple):
    """The static half of a call."""

    mode: str
    bits: tuple[int, int, int, int]
    implementation: str

    @property
    def largest(self) -> int:
        """Largest code of a probability: 2^b - 1; at most 127 in mode "ptq"."""
        codes = 2 ** self.bits[3] - 1
        return codes if self.mode == "lsq" else min(codes, 127)


def quantized_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    steps: AttnSteps | None = None,
    bits: tuple[int, int, int, int] = (8, 8, 8, 8),
    mode: Mode = "lsq",
    zero_points: AttnSteps | None = None,
    bias: jax.Array | None = None,
    q_lengths: jax.Array | None = None,
    kv_lengths: jax.Array | None = None,
    segment_ids: jax.Array | tuple[jax.Array, jax.Array] | None = None,
    return_residuals: bool = False,
    implementation: common.Implementation | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Attention whose two products run on 2- to 8-bit integer codes.

        x8 = round(clip(x / a_x, -2^(b-1), 2^(b-1) - 1)),  s = a_q a_k q8 k8ᵀ / √d + bias,  p = softmax(s)
        "lsq":  o = a_p a_v · clip(round(p / a_p), 0, 2^b_p - 1) v8
        "ptq":  o = a_v / (L Σ_j e_j) · round(L e) v8,  e = exp(s - max s),  L = min(2^b_p - 1, 127)

    The two modes are two contracts. "lsq" is what a network trained with learned steps computes (Q-ViT, Q-DETR): the
    quantiser sees normalised probabilities, so a quantised row need not sum to 1. "ptq" replaces the attention of a network
    that was not trained for it (SageAttention): the normaliser is the float one. A kernel that walks over blocks of keys
    takes e against the running maximum of its row, which is never a coarser grid than the one above.

    Gradients go straight through every rounding. "lsq": entries that a quantiser clips get none; the steps get theirs,
    scaled by g = 1/√(numel · Qp) (arXiv:1902.08153, eq. 3 and section 2.2). "ptq": those of the attention with
    p unquantised at the dequantised operands; the steps get none. `bias` gets its gradient in both.

    Args:
      q: [B, H, Nq, d] float32, bfloat16 or float16.
      k, v: [B, H, Nk, d], the dtype of q.
      steps: > 0. Required in mode "lsq". None in mode "ptq": int codes with steps from the data, one per 128 queries,
        per 64 keys after their mean over the tokens is taken out, and per channel of v.
      bits: of q, k, v and p, each 2 to 8.
      mode: "lsq" or "ptq".
      zero_points: mode "lsq", offsets in units of codes, rounded: x̂ = a (codes - z). Other than 0 in plain XLA only, and
        never for p. None: 0.
      bias: [B or 1, H or 1, Nq or 1, Nk] float added to the logits; -inf masks. Plain XLA only.
      q_lengths, kv_lengths: [B] int32, how many of an example's tokens count. Later keys are not seen and later queries
        give 0. None: all.
      segment_ids: [B, N] int32, or one array for the queries and one for the keys: images packed one after another attend
        each to itself. Along each row the ids must not decrease. In mode "ptq" give steps per token or per head: the
        default's blocks would mix images.
      return_residuals: also return the log-sum-exp.
      implementation: see `pallas_kernels.common.Implementation`; None chooses.

    Returns:
      o [B, H, Nq, d] in the dtype of q; a query that sees no key gives 0. With `return_residuals` also the natural
      log-sum-exp of the logits [B, H, Nq] float32 (-inf for such a query), differentiable too.

    Raises:
      KernelError: shapes, dtypes, bits or mode out of range; steps that are not positive, lengths above N, or segment ids
        that decrease, where their values are known; an implementation that cannot run here.

    Source: arXiv:2210.06707 (Q-ViT), arXiv:2410.02367 (SageAttention).
    """
    _check_operands(q, k, v)
    bits = _check_mode(mode, bits)
    batch, heads, _, d = q.shape
    starts, ends = _windows(q.shape, k.shape, q_lengths, kv_lengths, segment_ids)
    _check_bias(bias, q.shape, k.shape)
    precise = quantizers.step_dtype(q)
    if mode == "lsq":
        if steps is None or steps.p is None:
            raise KernelError(
                'steps: mode "lsq" needs AttnSteps(q, k, v, p); got none for ' + ("p" if steps else "all")
            )
        steps = _check_steps(steps, mode, q.shape, k.shape, precise)
        zero_points = _check_zero_points(zero_points, heads, precise)
    else:
        if zero_points is not None:
            raise KernelError('zero_points: needs mode "lsq"; got mode "ptq"')
        if steps is not None:
            if steps.p is not None:
                raise KernelError(f'steps: p is static in mode "ptq" and needs None; got {steps.p}')
            steps = _check_steps(steps, mode, q.shape, k.shape, precise)
    limits = {
        "shape": (*q.shape[:3], k.shape[2], d),
        "bias": bias is not None,
        "zero_points": zero_points is not None,
        "dtype": q.dtype,
    }
    chosen = _choose(implementation, mode, limits, codes=False)
    config = _Config(mode, bits, chosen)
    if mode == "lsq":
        out, lse = _lsq(config, q, k, v, steps, zero_points, bias, starts, ends)
        return (out, lse) if return_residuals else out

    shift = None
    if steps is None:
        smooth, mean = quantizers.subtract_mean(k, kv_lengths)
        if kv_lengths is not None:  # padding must not widen the values' steps
            v = jnp.where((jnp.arange(v.shape[2]) < kv_lengths[:, None])[:, None, :, None], v, 0).astype(
                v.dtype
            )
        out, lse = _ptq(config, q, smooth, v, None, bias, starts, ends)
        shift = jnp.einsum("bhqd,bhkd->bhq", q, mean, preferred_element_type=precise) / math.sqrt(d)
    else:
        out, lse = _ptq(config, q, k, v, steps, bias, starts, ends)
    if not return_residuals:
        return out
    return out, (lse if shift is None else lse + shift)


def quantized_attention_codes(
    q8: jax.Array,
    k8: jax.Array,
    v8_t: jax.Array,
    *,
    steps: AttnSteps,
    bits: tuple[int, int, int, int] = (8, 8, 8, 8),
    mode: Mode = "lsq",
    q_lengths: jax.Array | None = None,
    kv_lengths: jax.Array | None = None,
    segment_ids: jax.Array | tuple[jax.Array, jax.Array] | None = None,
    out_dtype: jnp.dtype = jnp.bfloat16,
    return_residuals: bool = False,
    implementation: common.Implementation | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`quantized_attention` of codes that the layer before has written; forward only.

    Args:
      q8: [B, H, Nq, d] int8, `bits[0]`-bit signed values.
      k8: [B, H, Nk, d] int8.
      v8_t: [B, H, d, Nk] int8, the values transposed: Hopper's 8-bit matrix instructions read both operands along the
        axis that they sum over. Give Nk as a multiple of 128, with `kv_lengths` where the tokens end earlier, and nothing
        is copied before the kernel.
      steps, bits, mode, q_lengths, kv_lengths, segment_ids, return_residuals, implementation: as `quantized_attention`;
        steps are required. The log-sum-exp is that of the codes' logits: add c q·mean where the keys were smoothed.
      out_dtype: of o.

    Returns:
      o [B, H, Nq, d]; with `return_residuals` also the log-sum-exp [B, H, Nq] float32.

    Raises:
      KernelError: as `quantized_attention`; also codes outside the declared bits, where their values are known.
    """
    bits = _check_mode(mode, bits)
    for name, x, b in (("q8", q8, bits[0]), ("k8", k8, bits[1]), ("v8_t", v8_t, bits[2])):
        if x.ndim != 4:
            raise KernelError(f"{name}: needs 4 axes; got shape {x.shape}")
        if x.dtype != jnp.int8:
            raise KernelError(f"{name}: needs signed codes in int8; got {x.dtype}")
        _check_codes(name, x, b)
    v8 = jnp.swapaxes(v8_t, 2, 3)
    _check_shapes(q8, k8, v8, "q8", "k8", "v8_t")
    starts, ends = _windows(q8.shape, k8.shape, q_lengths, kv_lengths, segment_ids)
    if (steps.p is None) == (mode == "lsq"):
        raise KernelError(
            'steps: p needs a step in mode "lsq" and None in mode "ptq"; got mode ' + repr(mode)
        )
    steps = _check_steps(steps, mode, q8.shape, k8.shape, jnp.float32)
    limits = {
        "shape": (*q8.shape[:3], k8.shape[2], q8.shape[3]),
        "bias": False,
        "zero_points": False,
        "dtype": out_dtype,
    }
    chosen = _choose(implementation, mode, limits, codes=True)
    config = _Config(mode, bits, chosen)
    out, lse = _forward(config, _problem(steps, q8, k8, v8, None, starts, ends), out_dtype)
    return (out, lse) if return_residuals else out


# --- gradients -------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lsq(config, q, k, v, steps, zero_points, bias, starts, ends):
    return _lsq_forward(config, q, k, v, steps, zero_points, bias, starts, ends)[0]


def _lsq_problem(config, q, k, v, steps, zero_points, bias, starts, ends):
    def codes(name, x, bits):
        step, zero = (_aligned(given, name, x.shape[1]) for given in (steps, zero_points))
        found = quantizers.quantize_lsq(x, step, bits=bits, zero_point=zero)
        return found if zero is None else found.astype(step.dtype) - jnp.round(zero)

    found = [codes(name, x, b) for name, x, b in zip("qkv", (q, k, v), config.bits[:3], strict=True)]
    return _problem(steps, *found, bias, starts, ends)


def _lsq_forward(config, q, k, v, steps, zero_points, bias, starts, ends):
    problem = _lsq_problem(config, q, k, v, steps, zero_points, bias, starts, ends)
    out, lse = _forward(config, problem, q.dtype)
    # The codes are made again from q, k, v, which the steps' gradients need anyway.
    return (out, lse), (q, k, v, steps, zero_points, bias, starts, ends, lse)


def _lsq_backward(config, saved, cotangents):
    q, k, v, steps, zero_points, bias, starts, ends, lse = saved
    problem = _lsq_problem(config, q, k, v, steps, zero_points, bias, starts, ends)
    d_out, d_lse = cotangents
    found = _backward(config, problem, d_out.astype(q.dtype), d_lse, None, lse)
    d_inputs, d_steps, d_zeros = [], [], []
    for name, x, d_hat, bits in zip("qkv", (q, k, v), found[:3], config.bits[:3], strict=True):
        step, zero = (_aligned(given, name, x.shape[1]) for given in (steps, zero_points))
        d_x, d_step, d_zero = quantizers.lsq_gradients(x, step, d_hat, bits=bits, zero_point=zero)
        d_inputs.append(d_x)
        d_steps.append(_sum_to(d_step, getattr(steps, name)))
        d_zeros.append(None if d_zero is None else _sum_to(d_zero, getattr(zero_points, name)))
    probabilities = math.prod(q.shape[:3]) * k.shape[2]
    d_p_step = found.p_step[0] / math.sqrt(probabilities * config.largest)
    d_steps.append(_sum_to(d_p_step[None, :, None, None], steps.p))
    d_zero_points = None if zero_points is None else AttnSteps(*d_zeros, None)
    d_bias = None if bias is None else found.bias.astype(bias.dtype)
    return *d_inputs, AttnSteps(*d_steps), d_zero_points, d_bias, None, None


_lsq.defvjp(_lsq_forward, _lsq_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ptq(config, q, k, v, steps, bias, starts, ends):
    return _ptq_forward(config, q, k, v, steps, bias, starts, ends)[0]


def _ptq_forward(config, q, k, v, steps, bias, starts, ends):
    if steps is None:
        blocks = {"granularity": "block"}
        q8, q_step = quantizers.quantize_absmax(q, block=quantizers.Q_BLOCK, bits=config.bits[0], **blocks)
        k8, k_step = quantizers.quantize_absmax(k, block=quantizers.KV_BLOCK, bits=config.bits[1], **blocks)
        v8, v_step = quantizers.quantize_channels(v, bits=config.bits[2])
        found = AttnSteps(q_step, k_step, v_step)
    else:
        found = steps
        q8, k8 = (
            quantizers.quantize_lsq(x, _rows(step)[..., None], bits=b)
            for x, step, b in zip((q, k), steps[:2], config.bits[:2], strict=True)
        )
        v8 = quantizers.quantize_lsq(v, _rows(steps.v)[:, :, None], bits=config.bits[2])
    problem = _problem(found, q8, k8, v8, bias, starts, ends)
    out, lse = _forward(config, problem, q.dtype)
    likes = tuple(jnp.zeros((0,), x.dtype) for x in (q, k, v))
    return (out, lse), (problem, out, lse, steps, likes)


def _ptq_backward(config, saved, cotangents):
    problem, out, lse, steps, likes = saved
    d_out, d_lse = cotangents
    found = _backward(config, problem, d_out.astype(out.dtype), d_lse, out, lse)
    d_inputs = (d.astype(like.dtype) for d, like in zip(found[:3], likes, strict=True))
    d_bias = None if problem.bias is None else found.bias.astype(problem.bias.dtype)
    d_steps = None if steps is None else jax.tree.map(jnp.zeros_like, steps)
    return *d_inputs, d_steps, d_bias, None, None


_ptq.defvjp(_ptq_forward, _ptq_backward)


def _forward(config, problem, dtype):
    if config.implementation.startswith("pallas_gpu"):
        run = functools.partial(gpu.attention, interpret=common.interpret(config.implementation), dtype=dtype)
    elif config.implementation.startswith("pallas_tpu"):
        run = functools.partial(tpu.attention, interpret=common.interpret(config.implementation), dtype=dtype)
    else:
        run = xla.attention
    out, lse = run(problem, largest=config.largest)
    return out.astype(dtype), lse


def _backward(config, problem, d_out, d_lse, out, lse):
    arguments = (problem, d_out, d_lse, out, lse)
    if config.implementation.startswith("pallas_tpu"):
        interpret = common.interpret(config.implementation)
        return tpu.gradients(*arguments, largest=config.largest, interpret=interpret)
    return xla.gradients(*arguments, largest=config.largest)  # also after the Hopper forward


# --- canonical forms -------------------------------------------------------------------------------------------------


def _problem(steps, q8, k8, v8, bias, starts, ends) -> tile.Problem:
    p_step = None if steps.p is None else jnp.broadcast_to(steps.p, (1, q8.shape[1]))
    batch, heads, _, d = q8.shape
    return tile.Problem(
        q=q8,
        k=k8,
        v=v8,
        q_scale=_rows(steps.q),
        k_scale=_rows(steps.k),
        v_scale=jnp.broadcast_to(_rows(steps.v), (batch, heads, d)),
        p_step=p_step,
        bias=bias,
        starts=starts,
        ends=ends,
    )


def _rows(step):
    """A scalar, [H] or 3-axis step as three axes."""
    return step.reshape(1, -1, 1) if step.ndim < 2 else step


def _aligned(steps, name, heads):
    """A step (or zero point) of mode "lsq" as [1, H, 1, 1]; None stays None."""
    return None if steps is None else jnp.broadcast_to(getattr(steps, name), (heads,)).reshape(1, -1, 1, 1)


def _sum_to(d_step, step):
    """The gradient [1, H, 1, 1] of a step in the step's own shape."""
    d_step = d_step.reshape(-1)
    return (d_step.sum() if step.ndim == 0 else d_step).astype(step.dtype)


def _windows(q_shape, k_shape, q_lengths, kv_lengths, segment_ids):
    """[B, Nq] first key and one past the last key that each query sees; None, None if all are seen by all."""
    if q_lengths is None and kv_lengths is None and segment_ids is None:
        return None, None
    batch, queries, keys = q_shape[0], q_shape[2], k_shape[2]
    starts, ends = jnp.zeros((batch, queries), jnp.int32), jnp.full((batch, queries), keys, jnp.int32)
    if segment_ids is not None:
        q_ids, k_ids = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
        _check_segments("segment_ids of the queries", q_ids, (batch, queries))
        _check_segments("segment_ids of the keys", k_ids, (batch, keys))
        starts = jax.vmap(functools.partial(jnp.searchsorted, side="left"))(k_ids, q_ids).astype(jnp.int32)
        ends = jax.vmap(functools.partial(jnp.searchsorted, side="right"))(k_ids, q_ids).astype(jnp.int32)
    if kv_lengths is not None:
        _check_lengths("kv_lengths", kv_lengths, batch, keys)
        ends = jnp.minimum(ends, kv_lengths[:, None].astype(jnp.int32))
    if q_lengths is not None:
        _check_lengths("q_lengths", q_lengths, batch, queries)
        ends = jnp.where(jnp.arange(queries) < q_lengths[:, None], ends, 0)
    return starts, ends


def _choose(implementation, mode, limits, *, codes):
    obstacles = {"pallas_gpu": gpu.obstacle(**limits), "pallas_tpu": tpu.obstacle(**limits)}
    return common.choose(
        implementation,
        obstacles,
        op="quantized_attention",
        facts=facts(mode, codes, limits["shape"], limits["dtype"]),
    )


def facts(mode: str, codes: bool, shape: tuple[int, ...], dtype) -> dict[str, str | bool | int]:
    """What the speed of a call depends on, for `common.choose`.

    Args:
      mode: "lsq" or "ptq".
      codes: whether the operands are codes already (`quantized_attention_codes`).
      shape: (B, H, Nq, Nk, d).
      dtype: of the result.
    """
    batch, heads, queries, keys, features = shape
    return {
        "operation": mode,
        "codes": codes,
        "dtype": jnp.dtype(dtype).name,
        "heads": batch * heads,
        "queries": queries,
        "keys": keys,
        "features": features,
    }


# --- checks ----------------------------------------------------------------------------------------------------------


def _known(x) -> np.ndarray | None:
    """The values of an array that is not being traced."""
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)


def _check_operands(q, k, v):
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise KernelError(f"{name}: needs [B, H, N, d]; got shape {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise KernelError(f"{name}: needs floats (codes go to quantized_attention_codes); got {x.dtype}")
    if not q.dtype == k.dtype == v.dtype:
        raise KernelError(f"k, v: need q's dtype {q.dtype}; got {k.dtype}, {v.dtype}")
    _check_shapes(q, k, v, "q", "k", "v")


def _check_shapes(q, k, v, q_name, k_name, v_name):
    if k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise KernelError(f"{k_name}: needs q's batch, heads and head size {q.shape}; got {k.shape}")
    if v.shape != k.shape:
        raise KernelError(
            f"{v_name}: needs the batch, heads, tokens and head size of k {k.shape}; got {v.shape}"
        )
    if 0 in q.shape or 0 in k.shape:
        raise KernelError(f"{q_name}, {k_name}: need at least one element; got shapes {q.shape}, {k.shape}")


def _check_mode(mode, bits):
    if mode not in Mode.__args__:
        raise KernelError(f"mode: needs 'lsq' or 'ptq'; got {mode!r}")
    bits = tuple(bits)
    if len(bits) != 4 or not all(isinstance(b, int) and 2 <= b <= 8 for b in bits):
        raise KernelError(f"bits: needs four integers of 2 to 8 for q, k, v, p; got {bits}")
    return bits


def _check_steps(steps, mode, q_shape, k_shape, dtype):
    batch, heads, queries, d = q_shape
    last = {"q": queries, "k": k_shape[2], "v": d}
    found = {}
    for name in "qkvp":
        step = getattr(steps, name)
        if step is None:
            found[name] = None
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
        found[name] = step
    return AttnSteps(**found)


def _check_zero_points(zero_points, heads, dtype):
    """Zero points as arrays, None if they are known to be 0."""
    if zero_points is None:
        return None
    if zero_points.p is not None and (_known(zero_points.p) is None or np.any(_known(zero_points.p) != 0)):
        raise KernelError("zero_points.p: needs None or 0, probabilities have no offset; got another value")
    found = [jnp.asarray(z, dtype) for z in zero_points[:3]]
    for name, zero in zip("qkv", found, strict=True):
        if zero.shape not in ((), (heads,)):
            raise KernelError(
                f"zero_points.{name}: needs a scalar or [H] = [{heads}]; got shape {zero.shape}"
            )
    if all(_known(zero) is not None and not np.any(_known(zero)) for zero in found):
        return None
    return AttnSteps(*found)


def _check_codes(name, codes, bits):
    values = _known(codes) if bits < 8 else None  # int8 holds nothing but 8-bit codes
    if values is None or not values.size:
        return
    low, high = quantizers.code_range(bits)
    if values.min() < low or values.max() > high:
        raise KernelError(
            f"{name}: needs {bits}-bit codes of {low}..{high}; got {values.min()}..{values.max()}"
        )


def _check_bias(bias, q_shape, k_shape):
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


def _check_lengths(name, lengths, batch, tokens):
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise KernelError(f"{name}: needs [{batch}] integers; got shape {lengths.shape} of {lengths.dtype}")
    values = _known(lengths)
    if values is not None and (values.min() < 0 or values.max() > tokens):
        raise KernelError(
            f"{name}: needs 0 to {tokens}, the number of tokens; got {values.min()}..{values.max()}"
        )


def _check_segments(name, ids, shape):
    if ids.shape != shape or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise KernelError(f"{name}: needs {shape} integers; got shape {ids.shape} of {ids.dtype}")
    values = _known(ids)
    if values is not None and (np.diff(values, axis=1) < 0).any():
        raise KernelError(f"{name}: needs ids that do not decrease along a row; got some that do")
