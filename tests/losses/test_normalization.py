"""Losses of directions give a dead example no larger gradient than its neighbors: the derivative of x / ‖x‖ is bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.layers.prototypes import cosines, l2_normalize
from pallas_kernels.margin_softmax import arcface, margin_softmax
from pallas_kernels.margin_softmax.reference import row_losses

RNG = np.random.default_rng(0)
TEACHER = jnp.asarray(RNG.normal(size=(6, 8)), jnp.float32)
PROTOTYPES = jnp.asarray(RNG.normal(size=(5, 8)), jnp.float32)
LABELS = jnp.arange(6) % 5

LOSSES = {
    "softmax": lambda x: losses.softmax_loss(cosines(x, PROTOTYPES), LABELS),
    "arcface": lambda x: losses.arcface_loss(cosines(x, PROTOTYPES), LABELS),
    "sface": lambda x: losses.sface_loss(cosines(x, PROTOTYPES), LABELS),
    "prototypes": lambda x: losses.cosface_loss(cosines(TEACHER, x), LABELS),
    "congruence": lambda x: losses.correlation_congruence_loss(x, TEACHER),
    "congruence, mmd": lambda x: losses.correlation_congruence_loss(x, TEACHER, kernel="mmd"),
    "mimic": lambda x: losses.mimic_loss(x, TEACHER, unit=True),
    "fused": lambda x: margin_softmax(x, PROTOTYPES, LABELS, arcface())[0],
    "fused, prototypes": lambda x: margin_softmax(TEACHER, x, LABELS, arcface())[0],
    "fused, reference": lambda x: row_losses(x, PROTOTYPES, LABELS, arcface()),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_row_near_zero_gets_no_larger_gradient_than_its_neighbors(loss):
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(loss(x))))
    rows = jnp.asarray(RNG.normal(size=(6, 8)), jnp.float32)
    others = np.linalg.norm(gradient(rows), axis=1).max()
    assert others > 0
    for length, most in ((0.0, 0.0), (1e-7, 0.0), (1e-5, 4e3), (1e-4, 4e4), (1e-3, 4e3)):
        dead = rows.at[2].set(length * rows[2] / jnp.linalg.norm(rows[2]))
        found = np.linalg.norm(gradient(dead), axis=1)
        assert np.isfinite(found).all()
        assert found[2] <= most * others, (length, found[2] / others)


def test_a_row_of_any_length_has_the_true_direction_and_from_1e_4_on_the_true_derivative():
    row = jnp.asarray([3.0, -4.0, 12.0]) / 13
    for length in (1e-5, 1e-3, 1.0, 1e6):
        np.testing.assert_allclose(l2_normalize(length * row), row, rtol=1e-6)
    exact = (np.eye(3) - np.outer(row, row)) / 1e-3
    np.testing.assert_allclose(jax.jacobian(l2_normalize)(1e-3 * row), exact, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(
        jax.jacobian(l2_normalize)(1e-5 * row), 0.01 * exact / 1e-2, rtol=1e-4, atol=1e-2
    )
    assert not jax.jacobian(l2_normalize)(jnp.zeros(3)).any()
