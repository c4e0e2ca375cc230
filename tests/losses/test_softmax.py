import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxface import losses

LOGITS = jnp.array([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 1.0, 1.0]])
LABELS = np.array([0, 2], np.int32)
ALL = {
    "softmax": losses.softmax_loss,
    "cosface": losses.cosface_loss,
    "arcface": losses.arcface_loss,
}


def test_cross_entropy_by_hand():
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS), [0.440190, 2.277978], atol=1e-6)
    value, gradient = jax.value_and_grad(lambda z: losses.cross_entropy(z, LABELS).mean())(LOGITS)
    np.testing.assert_allclose(value, 1.359084, atol=1e-6)
    np.testing.assert_allclose(gradient[0], [-0.178043, 0.118441, 0.043572, 0.016029], atol=1e-6)


def sharded(loss, cosines, labels, shards):
    """Loss with the classes spread over `shards` devices."""
    width = cosines.shape[1] // shards
    mesh = Mesh(np.array(jax.devices()[:shards]), ("model",))

    def local(cosines, labels):
        labels = labels - jax.lax.axis_index("model") * width
        labels = jnp.where((labels >= 0) & (labels < width), labels, -1)
        return loss(cosines, labels, axis_name="model")

    return jax.shard_map(local, mesh=mesh, in_specs=(P(None, "model"), P()), out_specs=P())(cosines, labels)


@pytest.mark.parametrize("shards", [2, 8])
def test_sharded_classes_equal_dense(shards):
    cosines = jax.random.uniform(jax.random.key(0), (6, 16), minval=-0.95, maxval=0.95)
    labels = jnp.array([0, 15, 7, 8, 3, 12])

    @jax.jit
    def dense_and_split(cosines):
        return {
            name: (
                jax.value_and_grad(lambda c, loss=loss: loss(c, labels).mean())(cosines),
                jax.value_and_grad(lambda c, loss=loss: sharded(loss, c, labels, shards).mean())(cosines),
            )
            for name, loss in ALL.items()
        }

    for dense, split in dense_and_split(cosines).values():
        np.testing.assert_allclose(split[0], dense[0], rtol=1e-5)
        np.testing.assert_allclose(split[1], dense[1], rtol=1e-4, atol=1e-6)


def test_arcface_derivative_ratio():
    cos = jnp.cos(jnp.array([[1.0, 2.0]]))
    label = np.array([0])

    def target_logit(c, gradient):
        return losses.margin_logits(c, label, scale=1.0, angular_margin=0.5, gradient=gradient)[0, 0]

    np.testing.assert_allclose(target_logit(cos, "exact"), np.cos(1.5), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(target_logit)(cos, "exact"), [[1.185418, 0.0]], rtol=1e-5)
    np.testing.assert_allclose(target_logit(cos, "straight_through"), np.cos(1.5), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(target_logit)(cos, "straight_through"), [[1.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("margin", [0.3, 0.5, 1.0])
def test_the_guard_keeps_the_target_logit_falling(margin):
    angles = jnp.linspace(0.01, np.pi - 0.01, 200)
    label = np.zeros(200, np.int32)

    def logits(guard):
        cos = jnp.cos(angles)[:, None]
        return np.array(losses.margin_logits(cos, label, scale=1.0, angular_margin=margin, guard=guard))[:, 0]

    safe = np.array(angles) < np.pi - margin
    np.testing.assert_allclose(logits(True)[safe], np.cos(np.array(angles) + margin)[safe], atol=1e-5)
    np.testing.assert_allclose(
        logits(True)[~safe], (np.cos(np.array(angles)) - margin * np.sin(margin))[~safe], atol=1e-5
    )
    np.testing.assert_allclose(logits(False), np.cos(np.array(angles) + margin), atol=1e-5)
    assert (np.diff(logits(True))[safe[1:]] < 0).all() and (np.diff(logits(True))[~safe[:-1]] < 0).all()
    assert (np.diff(logits(False))[~safe[:-1]] > 0).all()


def test_margins_move_the_target_only():
    cos = jax.random.uniform(jax.random.key(1), (3, 5), minval=-0.9, maxval=0.9)
    labels = np.array([4, 0, 2])
    rows = np.arange(3)
    plain = np.array(losses.margin_logits(cos, labels, scale=10.0))
    np.testing.assert_allclose(plain, 10 * cos, rtol=1e-6)
    for options, expected in (
        ({"cosine_margin": 0.35}, 10 * (np.array(cos)[rows, labels] - 0.35)),
        ({"angular_margin": 0.5}, 10 * np.cos(np.arccos(np.array(cos)[rows, labels]) + 0.5)),
    ):
        moved = np.array(losses.margin_logits(cos, labels, scale=10.0, **options))
        np.testing.assert_allclose(moved[rows, labels], expected, rtol=1e-4, atol=1e-5)
        moved[rows, labels] = plain[rows, labels]
        np.testing.assert_allclose(moved, plain, rtol=1e-6)


def test_zero_margin_is_plain_softmax():
    cos = jax.random.uniform(jax.random.key(2), (4, 6), minval=-1)
    labels = np.array([0, 5, 2, 2])
    expected = -jax.nn.log_softmax(64 * cos)[np.arange(4), labels]
    np.testing.assert_allclose(losses.softmax_loss(cos, labels), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(losses.cosface_loss(cos, labels, margin=0.0), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(losses.arcface_loss(cos, labels, margin=0.0), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_boundaries_and_rows_without_a_target(name):
    cos = jnp.array([[1.0, -1.0, 1.0], [-1.0, 1.0, 0.0], [0.5, 0.1, 0.2]])
    labels = np.array([0, 0, -1])
    value, gradient = jax.value_and_grad(lambda c: ALL[name](c, labels).sum())(cos)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert ALL[name](cos, labels)[2] == 0 and not np.any(gradient[2])
    one_class = jax.value_and_grad(lambda c: ALL[name](c, np.array([0])).sum())(jnp.array([[0.3]]))
    np.testing.assert_allclose(one_class[0], 0.0, atol=1e-5)
    assert np.isfinite(one_class[1]).all()


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_and_transforms(name):
    cos = jax.random.uniform(jax.random.key(3), (2, 4, 6), minval=-1).astype(jnp.bfloat16)
    labels = np.array([[0, 5, 2, 2], [1, 1, -1, 3]])
    loss = jax.jit(jax.vmap(functools.partial(ALL[name], scale=16.0)))(cos, labels)
    assert loss.dtype == jnp.float32
    for i in range(2):
        np.testing.assert_allclose(
            loss[i], ALL[name](cos[i].astype(jnp.float32), labels[i], scale=16.0), rtol=1e-5
        )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c, y: losses.arcface_loss(c, y, margin=4.0), "margin"),
        (lambda c, y: losses.cosface_loss(c, y, margin=-0.1), "margin"),
        (lambda c, y: losses.softmax_loss(c, y, scale=-1.0), "scale"),
        (lambda c, y: losses.arcface_loss(c, y, gradient="fast"), "gradient"),
        (lambda c, y: losses.softmax_loss(c, y.astype(float)), "labels"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call(jnp.zeros((2, 3)), np.array([0, 1]))
