"""Probabilities of whole numbers, their logarithms and slopes, and the rate-distortion loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import losses
from jaxface.errors import UserError
from jaxface.losses.edic import LEAST_PROBABILITY

W, MU, SIGMA = np.array([0.5, 0.3, 0.2]), np.array([0.0, 2.0, -1.5]), np.array([0.5, 1.0, 2.0])


SIZE = 121
compiled = functools.cache(jax.jit)


def mixture(y, w=W, mu=MU, sigma=SIGMA, fn=losses.mixture_bin_prob):
    """Of up to `SIZE` symbols and three components, so that each function is compiled once."""
    symbols = np.zeros(SIZE, np.float32)
    symbols[: len(y)] = y
    rows = []
    for values, unused in ((np.log(w), -1e4), (mu, 0.0), (sigma, 1.0)):
        row = np.full(3, unused, np.float32)
        row[: len(values)] = values
        rows.append(np.tile(row, (SIZE, 1)))
    return np.asarray(compiled(fn)(symbols, *rows))[: len(y)]


gaussian, laplace = compiled(losses.gaussian_bin_prob), compiled(losses.laplace_bin_prob)


def test_a_gaussian_by_hand():
    p = gaussian(np.float32([0, 2]), np.float32([0, 0.3]), np.float32([1, 0.7]))
    np.testing.assert_allclose(p, [0.382925, 0.042402], atol=1e-6)
    np.testing.assert_allclose(-np.log2(float(p[0])), 1.384867, atol=1e-6)


def test_mixtures_by_hand():
    p = mixture([-3, -1, 0, 1, 2])
    np.testing.assert_allclose(p, [0.029978, 0.118738, 0.389500, 0.169541, 0.124364], atol=1e-6)
    np.testing.assert_allclose(-np.log2(p), [5.059971, 3.074143, 1.360303, 2.560291, 3.007363], atol=3e-5)
    np.testing.assert_allclose(mixture(np.arange(-60, 61)).astype(np.float64).sum(), 1, atol=1e-5)
    sharp = mixture([0, 1, 3], np.array([0.7, 0.3]), np.array([-0.2, 1.4]), np.array([0.11, 0.8]))
    np.testing.assert_allclose(sharp, [0.734221, 0.125833, 0.024070], atol=1e-6)


def test_laplace_by_hand():
    p = laplace(np.float32([0, 1, 3]), np.float32(1))
    np.testing.assert_allclose(p, [0.393469, 0.191700, 0.025944], atol=1e-6)


def test_the_tail_is_there_in_float32():
    far = gaussian(np.float32([6, -6]), np.float32([0, 0]), np.float32([1, 1]))
    np.testing.assert_allclose(far, 1.89494e-8, rtol=1e-4)
    assert float(far[0]) == float(far[1])


def test_mixtures_of_one_thing():
    y = np.arange(-3, 4)
    one = np.asarray(
        [gaussian(*np.float32([pair, [0.3] * 2, [0.7] * 2])) for pair in zip(y, y, strict=True)]
    )[:, 0]
    np.testing.assert_allclose(mixture(y, W, np.full(3, 0.3), np.full(3, 0.7)), one, atol=1e-7)
    np.testing.assert_allclose(
        mixture(y, np.array([1, 1e-30, 1e-30]), [0.3, 2, 5], [0.7, 1, 1]), one, atol=1e-7
    )
    order = [2, 0, 1]
    np.testing.assert_allclose(mixture(y, W[order], MU[order], SIGMA[order]), mixture(y), atol=1e-7)
    np.testing.assert_allclose(mixture(y, 7.3 * W), mixture(y), atol=1e-7)


def test_both_forms_agree_and_only_logarithms_keep_the_slope():
    y = np.arange(-4, 5)
    np.testing.assert_allclose(np.exp(mixture(y, fn=losses.mixture_bin_logprob)), mixture(y), rtol=2e-5)

    def bits(form):
        def of(y):
            arguments = np.float32([[[0.0]], [[0.0]], [[0.11]]])
            if form == "log":
                return -losses.mixture_bin_logprob(y, *arguments)[0] / jnp.log(2.0)
            return losses.rate_bits(losses.mixture_bin_prob(y, *arguments))

        return float(jax.jit(jax.grad(of))(np.float32([2.0]))[0])

    assert bits("prob") == 0
    np.testing.assert_allclose(bits("log"), 50.0, rtol=1e-4)  # 180, held to the limit


def test_slopes_are_those_of_float64_where_they_are_below_the_limit():
    def of(y, logits, mu, sigma):
        return losses.mixture_bin_logprob(y, logits, mu, sigma, slope=1e6).sum()

    arguments = [np.array([0.7]), np.log(W)[None], MU[None], SIGMA[None]]
    ours = jax.jit(jax.grad(of, (0, 1, 2, 3)))(*(np.float32(a) for a in arguments))

    def exact(y, logits, mu, sigma):
        from scipy.special import ndtr

        w = np.exp(logits) / np.exp(logits).sum()
        return np.log(
            (w * (ndtr((y[:, None] + 0.5 - mu) / sigma) - ndtr((y[:, None] - 0.5 - mu) / sigma))).sum()
        )

    for number, gradient in enumerate(ours):
        flat = arguments[number].ravel()
        for i in range(flat.size):
            moved = [[a.copy() for a in arguments] for _ in range(2)]
            for sign, copy in zip((1, -1), moved, strict=True):
                copy[number].ravel()[i] += sign * 1e-5
            slope = (exact(*moved[0]) - exact(*moved[1])) / 2e-5
            np.testing.assert_allclose(np.asarray(gradient).ravel()[i], slope, atol=2e-5)


def test_gradients_stay_finite_however_far_a_symbol_is():
    def of(y, mu, sigma):
        return losses.mixture_bin_logprob(y, jnp.zeros_like(mu), mu, sigma).sum()

    y, mu = np.float32([0.0, 1e4, -300.0]), np.zeros((3, 2), np.float32)
    for gradient in jax.jit(jax.grad(of, (0, 1, 2)))(y, mu, mu + np.float32(0.11)):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() <= 50


def test_bits_and_the_loss():
    p = np.full(64, 0.382925, np.float32)
    bits = compiled(losses.rate_bits)(p)
    np.testing.assert_allclose(float(bits) / 256, 0.346217, atol=1e-6)
    nothing = np.zeros(1, np.float32)
    none, slope = jax.jit(jax.value_and_grad(losses.rate_bits))(nothing)
    assert float(none) == pytest.approx(-np.log2(LEAST_PROBABILITY), rel=1e-6)
    assert float(slope[0]) < 0  # the bound still pushes it up
    image = np.zeros((2, 16, 16, 3), np.float32)
    loss, report = jax.jit(functools.partial(losses.rd_loss, weight=100.0))(
        image, image + np.float32(0.1), bits
    )
    np.testing.assert_allclose(float(loss), 1.0 + float(bits) / 512, rtol=1e-4)
    np.testing.assert_allclose(float(report["bpp"]), float(bits) / 512, rtol=1e-6)  # pixels, not samples
    for arguments, words in (
        ((image, image[:1], bits), "decoded: needs"),
        ((image, image, bits), "distortion: needs 'mse'"),
    ):
        with pytest.raises(ValueError, match=words):
            losses.rd_loss(*arguments, weight=1.0, distortion="l1" if "distortion" in words else "mse")
    with pytest.raises(UserError, match="weight: needs"):
        losses.rd_loss(image, image, bits, weight=-1.0)
    with pytest.raises(ValueError, match="logits, mu, sigma: need one shape"):
        losses.mixture_bin_prob(np.zeros(2), np.zeros((2, 3)), np.zeros((2, 2)), np.ones((2, 2)))


@pytest.mark.slow
def test_ms_ssim_trains_from_pictures_that_are_alike_and_not():
    image = jnp.asarray(np.random.default_rng(0).random((1, 176, 176, 3)), jnp.float32)

    @jax.jit
    def slope(decoded):
        return jax.grad(
            lambda x: losses.rd_loss(image, x, jnp.float32(0), weight=1.0, distortion="ms_ssim")[0]
        )(decoded)

    for decoded in (image, 1 - image, jnp.zeros_like(image)):
        assert np.isfinite(slope(decoded)).all()
    assert np.abs(slope(0.9 * image)).max() > 0
