import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxface import data
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError

RNG = np.random.default_rng(0)


def textured(batch: int, side: int, channels: int = 3) -> np.ndarray:
    """Smooth blobs and fine noise, the whole range of a pixel."""
    rough = RNG.integers(0, 256, (batch, side, side, channels), np.uint8)
    smooth = np.stack([data.resize_twice(image, max(side // 6, 2)) for image in rough])
    return np.clip(smooth.astype(int) * 2 - 128 + rough // 8, 0, 255).astype(np.uint8)


def gray_levels(images) -> np.ndarray:
    return np.asarray(images) * 127.5 + 127.5


@pytest.mark.parametrize(
    ("side", "size", "channels"), [(112, 7, 3), (112, 14, 3), (112, 20, 3), (48, 6, 3), (8, 3, 1), (8, 2, 1)]
)
def test_device_and_pillow_agree_to_a_gray_level(side, size, channels):
    images = textured(4, side, channels)
    expected = np.stack([data.resize_twice(image, size) for image in images]).astype(float)
    found = gray_levels(data.low_resolution(jnp.asarray(images), size))
    assert np.abs(found - np.round(found)).max() < 1e-3  # on 8-bit levels
    assert found.min() >= -1e-3 and found.max() <= 255.001
    # Pillow's fixed-point weights may round a value half-way between two levels to the other one.
    assert np.abs(found - expected).max() <= 1.001
    assert np.abs(found - expected).mean() < 0.01
    assert np.abs(expected - images).mean() > 5  # something was lost
    # Without rounding Pillow's four roundings remain: half a level each, the first ones weakened by the averaging.
    smooth = np.clip(gray_levels(data.low_resolution(jnp.asarray(images), size, round_levels=False)), 0, 255)
    assert 0 < np.abs(smooth - expected).max() < 2.5


def test_the_full_size_is_the_image_itself():
    images = textured(3, 16)
    found, index = data.degrade_resolution(
        jax.random.key(0), jnp.asarray(images), sizes=(16,), probabilities=(1.0,)
    )
    np.testing.assert_allclose(gray_levels(found), images, atol=1e-3)
    np.testing.assert_array_equal(index, 0)
    np.testing.assert_array_equal(data.resize_twice(images[0], 16), images[0])


@pytest.mark.parametrize("size", [1, 2, 7, 14, 28])
def test_a_constant_image_stays(size):
    images = np.full((2, 28, 28, 3), [[[[0, 100, 255]]]], np.uint8)
    np.testing.assert_allclose(gray_levels(data.low_resolution(images, size)), images, atol=1e-3)
    np.testing.assert_array_equal(data.resize_twice(images[0], size), images[0])


def test_every_image_has_its_own_size():
    images = normalize_pixels(jnp.asarray(textured(64, 16)))
    sizes, probabilities = (8, 4, 2), (0.2, 0.3, 0.5)
    found, index = jax.jit(
        lambda key: data.degrade_resolution(key, images, sizes=sizes, probabilities=probabilities)
    )(jax.random.key(1))
    assert index.dtype == jnp.int32 and set(np.asarray(index)) == {0, 1, 2}
    for k, size in enumerate(sizes):
        rows = np.flatnonzero(np.asarray(index) == k)
        np.testing.assert_allclose(found[rows], data.low_resolution(images[rows], size), atol=2e-2)


def test_the_probabilities_are_honored():
    blank = jnp.zeros((10_000, 4, 4, 1))
    for probabilities in ((0.5, 0.3, 0.2), (0.5, 0.0, 0.5)):
        _, index = data.degrade_resolution(
            jax.random.key(2), blank, sizes=(1, 2, 3), probabilities=probabilities
        )
        counts, expected = np.bincount(index, minlength=3), 10_000 * np.array(probabilities)
        np.testing.assert_array_equal(counts[expected == 0], 0)
        some = expected > 0
        assert scipy.stats.chisquare(counts[some], expected[some]).pvalue > 1e-3


def test_mirroring_one_by_one():
    images = jnp.asarray(textured(400, 4, 1))
    found = data.mirror_some(jax.random.key(0), images, 0.3)
    kept = np.all(np.asarray(found == images), axis=(1, 2, 3))
    mirrored = np.all(np.asarray(found == images[:, :, ::-1]), axis=(1, 2, 3))
    assert (kept | mirrored).all() and 90 <= (mirrored & ~kept).sum() <= 150
    np.testing.assert_array_equal(data.mirror_some(jax.random.key(1), images, 0.0), images)
    np.testing.assert_array_equal(data.mirror_some(jax.random.key(1), images, 1.0), images[:, :, ::-1])


def test_a_source_at_low_resolution():
    source = data.ArraySource(textured(5, 12), np.arange(5) % 2, ["a", "b"])
    small = data.LowResolution(source, 3)
    assert isinstance(small, data.Source) and not hasattr(small, "pairs")
    assert len(small) == 5 and small.image_shape == (12, 12, 3) and small.class_names == ["a", "b"]
    np.testing.assert_array_equal(small.labels, source.labels)
    np.testing.assert_array_equal(small[3]["image"], data.resize_twice(source[3]["image"], 3))
    assert small[3]["label"] == source[3]["label"]
    source.pairs = "official"
    assert data.LowResolution(source, 3).pairs == "official"


@pytest.mark.parametrize(
    ("sizes", "probabilities", "words"),
    [
        ((0, 2), (0.5, 0.5), "size: needs sides from 1 to 8, got 0"),
        ((9,), (1.0,), "size: needs sides from 1 to 8, got 9"),
        ((), (), "sizes: needs at least one, got none"),
        ((2, 4), (0.5, 0.4), "probabilities: needs values from 0 that sum to 1"),
        ((2, 4), (-0.5, 1.5), "probabilities: needs values from 0 that sum to 1"),
        ((2, 4), (float("nan"), 1.0), "probabilities: needs values from 0 that sum to 1"),
        ((2, 4), (1.0,), "probabilities: needs one for each of the 2 sizes, got 1"),
    ],
)
def test_refusals_in_one_line(sizes, probabilities, words):
    with pytest.raises(UserError, match=words) as caught:
        data.degrade_resolution(
            jax.random.key(0), jnp.zeros((2, 8, 8, 3)), sizes=sizes, probabilities=probabilities
        )
    assert "\n" not in str(caught.value)


def test_other_refusals():
    with pytest.raises(ValueError, match="images: needs shape"):
        data.low_resolution(jnp.zeros((8, 8, 3)), 4)
    flat = data.ArraySource(np.zeros((2, 1, 9, 1), np.uint8), np.zeros(2, int), ["a"])
    with pytest.raises(UserError, match=r"^data: low resolutions need square images, got 1x9$"):
        data.LowResolution(flat, 1)
