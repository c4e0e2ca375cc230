"""The logistic map, rank correlations, and features to scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxface import metrics
from jaxface.metrics.image.kernel_regression import KernelRegression

RNG = np.random.default_rng(0)


def test_the_logistic_map():
    q = jax.jit(metrics.logistic_map)
    assert float(q(1.25, 1.25, -3.0)) == 5
    assert float(q(2.0, -0.4135264, 1.6893845)) == pytest.approx(8.066897, abs=1e-5)
    assert float(q(30.0, 57.4975833, 24.1426074)) == pytest.approx(2.425105, abs=1e-5)
    scores = jnp.linspace(-20, 20, 101)
    values = metrics.logistic_map(scores, 0.5, -2.0)
    assert (jnp.diff(values) > 0).all() and float(values[0]) > 0 and float(values[-1]) < 10
    narrow = metrics.logistic_map(scores, 0.5, 2.0, b1=5.0, b2=1.0)
    assert float(narrow[0]) > 1 and float(narrow[-1]) < 5
    assert jnp.isfinite(jax.vmap(jax.grad(lambda s: metrics.logistic_map(s, 0.0, 0.01)))(scores)).all()


@pytest.mark.parametrize(("b3", "b4"), [(0.5, 1.2), (57.5, 24.1), (-0.41, 1.69), (3.0, 0.05)])
def test_a_fit_finds_the_map(b3, b4):
    scores = b3 + 3 * b4 * RNG.uniform(-1, 1, 60)
    exact = metrics.fit_logistic(scores, metrics.logistic_map(scores, b3, b4))
    np.testing.assert_allclose(exact, (b3, b4), rtol=1e-3)
    noisy = np.asarray(metrics.logistic_map(scores, b3, b4)) + RNG.normal(size=60)
    middle, slope = metrics.fit_logistic(scores, noisy)

    def error(m, s):
        return np.mean((np.asarray(metrics.logistic_map(scores, m, s)) - noisy) ** 2)

    best = error(middle, slope)
    assert slope > 0 and best <= error(b3, b4) + 1e-6
    for other in (
        (middle + 0.05 * b4, slope),
        (middle - 0.05 * b4, slope),
        (middle, 1.05 * slope),
        (middle, slope / 1.05),
    ):
        assert error(*other) > best


def test_a_fit_of_scores_that_say_nothing_or_the_opposite_ends():
    scores = np.linspace(0, 1, 20)
    for opinions in (10 * (1 - scores), np.where(scores > 0.5, 10.0, 0.0), RNG.uniform(0, 10, 20)):
        middle, slope = metrics.fit_logistic(scores, opinions)
        assert np.isfinite([middle, slope]).all() and slope > 0


def test_correlations_are_those_of_scipy():
    a = RNG.integers(0, 9, 40).astype(float)
    b = a + RNG.integers(0, 6, 40)
    assert metrics.srcc(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)
    assert metrics.krcc(a, b) == pytest.approx(scipy.stats.kendalltau(a, b).statistic, abs=1e-12)
    assert metrics.plcc(a, b, mapped=False) == pytest.approx(scipy.stats.pearsonr(a, b).statistic, abs=1e-12)
    assert metrics.plcc(a, np.asarray(metrics.logistic_map(a, 4.0, 2.0))) == pytest.approx(1, abs=1e-5)
    assert metrics.srcc(a, -a) == pytest.approx(-1) and metrics.krcc(a, -a) == pytest.approx(-1)


def test_images_that_are_all_doubled_have_the_same_correlation():
    q, mos = RNG.normal(size=12), RNG.normal(size=12)
    twice = metrics.srcc(np.tile(q, 2), np.tile(mos, 2))
    assert twice == pytest.approx(metrics.srcc(q, mos), abs=1e-12)


def test_kernel_ridge_solves_its_equations():
    rows, targets = RNG.normal(size=(30, 4)), RNG.normal(size=30)
    model = metrics.fit_kernel_ridge(rows, targets, gamma=0.3, ridge=0.5)
    scaled = 2 * (rows - rows.min(0)) / np.ptp(rows, axis=0) - 1
    kernel = np.exp(-0.3 * ((scaled[:, None] - scaled[None]) ** 2).sum(-1))
    np.testing.assert_allclose(
        (kernel + 0.5 * np.eye(30)) @ np.asarray(model.weights), targets - targets.mean(), atol=1e-4
    )
    both = jax.jit(jax.vmap(jax.value_and_grad(lambda f: metrics.kernel_scores(model, f))))
    scores, slopes = both(rows.astype(np.float32))
    np.testing.assert_allclose(scores, kernel @ np.asarray(model.weights) + targets.mean(), atol=1e-4)
    assert np.isfinite(slopes).all() and np.abs(slopes).max() > 0
    np.testing.assert_allclose(metrics.kernel_scores(model, rows.astype(np.float32)), scores, atol=1e-5)


@pytest.mark.parametrize("count", [5, 60])
def test_linear_ridge_is_least_squares_with_a_penalty(count):
    rows, targets = RNG.normal(size=(count, 8)), RNG.normal(size=count)
    model = metrics.fit_linear_ridge(rows, targets, ridge=0.7)
    scaled = 2 * (rows - rows.min(0)) / np.ptp(rows, axis=0) - 1
    x = scaled - scaled.mean(0)
    weights = np.linalg.solve(x.T @ x + 0.7 * np.eye(8), x.T @ (targets - targets.mean()))
    np.testing.assert_allclose(model.weights, weights, atol=1e-4)
    np.testing.assert_allclose(
        metrics.linear_scores(model, jnp.asarray(rows, jnp.float32)), x @ weights + targets.mean(), atol=1e-4
    )


ROWS = np.eye(3)
MODEL = KernelRegression(-np.ones(3), np.ones(3), ROWS, np.ones(3), np.zeros(()), np.ones(()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.logistic_map(jnp.ones(2), 0.0, 0.0), "b4: needs a number other than 0"),
        (lambda: metrics.fit_logistic([1.0, 2.0], [1.0, 2.0]), "scores: needs at least 3 values, got 2"),
        (lambda: metrics.fit_logistic([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), "scores: needs values that differ, all are 1"),
        (lambda: metrics.srcc([1.0, 2.0], [1.0, 2.0, 3.0]), "opinions: needs as many values as scores, got 3 and 2"),
        (lambda: metrics.srcc([1.0, np.nan], [1.0, 2.0]), "scores: needs finite values"),
        (lambda: metrics.krcc([1.0, 2.0], [4.0, 4.0]), "opinions: needs values that differ"),
        (lambda: metrics.fit_kernel_ridge(ROWS, [1.0, 2.0]), "targets: needs one for each of 3 rows, got 2"),
        (lambda: metrics.fit_kernel_ridge(ROWS[:1], [1.0]), "features: needs at least 2 rows, got 1"),
        (lambda: metrics.fit_kernel_ridge(ROWS * [1, 0, 1], np.ones(3)), "features: needs features that vary, number 1 is 0"),
        (lambda: metrics.fit_kernel_ridge(ROWS, np.ones(3), gamma=0.0), "gamma: needs a finite number above 0"),
        (lambda: metrics.fit_linear_ridge(ROWS, np.ones(3), ridge=-1.0), "ridge: needs a finite number above 0"),
        (lambda: metrics.kernel_scores(MODEL, jnp.ones(4)), "features: needs 3 of them"),
        (lambda: metrics.linear_scores(metrics.fit_linear_ridge(ROWS, ROWS[0]), jnp.ones(2)), "features: needs 3 of them"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged(call, words):
    with pytest.raises(ValueError, match=words) as refused:
        call()
    assert "\n" not in str(refused.value)
