"""A whole training step compiled by the real TPU compiler for four chips: ten million identities, and what a chip holds."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks import tpu_aot
from experiments.methods import sface
from jaxface import training
from pallas_kernels import aot

pytest.importorskip("libtpu", reason="the TPU compiler; `make test-aot` installs it")
pytestmark = pytest.mark.aot

CONFIG = sface.Config(embedding=512, image_size=8, bfloat16=True, optimizer=training.Optimizer())
CASE = tpu_aot.Case("v5p:2x2x1", identities=10**7, backbone="mlp", batch=1024)
PROTOTYPES = training.prototype_rows(CASE.identities) // 4 * CONFIG.embedding * 4


@pytest.mark.parametrize(
    ("rate", "copies"),
    # Sampled prototypes and their gradient come on top of the gradient of all, and the scores of the draw.
    [(1.0, 1.0), (0.1, 1.4)],
)
def test_a_step_holds_its_state_and_one_gradient(rate, copies):
    case = dataclasses.replace(CASE, sample_rate=rate)
    result = tpu_aot.compile_case(case, CONFIG)
    print(rate, result)  # noqa: T201
    assert tpu_aot.problems(case, result) == []
    assert result.mesh == {"data": 1, "model": 4}
    assert result.rows * CONFIG.embedding * 4 == PROTOTYPES
    # Prototypes and their momentum; all else is a small network and the batch.
    assert 2 * PROTOTYPES < result.state_bytes <= result.report.argument_bytes < 2 * PROTOTYPES + (8 << 20)
    assert result.report.aliased_bytes >= result.state_bytes
    assert result.report.temporary_bytes < copies * PROTOTYPES + (96 << 20)
    assert result.report.largest_array == PROTOTYPES // 4


def test_the_state_is_born_in_its_place():
    report = tpu_aot.compile_case(CASE, CONFIG, init=True).report
    assert report.temporary_bytes < 8 << 20
    assert report.output_bytes < 2 * PROTOTYPES + (8 << 20)


def test_what_is_reported():
    case = dataclasses.replace(CASE, topology="v5e:2x2")
    small = aot.Report(1, 1, 1, 0.0, 0.0, aliased_bytes=1)
    assert small.total_bytes == 2
    large = dataclasses.replace(small, temporary_bytes=14 * 10**9, output_bytes=2 << 20, largest_array=10**12)
    result = tpu_aot.Result({"data": 1, "model": 4}, 2_500_000, 1, large, 1.0)
    assert tpu_aot.problems(case, dataclasses.replace(result, report=small)) == []
    fit, place, array = tpu_aot.problems(case, result)
    assert fit == "it takes 14.0 GB, more than 12.8 GB"
    assert place == "0.002 GB of the new state are not written in place"
    assert array.startswith("an array has 1000000000000 elements")


def test_a_state_that_is_not_donated_and_cosines_that_exist_are_found():
    devices = aot.tpu_devices(CASE.topology)
    mesh = training.make_parallel("jit", devices=devices).mesh
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=whole)

    def function(x):
        return jnp.cumsum(x @ x.T, axis=0)[:, :512]

    for donated, aliased in (((), 0), ((0,), 4 * 1024 * 512)):
        report = aot.compile_for_mesh(function, x, mesh=mesh, donate_argnums=donated)
        assert report.aliased_bytes == aliased
        assert report.largest_array == 1024 * 1024
        assert report.total_bytes == 2 * 4 * 1024 * 512 - aliased + report.temporary_bytes
    with pytest.raises(aot.common.KernelError, match="did not start for v5p:1"):
        aot.tpu_devices("v5p:1")
