import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface.errors import UserError
from jaxface.layers import FeatureMapLIDEstimator, LIDEstimator
from jaxface.losses import lid_regression_loss, lid_targets


def units(count, size=16, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_targets_leave_out_the_own_class():
    rows, centers, labels = 3.0 * units(9), 0.2 * units(12, seed=1), np.arange(9) % 4
    cosines = units(9) @ units(12, seed=1).T
    cosines[np.arange(9), labels] = -9
    for k in (1, 3, 11):
        expected = -np.sort(-cosines, axis=1)[:, :k].mean(1)
        np.testing.assert_allclose(lid_targets(rows, labels, centers, k=k, tile=5), expected, atol=1e-6)


def test_targets_are_constants():
    rows, centers = jnp.asarray(units(4)), jnp.asarray(units(6, seed=1))
    gradients = jax.grad(lambda x, c: lid_targets(x, jnp.arange(4), c, k=2).sum(), argnums=(0, 1))(
        rows, centers
    )
    assert all((np.asarray(g) == 0).all() for g in gradients)


def test_the_loss_and_its_gradient():
    predicted, target = jnp.array([0.5, 0.1, 0.3]), jnp.array([0.2, 0.1, 0.7])
    np.testing.assert_allclose(lid_regression_loss(predicted, target), [0.09, 0, 0.16], atol=1e-6)
    by_predicted, by_target = jax.grad(lambda p, t: lid_regression_loss(p, t).sum(), argnums=(0, 1))(
        predicted, target
    )
    np.testing.assert_allclose(by_predicted, [0.6, 0, -0.8], atol=1e-6)
    np.testing.assert_array_equal(by_target, 0)
    half = lid_regression_loss(predicted.astype(jnp.bfloat16), target.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, [0.09, 0, 0.16], atol=5e-3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: lid_targets(units(2), np.arange(2), units(3), k=3), UserError, "k: needs 1 to the 2 other"),
        (lambda: lid_targets(units(2), np.arange(2), units(3), k=0), UserError, "k: needs 1 to the 2 other"),
        (
            lambda: lid_targets(np.zeros((2, 4), np.float32), np.arange(2), units(3, 4), k=1),
            UserError,
            "embeddings: needs rows of length 1",
        ),
        (lambda: lid_targets(units(2), np.arange(3), units(3), k=1), AssertionError, "differ"),
        (lambda: lid_targets(units(2, 8), np.arange(2), units(3), k=1), AssertionError, "differ"),
        (lambda: lid_regression_loss(jnp.ones(3), jnp.ones(2)), AssertionError, "differ"),
        (lambda: lid_regression_loss(jnp.ones((3, 1)), jnp.ones((3, 1))), AssertionError, r"\[B\]"),
    ],
)
def test_refusals(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("kind", [LIDEstimator, FeatureMapLIDEstimator])
def test_without_its_last_weights_an_estimator_is_its_bias(kind, bounded):
    shape = (5, 8) if kind is LIDEstimator else (5, 3, 3, 8)
    image = jax.random.normal(jax.random.key(0), shape)
    module = kind(hidden=7, initial=0.3, bounded=bounded)
    variables = module.init(jax.random.key(1), image)
    out = module.apply(variables, image)
    assert out.shape == (5,) and out.dtype == jnp.float32
    np.testing.assert_allclose(out, 0.3, atol=1e-6)
    params = variables["params"]
    params["head_dense"]["kernel"] += 1.0
    assert np.asarray(module.apply({**variables, "params": params}, image)).std() > 1e-3


def test_feature_maps_are_normalized_over_the_batch():
    image = jax.random.normal(jax.random.key(0), (6, 3, 3, 8))
    module = FeatureMapLIDEstimator()
    variables = module.init(jax.random.key(1), image)
    _, updated = module.apply(variables, image, train=True, mutable=["batch_stats"])
    mean = updated["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * np.asarray(image).mean((0, 1, 2)), atol=1e-6)
    assert module.apply(variables, image[:, :1]).shape == (6,)  # any plane


def test_an_estimator_learns_a_constant():
    rows, module = jnp.asarray(units(64)), LIDEstimator(hidden=16)
    params = module.init(jax.random.key(0), rows)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(carry, _):
        params, state = carry
        loss, gradients = jax.value_and_grad(
            lambda p: lid_regression_loss(module.apply(p, rows), jnp.full(64, 0.37)).mean()
        )(params)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), loss

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), None, 400)
    np.testing.assert_allclose(module.apply(params, rows), 0.37, atol=2e-3)
    assert losses[-1] < 1e-5 < losses[0]


def test_a_bounded_estimator_cannot_start_outside():
    with pytest.raises(UserError, match=r"initial: needs a value in \(-1, 1\)"):
        LIDEstimator(initial=1.0, bounded=True).init(jax.random.key(0), jnp.ones((1, 4)))
