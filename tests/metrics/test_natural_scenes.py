"""MSCN coefficients, generalized Gaussians, the features of BRISQUE, NIQE and CORNIA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import data, metrics
from jaxface.errors import UserError
from jaxface.metrics.image import codebook, natural_scenes

brisque = jax.jit(metrics.brisque_features, static_argnames=("peak", "standard", "lookup"))
ggd_fit = jax.jit(metrics.ggd_fit, static_argnames="lookup")
aggd_fit = jax.jit(metrics.aggd_fit, static_argnames="lookup")
mscn = jax.jit(metrics.mscn, static_argnames="padding")
EIGHT = jnp.asarray([-3, -1, -0.2, -0.1, 0.1, 0.2, 1, 4], jnp.float32)


@pytest.fixture(scope="module")
def images():
    """[4, 40, 48, 3] in [0, 1]: two drawn images, a flat square in noise, and noise."""
    source = data.textured_leaves(2, side=48, seed=0)
    rng = np.random.default_rng(1)
    drawn = [source[i]["image"][:40] / np.float32(255) for i in range(2)]
    noise = rng.random((2, 40, 48, 3)).astype(np.float32)
    noise[0, 8:32, 8:40] = 0.5
    return jnp.asarray(np.stack([*drawn, *noise]))


def test_the_ratio_of_generalized_gaussians():
    shapes = jnp.asarray([0.2, 0.5, 1, 2, 4, 10], jnp.float32)
    expected = [0.062937, 0.3, 0.5, 2 / np.pi, 0.707107, 0.740535]
    np.testing.assert_allclose(metrics.gaussian_ratio(shapes), expected, atol=1e-6)
    ratios, slopes = natural_scenes._table()
    assert (np.diff(ratios) > 0).all() and len(ratios) == 9801 and (slopes > 0).all()
    np.testing.assert_allclose(ratios[[0, 300, 800, 1800, 3800, -1]], expected, atol=1e-6)


def test_fits_of_eight_numbers():
    alpha, variance = ggd_fit(EIGHT, lookup="nearest")
    np.testing.assert_allclose([alpha, variance], [0.757, 3.3875], atol=1e-6)
    assert float(ggd_fit(EIGHT)[0]) == pytest.approx(0.757, abs=1e-3)
    fit = aggd_fit(EIGHT, lookup="nearest")
    np.testing.assert_allclose(fit, [0.776, 1.585087, 2.064582, 0.666677, 0.868349, 0.315238], atol=3e-6)
    assert float(fit.std_left / fit.std_right) == pytest.approx(0.767752, abs=1e-6)
    np.testing.assert_allclose(aggd_fit(EIGHT), fit, atol=1.5e-3)
    both_ways = (fit.std_right - fit.std_left) * np.sqrt(metrics.gaussian_ratio(fit.alpha))
    assert float(both_ways) == pytest.approx(float(fit.eta), abs=1e-5)


def test_large_samples_have_their_shapes():
    normal, laplace = (
        jax.random.normal(jax.random.key(0), (200_000,)),
        jax.random.laplace(jax.random.key(1), (200_000,)),
    )
    for sample, shape in ((normal, 2.0), (laplace, 1.0)):
        assert float(ggd_fit(sample)[0]) == pytest.approx(shape, abs=0.02)
        assert float(aggd_fit(sample).alpha) == pytest.approx(shape, abs=0.02)
        assert abs(float(aggd_fit(sample).eta)) < 0.01


def test_the_shape_has_a_gradient_by_interpolation_and_none_from_the_table():
    slope = jax.jit(jax.grad(lambda x: metrics.ggd_fit(x)[0]))(EIGHT)
    ratio = lambda x: float(jnp.mean(jnp.abs(x)) ** 2 / jnp.mean(x**2))  # noqa: E731
    change = 0.05 * EIGHT.at[0].set(0)  # along which the shape changes by some steps of the table
    difference = float(ggd_fit(EIGHT + change)[0] - ggd_fit(EIGHT - change)[0]) / 2
    assert ratio(EIGHT + change) != ratio(EIGHT) and abs(difference) > 1e-3
    assert float(jnp.vdot(slope, change)) == pytest.approx(difference, rel=0.1)
    assert not jax.jit(jax.grad(lambda x: metrics.ggd_fit(x, lookup="nearest")[0]))(EIGHT).any()


def test_a_side_without_values_is_no_division_by_zero():
    both = jax.jit(jax.value_and_grad(lambda v: sum(jnp.sum(p) for p in metrics.aggd_fit(v))))
    for x in (np.abs(EIGHT), -np.abs(EIGHT), np.eye(8, dtype=np.float32)[0], np.zeros(8, np.float32)):
        fit, slope = both(x)
        assert np.isfinite(fit) and np.isfinite(slope).all()


def test_mscn_by_hand():
    plane = np.random.default_rng(0).uniform(0, 255, (9, 8))
    window = np.outer(*[metrics.image.filters.gaussian_window(7, 7 / 6)] * 2)
    for padding, mode in (("zero", "constant"), ("edge", "edge")):
        cut = np.lib.stride_tricks.sliding_window_view(np.pad(plane, 3, mode=mode), (7, 7))
        mean, square = (cut * window).sum((-2, -1)), (cut**2 * window).sum((-2, -1))
        expected = (plane - mean) / (np.sqrt(np.abs(square - mean**2)) + 1)
        found = mscn(jnp.asarray(plane, jnp.float32), padding=padding)
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_brisque_features_and_their_gradients(images):
    weights = jnp.asarray(np.random.default_rng(2).normal(size=36), jnp.float32)

    def one(image):
        features = metrics.brisque_features(image)
        return features @ weights, features

    both = jax.jit(jax.vmap(jax.value_and_grad(one, has_aux=True)))
    (values, features), slopes = both(images)
    assert features.shape == (4, 36) and np.isfinite(features).all() and np.isfinite(slopes).all()
    assert (np.abs(slopes).max(axis=(1, 2, 3)) > 0).all()
    # Of noise the coefficients are Gaussian, and those of drawn images are not.
    assert abs(float(features[3, 0]) - 2) > 0.3 and float(features[3, 0]) > float(features[0, 0])
    direction = np.random.default_rng(3).standard_normal(images[0].shape).astype(np.float32)
    step = 3e-4
    (moved, _), _ = both(jnp.stack([images[3] + step * direction, images[3] - step * direction] * 2))
    assert float(np.vdot(slopes[3], direction)) == pytest.approx(
        float(moved[0] - moved[1]) / (2 * step), rel=0.1
    )


@pytest.mark.slow
def test_many_images_have_the_features_of_each(images):
    each = jax.jit(jax.vmap(metrics.brisque_features))(images)
    np.testing.assert_allclose(brisque(images), each, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_the_first_features_are_those_of_mscn(images):
    @jax.jit
    def both(image):
        plane = metrics.luma(image)
        coefficients, half = metrics.mscn(plane), metrics.mscn(metrics.halve(plane))
        products = coefficients * jnp.roll(coefficients, 1, axis=1)
        fit = metrics.aggd_fit(products.reshape(-1), lookup="nearest")
        scales = [metrics.ggd_fit(x.reshape(-1), lookup="nearest") for x in (coefficients, half)]
        expected = [*scales[0], fit.alpha, fit.eta, fit.std_left**2, fit.std_right**2, *scales[1]]
        return metrics.brisque_features(image, peak=255.0, lookup="nearest"), jnp.stack(expected)

    features, expected = both(255 * images[0])
    np.testing.assert_allclose(features[np.array([0, 1, 2, 3, 4, 5, 18, 19])], expected, rtol=1e-4, atol=1e-5)


# NIQE.


def test_the_distance_of_niqe_by_hand():
    first = metrics.NiqeModel(jnp.zeros(2), jnp.diag(jnp.asarray([1.0, 4.0])))
    second = metrics.NiqeModel(jnp.asarray([1.0, 2.0]), jnp.diag(jnp.asarray([3.0, 4.0])))
    distance = jax.jit(natural_scenes.gaussian_distance)
    assert float(distance(first, second)) == pytest.approx(1.224745, abs=1e-6)
    assert float(distance(first, first)) == pytest.approx(0, abs=2e-6)


@pytest.mark.slow
def test_niqe_tells_noise_from_good_images():
    source = data.textured_leaves(9, side=64, seed=0)
    good = [source[i]["image"] / np.float32(255) for i in range(9)]
    model = metrics.fit_niqe(good[:8], block=16)
    assert model.mean.shape == (36,) and np.linalg.eigvalsh(model.covariance).min() > -1e-3
    score = jax.jit(jax.value_and_grad(lambda x: metrics.niqe(x, model, block=16)))
    noisy = jnp.clip(good[8] + 0.2 * jax.random.normal(jax.random.key(0), good[8].shape), 0, 1)
    (clean, slope), (bad, steep) = score(jnp.asarray(good[8])), score(noisy)
    assert float(bad) > float(clean) > 0
    assert jnp.isfinite(slope).all() and jnp.isfinite(steep).all() and jnp.abs(steep).max() > 0


@pytest.mark.slow
def test_blocks_and_sharpness_of_niqe():
    image = np.zeros((70, 40, 3), np.float32)
    image[:, 16:32] = np.random.default_rng(0).random((70, 16, 3))

    @jax.jit
    def both(image):
        plane = metrics.luma(image[:64, :32], standard="ycbcr") * 255
        half = metrics.mscn(metrics.halve(plane, antialias=True), padding="edge")[8:16, 8:16]
        blocks = [metrics.mscn(plane, padding="edge")[16:32, 16:32], half]  # the second in the second row
        expected = []
        for block in blocks:
            fits = [metrics.aggd_fit(x.reshape(-1)) for x in (block, block * jnp.roll(block, 1, axis=1))]
            expected += [fits[0].alpha, (fits[0].beta_left + fits[0].beta_right) / 2]
            expected += [fits[1].alpha, fits[1].eta, fits[1].beta_left, fits[1].beta_right]
        return *metrics.niqe_features(image, block=16), jnp.stack(expected)

    features, sharpness, expected = both(image)
    assert (
        features.shape == (8, 36) and np.isfinite(features).all()
    )  # 4 x 2 blocks of 16, flat ones among them
    assert (sharpness.reshape(4, 2)[:, 0] < sharpness.reshape(4, 2)[:, 1]).all()
    np.testing.assert_allclose(features[3, np.r_[:6, 18:24]], expected, rtol=1e-3, atol=1e-4)


# CORNIA.


@pytest.fixture(scope="module")
def book(images):
    return metrics.fit_codebook(images, words=12, patches=60, seed=0)


def test_words_of_patches(images, book):
    np.testing.assert_allclose(np.linalg.norm(book.words, axis=0), 1, atol=1e-5)

    def total(image):
        features = metrics.cornia_features(image, book)
        return features.sum(), features

    (_, features), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(images)
    assert features.shape == (4, 24) and (features >= 0).all()
    assert np.isfinite(slope).all() and (np.abs(slope).max(axis=(1, 2, 3)) > 0).all()


@pytest.mark.slow
def test_places_are_drawn_by_a_key(images, book):
    every = metrics.cornia_features(images, book)
    drawn = jax.jit(lambda key: metrics.cornia_features(images, book, key=key, patches=50))
    some, other = drawn(jax.random.key(0)), drawn(jax.random.key(1))
    assert (some <= every + 1e-4).all() and (some != other).any()


def test_a_patch_and_its_answers_by_hand():
    plane = np.random.default_rng(0).uniform(0, 1, (7, 7))
    patch = 255 * plane.reshape(-1)
    normalized = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 10)
    mean, whitening = np.full(49, 0.01), np.diag(np.linspace(1, 2, 49))
    words = np.random.default_rng(1).normal(size=(49, 2))
    book = codebook.Codebook(*(jnp.asarray(x, jnp.float32) for x in (mean, whitening, words)))
    answers = (normalized - mean) @ whitening @ words
    found = jax.jit(metrics.cornia_features)(jnp.asarray(plane[..., None], jnp.float32), book)
    np.testing.assert_allclose(
        found, np.concatenate([np.maximum(answers, 0), np.maximum(-answers, 0)]), rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
def test_whitened_patches_are_white(images):
    book = metrics.fit_codebook(images[2:], words=4, patches=2000, seed=0)
    place = jnp.arange(34 * 42)
    rows = jax.jit(lambda image: codebook._patches(metrics.luma(image) * 255, place // 42, place % 42))(
        images[3]
    )
    white = (np.asarray(rows) - book.mean) @ np.asarray(book.whitening)
    values = np.linalg.eigvalsh(np.cov(white, rowvar=False))
    assert values[1] > 0.3 and values[-1] < 3  # the mean of a patch is taken off: one direction is empty


def flat(side):
    return jnp.full((side, side, 3), 0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.brisque_features(flat(24)), "image: needs pixels that vary, got a constant one"),
        (lambda: metrics.brisque_features(flat(13)), "image: BRISQUE needs sides of at least 14 pixels, got 13x13"),
        (lambda: metrics.aggd_fit(jnp.zeros(9)), "x: needs values that vary, got a constant one"),
        (lambda: metrics.ggd_fit(jnp.ones((2, 9))), "x: needs values that vary"),
        (lambda: metrics.ggd_fit(EIGHT, lookup="linear"), "lookup: needs interpolate or nearest, got 'linear'"),
        (lambda: metrics.mscn(jnp.zeros((6, 9))), "plane: MSCN needs sides of at least 7 pixels, got 9x6"),
        (lambda: metrics.mscn(jnp.zeros((9, 9)), padding="valid"), "padding: needs zero or edge"),
        (lambda: metrics.niqe_features(flat(100)), "image: NIQE needs at least two blocks of 96x96 pixels, got 100x100"),
        (lambda: metrics.niqe_features(flat(64), block=15), "block: needs an even number from 16"),
        (lambda: metrics.fit_niqe([]), "images: needs at least two sharp blocks, got 0"),
        (lambda: metrics.cornia_features(flat(6), None), "image: CORNIA needs sides of at least 7 pixels"),
        (lambda: metrics.fit_codebook([flat(9)], words=50, patches=3), "images: needs at least 50 patches .* got 3"),
        (lambda: metrics.fit_codebook([flat(9)], words=0), "words: needs an integer from 1, got 0"),
    ],
)  # fmt: skip
def test_images_that_have_no_statistics(call, words):
    with pytest.raises(UserError, match=words) as refused:
        call()
    assert "\n" not in str(refused.value)
