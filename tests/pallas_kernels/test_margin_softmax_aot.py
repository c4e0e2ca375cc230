"""The kernels compiled by the real TPU and CUDA compilers: 10^6 classes on a shard, forward and gradient, what they hold."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import aot
from pallas_kernels import margin_softmax as ms
from pallas_kernels.margin_softmax import reference

pytest.importorskip("libtpu", reason="the TPU compiler; `make test-aot` installs it")
pytest.importorskip("jax_plugins.xla_cuda13", reason="the CUDA compiler; `make test-aot` installs it")
pytestmark = pytest.mark.aot

HEADS = {"sface": ms.SFace(), "arcface": ms.arcface(), "filtered": ms.Margin(filter_above=0.4)}


def loss(x, prototypes, labels, where=None, *, head, implementation):
    return ms.margin_softmax(x, prototypes, labels, head, where=where, implementation=implementation)[0]


def arguments(batch, classes, features, dtype=jnp.float32, *, where=False):
    shapes = [
        jax.ShapeDtypeStruct((batch, features), dtype),
        jax.ShapeDtypeStruct((classes, features), dtype),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    ]
    return (*shapes, jax.ShapeDtypeStruct((classes,), jnp.bool_)) if where else tuple(shapes)


def bound(batch, classes, features):
    """A few copies of the embeddings and of what belongs to a row or a class, for two cores: no [B, C] and no copy of W."""
    return 4 * (6 * batch * features + 64 * batch + 4 * classes) + (1 << 20)


@pytest.mark.parametrize("tpu", aot.TPUS)
@pytest.mark.parametrize("name", ["sface", "arcface"])
def test_a_million_classes_on_a_chip(tpu, name):
    shapes = (1024, 1_000_000, 512)
    call = functools.partial(loss, head=HEADS[name], implementation="pallas_tpu")
    for function in (call, jax.value_and_grad(call, (0, 1))):
        report = aot.compile_for_tpu(function, *arguments(*shapes), tpu=tpu)
        print(tpu, name, report)  # noqa: T201
        assert report.temporary_bytes <= bound(*shapes) < 4 * 1024 * 1_000_000 / 100
    # The gradient is the prototypes once more, and nothing else of that size; all of it fits the smallest chip's 16 GB.
    assert report.output_bytes <= 4 * (1024 + 1_000_000) * 512 + 4096
    assert report.argument_bytes + report.output_bytes + report.temporary_bytes < 16e9


@pytest.mark.parametrize("tpu", ["v4", "v5e"])
@pytest.mark.parametrize(
    ("batch", "classes", "features", "dtype", "where", "name"),
    [
        (8192, 100_000, 512, jnp.float32, False, "sface"),  # the batch in parts that add to one gradient
        (512, 93_431, 128, jnp.bfloat16, True, "arcface"),  # a last block that is not full, and a mask
        (100, 10_575, 200, jnp.float32, True, "filtered"),  # nothing divides anything
        (1024, 1000, 2048, jnp.float32, False, "sface"),
    ],
)
def test_other_shapes(tpu, batch, classes, features, dtype, where, name):
    call = functools.partial(loss, head=HEADS[name], implementation="pallas_tpu")
    given = arguments(batch, classes, features, dtype, where=where)
    report = aot.compile_for_tpu(jax.value_and_grad(call, (0, 1)), *given, tpu=tpu)
    print(tpu, batch, classes, features, name, report)  # noqa: T201
    # Features that are no multiple of 128 lanes cost padded copies of the prototypes and of their gradient.
    padding = 0 if features % 128 == 0 else 2 * classes * 256 * 4
    assert report.temporary_bytes <= bound(batch, classes, features) + padding


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("implementation", ["pallas_gpu", "xla"])
def test_a_million_classes_on_a_gpu(implementation, name):
    """A chunk of the gradient by the cosines and three products' worth of buffers; materialized they take 4.1 GB."""
    shapes = (1024, 1_000_000, 512)
    call = functools.partial(loss, head=HEADS[name], implementation=implementation)
    report = aot.compile_for_gpu(jax.value_and_grad(call, (0, 1)), *arguments(*shapes))
    print(implementation, name, report)  # noqa: T201
    assert 1 << 20 < report.temporary_bytes < 160 << 20
    assert bool(report.kernels) == (implementation == "pallas_gpu")
    # Registers that do not suffice go to memory and back; a few words of them cost nothing that matters.
    assert all(kernel.spill_bytes <= 512 for kernel in report.kernels)
    assert all("HGMMA.64x256x16.F32.BF16" in kernel.matrix_instructions for kernel in report.kernels)


def test_materialized_they_take_a_hundred_times_as_much():
    def materialized(x, prototypes, labels):
        rows = (x.astype(jnp.bfloat16), prototypes.astype(jnp.bfloat16))
        return reference.row_losses(*rows, labels, HEADS["sface"]).mean()

    given = arguments(1024, 1_000_000, 512)
    report = aot.compile_for_gpu(jax.value_and_grad(materialized, (0, 1)), *given)
    print("materialized", report)  # noqa: T201
    assert report.temporary_bytes > 4e9


@pytest.mark.parametrize(("batch", "classes", "features"), [(1000, 93_431, 512), (100, 10_575, 200)])
def test_odd_shapes_on_a_gpu(batch, classes, features):
    call = functools.partial(loss, head=HEADS["filtered"], implementation="pallas_gpu")
    given = arguments(batch, classes, features, jnp.bfloat16, where=True)
    report = aot.compile_for_gpu(jax.value_and_grad(call, (0, 1)), *given, gpu="H100")
    assert report.temporary_bytes < 160 << 20


def test_what_does_not_fit_is_refused():
    call = functools.partial(loss, head=HEADS["sface"], implementation="pallas_tpu")
    with pytest.raises(ms.api.KernelError, match="do not fit the vector memory"):
        aot.compile_for_tpu(call, *arguments(128, 1000, 1 << 14), tpu="v5e")
