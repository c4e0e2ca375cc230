"""Embeddings of people who do not exist, made from those of people who do: no generator of faces and no network.

Methods: ida
"""

import numpy as np

from jaxface.checks import AtLeast, check_number, check_unit_rows, integer_array, real_array
from jaxface.errors import UserError


def mixed_people(embeddings, labels, count: int, *, seed: int) -> np.ndarray:
    """Directions between two images of two different people (design).

        v = (e_i + e_j) / ‖e_i + e_j‖,   y_i ≠ y_j,   both people drawn evenly, then an image of each

    Args:
      embeddings: e [N, D] float, rows of unit length.
      labels: y [N] integers, who is who; at least two people.
      count: M ≥ 1.
      seed: of the draws, ≥ 0.

    Returns:
      [M, D] float32, rows of unit length.

    Raises:
      ValueError: shapes disagree. UserError: fewer than two people, rows of another length, or a number out of its range.

    Example:
      >>> import numpy as np
      >>> mixed_people(np.eye(2), [0, 1], 1, seed=0).round(3).tolist()
      [[0.7070000171661377, 0.7070000171661377]]
    """
    rows, rng = _checked(embeddings, count, seed)
    labels = integer_array("labels", labels, len(rows))
    people, person, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(people) < 2:
        raise UserError(f"labels: a mixture needs two people, got {len(people)}")
    first = rng.integers(0, len(people), count)
    second = (first + rng.integers(1, len(people), count)) % len(people)
    by_person, starts = np.argsort(person, kind="stable"), np.cumsum(sizes) - sizes
    images = [by_person[starts[who] + rng.integers(0, sizes[who])] for who in (first, second)]
    total = rows[images[0]] + rows[images[1]]
    length = np.linalg.norm(total, axis=1, keepdims=True)
    # Opposite directions have nothing between them.
    return np.where(length > 1e-6, total / np.maximum(length, 1e-6), rows[images[0]]).astype(np.float32)


def gaussian_people(embeddings, count: int, *, seed: int) -> np.ndarray:
    """Directions drawn from one normal distribution with the mean and the covariance of given ones (design).

        v = w / ‖w‖,   w ~ N(mean e, cov e)

    Args:
      embeddings: e [N, D] float, rows of unit length; N ≥ 2.
      count: M ≥ 1.
      seed: of the draws, ≥ 0.

    Returns:
      [M, D] float32, rows of unit length.

    Raises:
      ValueError: no matrix. UserError: fewer than two rows, rows of another length, or a number out of its range.

    Example:
      >>> import numpy as np
      >>> gaussian_people(np.eye(2), 3, seed=0).shape
      (3, 2)
    """
    rows, rng = _checked(embeddings, count, seed)
    if len(rows) < 2:
        raise UserError(f"embeddings: a covariance needs at least two, got {len(rows)}")
    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False).reshape(rows.shape[1], rows.shape[1]))
    scales = np.sqrt(np.maximum(values, 0.0))
    drawn = rows.mean(0) + (rng.normal(size=(count, len(scales))) * scales) @ vectors.T
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def _checked(embeddings, count: int, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    """(embeddings in float64, random numbers)."""
    check_number("count", count, AtLeast(1))
    check_number("seed", seed, AtLeast(0))
    rows = real_array("embeddings", embeddings, ndim=2).astype(np.float64)
    check_unit_rows("embeddings", rows)
    return rows, np.random.default_rng(seed)
