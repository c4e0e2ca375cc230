"""The VQ-GAN: its size against arithmetic, its parts against each other, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vqgan import random_variables

from jaxface import models
from jaxface.errors import UserError
from jaxface.models.generative.vqgan import VQGAN, PatchDiscriminator, VQEncoder

TINY = VQGAN(
    colors=1,
    codes=6,
    features=2,
    latent=4,
    channels=4,
    multipliers=(1, 2),
    blocks=1,
    attention=(1,),
    groups=2,
)


def conv(inputs, outputs, side=3):
    return side * side * inputs * outputs + outputs


def residual(inputs, outputs):
    shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
    return 2 * inputs + conv(inputs, outputs) + 2 * outputs + conv(outputs, outputs) + shortcut


def attention(width):
    return 2 * width + 4 * conv(width, width, 1)


def middle(width):
    return 2 * residual(width, width) + attention(width)


def test_the_size_of_the_model_for_imagenet():
    """Channels 128 times (1, 1, 2, 2, 4), two blocks a level, attention on the last; 256 latents; 1024 codes of 256."""
    widths = [128, 128, 256, 256, 512]
    before = [128, 128, 128, 256, 256]
    encoder = conv(3, 128) + middle(512) + 2 * 512 + conv(512, 256)
    for level, (inputs, width) in enumerate(zip(before, widths, strict=True)):
        encoder += residual(inputs, width) + residual(width, width)
        encoder += conv(width, width) if level < 4 else 2 * attention(512)
    decoder = conv(256, 512) + middle(512) + 2 * 128 + conv(128, 3)
    for inputs, width in zip([512, 512, 256, 256, 128], reversed(widths), strict=True):
        decoder += residual(inputs, width) + 2 * residual(width, width)
    decoder += 3 * attention(512) + sum(conv(width, width) for width in widths[1:])
    expected = encoder + decoder + 2 * conv(256, 256, 1) + 1024 * 256

    model = VQGAN()
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    (made, codes), variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), image)
    assert models.parameter_count(variables) == expected == 72_141_699
    assert made.shape == image.shape and codes.index.shape == (1, 16, 16) and model.stride == 16


def test_the_size_of_the_discriminator():
    """Three halvings from 64 channels, biases at the ends alone, a logit for each of 30 x 30 patches."""
    expected = conv(3, 64, 4) + sum(16 * c * 2 * c + 4 * c for c in (64, 128, 256)) + conv(512, 1, 4)
    model = PatchDiscriminator()
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    logits, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), image)
    assert models.parameter_count(variables) == expected == 2_765_633 and logits.shape == (1, 30, 30)


@pytest.fixture(scope="module")
def tiny():
    images = jax.random.uniform(jax.random.key(1), (3, 8, 12, 1), minval=-1)
    return images, random_variables(TINY, images)


def test_its_steps_are_the_whole(tiny):
    images, variables = tiny

    @jax.jit
    def both(variables, images):
        made, quantized = TINY.apply(variables, images)
        latents = TINY.apply(variables, images, method="encode")
        again = TINY.apply(variables, latents, method="quantize")
        features = TINY.apply(variables, again.codes, method="features_of")
        return made, quantized.index, TINY.apply(variables, features, method="output"), again.index

    made, index, by_steps, again = both(variables, images)
    np.testing.assert_allclose(made, by_steps, atol=1e-6)
    np.testing.assert_array_equal(index, again)
    assert made.shape == images.shape and index.shape == (3, 4, 6)


def test_sides_and_groups_that_do_not_fit_are_refused(tiny):
    images, variables = tiny
    with pytest.raises(UserError, match="multiples of its stride, 2, got 7x12"):
        TINY.apply(variables, images[:, :7])
    with pytest.raises(UserError, match="groups: needs a number that divides the 4 channels"):
        jax.eval_shape(
            VQEncoder(channels=4, multipliers=(1,), attention=(), groups=3).init, jax.random.key(0), images
        )
