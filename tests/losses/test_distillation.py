import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.errors import UserError

STUDENT, TEACHER = jnp.array([[1.0, 2.0, 0.0]]), jnp.array([[2.0, 1.0, -1.0]])


def test_soft_targets_are_those_of_the_spec():
    loss, gradient = jax.value_and_grad(lambda z: losses.soft_target_loss(z, TEACHER)[0])(STUDENT)
    assert loss == pytest.approx(0.4799388, abs=1e-6)
    np.testing.assert_allclose(gradient, [[-0.470873, 0.293099, 0.177774]], atol=1e-6)


def test_soft_targets_see_differences_of_logits_alone():
    base = losses.soft_target_loss(STUDENT, TEACHER, temperature=2.0)
    np.testing.assert_allclose(
        losses.soft_target_loss(STUDENT + 7, TEACHER - 3, temperature=2.0), base, rtol=1e-5
    )
    assert losses.soft_target_loss(TEACHER, TEACHER)[0] == 0
    rng = np.random.default_rng(0)
    pairs = jnp.asarray(rng.normal(0, 5, (2, 50, 7)), jnp.float32)
    assert (losses.soft_target_loss(*pairs) > 0).all()


@pytest.mark.parametrize("loss", [losses.soft_target_loss, losses.mimic_loss])
def test_no_gradient_reaches_the_teacher(loss):
    gradient = jax.grad(lambda t: loss(STUDENT, t).sum())(TEACHER)
    assert (gradient == 0).all()


def test_mimic_by_hand():
    f, g = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[4.0, 3.0], [0.0, 2.0]])
    np.testing.assert_allclose(losses.mimic_loss(f, g), [2.0, 4.0])
    # 2 (1 - 24/25); the zero row stays zero, at distance 1 from a unit vector.
    np.testing.assert_allclose(losses.mimic_loss(f, g, unit=True), [0.08, 1.0], rtol=1e-6)
    gradient = jax.grad(lambda f: losses.mimic_loss(f, g, unit=True).sum())(f)
    assert jnp.isfinite(gradient).all()


def test_bfloat16_and_jit_give_float32():
    for loss in (losses.soft_target_loss, losses.mimic_loss):
        value = jax.jit(loss)(STUDENT.astype(jnp.bfloat16), TEACHER.astype(jnp.bfloat16))
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, loss(STUDENT, TEACHER), rtol=1e-2)


@pytest.mark.parametrize("loss", [losses.soft_target_loss, losses.mimic_loss])
def test_refusals(loss):
    with pytest.raises(UserError, match="one size for student and teacher, got 3 and 2"):
        loss(STUDENT, TEACHER[:, :2])
    with pytest.raises(AssertionError, match="batch"):
        loss(STUDENT, jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least one row"):
        loss(STUDENT[:0], TEACHER[:0])
    with pytest.raises(ValueError, match="float"):
        loss(STUDENT.astype(int), TEACHER)
    with pytest.raises(UserError, match="temperature"):
        losses.soft_target_loss(STUDENT, TEACHER, temperature=0.0)
