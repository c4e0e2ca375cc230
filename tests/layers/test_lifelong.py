import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.layers import BatchNorm, MaskedBatchNorm, SpatialAttention, gem_pool

X = jax.random.normal(jax.random.key(0), (6, 4, 4, 3)) * 2 + 1


def test_generalized_mean():
    np.testing.assert_allclose(gem_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)), 2.080084, atol=1e-6)
    np.testing.assert_allclose(gem_pool(jnp.full((2, 3, 3, 4), 0.7)), 0.7, rtol=1e-5)
    np.testing.assert_allclose(gem_pool(jnp.abs(X), power=1.0), jnp.abs(X).mean(axis=(1, 2)), rtol=1e-5)
    assert np.isfinite(jax.grad(lambda x: gem_pool(x).sum())(jnp.zeros((1, 2, 2, 1)))).all()
    with pytest.raises(UserError, match=r"^power: needs"):
        gem_pool(X, power=0.0)


@pytest.mark.parametrize("normalize", [True, False])
def test_attention_is_the_released_chain(normalize):
    layer = SpatialAttention(normalize=normalize)
    variables = layer.init(jax.random.key(1), X, train=False)
    weights, _ = layer.apply(variables, X, train=True, mutable=["batch_stats"])
    pooled = jnp.stack([X.mean(axis=-1), X.max(axis=-1)], axis=-1)
    kernel = variables["params"]["conv"]["kernel"]
    assert kernel.shape == (7, 7, 2, 1) and sorted(variables["params"]["conv"]) == ["kernel"]
    expected = jax.nn.sigmoid(
        jax.lax.conv_general_dilated(
            pooled, kernel, (1, 1), [(3, 3), (3, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    if normalize:
        expected = jax.nn.sigmoid((expected - expected.mean()) / jnp.sqrt(expected.var() + 1e-5))
    assert weights.shape == (6, 4, 4, 1)
    np.testing.assert_allclose(weights, expected, atol=1e-4)


def test_masked_statistics_are_those_of_the_rows():
    plain, masked = BatchNorm(), MaskedBatchNorm()
    variables = plain.init(jax.random.key(0), X, train=False)
    rows = jnp.array([True, False, True, True, False, False])
    expected, stats = plain.apply(variables, X[rows], train=True, mutable=["batch_stats"])
    y, masked_stats = masked.apply(variables, X, train=True, where=rows, mutable=["batch_stats"])
    np.testing.assert_allclose(y[rows], expected, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), dict(masked_stats), dict(stats))
    everyone = masked.apply(variables, X, train=True, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(
        everyone, plain.apply(variables, X, train=True, mutable=["batch_stats"])[0], atol=1e-4
    )
    np.testing.assert_allclose(
        masked.apply(variables, X, train=False), plain.apply(variables, X, train=False), atol=1e-5
    )


def test_without_rows_the_averages_stay():
    layer = MaskedBatchNorm()
    variables = layer.init(jax.random.key(0), X, train=False)
    nobody = jnp.zeros(6, bool)
    y, stats = layer.apply(variables, X, train=True, where=nobody, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, dict(stats["batch_stats"]), dict(variables["batch_stats"]))
    np.testing.assert_allclose(y, layer.apply(variables, X, train=False), atol=1e-5)


def test_replicas_with_other_numbers_of_rows_have_the_statistics_of_all():
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    layer = MaskedBatchNorm()
    variables = layer.init(jax.random.key(0), X, train=False)
    rows = jnp.array([True, True, False, False, False, True])
    whole = layer.apply(variables, X, train=True, where=rows, mutable=["batch_stats"])
    halves = jax.pmap(
        lambda x, r: layer.apply(variables, x, train=True, where=r, mutable=["batch_stats"]),
        axis_name="data",
        devices=jax.devices()[:2],
    )(X.reshape(2, 3, 4, 4, 3), rows.reshape(2, 3))
    np.testing.assert_allclose(halves[0].reshape(X.shape), whole[0], atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4), dict(halves[1]), dict(whole[1]))
