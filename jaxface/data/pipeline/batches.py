"""From a source to batches, through grain: shuffled, sharded, augmented, prefetched, resumable at any step.

The stream is a function of the step alone. Epoch e is a permutation of the records drawn from (seed, e); the
record at position i of the stream is augmented with random numbers drawn from (seed, i). So a position is one
number, and neither threads nor worker processes nor the number of shards change what a step sees. A strategy
(`jaxface.data.pipeline.samplers`) may say instead which records the batch of a step holds; it is a function of the step too.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from jaxface.checks import AtLeast, Fraction, check_number, index_array
from jaxface.data.pipeline.samplers import Order
from jaxface.data.sources.source import Record, Source, fingerprint
from jaxface.data.transforms.augment import Augment
from jaxface.data.transforms.augment_objects import ObjectAugment
from jaxface.data.transforms.copies import Copies
from jaxface.data.transforms.views import TeacherStudentViews
from jaxface.errors import UserError

Batch = dict[str, np.ndarray]

_ENDLESS = 1 << 40  # steps; more than any run takes


def stack(records: Iterable[Record], count: int) -> Batch:
    """Stacks flat records field by field: [...] becomes [count, ...].

    Each record is copied as it comes, so that from an iterator the memory of one image serves all: images of a batch kept
    until the last one is decoded cost more in page faults than a third of the decoding.

    Args:
      records: `count` of them, at least one; the first one determines the fields.

    Raises:
      ValueError: records that differ in their fields, shapes or dtypes; the message names the field.
    """
    batch: Batch = {}
    for row, record in enumerate(records):
        if not row:
            first = {name: np.asarray(value) for name, value in record.items()}
            batch = {name: np.empty((count, *value.shape), value.dtype) for name, value in first.items()}
        for name, array in batch.items():
            value = np.asarray(record[name]) if name in record else None
            if value is None or value.shape != array.shape[1:] or value.dtype != array.dtype:
                other = "none" if value is None else f"{value.dtype} {value.shape}"
                raise ValueError(
                    f"{name}: every record of a batch needs it in one shape, got {array.dtype} {array.shape[1:]} and {other}"
                )
            array[row] = value
    return batch


class Relabeled:
    """A source with other labels (noisy ones, pseudo-labels); the classes stay."""

    def __init__(self, source: Source, labels: np.ndarray):
        """`labels`: [N] integers in [0, len(source.class_names)).

        Raises:
          ValueError: another length, or a label outside the classes.
        """
        labels = index_array("labels", labels, len(source), len(source.class_names))
        self._source = source
        self.image_shape = source.image_shape
        self.labels = labels.astype(np.int32)
        self.class_names = list(source.class_names)

    @property
    def record_names(self):
        """[N] names of the records; an AttributeError where the source has none."""
        return self._source.record_names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return {**self._source[index], "label": self.labels[index]}


def corrupt_labels(
    labels: np.ndarray, fraction: float, num_classes: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric label noise: exactly round(fraction N) labels become another class, uniformly among the others.

    Args:
      labels: [N] integers in [0, num_classes).
      fraction: of the labels to replace, in [0, 1].
      num_classes: >= 2 where anything is to be replaced.
      seed: of the choice.

    Returns:
      (noisy labels [N] int32, which ones were replaced [N] bool).

    Raises:
      UserError: `fraction` outside [0, 1], or one class only.

    Example:
      >>> noisy, replaced = corrupt_labels(np.array([0, 1, 2, 0]), 0.5, 3, seed=0)
      >>> int(replaced.sum()), bool(np.all((noisy != [0, 1, 2, 0]) == replaced))
      (2, True)
    """
    check_number("label_noise", fraction, Fraction)
    noisy = index_array("labels", labels, len(labels), num_classes).astype(np.int32)
    flipped = np.zeros(noisy.shape, bool)
    count = round(fraction * len(noisy))
    if count:
        if num_classes < 2:
            raise UserError(f"label_noise: needs at least two classes, got {num_classes}")
        rng = np.random.default_rng(seed)
        flipped_rows = rng.permutation(len(noisy))[:count]
        # A shift by 1..K-1 modulo K reaches every other class once, and never the class itself.
        noisy[flipped_rows] = (noisy[flipped_rows] + rng.integers(1, num_classes, count)) % num_classes
        flipped[flipped_rows] = True
    return noisy, flipped


class _Read:
    """Position in the stream -> record: the source's order, a permutation per epoch drawn from (seed, epoch), or what a
    strategy draws per batch from (seed, step).

    grain's own shuffle needs no memory, but a millisecond per index on data of some dozen records (it walks a cycle
    through 2^16); a permutation costs 8 bytes per record.
    """

    def __init__(self, source: Source, seed: int | None, strategy: Order | None = None, batch_size: int = 0):
        self._source, self._seed, self._strategy = source, seed, strategy
        # What is drawn at once: an epoch, or a batch. Threads that work ahead may be in two neighboring epochs, and in
        # as many batches as there are threads.
        self._length, self._near = (len(source), 1) if strategy is None else (batch_size, 32)
        self._orders: dict[int, np.ndarray] = {}

    def _order(self, number: int) -> np.ndarray:
        order = self._orders.get(number)
        if order is None:
            if self._strategy is None:
                order = np.random.default_rng([self._seed, number]).permutation(self._length)
            else:
                order = self._strategy(number, batch_size=self._length, seed=self._seed)
            # Assigned at once, so that no lock is needed.
            near = {n: o for n, o in self._orders.items() if abs(n - number) <= self._near}
            self._orders = {**near, number: order}
        return order

    def row(self, position: int) -> int:
        """The number of the record in the source."""
        number, index = divmod(position, self._length)
        return index if self._seed is None else int(self._order(number)[index])

    def __call__(self, position: int, _: int) -> Record:
        return self._source[self.row(position)]

    def gather(self, positions: np.ndarray) -> Batch:
        """The records at several positions of a source that can gather them at once (`take`)."""
        numbers, rows = np.divmod(positions, self._length)
        if self._seed is not None:
            for number in np.unique(numbers):
                where = numbers == number
                rows[where] = self._order(int(number))[rows[where]]
        return self._source.take(rows)

    def __getstate__(self):
        return {**self.__dict__, "_orders": {}}


@dataclasses.dataclass(frozen=True)
class _Assemble:
    """Step -> batch. A class, not a closure, so that worker processes can receive it."""

    elements: grain.MapDataset
    batch_size: int
    shard: tuple[int, int]
    records: int
    steps_per_epoch: int | None  # None: batches run on over the end of an epoch
    last: int | None  # end of the stream in records, where it has one
    consecutive: int = 1
    gather: Callable[[np.ndarray], Batch] | None = (
        None  # positions -> batch, where it is faster than one by one
    )

    def _positions(self, step: int) -> range:
        if self.steps_per_epoch is None:
            start = step * self.batch_size
        else:
            epoch, within = divmod(step, self.steps_per_epoch)
            start = epoch * self.records + within * self.batch_size
        index, count = self.shard
        rows = self.batch_size // count
        return range(start + index * rows, start + (index + 1) * rows)

    def __call__(self, step: int) -> Batch:
        if self.consecutive == 1:
            positions = self._positions(step)
            if self.last is not None:
                positions = positions[: max(self.last - positions.start, 0)]
        else:
            several = range(step * self.consecutive, (step + 1) * self.consecutive)
            # Row r of batch t at r T + t: a device keeps its own rows of every batch.
            positions = np.array([self._positions(one) for one in several]).T.ravel().tolist()
        if self.gather is not None:
            return self.gather(np.array(positions, np.int64))
        return stack((self.elements[i] for i in positions), len(positions))


class Batches(Iterator[Batch]):
    """Batches of training data with a position that can be saved; made by `batches`."""

    def __init__(
        self,
        assemble: _Assemble,
        source: Source,
        *,
        steps: int,
        identity: dict[str, Any],
        workers: int,
        prefetch: int,
    ):
        self._assemble, self._source, self._steps, self._identity = assemble, source, steps, identity
        self._workers, self._prefetch = workers, prefetch
        self._step = 0
        self._iterator: grain.DatasetIterator | None = None

    def _open(self) -> grain.DatasetIterator:
        ahead = grain.ReadOptions(num_threads=min(self._prefetch, 16), prefetch_buffer_size=self._prefetch)
        steps = grain.MapDataset.range(self._step, self._steps).map(self._assemble).to_iter_dataset(ahead)
        if self._workers:
            # grain's worker processes read absl flags, which only programs started by absl have parsed.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            steps = steps.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._prefetch)
            )
        return iter(steps)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._open()
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position, for JSON: the number of batches already taken, and what needs to be the same to
        resume from it."""
        return {"step": self._step, **self._identity, "data": self._fingerprint}

    @functools.cached_property
    def _fingerprint(self) -> dict[str, int | str | None]:
        return fingerprint(self._source)  # asked for once a run, not whenever batches are opened

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position: the next batch is the one that followed when `get_state` was called.

        Raises:
          UserError: the position belongs to other data (other people or photographs, or other labels), another seed, another
            batch size or another strategy.
        """
        _check_same_data(state.get("data"), self._fingerprint)
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise UserError(
                    f"{name}: the saved data position was made with {state.get(name)}, this run has {value}"
                )
        step = state.get("step")
        if not isinstance(step, int) or not 0 <= step <= self._steps:
            raise UserError(
                f"step: the saved data position needs a number from 0 to {self._steps}, got {step}"
            )
        self.close()
        self._step = step

    def close(self) -> None:
        """Stops the threads and processes that work ahead."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def _check_same_data(saved: Any, data: dict[str, int | str | None]) -> None:
    """Refuses a position in other data, from which a run would resume with other labels."""
    changed = [
        name for name, value in data.items() if not isinstance(saved, dict) or saved.get(name) != value
    ]
    if not changed:
        return
    counts = [
        f"{saved[name]} {name} then and {data[name]} now"
        for name in changed
        if name in ("people", "photographs") and isinstance(saved, dict) and name in saved
    ]
    raise UserError(
        f"data: the data changed since the run was saved: {', '.join(counts) or f'other {changed[0]}'}; "
        "give it the data that it had, or choose another workdir"
    )


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    augment: Augment | Copies | ObjectAugment | TeacherStudentViews | None = None,
    shuffle: bool = True,
    repeat: bool = True,
    shard: tuple[int, int] = (0, 1),
    workers: int = 0,
    prefetch: int = 4,
    drop_remainder: bool = True,
    label_override: np.ndarray | None = None,
    order: Order | None = None,
    consecutive: int = 1,
) -> Batches:
    """Batches of a source, endless unless told otherwise.

    Args:
      source: the records.
      batch_size: records of one step over all shards together; each shard gets batch_size / count of them.
      seed: of the order and of the augmentation, any integer >= 0.
      augment: random changes, `Copies` for several of an image, `ObjectAugment` of images with boxes,
        `TeacherStudentViews` of those with and without labels; none unless given.
      shuffle: a new random order in every epoch; otherwise the source's order.
      repeat: start again after the last record.
      shard: (index, count), usually (jax.process_index(), jax.process_count()). The shards' batches, one
        after the other, are the batch that a single shard would give.
      workers: processes that read and augment; 0 means threads of this process. Sources that render or that
        sit in memory want 0.
      prefetch: batches to work ahead (for each worker).
      drop_remainder: leave out the records of an epoch that do not fill a batch, other ones each epoch.
        Otherwise batches run on over the end of an epoch, and without `repeat` the last one is short.
      label_override: [N] integers that replace the source's labels.
      order: strategy that draws the records of a step's batch, such as `samplers.ClassUniform`; there are
        no epochs then, and `shuffle`, `repeat` and `drop_remainder` must stay as they are.
      consecutive: T batches that come as one, for a step that scans them: every field is [B T, ...], row r of batch t at r T + t.
        With more than one, `repeat` must stay True.

    Returns:
      An iterator of flat dicts of arrays: `image` uint8 [B, H, W, C], `label` int32 [B], and what else the
        source has.

    Raises:
      UserError: a batch larger than the source or not a multiple of the shards; a negative seed, size or
        number; what the strategy refuses.
    """
    index, count = shard
    records = len(source)
    check_number("batch_size", batch_size, AtLeast(1))
    if batch_size > records:
        raise UserError(f"batch_size: needs at most the {records} records of this data, got {batch_size}")
    if not 0 <= index < count or batch_size % count:
        raise UserError(
            f"batch_size: needs a multiple of the {count} processes, got {batch_size} (process {index})"
        )
    if not drop_remainder and not repeat and count > 1:
        raise ValueError(
            "drop_remainder: needs True for several shards without repeat, got False: their last batches would differ"
        )
    check_number("seed", seed, AtLeast(0))
    check_number("workers", workers, AtLeast(0))
    check_number("prefetch", prefetch, AtLeast(1))
    check_number("consecutive", consecutive, AtLeast(1))
    if consecutive > 1 and not repeat:
        raise ValueError("consecutive: needs repeat, which is False")
    if label_override is not None:
        source = Relabeled(source, label_override)
    if order is not None:
        if not (shuffle and repeat and drop_remainder):
            raise ValueError(
                "order: needs shuffle, repeat and drop_remainder to be True, a strategy has no epochs"
            )
        first = order(0, batch_size=batch_size, seed=seed)
        if first.shape != (batch_size,) or not 0 <= first.min() <= first.max() < records:
            raise ValueError(
                f"order: needs {batch_size} records of {records} per step, {order.name} gives {first.shape} "
                f"in {first.min()}..{first.max()}"
            )

    read = _Read(source, seed if shuffle else None, order, batch_size)
    elements = grain.MapDataset.range(records).map_with_index(read)
    if augment is not None and augment.active:
        change_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])  # grain takes 32 bits
        elements = elements.random_map(augment.transform(), seed=change_seed)

    steps_per_epoch = records // batch_size if drop_remainder and order is None else None
    if repeat:
        steps, last = _ENDLESS, None
    elif drop_remainder:
        steps, last = records // batch_size, records
    else:
        steps, last = -(-records // batch_size), records
    gather = None
    if hasattr(source, "take") and (augment is None or not augment.active):
        gather = read.gather
    assemble = _Assemble(
        elements, batch_size, shard, records, steps_per_epoch, last, consecutive=consecutive, gather=gather
    )
    identity = {"batch_size": batch_size, "seed": seed}
    if consecutive > 1:
        identity["consecutive"] = consecutive
    identity["order"] = None if order is None else order.name
    return Batches(assemble, source, steps=steps, identity=identity, workers=workers, prefetch=prefetch)


def filled_up(records: Iterable[Record], missing: int) -> Iterator[Record]:
    """The records, at least one, and the last one `missing` times more."""
    for record in records:
        yield record
    yield from itertools.repeat(record, missing)


def evaluation_batches(source: Source, batch_size: int, *, prefetch: int = 4) -> Iterator[Batch]:
    """Every record once, in order, in batches of one size.

    The last batch is filled up with its last record, so that a compiled function sees one shape; `valid` [B]
    bool is False there.

    Raises:
      UserError: no record, or a batch size below 1.
    """
    records = len(source)
    if batch_size < 1 or not records:
        raise UserError(
            f"batch_size: needs a positive number and data that is not empty, got {batch_size} and {records}"
        )

    def assemble(step: int) -> Batch:
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        valid = positions < records
        if hasattr(source, "take"):
            return source.take(np.minimum(positions, records - 1)) | {"valid": valid}
        rows = (source[int(i)] for i in positions[valid])
        return stack(filled_up(rows, int((~valid).sum())), batch_size) | {"valid": valid}

    ahead = grain.ReadOptions(num_threads=min(prefetch, 16), prefetch_buffer_size=prefetch)
    steps = grain.MapDataset.range(-(-records // batch_size)).map(assemble).to_iter_dataset(ahead)
    return iter(steps)
