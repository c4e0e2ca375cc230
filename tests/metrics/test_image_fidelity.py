"""SSIM, MS-SSIM on few scales, the largest change, LPIPS and DISTS against numbers by hand and recomputed ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import metrics
from jaxface.metrics.image import filters, perceptual

RNG = np.random.default_rng(0)
ssim = jax.jit(metrics.ssim, static_argnames=("peak", "color", "padding", "clamp", "shrink"))
ms_ssim = jax.jit(metrics.ms_ssim, static_argnames=("peak", "scales"))
halve = jax.jit(metrics.halve, static_argnames="antialias")
PAIR = tuple(jnp.asarray(RNG.random((20, 24, 3)), jnp.float32) for _ in range(2))


def constant(value, height=20, width=24):
    return np.full((height, width, 3), value, np.float32)


def test_ssim_of_constant_images():
    gray, channels = (
        float(ssim(constant(0.2), constant(0.5), color=color)) for color in ("gray", "channels")
    )
    assert pytest.approx(0.689762, abs=1e-6) == 0.2001 / 0.2901
    assert channels == pytest.approx(0.689762, abs=2e-6) and gray == pytest.approx(
        0.689762, abs=1e-4
    )  # 0.9999 of it
    five = ms_ssim(constant(0.2, 176, 176)[None], constant(0.5, 176, 176)[None])
    assert float(five[0]) == pytest.approx(0.951697, abs=1e-5)


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
    value = ssim(*PAIR, padding=padding)
    assert float(value) == pytest.approx(by_hand(a, b, padding), abs=2e-6)


def test_channels_are_compared_one_by_one():
    channels = [by_hand(*(np.asarray(x[..., c], np.float64) for x in PAIR), "valid") for c in range(3)]
    assert float(ssim(*PAIR, color="channels")) == pytest.approx(np.mean(channels), abs=2e-6)


def test_ssim_is_symmetric_one_at_itself_and_clamped_where_asked():
    a, b = (np.asarray(x) for x in PAIR)
    assert float(ssim(a, a)) == pytest.approx(1, abs=1e-6)
    assert float(ssim(a, b)) == pytest.approx(float(ssim(b, a)), abs=1e-6) and float(ssim(a, b)) < 1
    assert float(ssim(a, 1 - a)) < -0.5 < -1e-3 < float(ssim(a, 1 - a, clamp=True))


@pytest.mark.slow
def test_large_images_are_halved_first():
    a, b = (RNG.random((384, 390, 1)).astype(np.float32) for _ in range(2))
    halves = [np.float64(x[..., 0]).reshape(192, 2, 195, 2).mean((1, 3)) for x in (a, b)]
    assert float(ssim(a, b, shrink=True)) == pytest.approx(by_hand(*halves, "valid"), abs=1e-5)


def test_a_gradient_of_ssim_is_zero_at_the_image_and_right_elsewhere():
    a, b = PAIR
    slope = jax.jit(jax.grad(metrics.ssim))
    np.testing.assert_allclose(slope(a, a), 0, atol=2e-7)
    found = slope(b, a)
    direction = jnp.asarray(RNG.standard_normal(a.shape), jnp.float32)
    step = 1e-3
    difference = (ssim(b + step * direction, a) - ssim(b - step * direction, a)) / (2 * step)
    assert float(jnp.vdot(found, direction)) == pytest.approx(float(difference), rel=2e-2)


@pytest.mark.parametrize("padding", ["valid", "edge", "zero"])
def test_products_of_matrices_and_shifted_sums_filter_alike(padding):
    plane = jnp.asarray(RNG.random((2, 13, 17)), jnp.float32)
    found = filters.gaussian_filter(plane, taps=7, sigma=7 / 6, padding=padding)
    np.testing.assert_allclose(found, filters._shifted_sums(plane, 7, 7 / 6, padding), atol=1e-6)


def test_half_sizes():
    x = RNG.random((11, 14)).astype(np.float32)
    corners = halve(x)
    assert corners.shape == (5, 7) and halve(x, antialias=True).shape == (6, 7)
    np.testing.assert_allclose(
        np.asarray(corners)[0, [0, -1]], x[0, [0, -1]], atol=1e-6
    )  # corners on corners
    for antialias in (False, True):
        np.testing.assert_allclose(
            halve(np.full((11, 14), 0.3, np.float32), antialias=antialias), 0.3, atol=1e-6
        )
    ramp = np.arange(14.0, dtype=np.float32)[None] * np.ones((11, 1), np.float32)
    np.testing.assert_allclose(np.asarray(halve(ramp, antialias=True))[3, 2:5], [4.5, 6.5, 8.5], atol=1e-5)


def test_brightness():
    red = jnp.asarray([1.0, 0, 0]).reshape(1, 1, 3)
    values = [float(metrics.luma(red, standard=s)[0, 0]) for s in ("matlab", "yiq", "ycbcr")]
    np.testing.assert_allclose(values, [0.2989, 0.299, (65.481 + 16) / 255], atol=1e-6)
    assert metrics.luma(jnp.ones((4, 4, 1))).shape == (4, 4)


def test_the_largest_change_is_felt_where_it_is_alone():
    a, b = np.zeros((2, 3, 3, 3), np.float32)
    b[1, 2, 0], b[0, 0, 1] = 0.5, -0.25
    value, slope = jax.jit(jax.value_and_grad(metrics.chebyshev))(b, a)
    assert float(value) == 0.5 and float(slope[1, 2, 0]) == 1 and np.abs(slope).sum() == 1
    assert metrics.chebyshev(np.stack([a, b]), np.stack([b, b])).tolist() == [0.5, 0]


def test_fewer_scales_for_small_images():
    a = RNG.random((1, 44, 48, 3)).astype(np.float32)
    b = (0.8 * a + 0.2 * RNG.random(a.shape)).astype(np.float32)
    assert float(ms_ssim(a, a, scales=3)[0]) == pytest.approx(1, abs=1e-5)
    flat = (constant(value, 44, 48)[None] for value in (0.2, 0.5))
    expected = 0.689762 ** (0.3001 / (0.0448 + 0.2856 + 0.3001))
    assert float(ms_ssim(*flat, scales=3)[0]) == pytest.approx(expected, abs=1e-5)
    by_channel = ssim(a[0], b[0], color="channels")
    assert float(ms_ssim(a, b, scales=1)[0]) == pytest.approx(float(by_channel), abs=1e-5)


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


@pytest.mark.parametrize(
    ("distance", "which"), [pytest.param(metrics.lpips, 0, marks=pytest.mark.slow), (metrics.dists, 1)]
)
def test_distances_of_networks(narrow, distance, which):
    """Zero at the image; gradients are finite, at black images and at the image itself too."""
    weights = narrow[which]
    images = jnp.asarray(np.stack([*PAIR, 0 * PAIR[0], PAIR[0]])[:, :16, :16])
    others = images[jnp.asarray([2, 0, 1, 3])]

    def total(x):
        values = jax.vmap(distance, in_axes=(0, 0, None))(x, others, weights)
        return values.sum(), values

    (_, values), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(images)
    assert values[:3].min() > 1e-3 and float(values[3]) == pytest.approx(0, abs=2e-6)
    slopes = np.asarray(slopes)
    assert np.isfinite(slopes).all() and (np.abs(slopes[:2]).max(axis=(1, 2, 3)) > 0).all()
    np.testing.assert_allclose(slopes[3], 0, atol=1e-5)


@pytest.mark.slow
def test_lpips_on_alexnet(narrow):
    a, b = (RNG.random((2, 3, 35, 33, 3)).astype(np.float32) for _ in range(2))

    def both(a):
        at_once = metrics.lpips(a, b, narrow[2])
        each = jax.vmap(jax.vmap(metrics.lpips, (0, 0, None)), (0, 0, None))(a, b, narrow[2])
        return at_once.sum(), (at_once, each)

    (_, (at_once, each)), slope = jax.jit(jax.value_and_grad(both, has_aux=True))(a)
    assert at_once.shape == (2, 3) and float(at_once.min()) > 1e-3
    np.testing.assert_allclose(at_once, each, rtol=1e-5)
    assert np.isfinite(slope).all() and (np.abs(slope).max(axis=(2, 3, 4)) > 0).all()


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
