"""The transformer of set predictors: positions and layers against numpy, the Gaussian prior by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.layers import Attention, DecoderLayer, EncoderLayer, GaussianLook, gaussian_prior, sine_positions
from jaxface.layers.detr import padded_places


def test_positions_by_hand():
    """Channel 2c and 2c + 1 of a half of h: sine and cosine of 2π (i + 1) / (n + 1e-6) / 10000^(2c / h)."""
    height, width, dim = 3, 5, 16
    found = sine_positions(height, width, dim)
    for y, x, c in ((0, 0, 0), (2, 4, 1), (1, 3, 3)):
        rate = 10_000 ** (2 * c / (dim / 2))
        for half, index, count in ((0, y, height), (dim // 2, x, width)):
            angle = 2 * np.pi * (index + 1) / (count + 1e-6) / rate
            expected = [np.sin(angle), np.cos(angle)]
            np.testing.assert_allclose(found[y, x, half + 2 * c : half + 2 * c + 2], expected, atol=1e-6)
    with pytest.raises(UserError, match=r"^dim: needs a multiple of 4 for positions, got 6"):
        sine_positions(2, 2, 6)


def test_places_and_positions_of_padded_images():
    mask, places, positions = padded_places(jnp.array([[32, 17], [9, 64], [0, 0]]), (32, 64), (4, 8), 8)
    assert places.tolist() == [[4, 3], [2, 8], [1, 1]]
    for i, (rows, columns) in enumerate(places.tolist()):
        inside = np.zeros((4, 8), bool)
        inside[:rows, :columns] = True
        assert mask[i].reshape(4, 8).tolist() == inside.tolist()
        grid = positions[i].reshape(4, 8, 8)[:rows, :columns]
        np.testing.assert_allclose(grid, sine_positions(rows, columns, 8), atol=1e-5)


def test_the_prior_by_hand():
    centers = jnp.array([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two queries, (x, y)
    scales = jnp.array([[[[2.0, 1.0]], [[1.0, 3.0]]]])
    found = gaussian_prior(centers, scales, (2, 3), smoothing=4.0)
    expected = [[-1, 0, -1, -1.25, -0.25, -1.25], [-2.25, -2.5, -3.25, 0, -0.25, -1]]
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)


def normalized(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def attention(params, query, key, value, heads, prior=0.0):
    def heads_of(x, name):
        y = x @ params[name]["kernel"] + params[name]["bias"]
        return y.reshape(len(y), heads, -1).transpose(1, 0, 2)

    q, k, v = heads_of(query, "query"), heads_of(key, "key"), heads_of(value, "value")
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]) + prior
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(query), -1)
    return mixed @ params["out"]["kernel"] + params["out"]["bias"]


def perceptron(params, x):
    hidden = np.maximum(x @ params["expand"]["kernel"] + params["expand"]["bias"], 0)
    return hidden @ params["project"]["kernel"] + params["project"]["bias"]


def drawn(module, *arguments):
    """Variables of which no leaf is at its start; normalizations stay plain."""
    params = module.init(jax.random.key(0), *arguments)["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        plain = path[-2].key.startswith("norm")
        return leaf if plain else jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, params)


def test_layers_against_numpy():
    rng = np.random.default_rng(1)
    tokens, positions = rng.normal(size=(6, 8)), rng.normal(size=(6, 8))
    objects, places = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    prior = rng.normal(size=(2, 3, 6))

    layer, given = EncoderLayer(2, 12, dropout=0.5), (jnp.asarray(tokens)[None], jnp.asarray(positions))
    params = drawn(layer, *given)
    found = layer.apply({"params": params}, *given)[0]
    p = jax.tree.map(np.asarray, params)
    placed = tokens + positions
    t = normalized(tokens + attention(p["attention"], placed, placed, tokens, 2))
    t = normalized(t + perceptron(p, t))
    np.testing.assert_allclose(found, t, atol=2e-5)

    layer = DecoderLayer(2, 12, dropout=0.5)
    given = (
        jnp.asarray(objects)[None],
        jnp.asarray(places),
        jnp.asarray(t)[None],
        given[1],
        jnp.asarray(prior)[None],
    )
    params = drawn(layer, *given)
    found, attended = layer.apply({"params": params}, *given)
    p = jax.tree.map(np.asarray, params)
    o = objects + attention(p["self"], objects + places, objects + places, objects, 2)
    o = normalized(o)
    looked = attention(p["cross"], o + places, t + positions, t, 2, prior)
    o = normalized(o + looked)
    o = normalized(o + perceptron(p, o))
    np.testing.assert_allclose(attended[0], looked, atol=2e-5)
    np.testing.assert_allclose(found[0], o, atol=2e-5)


def test_smca_looks_around_what_it_finds():
    layer = GaussianLook(2, find=True)
    objects, places = jnp.zeros((1, 3, 8)), jax.random.normal(jax.random.key(1), (3, 8))
    center = jnp.array([[0.0, 2.0], [0.0, 0.0], [-2.0, 0.0]])
    params = layer.init(jax.random.key(0), objects, places, center, (4, 6))["params"]
    still = jax.tree.map(jnp.zeros_like, {name: params[name] for name in ("offset", "center")})
    prior, found = layer.apply({"params": {**params, **still}}, objects, places, center, (4, 6))
    assert prior.shape == (1, 2, 3, 24) and np.all(prior <= 0)
    np.testing.assert_allclose(found[0], center, atol=1e-6)
    assert prior[0, 0, 1].reshape(4, 6).argmax() == 2 * 6 + 3  # the middle of 4 x 6 places


def test_values_need_a_context():
    x = jnp.zeros((1, 2, 4))
    with pytest.raises(ValueError, match=r"^values: need a context"):
        Attention(2).init(jax.random.key(0), x, None, x)
