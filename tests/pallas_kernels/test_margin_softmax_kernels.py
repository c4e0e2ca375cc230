"""The kernels of `margin_softmax`, interpreted against the XLA path and lowered for their devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from margin_softmax_cases import HEADS, close, ours, problem, user_sized

from pallas_kernels import aot
from pallas_kernels import margin_softmax as ms
from pallas_kernels.margin_softmax import gpu, tpu

# The kernels, step by step on the CPU. Operands that bfloat16 holds make the products exact, so that what is compared with
# the XLA path is the kernel and not its rounding.


def check_kernel(implementation, name, shape, *, masked, dtype=jnp.bfloat16):
    x, w, labels, weights, where = problem(*shape, dtype=jnp.bfloat16)
    x, w, where = x.astype(dtype), w.astype(dtype), where if masked else None
    actual = ours(labels, HEADS[name], where, implementation=implementation)(x, w, weights)
    expected = ours(labels, HEADS[name], where)(x, w, weights)
    close((actual[0], actual[1][2]), (expected[0], expected[1][2]), 2e-5)
    # The gradient by the raw products is rounded to bfloat16, by the XLA path only for bfloat16 embeddings.
    close(actual[1][:2], expected[1][:2], 1e-2)
    if not HEADS[name].one_pass:
        return
    # Without a gradient the loss is computed by another kernel.
    alone = jax.jit(
        lambda x, w: ms.margin_softmax(
            x, w, labels, HEADS[name], weights=weights, where=where, implementation=implementation
        )[0]
    )(x, w)
    np.testing.assert_allclose(alone, actual[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "masked"),
    [
        ("sface", (5, 140, 24), True),
        pytest.param("arcface", (130, 257, 40), False, marks=pytest.mark.slow),
        pytest.param("wide", (130, 300, 130), False, marks=pytest.mark.slow),
        pytest.param("insightface", (3, 1, 7), False, marks=pytest.mark.slow),
        pytest.param("softmax", (9, 257, 130), True, marks=pytest.mark.slow),
    ],
)
def test_tpu_kernel(name, shape, masked):
    check_kernel("pallas_tpu_interpret", name, shape, masked=masked)


@pytest.mark.parametrize("name", ["sface", "arcface"])
def test_tpu_kernel_with_two_cores_and_a_batch_in_parts(monkeypatch, name):
    monkeypatch.setattr(tpu, "_blocks", lambda batch, classes, features: (128, 128))
    monkeypatch.setattr(tpu, "_splits", lambda blocks: min(2, blocks))
    check_kernel("pallas_tpu_interpret", name, (130, 257, 16), masked=name == "sface", dtype=jnp.float32)


@pytest.mark.parametrize(
    ("name", "shape", "masked"),
    [
        ("sface", (5, 300, 24), True),
        ("insightface", (7, 257, 64), True),
        pytest.param("arcface", (130, 40, 70), False, marks=pytest.mark.slow),
    ],
)
def test_gpu_kernel(name, shape, masked):
    check_kernel("pallas_gpu_interpret", name, shape, masked=masked)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wide", "softmax"])
def test_gpu_kernel_over_chunks(monkeypatch, name):
    monkeypatch.setattr(gpu, "_CHUNK_BYTES", 1)
    check_kernel("pallas_gpu_interpret", name, (9, 700, 72), masked=True, dtype=jnp.float32)


@pytest.mark.parametrize("name", ["sface", "insightface"])
def test_gpu_kernels_lower(name):
    def call(x, w, labels, where):
        return ms.margin_softmax(x, w, labels, HEADS[name], where=where, implementation="pallas_gpu")[0]

    for function in (call, jax.grad(call, (0, 1)))[not HEADS[name].one_pass :]:
        assert "mosaic_gpu" in aot.lower_for_gpu(
            function, *user_sized(64 * 8192)
        )  # whole chunks: each kernel once
