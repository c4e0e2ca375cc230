import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface import losses
from jaxface.layers.prototypes import cosines as cosine_similarities
from jaxface.losses.sface import sface_rescale, sface_terms

ANGLES = np.array([[1.0, 1.1, 1.3], [0.9, 1.2, 0.86]])
LABELS = np.array([0, 2], np.int32)


def head_loss(x, w, labels, **kwargs):
    return losses.sface_loss(cosine_similarities(x, w), labels, **kwargs).mean()


def test_one_row_by_hand():
    intra, inter = sface_rescale(jnp.array([1.0, 1.1, 1.3]))
    np.testing.assert_allclose(intra[0], 63.998052, rtol=1e-5)
    np.testing.assert_allclose(inter[1:], [63.978538, 0.021462], rtol=1e-4)
    terms = sface_terms(jnp.cos(ANGLES[:1]), LABELS[:1])
    np.testing.assert_allclose(terms.intra, [-34.578295], rtol=1e-5)
    np.testing.assert_allclose(terms.inter, [29.026158], rtol=1e-5)
    np.testing.assert_allclose(losses.sface_loss(jnp.cos(ANGLES[:1]), LABELS[:1]), [-5.552138], rtol=1e-5)


def test_two_rows_and_their_gradient():
    cos = jnp.cos(ANGLES)
    terms = sface_terms(cos, LABELS)
    np.testing.assert_allclose(terms.intra, [-34.578295, -12.945425], rtol=1e-4)
    np.testing.assert_allclose(terms.inter, [29.026158, 51.378486], rtol=1e-4)
    np.testing.assert_allclose(terms.target_cosine, np.cos([1.0, 0.86]), rtol=1e-6)
    np.testing.assert_allclose(
        terms.other_cosine, [(np.cos(1.1) + np.cos(1.3)) / 3, (np.cos(0.9) + np.cos(1.2)) / 3], rtol=1e-6
    )
    value, gradient = jax.value_and_grad(lambda c: losses.sface_loss(c, LABELS).mean())(cos)
    np.testing.assert_allclose(value, 16.440462, rtol=1e-4)
    expected = [[-31.999026, 31.989269, 0.010731], [32.0, 16.0, -9.920817]]
    np.testing.assert_allclose(gradient, expected, rtol=2e-4)


def test_mid_points_and_velocities():
    intra, inter = sface_rescale(jnp.array([0.87, 1.2, 0.9, 0.86, np.pi / 2]))
    np.testing.assert_allclose(intra[0], 32.0, rtol=1e-5)
    np.testing.assert_allclose(inter[1], 32.0, rtol=1e-5)
    np.testing.assert_allclose(intra[2:4], [58.676947, 19.841633], rtol=1e-4)
    np.testing.assert_allclose(inter[4], 8.382935e-12, rtol=1e-3)
    np.testing.assert_allclose(intra[0] * np.sin(0.87), 24.458526, rtol=1e-5)
    np.testing.assert_allclose(inter[1] * np.sin(1.2), 29.825251, rtol=1e-5)


def test_head_values_and_gradients():
    x, w = jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    np.testing.assert_allclose(cosine_similarities(x, w), [[0.6, 0.8, 0.141421]], atol=1e-6)
    loss, (dx, dw) = jax.value_and_grad(head_loss, (0, 1))(x, w, np.array([0]))
    np.testing.assert_allclose(loss, 13.188398, rtol=1e-4)
    np.testing.assert_allclose(dx, [[-14.253142, 10.689857]], rtol=1e-4)
    np.testing.assert_allclose(jnp.vdot(x, dx), 0.0, atol=1e-4)
    np.testing.assert_allclose(dw[:2], [[0.0, -50.682137], [19.2, 0.0]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dw[2], [3.531732e-7, 3.531732e-7], rtol=2e-2)


head_loss_and_gradients = jax.jit(jax.value_and_grad(head_loss, (0, 1)))


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 20.0), st.floats(0.05, 20.0), st.integers(0, 2**16))
def test_scale_invariance(t, u, seed):
    a, b = jax.random.split(jax.random.key(seed))
    x, w = jax.random.normal(a, (4, 5)), jax.random.normal(b, (6, 5))
    labels = np.array([0, 3, 5, 1])
    loss, (dx, dw) = head_loss_and_gradients(x, w, labels)
    np.testing.assert_allclose(head_loss_and_gradients(t * x, u * w, labels)[0], loss, rtol=1e-3, atol=1e-3)
    scaled = head_loss_and_gradients(t * x, w, labels)[1][0]
    np.testing.assert_allclose(scaled * t, dx, rtol=1e-2, atol=2e-2)
    np.testing.assert_allclose(jnp.sum(dw * w, axis=1), 0.0, atol=1e-3)


def test_gradient_is_the_weights_alone():
    cos = jax.random.uniform(jax.random.key(0), (5, 7), minval=-0.99, maxval=0.99)
    labels = np.array([0, 6, 2, 2, 4])
    intra, inter = sface_rescale(jnp.arccos(cos))
    expected = np.array(inter)
    expected[np.arange(5), labels] = -np.array(intra)[np.arange(5), labels]
    np.testing.assert_array_equal(jax.grad(lambda c: losses.sface_loss(c, labels).sum())(cos), expected)


def test_permuting_classes_changes_nothing():
    cos = jax.random.uniform(jax.random.key(1), (4, 9), minval=-1)
    labels, order = np.array([1, 8, 0, 3]), np.random.default_rng(0).permutation(9)
    permuted = losses.sface_loss(cos[:, order], np.argsort(order)[labels])
    np.testing.assert_allclose(permuted, losses.sface_loss(cos, labels), rtol=1e-5)


@pytest.mark.parametrize("cuts", [(4,), (1, 2, 9), (3, 6)])
def test_shards_sum_to_the_whole(cuts):
    cos = jax.random.uniform(jax.random.key(2), (6, 10), minval=-1)
    labels = np.array([0, 9, 4, 3, 7, 1])
    total, start = 0.0, 0
    for stop in (*cuts, 10):
        local = np.where((labels >= start) & (labels < stop), labels - start, -1)
        total, start = total + losses.sface_loss(cos[:, start:stop], local), stop
    np.testing.assert_allclose(total, losses.sface_loss(cos, labels), rtol=1e-5)


def test_limits():
    cos = jax.random.uniform(jax.random.key(3), (3, 4), minval=-0.9, maxval=0.9)
    labels = np.array([0, 1, 3])
    target = np.take_along_axis(np.array(cos), labels[:, None], 1)[:, 0]
    others = np.array(cos).sum(1) - target
    np.testing.assert_allclose(
        losses.sface_loss(cos, labels, sharpness=0.0), 32 * (others - target), rtol=1e-5
    )
    # Traced hyper-parameters are not range-checked, so that the limits outside the ranges can be taken.
    loss = jax.jit(lambda a, b: losses.sface_loss(cos, labels, intra_angle=a, inter_angle=b))
    np.testing.assert_allclose(loss(-10.0, 10.0), 64 * (others - target), rtol=1e-5)
    np.testing.assert_allclose(loss(4.0, 10.0), 64 * others, rtol=1e-5)


def test_boundary_cosines_are_finite():
    cos = jnp.array([[1.0, -1.0, 1.0 + 1e-6], [-1.0, 1.0, -1.0 - 1e-6]])
    for labels in (np.array([0, 0]), np.array([2, 1]), np.array([-1, 2])):
        value, gradient = jax.value_and_grad(lambda c, y=labels: losses.sface_loss(c, y).sum())(cos)
        assert np.isfinite(value) and np.isfinite(gradient).all()
    assert np.isfinite(jax.grad(head_loss)(jnp.zeros((2, 3)), jnp.eye(3), np.array([0, 1]))).all()


def test_bfloat16_is_upcast_first():
    cos = jax.random.uniform(jax.random.key(4), (3, 5), minval=-1).astype(jnp.bfloat16)
    loss = losses.sface_loss(cos, LABELS[[0, 1, 0]])
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, losses.sface_loss(cos.astype(jnp.float32), LABELS[[0, 1, 0]]))


def test_jit_and_vmap():
    cos = jax.random.uniform(jax.random.key(5), (4, 3, 5), minval=-1)
    labels = np.array([[0, 1, 2], [4, 3, 2], [1, 1, 1], [0, 0, -1]])
    rows = jnp.stack([losses.sface_loss(c, y) for c, y in zip(cos, labels, strict=True)])
    np.testing.assert_allclose(jax.vmap(losses.sface_loss)(cos, labels), rows, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(losses.sface_loss)(cos[0], labels[0]), rows[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("cosines", "labels", "options", "words"),
    [
        (np.zeros(3, np.float32), LABELS, {}, "cosines must be"),
        (np.zeros((3, 4), np.float32), LABELS, {}, "differ in batch"),
        (np.zeros((0, 4), np.float32), np.zeros(0, np.int32), {}, "at least one row"),
        (np.zeros((2, 4), np.float32), np.zeros(2), {}, "labels"),
        (np.zeros((2, 4), np.int32), LABELS, {}, "float dtype"),
        (np.zeros((2, 4), np.float32), np.array([0, 4]), {}, r"labels.*\[0, 4\)"),
        (np.zeros((2, 4), np.float32), np.array([0, -2]), {}, "labels"),
        (np.zeros((2, 4), np.float32), LABELS, {"scale": 0.0}, "scale"),
        (np.zeros((2, 4), np.float32), LABELS, {"sharpness": -1.0}, "sharpness"),
        (np.zeros((2, 4), np.float32), LABELS, {"intra_angle": 3.2}, "intra_angle"),
        (np.zeros((2, 4), np.float32), LABELS, {"inter_angle": float("nan")}, "inter_angle"),
    ],
)
def test_refusals(cosines, labels, options, words):
    with pytest.raises((ValueError, AssertionError), match=words):
        losses.sface_loss(jnp.asarray(cosines), jnp.asarray(labels), **options)
