import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models

SMALL = {
    "attended_resnet": {"channels": (4, 8), "blocks": 1, "pool_after": (0, 1)},
    "attended_mlp": {"hidden": (8,)},
}


def made(name):
    model = models.create(name, embedding=6, **SMALL[name])
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    return model, model.init(jax.random.key(1), images, train=False), images


def test_the_published_network_has_1_40_million_parameters():
    """Stem 588 + 100 + 42, blocks of each width, head 170 x 100."""

    def conv(before, after, size=9):
        return before * after * size + after

    def block(before, after):
        count = conv(before, after) + conv(after, after) + 4 * after
        return count + (conv(before, after) + 2 * after if before != after else 0)

    widths = [21, 21, 21, 42, 42, 85, 85, 170, 170]
    expected = conv(3, 21) + 2 * 49 + 2 + 42 + 170 * 100
    expected += sum(block(a, b) for a, b in itertools.pairwise(widths))
    model = models.create("attended_resnet", embedding=100)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    assert models.parameter_count(variables) == expected
    assert round(expected / 1e6, 2) == 1.40


def test_the_published_perceptron():
    model = models.create("attended_mlp", embedding=10, hidden=(400, 400))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False))
    expected = (9 * 3 + 3) + 2 * 49 + (784 * 400 + 400) + (400 * 400 + 400) + 400 * 10
    assert models.parameter_count(variables) == expected


@pytest.mark.parametrize("name", SMALL)
def test_rows_that_do_not_count_change_nothing_for_the_others(name):
    model, variables, images = made(name)
    rows = jnp.array([True, True, False, True])
    other = images.at[2].set(50.0)
    mutable = [*variables.keys() - {"params"}]
    (first, looked), stats = model.apply(
        variables, images, train=True, where=rows, attention=True, mutable=mutable
    )
    (second, _), other_stats = model.apply(
        variables, other, train=True, where=rows, attention=True, mutable=mutable
    )
    np.testing.assert_allclose(first[rows], second[rows], atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), dict(stats), dict(other_stats))
    assert looked.shape == (4, 8, 8, 1) and looked.min() > 0 and looked.max() < 1
    plain = model.apply(variables, images, train=False)
    np.testing.assert_allclose(plain, model.apply(variables, images, train=False, attention=True)[0])
    assert plain.shape == (4, 6) and np.asarray(plain).std() > 0


def test_the_plane_is_halved_where_it_is_said():
    model, _, images = made("attended_resnet")
    shapes = models.layer_shapes(model, images.shape[1:])
    assert shapes["stage1_block1"][:2] == (4, 4) and shapes["stage2_block1"] == (2, 2, 8)
