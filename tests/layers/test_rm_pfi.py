import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.layers import FeatureAdapter


def test_one_linear_map_for_all_places_and_levels():
    adapter = FeatureAdapter(features=3)
    level = jax.random.normal(jax.random.key(0), (2, 4, 5, 2))
    variables = adapter.init(jax.random.key(1), level)
    linear = variables["params"]["linear"]
    assert {name: leaf.shape for name, leaf in linear.items()} == {"kernel": (2, 3), "bias": (3,)}
    for maps in (level, level[:, :2, :1]):
        np.testing.assert_allclose(
            adapter.apply(variables, maps), maps @ linear["kernel"] + linear["bias"], atol=1e-6
        )


def test_no_feature_is_refused():
    with pytest.raises(UserError, match="features: needs an integer from 1, got 0"):
        FeatureAdapter(features=0).init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
