"""The loss over prototypes that a mesh shares, inside a step as the loop compiles it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from experiments import configs
from experiments.methods import sface
from jaxface import axes, data, training
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines
from jaxface.optimizers import sampled_rows
from pallas_kernels import margin_softmax as ms

BATCH, FEATURES, CLASSES = 16, 12, 500
HEADS = {"sface": ms.SFace(inter_angle=1.5), "arcface": ms.arcface()}


@pytest.mark.parametrize(
    ("classes", "rows"),
    [(1, 1), (10, 10), (127, 127), (500, 500), (513, 520), (93_431, 94_208), (10**8, 100_663_296)],
)
def test_rows(classes, rows):
    assert training.prototype_rows(classes) == rows
    assert rows < classes * (1 + 1 / 64) + 1


def test_any_power_of_two_up_to_a_64th_splits_them():
    for classes in (1000, 85_742, 360_232, 2_059_906):
        rows = training.prototype_rows(classes)
        assert all(rows % shards == 0 for shards in (2, 4, 8) if shards <= classes // 64)
    assert training.prototype_rows(2_059_906) % 16_384 == 0


def run(parallel, head, *, rate=1.0, classes=CLASSES, optimizer=None, states=None):
    """(state, metrics) after three steps of gradient descent on embeddings that are parameters themselves.

    The states before the first step and after each go to the list `states`.
    """
    rows = training.prototype_rows(classes)
    keys = jax.random.split(jax.random.key(0), 3)
    features = np.asarray(jax.random.normal(keys[0], (BATCH, FEATURES)), np.float32)
    labels = np.asarray(jax.random.randint(keys[1], (BATCH,), 0, classes), np.int32)

    def loss(params, extra, batch, rng):
        value, terms = training.prototype_loss(
            batch["depth"] @ params["mix"],
            params["prototypes"],
            batch["label"],
            head,
            classes=classes,
            rate=rate,
            rng=rng,
        )
        return value, (extra, {"target": terms.target_cosines.mean()})

    objective = training.Objective(loss, optimizer or optax.sgd(0.05))

    def init(rng, previous):
        params = {
            "mix": jnp.eye(FEATURES),
            "prototypes": jax.random.normal(keys[2], (rows, FEATURES)),
        }
        return training.create_state(rng, params, objective)

    rows_of_metrics = []
    sharded = {"prototypes": PartitionSpec(axes.MODEL)}
    state = parallel.create(init, jax.random.key(1), None, rules=sharded)
    step = parallel.compile(training.gradient_step(objective))
    states = [] if states is None else states
    states.append(jax.device_get(parallel.single(state)))
    for _ in range(3):
        state, metrics = step(state, {"depth": features, "label": labels})
        states.append(jax.device_get(parallel.single(state)))
        rows_of_metrics.append({key: float(value) for key, value in metrics.items()})
    return parallel.single(state), rows_of_metrics


@pytest.mark.parametrize("name", HEADS)
def test_every_mesh_gives_the_same_steps(name):
    alone, expected = run(training.make_parallel("jit", devices=jax.devices()[:1]), HEADS[name], classes=513)
    for shards in (1, 8):
        state, found = run(training.make_parallel("jit", model_shards=shards), HEADS[name], classes=513)
        for got, want in zip(found, expected, strict=True):
            assert got == pytest.approx(want, rel=2e-4, abs=1e-6)
        for part in ("mix", "prototypes"):
            np.testing.assert_allclose(state.params[part], alone.params[part], rtol=1e-3, atol=1e-5)
        sizes = {shard.data.shape for shard in state.params["prototypes"].addressable_shards}
        assert sizes == {(520 // shards, FEATURES)}


def test_padding_and_classes_that_were_not_drawn_stay_as_they_are():
    before = np.asarray(jax.random.normal(jax.random.split(jax.random.key(0), 3)[2], (520, FEATURES)))
    state, _ = run(training.make_parallel("jit", model_shards=4), HEADS["arcface"], rate=0.1, classes=513)
    moved = np.flatnonzero(np.abs(np.asarray(state.params["prototypes"]) - before).sum(1) > 0)
    assert (moved < 513).all()
    assert BATCH / 2 < len(moved) < 4 * 0.1 * 520


@pytest.mark.parametrize(("shards", "name"), [(1, "arcface"), (2, "sface")])
def test_only_sampled_rows_and_their_momentum_move(name, shards):
    """PartialFC's first version from end to end, on eight devices and on as many as there are shards."""
    plain = training.Optimizer(learning_rate=0.05, schedule="constant", weight_decay=0.01).build(3)
    optimizer = sampled_rows(plain, {"mix": False, "prototypes": True})
    options = {"rate": 0.3, "classes": 513, "optimizer": optimizer}
    states, few = [], []
    run(training.make_parallel("jit", model_shards=shards), HEADS[name], states=states, **options)
    parallel = training.make_parallel("jit", model_shards=shards, devices=jax.devices()[:shards])
    run(parallel, HEADS[name], states=few, **options)
    labels = np.asarray(jax.random.randint(jax.random.split(jax.random.key(0), 3)[1], (BATCH,), 0, 513))
    tables = [
        np.stack([state.params["prototypes"], state.opt_state[0][1].trace["prototypes"]]) for state in states
    ]
    sets = []
    for before, after in itertools.pairwise(tables):
        moved = (before.view(np.int32) != after.view(np.int32)).any(axis=2)
        np.testing.assert_array_equal(moved[0], moved[1])
        assert moved[0].sum() == shards * int(0.3 * 520 / shards)
        assert moved[0][labels].all() and not moved[0][513:].any()
        sets.append(moved[0])
    assert (sets[0] != sets[1]).any() and (sets[1] != sets[2]).any()
    for state, other in zip(states, few, strict=True):
        for part in ("mix", "prototypes"):
            np.testing.assert_allclose(state.params[part], other.params[part], rtol=1e-3, atol=1e-5)


def test_without_it_the_other_rows_decay_too():
    plain = training.Optimizer(learning_rate=0.05, schedule="constant", weight_decay=0.01).build(3)
    states = []
    run(training.make_parallel("jit"), HEADS["sface"], rate=0.3, optimizer=plain, states=states)
    assert (states[0].params["prototypes"] != states[1].params["prototypes"]).any(axis=1).all()


def test_pmap_is_the_loss_of_each_device():
    alone, expected = run(training.make_parallel("jit", devices=jax.devices()[:1]), HEADS["arcface"])
    state, found = run(training.make_parallel("pmap"), HEADS["arcface"])
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-4)
    np.testing.assert_allclose(state.params["mix"], alone.params["mix"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("unsampled", ["move", "stay"])
def test_the_experiment_takes_it_for_sampled_classes(unsampled):
    config = sface.Config(
        data=data.RenderedFaces(identities=24, held_out_identities=8, per_identity=4),
        backbone="mlp",
        image_size=16,
        batch_size=8,
        steps=1,
        optimizer=training.Optimizer(weight_decay=0.01),
        sample_rate=0.25,
        unsampled=unsampled,
    )
    outcome = training.run(sface.build(config), parallel=training.make_parallel("jit", model_shards=2))
    assert 0 <= outcome.metrics["verification/accuracy"] <= 1
    momentum = np.asarray(outcome.state.opt_state[0][1].trace["prototypes"])
    still = (momentum == 0).all(axis=1).sum()
    assert 24 - 8 <= still <= 24 - 6 if unsampled == "stay" else still == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sample_rate": 2}, "sample_rate: needs a number above 0 and up to 1, got 2"),
        ({"unsampled": "stay"}, "unsampled: 'stay' needs sample_rate below 1; got 1"),
    ],
)
def test_the_experiment_refuses_before_any_data_is_opened(monkeypatch, wrong, words):
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("the data was opened"))
    with pytest.raises(UserError, match=words):
        configs.build("sface", sface.Config(**wrong))


@pytest.mark.parametrize("loss", ["sface", "softmax", "cosface", "arcface"])
def test_both_paths_of_the_experiment_have_the_same_loss(loss):
    config = sface.Config(loss=loss, scale=20.0, sharpness=10.0, margin=0.2)
    keys = jax.random.split(jax.random.key(2), 2)
    embeddings, prototypes = (jax.random.normal(key, (n, 8)) for key, n in zip(keys, (4, 30), strict=True))
    labels = jnp.arange(4)
    head = sface.head(config)
    expected = head.loss(cosines(embeddings, prototypes), labels)
    _, terms = training.prototype_loss(embeddings, prototypes, labels, head.fused(), classes=30)
    np.testing.assert_allclose(terms.losses, expected, rtol=1e-4, atol=1e-4)
