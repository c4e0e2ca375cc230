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
from jaxface.losses.coupleface import set_rows
from jaxface.training import class_banks

STUDENT = jnp.array([[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
TEACHER = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
PROTOTYPES = jnp.array([[1, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [0, 0.6, 0.8], [0, 0, 1]], jnp.float32)
NEIGHBORS = np.array([[1, 2], [0, 2], [1, 3], [4, 2], [3, 0]])
LABELS = np.array([0, 3])


mine = jax.jit(losses.mine_neighbors, static_argnames=("neighbors", "block"))


def random_case(seed=0, batch=6, classes=40, size=8, count=7):
    rng = np.random.default_rng(seed)
    student, teacher = (jnp.asarray(rng.normal(size=(batch, size)), jnp.float32) for _ in range(2))
    memory = l2_normalize(jnp.asarray(rng.normal(size=(classes, size)), jnp.float32))
    neighbors = mine(memory, count)
    return student, teacher, rng.integers(0, classes, batch), memory, neighbors


def test_consistency_by_hand():
    terms = losses.coupleface_terms(STUDENT, TEACHER, LABELS, PROTOTYPES, NEIGHBORS)
    assert float(terms.consistency.mean()) == pytest.approx(0.172105, abs=1e-6)
    cosine = [1 / np.sqrt(2), 3 / np.sqrt(10)]
    np.testing.assert_allclose(terms.consistency, 1 - np.array(cosine), rtol=1e-5)


def test_neighbors_by_hand_with_ties_to_the_lower_index():
    found = losses.mine_neighbors(PROTOTYPES, 2)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, NEIGHBORS)
    np.testing.assert_array_equal(losses.mine_neighbors(PROTOTYPES, 2, block=2), NEIGHBORS)


def test_relations_by_hand():
    terms = losses.coupleface_terms(STUDENT, TEACHER, LABELS, PROTOTYPES, NEIGHBORS)
    np.testing.assert_allclose(
        terms.student_relations, [[0.989949, 0.707107], [0.894427, 0.447214]], atol=1e-6
    )
    np.testing.assert_allclose(terms.teacher_relations, [[0.8, 0.0], [0.707107, 0.707107]], atol=1e-6)
    assert float(terms.relation.mean()) == pytest.approx(0.336067, abs=1e-6)
    squared = losses.coupleface_terms(STUDENT, TEACHER, LABELS, PROTOTYPES, NEIGHBORS, norm="l2")
    assert float(squared.relation.mean()) == pytest.approx(0.159679, abs=1e-6)
    total = losses.coupleface_loss(STUDENT, TEACHER, LABELS, PROTOTYPES, NEIGHBORS, relation_weight=2.0)
    np.testing.assert_allclose(total, terms.consistency + 2 * terms.relation, rtol=1e-6)
    default = losses.coupleface_loss(STUDENT, TEACHER, LABELS, PROTOTYPES, NEIGHBORS)
    np.testing.assert_allclose(default, terms.consistency + 5 * terms.relation, rtol=1e-6)


def test_the_gradient_by_hand():
    def loss(student):
        return losses.coupleface_terms(student, TEACHER, LABELS, PROTOTYPES, NEIGHBORS).relation.mean()

    unit = l2_normalize(STUDENT)
    by_hand = np.array([[0.2, 0.4, 0.0], [0.0, -0.25, 0.25]])  # 1/(BK) Σ_k sign(r_s - r_t) q_k
    # Then through the normalization: (I - u uᵀ) / ‖f‖.
    along = unit * np.sum(by_hand * unit, axis=1, keepdims=True)
    lengths = np.linalg.norm(STUDENT, axis=1, keepdims=True)
    gradient = jax.jit(jax.grad(loss))(STUDENT)
    np.testing.assert_allclose(gradient, (by_hand - along) / lengths, atol=1e-6)


def test_feature_distance_alone_does_not_know_relations():
    teacher = jnp.array([[1.0, 0.0, 0.0]])
    memory = jnp.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    sides = [
        losses.coupleface_terms(
            jnp.array([[np.cos(0.3), sign * np.sin(0.3), 0.0]]),
            teacher,
            np.array([0]),
            memory,
            np.array([[1], [0]]),
        )
        for sign in (1, -1)
    ]
    for terms, relation in zip(sides, (0.209618, 0.263214), strict=True):
        np.testing.assert_allclose(terms.consistency, [0.044664], atol=1e-6)
        np.testing.assert_allclose(terms.relation, [relation], atol=1e-6)


def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient():
    _, teacher, labels, memory, neighbors = random_case()
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda s: losses.coupleface_loss(s, teacher, labels, memory, neighbors).sum())
    )
    for scale in (1.0, 4.0, 3.3):
        value, gradient = value_and_grad(scale * teacher)
        assert abs(float(value)) < 1e-6 and float(jnp.abs(gradient).max()) < 1e-6


def test_no_gradient_reaches_the_teacher_or_the_memory():
    student, teacher, labels, memory, neighbors = random_case()
    gradients_of = jax.grad(
        lambda s, t, m: losses.coupleface_loss(s, t, labels, m, neighbors).sum(), (0, 1, 2)
    )
    gradients = jax.jit(gradients_of)(student, teacher, memory)
    assert [bool((g == 0).all()) for g in gradients] == [False, True, True]

    def of_update(memory, teacher):
        updated = losses.update_memory(memory, teacher, labels, mode="ema")
        return jnp.square(updated[:, 0]).sum()

    assert all((g == 0).all() for g in jax.jit(jax.grad(of_update, (0, 1)))(memory, teacher))


def test_neighbors_are_others_and_all_of_them_where_k_asks():
    rng = np.random.default_rng(0)
    prototypes = l2_normalize(jnp.asarray(rng.normal(size=(23, 4)), jnp.float32))
    found = np.asarray(mine(prototypes, 22, block=5))
    for own, row in enumerate(found):
        assert sorted(row) == [i for i in range(23) if i != own]
    few = np.asarray(mine(prototypes, 6, block=7))
    np.testing.assert_array_equal(few, found[:, :6])
    # Identical prototypes too: the own class is left out by its number, not by its similarity.
    same = np.asarray(mine(jnp.ones((5, 4)) / 2, 2))
    np.testing.assert_array_equal(same, [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]])


@pytest.mark.parametrize("block", [128, 1000, 4096])
def test_blocked_mining_is_the_unblocked(block):
    rng = np.random.default_rng(0)
    prototypes = np.asarray(l2_normalize(jnp.asarray(rng.normal(size=(1000, 16)), jnp.float32)))
    products = prototypes.astype(np.float64) @ prototypes.T.astype(np.float64)
    np.fill_diagonal(products, -np.inf)
    expected = np.argsort(-products, axis=1, kind="stable")[:, :17]
    mined = jax.jit(functools.partial(losses.mine_neighbors, neighbors=17, block=block))
    np.testing.assert_array_equal(mined(prototypes), expected)
    some = np.array([5, 999, 0, 5])
    np.testing.assert_array_equal(mined(prototypes, of=some), expected[some])


def test_mining_makes_no_products_of_all_with_all():
    prototypes = jax.ShapeDtypeStruct((200_000, 8), jnp.float32)
    compiled = jax.jit(lambda p: losses.mine_neighbors(p, 10, block=512)).lower(prototypes).compile()
    assert (
        compiled.memory_analysis().temp_size_in_bytes < 200e6
    )  # all with all: 160 GB; rows with all: 410 MB


def test_classes_without_images_are_no_neighbors():
    valid = jnp.array([True, False, True, True, True])
    found = np.asarray(mine(PROTOTYPES, 3, valid=valid))
    assert not (found[[0, 2, 3, 4]] == 1).any()
    everyone = np.asarray(mine(PROTOTYPES, 4, valid=valid))
    np.testing.assert_array_equal(everyone[[0, 2, 3, 4], 3], [1, 1, 1, 1])  # last, where K asks for all
    assert all(own not in row for own, row in enumerate(everyone))


def test_prototypes_are_means_of_directions():
    features = jnp.array([[2.0, 0.0], [0.0, 5.0], [3.0, 0.0], [7.0, 7.0]])
    found = losses.class_prototypes(features, np.array([1, 1, 3, -1]), 4)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found, [[0, 0], [half, half], [0, 0], [1, 0]], atol=1e-6)
    parts = jnp.zeros((4, 2))
    for i in range(4):
        parts = losses.add_class_features(parts, features[i : i + 1], np.array([1, 1, 3, -1])[i : i + 1])
    np.testing.assert_allclose(l2_normalize(parts), found, atol=1e-6)


def test_the_last_feature_of_a_class_stays():
    memory = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    p, q = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]], np.float32)
    for update in (losses.update_memory, jax.jit(losses.update_memory)):
        after = np.asarray(update(memory, np.stack([p, q]), np.array([2, 2])))
        np.testing.assert_array_equal(after[2], [0, 0, 1])
        np.testing.assert_array_equal(after[[0, 1, 3, 4]], np.asarray(memory)[[0, 1, 3, 4]])
    labels = np.random.default_rng(1).integers(0, 5, 64)
    rows = np.arange(64.0, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    expected = [np.flatnonzero(labels == c)[-1] for c in range(5)]
    np.testing.assert_array_equal(set_rows(memory, rows, labels)[:, 0], expected)


def test_averaged_and_frozen_memories():
    unit = l2_normalize(jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32))
    feature = jnp.array([[0.0, 3.0, 4.0]])
    after = losses.update_memory(unit, feature, np.array([1]), mode="ema", decay=0.75)
    mixed = 0.75 * np.asarray(unit[1]) + 0.25 * np.array([0, 0.6, 0.8])
    np.testing.assert_allclose(after[1], mixed / np.linalg.norm(mixed), rtol=1e-5)
    np.testing.assert_array_equal(after[np.array([0, 2, 3])], unit[np.array([0, 2, 3])])
    np.testing.assert_array_equal(losses.update_memory(unit, feature, np.array([1]), mode="none"), unit)
    np.testing.assert_array_equal(losses.update_memory(unit, feature, np.array([-1])), unit)


def test_one_rotation_of_everything_changes_nothing():
    student, teacher, labels, memory, neighbors = random_case()
    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(5).normal(size=(8, 8)))[0], jnp.float32)
    terms_of = jax.jit(losses.coupleface_terms)
    plain = terms_of(student, teacher, labels, memory, neighbors)
    turned = terms_of(student @ turn, teacher @ turn, labels, memory @ turn, neighbors)
    np.testing.assert_allclose(turned.consistency, plain.consistency, atol=1e-5)
    np.testing.assert_allclose(turned.relation, plain.relation, atol=1e-5)


def test_relations_differ_by_no_more_than_the_embeddings():
    terms_of = jax.jit(losses.coupleface_terms)
    for seed in range(10):
        terms = terms_of(*random_case(seed))
        assert (terms.relation <= np.sqrt(2 * terms.consistency) + 1e-6).all()
        assert float(terms.relation.mean()) ** 2 <= 2 * float(terms.consistency.mean())


def test_blocks_of_neighbors_are_the_whole_and_no_b_k_d_is_made():
    case = random_case(count=33)
    whole, blocked = (
        jax.jit(
            jax.value_and_grad(lambda s, block=block: losses.coupleface_loss(s, *case[1:], block=block).sum())
        )(case[0])
        for block in (64, 5)
    )
    np.testing.assert_allclose(blocked[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(blocked[1], whole[1], atol=1e-6)
    batch, classes, size, count = 256, 5000, 128, 96
    shapes = [(batch, size), (batch, size), (batch,), (classes, size), (classes, count)]
    kinds = [jnp.float32, jnp.float32, jnp.int32, jnp.float32, jnp.int32]
    arguments = [jax.ShapeDtypeStruct(*x) for x in zip(shapes, kinds, strict=True)]

    def temporary(block):
        gradient = jax.grad(lambda s, *rest: losses.coupleface_loss(s, *rest, block=block).mean())
        return jax.jit(gradient).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    everything = batch * count * size * 4
    assert temporary(count) > everything > 2 * temporary(16)


def test_relations_that_do_not_count():
    student, teacher = jnp.array([[0.5, 0.1], [0.2, 0.4]]), jnp.array([[0.1, 0.0], [0.0, 0.0]])
    where = jnp.array([[True, False], [False, False]])
    np.testing.assert_allclose(
        losses.relation_aware_loss(student, teacher, where=where), [0.4, 0.0], atol=1e-6
    )


def test_boundaries_are_finite():
    _, teacher, labels, memory, neighbors = random_case()
    memory = memory.at[3].set(0.0)
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda s, t: losses.coupleface_loss(s, t, labels, memory, neighbors).sum())
    )
    for student in (jnp.zeros_like(teacher), teacher, -teacher, 1e-20 * teacher):
        for target in (teacher, jnp.zeros_like(teacher)):
            value, gradient = value_and_grad(student, target)
            assert np.isfinite(value) and jnp.isfinite(gradient).all()
    one = jax.jit(losses.coupleface_loss)(teacher[:1], -teacher[:1], labels[:1], memory, neighbors)
    assert one.shape == (1,) and np.isfinite(one).all()


def test_bfloat16_jit_and_vmap():
    student, teacher, labels, memory, neighbors = random_case()
    plain = losses.coupleface_loss(student, teacher, labels, memory, neighbors)
    rounded = jax.jit(losses.coupleface_loss)(
        student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16), labels, memory, neighbors
    )
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, plain, rtol=3e-2)
    pairs = jnp.stack([student, teacher]), jnp.stack([teacher, student])
    mapped = jax.jit(jax.vmap(lambda s, t: losses.coupleface_loss(s, t, labels, memory, neighbors)))(*pairs)
    np.testing.assert_allclose(mapped[0], plain, rtol=1e-5)


def test_refusals():
    student, teacher, labels, memory, neighbors = random_case()
    loss = losses.coupleface_loss
    with pytest.raises(UserError, match="one size for student and teacher, got 7 and 8"):
        loss(student[:, :7], teacher, labels, memory, neighbors)
    with pytest.raises(AssertionError, match="batch"):
        loss(student[:5], teacher, labels, memory, neighbors)
    with pytest.raises(ValueError, match="at least one row"):
        loss(student[:0], teacher[:0], labels[:0], memory, neighbors)
    with pytest.raises(ValueError, match="float"):
        loss(student.astype(int), teacher, labels, memory, neighbors)
    for wrong in (np.full(6, 40), np.full(6, -1)):
        with pytest.raises(ValueError, match=r"^labels: needs values in \[0, 40\)"):
            loss(student, teacher, wrong, memory, neighbors)
    with pytest.raises(ValueError, match=r"^labels: needs an integer dtype"):
        loss(student, teacher, labels.astype(float), memory, neighbors)
    with pytest.raises(ValueError, match=r"^memory: needs rows of length 1 or 0, got 2"):
        loss(student, teacher, labels, 2 * memory, neighbors)
    with pytest.raises(
        UserError, match=r"^neighbors: needs at least 1 and at most the 39 other classes, got 40"
    ):
        loss(student, teacher, labels, memory, jnp.zeros((40, 40), jnp.int32))
    for count in (0, 40):
        with pytest.raises(UserError, match=r"^neighbors: needs at least 1 and at most the 39"):
            losses.mine_neighbors(memory, count)
    with pytest.raises(UserError, match="at most the 0 other classes, got 1"):
        losses.mine_neighbors(memory[:1], 1)
    with pytest.raises(UserError, match=r"^norm"):
        loss(student, teacher, labels, memory, neighbors, norm="huber")
    with pytest.raises(UserError, match=r"^relation_weight"):
        loss(student, teacher, labels, memory, neighbors, relation_weight=-1.0)
    with pytest.raises(UserError, match=r"^mode"):
        losses.update_memory(memory, teacher, labels, mode="newest")
    with pytest.raises(UserError, match=r"^decay"):
        losses.update_memory(memory, teacher, labels, mode="ema", decay=1.5)
    with pytest.raises(ValueError, match=r"^labels: needs values in"):
        losses.update_memory(memory, teacher, np.full(6, 40))


@pytest.fixture(params=[(8, 1), (2, 4)], ids=str)
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
            functools.partial(losses.update_memory, mode="ema"), memory, teacher, labels
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
    expected = losses.update_memory(memory, teacher, labels)

    def update(memory, labels, teacher):
        return class_banks.update_bank(losses.update_memory, memory, teacher, labels)

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

        updated = class_banks.update_bank(losses.update_memory, memory, teacher, labels)
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
