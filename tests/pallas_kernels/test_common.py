"""Choosing an implementation for the device that a trace is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import aot, common, measured

NOTHING = {"pallas_gpu": None, "pallas_tpu": None}
MEASURED = {"op": "binary_conv", "facts": {"operation": "convolution", "pixels": 64}}


@pytest.fixture
def pallas_gpu_is_fastest(monkeypatch):
    """As measurements of an H200 would say."""
    fastest = {("binary_conv", "NVIDIA H200", "gpu"): "pallas_gpu"}
    monkeypatch.setattr(
        measured, "fastest", lambda op, kind, platform, facts: fastest.get((op, kind, platform))
    )


def test_a_trace_on_a_cpu_is_for_a_cpu():
    assert common.target_device().platform == "cpu"
    seen = []
    jax.jit(lambda x: seen.append(common.target_device()) or x)(jnp.zeros(2))
    assert [device.platform for device in seen] == ["cpu"]


def test_a_trace_is_for_the_devices_of_its_mesh():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("shard",))
    seen = []

    def look(x):
        seen.append(common.target_device())
        return x

    whole = jax.sharding.PartitionSpec()
    jax.jit(jax.shard_map(look, mesh=mesh, in_specs=whole, out_specs=whole))(jnp.zeros(2))
    assert seen and all(device == common.Device("cpu", "cpu") for device in seen)


@pytest.mark.parametrize(
    ("kind", "platform", "hopper", "int8"),
    [
        ("NVIDIA H200", "gpu", True, False),
        ("NVIDIA H100 80GB HBM3", "gpu", True, False),
        ("NVIDIA GH200 480GB", "gpu", True, False),
        ("NVIDIA A100-SXM4-80GB", "gpu", False, False),
        ("NVIDIA B200", "gpu", False, False),
        ("TPU v4", "tpu", False, False),
        ("TPU v5 lite", "tpu", False, True),
        ("TPU v5", "tpu", False, True),
        ("TPU v6 lite", "tpu", False, True),
        ("TPU7x", "tpu", False, False),
    ],
)
def test_an_assumed_device(kind, platform, hopper, int8):
    with common.assume_device(kind):
        device = common.target_device()
    assert (device.platform, device.kind) == (platform, kind)
    assert (device.hopper, device.int8_mxu) == (hopper, int8)
    assert common.target_device().platform == "cpu"


def test_the_choice_is_made_anew_for_another_device(pallas_gpu_is_fastest):
    """jit must not reuse what was traced for one device on another."""
    chosen = []

    @jax.jit
    def op(x):
        chosen.append(common.choose(None, NOTHING, **MEASURED))
        return x

    op.trace(jnp.zeros(2))
    with common.assume_device("NVIDIA H200"):
        op.trace(jnp.zeros(2))
    assert chosen == ["xla", "pallas_gpu"]


def test_without_a_wish_the_fastest_runs_where_it_can(pallas_gpu_is_fastest):
    assert common.choose(None, NOTHING, **MEASURED) == "xla", "a CPU always gets XLA"
    with common.assume_device("NVIDIA H200"):
        assert common.choose(None, NOTHING) == "xla", "nothing is known of an op that is not named"
        assert common.choose(None, NOTHING, **MEASURED) == "pallas_gpu"
        assert common.choose(None, {"pallas_gpu": "too odd"}, **MEASURED) == "xla"
        assert common.choose(None, NOTHING, **(MEASURED | {"op": "dilated_conv"})) == "xla"
    with common.assume_device("NVIDIA H100"):
        assert common.choose(None, NOTHING, **MEASURED) == "xla", "another device was measured"


def test_a_wish_is_granted_or_refused_never_changed():
    assert common.choose("xla", {}) == "xla"
    assert common.choose("pallas_tpu_interpret", NOTHING) == "pallas_tpu_interpret"
    with common.assume_device("TPU v5 lite"):
        assert common.choose("pallas_tpu", NOTHING) == "pallas_tpu"
        with pytest.raises(common.KernelError, match="interpreters are for a CPU"):
            common.choose("pallas_tpu_interpret", NOTHING)
    for wish, obstacles, words in [
        ("triton", NOTHING, "implementation: needs None or one of xla, .*; got 'triton'"),
        ("pallas_gpu", NOTHING, "needs a Hopper GPU .*, this is cpu; 'xla' would work"),
        ("pallas_tpu", NOTHING, "needs a TPU, this is cpu"),
        (
            "pallas_tpu_interpret",
            {"pallas_tpu": "C is not a multiple of 8"},
            "cannot run: C is not a multiple of 8",
        ),
        ("pallas_gpu_interpret", {"pallas_tpu": None}, "no such kernel"),
    ]:
        with pytest.raises(common.KernelError, match=words) as caught:
            common.choose(wish, obstacles)
        assert "\n" not in str(caught.value)


def test_interpreters():
    assert common.interpret("xla") is False
    assert common.interpret("pallas_gpu") is False
    assert type(common.interpret("pallas_gpu_interpret")).__name__ == "InterpretGPUParams"
    assert type(common.interpret("pallas_tpu_interpret")).__name__ == "InterpretParams"


def test_sizes():
    assert [common.cdiv(n, 4) for n in (1, 4, 5)] == [1, 1, 2]
    assert [common.round_up(n, 8) for n in (0, 1, 8, 9)] == [0, 8, 8, 16]


def test_lowering_for_a_gpu_sees_that_gpu():
    text = aot.lower_for_gpu(
        lambda x: x * (2.0 if common.target_device().hopper else 3.0), jax.ShapeDtypeStruct((4,), jnp.float32)
    )
    assert "2.0" in text and "3.0" not in text


def test_unknown_chips_are_refused():
    with pytest.raises(common.KernelError, match="tpu: needs one of v4, v5e, v5p, v6e; got 'v3'"):
        aot.compile_for_tpu(lambda x: x, jnp.zeros(2), tpu="v3")
    with pytest.raises(common.KernelError, match="gpu: needs one of H100, H200; got 'A100'"):
        aot.compile_for_gpu(lambda x: x, jnp.zeros(2), gpu="A100")


def test_names():
    assert set(pallas_kernels.__all__) <= set(dir(pallas_kernels))
    with pytest.raises(AttributeError, match="no attribute 'attic'"):
        _ = pallas_kernels.attic
