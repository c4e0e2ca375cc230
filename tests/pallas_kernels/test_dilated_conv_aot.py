"""The kernels compiled by the real TPU and CUDA compilers at the layers of detectors and segmenters, and what they hold."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import aot
from pallas_kernels import dilated_conv as dc
from pallas_kernels.common import round_up

pytest.importorskip("libtpu", reason="the TPU compiler; `make test-aot` installs it")
pytest.importorskip("jax_plugins.xla_cuda13", reason="the CUDA compiler; `make test-aot` installs it")
pytestmark = pytest.mark.aot

LAYERS = {
    # N, H, W, C, O, d
    "context s8": (32, 80, 80, 64, 16, 2),
    "resnet context": (24, 105, 105, 256, 64, 2),
    "jpu d=1": (16, 60, 60, 1536, 512, 1),
    "jpu d=8": (16, 60, 60, 1536, 512, 8),
}
TINY_YOLO = [(416, 3, 16), (104, 32, 64), (13, 1024, 1024)]  # H = W, C, M


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def cascade(kind, layer, implementation):
    """A function of a dict of arrays, and those."""
    n, height, width, channels, outputs, dilation = LAYERS[layer]
    x = array(n, height, width, channels, dtype=jnp.bfloat16)
    options = {"dilation": dilation, "activation": "relu", "implementation": implementation}
    if kind == "depthwise":
        arrays = {"w": array(3, 3, channels), "pointwise": array(channels, outputs)}
        return lambda arrays: dc.depthwise_conv(**arrays, **options), {"x": x} | arrays
    arrays = {
        "ddp": {
            "a": array(2, 2, channels),
            "b": array(2, 2, channels),
            "pointwise": array(channels, outputs),
        },
        "dc": {"a": array(2, 2, channels), "b": array(2, 2, channels, outputs)},
        "cc": {"a": array(2, 2, channels, outputs), "b": array(2, 2, outputs, outputs)},
    }[kind]
    return lambda arrays: dc.cassod(**arrays, **options, kind=kind), {"x": x} | arrays


def pooled(size, channels, maps, implementation):
    arrays = {"x": array(32, size, size, channels, dtype=jnp.bfloat16), "w": array(3, 3, channels, 2 * maps)}
    options = {"activation": "prelu", "implementation": implementation}
    return lambda arrays: dc.conv_ccp(**arrays, bias=jnp.zeros(2 * maps), groups=2, **options), arrays


def gradient(call):
    return jax.value_and_grad(lambda arrays: jnp.sum(call(arrays).astype(jnp.float32)))


def lanes(shape, dtype):
    """Bytes of an image on a TPU, whose columns are a multiple of 16 sublanes and whose channels are of 128 lanes."""
    n, height, width, channels = shape
    return n * height * round_up(width, 16) * round_up(channels, 128) * jnp.dtype(dtype).itemsize


def forward_bound(arrays, outputs):
    """x and y once more each, in a TPU's layout: the image's channels go onto lanes before the kernel, and come off after it;
    and rounded copies of the parameters. A stored intermediate would be another map of that size, in float32. A quarter more
    is left to the compiler, which on some generations rearranges a part of an image at a time."""
    x = arrays["x"]
    parameters = sum(4 * v.size for name, v in arrays.items() if name != "x")
    images = lanes(x.shape, x.dtype) + lanes((*x.shape[:3], outputs), x.dtype)
    return 1.25 * images + 2 * parameters + (4 << 20)


@pytest.mark.parametrize("tpu", aot.TPUS)
@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        *(("ddp", layer) for layer in LAYERS),
        *(("dc", layer) for layer in ("context s8", "resnet context", "jpu d=8")),
        ("cc", "resnet context"),
        *(("depthwise", layer) for layer in ("resnet context", "jpu d=8")),
    ],
)
def test_cascades_on_a_tpu(kind, layer, tpu):
    call, arrays = cascade(kind, layer, "pallas_tpu")
    report = aot.compile_for_tpu(call, arrays, tpu=tpu)
    print(tpu, kind, layer, report)  # noqa: T201
    assert report.temporary_bytes <= forward_bound(arrays, LAYERS[layer][4])


@pytest.mark.parametrize("tpu", aot.TPUS)
@pytest.mark.parametrize(("size", "channels", "maps"), TINY_YOLO)
def test_pooling_on_a_tpu(size, channels, maps, tpu):
    call, arrays = pooled(size, channels, maps, "pallas_tpu")
    report = aot.compile_for_tpu(call, arrays, tpu=tpu)
    print(tpu, size, report)  # noqa: T201
    assert report.temporary_bytes <= forward_bound(arrays, maps)


@pytest.mark.parametrize("tpu", aot.TPUS)
@pytest.mark.parametrize(
    ("kind", "layer"), [("ddp", "context s8"), ("ddp", "resnet context"), ("depthwise", "resnet context")]
)
def test_gradients_on_a_tpu(kind, layer, tpu):
    """Between the matrix products and the stencil there are V and its gradient, at most in float32; x and dx once more in
    lanes of their own are as much as one of them."""
    call, arrays = cascade(kind, layer, "pallas_tpu")
    report = aot.compile_for_tpu(gradient(call), arrays, tpu=tpu)
    print(tpu, kind, layer, "gradient", report)  # noqa: T201
    assert report.temporary_bytes <= 3 * lanes(arrays["x"].shape, jnp.float32)


def on_a_gpu(call, arrays, outputs, what):
    """Nothing but kernels: beside arguments and results there are the parameters in the kernel's order, rounded and padded."""
    report = aot.compile_for_gpu(call, arrays)
    print("H200", what, report)  # noqa: T201
    x = arrays["x"]
    parameters = sum(4 * v.size for name, v in arrays.items() if name != "x")
    # Copies of an image whose channels the copy engine cannot move, 3 of them, are padded to 16.
    image = 2 * x.size // x.shape[-1] * 16 if x.shape[-1] % 8 else 0
    # A product by more than 128 columns is XLA's, and what it multiplies is stored.
    stored = 2 * x.size if what[0] in ("ddp", "depthwise") and outputs > 128 else 0
    assert report.temporary_bytes <= 4 * parameters + image + stored + (4 << 20)
    assert report.kernels
    # Registers that do not suffice go to memory and back; a few words of them cost nothing that matters.
    assert all(kernel.spill_bytes <= 512 for kernel in report.kernels)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        *(("ddp", layer) for layer in LAYERS),
        *(("dc", layer) for layer in ("context s8", "resnet context", "jpu d=8")),
        *(("depthwise", layer) for layer in ("context s8", "resnet context")),
    ],
)
def test_cascades_on_a_gpu(kind, layer):
    on_a_gpu(*cascade(kind, layer, "pallas_gpu"), LAYERS[layer][4], (kind, layer))


@pytest.mark.parametrize(("size", "channels", "maps"), TINY_YOLO)
def test_pooling_on_a_gpu(size, channels, maps):
    on_a_gpu(*pooled(size, channels, maps, "pallas_gpu"), maps, ("ccp", size))


def test_gradients_on_a_gpu():
    """XLA's, around kernels that compute the output: some maps in float32 as large as x."""
    call, arrays = cascade("ddp", "resnet context", "pallas_gpu")
    report = aot.compile_for_gpu(gradient(call), arrays)
    print("H200 ddp gradient", report)  # noqa: T201
    assert report.temporary_bytes <= 4 * 4 * arrays["x"].size
