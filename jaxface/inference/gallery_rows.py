"""Unit vectors that are searched: exactly by JAX, or by faiss over binary codes of them with exact scores of a shortlist.

Both hold float32 rows once, in blocks, so that rows are added without a copy of those before.
"""

import functools
import importlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import search
from jaxface.errors import UserError

BLOCK = 65536
"""Rows of a block; of 512 numbers each it has 128 MiB."""
_QUERIES = 256  # at a time
_SMALLEST = 1024  # rows of the last block on the device; few sizes, few programs
_CODE_BITS = 512  # at least
_AT_ONCE = 8192  # rows that are coded together


def _similarities(queries: jax.Array, rows: jax.Array) -> jax.Array:
    """`search.dot_products` with the long operand first, which CPUs multiply a fifth faster; the barrier keeps the order."""
    products = jnp.einsum("nd,qd->nq", rows, queries, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.optimization_barrier(products).T


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


class _Blocks:
    """Rows [N, D] float32 in order: whole blocks, and the last one, which grows."""

    def __init__(self, dim: int, block: int):
        self.dim, self._block = dim, block
        self._clear()

    def _clear(self) -> None:
        self._whole: list = []
        self._last = np.zeros((0, self.dim), np.float32)
        self._last_length = 0

    def __len__(self) -> int:
        return sum(map(len, self._whole)) + self._last_length

    def append(self, rows: np.ndarray) -> None:
        """Adds rows [n, D]."""
        while len(rows):
            some = rows[: self._block - self._last_length]
            end = self._last_length + len(some)
            if end > len(self._last):
                grown = np.zeros((min(max(_power_of_two(end), _SMALLEST), self._block), self.dim), np.float32)
                grown[: self._last_length] = self._last[: self._last_length]
                self._last = grown
            self._last[self._last_length : end] = some
            self._last_length = end
            self._appended(some)
            if end == self._block:
                self._whole.append(self._settled(self._last))
                self._last, self._last_length = np.zeros((0, self.dim), np.float32), 0
            rows = rows[len(some) :]

    def _appended(self, rows: np.ndarray) -> None:
        """Rows that came to the last block."""

    def _settled(self, rows: np.ndarray):
        """What a whole block is held as."""
        return rows

    def blocks(self) -> Iterator[np.ndarray]:
        """The rows, block after block."""
        for rows in self._whole:
            yield np.asarray(rows)
        if self._last_length:
            yield self._last[: self._last_length]

    def keep(self, mask: np.ndarray) -> None:
        """Drops the rows where `mask` [N] is False; the order of the others stays."""
        whole, last = self._whole[::-1], self._last[: self._last_length]
        self._clear()
        start = 0
        while whole:
            rows = np.asarray(whole.pop())
            self.append(rows[mask[start : start + len(rows)]])
            start += len(rows)
        self.append(last[mask[start:]])


class ExactRows(_Blocks):
    """Rows on the device, every one of which is compared with every query (`jaxface.search.nearest`)."""

    def __init__(self, dim: int, block: int = BLOCK):
        super().__init__(dim, block)
        self._last_on_device = None

    def _appended(self, rows):
        self._last_on_device = None

    def _settled(self, rows):
        return jax.device_put(rows)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, ids) [Q, k] of the most similar rows, in falling order, ties to the lower id."""
        results = [
            self._nearest(queries[start : start + _QUERIES], k) for start in range(0, len(queries), _QUERIES)
        ]
        scores, ids = (np.concatenate(values) for values in zip(*results, strict=True))
        return scores, ids

    def _nearest(self, queries, k):
        count = len(queries)
        queries = jnp.asarray(np.pad(queries, ((0, _power_of_two(count) - count), (0, 0))))
        blocks = list(self._whole)
        if self._last_length:
            if self._last_on_device is None:
                self._last_on_device = jax.device_put(self._last.copy())
            blocks.append(self._last_on_device)
        merged = []
        for start, rows in zip(np.cumsum([0, *map(len, blocks[:-1])]).tolist(), blocks, strict=True):
            some: dict[str, Any] = dict(
                similarity=_similarities, query_block=_QUERIES, candidate_block=len(rows)
            )
            if rows is self._last_on_device:  # filled up with zeros, which nobody may have
                some["labels"] = np.zeros(len(queries), np.int32)
                some["candidate_labels"] = (np.arange(len(rows)) < self._last_length).astype(np.int32)
            merged.append((start, search.nearest(queries, rows, min(k, len(rows)), **some)))
        # Only now is anything waited for.
        scores = np.concatenate([np.asarray(scores)[:count] for _, (scores, _) in merged], axis=1)
        ids = np.concatenate(
            [np.asarray(ids)[:count].astype(np.int64) + at for at, (_, ids) in merged], axis=1
        )
        return _first(scores, ids, k)


class CodedRows(_Blocks):
    """Rows that are found by the signs of random projections and compared exactly once they are few.

    The code of a vector has a bit for each of B random hyperplanes, on which side of it the vector lies. Codes of two vectors at
    an angle θ differ in a share θ / π of the bits, give or take √(p(1 - p) / B) with p that share, whatever the vectors are like
    (Charikar, STOC 2002, section 3). faiss compares all codes, a 32nd of the bytes, and the `shortlist` with the fewest bits that
    differ get their exact scores.
    """

    def __init__(self, dim: int, block: int = BLOCK, *, shortlist: int = 256):
        try:
            self._faiss = importlib.import_module("faiss")
        except ImportError:
            raise UserError(
                "backend: 'faiss' needs the package faiss; pip install 'jaxface[gallery]'"
            ) from None
        self._shortlist = shortlist
        self._bits = max(-(-dim // 8) * 8, _CODE_BITS)
        super().__init__(dim, block)

    def _clear(self):
        super()._clear()
        self._codes = self._faiss.IndexBinaryFlat(self._bits)

    def _appended(self, rows):
        for start in range(0, len(rows), _AT_ONCE):
            self._codes.add(self._coded(rows[start : start + _AT_ONCE]))

    def append_mapped(self, rows: np.ndarray) -> None:
        """Adds rows that stay where they are, such as those of a mapped file; only into an empty collection."""
        self._appended(rows)
        self._whole.append(rows)

    def _coded(self, rows):
        return np.packbits(rows @ _hyperplanes(self.dim, self._bits) > 0, axis=1)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, ids) [Q, k] of the most similar rows of each shortlist; a shortlist has at least k rows."""
        _, shortlists = self._codes.search(self._coded(queries), min(max(self._shortlist, k), len(self)))
        blocks = list(self.blocks())
        starts = np.cumsum([0, *map(len, blocks[:-1])])
        scores = np.empty((len(queries), k), np.float32)
        ids = np.empty((len(queries), k), np.int64)
        for query, shortlist in enumerate(shortlists):
            shortlist = np.sort(shortlist)
            which = np.searchsorted(starts, shortlist, side="right") - 1
            rows = np.concatenate(
                [blocks[block][shortlist[which == block] - starts[block]] for block in np.unique(which)]
            )
            scores[query], ids[query] = _first((rows @ queries[query])[None], shortlist[None], k)
        return scores, ids


def _first(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest scores of each row and their ids; of equals the first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


@functools.lru_cache(maxsize=4)
def _hyperplanes(dim: int, bits: int) -> np.ndarray:
    """[D, bits] float32: random orthogonal directions, D at a time; the same ones always."""
    rng = np.random.default_rng(0)
    turns = [np.linalg.qr(rng.standard_normal((dim, dim)))[0] for _ in range(math.ceil(bits / dim))]
    return np.concatenate(turns, axis=1)[:, :bits].astype(np.float32)
