"""Similarities of many embeddings, a block at a time.

N embeddings have N^2 similarities: 13,233 images make 1.4 GB in float64. Blocks of fixed shape run through
one compiled product; what is kept is either the split into genuine and impostor scores (float32, each pair
once) or two histograms whose size does not depend on N.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import checks
from jaxface.errors import UserError
from jaxface.metrics import numbers

BLOCK = 2048


class Block(NamedTuple):
    """Similarities of a[rows] with b[columns]; `scores` is [rows, columns] float32 on the host."""

    rows: slice
    columns: slice
    scores: np.ndarray


class HistogramTar(NamedTuple):
    """TAR at FAR from a histogram: the exact TAR lies in [tar, tar_upper]; other fields as in `TarAtFar`."""

    tar: float | np.ndarray
    tar_upper: float | np.ndarray
    threshold: float | np.ndarray
    far: float | np.ndarray
    resolvable: bool | np.ndarray


@jax.jit
def similarity_matrix(a: jax.Array, b: jax.Array) -> jax.Array:
    """All dot products [M, N] float32 of a [M, D] and b [N, D]; cosines where the rows are unit vectors.

    In full float32 on every device: the reduced-precision default of matrix units would move scores by 1e-3.

    Example:
      >>> similarity_matrix(jnp.eye(2), jnp.array([[3.0, 4.0]])).tolist()
      [[3.0], [4.0]]
    """
    return jnp.einsum(
        "md,nd->mn", a.astype(jnp.float32), b.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )


@jax.jit
def _row_products(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32), axis=-1)


def similarity_blocks(a, b=None, *, block: int = BLOCK) -> Iterator[Block]:
    """Walks through `similarity_matrix` in blocks of at most `block` x `block`.

    Args:
      a: [M, D] float. b: [N, D] float, or None for the similarities of `a` with itself.
      block: rows and columns of a block.

    Yields:
      Blocks that cover the matrix row by row. With `b=None` only those on and right of the diagonal come,
      since the matrix is symmetric; the pairs i < j are then `np.triu` of the diagonal blocks and all of the
      others.

    Raises:
      ValueError: not matrices, or widths differ. UserError: empty or not finite.

    Example:
      >>> [block.scores.shape for block in similarity_blocks(np.eye(3), block=2)]
      [(2, 2), (2, 1), (1, 1)]
    """
    a = checks.real_array("a", a, ndim=2)
    symmetric = b is None
    b = a if symmetric else checks.real_array("b", b, ndim=2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a, b: need the same width, got {a.shape} and {b.shape}")
    checks.check_number("block", block, checks.AtLeast(1))
    height, width = min(block, len(a)), min(block, len(b))
    for first_row in range(0, len(a), height):
        rows = slice(first_row, min(first_row + height, len(a)))
        queries = jax.device_put(_padded(a[rows], height))
        for first_column in range(first_row if symmetric else 0, len(b), width):
            columns = slice(first_column, min(first_column + width, len(b)))
            scores = np.asarray(similarity_matrix(queries, _padded(b[columns], width)))
            yield Block(rows, columns, scores[: rows.stop - rows.start, : columns.stop - columns.start])


def pair_similarities(embeddings, pairs, *, block: int = 1 << 15) -> np.ndarray:
    """Dot products [P] float32 of embeddings [N, D] taken by index pairs [P, 2].

    Raises:
      ValueError: wrong shapes, or an index outside [0, N). UserError: embeddings empty or not finite.

    Example:
      >>> pair_similarities(np.eye(3), np.array([[0, 0], [0, 1]])).tolist()
      [1.0, 0.0]
    """
    embeddings = checks.real_array("embeddings", embeddings, ndim=2)
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs: needs shape [P, 2], got {pairs.shape}")
    first, second = (checks.index_array("pairs", pairs[:, k], len(pairs), len(embeddings)) for k in (0, 1))
    scores = np.empty(len(pairs), np.float32)
    block = min(block, max(len(pairs), 1))
    for start in range(0, len(pairs), block):
        part = slice(start, min(start + block, len(pairs)))
        products = _row_products(
            _padded(embeddings[first[part]], block), _padded(embeddings[second[part]], block)
        )
        scores[part] = np.asarray(products)[: part.stop - part.start]
    return scores


def all_pair_similarities(embeddings, labels, *, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Scores of every pair i < j, split into one person and two people.

    Args:
      embeddings: [N, D] float. labels: [N] integers.
      block: rows and columns worked on at a time; the N x N matrix is never held.

    Returns:
      (genuine [G], impostor [I]) float32 with G + I = N (N - 1) / 2, in no particular order; either may be
      empty.

    Raises:
      ValueError: shapes disagree. UserError: embeddings empty or not finite.

    Example:
      >>> genuine, impostor = all_pair_similarities(np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), [0, 0, 1])
      >>> [round(x, 2) for x in genuine.tolist()], sorted(round(x, 2) for x in impostor.tolist())
      ([0.8], [0.0, 0.6])
    """
    labels = checks.integer_array("labels", labels, len(embeddings))
    count = len(labels)
    sizes = np.unique(labels, return_counts=True)[1].astype(np.int64)
    total, matches = count * (count - 1) // 2, int((sizes * (sizes - 1) // 2).sum())
    genuine, impostor = np.empty(matches, np.float32), np.empty(total - matches, np.float32)
    filled_genuine = filled_impostor = 0
    for scores, same in _upper_scores(embeddings, labels, block):
        part = scores[same]
        genuine[filled_genuine : filled_genuine + part.size] = part
        filled_genuine += part.size
        part = scores[~same]
        impostor[filled_impostor : filled_impostor + part.size] = part
        filled_impostor += part.size
    return genuine, impostor


class ScoreHistogram:
    """Counts of genuine and impostor scores in equal bins of [low, high], added to block by block.

    With bins of width w = (high - low) / bins, a threshold found here is at most w above the exact one, the
    realized FAR is an exact count that never exceeds the target, and the exact TAR is bracketed
    (`tar_at_far`). Scores outside the range by no more than 1e-3 (rounding of unit vectors) go to the end
    bins.
    """

    def __init__(self, *, bins: int = 1 << 16, low: float = -1.0, high: float = 1.0):
        if bins < 1 or not low < high:
            raise ValueError(f"bins, low, high: need bins >= 1 and low < high, got {bins}, {low}, {high}")
        self.low, self.high = low, high
        self.genuine = np.zeros(bins, np.int64)
        self.impostor = np.zeros(bins, np.int64)

    def add(self, *, genuine=(), impostor=()) -> None:
        """Counts scores of any shape; a UserError where one is NaN, infinite or out of range."""
        for counts, scores in ((self.genuine, genuine), (self.impostor, impostor)):
            scores = np.asarray(scores, np.float64).ravel()
            if scores.size == 0:
                continue
            if not (
                scores.min() >= self.low - 1e-3 and scores.max() <= self.high + 1e-3
            ):  # false for NaN as well
                raise UserError(
                    f"scores: need values in [{self.low:g}, {self.high:g}] (normalize the embeddings), "
                    f"got {scores.min():g}..{scores.max():g}"
                )
            bins = (scores - self.low) * (counts.size / (self.high - self.low))
            counts += np.bincount(np.clip(bins.astype(np.int64), 0, counts.size - 1), minlength=counts.size)

    def add_all_pairs(self, embeddings, labels, *, block: int = BLOCK) -> None:
        """Counts every pair i < j of unit embeddings [N, D] with labels [N]; memory is one block."""
        labels = checks.integer_array("labels", labels, len(embeddings))
        for scores, same in _upper_scores(embeddings, labels, block):
            self.add(genuine=scores[same], impostor=scores[~same])

    def tar_at_far(self, fars, *, strict: bool = False) -> HistogramTar:
        """TAR at target FARs, rule "at_most"; `threshold` is a bin edge, accept iff score >= threshold.

            j = the lowest bin with at most floor(f I) impostors at or above it,   TAR = genuine at or above j
            / G

        The exact threshold lies in bin j - 1, so only genuine scores of that bin can be missed: they are what
        `tar_upper` adds.

        Raises:
          UserError: a set is empty, a target outside (0, 1), or `strict` and fewer than 1 / f impostors.
        """
        targets = checks.rates("fars", fars)
        totals = {"genuine": int(self.genuine.sum()), "impostor": int(self.impostor.sum())}
        for name, total in totals.items():
            if total == 0:
                raise UserError(f"{name}: needs at least one score, none was added")
        allowed = numbers.allowed_count(targets, totals["impostor"])
        if strict and not (allowed >= 1).all():
            raise UserError(
                f"fars: {targets.min():g} needs more impostor scores than the {totals['impostor']} added"
            )
        # at_or_above[j] for j = 0..bins; falling, so the lowest admissible bin is found from the other end.
        genuine = np.append(np.cumsum(self.genuine[::-1])[::-1], 0)
        impostor = np.append(np.cumsum(self.impostor[::-1])[::-1], 0)
        lowest = impostor.size - np.searchsorted(impostor[::-1], allowed, side="right")
        width = (self.high - self.low) / self.genuine.size
        return HistogramTar(
            numbers.plain(genuine[lowest] / totals["genuine"]),
            numbers.plain(genuine[np.maximum(lowest - 1, 0)] / totals["genuine"]),
            numbers.plain(self.low + lowest * width),
            numbers.plain(impostor[lowest] / totals["impostor"]),
            numbers.plain(allowed >= 1),
        )


def _upper_scores(embeddings, labels: np.ndarray, block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(scores, same) of the pairs i < j, flat, one block at a time."""
    for rows, columns, scores in similarity_blocks(embeddings, block=block):
        same = labels[rows, None] == labels[None, columns]
        if rows == columns:
            above = np.triu_indices(len(scores), k=1)
            yield scores[above], same[above]
        else:
            yield scores.ravel(), same.ravel()


def _padded(rows: np.ndarray, height: int) -> np.ndarray:
    """`rows` with zero rows below up to `height`, so that every block runs the same program."""
    return rows if len(rows) == height else np.pad(rows, ((0, height - len(rows)), (0, 0)))
