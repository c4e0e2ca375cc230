"""A generator so small that nothing needs to be compiled to make its weights."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.models.generative.vqgan import VQGAN

TINY = VQGAN(
    colors=1,
    codes=6,
    features=2,
    latent=4,
    channels=4,
    multipliers=(1, 2),
    blocks=0,
    middle=False,
    attention=(),
    groups=2,
)


def random_variables(model, image):
    """The variables of a network, drawn by NumPy."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), image)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.4), leaf.dtype), shapes)


def tiny_generator():
    """(model, parameters)."""
    return TINY, random_variables(TINY, np.zeros((1, 8, 8, 1), np.float32))["params"]
