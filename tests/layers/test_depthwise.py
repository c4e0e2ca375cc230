import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.layers import DepthwiseConv, depthwise_conv


def convolution(x, kernel, stride, padding):
    pads = [(padding, padding)] * 2
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=layout, feature_group_count=x.shape[-1]
    )


@settings(max_examples=6, deadline=None)
@given(
    size=st.tuples(st.integers(3, 8), st.integers(3, 8)),
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 2)]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
)
def test_equals_the_grouped_convolution_and_its_gradients(size, kernel, stride, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(*kernel, 1, 3)), jnp.float32)
    ours, pull = jax.vjp(lambda x, w: depthwise_conv(x, w, stride=stride, padding=padding), x, w)
    reference, pull_reference = jax.vjp(lambda x, w: convolution(x, w, stride, padding), x, w)
    np.testing.assert_allclose(ours, reference, atol=1e-5)
    g = jnp.asarray(rng.normal(size=ours.shape), jnp.float32)
    for a, b in zip(pull(g), pull_reference(g), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_one_tap_by_hand():
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 1, 0, 0].set(2.0)  # twice the pixel above
    y = depthwise_conv(x, kernel, padding=1)
    np.testing.assert_array_equal(y[0, ..., 0], [[0, 0, 0], [2, 4, 6], [8, 10, 12]])


def test_kernel_over_the_whole_plane():
    rng = np.random.default_rng(0)
    x, kernel = (
        rng.normal(size=(2, 4, 5, 3)).astype(np.float32),
        rng.normal(size=(4, 5, 1, 3)).astype(np.float32),
    )
    y = depthwise_conv(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(y[:, 0, 0], (x * kernel[:, :, 0]).sum((1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_module(dtype):
    module = DepthwiseConv((7, 7), dtype=dtype)
    x = jnp.ones((2, 7, 7, 5))
    y, variables = module.init_with_output(jax.random.key(0), x)
    assert y.shape == (2, 1, 1, 5)
    assert y.dtype == dtype
    assert variables["params"]["kernel"].dtype == jnp.float32
    gradient = jax.grad(lambda v: jnp.sum(module.apply(v, x).astype(jnp.float32)))(variables)
    np.testing.assert_allclose(gradient["params"]["kernel"], 2.0)


@pytest.mark.parametrize(("platform", "convolves"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_only_accelerators_get_the_convolution(platform, convolves):
    x, kernel = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 1, 4))
    gradient = jax.grad(lambda x, k: jnp.sum(depthwise_conv(x, k, padding=1) ** 2), argnums=(0, 1))
    lowered = jax.jit(gradient).trace(x, kernel).lower(lowering_platforms=(platform,))
    assert ("stablehlo.convolution" in lowered.as_text()) == convolves


def test_pmap_equals_the_whole_batch():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5, 5, 3)), jnp.float32)
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 1, 3)), jnp.float32)

    def gradient(x):
        return jax.grad(lambda k: jnp.sum(jnp.sin(depthwise_conv(x, k, stride=2, padding=1))))(kernel)

    parts = jax.pmap(gradient)(x[:, None])
    np.testing.assert_allclose(parts.sum(0), gradient(x), rtol=1e-4, atol=1e-5)
