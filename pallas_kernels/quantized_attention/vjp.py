"""Both contracts with their gradients: quantizers, the chosen kernel and the way back, straight through every rounding."""

import functools
import math

import jax
import jax.numpy as jnp

from pallas_kernels import common
from pallas_kernels.quantized_attention import gpu, operands, quantizers, tpu, tpu_backward, xla
from pallas_kernels.quantized_attention.steps import AttnSteps


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def lsq(config, q, k, v, steps, zero_points, bias, starts, ends):
    return _lsq_forward(config, q, k, v, steps, zero_points, bias, starts, ends)[0]


def _lsq_problem(config, q, k, v, steps, zero_points, bias, starts, ends):
    def codes(name, x, bits):
        step, zero = (operands.aligned(given, name, x.shape[1]) for given in (steps, zero_points))
        quantized = quantizers.quantize_lsq(x, step, bits=bits, zero_point=zero)
        return quantized if zero is None else quantized.astype(step.dtype) - jnp.round(zero)

    quantized = [codes(name, x, b) for name, x, b in zip("qkv", (q, k, v), config.bits[:3], strict=True)]
    return operands.problem(steps, *quantized, bias, starts, ends)


def _lsq_forward(config, q, k, v, steps, zero_points, bias, starts, ends):
    problem = _lsq_problem(config, q, k, v, steps, zero_points, bias, starts, ends)
    out, lse = forward(config, problem, q.dtype)
    # The codes are made again from q, k, v, which the steps' gradients need anyway.
    return (out, lse), (q, k, v, steps, zero_points, bias, starts, ends, lse)


def _lsq_backward(config, saved, cotangents):
    q, k, v, steps, zero_points, bias, starts, ends, lse = saved
    problem = _lsq_problem(config, q, k, v, steps, zero_points, bias, starts, ends)
    d_out, d_lse = cotangents
    gradients = _gradients(config, problem, d_out.astype(q.dtype), d_lse, None, lse)
    d_inputs, d_steps, d_zeros = [], [], []
    for name, x, d_hat, bits in zip("qkv", (q, k, v), gradients[:3], config.bits[:3], strict=True):
        step, zero = (operands.aligned(given, name, x.shape[1]) for given in (steps, zero_points))
        d_x, d_step, d_zero = quantizers.lsq_gradients(x, step, d_hat, bits=bits, zero_point=zero)
        d_inputs.append(d_x)
        d_steps.append(operands.sum_to(d_step, getattr(steps, name)))
        d_zeros.append(None if d_zero is None else operands.sum_to(d_zero, getattr(zero_points, name)))
    probabilities = math.prod(q.shape[:3]) * k.shape[2]
    d_p_step = gradients.p_step[0] / math.sqrt(probabilities * config.largest)
    d_steps.append(operands.sum_to(d_p_step[None, :, None, None], steps.p))
    d_zero_points = None if zero_points is None else AttnSteps(*d_zeros, None)
    d_bias = None if bias is None else gradients.bias.astype(bias.dtype)
    return *d_inputs, AttnSteps(*d_steps), d_zero_points, d_bias, None, None


lsq.defvjp(_lsq_forward, _lsq_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def ptq(config, q, k, v, steps, bias, starts, ends):
    return _ptq_forward(config, q, k, v, steps, bias, starts, ends)[0]


def _ptq_forward(config, q, k, v, steps, bias, starts, ends):
    if steps is None:
        blocks = {"granularity": "block"}
        q8, q_step = quantizers.quantize_absmax(q, block=quantizers.Q_BLOCK, bits=config.bits[0], **blocks)
        k8, k_step = quantizers.quantize_absmax(k, block=quantizers.KV_BLOCK, bits=config.bits[1], **blocks)
        v8, v_step = quantizers.quantize_channels(v, bits=config.bits[2])
        all_steps = AttnSteps(q_step, k_step, v_step)
    else:
        all_steps = steps
        q8, k8 = (
            quantizers.quantize_lsq(x, operands.rows(step)[..., None], bits=b)
            for x, step, b in zip((q, k), steps[:2], config.bits[:2], strict=True)
        )
        v8 = quantizers.quantize_lsq(v, operands.rows(steps.v)[:, :, None], bits=config.bits[2])
    problem = operands.problem(all_steps, q8, k8, v8, bias, starts, ends)
    out, lse = forward(config, problem, q.dtype)
    likes = tuple(jnp.zeros((0,), x.dtype) for x in (q, k, v))
    return (out, lse), (problem, out, lse, steps, likes)


def _ptq_backward(config, saved, cotangents):
    problem, out, lse, steps, likes = saved
    d_out, d_lse = cotangents
    gradients = _gradients(config, problem, d_out.astype(out.dtype), d_lse, out, lse)
    d_inputs = (d.astype(like.dtype) for d, like in zip(gradients[:3], likes, strict=True))
    d_bias = None if problem.bias is None else gradients.bias.astype(problem.bias.dtype)
    d_steps = None if steps is None else jax.tree.map(jnp.zeros_like, steps)
    return *d_inputs, d_steps, d_bias, None, None


ptq.defvjp(_ptq_forward, _ptq_backward)


def forward(config, problem, dtype):
    """(o, lse) by the implementation that the call has; without gradients of its own."""
    if config.implementation.startswith("pallas_gpu"):
        run = functools.partial(gpu.attention, interpret=common.interpret(config.implementation), dtype=dtype)
    elif config.implementation.startswith("pallas_tpu"):
        run = functools.partial(tpu.attention, interpret=common.interpret(config.implementation), dtype=dtype)
    else:
        run = xla.attention
    out, lse = run(problem, largest=config.largest)
    return out.astype(dtype), lse


def _gradients(config, problem, d_out, d_lse, out, lse):
    arguments = (problem, d_out, d_lse, out, lse)
    if config.implementation.startswith("pallas_tpu"):
        interpret = common.interpret(config.implementation)
        return tpu_backward.gradients(*arguments, largest=config.largest, interpret=interpret)
    return xla.gradients(*arguments, largest=config.largest)  # also after the Hopper forward
