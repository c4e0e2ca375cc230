"""SSIM, MS-SSIM on few scales, the largest change, LPIPS and DISTS against numbers by hand and recomputed ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import metrics
from jaxface.metrics.image import filters, perceptual

RNG = np.random.default_rng(0)
PAIR = tuple(jnp.asarray(RNG.random((20, 24, 3)), jnp.float32) for _ in range(2))


def constant(value, side=16):
    return jnp.full((side, side, 3), value, jnp.float32)


def test_ssim_of_constant_images():
    for color in ("gray", "channels"):
        value = metrics.ssim(constant(0.2), constant(0.5), color=color)
        assert float(value) == pytest.approx(
            0.2001 / 0.2901, abs=1e-4 if color == "gray" else 2e-6
        )  # luma is 0.9999
    assert pytest.approx(0.689762, abs=1e-6) == 0.2001 / 0.2901
    of_255 = metrics.ssim(constant(51.0), constant(127.5), color="channels", peak=255.0)
    assert float(of_255) == pytest.approx(0.689762, abs=1e-5)
    five = metrics.ms_ssim(constant(0.2, 176)[None], constant(0.5, 176)[None])
    assert float(five[0]) == pytest.approx(0.689762**0.1333, abs=1e-5) == 0.951697


def test_windows_are_the_published_ones():
    assert filters.gaussian_window(11, 1.5)[5] ** 2 == pytest.approx(0.0707622, abs=1e-7)
    assert filters.gaussian_window(7, 7 / 6)[3] ** 2 == pytest.approx(0.1173964, abs=1e-7)


def by_hand(a, b, padding):
    """SSIM of two planes by sums over every window, in float64."""
    window = np.outer(filters.gaussian_window(11, 1.5), filters.gaussian_window(11, 1.5))
    if padding != "valid":
        a, b = (np.pad(x, 5, mode="edge" if padding == "edge" else "constant") for x in (a, b))
    mean = lambda x: (np.lib.stride_tricks.sliding_window_view(x, (11, 11)) * window).sum((-2, -1))  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    return np.mean((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))


@pytest.mark.parametrize("padding", ["valid", "edge", "zero"])
def test_ssim_is_the_sum_over_windows(padding):
    a, b = (np.asarray(metrics.luma(x), np.float64) for x in PAIR)
    value = metrics.ssim(*PAIR, padding=padding)
    assert float(value) == pytest.approx(by_hand(a, b, padding), abs=2e-6)
    channels = [by_hand(*(np.asarray(x[..., c], np.float64) for x in PAIR), padding) for c in range(3)]
    assert float(metrics.ssim(*PAIR, color="channels", padding=padding)) == pytest.approx(
        np.mean(channels), abs=2e-6
    )


def test_ssim_is_symmetric_one_at_itself_and_clamped_where_asked():
    a, b = PAIR
    assert float(metrics.ssim(a, a)) == pytest.approx(1, abs=1e-6)
    assert float(metrics.ssim(a, b)) == pytest.approx(float(metrics.ssim(b, a)), abs=1e-6)
    negative = metrics.ssim(a, 1 - a), metrics.ssim(a, 1 - a, clamp=True)
    assert float(negative[0]) < -0.5 < -1e-3 < float(negative[1])
    large = jnp.tile(a, (20, 16, 1))[:390, :384]  # sides that are halved first
    assert float(metrics.ssim(large, 1 - large, shrink=True)) != pytest.approx(
        float(metrics.ssim(large, 1 - large))
    )
    halves = [x[:390, :384].reshape(195, 2, 192, 2, 3).mean((1, 3)) for x in (large, 1 - large)]
    assert float(metrics.ssim(large, 1 - large, shrink=True)) == pytest.approx(
        float(metrics.ssim(*halves)), abs=1e-5
    )


def test_a_gradient_of_ssim_is_zero_at_the_image_and_right_elsewhere():
    a, b = PAIR
    slope = jax.jit(jax.grad(metrics.ssim))
    np.testing.assert_allclose(slope(a, a), 0, atol=2e-7)
    found = slope(b, a)
    direction = jnp.asarray(RNG.standard_normal(a.shape), jnp.float32)
    step = 1e-3
    difference = (metrics.ssim(b + step * direction, a) - metrics.ssim(b - step * direction, a)) / (2 * step)
    assert float(jnp.vdot(found, direction)) == pytest.approx(float(difference), rel=2e-2)


@pytest.mark.parametrize("padding", ["valid", "edge", "zero"])
def test_products_of_matrices_and_shifted_sums_filter_alike(padding):
    plane = jnp.asarray(RNG.random((2, 13, 17)), jnp.float32)
    found = filters.gaussian_filter(plane, taps=7, sigma=7 / 6, padding=padding)
    np.testing.assert_allclose(found, filters._shifted_sums(plane, 7, 7 / 6, padding), atol=1e-6)


def test_half_sizes():
    x = jnp.asarray(RNG.random((11, 14)), jnp.float32)
    assert metrics.halve(x).shape == (5, 7) and metrics.halve(x, antialias=True).shape == (6, 7)
    for antialias in (False, True):
        np.testing.assert_allclose(metrics.halve(jnp.full((9, 12), 0.3), antialias=antialias), 0.3, atol=1e-6)
    np.testing.assert_allclose(metrics.halve(x)[0, [0, -1]], x[0, [0, -1]], atol=1e-6)  # corners on corners
    ramp = jnp.arange(16.0)[None] * jnp.ones((16, 1))
    np.testing.assert_allclose(metrics.halve(ramp, antialias=True)[4, 2:6], [4.5, 6.5, 8.5, 10.5], atol=1e-5)


def test_brightness():
    red = jnp.asarray([1.0, 0, 0]).reshape(1, 1, 3)
    values = [float(metrics.luma(red, standard=s)[0, 0]) for s in ("matlab", "yiq", "ycbcr")]
    np.testing.assert_allclose(values, [0.2989, 0.299, (65.481 + 16) / 255], atol=1e-6)
    assert metrics.luma(jnp.ones((4, 4, 1))).shape == (4, 4)


def test_the_largest_change_is_felt_where_it_is_alone():
    a = jnp.zeros((3, 3, 3))
    b = a.at[1, 2, 0].set(0.5).at[0, 0, 1].set(-0.25)
    assert float(metrics.chebyshev(a, b)) == 0.5
    slope = jax.grad(metrics.chebyshev)(b, a)
    assert float(slope[1, 2, 0]) == 1 and float(jnp.abs(slope).sum()) == 1
    assert metrics.chebyshev(jnp.stack([a, b]), jnp.stack([b, b])).tolist() == [0.5, 0]


def test_fewer_scales_for_small_images():
    a, b = (jnp.asarray(RNG.random((1, 44, 48, 3)), jnp.float32) for _ in range(2))
    assert float(metrics.ms_ssim(a, a, scales=3)[0]) == pytest.approx(1, abs=1e-5)
    one = metrics.ms_ssim(constant(0.2, 48)[None], constant(0.5, 48)[None], scales=3)
    assert float(one[0]) == pytest.approx(0.689762 ** (0.3001 / (0.0448 + 0.2856 + 0.3001)), abs=1e-5)
    assert float(metrics.ms_ssim(a, b, scales=1)[0]) == pytest.approx(
        float(metrics.ssim(a[0], b[0], color="channels")), abs=1e-5
    )


# LPIPS and DISTS.


@pytest.fixture(scope="module")
def narrow():
    """(LPIPS', DISTS' weights) of a VGG-16 of a sixteenth of the channels, and LPIPS' of such an AlexNet."""
    convolutions, linear = perceptual.random_trunk_weights(jax.random.key(0), 16)
    channels = 3 + sum(len(w) for w in linear)
    weights = jnp.asarray(RNG.random((2, channels)), jnp.float32)
    alex = perceptual.LpipsWeights(*perceptual.random_trunk_weights(jax.random.key(1), 16, trunk="alexnet"))
    return (
        perceptual.LpipsWeights(convolutions, linear),
        perceptual.DistsWeights(convolutions, *weights),
        alex,
    )


def test_one_level_of_lpips_by_hand():
    f, g = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, 2) for v in ((3, 4), (4, 3)))
    assert float(perceptual.lpips_level(f, g, jnp.asarray([1.0, 2.0]))[0]) == pytest.approx(0.12, abs=1e-6)


def test_one_channel_of_dists_by_hand():
    moments = (jnp.float32(v) for v in (0.5, 0.4, 0.04, 0.01, 0.02))
    luminance, structure = perceptual.moments_likeness(*moments)
    assert float(1 - (luminance + structure) / 2) == pytest.approx(0.112193, abs=1e-6)
    f, g = (jnp.asarray(RNG.random((1, 5, 6, 2)), jnp.float32) for _ in range(2))
    of_maps = perceptual.dists_likeness(f, g)
    x, y = np.asarray(f, np.float64)[0, ..., 0], np.asarray(g, np.float64)[0, ..., 0]
    covariance = (x * y).mean() - x.mean() * y.mean()
    expected = (2 * covariance + 1e-6) / (x.var() + y.var() + 1e-6)
    assert float(of_maps[1][0, 0]) == pytest.approx(expected, abs=1e-5)


def test_the_pool_of_dists():
    pooled = perceptual.l2_pool(jnp.full((1, 8, 8, 3), 2.0))
    assert pooled.shape == (1, 4, 4, 3)
    np.testing.assert_allclose([pooled[0, 1, 1, 0], pooled[0, 0, 0, 2]], [2, 1.5], atol=1e-6)


def test_distances_of_networks(narrow):
    """Zero at the image, the batch is the images one by one, and gradients are finite: at black images too."""
    images = jnp.stack([*PAIR, jnp.zeros_like(PAIR[0])])[:, :20, :20]
    start = jnp.roll(images, 1, axis=0)
    for distance, weights in ((metrics.lpips, narrow[0]), (metrics.dists, narrow[1])):
        both = jax.jit(jax.vmap(jax.value_and_grad(lambda x, y, d=distance, w=weights: d(x, y, w))))
        values, slopes = both(images, start)
        assert values.min() > 1e-3 and jnp.isfinite(slopes).all() and jnp.abs(slopes).max() > 0
        at_once = distance(images, start, weights)
        np.testing.assert_allclose(at_once, values, rtol=1e-4, atol=1e-6)
        equal, still = both(images, images)
        np.testing.assert_allclose(equal, 0, atol=2e-6)
        assert jnp.isfinite(still).all()


def test_lpips_on_alexnet(narrow):
    a, b = (jnp.asarray(RNG.random((35, 33, 3)), jnp.float32) for _ in range(2))
    value = jax.jit(metrics.lpips)(a, b, narrow[2])
    assert value.shape == () and float(value) > 1e-3
    assert perceptual._alexnet_levels(narrow[2].convolutions, jnp.zeros((1, 64, 64, 3)))[-1].shape == (
        1,
        3,
        3,
        16,
    )


def small(side):
    return jnp.zeros((side, side, 3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: metrics.ssim(small(8), small(8)), "image: SSIM needs sides of at least 11 pixels, got 8x8"),
        (lambda w: metrics.ssim(small(16), small(17)), r"other: needs \[..., H, W, C\] as the image"),
        (lambda w: metrics.ssim(small(16), small(16), color="red"), "color: needs gray or channels"),
        (lambda w: metrics.ssim(small(16), small(16), padding="wrap"), "padding: needs one of valid, edge, zero"),
        (lambda w: metrics.ssim(small(16), small(16), peak=0.0), "peak: needs a finite number above 0"),
        (lambda w: metrics.luma(small(4), standard="hsv"), "standard: needs one of matlab, yiq, ycbcr"),
        (lambda w: metrics.luma(jnp.zeros((4, 4, 2))), r"image: needs \[..., H, W, 3\]"),
        (lambda w: metrics.gaussian_filter(jnp.zeros((4, 4)), taps=4, sigma=1.0), "taps: needs an odd number"),
        (lambda w: metrics.ms_ssim(small(40)[None], small(40)[None], scales=3), "sides of at least 41 pixels, got 40x40"),
        (lambda w: metrics.ms_ssim(small(40)[None], small(40)[None], scales=6), "scales: needs an integer from 1 to 5"),
        (lambda w: metrics.lpips(small(15), small(15), w[0]), "image: LPIPS needs sides of at least 16 pixels, got 15x15"),
        (lambda w: metrics.lpips(small(30), small(30), w[2]), "image: LPIPS needs sides of at least 31 pixels"),
        (lambda w: metrics.dists(small(15), small(15), w[1]), "image: DISTS needs sides of at least 16 pixels"),
        (lambda w: metrics.dists(small(16), small(16), w[1]._replace(alpha=jnp.ones(3))), "weights: needs alpha and beta of 95"),
        (lambda w: metrics.dists(small(16)[..., :1], small(16)[..., :1], w[1]), "image: needs 3 channels"),
        (lambda w: metrics.lpips(small(16), small(16), w[0]._replace(convolutions=())), "weights: needs 13 or 5 convolutions"),
        (lambda w: perceptual.random_trunk_weights(jax.random.key(0), trunk="vgg19"), "trunk: needs vgg16 or alexnet"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(narrow, call, words):
    with pytest.raises(ValueError, match=words) as refused:
        call(narrow)
    assert "\n" not in str(refused.value)
