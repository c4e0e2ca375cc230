"""Words of whitened patches: the features of CORNIA (Ye, Kumar, Kang and Doermann, 2012).

Methods: niqa_attack
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.errors import UserError
from jaxface.metrics.image.filters import luma, need_side

SIDE = 7
"""Of a patch, pixels."""
_LEAST_VARIANCE = 10.0  # added to a patch's, of 255²
_WHITENING = 1e-3  # added to eigenvalues, of their mean
_ROUNDS = 20  # of k-means


class Codebook(NamedTuple):
    """How a patch becomes words.

    Attributes:
      mean: [49] of normalized patches. whitening: [49, 49].
      words: [49, K], of length 1.
    """

    mean: jax.Array
    whitening: jax.Array
    words: jax.Array


def _patches(plane: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """[N, 49] normalized patches of a plane [H, W], whose upper left corners are given.

    (p - mean p) / √(var p + 10), the variance over 48
    """
    at = jnp.arange(SIDE)
    cut = plane[rows[:, None, None] + at[:, None], columns[:, None, None] + at]
    flat = cut.reshape(len(rows), -1)
    centered = flat - jnp.mean(flat, axis=1, keepdims=True)
    variance = jnp.sum(jnp.square(centered), axis=1, keepdims=True) / (SIDE**2 - 1)
    return centered / jnp.sqrt(variance + _LEAST_VARIANCE)


def _corners(key: jax.Array | None, height: int, width: int, count: int) -> tuple[jax.Array, jax.Array]:
    down, right = height - SIDE + 1, width - SIDE + 1
    if key is None:
        place = jnp.arange(down * right)
    else:
        place = jax.random.randint(key, (count,), 0, down * right)
    return place // right, place % right


def cornia_features(
    image: jax.Array,
    codebook: Codebook,
    *,
    key: jax.Array | None = None,
    patches: int = 4000,
    peak: float = 1.0,
) -> jax.Array:
    """The largest answers of words to the patches of an image, and of their opposites.

        z = Dᵀ (p - M) P of a normalized patch p,   [max over patches relu(z), max over patches relu(-z)]

    Args:
      image: [..., H, W, 3 or 1] float in [0, L].
      codebook: M, P and D (`fit_codebook`).
      key: of the patches' places, other ones in each call as published; None takes every place.
      patches: how many of them, at random places.
      peak: L, 1 or 255.

    Returns:
      [..., 2K] ≥ 0.

    Raises:
      UserError: sides below 7, or fewer than one patch.

    Example:
      >>> book = Codebook(jnp.zeros(49), jnp.eye(49), jnp.eye(49)[:, :3])
      >>> cornia_features(jnp.zeros((9, 9, 3)), book).tolist()
      [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    check_number("patches", patches, AtLeast(1))
    need_side("image", *image.shape[-3:-1], SIDE, of="CORNIA")
    planes = luma(image, peak=peak) * (255 / peak)
    rows, columns = _corners(key, *planes.shape[-2:], patches)

    def one(plane):
        answers = (_patches(plane, rows, columns) - codebook.mean) @ codebook.whitening @ codebook.words
        return jnp.concatenate(
            [jnp.max(jax.nn.relu(answers), axis=0), jnp.max(jax.nn.relu(-answers), axis=0)]
        )

    flat = planes.reshape(-1, *planes.shape[-2:])
    return jax.vmap(one)(flat).reshape(*planes.shape[:-2], -1)


def fit_codebook(
    images, *, words: int = 10_000, patches: int = 500, peak: float = 1.0, seed: int = 0
) -> Codebook:
    """Words by k-means of whitened patches, without opinions.

    Args:
      images: an iterable of [H, W, 3 or 1] float in [0, L], of any sizes.
      words: K ≥ 1; 10,000 as published.
      patches: of each image, at random places, ≥ 1.
      peak: L, 1 or 255.
      seed: of places and of the first words.

    Returns:
      The codebook, float32; P = E (Λ + ε)^(-½) Eᵀ of the patches' covariance.

    Raises:
      UserError: fewer patches than words, or a number out of its range.

    Example:
      >>> images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
      >>> fit_codebook(images, words=5, patches=40).words.shape
      (49, 5)
    """
    for name, value in (("words", words), ("patches", patches)):
        check_number(name, value, AtLeast(1))
    rng, rows = np.random.default_rng(seed), []
    read = jax.jit(lambda image, down, right: _patches(luma(image, peak=peak) * (255 / peak), down, right))
    for image in images:
        image = jnp.asarray(image)
        need_side("image", *image.shape[:2], SIDE, of="CORNIA")
        down, right = (side - SIDE + 1 for side in image.shape[:2])
        place = rng.integers(down * right, size=patches)
        rows.append(np.asarray(read(image, jnp.asarray(place // right), jnp.asarray(place % right))))
    if len(rows) * patches < words:
        raise UserError(
            f"images: needs at least {words} patches for as many words, got {len(rows) * patches}"
        )
    found = np.concatenate(rows)
    mean = found.mean(0)
    values, vectors = np.linalg.eigh(np.cov(found - mean, rowvar=False, dtype=np.float64))
    values = np.maximum(values, 0)
    whitening = (vectors / np.sqrt(values + _WHITENING * values.mean() + 1e-12)) @ vectors.T
    white = ((found - mean) @ whitening).astype(np.float32)
    centers = _k_means(white, words, rng)
    lengths = np.maximum(np.linalg.norm(centers, axis=1), 1e-12)
    parts = (mean, whitening, (centers / lengths[:, None]).T)
    return Codebook(*(jnp.asarray(part, jnp.float32) for part in parts))


def _k_means(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, D] means of the rows nearest to each; one that is nearest to no row stays where it was."""
    centers = rows[rng.choice(len(rows), count, replace=False)].copy()
    for _ in range(_ROUNDS):
        nearest = np.concatenate(
            [
                np.argmax(part @ centers.T - np.sum(centers**2, 1) / 2, axis=1)
                for part in np.array_split(rows, -(-len(rows) // 4096))
            ]
        )
        sums, counts = np.zeros_like(centers), np.bincount(nearest, minlength=count)
        np.add.at(sums, nearest, rows)
        moved = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers
