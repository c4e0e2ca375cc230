"""Test images that lie in a training set, found by perceptual hashes and taken out of it.

Methods: intern
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from jaxface.checks import AtLeast, check_fields
from jaxface.data.sources.source import Source, Subset
from jaxface.errors import UserError
from jaxface.extras import optional


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """Which pictures count as the same: perceptual hashes of 64 bits that differ in few of them."""

    distance: Annotated[int, AtLeast(0)] = 4
    """Most bits that differ."""

    def hashes(self, source: Source) -> np.ndarray:
        """[N, 64] bool of every image, by the discrete cosine transform of its gray levels (pHash)."""
        imagehash, image = optional("imagehash", "foundation"), optional("PIL.Image", "data")
        bits = []
        for i in range(len(source)):
            pixels = np.asarray(source[i]["image"])
            bits.append(
                imagehash.phash(
                    image.fromarray(pixels.squeeze() if pixels.shape[-1] == 1 else pixels)
                ).hash.ravel()
            )
        return np.stack(bits)

    def removed(self, train: Source, tests: Sequence[Source]) -> tuple[Subset, np.ndarray]:
        """Training records that are in no test set, and the rows that were taken out.

        Args:
          train: to learn from. tests: images to evaluate on.

        Raises:
          UserError: no training record is left; the package is missing.
        """
        check_fields(self)
        hashes = self.hashes(train).astype(np.float32)
        gone = np.zeros(len(train), bool)
        for test in tests:
            other = self.hashes(test).astype(np.float32)
            # Bits that differ: |a| + |b| - 2 a·b, in blocks of training records.
            for start in range(0, len(hashes), 4096):
                part = hashes[start : start + 4096]
                differ = part.sum(1)[:, None] + other.sum(1)[None] - 2 * part @ other.T
                gone[start : start + 4096] |= differ.min(axis=1) <= self.distance
        if gone.all():
            raise UserError("train: every image is in a test set")
        return Subset(train, np.flatnonzero(~gone)), np.flatnonzero(gone)


def check_apart(train: Sequence, test: Sequence) -> None:
    """Raises UserError where a record's name is in both parts.

    Example:
      >>> check_apart(["a", "b"], ["c"])
    """
    if both := sorted(set(map(str, train)) & set(map(str, test))):
        raise UserError(
            f"train: needs other records than the test, {both[0]!r} and {len(both) - 1} more are in both"
        )
