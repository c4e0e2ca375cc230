"""Distribution-guided distillation against its N × N definition in float64, and checks 8 and 9 of the specification."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.losses import dgd_loss, hard_distillation_loss, similarity_pattern

RNG = np.random.default_rng(0)


def layer(*shape):
    return tuple(jnp.asarray(RNG.normal(size=shape), jnp.float32) for _ in range(2))


def one(rows):
    """Tokens of one head as [1, N, 1, d]."""
    return jnp.asarray(rows, jnp.float32)[None, :, None]


def by_hand(student, teacher, *, scope="sample_head", center=()):
    """Σ over layers, queries and keys, heads, mean over the batch; every N × N matrix is made."""
    total = 0.0
    for layers in zip(student, teacher, strict=True):
        for name, *pair in zip(("queries", "keys"), *layers, strict=True):
            patterns = []
            for x in pair:
                x = np.asarray(x, np.float64).transpose(0, 2, 1, 3)
                x = x - x.mean(2, keepdims=True) if name in center else x
                similarity = x @ x.swapaxes(2, 3)
                axes = (2, 3) if scope == "sample_head" else None
                norm = np.sqrt((similarity**2).sum(axes, keepdims=True))
                patterns.append(similarity / (norm + 1e-6))
            squared = ((patterns[0] - patterns[1]) ** 2).sum((2, 3))
            if scope == "sample_head":
                total += np.sqrt(squared + 1e-12).mean(0).sum()
            else:
                total += np.sqrt(squared.sum() + 1e-12)
    return total


STUDENT = [layer(3, 7, 2, 5), layer(3, 7, 2, 5)]
TEACHER = [layer(3, 7, 2, 4), layer(3, 7, 2, 4)]  # heads of another size are compared as well


def test_check_8_patterns():
    q = jnp.diag(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(similarity_pattern(q), np.diag([0.242536, 0.970143]), atol=1e-6)
    turned = 3 * jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    rotation = jnp.asarray(np.linalg.qr(RNG.normal(size=(3, 3)))[0], jnp.float32)
    np.testing.assert_allclose(
        similarity_pattern(3 * turned @ rotation), similarity_pattern(turned), atol=1e-6
    )
    loss = jax.jit(functools.partial(dgd_loss, reduction="sum"))
    same = (one(turned), one(turned))
    np.testing.assert_allclose(loss([same], [tuple(3 * x @ rotation for x in same)]), 0, atol=2e-3)


@pytest.mark.parametrize(
    ("queries", "targets", "expected"),
    [
        (np.diag([1, 2]), np.eye(2), 0.533867),
        ([[1, 2, 0], [0, 1, -1], [2, 0, 1]], [[1, 1, 0], [0, 1, 1], [1, 0, 1]], 0.577350),
    ],
)
def test_check_8_a_term(queries, targets, expected):
    keys = one(targets)
    found = dgd_loss([(one(queries), keys)], [(one(targets), keys)], reduction="sum")
    np.testing.assert_allclose(found, expected, atol=3e-6)


@pytest.mark.parametrize(
    ("options", "terms", "reference"),
    [
        ({}, 8, {}),
        ({"center_tokens": "keys"}, 8, {"center": ("keys",)}),
        ({"center_tokens": "both"}, 8, {"center": ("queries", "keys")}),
        ({"norm_scope": "tensor"}, 4, {"scope": "tensor"}),
    ],
)
def test_nothing_of_n_by_n_gives_the_definition(options, terms, reference):
    expected = by_hand(STUDENT, TEACHER, **reference)
    loss = jax.jit(functools.partial(dgd_loss, **options))
    np.testing.assert_allclose(loss(STUDENT, TEACHER), expected / terms, rtol=1e-5)


def test_gradients_are_those_of_the_definition_and_finite_at_the_teacher():
    def explicit(student):
        total = 0.0
        for x, t in zip(jax.tree.leaves(student), jax.tree.leaves(TEACHER), strict=True):
            patterns = [similarity_pattern(jnp.swapaxes(y, 1, 2)) for y in (x, t)]
            total += jnp.sqrt(jnp.sum((patterns[0] - patterns[1]) ** 2, (2, 3))).mean(0).sum()
        return total / 8

    run = jax.jit(jax.grad(dgd_loss))
    expected, found = jax.jit(jax.grad(explicit))(STUDENT), run(STUDENT, TEACHER)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), found, expected)
    wide = [tuple(jnp.pad(x, ((0, 0),) * 3 + ((0, 1),)) for x in pair) for pair in TEACHER]
    zeros = jax.tree.map(jnp.zeros_like, STUDENT)
    for student in (wide, zeros):  # where the two are one, and where there is no direction
        for leaf in jax.tree.leaves(run(student, TEACHER)):
            assert jnp.all(jnp.isfinite(leaf)) and jnp.abs(leaf).max() < 1e3
    np.testing.assert_allclose(jax.jit(dgd_loss)(wide, TEACHER), 0, atol=2e-6)


def test_a_rectified_student_reaches_a_standardized_teacher_alone():
    """Floors of the specification: N = 197, d = 64, log-normal token norms of spread 0, 0.3 and 0.6."""
    run = jax.jit(dgd_loss, static_argnames=("standardize_teacher",))
    rectify = jax.jit(lambda x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-9))
    normal = RNG.normal(size=(4, 197, 1, 64))
    for spread, floor in ((0.0, 0.17), (0.3, 0.51), (0.6, 0.88)):
        x = jnp.asarray(np.exp(spread * RNG.normal(size=(4, 197, 1, 1))) * normal, jnp.float32)
        student, teacher = [(rectify(x), rectify(x))], [(x, x)]
        np.testing.assert_allclose(run(student, teacher), floor, atol=0.06)
        np.testing.assert_allclose(run(student, teacher, standardize_teacher=True), 0, atol=1e-3)


def test_check_9_hard_distillation():
    z, d = jnp.array([[2.0, 0, -1]]), jnp.array([[0.5, 1, 0]])
    teacher, label = jnp.array([[0.0, 1, 0]]), jnp.array([0])
    run = jax.jit(hard_distillation_loss, static_argnames=("alpha",))
    np.testing.assert_allclose(run(z, d, label, teacher), [0.425058], rtol=2e-6)
    ends = [run(z, d, label, teacher, alpha=alpha)[0] for alpha in (0.0, 1.0)]
    np.testing.assert_allclose(sum(ends) / 2, 0.425058, rtol=2e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dgd_loss(STUDENT, TEACHER[:1]), "teacher: needs as many layers as the student, 2, .* got 1"),
        (lambda: dgd_loss([], []), "at least one, got 0"),
        (
            lambda: dgd_loss(STUDENT, [layer(3, 8, 2, 4)] * 2),
            r"the student's queries of layer 1, \(3, 7, 2\), got \(3, 8, 2\)",
        ),
        (lambda: dgd_loss(STUDENT, [layer(3, 7, 1, 4)] * 2), r"got \(3, 7, 1\)"),
        (lambda: dgd_loss(STUDENT, TEACHER, reduction="max"), "reduction: needs one of 'mean', 'sum'"),
        (
            lambda: hard_distillation_loss(*STUDENT[0], None, None, alpha=2),
            "alpha: needs a number from 0 to 1",
        ),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()
