"""Rectification of queries and keys: the numbers of the method's specification (checks 6 and 7)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

from jaxface import metrics
from jaxface.errors import UserError
from jaxface.layers import InformationRectification, information_rectification, lsq_codes

X = jnp.array([1.0, 2.0, 3.0, 6.0])
EXPECTED = {
    ("code", 1.0, 0.0): [-1.069043, -0.534522, 0, 1.603565],
    ("code", 2.0, 0.5): [-1.638087, -0.569043, 0.5, 3.707130],
    ("paper", 2.0, 0.5): [-0.400891, -0.133630, 0.133630, 0.935413],
}


@pytest.mark.parametrize(("given", "expected"), EXPECTED.items())
def test_check_6_both_forms(given, expected):
    form, gamma, beta = given
    found = information_rectification(X, gamma, beta, form=form)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_check_6_neither_a_scale_nor_a_shift_is_seen():
    plain = information_rectification(X)
    np.testing.assert_allclose(information_rectification(30 * X - 7), plain, atol=1e-5)


@pytest.mark.parametrize(
    ("bits", "step", "entropies"),
    [(2, 0.9957, (1.812008, 0.053090, 0.384192)), (4, 0.3352, (3.599329, 1.451980, 2.545632))],
)
def test_check_7_entropy_of_codes_and_what_rectification_gives_back(bits, step, entropies):
    """Of N(0, 1), N(1, 0.2²) and N(2, 1), by 200,000 quantiles."""
    normal = ndtri((np.arange(200_000) + 0.5) / 200_000).astype(np.float32)

    def entropy(x):
        return metrics.code_entropy(lsq_codes(x, step, bits=bits))

    given = (normal, 1 + 0.2 * normal, 2 + normal)
    np.testing.assert_allclose([entropy(x) for x in given], entropies, atol=3e-4)
    again = [entropy(information_rectification(jnp.asarray(x))) for x in given[1:]]
    np.testing.assert_allclose(again, entropies[0], atol=3e-4)


def test_every_token_of_every_head_has_the_same_length():
    x = jnp.exp(jnp.linspace(-3, 3, 12))[:, None] * jax.random.normal(jax.random.key(0), (2, 12, 16))
    module = InformationRectification()
    params = module.init(jax.random.key(0), x)["params"]
    assert {name: leaf.shape for name, leaf in params.items()} == {"scale": (16,), "bias": (16,)}
    rectified = module.apply({"params": params}, x)
    assert metrics.norm_spread(x.reshape(-1, 16)) > 1 > 0.01 > metrics.norm_spread(rectified.reshape(-1, 16))


def test_another_form():
    with pytest.raises(UserError, match="form: needs 'code' or 'paper', got 'printed'"):
        information_rectification(X, form="printed")
