import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import layers, models
from jaxface.errors import UserError
from jaxface.layers import condensation


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def leaky(x, slope=0.1):
    return jnp.where(x > 0, x, slope * x)


def plain(x, kernel, stride=1):
    reach = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(reach, reach)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )  # fmt: skip


Z = jnp.array([1.0, -2.0, 0.5, 3.0, 0.0, 0.0, -1.0, -1.0])


def test_neighbors_share_a_map():
    np.testing.assert_array_equal(layers.cross_channel_pool(Z, 2), [1, 3, 0, -1])
    np.testing.assert_array_equal(layers.cross_channel_argmax(Z, 2), [0, 1, 0, 0])
    # Members m and m + M are another order of filters: the two halves of four channels.
    for part, expected in ((Z[:4], [1, 3]), (Z[4:], [0, 0])):
        np.testing.assert_array_equal(layers.cross_channel_pool(part.reshape(2, 2).T.reshape(4), 2), expected)
    for reduce, expected in {
        "min": [-2, 0.5, 0, -1],
        "mean": [-0.5, 1.75, 0, -1],
        "sum": [-1, 3.5, 0, -2],
    }.items():
        np.testing.assert_array_equal(layers.cross_channel_pool(Z, 2, reduce), expected)


def test_pointwise_by_hand():
    x = jnp.array([1.0, -2.0, 3.0])
    rows = jnp.array([[1, 0, 2, -1], [0, 1, 1, 1], [-1, 1, 0, 0.5]])
    np.testing.assert_allclose(x @ rows, [-2, 1, 0, -1.5])
    for after in (False, True):
        np.testing.assert_array_equal(layers.condense(x @ rows, 2, activate_after=after), [1, 0])


@pytest.mark.parametrize("f", [leaky, jax.nn.relu, condensation.hwgq2], ids=["leaky", "relu", "2 bits"])
def test_what_does_not_fall_commutes_with_the_maximum(f):
    z = normal((50, 12))
    np.testing.assert_array_equal(layers.cross_channel_pool(f(z), 3), f(layers.cross_channel_pool(z, 3)))


def test_what_falls_does_not():
    z, f = jnp.array([-1.0, -2.0]), functools.partial(leaky, slope=-0.1)
    np.testing.assert_allclose(layers.cross_channel_pool(f(z), 2), [0.2], rtol=1e-6)
    np.testing.assert_allclose(f(layers.cross_channel_pool(z, 2)), [0.1], rtol=1e-6)


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_a_tie_belongs_to_the_first(reduce):
    z = jnp.ones(2)
    gradient = jax.grad(lambda z: layers.cross_channel_pool(z, 2, reduce)[0])(z)
    np.testing.assert_array_equal(gradient, [1, 0])
    np.testing.assert_array_equal(jax.grad(jnp.max)(z), [0.5, 0.5])


def running(x, kernel, bias, groups, stride=1):
    return condensation.conv_ccp_running(x, kernel, bias, groups=groups, stride=stride)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (3, 1), (2, 2)])
def test_one_member_at_a_time_is_all_at_once(groups, stride):
    """Values, and gradients of the formula that takes each maximum's member by its number."""
    x, kernel, bias = normal((2, 7, 6, 3)), normal((3, 3, 3, 4 * groups), 1), normal(4 * groups, 2)

    def gathered(x, kernel, bias):
        z = (plain(x, kernel, stride) + bias).reshape(2, *(-(-n // stride) for n in x.shape[1:3]), 4, groups)
        winner = jax.lax.stop_gradient(jnp.argmax(z, axis=-1))[..., None]
        return leaky(jnp.take_along_axis(z, winner, axis=-1)[..., 0])

    def layer(x, kernel, bias):
        conv = layers.CondensationConv(4, groups, stride=stride, norm=False)
        return conv.apply({"params": {"kernel": kernel, "bias": bias}}, x)

    expected, pull = jax.vjp(gathered, x, kernel, bias)
    g = normal(expected.shape, 3)
    for f in (functools.partial(running, groups=groups, stride=stride), layer):
        y, pull_back = jax.vjp(f, x, kernel, bias)
        np.testing.assert_allclose(y, expected, atol=1e-5)
        for ours, theirs in zip(pull_back(g), pull(g), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    if groups == 1:
        np.testing.assert_allclose(expected, leaky(plain(x, kernel) + bias), atol=1e-6)


def test_a_filter_twice_in_a_group_changes_nothing():
    x, kernel, bias = normal((1, 5, 5, 2)), normal((3, 3, 2, 6), 1), normal(6, 2)
    twice = jnp.repeat(kernel, 2, axis=-1), jnp.repeat(bias, 2)
    np.testing.assert_array_equal(running(x, *twice, 4), running(x, kernel, bias, 2))


def test_a_scan_holds_two_maps():
    """No array of all virtual channels occurs, however many members there are."""
    x, kernel, bias = normal((1, 16, 16, 4)), normal((3, 3, 4, 64)), normal(64)
    text = jax.jit(functools.partial(running, groups=8)).lower(x, kernel, bias).as_text()
    assert "1x16x16x8xf32" in text and "1x16x16x64xf32" not in text


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm": False},
        {"stride": 2},
        {"pool": 2},
        {"quantized": True, "pool": 1},
        {"groups": 3, "negative_slope": 0.0},
        {"groups": 1},
    ],
    ids=["plain", "bias", "strided", "pooled", "quantized", "three", "one"],
)
def test_the_fused_layer_is_the_trained_one(fields):
    layer, x = layers.CondensationConv(5, **{"groups": 2, **fields}), normal((2, 7, 8, 3))
    variables = layer.init(jax.random.key(0), x)
    rng = np.random.default_rng(1)

    def changed(path, leaf):
        low = 0.5 if path[-1].key == "var" else -1.0  # scales of either sign, different in a group
        return leaf + jnp.asarray(rng.uniform(low, 1, leaf.shape), jnp.float32)

    variables = jax.tree_util.tree_map_with_path(changed, variables)
    y = layer.apply(variables, x, train=False)
    fused = layers.fuse_condensation(layer, variables)(x)
    if layer.quantized:  # rounding moves what is at a threshold to the next level
        assert np.mean(np.abs(fused - y) > 1e-4) < 0.01
    else:
        np.testing.assert_allclose(fused, y, rtol=1e-4, atol=1e-4)


def test_normalization_does_not_commute_with_the_maximum():
    z, scale = jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0])
    assert layers.cross_channel_pool(scale * z, 2) == 3
    assert set((scale * layers.cross_channel_pool(z, 2)).tolist()) == {6.0, 2.0}


def test_nan_wins_and_infinity_loses():
    z = jnp.array([jnp.nan, 1.0, 1.0, jnp.nan, -jnp.inf, 2.0, -jnp.inf, -jnp.inf])
    expected = [np.nan, np.nan, 2, -np.inf]
    np.testing.assert_array_equal(layers.cross_channel_pool(z, 2), expected)
    x, kernel = jnp.ones((1, 1, 1, 1)), z.reshape(1, 1, 1, 8)
    np.testing.assert_array_equal(running(x, kernel, jnp.zeros(8), 2)[0, 0, 0], expected)


@pytest.mark.parametrize(("groups", "moment"), [(1, 0.505), (2, 0.909), (4, 1.542)])
def test_the_gain_keeps_the_power(groups, moment):
    """E f(max z)² for unit normals, with leaky ReLU and ReLU; and six layers of it on end, within a factor of 2."""
    z = np.random.default_rng(0).normal(size=(400_000, groups)).max(axis=1)
    assert np.mean(np.where(z > 0, z, 0.1 * z) ** 2) == pytest.approx(moment, rel=0.01)
    assert layers.condensation_gain(groups) == pytest.approx(1 / moment, rel=2e-3)
    rectified = {1: 0.5, 2: 0.908, 4: 1.542}[groups]
    assert layers.condensation_gain(groups, 0.0) == pytest.approx(1 / rectified, rel=2e-3)
    x = start = normal((4, 12, 12, 32))
    for i in range(6):
        layer = layers.CondensationConv(32, groups, kernel_size=1, norm=False)
        x = layer.apply(layer.init(jax.random.key(i), x), x)
    assert 0.5 < jnp.mean(x**2) / jnp.mean(start**2) < 2
    assert {1: 0, 2: 0.5642, 4: 1.0294}[groups] == pytest.approx(z.mean(), abs=6e-3)


def test_a_mean_before_the_activation_is_one_filter():
    x, kernel = normal((1, 6, 6, 2)), normal((3, 3, 2, 8), 1)
    layer = layers.CondensationConv(4, 2, norm=False, reduce="mean", negative_slope=1.0)
    y = layer.apply({"params": {"kernel": kernel, "bias": jnp.zeros(8)}}, x)
    np.testing.assert_allclose(y, plain(x, kernel.reshape(3, 3, 2, 4, 2).mean(-1)), atol=1e-5)
    with pytest.raises(UserError, match="activate_after: needs False for reduce='mean'"):
        layers.condense(x, 2, reduce="mean")
    averaged = layers.CondensationConv(4, 2, norm=False, reduce="mean")  # of activated maps, it is none
    y = averaged.apply({"params": {"kernel": kernel, "bias": jnp.zeros(8)}}, x)
    np.testing.assert_allclose(y, leaky(plain(x, kernel)).reshape(1, 6, 6, 4, 2).mean(-1), atol=1e-5)


def test_binary_weights():
    w = jnp.array([[0.5, -0.2], [-1.5, 0.0]])
    np.testing.assert_allclose(condensation.binary_weight(w), [[1, -0.1], [-1, 0.1]], rtol=1e-6)
    gradient = jax.grad(lambda w: condensation.binary_weight(w).sum())(w)
    np.testing.assert_allclose(gradient, [[1, 0.1], [0, 0.1]], rtol=1e-6)


def test_two_bit_activations():
    x = jnp.array([-0.3, 0.0, 1e-3, 0.8, 0.82, 1.3, 1.4, 1.7])
    y, pull = jax.vjp(condensation.hwgq2, x)
    np.testing.assert_allclose(y, 0.538 * np.array([0, 0, 1, 1, 2, 2, 3, 3]), rtol=1e-6)
    np.testing.assert_array_equal(pull(jnp.ones(8))[0], [0, 0, 1, 1, 1, 1, 1, 0])
    # 0.538 is the best step for the positive half of a unit normal.
    z = np.linspace(0, 6, 60_001)
    density = np.exp(-(z**2) / 2)

    def error(step):
        return np.sum((z - np.clip(np.rint(z / step), 1, 3) * step) ** 2 * density)

    np.testing.assert_allclose(condensation.hwgq2(jnp.float32(0.7)), 0.538, rtol=1e-6)
    assert error(0.538) < min(error(0.53), error(0.546))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.condense(Z, 2, reduce="sum"), "activate_after: needs False for reduce='sum'"),
        (lambda: layers.condense(Z, 2, negative_slope=-0.1), "negative_slope: needs at least 0 after the pooling"),
        (lambda: layers.cross_channel_pool(Z, 3), "groups: needs a divisor of the 8 channels, got 3"),
        (lambda: layers.cross_channel_pool(Z, 0), "groups: needs a number from 1 to 127, got 0"),
        (lambda: layers.cross_channel_argmax(jnp.ones(128), 128), "groups: needs a number from 1 to 127, got 128"),
        (lambda: layers.cross_channel_pool(Z, 2, "median"), "reduce: needs one of max, min, mean, sum, got 'median'"),
        (lambda: layers.cross_channel_pool(jnp.arange(8), 2), "z: needs floats, integers multiplied by their scale"),
        (lambda: layers.CondensationConv(4, 200), "groups: needs a number from 1 to 127, got 200"),
        (lambda: layers.CondensationConv(4, kernel_size=2), "kernel_size: needs an odd number, got 2"),
        (lambda: layers.CondensationConv(4, pool=3), "pool: needs 0, 1 or 2, got 3"),
        (lambda: layers.CondensationConv(4, gain=0.0), "gain: needs a finite number above 0, got 0"),
        (lambda: layers.fuse_condensation(layers.CondensationConv(4, reduce="min"), {}), "reduce: needs 'max'"),
        (
            lambda: condensation.conv_ccp_running(
                jnp.ones((1, 2, 2, 1)), jnp.ones((1, 1, 1, 2)), jnp.ones(2), groups=2, negative_slope=-1.0
            ),
            "negative_slope: needs at least 0",
        ),
    ],
)  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(
    ("channels", "groups", "count"), [(6, 1, 2148), (6, 2, 4176), (6, 4, 8232), (12, 1, 8184)]
)
def test_the_network_for_small_images(channels, groups, count):
    model = models.create("condensed_net", embedding=10, channels=channels, groups=groups)
    image = jax.ShapeDtypeStruct((1, 24, 24, 1), jnp.float32)
    y, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), image)
    assert models.parameter_count(variables) == count and y.shape == (1, 10)


def test_members_that_win_are_told():
    layer, x = layers.CondensationConv(3, 2), normal((1, 4, 4, 2))
    variables = layer.init(jax.random.key(0), x)
    assert "intermediates" not in variables
    _, told = layer.apply(variables, x, mutable=["intermediates"])
    (winner,) = told["intermediates"]["winner"]
    z = nn.BatchNorm(use_running_average=True).apply(
        {"params": variables["params"]["norm"], "batch_stats": variables["batch_stats"]["norm"]},
        plain(x, variables["params"]["kernel"]),
    )
    np.testing.assert_array_equal(winner, layers.cross_channel_argmax(z, 2))
