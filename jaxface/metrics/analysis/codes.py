"""What codes still tell: their entropy and perplexity, and how unequal the vectors are that share a step.

Methods: qvit, ota, intern
"""

import numpy as np

from jaxface import checks
from jaxface.errors import UserError


def code_entropy(codes) -> float:
    """Entropy of integer codes in bits, H = -Σ_c p_c log2 p_c with their frequencies p; at most their number of bits.

    Args:
      codes: integers of any shape, at least one.

    Returns:
      0 where all are one, b where all of 2^b are as frequent.

    Raises:
      ValueError: no integers. UserError: none at all.

    Example:
      >>> code_entropy(np.array([[0, 1], [2, 3]])), code_entropy(np.zeros(3, int))
      (2.0, 0.0)
    """
    array = np.asarray(codes)
    if array.dtype.kind not in "iu":
        raise ValueError(f"codes: needs integers, got {array.dtype}")
    if array.size == 0:
        raise UserError(f"codes: needs at least one, got shape {array.shape}")
    frequencies = np.unique(array, return_counts=True)[1] / array.size
    return float(abs(-np.sum(frequencies * np.log2(frequencies))))


def codebook_perplexity(index, codes: int) -> float:
    """How many codes of a codebook are in use: e^H of their frequencies, H in nats.

    Args:
      index: integers in [0, codes), of any shape, at least one. codes: K ≥ 1, size of the codebook.

    Returns:
      1 where one code is all that is used, K where all are used alike.

    Raises:
      UserError: none, or a number that is no code. ValueError: no integers.

    Example:
      >>> codebook_perplexity(np.arange(12) % 4, 4), codebook_perplexity(np.zeros(3, int), 4)
      (4.0, 1.0)
    """
    entropy, array = code_entropy(index), np.asarray(index)
    if array.min() < 0 or array.max() >= codes:
        raise UserError(f"index: needs numbers from 0 to {codes - 1}, got {array.min()} to {array.max()}")
    return 2.0**entropy


def norm_spread(vectors) -> float:
    """How unequal the lengths of vectors are: the standard deviation of log ‖x_i‖, which no common factor changes.

    Args:
      vectors: [N, d] float; zeros are left out.

    Returns:
      0 where all are as long. From about 0.5 on, one step for all leaves the short ones without codes.

    Raises:
      ValueError: not a matrix. UserError: not finite, or all of it zeros.

    Example:
      >>> norm_spread(np.array([[3.0, 4.0], [0.0, 5.0]]))
      0.0
    """
    lengths = np.linalg.norm(checks.real_array("vectors", vectors, ndim=2).astype(np.float64), axis=1)
    lengths = lengths[lengths > 0]
    if lengths.size == 0:
        raise UserError("vectors: needs one that is not 0")
    return float(np.log(lengths).std())
