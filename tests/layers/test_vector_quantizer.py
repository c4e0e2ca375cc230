import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.layers.vector_quantizer import (
    VectorQuantizer,
    code_radius,
    nearest_codes,
    reseed_dead_codes,
    vq_quantize,
)

CODES = jnp.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
Z = jnp.array([[1.0, 0.0], [0.2, 0.9]])


def test_the_nearest_code_and_of_two_the_first():
    distances = jnp.square(Z[:, None] - CODES).sum(-1)
    np.testing.assert_allclose(distances, [[1, 1, 2], [0.85, 0.65, 0.05]], atol=1e-6)
    quantized, index = vq_quantize(Z, CODES)
    assert index.tolist() == [0, 2] and quantized.tolist() == [[0, 0], [0, 1]]


def test_many_codes_are_compared_by_products_about_their_center():
    codes = jax.random.normal(jax.random.key(0), (300, 5)) + 100.0
    z = codes[::3] + 1e-3
    np.testing.assert_array_equal(nearest_codes(z, codes), np.arange(0, 300, 3))
    np.testing.assert_array_equal(nearest_codes(z, codes[:256])[:86], np.arange(0, 256, 3))


def test_the_gradient_goes_straight_through_and_not_to_the_codes():
    gradient = jax.grad(lambda z, codes: vq_quantize(z, codes)[0].sum(), argnums=(0, 1))(Z, CODES)
    np.testing.assert_array_equal(gradient[0], jnp.ones_like(Z))
    np.testing.assert_array_equal(gradient[1], jnp.zeros_like(CODES))


def test_codes_are_their_own_codes():
    z = jax.random.normal(jax.random.key(1), (64, 3))
    codes = jax.random.normal(jax.random.key(2), (300, 3))
    quantized, _ = vq_quantize(z, codes)
    np.testing.assert_array_equal(vq_quantize(quantized, codes)[0], quantized)


def test_the_radius_is_half_of_the_way_to_the_nearest_other_code():
    codes = jnp.array([[0.0, 0.0], [0.0, 4.0], [3.0, 0.0], [3.0, 1.0]])
    np.testing.assert_allclose(code_radius(codes), np.median([3, 4, 1, 1]) / 2)
    with pytest.raises(UserError, match="two codes"):
        code_radius(codes[:1])


def test_dead_codes_become_latents_and_no_two_are_one():
    latents = jnp.array([[0.1, 0.0], [0.9, 1.0]])
    codes = jnp.concatenate([CODES, jnp.full((4, 2), 50.0)])
    seeded, dead = reseed_dead_codes(codes, latents, jax.random.key(0))
    assert dead.tolist() == [False, False, True, True, True, True, True]
    np.testing.assert_array_equal(seeded[:2], codes[:2])
    nearest = jnp.abs(seeded[2:, None] - latents).max(-1).min(1)
    assert float(nearest.max()) < 0.1 and len(np.unique(np.asarray(seeded), axis=0)) == 7
    same, _ = reseed_dead_codes(codes, jnp.ones((3, 2)), jax.random.key(0))  # an encoder that says one thing
    assert len(np.unique(np.asarray(same), axis=0)) == 7


def test_another_width_is_refused():
    layer = VectorQuantizer(codes=4, features=3)
    variables = layer.init(jax.random.key(0), jnp.ones((2, 3)))
    with pytest.raises(UserError, match="vectors of 2 numbers, as the latents have, got 3"):
        layer.apply(variables, jnp.ones((2, 2)))
