"""The compilers of absent chips: what they report, and that they fail where the chip would."""

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import aot

pytest.importorskip("libtpu", reason="the TPU compiler; `make test-aot` installs it")
pytest.importorskip("jax_plugins.xla_cuda13", reason="the CUDA compiler; `make test-aot` installs it")
pytestmark = pytest.mark.aot

VECTOR = jax.ShapeDtypeStruct((1 << 20,), jnp.float32)


def tpu_copy(scratch_rows):
    def body(x, y, _):
        y[...] = x[...]

    def call(x):
        return pl.pallas_call(
            body,
            out_shape=x,
            grid=(8,),
            in_specs=[pl.BlockSpec((128, 128), lambda i: (i, 0))],
            out_specs=pl.BlockSpec((128, 128), lambda i: (i, 0)),
            scratch_shapes=[pltpu.VMEM((scratch_rows, 128), jnp.float32)],
            cost_estimate=pl.CostEstimate(flops=7, bytes_accessed=9, transcendentals=0),
        )(x)

    return call


def gpu_copy(rows):
    def body(x, y, smem, barrier):
        plgpu.copy_gmem_to_smem(x.at[pl.ds(0, rows)], smem, barrier)
        plgpu.barrier_wait(barrier)
        plgpu.copy_smem_to_gmem(smem, y)
        plgpu.wait_smem_to_gmem(0)

    def call(x):
        return plgpu.kernel(
            body,
            out_type=jax.ShapeDtypeStruct((rows, 128), x.dtype),
            scratch_types=[plgpu.SMEM((rows, 128), x.dtype), plgpu.Barrier()],
            grid=(1,),
            grid_names=("i",),
        )(x)

    return call


@pytest.mark.parametrize("compile_for", [aot.compile_for_tpu, aot.compile_for_gpu])
def test_bytes(compile_for):
    report = compile_for(lambda x: jnp.cumsum(x)[::-1] * jnp.sum(x), VECTOR)
    assert report.argument_bytes == report.output_bytes == 4 << 20
    assert 0 < report.temporary_bytes < 64 << 20


@pytest.mark.parametrize("tpu", aot.TPUS)
def test_a_tpu_kernel_compiles_and_its_estimate_is_reported(tpu):
    report = aot.compile_for_tpu(tpu_copy(128), jax.ShapeDtypeStruct((1024, 128), jnp.float32), tpu=tpu)
    assert report.flops == 7
    assert report.argument_bytes == 1024 * 128 * 4


def test_a_tpu_kernel_that_does_not_fit_fails():
    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        aot.compile_for_tpu(tpu_copy(1 << 20), jax.ShapeDtypeStruct((1024, 128), jnp.float32))


@pytest.mark.parametrize("gpu", aot.GPUS)
def test_a_gpu_kernel_is_assembled(gpu):
    rows = {"H100": 128, "H200": 256}[gpu]
    report = aot.compile_for_gpu(gpu_copy(rows), jax.ShapeDtypeStruct((1024, 128), jnp.float32), gpu=gpu)
    (kernel,) = report.kernels
    assert 0 < kernel.registers < 256
    assert kernel.spill_bytes == 0
    assert kernel.matrix_instructions == ()


def test_a_gpu_kernel_that_does_not_fit_fails():
    with pytest.raises(Exception, match=r"[Ss]hared memory|smem|SMEM"):
        aot.compile_for_gpu(gpu_copy(1024), jax.ShapeDtypeStruct((1024, 128), jnp.float32))
