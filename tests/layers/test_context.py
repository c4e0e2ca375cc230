import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.layers import CONTEXTS, DilatedContext, SSHContext
from jaxface.layers.context import leaky_slope
from jaxface.models.counting import parameter_count


@pytest.mark.parametrize(("kind", "weights"), [("ssh", 34_560), ("dilated", 36_864)])
def test_weights_at_64_features(kind, weights):
    module = CONTEXTS[kind](64)
    x = jax.ShapeDtypeStruct((2, 5, 7, 64), jnp.float32)
    output, variables = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x, train=False), x
    )
    assert output.shape == (2, 5, 7, 64)
    convolutions = {"ssh": 5, "dilated": 3}[kind]
    norms = 2 * (64 + (16 + 16 if convolutions == 5 else 0))
    assert parameter_count(variables) == weights + norms


@pytest.mark.parametrize("module", [SSHContext(8), DilatedContext(8)])
def test_branches_see_three_five_and_seven_pixels(module):
    point = jnp.zeros((1, 11, 11, 4)).at[0, 5, 5].set(1.0)
    variables = module.init(jax.random.key(0), point, train=False)
    apply = jax.jit(lambda x: module.apply(variables, x, train=False))
    seen = np.asarray((apply(point) != 0) | (apply(-point) != 0))[0]
    for channels, radius in ((slice(0, 4), 1), (slice(4, 6), 2), (slice(6, 8), 3)):
        rows, columns = np.nonzero(seen[..., channels].any(axis=-1))
        assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (5 - radius, 5 + radius)
        dense = isinstance(module, SSHContext) or radius == 1
        assert len(rows) == ((2 * radius + 1) ** 2 if dense else 9)


def test_what_no_context_can_be_is_refused():
    x = jnp.zeros((1, 4, 4, 8))
    for module in (SSHContext(6), DilatedContext(2)):
        with pytest.raises(UserError, match="features: needs a multiple of 4"):
            module.init(jax.random.key(0), x, train=False)
    with pytest.raises(UserError, match=r"dilations: need numbers from 1, got \(1, 0, 3\)"):
        DilatedContext(8, dilations=(1, 0, 3)).init(jax.random.key(0), x, train=False)
    with pytest.raises(UserError, match="did you mean 'dilated'"):
        _ = CONTEXTS["dilate"]


def test_rectifiers_leak_up_to_64_features():
    assert leaky_slope(64) == 0.1 and leaky_slope(256) == 0.0
