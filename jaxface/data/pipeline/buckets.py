"""Batches of one shape from a source whose images have several."""

from collections.abc import Iterator

import grain
import numpy as np

from jaxface.checks import AtLeast, check_number, integer_array
from jaxface.data.pipeline.batches import Batch, filled_up, stack
from jaxface.data.sources.source import Source
from jaxface.errors import UserError


class BucketOrder:
    """Every record once in an epoch, in batches of one bucket; a strategy for `jaxface.data.batches`.

    Epoch e permutes the records of each bucket, cuts them into batches and permutes those, drawn from (seed, e). Records of a
    bucket that do not fill a batch are left out, other ones each epoch.

    Args:
      buckets: [N] integers, the shape of each image: `source.buckets`.

    Raises:
      UserError: no record.
    """

    name = "buckets"

    def __init__(self, buckets: np.ndarray):
        buckets = integer_array("buckets", buckets)
        if not len(buckets):
            raise UserError("buckets: needs at least one record, got none")
        self._members = [np.flatnonzero(buckets == k) for k in np.unique(buckets)]

    def __call__(self, step: int, *, batch_size: int, seed: int) -> np.ndarray:
        """[batch_size] numbers of records; see `samplers.Order`.

        Raises:
          UserError: no bucket fills a batch.
        """
        counts = [len(records) // batch_size for records in self._members]
        if not sum(counts):
            most = max(map(len, self._members))
            raise UserError(f"batch_size: needs at most the {most} records of one shape, got {batch_size}")
        epoch, within = divmod(step, sum(counts))
        rng = np.random.default_rng([seed, epoch])
        place = int(rng.permutation(sum(counts))[within])
        bucket = int(np.searchsorted(np.cumsum(counts), place, side="right"))
        records = np.random.default_rng([seed, epoch, bucket]).permutation(self._members[bucket])
        start = (place - sum(counts[:bucket])) * batch_size
        return records[start : start + batch_size]


def bucket_order(source: Source) -> BucketOrder | None:
    """The strategy that a source needs: `BucketOrder` where its images have several shapes, None where they have one."""
    buckets = getattr(source, "buckets", None)
    return BucketOrder(buckets) if buckets is not None and len(np.unique(buckets)) > 1 else None


def bucket_evaluation_batches(source: Source, batch_size: int, *, prefetch: int = 4) -> Iterator[Batch]:
    """Every record once, in batches of one size and one shape each, bucket by bucket.

    Besides the records a batch has `position` [B] int32, the number of each in the source, and `valid` [B] bool: the last batch
    of a bucket is filled up with its last record.

    Raises:
      UserError: no record, or a batch size below 1.
    """
    check_number("batch_size", batch_size, AtLeast(1))
    if not len(source):
        raise UserError("data: needs at least one record, got none")
    buckets = getattr(source, "buckets", np.zeros(len(source), np.int32))
    batches = [
        records[start : start + batch_size]
        for records in (np.flatnonzero(buckets == k) for k in np.unique(buckets))
        for start in range(0, len(records), batch_size)
    ]

    def assemble(step: int) -> Batch:
        positions = batches[step].astype(np.int32)
        missing = batch_size - len(positions)
        batch = stack(filled_up((source[int(i)] for i in positions), missing), batch_size)
        return batch | {
            "position": np.pad(positions, (0, missing), mode="edge"),
            "valid": np.arange(batch_size) < len(positions),
        }

    ahead = grain.ReadOptions(num_threads=min(prefetch, 16), prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.range(len(batches)).map(assemble).to_iter_dataset(ahead))
