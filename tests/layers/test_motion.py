"""Warping and the pyramid of flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.layers.motion import FlowPyramid, enlarged_flow, warp


def test_zero_flow_is_the_identity_and_whole_pixels_shift():
    image = jax.random.uniform(jax.random.key(0), (2, 5, 6, 3))
    np.testing.assert_array_equal(warp(image, jnp.zeros((2, 5, 6, 2))), image)
    right = warp(image, jnp.broadcast_to(jnp.array([1.0, 0.0]), (2, 5, 6, 2)))
    np.testing.assert_allclose(right[:, :, :-1], image[:, :, 1:], atol=1e-6)
    np.testing.assert_allclose(right[:, :, -1], image[:, :, -1], atol=1e-6)  # held to the border
    down = warp(image, jnp.broadcast_to(jnp.array([0.0, -2.0]), (2, 5, 6, 2)))
    np.testing.assert_allclose(down[:, 2:], image[:, :-2], atol=1e-6)
    half = warp(image, jnp.full((2, 5, 6, 2), 0.5))
    np.testing.assert_allclose(
        half[:, 1, 1], (image[:, 1, 1] + image[:, 1, 2] + image[:, 2, 1] + image[:, 2, 2]) / 4, atol=1e-6
    )
    with pytest.raises(ValueError, match=r"flow: needs \[B, H, W, 2\]"):
        warp(image, jnp.zeros((2, 5, 5, 2)))


def test_a_flow_has_a_slope_that_follows_the_image():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None], (1, 8, 8, 1))
    slope = jax.grad(lambda v: warp(ramp, v).sum())(jnp.full((1, 8, 8, 2), 0.25))
    np.testing.assert_allclose(slope[0, :, :-1, 0], 1, atol=1e-6)
    np.testing.assert_allclose(slope[..., 1], 0, atol=1e-6)


def test_a_larger_flow_is_as_much_longer():
    flow = jnp.broadcast_to(jnp.array([1.5, -1.0]), (1, 2, 3, 2))
    np.testing.assert_allclose(
        enlarged_flow(flow), jnp.broadcast_to(jnp.array([3.0, -2.0]), (1, 4, 6, 2)), atol=1e-6
    )


def test_the_published_pyramid_has_as_many_parameters():
    frame = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(FlowPyramid().init, jax.random.key(0), frame, frame)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 960_200
