"""Attention on quantized operands: what to call, its checks, and the choice of an implementation."""

import math

import jax
import jax.numpy as jnp

from pallas_kernels import common
from pallas_kernels.common import KernelError
from pallas_kernels.quantized_attention import checks, gpu, operands, quantizers, tpu, vjp
from pallas_kernels.quantized_attention.steps import AttnSteps, Config, Mode


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
    quantizer sees normalized probabilities, so a quantized row need not sum to 1. "ptq" replaces the attention of a network
    that was not trained for it (SageAttention): the normalizer is the float one. A kernel that walks over blocks of keys
    takes e against the running maximum of its row, which is never a coarser grid than the one above.

    Gradients go straight through every rounding. "lsq": entries that a quantizer clips get none; the steps get theirs,
    scaled by g = 1/√(numel · Qp) (arXiv:1902.08153, eq. 3 and section 2.2). "ptq": those of the attention with
    p unquantized at the dequantized operands; the steps get none. `bias` gets its gradient in both.

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
      implementation: see `pallas_kernels.common.Implementation`; None chooses among those, which give the same values up to
        rounding.

    Returns:
      o [B, H, Nq, d] in the dtype of q; a query that sees no key gives 0. With `return_residuals` also the natural
      log-sum-exp of the logits [B, H, Nq] float32 (-inf for such a query), differentiable too.

    Raises:
      KernelError: shapes, dtypes, bits or mode out of range; steps that are not positive, lengths above N, or segment ids
        that decrease, where their values are known; an implementation that cannot run here.

    Source: arXiv:2210.06707 (Q-ViT), arXiv:2410.02367 (SageAttention).
    """
    checks.check_operands(q, k, v)
    bits = checks.check_mode(mode, bits)
    batch, heads, _, d = q.shape
    starts, ends = operands.windows(q.shape, k.shape, q_lengths, kv_lengths, segment_ids)
    checks.check_bias(bias, q.shape, k.shape)
    precise = quantizers.step_dtype(q)
    if mode == "lsq":
        if steps is None or steps.p is None:
            raise KernelError(
                'steps: mode "lsq" needs AttnSteps(q, k, v, p); got none for ' + ("p" if steps else "all")
            )
        steps = checks.check_steps(steps, mode, q.shape, k.shape, precise)
        zero_points = checks.check_zero_points(zero_points, heads, precise)
    else:
        if zero_points is not None:
            raise KernelError('zero_points: needs mode "lsq"; got mode "ptq"')
        if steps is not None:
            if steps.p is not None:
                raise KernelError(f'steps: p is static in mode "ptq" and needs None; got {steps.p}')
            steps = checks.check_steps(steps, mode, q.shape, k.shape, precise)
    limits = {
        "shape": (*q.shape[:3], k.shape[2], d),
        "bias": bias is not None,
        "zero_points": zero_points is not None,
        "dtype": q.dtype,
    }
    config = Config(mode, bits, _choose(implementation, mode, limits, codes=False))
    if mode == "lsq":
        out, lse = vjp.lsq(config, q, k, v, steps, zero_points, bias, starts, ends)
        return (out, lse) if return_residuals else out

    shift = None
    if steps is None:
        smooth, mean = quantizers.subtract_mean(k, kv_lengths)
        if kv_lengths is not None:  # padding must not widen the values' steps
            v = jnp.where((jnp.arange(v.shape[2]) < kv_lengths[:, None])[:, None, :, None], v, 0).astype(
                v.dtype
            )
        out, lse = vjp.ptq(config, q, smooth, v, None, bias, starts, ends)
        shift = jnp.einsum("bhqd,bhkd->bhq", q, mean, preferred_element_type=precise) / math.sqrt(d)
    else:
        out, lse = vjp.ptq(config, q, k, v, steps, bias, starts, ends)
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
    bits = checks.check_mode(mode, bits)
    for name, x, b in (("q8", q8, bits[0]), ("k8", k8, bits[1]), ("v8_t", v8_t, bits[2])):
        if x.ndim != 4:
            raise KernelError(f"{name}: needs 4 axes; got shape {x.shape}")
        if x.dtype != jnp.int8:
            raise KernelError(f"{name}: needs signed codes in int8; got {x.dtype}")
        checks.check_codes(name, x, b)
    v8 = jnp.swapaxes(v8_t, 2, 3)
    checks.check_shapes(q8, k8, v8, "q8", "k8", "v8_t")
    starts, ends = operands.windows(q8.shape, k8.shape, q_lengths, kv_lengths, segment_ids)
    if (steps.p is None) == (mode == "lsq"):
        raise KernelError(
            'steps: p needs a step in mode "lsq" and None in mode "ptq"; got mode ' + repr(mode)
        )
    steps = checks.check_steps(steps, mode, q8.shape, k8.shape, jnp.float32)
    limits = {
        "shape": (*q8.shape[:3], k8.shape[2], q8.shape[3]),
        "bias": False,
        "zero_points": False,
        "dtype": out_dtype,
    }
    config = Config(mode, bits, _choose(implementation, mode, limits, codes=True))
    out, lse = vjp.forward(config, operands.problem(steps, q8, k8, v8, None, starts, ends), out_dtype)
    return (out, lse) if return_residuals else out


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
