import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.methods import lifelong
from jaxface import data, losses, models, training
from jaxface.errors import UserError
from jaxface.training.lifelong import MetaFusion, TaskNetwork, joint_step, meta_fusion_step

FUSION = MetaFusion(second="none")
SGD = training.sgd(0.3, momentum=0.0, schedule="constant", weight_decay=0.0)
TINY = lifelong.Config(
    data=data.Digits(),
    image_size=8,
    backbone="mlp_6",
    memory=20,
    fusion=FUSION,
    optimizer=SGD,
    batch_size=16,
    steps=2,
)


def changed(config=TINY, **fields):
    return dataclasses.replace(config, **fields)


def one_device():
    return training.make_parallel(devices=jax.devices()[:1])


def plain(state):
    return jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


def run(config, **options):
    return training.run(lifelong.build(config), seed=config.seed, **{"parallel": one_device(), **options})


# The step, on a linear network of four classes in two tasks.

NETWORK = TaskNetwork(models.create("mlp_5", embedding=4), 2, 2)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(8, 3, 3, 1)).astype(np.float32).clip(-1, 1)
BATCH = {"image": jnp.asarray(IMAGES), "label": jnp.array([0, 1, 2, 3, 0, 2, 1, 3], jnp.int32)}


@functools.cache
def initial(session=1, own_states=False, rule="sgd"):
    params = {"backbone": NETWORK.model.init(jax.random.key(0), BATCH["image"])["params"]}
    extra = {"session": np.int32(session), "length": np.float32(10)}
    state = optimizer(rule).init(params)
    if own_states:
        state = jax.tree.map(lambda x: jnp.repeat(x[None], 2, axis=0), state)
    return training.create_state(jax.random.key(1), params, extra=extra).replace(opt_state=(state,))


def optimizer(rule):
    return training.Optimizer(
        name=rule,
        learning_rate=1.0,
        schedule="constant",
        momentum=0.0 if rule == "sgd" else 0.9,
        weight_decay=0.0,
    ).build(1)


@functools.cache
def step(rule="sgd", **fields):
    return jax.jit(
        meta_fusion_step(NETWORK, MetaFusion(**{"second": "none", **fields}), optimizer(rule), lambda f: 0.5)
    )


def descended(params, task, images=None, rule_step=0.5):
    """One step of SGD on the rows of a task, written by hand."""
    rows = np.flatnonzero(np.asarray(BATCH["label"]) // 2 == task)
    x = (BATCH["image"] if images is None else images)[rows]

    def loss(params):
        scores = NETWORK.model.apply({"params": params["backbone"]}, x)
        return losses.slice_bce_loss(scores, BATCH["label"][rows], task, size=2).mean()

    return jax.tree.map(lambda w, g: w - rule_step * g, params, jax.grad(loss)(params))


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def test_the_uniform_step_by_hand():
    base = initial().params
    thetas = [descended(base, t) for t in range(2)]
    alpha = np.exp(-0.5 * 1 / 2)
    expected = jax.tree.map(lambda q, a, b: alpha * (a + b) / 2 + (1 - alpha) * q, base, *thetas)
    state, report = step(kind="uniform")(initial(), BATCH)
    close(state.params, expected)
    assert report["tasks"] == 2 and report["largest_weight"] == pytest.approx(1.0)


def test_the_released_step_is_the_last_of_a_sequence():
    base = initial().params
    last = descended(descended(base, 0), 1)
    alpha = np.exp(-0.5 * 1 / 2)
    expected = jax.tree.map(lambda q, a: alpha * a + (1 - alpha) * q, base, last)
    close(step(kind="last", inner_reset=False)(initial(), BATCH)[0].params, expected)


def test_in_the_first_session_it_is_plain_training():
    rows = np.flatnonzero(np.asarray(BATCH["label"]) < 2)
    batch = {name: values[np.resize(rows, 8)] for name, values in BATCH.items()}
    state, report = step(kind="ari")(initial(session=0), batch)
    close(state.params, descended(initial().params, 0))
    assert report["tasks"] == 1


@pytest.mark.parametrize("second", ["clean", pytest.param("whole", marks=pytest.mark.slow)])
def test_the_second_step_starts_where_the_first_ended(second):
    """Without a random start and a strength an attack changes nothing."""
    base = initial(session=0).params
    expected = descended(descended(base, 0), 0)
    rows = np.flatnonzero(np.asarray(BATCH["label"]) < 2)
    batch = {name: values[np.resize(rows, 8)] for name, values in BATCH.items()}
    close(step(second=second, epsilon=0.0)(initial(session=0), batch)[0].params, expected)
    if second == "whole":
        attacked = step(second=second, epsilon=64.0)(initial(session=0), batch)[0].params
        assert optax.tree.norm(jax.tree.map(jnp.subtract, attacked, expected)) > 1e-3


def swapped(state):
    """The same network with the classes of the two tasks exchanged."""
    head = state.params["backbone"]["head_dense"]
    head = jax.tree.map(lambda w: jnp.roll(w, 2, axis=-1), head)
    return state.replace(params={"backbone": {**state.params["backbone"], "head_dense": head}})


@pytest.mark.parametrize("reset", [True, False])
def test_with_a_reset_the_order_of_the_tasks_does_not_count(reset):
    take = step(kind="ari") if reset else step(kind="ari", inner_reset=False)
    forward = take(initial(), BATCH)[0]
    backward = take(swapped(initial()), {**BATCH, "label": (BATCH["label"] + 2) % 4})[0]
    gap = jax.tree.map(jnp.subtract, swapped(forward).params, backward.params)
    assert (optax.tree.norm(gap) < 1e-6) == reset


@pytest.mark.slow
def test_own_states_are_one_for_each_task():
    """Adam's first step from a fresh state is the same for every task; from a shared one it is not."""
    own, shared = (
        step("adam", kind="uniform", inner_state=kind)(
            initial(own_states=kind == "per_task", rule="adam"), BATCH
        )[0]
        for kind in ("per_task", "shared")
    )
    assert optax.tree.norm(jax.tree.map(jnp.subtract, own.params, shared.params)) > 1e-4
    (states,) = own.opt_state
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(states))
    only = {name: values[np.array([0, 1, 4, 6])] for name, values in BATCH.items()}
    absent = step("adam", inner_state="per_task")(initial(own_states=True, rule="adam"), only)[0]
    moved = [
        np.abs(np.asarray(leaf, np.float32)).reshape(2, -1).sum(axis=1)
        for leaf in jax.tree.leaves(absent.opt_state)
    ]
    assert all(row[1] == 0 for row in moved) and any(row[0] > 0 for row in moved)


@pytest.mark.slow
def test_replicas_that_have_other_rows_take_the_same_step():
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    single, report = step()(initial(), BATCH)
    take = meta_fusion_step(NETWORK, FUSION, optimizer("sgd"), lambda f: 0.5)
    order = np.argsort(
        np.asarray(BATCH["label"]), kind="stable"
    )  # one replica has the first task, the other the second
    halves = {name: values[order].reshape(2, 4, *values.shape[1:]) for name, values in BATCH.items()}
    state = initial()
    keys = state.replace(rng=jax.random.key_data(state.rng))
    both = jax.pmap(
        lambda s, b: take(s.replace(rng=jax.random.wrap_key_data(s.rng)), b)[0].params,
        axis_name="data",
        devices=jax.devices()[:2],
        in_axes=(None, 0),
    )(keys, halves)
    close(jax.tree.map(lambda x: x[0], both), single.params)
    del report


def test_joint_replay_sees_all_classes_and_no_later_ones():
    take = jax.jit(joint_step(NETWORK, optimizer("sgd"), lambda f: 0.5))
    rows = np.flatnonzero(np.asarray(BATCH["label"]) < 2)
    batch = {name: values[rows] for name, values in BATCH.items()}
    before, after = (
        s.params["backbone"]["head_dense"]["kernel"]
        for s in (initial(session=0), take(initial(session=0), batch)[0])
    )
    np.testing.assert_array_equal(after[:, 2:], before[:, 2:])
    assert (np.asarray(after[:, :2]) != np.asarray(before[:, :2])).any()


# The whole experiment.


@pytest.fixture(scope="module")
def finished():
    return run(TINY)


def test_what_a_run_reports(finished):
    values = finished.metrics
    assert set(range(5)) == {int(k.rsplit("_", 1)[1]) for k in values if k.startswith("untrained/task/task_")}
    for scenario in ("task", "class", "chunk", "adapted"):
        matrix = np.array(
            [[values[f"session{i + 1}/{scenario}/task_{j}"] for j in range(5)] for i in range(5)]
        )
        row = {k.rsplit("/", 1)[1]: v for k, v in values.items() if k.startswith(f"session5/{scenario}/")}
        assert row["average"] == pytest.approx(matrix[-1].mean())
        assert row["learning"] == pytest.approx(np.diag(matrix).mean())
        assert row["backward_transfer"] == pytest.approx((matrix[-1] - np.diag(matrix))[:4].mean())
        if scenario != "task":
            assert not matrix[
                np.triu_indices(5, 1)
            ].any()  # nothing is said to be of a class that has not come
    assert values["session5/task/average"] >= values["session5/class/average"]
    assert np.isfinite(values["session5/task/forward_transfer"])


def test_a_chunk_of_one_is_one_image_with_the_best_task(finished):
    """Without chunks the best class of the best task is the best class of all seen."""
    alone = run(changed(chunk=1, adapt=False)).metrics
    assert alone["session5/chunk/accuracy"] == alone["session5/class/accuracy"]
    assert alone["session5/class/accuracy"] == finished.metrics["session5/class/accuracy"]
    assert "session5/adapted/accuracy" not in alone


def compilations(config):
    """Programs that a run compiles."""
    counted = []

    def count(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        run(config)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    return len(counted)


def test_more_tasks_compile_nothing_more():
    """The same ten classes in two tasks and in five: as many programs, though there are three more sessions."""
    few, many = (
        compilations(changed(tasks=data.TaskSpec(count=count), memory=memory))
        for count, memory in ((2, 20), (5, 20))
    )
    assert many <= few + 2 and few > 3


@pytest.mark.slow
@pytest.mark.parametrize("stop_in", [1, 4])
def test_a_run_that_is_stopped_in_any_session_ends_where_it_would_have(
    tmp_path, finished, stop_in, monkeypatch
):
    config = changed(steps=3)
    whole = run(config)
    cadence = training.Cadence(checkpoint_every=1, log_every=1)

    def stopping():
        stages, outcome = lifelong.build(config), None
        while True:
            try:
                stage = stages.send(outcome)
            except StopIteration:
                return
            if stage.name == f"session{stop_in}":
                taken = []

                def batches(state, opened=stage.batches, taken=taken):
                    source = opened(state)
                    following = type(source).__next__

                    class Stopping:
                        def __next__(self):
                            taken.append(1)
                            if len(taken) > 2:
                                raise KeyboardInterrupt
                            return following(source)

                        get_state = source.get_state
                        set_state = source.set_state

                    return Stopping()

                stage = dataclasses.replace(stage, batches=batches)
            outcome = yield stage

    with pytest.raises(KeyboardInterrupt):
        training.run(stopping(), seed=0, parallel=one_device(), workdir=tmp_path, cadence=cadence)
    resumed = run(config, workdir=tmp_path, cadence=cadence)
    equal(resumed.state, whole.state)
    assert resumed.metrics == whole.metrics


@pytest.mark.slow
def test_an_attended_network_learns_attacked_backgrounds():
    config = lifelong.Config(
        data=data.TexturedDigits(anywhere=False),
        hidden=(16,),
        batch_size=16,
        steps=2,
        tasks=data.TaskSpec(count=2),
    )
    metrics = run(config).metrics
    assert np.isfinite(list(metrics.values())).all()
    convolutional = dataclasses.replace(
        config, backbone="attended_resnet", hidden=None, channels=(4,), blocks=1, pool_after=(0, 1)
    )
    assert np.isfinite(list(run(convolutional).metrics.values())).all()


def test_the_papers_recipe():
    config = lifelong.Config.paper()
    assert (config.tasks.count, config.memory, config.epochs, config.batch_size) == (10, 2000, 70, 512)
    fusion = config.fusion
    assert (fusion.kind, fusion.inner_reset, fusion.repeats, fusion.second) == (
        "last",
        False,
        1,
        "background",
    )
    assert (fusion.distance, fusion.floor, fusion.beta, fusion.epsilon) == ("sum", 0.85, 1.0, 1.0)
    rate = config.optimizer.learning_rates(700)
    values = [float(rate(epoch * 10)) for epoch in (0, 19, 21, 41, 61)]
    np.testing.assert_allclose(values, [0.01, 0.01, 0.002, 0.0004, 0.00008], rtol=1e-5)
    assert config.optimizer.name == "radam" and config.chunk == 20 and config.adapt_rate == 1e-3
    assert (config.augment.shift, config.augment.flip, config.augment.rotate_degrees) == (4, 0.5, 10.0)
    mnist = lifelong.Config.mnist()
    rate = mnist.optimizer.learning_rates(20)
    np.testing.assert_allclose(
        [float(rate(e)) for e in (0, 6, 11, 16)], [0.1, 0.05, 0.025, 0.0125], rtol=1e-5
    )
    assert (mnist.tasks.count, mnist.batch_size, mnist.fusion.beta, mnist.epochs) == (5, 256, 0.5, 20)


@dataclasses.dataclass(frozen=True)
class Hundred(data.DataSpec):
    """A hundred classes of color images of 32x32."""

    title = "hundred"

    def source(self, *, image_size, seed):
        labels = np.tile(np.arange(100), 6)
        images = np.random.default_rng(seed).integers(0, 256, (600, 32, 32, 3), np.uint8)
        return data.ArraySource(images, labels, [str(k) for k in range(100)])

    def divide(self, *, image_size, seed):
        everything = self.source(image_size=image_size, seed=seed)
        return data.Split(everything, everything, self.title, "classification")


@pytest.mark.slow
def test_the_papers_step_has_its_shapes():
    config = dataclasses.replace(lifelong.Config.paper(), data=Hundred(), batch_size=60, workers=0)
    stages = lifelong.build(config)
    start = next(stages)
    rng = jax.random.key(0)
    first = jax.eval_shape(start.init, rng, None)
    session = stages.send(training.Outcome(start.name, first, {}))
    assert session.steps == 70 * (60 // 60) and session.name == "session1"
    state = jax.eval_shape(session.init, rng, first)
    batch = {"image": jnp.zeros((60, 32, 32, 3)), "label": jnp.zeros(60, jnp.int32)}
    after, report = jax.eval_shape(session.step, state, batch)
    assert models.parameter_count({"params": after.params}) == 1_401_552
    assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, state.params)
    assert report["loss"].shape == ()
    later = stages.send(training.Outcome(session.name, after, {}))
    assert later.step is session.step and later.steps == 70 * 2  # as many exemplars as new images


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"memory": 9}, "memory: needs at least one exemplar for each of 10 classes"),
        ({"tasks": data.TaskSpec(given=("0,1", "1,2"))}, r"tasks\.given: needs every class once, 1"),
        ({"tasks": data.TaskSpec(given=("0,1", "2"))}, r"tasks\.given: needs tasks of one size, got 1, 2"),
        ({"tasks": data.TaskSpec(count=4)}, r"tasks\.count: needs a divisor of the 10 classes"),
        ({"fusion": MetaFusion()}, r"fusion\.second: 'background' needs a network with attention"),
        ({"backbone": "cifar_resnet20"}, "backbone: ResNet has batch statistics"),
        ({"init_from": "runs/x"}, "init_from: the first session"),
        ({"accumulate": 2}, "accumulate: needs 1"),
        ({"data": data.Procedural()}, "data: needs classes to be told apart"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_compiles(fields, message):
    with pytest.raises(UserError, match=message):
        next(lifelong.build(changed(**fields)))


def test_a_negative_strength_is_refused():
    with pytest.raises(UserError, match=r"fusion\.epsilon: needs"):
        from jaxface.checks import check_fields

        check_fields(changed(fusion=MetaFusion(epsilon=-1.0)))
