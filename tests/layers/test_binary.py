"""Binary layers against float64 numpy and against the kernels' own training form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.layers import BinaryConv, BinaryDense, ChannelBias, approx_sign, sign
from jaxface.layers.binary import mean_abs_scale, sign_slope, uniform_init
from pallas_kernels.binary_conv import binary_conv2d_ste

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 5, 4, 3)), jnp.float32)


def test_approx_sign_and_its_slope():
    """RBONN's check 5."""
    x = jnp.array([-1.5, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 1.5])
    np.testing.assert_array_equal(approx_sign(x), [-1, -1, -0.75, -0.4375, 0, 0.4375, 0.75, 1, 1])
    np.testing.assert_array_equal(sign_slope(x), [0, 0, 1, 1.5, 2, 1.5, 1, 0, 0])
    np.testing.assert_array_equal(jax.vmap(jax.grad(sign))(x), sign_slope(x))
    inside = x[2:7]
    np.testing.assert_allclose(jax.vmap(jax.grad(approx_sign))(inside), sign_slope(inside))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "estimator, slope", [("clip", [0, 1, 1, 1, 0]), ("identity", [1] * 5), ("approx_sign", [0, 0, 2, 1, 0])]
)
def test_the_sign_and_its_estimators(estimator, slope, dtype):
    x = jnp.array([-1.5, -1.0, 0.0, 0.5, 2.0], dtype)
    signs, vjp = jax.vjp(lambda x: sign(x, estimator), x)
    assert signs.tolist() == [-1, -1, 1, 1, 1] and signs.dtype == dtype
    assert vjp(jnp.ones_like(x))[0].tolist() == slope


def layer_of(scale, estimator="approx_sign", strides=1):
    layer = BinaryConv(4, (3, 3), (strides, strides), scale=scale, estimator=estimator)
    return layer, layer.init(jax.random.key(1), X)["params"]


@pytest.mark.parametrize("estimator", ["approx_sign", "clip"])
def test_the_convolution_is_that_of_the_kernels(estimator):
    layer, params = layer_of("learned", estimator)
    params = {"kernel": 3 * params["kernel"], "scale": params["scale"] + jnp.arange(4.0)}
    cotangent = jnp.asarray(RNG.normal(size=(2, 5, 4, 4)), jnp.float32)

    def ours(x, kernel, scale):
        y = layer.apply({"params": {"kernel": kernel, "scale": scale}}, x)
        return jnp.sum(y * cotangent), y

    def theirs(x, kernel, scale):
        y = binary_conv2d_ste(x, kernel, scale, estimator, padding=((1, 1), (1, 1)))
        return jnp.sum(y * cotangent), y

    results = [
        jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)(X, params["kernel"], params["scale"])
        for f in (ours, theirs)
    ]
    np.testing.assert_allclose(results[0][0][1], results[1][0][1], rtol=1e-5, atol=1e-5)
    for got, wanted in zip(*(gradients for _, gradients in results), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def loop(x, kernel, strides):
    """Zeros stand around the signs; float64 numpy."""
    x, kernel = np.where(np.asarray(x) >= 0, 1.0, -1.0), np.where(np.asarray(kernel) >= 0, 1.0, -1.0)
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = ((size - 3) // strides + 1 for size in x.shape[1:3])
    windows = [
        [np.einsum("bijc,ijco->bo", x[:, r * strides : r * strides + 3, c * strides : c * strides + 3], kernel)
         for c in range(width)] for r in range(height)
    ]  # fmt: skip
    return np.moveaxis(np.array(windows), 2, 0)


@pytest.mark.parametrize("scale, strides", [("none", 1), ("mean_abs", 2), ("learned", 1), ("xnor", 2)])
def test_scales_and_the_padding_after_the_sign(scale, strides):
    layer, params = layer_of(scale, strides=strides)
    dot = loop(X, params["kernel"], strides)
    alpha = 1.0 if scale == "none" else np.abs(np.asarray(params["kernel"], np.float64)).mean((0, 1, 2))
    wanted = dot * alpha
    if scale == "xnor":
        means = np.pad(np.abs(np.asarray(X, np.float64)).mean(-1), ((0, 0), (1, 1), (1, 1)))
        box = [[means[:, r : r + 3, c : c + 3].mean((1, 2)) for c in (0, 2)] for r in (0, 2, 4)]
        wanted = wanted * np.moveaxis(np.array(box), 2, 0)[..., None]
    assert params.keys() == {"kernel"} | ({"scale"} if scale == "learned" else set())
    np.testing.assert_allclose(layer.apply({"params": params}, X), wanted, rtol=1e-5, atol=1e-5)


def test_no_gradient_flows_through_the_mean_scale():
    kernel = jnp.array([[0.5, -0.25], [1.5, 0.75]])
    assert mean_abs_scale(kernel).tolist() == [1.0, 0.5]
    assert jax.grad(lambda k: mean_abs_scale(k).sum())(kernel).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("scale", ["mean_abs", "learned", "xnor"])
def test_the_dense_layer_is_a_convolution_of_one_pixel(scale):
    x = X[:, :1, :1]
    dense, conv = BinaryDense(4, scale=scale), BinaryConv(4, (1, 1), scale=scale)
    params = dense.init(jax.random.key(0), x)["params"]
    kernel = {**params, "kernel": params["kernel"][None, None]}
    np.testing.assert_allclose(
        dense.apply({"params": params}, x[:, 0, 0]), conv.apply({"params": kernel}, x)[:, 0, 0], rtol=1e-6
    )


def test_real_weights_are_the_first_stage():
    layer, params = layer_of("mean_abs")
    real = BinaryConv(4, (3, 3), real_weights=True)
    y = real.apply({"params": {"kernel": jnp.sign(params["kernel"])}}, X)
    np.testing.assert_allclose(
        y * mean_abs_scale(params["kernel"]), layer.apply({"params": params}, X), rtol=1e-5
    )


def test_a_bias_before_a_sign_is_a_threshold():
    layer = ChannelBias()
    assert layer.init(jax.random.key(0), X)["params"]["bias"].tolist() == [0, 0, 0]
    y = sign(layer.apply({"params": {"bias": jnp.array([0.5, -1.0, 0.0])}}, X))
    np.testing.assert_array_equal(y, jnp.where(X - jnp.array([-0.5, 1.0, 0.0]) >= 0, 1, -1))


def test_the_uniform_start():
    values = uniform_init(0.5)(jax.random.key(0), (1000,))
    assert -0.5 <= values.min() < -0.49 and 0.49 < values.max() <= 0.5


@pytest.mark.parametrize(
    "layer, x, message",
    [
        (BinaryConv(4, scale="other"), X, "scale: needs one of none, mean_abs, xnor, learned, got 'other'"),
        (BinaryConv(4, estimator="other"), X, "estimator: needs one of clip, approx_sign, identity"),
        (BinaryConv(4), X[0], r"x: needs \[B, H, W, C\], got \(5, 4, 3\)"),
        (BinaryDense(4, scale="other"), X, "scale: needs one of"),
    ],
)
def test_refusals(layer, x, message):
    with pytest.raises(UserError, match=message):
        layer.init(jax.random.key(0), x)
