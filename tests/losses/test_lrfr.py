import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface import axes, losses
from jaxface.errors import UserError
from jaxface.layers.prototypes import cosines, l2_normalize

X = np.array([[0.1, -0.2, 0.3, 0.0], [1.0, 0.5, -0.5, 2.0]], np.float32)
Y = np.array([[0, 0.2, 0.3, -0.1], [0, 0, 0, 0]], np.float32)


def single_gradient(x, y, **kwargs):
    return jax.grad(lambda u: losses.logexp_distance(u, y, **kwargs))(jnp.asarray(x))


@pytest.mark.parametrize(
    ("power", "rows", "batch"),
    [(1.0, [0.132975, 0.585566], 1.203785), (2.0, [0.022123, 0.505128], 1.011105)],
)
def test_values_by_hand(power, rows, batch):
    """The equations in float64; one logarithm per batch also agrees with the released loss module."""
    np.testing.assert_allclose(losses.logexp_distance(X, Y, power=power), rows, atol=2e-6)
    np.testing.assert_allclose(losses.logexp_loss(X, Y, power=power), np.mean(rows), atol=2e-6)
    found = losses.logexp_loss(X, Y, power=power, reduction="batch_log")
    np.testing.assert_allclose(found, batch, atol=2e-6)


def test_gradients_by_hand():
    """The derivatives in float64; one logarithm per batch also agrees with the released loss module."""
    np.testing.assert_allclose(single_gradient(X[0], Y[0]), [0.162318, -0.219107, 0, 0.162318], atol=2e-6)
    expected = [0.065313, 0.039615, -0.039615, 0.177540]
    np.testing.assert_allclose(single_gradient(X[1], Y[1]), expected, atol=2e-6)
    expected = [0.011946, 0.002822, -0.002822, 0.479904]
    np.testing.assert_allclose(single_gradient(X[1], Y[1], power=2.0), expected, atol=2e-6)
    batch = jax.grad(lambda x: losses.logexp_loss(x, Y, reduction="batch_log"))(jnp.asarray(X))
    expected = [[0.049751, -0.067157, 0, 0.049751], [0.122369, 0.074220, -0.074220, 0.332632]]
    np.testing.assert_allclose(batch, expected, atol=2e-6)


def test_one_dimension_is_the_plain_error():
    for a, b in ((0.7, 0.2), (-3.0, 50.0)):
        pair = np.array([a], np.float32), np.array([b], np.float32)
        np.testing.assert_allclose(losses.logexp_distance(*pair), abs(a - b), rtol=1e-6)
        np.testing.assert_allclose(losses.logexp_distance(*pair, power=2.0), (a - b) ** 2 / 2, rtol=1e-6)


@pytest.mark.parametrize(("size", "expected"), [(4, 0.087785), (512, 0.007821)])
def test_equal_errors(size, expected):
    """log(1 + D (e^d - 1)) / D."""
    u = np.full(size, 0.1, np.float32)
    np.testing.assert_allclose(losses.logexp_distance(u, 0 * u), expected, atol=1e-6)
    np.testing.assert_allclose(expected, np.log1p(size * np.expm1(0.1)) / size, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([1, 4, 33]), st.sampled_from([1.0, 1.5, 2.0, 3.0]), st.integers(0, 2**16))
def test_a_distance_that_knows_no_order(size, power, seed):
    rng = np.random.default_rng(seed)
    u, v = (rng.normal(size=(3, size)).astype(np.float32) for _ in range(2))
    found = losses.logexp_distance(u, v, power=power)
    np.testing.assert_allclose(losses.logexp_distance(v, u, power=power), found, rtol=1e-6)
    order = rng.permutation(size)
    np.testing.assert_allclose(
        losses.logexp_distance(u[:, order], v[:, order], power=power), found, rtol=1e-5
    )
    wider = u + np.where(u >= v, 0.1, -0.1).astype(np.float32) * (rng.random(u.shape) < 0.5)
    assert (np.asarray(losses.logexp_distance(wider, v, power=power)) >= np.asarray(found) * (1 - 1e-6)).all()


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([1, 4, 33]), st.sampled_from([1.0, 2.0, 2.5]), st.integers(0, 2**16))
def test_the_gradient_is_the_derivative(size, power, seed):
    u, v = (np.random.default_rng(seed + k).uniform(-2, 2, size) for k in range(2))
    d = np.abs(u - v)
    total = 1 + np.sum(np.expm1(d**power))
    expected = np.sign(u - v) * d ** (power - 1) * np.exp(d**power) / (size * total)
    found = single_gradient(u.astype(np.float32), v.astype(np.float32), power=power)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-7)
    if power == 1:
        np.testing.assert_allclose(np.abs(found).sum(), (total + size - 1) / (size * total), rtol=1e-4)


def test_the_push_of_the_paper_s_curve():
    """At p = 1 the push on a dimension is exp(d) / (C + exp(d)) of the L1 one, 1/2, 1/3, 1/6 of it at zero for C = 1, 2, 5."""
    for others in (1.0, 2.0, 5.0):
        for error in (1e-6, 0.5, 3.0):
            u = np.array([error, np.log1p(others)], np.float32)
            push = 2 * single_gradient(u, np.zeros(2, np.float32))[0]
            np.testing.assert_allclose(push, np.exp(error) / (others + np.exp(error)), rtol=1e-5)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("reduction", ["per_sample", "batch_log"])
def test_equal_embeddings_have_no_loss_and_no_gradient(power, reduction):
    for x in (X, np.zeros((1, 3), np.float32)):
        loss = jax.value_and_grad(
            lambda u, v: losses.logexp_loss(u, v, power=power, reduction=reduction), (0, 1)
        )
        value, gradients = loss(jnp.asarray(x), jnp.asarray(x))
        assert value == 0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(("size", "expected"), [(100.0, 25.0), (800.0, 200.0)])
def test_no_overflow(size, expected):
    u, v = np.array([size, 0, 0, 0], np.float32), np.zeros(4, np.float32)
    value, gradient = jax.value_and_grad(losses.logexp_distance)(jnp.asarray(u), v)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, [0.25, 0, 0, 0], atol=1e-6)
    batch = losses.logexp_loss(u[None], v[None], reduction="batch_log")
    np.testing.assert_allclose(batch, size, rtol=1e-6)


def test_the_two_forms_meet_where_they_switch():
    for peak in (29.9999, 30.0, 30.0001):
        d = np.array([peak, 29.0, 0.3], np.float64)
        expected = np.log1p(np.expm1(d).sum()) / 3
        found = losses.logexp_distance(d.astype(np.float32), np.zeros(3, np.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_small_errors_leave_the_mean_power():
    u, v = 1e-4 * X, 1e-4 * Y
    for power in (1.0, 2.0):
        np.testing.assert_allclose(
            losses.logexp_distance(u, v, power=power), losses.power_distance(u, v, power=power), rtol=1e-3
        )
    np.testing.assert_allclose(losses.power_distance(X, Y), np.abs(X - Y).mean(1), rtol=1e-6)
    np.testing.assert_allclose(
        losses.power_distance(X, Y, power=2.0), np.square(X - Y).mean(1) / 2, rtol=1e-6
    )


@pytest.mark.parametrize("reduction", ["per_sample", "batch_log"])
def test_gradients_flow_into_both_copies(reduction):
    first, second = jax.grad(lambda u, v: losses.logexp_loss(u, v, reduction=reduction), (0, 1))(X, Y)
    assert (np.abs(first).max(axis=1) > 0.01).all()
    np.testing.assert_allclose(first, -second, rtol=1e-6)


def test_bfloat16_jit_and_vmap():
    u, v = jnp.asarray(X, jnp.bfloat16), jnp.asarray(Y, jnp.bfloat16)
    exact = losses.logexp_distance(u.astype(jnp.float32), v.astype(jnp.float32))
    for found in (
        losses.logexp_distance(u, v),
        jax.jit(losses.logexp_distance)(u, v),
        jax.vmap(losses.logexp_distance)(u, v),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda u: losses.logexp_loss(u, v)))(u)
    assert gradient.dtype == jnp.bfloat16 and np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.slow
def test_one_logarithm_spans_every_replica():
    u, v = (np.random.default_rng(k).normal(size=(16, 5)).astype(np.float32) for k in range(2))

    def loss(u, v):
        return losses.logexp_loss(u, v, reduction="batch_log")

    value, gradient = jax.value_and_grad(loss)(u, v)
    split = [x.reshape(8, 2, 5) for x in (u, v)]
    values, gradients = jax.pmap(jax.value_and_grad(loss), axis_name=axes.DATA)(*split)
    np.testing.assert_allclose(values, np.full(8, value), rtol=1e-5)
    # Every replica's copy of the loss reaches every row; a step takes the mean over the replicas.
    np.testing.assert_allclose(gradients.reshape(16, 5) / 8, gradient, rtol=1e-4, atol=1e-7)


def test_the_classifier_of_the_paper():
    """By hand: cosines 0.6 and 0.8 - 0.4, times 48; log(1 + e^9.6)."""
    similarity = cosines(jnp.array([[0.6, 0.8]]), jnp.array([[1.0, 0.0], [0.0, 2.0]]))
    logits = losses.margin_logits(similarity, jnp.array([1]), scale=48.0, cosine_margin=0.4)
    np.testing.assert_allclose(logits, [[28.8, 19.2]], rtol=1e-5)
    loss = losses.cosface_loss(similarity, jnp.array([1]), scale=48.0, margin=0.4)
    np.testing.assert_allclose(loss, [9.600068], rtol=1e-5)


def test_on_unit_vectors_it_is_a_gentle_pull():
    """512 dimensions at cosine 0.5: about 0.006 a pair, and pushes that differ little from one another."""
    u, v = jax.random.normal(jax.random.key(0), (2, 512))
    v = 0.5 * l2_normalize(u) + np.sqrt(0.75) * l2_normalize(
        v - jnp.dot(v, l2_normalize(u)) * l2_normalize(u)
    )
    u = l2_normalize(u)
    assert 0.005 < losses.logexp_distance(u, v) < 0.007
    pushes = np.abs(single_gradient(u, v))
    assert pushes.max() / pushes.min() < 1.2


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: losses.logexp_distance(X, Y, power=0.9),
            UserError,
            r"^power: needs a finite number from 1",
        ),
        (
            lambda: losses.logexp_loss(X, Y, power=float("nan")),
            UserError,
            "^power: needs a finite number from 1",
        ),
        (lambda: losses.power_distance(X, Y, power=0.5), UserError, "^power: needs a finite number from 1"),
        (lambda: losses.logexp_distance(X, Y[:, :3]), UserError, "^embeddings: need one size, got 4 and 3"),
        (lambda: losses.logexp_distance(X, Y[:1]), ValueError, "^embeddings: need the same leading axes"),
        (lambda: losses.logexp_distance(X[:0], Y[:0]), ValueError, "^embeddings: need at least one value"),
        (lambda: losses.logexp_distance(X, Y.astype(int)), ValueError, "^embeddings: need a float dtype"),
        (lambda: losses.logexp_distance(X / 0.0, Y), UserError, "^embeddings: needs finite values"),
        (lambda: losses.logexp_loss(X, Y, reduction="sum"), UserError, "^reduction: needs 'per_sample' or"),
        (lambda: losses.logexp_loss(X[0], Y[0]), AssertionError, "rank"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_what_is_refused(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert error is AssertionError or "\n" not in str(caught.value)
