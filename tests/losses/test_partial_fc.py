"""Sharded prototypes and sampled negatives against the dense loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxface import losses
from pallas_kernels import margin_softmax as ms

BATCH, FEATURES, CLASSES = 16, 12, 37
HEADS = {"sface": ms.SFace(inter_angle=1.5), "arcface": ms.arcface(), "cosface": ms.cosface()}


def arrays(rows=CLASSES):
    keys = jax.random.split(jax.random.key(0), 3)
    embeddings = jax.random.normal(keys[0], (BATCH, FEATURES))
    labels = jax.random.randint(keys[1], (BATCH,), 0, CLASSES)
    return embeddings, jax.random.normal(keys[2], (rows, FEATURES)), labels


def sharded(data, model, head, labels, **options):
    """(embeddings, padded prototypes) -> loss over a data × model mesh."""
    mesh = Mesh(np.array(jax.devices()[: data * model]).reshape(data, model), ("data", "model"))
    part = PartitionSpec

    def local(embeddings, prototypes, mine, every, key):
        weights = jnp.full(mine.shape, 1.0 / BATCH)
        loss, _ = losses.partial_fc_loss(
            embeddings,
            prototypes,
            mine,
            head,
            weights=weights,
            classes=CLASSES,
            axis_name="model",
            batch_labels=every,
            key=key,
            **options,
        )
        return jax.lax.psum(loss, "data")

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(part("data"), part("model"), part("data"), part(), part()),
        out_specs=part(),
    )
    return jax.jit(lambda x, w: mapped(x, w, labels, labels, jax.random.key(5)))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("data", "model"), [(1, 8), (2, 4), (4, 2), (8, 1), (1, 3)])
def test_every_split_gives_the_dense_loss_and_gradients(data, model, name):
    head = HEADS[name]
    rows = model * -(-CLASSES // model)
    embeddings, prototypes, labels = arrays(rows)

    def dense(x, w):
        return ms.margin_softmax(x, w[:CLASSES], labels, head)[0]

    expected, gradients = jax.value_and_grad(dense, (0, 1))(embeddings, prototypes)
    found, of_shards = jax.value_and_grad(sharded(data, model, head, labels), (0, 1))(embeddings, prototypes)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for got, want in zip(of_shards, gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sface", "softmax", "cosface", "arcface"])
def test_it_is_the_loss_of_the_cosines(name):
    from jaxface.layers.prototypes import cosines

    embeddings, prototypes, labels = arrays()
    head = {"softmax": ms.softmax(), **HEADS}[name]
    options = {"inter_angle": 1.5} if name == "sface" else {}
    expected = getattr(losses, f"{name}_loss")(cosines(embeddings, prototypes), labels, **options)
    loss, terms = losses.partial_fc_loss(embeddings, prototypes, labels, head)
    np.testing.assert_allclose(terms.losses, expected, rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)


def test_rates_that_make_no_sense_are_refused():
    embeddings, prototypes, labels = arrays()
    with pytest.raises(ValueError, match="rate: needs a number above 0 and up to 1, got 0"):
        losses.partial_fc_loss(embeddings, prototypes, labels, HEADS["arcface"], rate=0)
    with pytest.raises(ValueError, match="key: needs a random key"):
        losses.partial_fc_loss(embeddings, prototypes, labels, HEADS["arcface"], rate=0.5)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("limit", [None, 31])
def test_a_sample_has_every_positive_once_and_fills_its_quota(rate, limit):
    labels = jnp.array([3, -1, 30, 5, 5, 17, -1])
    real = 37 if limit is None else limit
    drawn = set()
    for seed in range(20):
        indices, active = losses.sample_classes(
            labels, jax.random.key(seed), classes=37, rate=rate, limit=limit
        )
        indices, active = np.asarray(indices), np.asarray(active)
        assert (np.diff(indices) > 0).all(), "sorted and distinct"
        assert len(indices) == max(int(rate * 37), 7)
        taken = indices[active]
        assert {3, 5, 17, 30} <= set(taken.tolist())
        assert len(taken) == min(max(int(rate * 37), 4), real)
        assert (taken < real).all()
        drawn |= set(taken.tolist())
    if rate >= 0.3:
        assert drawn == set(range(real)), "over the steps every class is drawn"


def test_sampled_gradients_reach_the_sampled_rows_alone():
    embeddings, prototypes, labels = arrays()
    key = jax.random.key(3)

    def loss(w):
        return losses.partial_fc_loss(embeddings, w, labels, HEADS["arcface"], rate=0.5, key=key)[0]

    gradient = np.asarray(jax.grad(loss)(prototypes))
    indices, active = losses.sample_classes(labels, jax.random.fold_in(key, 0), classes=CLASSES, rate=0.5)
    touched = np.flatnonzero(np.abs(gradient).sum(1) > 0)
    np.testing.assert_array_equal(touched, np.asarray(indices)[np.asarray(active)])
    kept = prototypes[touched]
    expected = jax.grad(
        lambda w: losses.partial_fc_loss(
            embeddings, w, jnp.searchsorted(jnp.asarray(touched), labels), HEADS["arcface"]
        )[0]
    )(kept)
    np.testing.assert_allclose(gradient[touched], expected, rtol=1e-4, atol=1e-6)


def test_sampling_over_shards_runs_and_keeps_positives():
    embeddings, prototypes, labels = arrays(40)
    gradient = jax.grad(sharded(2, 4, HEADS["sface"], labels, rate=0.4), 1)(embeddings, prototypes)
    touched = np.flatnonzero(np.abs(np.asarray(gradient)).sum(1) > 0)
    assert set(np.unique(labels)) <= set(touched.tolist())
    assert len(touched) < CLASSES


def test_shards_of_the_public_implementation():
    assert losses.shard_bounds(10, 4) == [(0, 3), (3, 3), (6, 2), (8, 2)]
    eight = losses.shard_bounds(93431, 8)
    assert [size for _, size in eight] == [11679] * 7 + [11678]
    assert eight[-1] == (81753, 11678)


def test_spec_cross_entropy_over_any_sharding():
    logits = jnp.array([[2.0, 1, 0, -1], [0, 3, 1, 1]])
    values = losses.cross_entropy(logits, jnp.array([0, 2]))
    np.testing.assert_allclose(values, [0.440190, 2.277978], atol=1e-6)
