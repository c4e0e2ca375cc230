"""Numbers are those of the method's specification: check 6, and what it derives about composites."""

import numpy as np
import pytest

from jaxface import layers
from jaxface.errors import UserError
from pallas_kernels import dilated_conv

BOX, DIAGONAL = np.ones((3, 3)), np.eye(3)
BINOMIAL, SOBEL = np.outer([1, 2, 1], [1, 2, 1]), np.outer([1, 2, 1], [-1, 0, 1])
CENTER = np.pad([[1.0]], 1)


def composite(seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 2, 2))
    return sum(np.pad(a[p, q] * b, [(p, 1 - p), (q, 1 - q)]) for p in range(2) for q in range(2))


def test_check_6_the_box_is_no_composite():
    fit = layers.cascade_residual(BOX)
    nearest = np.asarray(dilated_conv.compose_taps(fit.a, fit.b))
    np.testing.assert_allclose(nearest, [[0.4, 1, 0.4], [1, 1.6, 1], [0.4, 1, 0.4]], atol=1e-5)
    assert fit.relative_error == pytest.approx(0.447214, abs=1e-6)
    assert fit.relative_error * 3 == pytest.approx(1.341641, abs=3e-6)  # √1.8


def test_check_6_other_filters():
    assert layers.cascade_residual(DIAGONAL).relative_error == pytest.approx(0.258199, abs=2e-5)
    for kernel in (BINOMIAL, SOBEL, CENTER):
        assert layers.cascade_residual(kernel).relative_error < 1e-9


def test_composites_are_recovered_and_have_rank_3():
    kernels = np.stack([composite(seed) for seed in range(6)], axis=-1)
    fit = layers.cascade_residual(kernels)
    assert fit.a.shape == fit.b.shape == (2, 2, 6) and fit.relative_error.max() < 1e-7
    np.testing.assert_allclose(dilated_conv.compose_taps(fit.a, fit.b), kernels, atol=1e-5)
    assert {int(np.linalg.matrix_rank(kernels[..., i])) for i in range(6)} == {3}


def test_mean_error_of_random_filters():
    """0.290 for composites and 0.483 for separable filters, over 200 draws; others differ by a hundredth."""
    kernels = np.random.default_rng(0).normal(size=(3, 3, 200))
    assert layers.cascade_residual(kernels, rounds=40).relative_error.mean() == pytest.approx(0.290, abs=0.03)
    singular = np.linalg.svd(np.moveaxis(kernels, 2, 0), compute_uv=False)
    separable = np.linalg.norm(singular[:, 1:], axis=1) / np.linalg.norm(singular, axis=1)
    assert separable.mean() == pytest.approx(0.483, abs=0.03)


def jacobian_rank(compose, size):
    """Dimension of a set of filters around a random one, by central differences."""
    x = np.random.default_rng(1).normal(size=size)
    columns = [compose(x + step) - compose(x - step) for step in 1e-4 * np.eye(size)]
    return np.linalg.matrix_rank(np.stack(columns) / 2e-4, tol=1e-6)


def test_dimensions_of_composites_and_separable_filters():
    def pair(x):
        a, b = x[:4].reshape(2, 2), x[4:].reshape(2, 2)
        return sum(np.pad(a[p, q] * b, [(p, 1 - p), (q, 1 - q)]) for p in range(2) for q in range(2)).ravel()

    assert jacobian_rank(pair, 8) == 7
    assert jacobian_rank(lambda x: np.outer(x[:3], x[3:]).ravel(), 6) == 5


def test_the_necessary_condition():
    for kernel in (BINOMIAL, SOBEL, CENTER, np.zeros((3, 3)), *map(composite, range(30))):
        np.testing.assert_allclose(layers.cascade_defects(kernel), 0, atol=1e-10)
    assert layers.cascade_defects(BOX).min() > 0.1  # 1 + z + z² has no real linear factors
    assert layers.cascade_defects(DIAGONAL).min() > 0.1
    for seed in range(5):
        assert layers.cascade_defects(np.random.default_rng(seed).normal(size=(3, 3))).max() > 1e-3


@pytest.mark.slow
def test_dense_cascades_need_more_channels_between_than_at_their_ends():
    """A random bank of 3 channels: about 0.19 with 3, next to nothing with 4, nothing with 5."""
    bank = np.random.default_rng(0).normal(size=(3, 3, 3, 3))
    errors = [
        layers.cascade_residual(bank, middle=m, starts=starts, rounds=rounds).relative_error
        for m, starts, rounds in ((3, 6, 40), (4, 4, 60), (5, 2, 25))
    ]
    assert errors[0] == pytest.approx(0.187, abs=0.06)
    assert 1e-9 < errors[1] < 5e-3 and errors[2] < 1e-9


def test_the_width_that_a_universal_cascade_needs():
    assert layers.universal_width(3, 3) == 5  # 80 parameters of 4 channels are fewer than 81 weights
    for channels in (10, 64, 1000):
        assert layers.universal_width(channels, channels) == int(np.ceil((4 - np.sqrt(7)) * channels))
    assert 4 - np.sqrt(7) == pytest.approx(1.354, abs=5e-4)


def test_a_depthwise_stage_leaves_four_dimensions():
    """All filters of an input channel have one factor."""
    rng = np.random.default_rng(0)
    kernel = dilated_conv.compose_taps(rng.normal(size=(2, 2, 3)), rng.normal(size=(2, 2, 3, 12)))
    assert [
        np.linalg.matrix_rank(np.asarray(kernel)[:, :, c].reshape(9, 12), tol=1e-4) for c in range(3)
    ] == [4] * 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kernel": np.ones((2, 2))}, "kernel: needs 3×3 taps, got 2×2"),
        ({"kernel": np.full((3, 3), np.nan)}, "kernel: needs finite values"),
        ({"kernel": np.ones(9)}, "kernel: needs 2 axes"),
        ({"kernel": BOX, "starts": 0}, "starts: needs an integer from 1, got 0"),
        ({"kernel": BOX, "middle": 2}, "middle: needs a dense kernel"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        layers.cascade_residual(**arguments)


def test_refusals_of_the_others():
    with pytest.raises(UserError, match=r"^kernel: needs 3×3 taps"):
        layers.cascade_defects(np.ones((3, 2)))
    with pytest.raises(UserError, match=r"^inputs: needs an integer from 1"):
        layers.universal_width(0, 3)


def test_zeros_are_a_composite():
    assert layers.cascade_residual(np.zeros((3, 3))).relative_error >= 0
