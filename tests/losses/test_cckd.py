import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxface import losses
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize

TEACHER = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
STUDENT = jnp.array([[2.0, 0.0], [3.0, 3.0], [0.0, -1.0]])
KERNELS = ("rbf_taylor", "rbf", "bilinear", "mmd")
NORMALIZED = [dict(kernel=kernel) for kernel in KERNELS]
RNG = np.random.default_rng(0)
MANY_S, MANY_T = (jnp.asarray(RNG.normal(size=(16, d)), jnp.float32) for d in (5, 7))


def test_matrices_by_hand():
    teacher = losses.correlation_matrix(TEACHER)
    expected = [
        [0.952577, 0.449329, 0.233651],
        [0.449329, 0.952577, 0.449329],
        [0.233651, 0.449329, 0.952577],
    ]
    np.testing.assert_allclose(teacher, expected, atol=1e-6)
    student = losses.correlation_matrix(STUDENT)
    np.testing.assert_allclose(student[[0, 0, 1], [1, 2, 2]], [0.775400, 0.449329, 0.267043], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(kernel="rbf_taylor", order=2), 0.0413484),
        (dict(kernel="rbf"), 0.0479384),
        (dict(kernel="bilinear", normalize=False), 43.333333),
        (dict(kernel="bilinear"), 0.444444),
        (dict(kernel="mmd"), 0.211580),
    ],
)
def test_losses_by_hand(options, expected):
    np.testing.assert_allclose(
        losses.correlation_congruence_loss(STUDENT, TEACHER, **options), expected, rtol=2e-6
    )


def test_coefficients():
    np.testing.assert_allclose(
        losses.taylor_rbf_coeffs(0.4, 3), [0.449329, 0.359463, 0.143785, 0.038343], atol=1e-6
    )
    assert len(losses.taylor_rbf_coeffs(0.4, 2)) == 3  # order P is inclusive


@pytest.mark.parametrize(
    ("order", "same", "opposite", "error"),
    [
        (1, 0.808792, 0.089866, 0.191209),
        (2, 0.952577, 0.233651, 0.047423),
        (3, 0.990920, 0.195308, 0.009080),
        (5, None, None, 1.843e-4),
        (8, None, None, 1.805e-7),
    ],
)
def test_the_expansion_nears_the_kernel(order, same, opposite, error):
    cosine = np.linspace(-1, 1, 2001)
    coefficients = losses.taylor_rbf_coeffs(0.4, order)
    series = sum(a * cosine**p for p, a in enumerate(coefficients))
    exact = np.exp(-0.8) * np.exp(0.8 * cosine)
    np.testing.assert_allclose(np.abs(series - exact).max(), error, rtol=1e-3)
    np.testing.assert_allclose([series[1000], exact[0]], [math.exp(-0.8), 0.201897], atol=1e-6)
    if same is not None:
        np.testing.assert_allclose([series[-1], series[0]], [same, opposite], atol=1e-6)
    # The matrix is that polynomial of the cosines.
    points = jnp.asarray(np.stack([cosine, np.sqrt(1 - cosine**2)], 1), jnp.float32)
    matrix = losses.correlation_matrix(jnp.concatenate([jnp.array([[1.0, 0.0]]), points]), order=order)
    np.testing.assert_allclose(matrix[0, 1:], series, atol=1e-6)


def test_instance_terms_and_the_total():
    student, teacher = jnp.array([[1.0, 2.0, 0.0]] * 3), jnp.array([[2.0, 1.0, -1.0]] * 3)
    labels = jnp.zeros(3, jnp.int32)
    label, soft = losses.cross_entropy(student, labels), losses.soft_target_loss(student, teacher)
    congruence = losses.correlation_congruence_loss(STUDENT, TEACHER)
    terms = [label.mean(), soft.mean(), congruence]
    np.testing.assert_allclose(terms, [1.4076060, 0.4799388, 0.0413484], rtol=2e-6)
    np.testing.assert_allclose(np.dot(terms, [0.5, 0.5, 0.0]), 0.9437724, rtol=1e-6)
    np.testing.assert_allclose(
        np.dot(terms, [1.0, 0.9, 100.0]), 1.4076060 + 0.9 * 0.4799388 + 4.13484, rtol=1e-6
    )
    gradient = jax.grad(lambda z: losses.soft_target_loss(z, teacher).sum())(student)
    np.testing.assert_allclose(gradient[0], [-0.470873, 0.293099, 0.177774], atol=2e-6)


def test_adjacent_variant_by_hand():
    student = jnp.array([[1.0, 2.0], [0.0, 1.0], [3.0, -1.0]])
    teacher = jnp.array([[0.0, 2.5], [1.0, 1.0], [1.0, 1.0]])
    assert losses.adjacent_correlation_loss(student, teacher) == 1.5
    turned = losses.adjacent_correlation_loss(student[::-1], teacher[::-1])
    np.testing.assert_allclose(turned, 1.5)  # the same neighbors
    order = jnp.array([0, 2, 1])
    assert losses.adjacent_correlation_loss(student[order], teacher[order]) != 1.5


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.1, 10))
def test_turning_and_scaling_are_free(seed, scale):
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(6, 4))
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    student = jnp.asarray(scale * teacher @ turn, jnp.float32)
    teacher = jnp.asarray(teacher, jnp.float32)
    for options in NORMALIZED:
        assert losses.correlation_congruence_loss(student, teacher, **options) < 1e-9
    assert losses.mimic_loss(student, teacher).mean() > 1e-3
    assert losses.correlation_congruence_loss(student, MANY_T[:6]) > 1e-4


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_matrices_are_symmetric_positive_and_constant_on_the_diagonal(order):
    matrix = np.asarray(losses.correlation_matrix(MANY_S, order=order), np.float64)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    assert np.linalg.eigvalsh(matrix).min() > -1e-5
    np.testing.assert_allclose(np.diag(matrix), sum(losses.taylor_rbf_coeffs(0.4, order)), rtol=1e-5)
    other = np.asarray(losses.correlation_matrix(MANY_T, order=order))
    difference = (matrix - other) ** 2
    assert np.diag(difference).max() < 1e-10 < difference.mean()


@pytest.mark.parametrize("options", NORMALIZED)
def test_the_order_of_the_batch_does_not_matter(options):
    order = np.random.default_rng(1).permutation(16)
    np.testing.assert_allclose(
        losses.correlation_congruence_loss(MANY_S[order], MANY_T[order], **options),
        losses.correlation_congruence_loss(MANY_S, MANY_T, **options),
        rtol=1e-5,
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_gradient_is_the_one_derived_by_hand(order):
    gamma, n = 0.4, 16
    unit = np.asarray(l2_normalize(MANY_S), np.float64)
    cosine = unit @ unit.T
    error = losses.correlation_matrix(MANY_S, order=order) - losses.correlation_matrix(MANY_T, order=order)
    coefficients = losses.taylor_rbf_coeffs(gamma, order)
    slope = 2 * gamma * sum(coefficients[p] * cosine**p for p in range(order))
    by_power = sum(p * coefficients[p] * cosine ** (p - 1) for p in range(1, order + 1))
    np.testing.assert_allclose(slope, by_power, rtol=1e-12)
    of_cosine = 2 / n**2 * np.asarray(error, np.float64) * slope
    of_unit = 2 * of_cosine @ unit
    tangent = of_unit - unit * np.sum(of_unit * unit, axis=1, keepdims=True)
    expected = tangent / np.linalg.norm(MANY_S, axis=1, keepdims=True)
    found = jax.jit(jax.grad(lambda f: losses.correlation_congruence_loss(f, MANY_T, order=order)))(MANY_S)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("options", [*NORMALIZED, dict(kernel="mmd", normalize=False)])
def test_gradients_stay_with_the_student_and_are_finite(options):
    loss = jax.jit(functools.partial(losses.correlation_congruence_loss, **options))
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    assert (jax.jit(jax.grad(loss, 1))(MANY_S, MANY_T) == 0).all()
    zero_row = MANY_S.at[3].set(0.0)
    alike = jnp.ones((4, 5))
    for student, teacher in ((zero_row, MANY_T), (alike, MANY_T[:4]), (alike, alike), (MANY_S, MANY_S)):
        value, gradient = value_and_grad(student, teacher)
        assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
    np.testing.assert_allclose(loss(alike, alike), 0.0, atol=1e-12)


def test_zero_rows_are_orthogonal_to_all():
    matrix = losses.correlation_matrix(MANY_S.at[3].set(0.0))
    np.testing.assert_allclose(matrix[3], math.exp(-0.8), rtol=1e-6)


def test_sizes_may_differ_but_not_for_mimics():
    for options in NORMALIZED:
        assert losses.correlation_congruence_loss(MANY_S, MANY_T, **options) > 0
    for loss in (losses.mimic_loss, losses.adjacent_correlation_loss):
        with pytest.raises(UserError, match="one size for student and teacher, got 5 and 7"):
            loss(MANY_S, MANY_T)


@pytest.mark.parametrize("options", NORMALIZED)
def test_masked_rows_are_not_there(options):
    where = jnp.array([True] * 5 + [False, True, False])
    kept = np.flatnonzero(where)
    loss = functools.partial(losses.correlation_congruence_loss, **options)
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    student, teacher = (x[:8].at[jnp.array([5, 7])].set(jnp.nan) for x in (MANY_S, MANY_T))
    value, gradient = value_and_grad(student, teacher, where=where)
    expected, gradient_kept = value_and_grad(student[kept], teacher[kept])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[kept], gradient_kept, atol=1e-6)
    assert (gradient[np.array([5, 7])] == 0).all()
    assert value_and_grad(student, teacher, where=jnp.zeros(8, bool))[0] == 0


@pytest.mark.parametrize("options", NORMALIZED)
def test_bfloat16_jit_vmap_and_traced_gamma(options):
    loss = functools.partial(losses.correlation_congruence_loss, **options)
    expected = loss(MANY_S, MANY_T)
    half = jax.jit(loss)(MANY_S.astype(jnp.bfloat16), MANY_T.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, rtol=0.03)
    batches = jax.vmap(loss)(jnp.stack([MANY_S, MANY_S[::-1]]), jnp.stack([MANY_T, MANY_T]))
    np.testing.assert_allclose(batches, [expected, loss(MANY_S[::-1], MANY_T)], rtol=1e-5)
    swept = jax.jit(lambda g: loss(MANY_S, MANY_T, gamma=g))(0.7)
    np.testing.assert_allclose(swept, loss(MANY_S, MANY_T, gamma=0.7), rtol=1e-5)


def total(student, teacher, where=None, axis_name=None, *, kernel="rbf_taylor"):
    """The congruence of a batch and what is benchmarked under its name."""
    value = losses.correlation_congruence_loss(
        student, teacher, kernel=kernel, where=where, axis_name=axis_name
    )
    return 10 * value + losses.adjacent_correlation_loss(student, teacher[:, :5], axis_name=axis_name)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("masked", [False, True])
def test_replicas_compare_the_whole_batch(kernel, masked):
    """Mean of values and gradients over 8 devices is that of one device with everything."""
    where = jnp.arange(16) % 5 != 1 if masked else None
    mix = jnp.asarray(np.random.default_rng(2).normal(size=(5, 5)), jnp.float32)

    def alone(mix):
        return total(MANY_S @ mix, MANY_T, where, kernel=kernel)

    expected, gradient = jax.jit(jax.value_and_grad(alone))(mix)

    def on_replica(mix, student, teacher, where):
        def loss(mix):
            return total(student @ mix, teacher, where, "data", kernel=kernel)

        return jax.lax.pmean(jax.value_and_grad(loss)(mix), "data")

    def split(x):
        return None if x is None else x.reshape(8, 2, *x.shape[1:])

    mapped = jax.pmap(on_replica, axis_name="data", in_axes=(None, 0, 0, None if where is None else 0))
    found, found_gradient = mapped(mix, split(MANY_S), split(MANY_T), split(where))
    np.testing.assert_allclose(found, np.full(8, expected), rtol=1e-5)
    np.testing.assert_allclose(found_gradient[3], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_mesh_compares_the_whole_batch(kernel):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    rows = NamedSharding(mesh, PartitionSpec(("data", "model")))
    loss = jax.jit(jax.value_and_grad(functools.partial(total, kernel=kernel)))
    expected, gradient = loss(MANY_S, MANY_T)
    found, found_gradient = loss(*jax.device_put((MANY_S, MANY_T), rows))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found_gradient, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(gamma=0.0), "gamma: needs a finite number above 0"),
        (dict(gamma=-1.0, kernel="rbf"), "gamma: needs a finite number above 0"),
        (dict(order=0), "order: needs an integer from 1"),
        (dict(kernel="laplace"), "kernel: needs one of rbf_taylor, rbf, bilinear, mmd, got 'laplace'"),
        (dict(normalize=False), "normalize: needs True for rbf_taylor"),
    ],
)
def test_hyper_parameters_out_of_range(wrong, words):
    for loss in (
        lambda **more: losses.correlation_congruence_loss(MANY_S, MANY_T, **more),
        lambda **more: losses.correlation_matrix(MANY_S, **more),
    ):
        with pytest.raises(UserError, match=words):
            loss(**wrong)


def test_refused_inputs():
    loss = losses.correlation_congruence_loss
    for one in (lambda: loss(MANY_S[:1], MANY_T[:1]), lambda: losses.correlation_matrix(MANY_S[:1])):
        with pytest.raises(UserError, match="at least two rows"):
            one()
    with pytest.raises(UserError, match="at least two rows"):
        losses.adjacent_correlation_loss(MANY_S[:1], MANY_S[:1])
    with pytest.raises(AssertionError, match="batch"):
        loss(MANY_S, MANY_T[:5])
    with pytest.raises(AssertionError, match="embeddings"):
        loss(MANY_S[0], MANY_T[0])
    with pytest.raises(ValueError, match="float"):
        loss(MANY_S.astype(int), MANY_T)
    with pytest.raises(ValueError, match="float"):
        losses.correlation_matrix(MANY_S.astype(int))
    with pytest.raises(UserError, match="order"):
        losses.taylor_rbf_coeffs(0.4, 0)
    with pytest.raises(UserError, match="gamma"):
        losses.taylor_rbf_coeffs(0.0, 2)
