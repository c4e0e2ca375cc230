"""Binary convolution compiled by the real TPU and CUDA compilers at the layers of ResNet-18 and ResNet-50."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import aot, common
from pallas_kernels import binary_conv as bc
from pallas_kernels.binary_conv import api, gpu

pytest.importorskip("libtpu", reason="the TPU compiler; `make test-aot` installs it")
pytest.importorskip("jax_plugins.xla_cuda13", reason="the CUDA compiler; `make test-aot` installs it")
pytestmark = pytest.mark.aot

LAYERS = {
    # H, C, O, kernel, stride
    "r18 56x56 64-128 stride 2": (56, 64, 128, 3, 2),
    "r18 28x28 128-128": (28, 128, 128, 3, 1),
    "r18 14x14 256-256": (14, 256, 256, 3, 1),
    "r18 7x7 512-512": (7, 512, 512, 3, 1),
    "r50 28x28 512-128": (28, 512, 128, 1, 1),
    "r50 7x7 512-2048": (7, 512, 2048, 1, 1),
}
BATCH = 32


def operands(layer):
    size, c, o, k, stride = LAYERS[layer]
    words, out = common.cdiv(c, 32), common.cdiv(size, stride)
    xp = jax.ShapeDtypeStruct((BATCH, size, size, words), jnp.uint32)
    wp = jax.ShapeDtypeStruct((k, k, o, words), jnp.uint32)
    options = {"channels": c, "strides": stride, "implementation": "pallas_tpu"}
    # What is held between XLA and the kernel are packed patches, padded to whole vector registers while XLA rearranges
    # them, and the unpacked weights; unpacked patches would take K bytes for each output pixel.
    bound = max(BATCH * out * out * k * k * c / 2, 4 * k * k * c * max(o, 128), 48 << 20)
    return xp, wp, (BATCH, out, out, o), options, bound


@pytest.mark.parametrize("tpu", list(aot.TPUS))
@pytest.mark.parametrize("layer", LAYERS)
def test_block(layer, tpu):
    xp, wp, shape, options, bound = operands(layer)
    per_output = jax.ShapeDtypeStruct(shape[-1:], jnp.float32)
    report = aot.compile_for_tpu(
        functools.partial(bc.binary_conv2d_block, **options),
        xp,
        wp,
        per_output,
        per_output,
        jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        per_output,
        per_output,
        tpu=tpu,
    )
    print(tpu, layer, "block", report)  # noqa: T201
    assert report.temporary_bytes < bound


@pytest.mark.parametrize("tpu", list(aot.TPUS))
def test_convolution(tpu):
    xp, wp, _, options, bound = operands("r18 28x28 128-128")
    report = aot.compile_for_tpu(functools.partial(bc.binary_conv2d, **options), xp, wp, tpu=tpu)
    print(tpu, "convolution", report)  # noqa: T201
    assert report.temporary_bytes < bound


@pytest.mark.parametrize("tpu", list(aot.TPUS))
def test_gradient_of_the_training_form(tpu):
    x = jax.ShapeDtypeStruct((BATCH, 28, 28, 128), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)
    alpha = jax.ShapeDtypeStruct((128,), jnp.float32)

    def loss(x, w, alpha):
        return jnp.sum(bc.binary_conv2d_ste(x, w, alpha).astype(jnp.float32) ** 2)

    report = aot.compile_for_tpu(jax.grad(loss, argnums=(0, 1, 2)), x, w, alpha, tpu=tpu)
    print(tpu, "gradient", report)  # noqa: T201
    # Less than four activations in bfloat16: packing and unpacking what is kept may not expand it to words in between.
    assert report.temporary_bytes < 4 * BATCH * 28 * 28 * 128 * 2


@pytest.mark.parametrize("bits", [False, True], ids=["int8", "1-bit"])
@pytest.mark.parametrize("layer", LAYERS)
def test_block_on_a_gpu(layer, bits):
    """The machine code holds the instruction that the route is about: 8-bit products, or AND and count of 256 bits."""
    size, c, o, k, stride = LAYERS[layer]
    words, out = common.cdiv(c, 32), common.cdiv(size, stride)

    def block(xp, wp, scale, shift, residual, prelu, bias):
        geometry = api.geometry_of(xp, wp, c, stride, "SAME", "zero")
        return gpu.block(xp, wp, geometry, scale, shift, residual, prelu, bias, interpret=False, bits=bits)

    batch = 256
    xp = jax.ShapeDtypeStruct((batch, size, size, words), jnp.uint32)
    wp = jax.ShapeDtypeStruct((k, k, o, words), jnp.uint32)
    per_output = jax.ShapeDtypeStruct((o,), jnp.float32)
    residual = jax.ShapeDtypeStruct((batch, out, out, o), jnp.bfloat16)
    report = aot.compile_for_gpu(block, xp, wp, per_output, per_output, residual, per_output, per_output)
    print(layer, "1-bit" if bits else "int8", report)  # noqa: T201
    (kernel,) = report.kernels
    assert ("BGMMA.64x128x256.AND.POPC" in kernel.matrix_instructions) == bits
    assert any(name.endswith("S8.S8") for name in kernel.matrix_instructions)
    assert kernel.spill_bytes <= 128
    # Packed operands in the order that the kernel reads them; in bfloat16 the input alone would take this.
    assert report.temporary_bytes < 2 * batch * size * size * c
