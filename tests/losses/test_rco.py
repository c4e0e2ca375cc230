import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.errors import UserError

ANCHORS = jnp.array([[[1, 0.5, 0]], [[2, 0.5, -0.5]], [[4, 0.5, -1]], [[8, 0.5, -2]]])
STUDENT = jnp.array([[1.1, 0.4, 0.0]])


def test_hardness_and_its_ratios_by_hand():
    values = jnp.stack([losses.hardness(STUDENT, anchor) for anchor in ANCHORS])
    np.testing.assert_allclose(values, [0.00382075, 0.11284272, 0.46086639, 0.59925802], rtol=2e-5)
    ratios = losses.hardness_ratios(values, 0)
    np.testing.assert_allclose(ratios, [1, 29.534216, 120.622111, 156.843217], rtol=2e-5)
    np.testing.assert_allclose(losses.hardness_ratios(values, 2)[2:], [1, 1.3002857], rtol=2e-5)


def test_the_anchor_is_the_reference_distribution():
    p, q = jax.nn.softmax(ANCHORS[3]), jax.nn.softmax(STUDENT)
    np.testing.assert_allclose(losses.hardness(STUDENT, ANCHORS[3]), jnp.sum(p * jnp.log(p / q)), rtol=1e-5)
    assert losses.hardness(ANCHORS[3], STUDENT) != pytest.approx(0.59925802, rel=0.1)


def test_hardness_is_the_distillation_loss_without_its_factor():
    rng = np.random.default_rng(0)
    student, anchor = jnp.asarray(rng.normal(0, 3, (2, 20, 7)), jnp.float32)
    for temperature in (1.0, 4.0):
        expected = losses.soft_target_loss(student, anchor, temperature=temperature).mean() / temperature**2
        np.testing.assert_allclose(
            losses.hardness(student, anchor, temperature=temperature), expected, rtol=1e-6
        )
    assert losses.hardness(student + 5, anchor) == pytest.approx(
        float(losses.hardness(student, anchor)), rel=1e-5
    )
    assert losses.hardness(student, student) == 0


def test_examples_that_do_not_count_do_not():
    rng = np.random.default_rng(1)
    student, anchor = jnp.asarray(rng.normal(size=(2, 6, 5)), jnp.float32)
    where = jnp.array([True, False, True, True, False, False])
    np.testing.assert_allclose(
        losses.hardness(student, anchor, where=where),
        losses.hardness(student[where], anchor[where]),
        rtol=1e-6,
    )
    assert losses.hardness(student, anchor, where=jnp.zeros(6, bool)) == 0


def test_a_perfect_copy_has_finite_ratios():
    ratios = losses.hardness_ratios(jnp.array([0.0, 2e-6]), 0)
    np.testing.assert_allclose(ratios, [0.0, 2.0], rtol=1e-6)


def test_hints_by_hand():
    student = jnp.arange(8.0).reshape(2, 2, 1, 2)
    loss = losses.hint_loss(student, student.at[1, 0, 0, 0].add(3).at[1, 1, 0, 1].add(-1))
    np.testing.assert_array_equal(loss, [0.0, 10.0])
    gradients = jax.grad(lambda s, t: losses.hint_loss(s, t).sum(), (0, 1))(student, student + 1)
    np.testing.assert_array_equal(gradients[0], jnp.full(student.shape, -2.0))
    assert (gradients[1] == 0).all()


def test_no_gradient_reaches_the_anchor():
    assert (jax.grad(lambda t: losses.hardness(STUDENT, t))(ANCHORS[1]) == 0).all()


def test_bfloat16_jit_and_vmap():
    low = jax.jit(losses.hardness)(STUDENT.astype(jnp.bfloat16), ANCHORS[2].astype(jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, 0.46086639, rtol=2e-2)
    values = jax.vmap(lambda anchor: losses.hardness(STUDENT, anchor))(ANCHORS)
    np.testing.assert_allclose(values, [0.00382075, 0.11284272, 0.46086639, 0.59925802], rtol=2e-5)
    assert losses.hint_loss(STUDENT.astype(jnp.bfloat16), STUDENT.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: losses.hardness(STUDENT, ANCHORS[0, :, :2]),
            "one size for student and teacher, got 3 and 2",
        ),
        (lambda: losses.hardness(STUDENT, ANCHORS[0], temperature=0.0), "temperature"),
        (lambda: losses.hardness(STUDENT, jnp.zeros((2, 3))), "batch"),
        (lambda: losses.hardness_ratios(ANCHORS[0], 0), "values must be"),
        (lambda: losses.hardness_ratios(jnp.ones(3), 3), "current: needs an anchor in"),
        (lambda: losses.hint_loss(jnp.ones((2, 3, 3, 4)), jnp.ones((2, 3, 3, 8))), "hints: need one shape"),
        (lambda: losses.hint_loss(jnp.ones(3), jnp.ones(3)), "hints: need shape"),
    ],
)
def test_refusals(call, words):
    with pytest.raises((ValueError, AssertionError), match=words) as caught:
        call()
    if isinstance(caught.value, UserError):
        assert "\n" not in str(caught.value)
