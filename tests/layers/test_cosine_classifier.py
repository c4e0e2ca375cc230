"""A classifier of directions."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import models
from jaxface.layers.cosine_classifier import CosineClassifier, CosineNetwork


def test_scaled_cosines_and_a_bias():
    layer = CosineClassifier(3, scale=16.0)
    x = jax.random.normal(jax.random.key(0), (4, 5))
    variables = layer.init(jax.random.key(1), x)
    weights = variables["params"]["prototypes"]
    assert weights.shape == (3, 5) and not variables["params"]["bias"].any()
    bound = np.sqrt(6 / 5)  # He, uniform, over 5 inputs
    assert np.abs(weights).max() <= bound and np.abs(weights).max() > 0.6 * bound
    bias = jnp.array([1.0, 2.0, 3.0])
    scores = layer.apply({"params": {"prototypes": weights, "bias": bias}}, x)
    unit = np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)
    others = np.asarray(weights) / np.linalg.norm(weights, axis=1, keepdims=True)
    np.testing.assert_allclose(scores, 16 * unit @ others.T + np.asarray(bias), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        layer.apply({"params": {"prototypes": 9 * weights, "bias": bias}}, 0.1 * x), scores, atol=1e-4
    )


def test_behind_a_network():
    network = CosineNetwork(models.create("mlp_8", embedding=None), embedding=3, scale=1.0, use_bias=False)
    scores, variables = network.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 1)))
    assert scores.shape == (2, 3) and np.abs(scores).max() <= 1 + 1e-6
    assert set(variables["params"]["classifier"]) == {"prototypes"}
