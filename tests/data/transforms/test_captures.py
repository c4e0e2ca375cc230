import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.data import ArraySource, BadCaptures, CaptureNoise, bad_captures
from jaxface.errors import UserError

IMAGES = jax.random.uniform(jax.random.key(0), (64, 6, 6, 1), minval=-1.0)
KEY = jax.random.key(1)


def test_a_share_is_bad_and_the_others_stay_bit_for_bit():
    shown, severity = bad_captures(KEY, IMAGES, CaptureNoise.mixed(0.4))
    bad = np.asarray(severity) > 0
    assert 0.2 < bad.mean() < 0.6 and ((severity[bad] >= 0.5) & (severity[bad] <= 1)).all()
    np.testing.assert_array_equal(shown[~bad], IMAGES[~bad])
    # (1 - a) x + a U(-1, 1): what is left of x is 1 - a of it.
    a = np.asarray(severity)[bad][:, None, None, None]
    noise = (np.asarray(shown)[bad] - (1 - a) * np.asarray(IMAGES)[bad]) / a
    assert np.abs(noise).max() <= 1 + 1e-5 and noise.std() > 0.4


def test_darker_and_blurred_as_the_severity_says():
    dark = CaptureNoise(share=1.0, severity=(0.5, 0.5), dark=0.25, blur=0.0, noise=0.0)
    shown, severity = bad_captures(KEY, IMAGES, dark)
    np.testing.assert_allclose(shown, (IMAGES + 1) * 0.5 ** (1 / 2.2) - 1, rtol=1e-5, atol=1e-6)
    assert (severity == 0.5).all()
    blurred, _ = bad_captures(KEY, IMAGES, CaptureNoise(share=1.0, dark=1.0, noise=0.0))
    assert blurred.std() < 0.8 * IMAGES.std()
    noisy, _ = bad_captures(KEY, IMAGES, CaptureNoise(share=1.0, dark=1.0, blur=0.0))
    assert 0.05 < jnp.abs(noisy - IMAGES).mean() < 0.4 and jnp.abs(noisy).max() <= 1


def test_a_key_for_each_image_and_another_in_every_step():
    keys = jax.random.split(KEY, 64)
    whole = bad_captures(keys, IMAGES, CaptureNoise.mixed(0.4))
    half = bad_captures(keys[:32], IMAGES[:32], CaptureNoise.mixed(0.4))
    np.testing.assert_array_equal(whole[0][:32], half[0])
    other, _ = bad_captures(jax.random.key(2), IMAGES, CaptureNoise.mixed(0.4))
    assert (other != bad_captures(KEY, IMAGES, CaptureNoise.mixed(0.4))[0]).any()


def test_a_source_of_bad_captures_is_always_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 1), np.uint8)
    source = ArraySource(pixels, np.zeros(40, int), ["live"])
    first, second = (BadCaptures(source, CaptureNoise.mixed(0.4), seed=seed) for seed in (3, 4))
    again = BadCaptures(source, CaptureNoise.mixed(0.4), seed=3)
    severity = np.array([first[i]["severity"] for i in range(40)])
    assert 0 < (severity > 0).sum() < 40
    for i in range(40):
        np.testing.assert_array_equal(first[i]["image"], again[i]["image"])
        assert first[i]["image"].dtype == np.uint8
        assert (first[i]["image"] == pixels[i]).all() == (severity[i] == 0)
    assert any((first[i]["image"] != second[i]["image"]).any() for i in range(40))
    still = BadCaptures(source, CaptureNoise(), seed=0)
    assert still[3]["severity"] == 0 and (still[3]["image"] == pixels[3]).all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"share": 1.5}, "captures.share: needs a number from 0 to 1, got 1.5"),
        ({"severity": (0.8, 0.2)}, "captures.severity: needs least <= greatest"),
        ({"blur": 3.0}, "captures.blur: needs a number from 0 to 1.5, got 3"),
    ],
)
def test_refusals(fields, words):
    with pytest.raises(UserError, match=words):
        CaptureNoise(**fields)
