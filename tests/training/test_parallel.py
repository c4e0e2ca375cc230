import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from jax.sharding import PartitionSpec as P

from jaxface import training
from jaxface.errors import UserError
from jaxface.training import parallel as parallelism


def train(parallel, **fields):
    outcome = training.run([toy.stage(steps=5, **fields)], parallel=parallel)
    return outcome.metrics, jax.device_get(outcome.state)


@pytest.fixture(scope="module")
def one_device():
    return train(training.make_parallel("jit", devices=jax.devices()[:1]))


@pytest.mark.parametrize(
    ("mode", "model_shards"),
    [("jit", 1), ("jit", 2), ("jit", 4), ("pmap", 1)],
    ids=["jit8x1", "jit4x2", "jit2x4", "pmap8"],
)
def test_eight_devices_equal_one(one_device, mode, model_shards):
    parallel = training.make_parallel(mode, model_shards=model_shards)
    assert parallel.replicas == 8
    rules = {"hidden": P(None, "model")} if model_shards > 1 else {}
    metrics, state = train(parallel, sharding=rules)
    np.testing.assert_allclose(metrics["norm"], one_device[0]["norm"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
        (state.params, state.extra, state.opt_state),
        (one_device[1].params, one_device[1].extra, one_device[1].opt_state),
    )


def test_named_leaves_and_their_momentum_are_sharded():
    parallel = training.make_parallel("jit", model_shards=4)
    outcome = training.run([toy.stage(steps=1, sharding={"hidden": P(None, "model")})], parallel=parallel)
    kernel = outcome.state.params["hidden"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(48, 2)}
    momentum = outcome.state.opt_state[0][0].trace["hidden"]["kernel"]
    assert {shard.data.shape for shard in momentum.addressable_shards} == {(48, 2)}
    assert outcome.state.params["prototypes"]["kernel"].is_fully_replicated


def test_fsdp_spreads_the_longest_free_dimension_of_large_arrays_that_divides():
    parallel = training.make_parallel(model_shards=2, shard="fsdp")  # 4 x 2 devices
    shapes = {
        "kernel": (256, 1024),
        "odd": (1022, 36),
        "prime": (131, 127),
        "small": (8, 8),
        "prototypes": (4096, 64),
    }
    state = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    state["rng"] = jax.eval_shape(lambda: jax.random.key(0))
    found = parallel.shardings(state, {"prototypes": P("model")})
    specs = {name: sharding.spec for name, sharding in found.items()}
    assert specs == {
        "kernel": P(None, "data"),
        "odd": P(None, "data"),
        "prime": P(),
        "small": P(),
        "prototypes": P("model", "data"),
        "rng": P(),
    }
    replicated = training.make_parallel(model_shards=2).shardings(state, {"prototypes": P("model")})
    assert [s.spec for s in replicated.values() if s.spec != P()] == [P("model")]


@pytest.mark.slow
@pytest.mark.parametrize("model_shards", [1, 2])
def test_fsdp_equals_one_device_and_holds_an_eighth(one_device, monkeypatch, model_shards):
    monkeypatch.setattr(parallelism, "LARGE_LEAF", 64)
    parallel = training.make_parallel(model_shards=model_shards, shard="fsdp")
    metrics, state = train(parallel)
    np.testing.assert_allclose(metrics["norm"], one_device[0]["norm"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
        (state.params, state.extra, state.opt_state),
        (one_device[1].params, one_device[1].extra, one_device[1].opt_state),
    )
    outcome = training.run([toy.stage(steps=1)], parallel=parallel)
    for tree in (outcome.state.params, outcome.state.opt_state[0][0].trace):
        rows = {shard.data.shape[0] for shard in tree["hidden"]["kernel"].addressable_shards}
        assert rows == {48 * model_shards // 8}


@pytest.mark.slow
@pytest.mark.parametrize("first", ["fsdp", "none"])
def test_a_checkpoint_resumes_spread_or_not(one_device, monkeypatch, tmp_path, first):
    monkeypatch.setattr(parallelism, "LARGE_LEAF", 64)
    cadence = training.Cadence(checkpoint_every=2)

    class Trap(toy.Cycle):
        def __next__(self):
            if self.position == 3:
                raise InterruptedError
            return super().__next__()

    with pytest.raises(InterruptedError):
        training.run(
            [toy.stage(steps=5, batches=lambda state: Trap())],
            parallel=training.make_parallel(shard=first),
            cadence=cadence,
            workdir=tmp_path,
        )
    second = training.make_parallel(shard={"fsdp": "none", "none": "fsdp"}[first])
    outcome = training.run([toy.stage(steps=5)], parallel=second, cadence=cadence, workdir=tmp_path)
    kernel = outcome.state.params["hidden"]["kernel"]
    assert kernel.is_fully_replicated == (first == "fsdp")
    np.testing.assert_allclose(outcome.metrics["norm"], one_device[0]["norm"], rtol=1e-5)
    np.testing.assert_allclose(kernel, one_device[1].params["hidden"]["kernel"], rtol=2e-4, atol=2e-6)


def test_a_compiled_step_leaves_every_state_where_it_was():
    parallel = training.make_parallel("jit", model_shards=4)
    step = parallel.compile(
        lambda state, batch: ({"w": state["w"] + batch["x"].sum()}, {"loss": state["w"][0]})
    )
    batch = {"x": np.ones(8, np.float32)}
    for spec, again in ((P("model"), True), (P(), True), (P("model"), False)):
        state = parallel.create(lambda: {"w": np.zeros(8, np.float32)}, rules={"w": spec})
        before = state["w"].sharding
        for expected in (8.0, 16.0)[: 1 + again]:
            state, metrics = step(state, batch)
            assert state["w"].sharding.is_equivalent_to(before, 1)
            np.testing.assert_array_equal(state["w"], expected)
        assert metrics["loss"].shape == ()


def test_pmap_reports_the_first_replica():
    step = training.make_parallel("pmap").compile(lambda state, batch: (state, {"sum": batch["x"].sum()}))
    state = training.make_parallel("pmap").spread({"w": np.zeros(2)})
    _, metrics = step(state, {"x": np.arange(16.0, dtype=np.float32)})
    assert metrics["sum"].shape == () and float(metrics["sum"]) == 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: training.make_parallel("tpu"), "parallel: needs"),
        (lambda: training.make_parallel("jit", model_shards=3), "model_shards: needs a divisor of the 8"),
        (lambda: training.make_parallel("pmap", model_shards=2), "model_shards: pmap"),
        (lambda: training.make_parallel("pmap", shard="fsdp"), "shard: pmap replicates every parameter"),
        (lambda: training.make_parallel(shard="zero"), "shard: needs one of none, fsdp, got 'zero'"),
        (lambda: training.check_batch_size(training.make_parallel(), 12), "batch_size: 12 .* multiple of 8"),
        (lambda: training.check_batch_size(training.make_parallel(), 24, accumulate=2), "multiple of 16"),
        (
            lambda: training.run(
                [toy.stage(sharding={"prototypes": P(None, "model")})],
                parallel=training.make_parallel(model_shards=2),
            ),
            "prototypes of size 5 cannot be split over 2",
        ),
    ],
)
def test_refusals_in_one_line(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
