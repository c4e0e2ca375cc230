import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import axes
from jaxface.layers import BatchNorm, FrozenBatchNorm
from jaxface.layers.norm import OneExample


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(3.0, 2.0, shape).astype(np.float32)


def variables_of(module, x):
    """Parameters and statistics that are not the neutral ones."""
    variables = module.init(jax.random.key(0), x, train=False)
    params = jax.tree.map(lambda p: p + 0.1 * jnp.arange(p.size), variables["params"])
    return {"params": params, "batch_stats": variables["batch_stats"]}


def apply(module, variables, x, train=True):
    return module.apply(variables, x, train=train, mutable=["batch_stats"])


def test_equation_and_running_averages():
    x = images(4, 3, 3, 5)
    module = BatchNorm()
    variables = variables_of(module, x)
    y, updated = apply(module, variables, x)

    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    scale, bias = variables["params"]["scale"], variables["params"]["bias"]
    np.testing.assert_allclose(y, scale * (x - mean) / np.sqrt(var + 1e-5) + bias, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-5)


def test_evaluation_uses_and_keeps_the_running_averages():
    x = images(4, 5)
    module = BatchNorm()
    variables = variables_of(module, x)
    variables["batch_stats"] = {"mean": jnp.full(5, 2.0), "var": jnp.full(5, 4.0)}
    y, updated = apply(module, variables, x, train=False)
    expected = variables["params"]["scale"] * (x - 2.0) / np.sqrt(4.0 + 1e-5) + variables["params"]["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, updated["batch_stats"], variables["batch_stats"]))


def test_fixed_scale_is_no_parameter():
    variables = BatchNorm(use_scale=False).init(jax.random.key(0), jnp.ones((2, 3)), train=True)
    assert set(variables["params"]) == {"bias"}
    assert set(variables["batch_stats"]) == {"mean", "var"}


def test_bfloat16_input_has_float32_statistics():
    # Sums of a thousand numbers near 100 would stop growing in bfloat16 (8 bits).
    x = jnp.asarray(100.0 + 4.0 * np.sign(images(64, 4, 4, 3) - 3.0), jnp.bfloat16)
    module = BatchNorm(dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), x, train=True)
    y, updated = apply(module, variables, x)
    _, reference = apply(BatchNorm(), variables, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    assert updated["batch_stats"]["mean"].dtype == jnp.float32
    for a, b in zip(jax.tree.leaves(updated), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(np.abs(y.astype(jnp.float32)).mean(), 1.0, atol=0.02)


def loss(module, variables, x):
    y, updated = apply(module, variables, x)
    return jnp.mean(jnp.sin(y)), updated["batch_stats"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pmap_over_eight_devices_equals_the_whole_batch(dtype):
    x = images(16, 3, 3, 4)
    # Replicas differ strongly, so that per-replica statistics would be far off.
    x += np.arange(16, dtype=np.float32)[:, None, None, None]
    module = BatchNorm(dtype=dtype)
    variables = variables_of(module, x)

    def gradient(params, x):
        return jax.value_and_grad(lambda p: loss(module, {**variables, "params": p}, x), has_aux=True)(params)

    (value, stats), gradients = jax.jit(gradient)(variables["params"], x)
    sharded = x.reshape(8, 2, *x.shape[1:])
    replicated = jax.pmap(lambda x: axes.mean(gradient(variables["params"], x)), axis_name=axes.DATA)(sharded)
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    for whole, parts in zip(
        jax.tree.leaves(((value, stats), gradients)), jax.tree.leaves(replicated), strict=True
    ):
        np.testing.assert_allclose(parts, np.broadcast_to(whole, parts.shape), rtol=tolerance, atol=tolerance)


def test_jit_over_a_mesh_equals_one_device():
    x = images(16, 3, 3, 4) + np.arange(16, dtype=np.float32)[:, None, None, None]
    module = BatchNorm()
    variables = variables_of(module, x)
    y, stats = jax.jit(lambda x: apply(module, variables, x))(x)
    mesh = jax.make_mesh((8,), (axes.DATA,))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P(axes.DATA)))
    y_mesh, stats_mesh = jax.jit(lambda x: apply(module, variables, x))(sharded)
    np.testing.assert_allclose(y, y_mesh, atol=1e-5)
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(stats_mesh), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5), (1, 1, 1, 5), (5,)])
def test_one_value_of_a_channel_is_no_batch(shape):
    module = BatchNorm()
    variables = module.init(jax.random.key(0), images(*shape), train=True)  # shapes alone
    with pytest.raises(OneExample, match=r"needs at least 2 values of a channel in training, got 1"):
        jax.eval_shape(lambda x: apply(module, variables, x), images(*shape))
    y, _ = apply(module, variables, images(*shape), train=False)
    assert np.isfinite(y).all()
    with pytest.raises(OneExample):
        jax.pmap(lambda x: apply(module, variables, x)[0], axis_name=axes.DATA)(images(1, *shape))


@pytest.mark.parametrize(("shape", "devices"), [((2, 5), 1), ((1, 2, 1, 5), 1), ((1, 5), 2)])
def test_two_values_are_a_batch_wherever_they_are(shape, devices):
    x, module = images(devices, *shape), BatchNorm()
    variables = module.init(jax.random.key(0), x[0], train=False)
    y = jax.pmap(
        lambda x: apply(module, variables, x)[0], axis_name=axes.DATA, devices=jax.devices()[:devices]
    )(x)
    np.testing.assert_allclose(np.abs(y), 1.0, atol=1e-3)  # both a deviation from their mean


def test_a_frozen_norm_is_an_affine_map_without_parameters():
    x = jax.random.normal(jax.random.key(0), (3, 4, 2))
    constants = {
        name: jnp.array(v)
        for name, v in zip(
            ("scale", "bias", "mean", "var"), ([2.0, 1.0], [0.0, 1.0], [1.0, -1.0], [4.0, 0.5]), strict=True
        )
    }
    layer = FrozenBatchNorm(epsilon=0.0)
    assert set(layer.init(jax.random.key(0), x)) == {"batch_stats"}
    y, updated = layer.apply({"batch_stats": constants}, x, train=True, mutable=["batch_stats"])
    expected = constants["scale"] * (x - constants["mean"]) / jnp.sqrt(constants["var"]) + constants["bias"]
    np.testing.assert_allclose(y, expected, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], constants)
