"""Networks that judge images: their sizes, their pools by hand, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import layers, models
from jaxface.errors import UserError

RNG = np.random.default_rng(0)


def count(name, side, **fields):
    module = models.create(name, **fields)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return models.parameter_count(
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)["params"]
    )


def test_sizes_are_the_published_ones():
    convolutions = (27 * 48 + 48) + 3 * (9 * 48 * 48 + 48)
    assert count("gdn_pyramid", 235, embedding=2) == convolutions + 4 * (48 * 48 + 48) + (672 * 128 + 128) + (
        128 * 2 + 2
    )
    trunk = 21_797_672 - 513 * 1000  # torchvision's ResNet-34 without its classifier
    assert count("bilinear_resnet34", 64, embedding=2) == trunk + 512 * 512 * 2 + 2
    assert count("quality_cnn", 48, embedding=1) == 28 * 16 + 145 * 32 + 289 * 32 + 65


def test_a_pyramid_of_maxima():
    x = jnp.asarray(RNG.random((2, 7, 5, 3)), jnp.float32)
    pooled = layers.SpatialPyramidPool().apply({}, x)
    assert pooled.shape == (2, 14 * 3)
    np.testing.assert_array_equal(pooled[:, :3], x.max((1, 2)))
    np.testing.assert_array_equal(pooled[:, 3:6], x[:, :4, :3].max((1, 2)))  # rows 0…3.5, columns 0…2.5
    np.testing.assert_array_equal(pooled[:, -3:], x[:, 4:, 3:].max((1, 2)))  # from 4.67 and from 3.33
    with pytest.raises(UserError, match="image: needs maps of at least 3 places for the pyramid, got 2x9"):
        layers.SpatialPyramidPool().apply({}, x[:, :9, :2].repeat(2, axis=1)[:, :9])


def test_products_of_channels():
    x = jnp.asarray(RNG.normal(size=(2, 3, 4, 5)), jnp.float32)
    rows = np.asarray(x, np.float64).reshape(2, 12, 5)
    products = np.einsum("bnc,bnd->bcd", rows, rows) / 12
    rooted = (np.sign(products) * np.sqrt(np.abs(products) + 1e-8)).reshape(2, 25)
    pooled = layers.BilinearPool().apply({}, x)
    np.testing.assert_allclose(pooled, rooted / np.linalg.norm(rooted, axis=1, keepdims=True), atol=1e-5)
    slope = jax.jit(jax.grad(lambda x: layers.BilinearPool().apply({}, x)[0, 1]))
    assert jnp.isfinite(slope(x)).all() and jnp.isfinite(slope(jnp.zeros_like(x))).all()


def test_moments_of_flat_maps_have_a_gradient():
    slope = jax.grad(lambda x: layers.moment_pool(x).sum())(jnp.ones((1, 4, 4, 2)))
    assert jnp.isfinite(slope).all()


def test_divisive_normalization_starts_where_it_is_told():
    module = layers.GDN(beta=1e-4, gamma=1.0)
    x = jnp.asarray([[0.01, -3.0]])
    expected = np.asarray(x) / np.sqrt(1e-4 + np.asarray(x) ** 2)
    found, _ = jax.jit(lambda x: module.init_with_output(jax.random.key(0), x))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(UserError, match="beta: needs a finite number from 1e-06, got 0"):
        layers.GDN(beta=0.0).init(jax.random.key(0), x)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("quality_cnn", {"channels": (4, 6, 6)}),
        ("gdn_pyramid", {"channels": (4, 4), "hidden": 5, "levels": (1, 2)}),
        pytest.param("bilinear_resnet34", {"channels": (4, 4), "stages": (1, 1)}, marks=pytest.mark.slow),
    ],
)
def test_an_image_has_a_gradient(name, fields):
    module = models.create(name, embedding=2, **fields)
    images = jnp.asarray(RNG.random((2, 24, 20, 3)), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images[:1])
    variables = jax.tree.map(lambda leaf: RNG.uniform(0.1, 0.5, leaf.shape).astype(np.float32), shapes)
    value = lambda image: module.apply(variables, image[None], train=False)[0, 0]  # noqa: E731
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(value)))(images)
    slopes = np.asarray(slopes)
    assert np.isfinite(values).all() and np.isfinite(slopes).all()
    assert (np.abs(slopes).max((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("name", ["quality_cnn", "gdn_pyramid", "bilinear_resnet34"])
def test_networks_describe_themselves(name):
    module = models.create(name, embedding=2)
    description = models.describe(module)
    assert description["name"] == name and models.from_description(description) == module


def test_images_smaller_than_a_pyramid():
    with pytest.raises(UserError, match="image: the pyramid needs sides of at least 24 pixels, got 40x23"):
        jax.eval_shape(
            models.create("gdn_pyramid", embedding=2).init, jax.random.key(0), jnp.zeros((1, 23, 40, 3))
        )
