import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize
from jaxface.training import class_banks

STUDENT = jnp.array([[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
TEACHER = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
PROTOTYPES = jnp.array([[1, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [0, 0.6, 0.8], [0, 0, 1]], jnp.float32)
NEIGHBORS = np.array([[1, 2], [0, 2], [1, 3], [4, 2], [3, 0]])
LABELS = np.array([0, 3])


mine = jax.jit(class_banks.mine_neighbors, static_argnames=("neighbors", "block"))


def random_case(seed=0, batch=6, classes=40, size=8, count=7):
    rng = np.random.default_rng(seed)
    student, teacher = (jnp.asarray(rng.normal(size=(batch, size)), jnp.float32) for _ in range(2))
    memory = l2_normalize(jnp.asarray(rng.normal(size=(classes, size)), jnp.float32))
    neighbors = mine(memory, count)
    return student, teacher, rng.integers(0, classes, batch), memory, neighbors


def terms_of(student, teacher, labels, memory, neighbors, **options):
    """The terms of the loss whose relations are the mined ones."""
    relations = losses.mined_relations(student, teacher, labels, memory, neighbors)
    return losses.coupleface_loss(student, teacher, relations, **options)[1]


def loss_of(student, teacher, labels, memory, neighbors, *, block=16, **options):
    """That loss [B]."""
    relations = losses.mined_relations(student, teacher, labels, memory, neighbors, block=block)
    return losses.coupleface_loss(student, teacher, relations, **options)[0]


def test_consistency_by_hand():
    terms = terms_of(STUDENT, TEACHER, LABELS, PROTOTYPES, NEIGHBORS)
    assert float(terms.consistency.mean()) == pytest.approx(0.172105, abs=1e-6)
    cosine = [1 / np.sqrt(2), 3 / np.sqrt(10)]
    np.testing.assert_allclose(terms.consistency, 1 - np.array(cosine), rtol=1e-5)


def test_relations_by_hand():
    terms = terms_of(STUDENT, TEACHER, LABELS, PROTOTYPES, NEIGHBORS)
    student, teacher = losses.mined_relations(STUDENT, TEACHER, LABELS, PROTOTYPES, NEIGHBORS)
    np.testing.assert_allclose(student, [[0.989949, 0.707107], [0.894427, 0.447214]], atol=1e-6)
    np.testing.assert_allclose(teacher, [[0.8, 0.0], [0.707107, 0.707107]], atol=1e-6)
    assert float(terms.relation.mean()) == pytest.approx(0.336067, abs=1e-6)
    squared = terms_of(STUDENT, TEACHER, LABELS, PROTOTYPES, NEIGHBORS, norm="l2")
    assert float(squared.relation.mean()) == pytest.approx(0.159679, abs=1e-6)
    total = loss_of(STUDENT, TEACHER, LABELS, PROTOTYPES, NEIGHBORS, relation_weight=2.0)
    np.testing.assert_allclose(total, terms.consistency + 2 * terms.relation, rtol=1e-6)
    default = loss_of(STUDENT, TEACHER, LABELS, PROTOTYPES, NEIGHBORS)
    np.testing.assert_allclose(default, terms.consistency + 5 * terms.relation, rtol=1e-6)


def test_the_gradient_by_hand():
    def loss(student):
        return terms_of(student, TEACHER, LABELS, PROTOTYPES, NEIGHBORS).relation.mean()

    unit = l2_normalize(STUDENT)
    by_hand = np.array([[0.2, 0.4, 0.0], [0.0, -0.25, 0.25]])  # 1/(BK) Σ_k sign(r_s - r_t) q_k
    # Then through the normalization: (I - u uᵀ) / ‖f‖.
    along = unit * np.sum(by_hand * unit, axis=1, keepdims=True)
    lengths = np.linalg.norm(STUDENT, axis=1, keepdims=True)
    gradient = jax.grad(loss)(STUDENT)
    np.testing.assert_allclose(gradient, (by_hand - along) / lengths, atol=1e-6)


def test_feature_distance_alone_does_not_know_relations():
    teacher = jnp.array([[1.0, 0.0, 0.0]])
    memory = jnp.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    sides = [
        terms_of(
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
        jax.value_and_grad(lambda s: loss_of(s, teacher, labels, memory, neighbors).sum())
    )
    for scale in (1.0, 4.0, 3.3):
        value, gradient = value_and_grad(scale * teacher)
        assert abs(float(value)) < 1e-6 and float(jnp.abs(gradient).max()) < 1e-6


def test_no_gradient_reaches_the_teacher_or_the_memory():
    student, teacher, labels, memory, neighbors = random_case()
    gradients = jax.grad(lambda s, t, m: loss_of(s, t, labels, m, neighbors).sum(), (0, 1, 2))(
        student, teacher, memory
    )
    assert [bool((g == 0).all()) for g in gradients] == [False, True, True]


def test_one_rotation_of_everything_changes_nothing():
    student, teacher, labels, memory, neighbors = random_case()
    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(5).normal(size=(8, 8)))[0], jnp.float32)
    plain = terms_of(student, teacher, labels, memory, neighbors)
    turned = terms_of(student @ turn, teacher @ turn, labels, memory @ turn, neighbors)
    np.testing.assert_allclose(turned.consistency, plain.consistency, atol=1e-5)
    np.testing.assert_allclose(turned.relation, plain.relation, atol=1e-5)


def test_relations_differ_by_no_more_than_the_embeddings():
    jitted = jax.jit(terms_of)
    for seed in range(10):
        terms = jitted(*random_case(seed))
        assert (terms.relation <= np.sqrt(2 * terms.consistency) + 1e-6).all()
        assert float(terms.relation.mean()) ** 2 <= 2 * float(terms.consistency.mean())


def test_blocks_of_neighbors_are_the_whole_and_no_b_k_d_is_made():
    case = random_case(count=33)
    whole, blocked = (
        jax.value_and_grad(lambda s, block=block: loss_of(s, *case[1:], block=block).sum())(case[0])
        for block in (64, 5)
    )
    np.testing.assert_allclose(blocked[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(blocked[1], whole[1], atol=1e-6)
    batch, classes, size, count = 256, 5000, 128, 96
    shapes = [(batch, size), (batch, size), (batch,), (classes, size), (classes, count)]
    kinds = [jnp.float32, jnp.float32, jnp.int32, jnp.float32, jnp.int32]
    arguments = [jax.ShapeDtypeStruct(*x) for x in zip(shapes, kinds, strict=True)]

    def temporary(block):
        gradient = jax.grad(lambda s, *rest: loss_of(s, *rest, block=block).mean())
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
    value_and_grad = jax.jit(jax.value_and_grad(lambda s, t: loss_of(s, t, labels, memory, neighbors).sum()))
    for student in (jnp.zeros_like(teacher), teacher, -teacher, 1e-20 * teacher):
        for target in (teacher, jnp.zeros_like(teacher)):
            value, gradient = value_and_grad(student, target)
            assert np.isfinite(value) and jnp.isfinite(gradient).all()
    one = loss_of(teacher[:1], -teacher[:1], labels[:1], memory, neighbors)
    assert one.shape == (1,) and np.isfinite(one).all()


def test_bfloat16_jit_and_vmap():
    student, teacher, labels, memory, neighbors = random_case()
    plain = loss_of(student, teacher, labels, memory, neighbors)
    rounded = jax.jit(loss_of)(
        student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16), labels, memory, neighbors
    )
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, plain, rtol=3e-2)
    pairs = jnp.stack([student, teacher]), jnp.stack([teacher, student])
    mapped = jax.vmap(lambda s, t: loss_of(s, t, labels, memory, neighbors))(*pairs)
    np.testing.assert_allclose(mapped[0], plain, rtol=1e-5)


def test_refusals():
    student, teacher, labels, memory, neighbors = random_case()
    loss = loss_of
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
    with pytest.raises(UserError, match=r"^norm"):
        loss(student, teacher, labels, memory, neighbors, norm="huber")
    with pytest.raises(UserError, match=r"^relation_weight"):
        loss(student, teacher, labels, memory, neighbors, relation_weight=-1.0)
