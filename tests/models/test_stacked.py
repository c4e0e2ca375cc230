"""Stacked networks are the networks one by one."""

import jax
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError
from jaxface.models.stacked import Stacked

IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))


@pytest.fixture(scope="module")
def pair():
    network = models.ResNet(embedding=3, stages=(1,), channels=(4,), small_images=True)
    stacked = Stacked(network, count=2)
    return network, stacked, stacked.init(jax.random.key(0), IMAGES[:1])


def test_each_has_weights_and_statistics_of_its_own(pair):
    network, stacked, variables = pair
    plain = jax.eval_shape(network.init, jax.random.key(0), IMAGES[:1])
    assert (
        jax.tree.map(lambda x: x["network"], variables, is_leaf=lambda x: "network" in x).keys()
        == plain.keys()
    )
    assert models.parameter_count(variables["params"]) == 2 * models.parameter_count(plain["params"])
    kernel = variables["params"]["network"]["stem_conv"]["kernel"]
    assert (kernel[0] != kernel[1]).any()
    output, updated = stacked.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    assert output.shape == (2, 4, 3) and stacked.embedding == 3
    for k in range(2):
        one = {name: jax.tree.map(lambda x, k=k: x[k], tree["network"]) for name, tree in variables.items()}
        alone, statistics = network.apply(one, IMAGES, train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(output[k], alone, atol=1e-5)
        jax.tree.map(
            lambda stack, x, k=k: np.testing.assert_allclose(stack[k], x, atol=1e-5),
            updated["batch_stats"]["network"],
            statistics["batch_stats"],
        )


def test_no_network_is_refused():
    with pytest.raises(UserError, match="count"):
        Stacked(models.create("mlp_8"), count=0)
