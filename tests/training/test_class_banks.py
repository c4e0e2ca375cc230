"""Banks of class features: the same rows and neighbors on one device, on every mesh, and in replicas."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxface import axes, losses
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize
from jaxface.training import class_banks

PROTOTYPES = jnp.array([[1, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [0, 0.6, 0.8], [0, 0, 1]], jnp.float32)
NEIGHBORS = np.array([[1, 2], [0, 2], [1, 3], [4, 2], [3, 0]])

mine = jax.jit(class_banks.mine_neighbors, static_argnames=("neighbors", "block"))


def random_case(seed=0, batch=6, classes=40, size=8, count=7):
    rng = np.random.default_rng(seed)
    student, teacher = (jnp.asarray(rng.normal(size=(batch, size)), jnp.float32) for _ in range(2))
    memory = l2_normalize(jnp.asarray(rng.normal(size=(classes, size)), jnp.float32))
    neighbors = mine(memory, count)
    return student, teacher, rng.integers(0, classes, batch), memory, neighbors


def test_neighbors_by_hand_with_ties_to_the_lower_index():
    found = class_banks.mine_neighbors(PROTOTYPES, 2)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, NEIGHBORS)
    np.testing.assert_array_equal(class_banks.mine_neighbors(PROTOTYPES, 2, block=2), NEIGHBORS)


def test_neighbors_are_others_and_all_of_them_where_k_asks():
    rng = np.random.default_rng(0)
    prototypes = l2_normalize(jnp.asarray(rng.normal(size=(23, 4)), jnp.float32))
    found = np.asarray(class_banks.mine_neighbors(prototypes, 22, block=5))
    for own, row in enumerate(found):
        assert sorted(row) == [i for i in range(23) if i != own]
    few = np.asarray(class_banks.mine_neighbors(prototypes, 6, block=7))
    np.testing.assert_array_equal(few, found[:, :6])
    # Identical prototypes too: the own class is left out by its number, not by its similarity.
    same = np.asarray(class_banks.mine_neighbors(jnp.ones((5, 4)) / 2, 2))
    np.testing.assert_array_equal(same, [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]])


@pytest.mark.parametrize("block", [128, 1000, 4096])
def test_blocked_mining_is_the_unblocked(block):
    rng = np.random.default_rng(0)
    prototypes = np.asarray(l2_normalize(jnp.asarray(rng.normal(size=(1000, 16)), jnp.float32)))
    products = prototypes.astype(np.float64) @ prototypes.T.astype(np.float64)
    np.fill_diagonal(products, -np.inf)
    expected = np.argsort(-products, axis=1, kind="stable")[:, :17]
    mined = jax.jit(functools.partial(class_banks.mine_neighbors, neighbors=17, block=block))
    np.testing.assert_array_equal(mined(prototypes), expected)
    some = np.array([5, 999, 0, 5])
    np.testing.assert_array_equal(mined(prototypes, of=some), expected[some])


def test_mining_makes_no_products_of_all_with_all():
    prototypes = jax.ShapeDtypeStruct((200_000, 8), jnp.float32)
    compiled = jax.jit(lambda p: class_banks.mine_neighbors(p, 10, block=512)).lower(prototypes).compile()
    assert (
        compiled.memory_analysis().temp_size_in_bytes < 200e6
    )  # all with all: 160 GB; rows with all: 410 MB


def test_classes_without_images_are_no_neighbors():
    valid = jnp.array([True, False, True, True, True])
    found = np.asarray(class_banks.mine_neighbors(PROTOTYPES, 3, valid=valid))
    assert not (found[[0, 2, 3, 4]] == 1).any()
    everyone = np.asarray(class_banks.mine_neighbors(PROTOTYPES, 4, valid=valid))
    np.testing.assert_array_equal(everyone[[0, 2, 3, 4], 3], [1, 1, 1, 1])  # last, where K asks for all
    assert all(own not in row for own, row in enumerate(everyone))


def test_prototypes_are_means_of_directions():
    features = jnp.array([[2.0, 0.0], [0.0, 5.0], [3.0, 0.0], [7.0, 7.0]])
    found = class_banks.class_prototypes(features, np.array([1, 1, 3, -1]), 4)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found, [[0, 0], [half, half], [0, 0], [1, 0]], atol=1e-6)
    parts = jnp.zeros((4, 2))
    for i in range(4):
        parts = class_banks.add_class_features(parts, features[i : i + 1], np.array([1, 1, 3, -1])[i : i + 1])
    np.testing.assert_allclose(l2_normalize(parts), found, atol=1e-6)


def test_the_last_feature_of_a_class_stays():
    memory = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    p, q = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]], np.float32)
    for update in (class_banks.update_memory, jax.jit(class_banks.update_memory)):
        after = np.asarray(update(memory, np.stack([p, q]), np.array([2, 2])))
        np.testing.assert_array_equal(after[2], [0, 0, 1])
        np.testing.assert_array_equal(after[[0, 1, 3, 4]], np.asarray(memory)[[0, 1, 3, 4]])
    labels = np.random.default_rng(1).integers(0, 5, 64)
    rows = np.arange(64.0, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    expected = [np.flatnonzero(labels == c)[-1] for c in range(5)]
    np.testing.assert_array_equal(class_banks.set_rows(memory, rows, labels)[:, 0], expected)


def test_averaged_and_frozen_memories():
    unit = l2_normalize(jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32))
    feature = jnp.array([[0.0, 3.0, 4.0]])
    after = class_banks.update_memory(unit, feature, np.array([1]), mode="ema", decay=0.75)
    mixed = 0.75 * np.asarray(unit[1]) + 0.25 * np.array([0, 0.6, 0.8])
    np.testing.assert_allclose(after[1], mixed / np.linalg.norm(mixed), rtol=1e-5)
    np.testing.assert_array_equal(after[np.array([0, 2, 3])], unit[np.array([0, 2, 3])])
    np.testing.assert_array_equal(class_banks.update_memory(unit, feature, np.array([1]), mode="none"), unit)
    np.testing.assert_array_equal(class_banks.update_memory(unit, feature, np.array([-1])), unit)


def test_no_gradient_reaches_the_memory_or_the_teacher():
    _, teacher, labels, memory, _ = random_case()

    def of_update(memory, teacher):
        updated = class_banks.update_memory(memory, teacher, labels, mode="ema")
        return jnp.square(updated[:, 0]).sum()

    assert all((g == 0).all() for g in jax.grad(of_update, (0, 1))(memory, teacher))


def test_refusals():
    _, teacher, labels, memory, _ = random_case()
    for count in (0, 40):
        with pytest.raises(UserError, match=r"^neighbors: needs at least 1 and at most the 39"):
            class_banks.mine_neighbors(memory, count)
    with pytest.raises(UserError, match="at most the 0 other classes, got 1"):
        class_banks.mine_neighbors(memory[:1], 1)
    with pytest.raises(UserError, match=r"^mode"):
        class_banks.update_memory(memory, teacher, labels, mode="newest")
    with pytest.raises(UserError, match=r"^decay"):
        class_banks.update_memory(memory, teacher, labels, mode="ema", decay=1.5)
    with pytest.raises(ValueError, match=r"^labels: needs values in"):
        class_banks.update_memory(memory, teacher, np.full(6, 40))


@pytest.fixture(params=[(8, 1), (2, 4), (1, 8)], ids=str)
def mesh(request):
    return Mesh(np.array(jax.devices()).reshape(request.param), (axes.DATA, axes.MODEL))


def test_every_mesh_gives_the_relations_their_gradient_and_the_memory_of_one_device(mesh):
    student, teacher, labels, memory, neighbors = random_case(batch=16, count=19)
    labels[3:9] = labels[12]  # one class on several devices: the last one counts

    def everything(student, teacher, labels, memory, neighbors):
        def loss(student):
            relations = class_banks.mined_relations(student, teacher, labels, memory, neighbors)
            return losses.relation_aware_loss(*relations).mean()

        value, gradient = jax.value_and_grad(loss)(student)
        update = class_banks.update_bank(
            functools.partial(class_banks.update_memory, mode="ema"), memory, teacher, labels
        )
        mined = class_banks.mine_neighbors(memory, 19, labels)
        return value, gradient, update, mined

    expected = jax.jit(everything)(student, teacher, labels, memory, neighbors)
    np.testing.assert_array_equal(expected[3], np.asarray(neighbors)[labels])
    batch, rows = (PartitionSpec((axes.DATA, axes.MODEL)), PartitionSpec(axes.MODEL))
    places = [NamedSharding(mesh, spec) for spec in (batch, batch, batch, rows, rows)]
    arguments = jax.device_put((student, teacher, labels, memory, neighbors), tuple(places))
    with jax.set_mesh(mesh):
        compiled = jax.jit(everything).lower(*arguments).compile()
        found = compiled(*arguments)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[3], expected[3])
    assert {s.data.shape[0] for s in found[2].addressable_shards} == {40 // mesh.shape[axes.MODEL]}


def test_every_replica_has_the_same_memory():
    _, teacher, labels, memory, _ = random_case(batch=16)
    labels[3:9] = labels[12]
    expected = class_banks.update_memory(memory, teacher, labels)

    def update(memory, labels, teacher):
        return class_banks.update_bank(class_banks.update_memory, memory, teacher, labels)

    found = jax.pmap(update, axis_name=axes.DATA, in_axes=(None, 0, 0))(
        memory, labels.reshape(8, 2), teacher.reshape(8, 2, -1)
    )
    for replica in found:
        np.testing.assert_allclose(replica, expected, atol=1e-7)


def test_a_sharded_memory_never_travels():
    """What the devices exchange in a step does not grow with the number of classes or with B·K·D."""
    classes, size, batch, count = 4096, 64, 16, 32
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), (axes.DATA, axes.MODEL))
    rows, spread = (NamedSharding(mesh, PartitionSpec(a)) for a in (axes.MODEL, (axes.DATA, axes.MODEL)))

    def step(student, teacher, labels, memory, neighbors):
        def loss(student):
            relations = class_banks.mined_relations(student, teacher, labels, memory, neighbors)
            return losses.relation_aware_loss(*relations).mean()

        updated = class_banks.update_bank(class_banks.update_memory, memory, teacher, labels)
        return jax.grad(loss)(student), updated

    shapes = [
        jax.ShapeDtypeStruct((batch, size), jnp.float32, sharding=spread),
        jax.ShapeDtypeStruct((batch, size), jnp.float32, sharding=spread),
        jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=spread),
        jax.ShapeDtypeStruct((classes, size), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((classes, count), jnp.int32, sharding=rows),
    ]
    with jax.set_mesh(mesh):
        text = jax.jit(step, out_shardings=(spread, rows)).lower(*shapes).compile().as_text()
    pattern = re.compile(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(")
    moved = [found[1] for line in text.splitlines() if (found := pattern.search(line))]
    assert moved
    for shapes in moved:
        sizes = [
            np.prod([int(n) for n in dims.split(",") if n]) for dims in re.findall(r"\[([\d,]*)\]", shapes)
        ]
        assert max(sizes) <= batch * max(size, 2 * count), shapes
