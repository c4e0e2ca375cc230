"""The decoupled step of an architecture, and CP-NAS's indicator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.optimizers import dcp_nas as search

OLD = jnp.array([[0.1, 0.2, -0.1], [0.05, -0.2, 0.3]])
NEW = jnp.array([[0.12, 0.18, -0.08], [0.04, -0.22, 0.33]])
PSI = jnp.array([0.5, 2.0])
NORMS = jnp.array([1.5, 0.2, 0.9])


def test_check_7_the_decoupled_step():
    step = search.decoupled_step(NEW, OLD, PSI, NORMS, eta=0.01, eps=0.5)
    assert step.gate.tolist() == [True, False, True]
    np.testing.assert_allclose(step.alpha, [[0.1205, 0.18, -0.0805], [0.041, -0.22, 0.336]], atol=1e-7)
    still = search.decoupled_step(NEW, OLD, jnp.zeros(2), NORMS, eta=0.01, eps=0.5)
    np.testing.assert_array_equal(still.alpha, NEW)


def test_the_gradient_of_psi_is_that_of_the_step():
    def loss(psi):
        moved = search.decoupled_step(NEW, OLD, psi, NORMS, eta=0.01, eps=0.5).alpha
        return jnp.sum(jnp.sin(3 * moved))

    moved, gate = search.decoupled_step(NEW, OLD, PSI, NORMS, eta=0.01, eps=0.5)
    gradient = search.psi_gradient(3 * jnp.cos(3 * moved), OLD, gate, 0.01)
    np.testing.assert_allclose(gradient, jax.grad(loss)(PSI), rtol=1e-5)


def test_check_8_psi_stays_at_zero_or_reflects():
    psi = jnp.array([0.0, 0.1, 0.1])
    gradient = jnp.array([1.0, 1.0, -1.0])
    np.testing.assert_allclose(search.psi_update(psi, gradient, 0.3), [0.0, 0.0, 0.4], atol=1e-7)
    reflected = search.psi_update(psi, gradient, 0.3, reflect=True)
    np.testing.assert_allclose(reflected, [0.3, 0.2, 0.4], atol=1e-7)
    np.testing.assert_allclose(search.psi_update(psi, gradient, 0.3, limit=0.2), [0, 0, 0.2], atol=1e-7)


def test_check_8c_half_the_operations_open_for_any_norms_and_the_mean_chooses_two():
    counts = jnp.array([0, 0, 0, 1312, 1312, 400, 656, 0])
    squares = counts * jnp.array([1, 1, 1, 1, 3, 5, 4, 1]) * 1e-2
    for seed in range(3):
        drawn = jnp.where(counts > 0, jax.random.uniform(jax.random.key(seed), (8,), minval=1e-3), 0.0)
        for norm in ("sum", "mean"):
            norms = search.operation_norms(drawn * counts, counts, norm)
            assert search.density_gate(norms, 0.5).tolist() == (counts > 0).tolist()
    by_mean = search.density_gate(search.operation_norms(squares, counts, "mean"), 0.75)
    assert by_mean.tolist() == [False] * 5 + [True, True, False]  # 5e-2 and 4e-2 of a weight
    by_sum = search.density_gate(search.operation_norms(squares, counts, "sum"), 0.75)
    assert by_sum.tolist() == [False] * 4 + [True, False, True, False]  # 39 and 26, of more weights


def test_check_9_the_indicator_depends_on_beta():
    parent, child = jnp.array([0.9, 0.8, 0.7]), jnp.array([0.6, 0.65, 0.3])
    for beta, expected in (
        (0.0, (0.358155, 0.376518, 0.265328)),
        (1.0, (0.367165, 0.332225, 0.300610)),
        (2.0, (0.372628, 0.290203, 0.337168)),
    ):
        np.testing.assert_allclose(search.cp_indicator(parent, child, beta), expected, atol=1e-6)
    alive = jnp.array([True, False, True])
    partial = search.cp_indicator(parent, child, 2.0, where=alive)
    assert float(partial[1]) == 0 and float(partial.sum()) == pytest.approx(1)


def test_every_live_operation_is_sampled_once_in_a_round():
    alive = jnp.array([[True, False, True, True], [True, True, False, True]])
    orders = [search.sample_without_replacement(jax.random.key(seed), alive) for seed in range(8)]
    for order in orders:
        assert sorted(order[0, :3].tolist()) == [0, 2, 3] and sorted(order[1, :3].tolist()) == [0, 1, 3]
    assert len({tuple(order.ravel().tolist()) for order in orders}) > 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: search.decoupled_step(NEW[0], OLD[0], PSI, NORMS), r"alpha_new: needs \[E, M\]"),
        (
            lambda: search.decoupled_step(NEW, OLD, PSI[:1], NORMS),
            "psi: needs one number for each of the 2 edges",
        ),
        (
            lambda: search.decoupled_step(NEW, OLD, PSI, NORMS[:2]),
            "norms: needs one number for each of the 3",
        ),
        (lambda: search.density_gate(NORMS, 1.0), "eps: needs a number above 0 and below 1, got 1"),
        (lambda: search.density_gate(NORMS, 0.0), "eps: needs a number above 0 and below 1, got 0"),
        (lambda: search.operation_norms(NORMS, NORMS, "max"), "gate_norm: needs one of mean, sum, got 'max'"),
    ],
)
def test_check_12_what_cannot_be_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
