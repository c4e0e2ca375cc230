"""Quantized attention compiled by the real TPU and CUDA compilers, without either chip."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import aot
from pallas_kernels import quantized_attention as qa

pytest.importorskip("libtpu", reason="the TPU compiler; `make test-aot` installs it")
pytest.importorskip("jax_plugins.xla_cuda13", reason="the CUDA compiler; `make test-aot` installs it")
pytestmark = pytest.mark.aot

LSQ = ("lsq", (8, 8, 8, 8))
LOW = ("lsq", (2, 2, 2, 2))
PTQ = ("ptq", (8, 8, 8, 8))

FORWARD = {
    "vit-s": ((256, 6, 197, 64), (LSQ,)),
    "vit-b": ((256, 12, 197, 64), (LSQ,)),
    "detr": ((16, 8, 850, 32), (LSQ,)),
    "4k": ((2, 16, 4096, 64), (LOW, PTQ)),
    "4k-128": ((2, 16, 4096, 128), (PTQ,)),
    "16k": ((2, 16, 16384, 64), (LSQ,)),
    "16k-128": ((1, 16, 16384, 128), (PTQ,)),
}
BACKWARD = {"vit-s": (LSQ,), "4k": (LSQ, PTQ)}


@pytest.mark.parametrize("tpu", aot.TPUS)
@pytest.mark.parametrize("name", FORWARD)
def test_forward(tpu, name):
    """Beyond its arguments it holds copies of them whose channels are padded to 128 lanes, never scores."""
    (batch, heads, tokens, d), contracts = FORWARD[name]
    struct = jax.ShapeDtypeStruct
    codes = [struct((batch, heads, tokens, d), jnp.int8)] * 2 + [struct((batch, heads, d, tokens), jnp.int8)]
    for mode, bits in contracts:
        head, rows = struct((heads,), jnp.float32), struct((batch, heads, tokens), jnp.float32)
        steps = qa.AttnSteps(rows, rows, struct((batch, heads, d), jnp.float32))
        steps = steps if mode == "ptq" else qa.AttnSteps(head, head, head, head)

        def attend(q, k, v, steps, lengths, mode=mode, bits=bits):
            return qa.quantized_attention_codes(
                q,
                k,
                v,
                steps=steps,
                bits=bits,
                mode=mode,
                kv_lengths=lengths,
                return_residuals=True,
                implementation="pallas_tpu",
            )

        report = aot.compile_for_tpu(attend, *codes, steps, struct((batch,), jnp.int32), tpu=tpu)
        print(tpu, name, mode, bits, report)  # noqa: T201
        assert report.temporary_bytes < 2 * 128 // d * (report.argument_bytes + report.output_bytes)
        if tokens >= 850:  # scores in int8 would be
            assert report.temporary_bytes < batch * heads * tokens**2


@pytest.mark.parametrize("tpu", aot.TPUS)
@pytest.mark.parametrize("name", BACKWARD)
def test_gradient(tpu, name):
    (batch, heads, tokens, d), _ = FORWARD[name]
    x = jax.ShapeDtypeStruct((batch, heads, tokens, d), jnp.bfloat16)
    head = jax.ShapeDtypeStruct((heads,), jnp.float32)
    for mode, bits in BACKWARD[name]:

        def loss(q, k, v, steps, mode=mode, bits=bits):
            out = qa.quantized_attention(
                q, k, v, steps=steps, bits=bits, mode=mode, implementation="pallas_tpu"
            )
            return jnp.sum(out.astype(jnp.float32) ** 2)

        steps = qa.AttnSteps(head, head, head, head) if mode == "lsq" else None
        gradient = jax.grad(loss, (0, 1, 2, 3) if steps else (0, 1, 2))
        report = aot.compile_for_tpu(gradient, x, x, x, steps, tpu=tpu)
        print(tpu, name, mode, bits, report)  # noqa: T201
        assert report.temporary_bytes < 6 * report.argument_bytes
        if tokens >= 850:
            assert report.temporary_bytes < batch * heads * tokens**2


@pytest.mark.parametrize("name", FORWARD)
def test_forward_on_a_gpu(name):
    """Each kernel is assembled without spilling a register, and nothing of the size of the scores is held."""
    (batch, heads, tokens, d), contracts = FORWARD[name]
    x = jax.ShapeDtypeStruct((batch, heads, tokens, d), jnp.bfloat16)
    head = jax.ShapeDtypeStruct((heads,), jnp.float32)
    for mode, bits in contracts:

        def attend(q, k, v, steps, mode=mode, bits=bits):
            return qa.quantized_attention(
                q, k, v, steps=steps, bits=bits, mode=mode, implementation="pallas_gpu"
            )

        steps = qa.AttnSteps(head, head, head, head) if mode == "lsq" else None
        report = aot.compile_for_gpu(attend, x, x, x, steps)
        print(name, mode, bits, report)  # noqa: T201
        assert report.kernels and all(kernel.matrix_instructions for kernel in report.kernels)
        assert all(kernel.spill_bytes == 0 for kernel in report.kernels)
        assert all("S8.S8" in name for kernel in report.kernels for name in kernel.matrix_instructions)
        assert report.temporary_bytes < report.argument_bytes
