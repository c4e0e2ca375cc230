import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import data
from jaxface.data.transforms import corruption
from jaxface.errors import UserError

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(-1, 1, (6, 24, 20, 3)), jnp.float32)
DEPTH = jnp.asarray(np.repeat(RNG.uniform(-0.5, 0.5, (6, 24, 20, 1)), 3, -1), jnp.float32).at[:, :6].set(-1.0)


def test_each_photograph_is_dark_by_a_factor_of_its_own():
    dark = corruption.darken(KEY, IMAGES, factor=(0.05, 0.25))
    ratio = np.asarray((dark + 1) / (IMAGES + 1))
    per_image = ratio.reshape(6, -1)
    np.testing.assert_allclose(per_image, np.broadcast_to(per_image[:, :1], per_image.shape), rtol=1e-2)
    light = per_image.mean(axis=1) ** 2.2
    assert (light > 0.045).all() and (light < 0.27).all() and len(np.unique(light)) == 6


def test_noise_has_the_deviation_asked_for():
    gray = jnp.zeros((4, 64, 64, 3))
    noisy = corruption.add_noise(KEY, gray, deviation=(0.05, 0.05))
    np.testing.assert_allclose(np.asarray(noisy).std(axis=(1, 2, 3)), 0.1, rtol=0.05)
    z = corruption.depth_noise(KEY, gray, deviation=(12.0, 12.0))
    np.testing.assert_allclose(np.asarray(z).std(axis=(1, 2, 3)), 12 * 2 / 120, rtol=0.05)
    assert (z[..., :1] == z).all()


def test_depth_that_is_not_there_stays_so_and_readings_stay_readings():
    noisy = np.asarray(corruption.depth_noise(KEY, DEPTH, deviation=(60.0, 60.0)))
    assert (noisy[:, :6] == -1).all() and (noisy[:, 6:] > -1).all() and (noisy <= 1).all()
    holes = np.asarray(corruption.depth_holes(KEY, DEPTH, fraction=(0.4, 0.4)))
    gone = (holes == -1)[:, 6:]
    assert 0.3 < gone.mean() < 0.5 and (gone[..., :1] == gone).all()
    np.testing.assert_array_equal(holes[:, 6:][~gone], np.asarray(DEPTH)[:, 6:][~gone])
    filled = np.asarray(corruption.fill_holes(jnp.asarray(holes)))
    assert (filled >= holes).all() and (filled == -1)[:, 7:-1, 1:-1].mean() < 0.01


def test_what_covers_the_lower_face_covers_both():
    images, depth = corruption.cover_below(KEY, IMAGES, DEPTH, fraction=(0.5, 0.5))
    np.testing.assert_array_equal(images[:, :12], IMAGES[:, :12])
    np.testing.assert_array_equal(depth[:, :12], DEPTH[:, :12])
    for covered in (np.asarray(images), np.asarray(depth)):
        assert (np.ptp(covered[:, 12:], axis=(1, 2, 3)) == 0).all()
    assert len(np.unique(images[:, 12, 0, 0])) == 6 and (depth[:, 12:] >= 0).all()


def test_kinds():
    names = corruption.RGBD_CORRUPTIONS
    kinds = jnp.array([names.index(k) for k in (*names, "none")])
    images, depth = data.corrupt_rgbd(KEY, IMAGES, DEPTH, kinds)
    changed = {
        name: (bool((images[i] != IMAGES[i]).any()), bool((depth[i] != DEPTH[i]).any()))
        for i, name in enumerate(names)
    }
    assert changed == {
        "none": (False, False), "rgb": (True, False), "depth": (False, True), "both": (True, True), "occluded": (True, True)
    }  # fmt: skip
    assert (images[5] == IMAGES[5]).all() and (depth[5] == DEPTH[5]).all()
    np.testing.assert_array_equal(images[4, :8], IMAGES[4, :8])  # above what covers it
    assert all(np.isfinite(x).all() and (np.abs(x) <= 1).all() for x in (images, depth))


def test_uniform_noise_mixed_in():
    strength = data.RgbdCorruption.mixed((0.7, 0.7))
    kinds = jnp.full(6, corruption.RGBD_CORRUPTIONS.index("rgb"))
    images, depth = data.corrupt_rgbd(KEY, IMAGES, DEPTH, kinds, strength=strength)
    rest = np.asarray(images - 0.3 * IMAGES)
    assert np.abs(rest).max() <= 0.7 + 1e-6 and rest.std() == pytest.approx(0.7 / np.sqrt(3), rel=0.05)
    np.testing.assert_array_equal(depth, DEPTH)


@pytest.mark.parametrize("change", ["corrupt", "augment"])
def test_an_image_does_not_depend_on_its_batch(change):
    keys = jax.random.split(KEY, 6)
    kinds = jnp.array([0, 1, 2, 3, 4, 3])

    def run(rows):
        if change == "augment":
            return (data.augment_depth(keys[rows], DEPTH[rows]),)
        return data.corrupt_rgbd(keys[rows], IMAGES[rows], DEPTH[rows], kinds[rows])

    whole, parts = run(np.arange(6)), [run(np.arange(i, i + 3)) for i in (0, 3)]
    for together, *apart in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(together, jnp.concatenate(apart), atol=1e-6)
    one = [np.asarray(x) for x in run(np.arange(6))]
    assert all((np.asarray(a) == b).all() for a, b in zip(whole, one, strict=True))


def test_changes_of_depth_to_learn_from():
    many = jnp.tile(DEPTH[:1], (64, 1, 1, 1))
    changed = np.asarray(data.augment_depth(KEY, many))
    same = (changed == np.asarray(many)).all(axis=(1, 2, 3))
    assert 0 < same.sum() < 20  # about 1 in 11 has no change at all
    assert (np.abs(changed) <= 1).all()
    np.testing.assert_array_equal(data.augment_depth(KEY, many, probability=0.0), many)


def test_refusals():
    with pytest.raises(UserError, match=r"dark: needs 0 <= least <= greatest <= 1, got 0\.5 and 0\.2"):
        data.RgbdCorruption(dark=(0.5, 0.2))
    with pytest.raises(UserError, match="blur: needs"):
        data.RgbdCorruption(blur=(0.0, 9.0))
    with pytest.raises(ValueError, match="images, depth, kinds"):
        data.corrupt_rgbd(KEY, IMAGES, DEPTH[:, :5], jnp.zeros(6, int))
    with pytest.raises(ValueError, match="rng: needs one key, or one for each of the 6"):
        corruption.darken(jax.random.split(KEY, 5), IMAGES)
    with pytest.raises(ValueError, match="images: needs shape"):
        corruption.darken(KEY, IMAGES[0])
