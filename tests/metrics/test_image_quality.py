"""PSNR, MS-SSIM and Bjøntegaard differences against published and recomputed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import metrics
from jaxface.errors import UserError

HYPERPRIOR = (
    [0.1313, 0.2089, 0.3199, 0.4784, 0.6687, 0.9388, 1.2592, 1.6602],
    [27.578, 29.192, 30.964, 32.827, 34.509, 36.716, 38.543, 40.493],
)
MEAN_SCALE = (
    [0.1239, 0.1980, 0.3072, 0.4606, 0.6617, 0.9144, 1.2342, 1.6191],
    [27.696, 29.354, 31.121, 32.939, 34.950, 36.883, 38.794, 40.569],
)


def test_ms_ssim_of_two_waves():
    i, j = np.mgrid[:192, :192].astype(np.float64)
    waves = [
        0.5 + 0.4 * np.sin(2 * np.pi * i * (c + 1) / 48) * np.cos(2 * np.pi * j * (c + 2) / 64)
        for c in range(3)
    ]
    x = np.stack(waves, -1)[None]
    y = np.clip(x + 0.05 * np.sign(np.sin(2 * np.pi * (3 * i + 5 * j) / 16))[None, ..., None], 0, 1)
    x, y = x.astype(np.float32), y.astype(np.float32)
    value = jax.jit(metrics.ms_ssim)(x, y)
    np.testing.assert_allclose(value, [0.990056], atol=2e-6)  # 0.989997 with the last term four times
    np.testing.assert_allclose(metrics.decibels(float(value[0])), 20.0242, atol=2e-3)
    np.testing.assert_allclose(metrics.psnr(jnp.asarray(x), jnp.asarray(y)), [26.020718], atol=1e-3)
    with pytest.raises(UserError, match="at least 161 pixels, got 192x100"):
        metrics.ms_ssim(jnp.asarray(x[:, :100]), jnp.asarray(y[:, :100]))


@pytest.mark.parametrize(("method", "percent"), [("cubic", -6.7835), ("pchip", -6.8456), ("akima", -6.8336)])
def test_bd_rate_of_published_curves(method, percent):
    assert metrics.bd_rate(HYPERPRIOR, MEAN_SCALE, method=method) == pytest.approx(percent, abs=1e-4)


def test_bd_rate_and_bd_psnr_of_what_is_known():
    anchor = ([9487.76, 4593.60, 2486.44, 1358.24], [40.037, 38.615, 36.845, 34.851])
    test = ([9787.80, 4469.00, 2451.52, 1356.24], [40.121, 38.651, 36.970, 34.987])
    assert metrics.bd_rate(anchor, test) == pytest.approx(-4.417485, abs=1e-5)
    assert metrics.bd_psnr(anchor, test) == pytest.approx(0.119693, abs=1e-5)
    rates, quality = np.array([0.25, 0.5, 1, 2]), np.array([30.0, 33, 36, 39])
    assert metrics.bd_rate((rates, quality), (rates, quality)) == pytest.approx(0, abs=1e-9)
    assert metrics.bd_rate((rates, quality), (rates, quality + 0.5)) == pytest.approx(-10.910128, abs=1e-5)


@pytest.mark.parametrize(
    ("curve", "method", "words"),
    [
        (([1.0], [30.0]), "pchip", "test: needs at least 2 points for pchip, got 1"),
        (([1.0, 2.0, 3.0], [30.0, 31.0, 32.0]), "cubic", "test: needs at least 4 points"),
        (([0.0, 2.0], [30.0, 31.0]), "pchip", "test: needs positive rates"),
        (([1.0, 2.0], [31.0, 30.0]), "pchip", "rises with the rate"),
        (([1.0, 2.0], [60.0, 61.0]), "pchip", "no common range"),
        (([1.0, 2.0], [30.0, 31.0]), "spline", "method: needs one of pchip"),
    ],
)
def test_curves_that_cannot_be_compared(curve, method, words):
    with pytest.raises(UserError, match=words):
        metrics.bd_rate(HYPERPRIOR, curve, method=method)
