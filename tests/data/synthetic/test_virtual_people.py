import numpy as np
import pytest

from jaxface.data import crowded_embeddings, gaussian_people, mixed_people
from jaxface.errors import UserError

PEOPLE = crowded_embeddings(30, 4, seed=0, size=8)


def test_mixtures_are_between_two_people():
    """Every mixture is the normalized sum of two images of different people: looked for among all of them in float64."""
    rows, labels = PEOPLE.embeddings.astype(np.float64), PEOPLE.labels
    mixed = mixed_people(rows, labels, 50, seed=3)
    assert mixed.shape == (50, 8) and mixed.dtype == np.float32
    sums = rows[:, None] + rows[None]
    sums /= np.linalg.norm(sums, axis=-1, keepdims=True)
    error = np.abs(mixed[:, None, None] - sums).max(-1)
    error[:, labels[:, None] == labels] = 9
    assert error.min((1, 2)).max() < 1e-6
    np.testing.assert_array_equal(mixed_people(rows, labels, 50, seed=3), mixed)
    assert np.abs(mixed_people(rows, labels, 50, seed=4) - mixed).max() > 0.1


def test_people_are_drawn_evenly_however_many_images_they_have():
    rows = np.concatenate([np.tile([[1.0, 0, 0]], (1000, 1)), np.eye(3)[1:]])
    mixed = mixed_people(rows, [5] * 1000 + [7, 9], 3000, seed=0)
    without_first = (mixed[:, 0] == 0).mean()  # one pair of people of three
    np.testing.assert_allclose(without_first, 1 / 3, atol=0.05)


def test_opposite_people_have_nothing_between_them():
    mixed = mixed_people([[1.0, 0.0], [-1.0, 0.0]], [0, 1], 5, seed=0)
    np.testing.assert_array_equal(np.abs(mixed[:, 0]), 1)


def test_draws_have_the_moments_of_the_embeddings():
    """A narrow cloud, where normalizing changes little: mean and covariance as numpy has them."""
    rng = np.random.default_rng(0)
    rows = np.array([1.0, 0, 0, 0]) + rng.normal(size=(500, 4)) * [0, 0.1, 0.05, 0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    drawn = gaussian_people(rows, 20_000, seed=1)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(drawn.mean(0), rows.mean(0), atol=2e-3)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(rows.T), atol=5e-4)
    np.testing.assert_array_equal(gaussian_people(rows, 20_000, seed=1), drawn)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mixed_people(PEOPLE.embeddings, np.zeros(120, int), 5, seed=0),
            "labels: a mixture needs two people",
        ),
        (
            lambda: mixed_people(2 * PEOPLE.embeddings, PEOPLE.labels, 5, seed=0),
            "embeddings: needs rows of length 1",
        ),
        (
            lambda: gaussian_people(PEOPLE.embeddings[:1], 5, seed=0),
            "embeddings: a covariance needs at least two",
        ),
        (lambda: gaussian_people(PEOPLE.embeddings, 0, seed=0), "count: needs an integer from 1, got 0"),
        (
            lambda: mixed_people(PEOPLE.embeddings, PEOPLE.labels, 5, seed=-1),
            "seed: needs an integer from 0, got -1",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(UserError, match=f"^{message}"):
        call()
