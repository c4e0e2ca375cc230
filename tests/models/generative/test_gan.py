import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.models.generative.gan import Discriminator, Generator, doublings


@pytest.mark.parametrize(
    ("side", "times"),
    [(8, 1), (16, 2), (24, 2), (32, 3), (40, 3), (48, 3), (64, 4), (104, 3), (112, 4), (256, 6)],
)
def test_images_grow_from_a_plane_of_at_least_four(side, times):
    assert doublings((side, side, 3)) == times
    assert side >> times >= 4 and side % 2**times == 0


@pytest.mark.parametrize("shape", [(8, 8, 1), (24, 24, 3), (1, 96, 1)])
def test_shapes_and_ranges(shape):
    latents = 3 * jax.random.normal(jax.random.key(0), (5, 12))
    generator, discriminator = Generator(shape, channels=4), Discriminator(shape, channels=4)
    variables = generator.init(jax.random.key(1), latents)
    images = generator.apply(variables, latents)
    assert images.shape == (5, *shape) and images.dtype == jnp.float32
    assert np.abs(images).max() <= 1 and np.asarray(images).std(0).max() > 1e-3
    assert set(variables) == {"params"}  # no statistics of the batch
    np.testing.assert_allclose(generator.apply(variables, latents[2:3]), images[2:3], atol=1e-5)
    judge = discriminator.init(jax.random.key(2), images)
    logits = discriminator.apply(judge, images)
    assert logits.shape == (5,) and logits.dtype == jnp.float32
    np.testing.assert_allclose(discriminator.apply(judge, images[2:3]), logits[2:3], atol=1e-5)
    half = Generator(shape, channels=4, dtype=jnp.bfloat16).apply(variables, latents)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, images, atol=0.2)


@pytest.mark.parametrize("shape", [(25, 25, 3), (12, 12, 3), (16, 24, 3), (4, 4, 1)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(UserError, match=r"^image_size: the generator needs squares of a multiple of 8, got"):
        Generator(shape).init(jax.random.key(0), jnp.ones((1, 4)))
