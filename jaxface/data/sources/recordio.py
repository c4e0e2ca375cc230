"""Training sets of the InsightFace layout, RecordIO files of MXNet: `train.rec`, `train.idx` and `property`.

A record is, little-endian: uint32 magic 0xced7230a; uint32 part << 29 | length; `length` bytes; zeros up to a multiple
of 4. Part 0 is a whole record. Where the payload holds the magic at a multiple of 4 it is split there, the magic is left
out, and the parts carry 1 (first), 2 (middle), 3 (last). The payload is a header `<IfQQ` (flag, label, id, id2), `flag`
further float32 labels that stand in for the scalar one, and an encoded image.

In the InsightFace layout record 0 has two labels (a, b) and no image: keys 1..a-1 are images, keys a..b-1 stand for one
identity each, with the labels (first key, last key + 1) of its images. Files of a generic packer hold images only.

The files come from outside: no number in them is believed before it was compared with the size of the file.
"""

import array
import collections
import contextlib
import logging
import math
import os
import pathlib
import struct
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from jaxface.data.sources.images import MAX_SIDE, CorruptImage, Fit, decode_image, encoded_bytes, fit_square
from jaxface.data.sources.listing import contents
from jaxface.data.sources.source import Record
from jaxface.data.sources.standin import StandInSource
from jaxface.errors import UserError
from jaxface.paths import file_size, is_remote, local_path, name_text, reaching, reason_of, user_path

MAGIC = struct.pack("<I", 0xCED7230A)
MAX_RECORD = 1 << 26  # bytes of a payload; the format itself stops at 2^29 for each part
MAX_PARTS = 1 << 12  # a JPEG of 64 MiB has an aligned magic with probability 1/256
EXACT = 1 << 24  # labels and keys are stored as float32, exact up to here

_HEAD, _IR = struct.Struct("<4sI"), struct.Struct("<IfQQ")
_LENGTH = (1 << 29) - 1
_STAND_INS = 64  # records of a class that are tried for one that cannot be read
_WASTE = 1 << 20  # parts that a scan may visit in vain before it stops looking back
_log = logging.getLogger("jaxface.data")
_OPEN_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)  # each where the system has it

Read = Callable[[int, int], bytes]


class CorruptRecord(CorruptImage):
    """There is no record at this place of the file; the message says why in one line."""


class TooLarge(CorruptImage):
    """A payload of more bytes or parts than readers take."""


class IRHeader(NamedTuple):
    """What stands before the image: `label` is a float, or a tuple of `flag` floats where flag > 0."""

    flag: int
    label: float | tuple[float, ...]
    id: int
    id2: int


def pack(header: IRHeader, image: bytes = b"") -> bytes:
    """The payload of a record; `flag` follows from the label, whatever the header says."""
    if isinstance(header.label, Sequence):
        labels = struct.pack(f"<{len(header.label)}f", *header.label)
        return _IR.pack(len(header.label), 0.0, header.id, header.id2) + labels + image
    return _IR.pack(0, header.label, header.id, header.id2) + image


def unpack(payload: bytes) -> tuple[IRHeader, bytes]:
    """(header, encoded image) of a payload.

    Raises:
      CorruptRecord: shorter than its header and labels.
    """
    if len(payload) < _IR.size:
        raise CorruptRecord(f"{len(payload)} bytes are no header, which has {_IR.size}")
    flag, label, identity, second = _IR.unpack_from(payload)
    if not flag:
        return IRHeader(0, label, identity, second), payload[_IR.size :]
    end = _IR.size + 4 * flag
    if end > len(payload):
        raise CorruptRecord(f"it claims {flag} labels in {len(payload)} bytes")
    labels = struct.unpack_from(f"<{flag}f", payload, _IR.size)
    return IRHeader(flag, labels, identity, second), payload[end:]


def encode_record(payload: bytes) -> bytes:
    """The record of a payload as it stands in the file, padded to a multiple of 4 bytes.

    Raises:
      TooLarge: a payload that readers refuse, longer than `MAX_RECORD` or of more than `MAX_PARTS` parts.
    """
    pieces, start, at = [], 0, payload.find(MAGIC)
    while at >= 0:
        if at % 4:
            at = payload.find(MAGIC, at + 1)
            continue
        pieces.append(payload[start:at])
        start = at + 4
        at = payload.find(MAGIC, start)
    pieces.append(payload[start:])
    last = len(pieces) - 1
    if len(payload) > MAX_RECORD or last >= MAX_PARTS:
        raise TooLarge(f"payload: needs at most {MAX_RECORD} bytes and {MAX_PARTS} parts")
    encoded = []
    for i, piece in enumerate(pieces):
        part = 0 if not last else 1 if i == 0 else 3 if i == last else 2
        encoded += [_HEAD.pack(MAGIC, part << 29 | len(piece)), piece, bytes(-len(piece) % 4)]
    return b"".join(encoded)


class _Broken(CorruptRecord):
    """Where a walk over the parts of a record ended, and after how many parts."""

    def __init__(self, message: str, offset: int, num_parts: int):
        super().__init__(message)
        self.offset, self.num_parts = offset, num_parts


def _record_parts(read: Read, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(kind, start, length) of every part of the record at an offset, of a file of `size` bytes."""
    count = total = 0
    while True:
        head = read(offset, _HEAD.size) if 0 <= offset <= size - _HEAD.size else b""
        if len(head) < _HEAD.size:
            raise _Broken("truncated, or an offset outside the file", offset, count)
        magic, word = _HEAD.unpack(head)
        if magic != MAGIC:
            raise _Broken(f"wrong magic {magic.hex()}", offset, count)
        kind, length = word >> 29, word & _LENGTH
        if kind not in ((2, 3) if count else (0, 1)):
            raise _Broken(f"part {kind} out of turn", offset, count)
        if kind in (1, 2) and length % 4:
            raise _Broken(f"a part of {length} bytes that is not the last", offset, count)
        start, count = offset + _HEAD.size, count + 1
        total += length + 4
        if total > MAX_RECORD + 4 or count > MAX_PARTS:
            raise _Broken(f"it claims more than {MAX_RECORD} bytes or {MAX_PARTS} parts", offset, count)
        if length > size - start:
            raise _Broken(f"truncated: {length} bytes claimed, {size - start} there", offset, count)
        yield kind, start, length
        if kind in (0, 3):
            return
        offset = start + length


def _payload(read: Read, offset: int, size: int) -> bytes:
    pieces = []
    for _, start, length in _record_parts(read, offset, size):
        pieces.append(read(start, length))
        if len(pieces[-1]) < length:
            raise CorruptRecord("truncated")
    return pieces[0] if len(pieces) == 1 else MAGIC.join(pieces)


def decode_record(data: bytes, offset: int = 0) -> bytes:
    """The payload of the record at an offset of some bytes.

    Raises:
      CorruptRecord: a wrong magic, a part out of turn, a length beyond the bytes or beyond `MAX_RECORD`.
    """
    return _payload(lambda at, count: data[at : at + count], offset, len(data))


def _find_record(read: Read, offset: int, size: int) -> int:
    """Where the next record may begin at or after an offset, a multiple of 4; `size` if nowhere."""
    offset += -offset % 4
    length = 1 << 12  # mostly it is near
    while offset < size:
        chunk = read(offset, length)
        at = chunk.find(MAGIC)
        while at >= 0:
            if at % 4 == 0:
                word = chunk[at + 4 : at + 8] or read(offset + at + 4, 4)
                if len(word) == 4 and word[3] >> 5 in (0, 1):
                    return offset + at
            at = chunk.find(MAGIC, at + 1)
        offset += length
        length = min(2 * length, 1 << 20)
    return size


def _scan(read: Read, size: int) -> tuple[np.ndarray, int]:
    """Offsets of all records of a file without an index, and how many damaged places were skipped.

    The aligned magic occurs at the beginning of a part and nowhere else, so that after damage the next one is
    the next record. A record behind which no record begins may have a wrong length: the search continues inside it.
    """
    offsets, damaged, wasted, offset = array.array("q"), 0, 0, 0
    while offset < size:
        try:
            for _, start, length in _record_parts(read, offset, size):
                end = start + length + -length % 4
        except _Broken as error:
            damaged += 1
            wasted += error.num_parts
            # Records that begin inside each other and fail together would make this quadratic.
            behind = offset + 4 if wasted < _WASTE else max(error.offset, offset + 4)
            offset = _find_record(read, behind, size)
            continue
        offsets.append(offset)
        if end < size and read(end, 4) != MAGIC:
            damaged += 1
            end = _find_record(read, offset + _HEAD.size, size)
        offset = end
    return np.frombuffer(offsets, np.int64) if offsets else np.zeros(0, np.int64), damaged


def _index_lines(text: bytes) -> np.ndarray:
    """[N, 2] int64 (key, offset) of the lines of an index, -1 in the place of what is not two numbers."""
    lines = text.count(b"\n") + (bool(text) and not text.endswith(b"\n"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error"
            )  # numpy warns of what it cannot read and returns the numbers before
            numbers = np.fromstring(text.decode("ascii"), np.int64, sep=" ")
        if len(numbers) == 2 * lines:
            return numbers.reshape(-1, 2)
    except (ValueError, DeprecationWarning):
        pass
    rows = np.full((lines, 2), -1, np.int64)
    for row, line in zip(rows, text.split(b"\n"), strict=False):
        words = line.split()
        if len(words) == 2 and all(word.isdigit() and len(word) < 19 for word in words):
            row[:] = int(words[0]), int(words[1])
    return rows


class SeekableFile:
    """Reads from any place of an open file, one thread after the other: for files that have no descriptor to `pread`."""

    def __init__(self, file: BinaryIO):
        self._file, self._lock = file, threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer at the end of the file."""
        with self._lock:
            self._file.seek(offset)
            return self._file.read(count)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _read_at(descriptor: int, path: pathlib.Path, count: int, offset: int) -> bytes:
    """`os.pread`; where the system has none, a read of the file opened once more, whose place no thread or process shares."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    os.fstat(descriptor)  # still open
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(count)


_OPENED = ("_fd", "_reader", "_size", "_close")  # of a RecordFile, made anew where it is unpickled


class RecordFile:
    """Random access to the records of a file, from any number of threads and processes; may be pickled.

    Without an index, or where none of its lines is of use, the file is scanned once.

    Attributes:
      path: the `.rec`.
      keys: [N] int64, keys of the index in its order; 0..N-1 where the file was scanned.
      offsets: [N] int64, where each record begins.
      damaged: lines of the index that are wrong or point outside the file, or damaged places that a scan skipped.
      scanned: whether there was no index.
    """

    def __init__(self, rec: str | os.PathLike, idx: str | os.PathLike | None = None):
        """Opens a file.

        Args:
          rec: the records.
          idx: lines "key<TAB>offset"; `rec` with the ending `.idx` unless given, where there is such a file.

        Raises:
          UserError: no such file, or an index that was given and is not there.
        """
        self.path = user_path("rec", rec)
        self._open()
        index = self.path.with_suffix(".idx") if idx is None else user_path("idx", idx)
        lines = np.zeros((0, 2), np.int64)
        try:
            with reaching(index):
                # A line is no longer than 42 characters, a record no shorter than its head.
                if file_size(index) > 42 * (self._size // _HEAD.size + 2):
                    _log.warning("%s is longer than an index of %s can be, and not used", index, self.path)
                else:
                    lines = _index_lines(index.read_bytes())
        except FileNotFoundError as error:
            if idx is not None:
                raise UserError(f"idx: needs the index of {self.path.name}; got no file {index}") from error
        except OSError as error:
            raise UserError(f"idx: cannot read {index}: {reason_of(error)}") from error
        good = (lines[:, 0] >= 0) & (lines[:, 1] >= 0) & (lines[:, 1] <= self._size - _HEAD.size)
        self.scanned = not good.any()
        if self.scanned:
            self.offsets, self.damaged = _scan(self._pread, self._size)
            self.keys = np.arange(len(self.offsets))
        else:
            keys, first = np.unique(lines[good, 0], return_index=True)
            if len(keys) < good.sum():  # a key twice
                good = np.flatnonzero(good)[np.sort(first)]
            self.keys, self.offsets = lines[good].T.copy()
            self.damaged = len(lines) - len(self.keys)

    def _open(self) -> None:
        try:
            if is_remote(self.path):
                with reaching(self.path):
                    self._reader = SeekableFile(self.path.open("rb"))
                    self._size = file_size(self.path)
                self._close = weakref.finalize(self, self._reader.close)
                return
            self._fd = os.open(self.path, os.O_RDONLY | _OPEN_FLAGS)
            self._close = weakref.finalize(self, os.close, self._fd)
            self._size = os.fstat(self._fd).st_size
            _read_at(self._fd, self.path, 1, 0)  # a folder opens, but does not read
        except OSError as error:
            raise UserError(f"path: needs a .rec file; got {self.path}: {reason_of(error)}") from error

    def _pread(self, offset: int, count: int) -> bytes:
        if is_remote(self.path):
            with reaching(self.path):
                return self._reader.read(offset, count)
        return _read_at(self._fd, self.path, count, offset)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> bytes:
        """Payload of the record at a position of the index.

        Raises:
          CorruptRecord: there is none that is whole.
          IndexError: a position outside the index.
        """
        return _payload(self._pread, int(self.offsets[index]), self._size)

    def header(self, index: int) -> tuple[IRHeader, bool]:
        """(header with at most two labels, whether an image follows) without reading the image.

        Raises:
          CorruptRecord: there is none.
        """
        offset = int(self.offsets[index])
        kind, start, length = next(_record_parts(self._pread, offset, self._size))
        if length < _IR.size + 8 and kind:  # a magic among the first fields
            header, image = unpack(self[index])
            return header, bool(image)
        head = self._pread(start, min(length, _IR.size + 8))
        flag = int.from_bytes(head[:4], "little") if len(head) >= _IR.size else 0
        if not kind and _IR.size + 4 * flag > length:
            raise CorruptRecord(f"it claims {flag} labels in {length} bytes")
        header, _ = unpack(struct.pack("<I", min(flag, 2)) + head[4:])
        return header._replace(flag=flag), bool(kind) or length > _IR.size + 4 * flag

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._close()

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key not in _OPENED}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open()


def record_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The `.rec` files in a folder; a UserError where it cannot be read."""
    try:
        return sorted(path for path in contents(folder).files if path.suffix == ".rec")
    except OSError as error:
        raise UserError(f"path: cannot read {folder}: {reason_of(error)}") from error


def record_path(path: str | os.PathLike) -> pathlib.Path:
    """The `.rec` that is meant by itself, or by the folder that holds it (`train.rec`, or the only one).

    Raises:
      UserError: there is none, or several and none of them `train.rec`.
    """
    path = user_path("path", path)
    with reaching(path):
        if not path.is_dir():
            return path
    records = record_files(path)
    if path / "train.rec" in records:
        return path / "train.rec"
    if len(records) != 1:
        raise UserError(f"path: needs a .rec file or a folder with one; got {len(records)} of them in {path}")
    return records[0]


def _property(rec: pathlib.Path) -> tuple[int, int, int] | None:
    """(classes, height, width) of the file `property` beside the records."""
    with contextlib.suppress(OSError, ValueError), (rec.parent / "property").open("rb") as file:
        classes, height, width = (int(word) for word in file.read(100).split(b","))
        if 0 < classes <= EXACT and 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE:
            return classes, height, width
    return None


def _exact(value: float, limit: int) -> int | None:
    """A float32 as the number in [0, limit) that it has to be; None otherwise."""
    return int(value) if math.isfinite(value) and value == int(value) and 0 <= value < limit else None


class RecordIOFaces(StandInSource):
    """Images of a RecordIO training set, as RGB.

    The labels come from the identity records, or, where there are none or they cannot be trusted, from the headers of
    all records (some 10 microseconds each). Classes are the labels that occur, numbered 0..K-1 in their order.

    Records without an image, with a label that is no class or that cannot be read are left out when the file is
    opened. What turns out to be damaged later is replaced by the next good record of its class, always the same one;
    after 64 in vain, by a gray image. So the length of an epoch and the labels depend on the files alone.

    Attributes:
      labels: [N] int32.
      class_names: the labels as they stand in the file.
      image_shape: (H, W, 3).
      left_out: reason -> how many records were left out on opening.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        image_size: int | None = None,
        fit: Fit = "pad",
        idx: str | None = None,
    ):
        """Opens a set; decodes five images.

        Args:
          path: the `.rec`, or the folder that holds it.
          image_size: side of every image, pixels; as `property` says, or as the first good images are, unless given.
          fit: how a rectangle becomes a square, see `images.fit_square`.
          idx: the index; `path` with the ending `.idx` unless given, and made by a scan where there is none.

        Raises:
          UserError: no such file, or no image in it that can be read.
        """
        super().__init__()
        self._file = RecordFile(record_path(path), idx)
        self._size, self._fit, self._members = image_size, fit, None
        size_property = _property(self._file.path)
        self._limit = size_property[0] if size_property else EXACT
        reasons: collections.Counter[str] = collections.Counter()
        if self._file.damaged:
            reasons["damaged places" if self._file.scanned else "wrong lines of the index"] = (
                self._file.damaged
            )
        self._positions, stored = self._from_identities() or self._from_headers(reasons)
        self.left_out = dict(reasons)
        if self.left_out:
            what = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            _log.warning("left out of %s: %s", name_text(self._file.path), what)
        if not len(stored):
            raise UserError(f"path: needs a .rec with images; got none that can be read in {self._file.path}")
        names, labels = np.unique(stored, return_inverse=True)
        self._names, self.labels = names, labels.astype(np.int32)
        self.class_names = [str(name) for name in names.tolist()]
        shapes = self._first_shapes()
        if size_property and (*size_property[1:], 3) in shapes:
            native = (*size_property[1:], 3)
        else:
            native = collections.Counter(shapes).most_common(1)[0][0]
        self.image_shape = (image_size, image_size, 3) if image_size else native

    @property
    def record_names(self) -> np.ndarray:
        """[N] int64, where the records begin in the file."""
        return np.asarray(self._file.offsets)[self._positions]

    def _from_identities(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(positions, labels) by the identity records, in the order of the keys; None where they do not tell all.

        What an identity is called stands in its first image alone, so that a set of 5 million images is opened by
        reading some 200,000 headers.
        """
        file = self._file
        if not len(file) or (file.scanned and file.damaged):  # after damage a scan's keys are shifted
            return None
        order = np.argsort(file.keys, kind="stable")
        keys = file.keys[order]
        ends = self._range(int(order[0]), EXACT)
        if keys[0] != 0 or ends is None:
            return None
        first_identity, last = np.searchsorted(keys, ends).tolist()
        if last - first_identity != ends[1] - ends[0]:
            return None
        begin = int(np.searchsorted(keys, 1))
        labels = np.full(first_identity - begin, -1, np.int64)
        for row in range(first_identity, last):
            bounds = self._range(int(order[row]), ends[0])
            if bounds is None:
                return None
            start, stop = (np.searchsorted(keys[begin:first_identity], bounds)).tolist()
            if start >= stop:
                continue
            members = range(start, min(stop, start + _STAND_INS))
            stored = (self._label(int(order[begin + member])) for member in members)
            label = next((label for label in stored if isinstance(label, int)), None)
            if label is None or (labels[start:stop] >= 0).any():
                return None
            labels[start:stop] = label
        return None if (labels < 0).any() else (order[begin:first_identity], labels)

    def _range(self, position: int, limit: int) -> tuple[int, int] | None:
        """The two labels of a record without an image, 1 <= first <= second <= limit; None if it is no such record."""
        try:
            header, image = self._file.header(position)
        except CorruptRecord:
            return None
        if header.flag != 2 or image:
            return None
        first, second = (_exact(value, limit + 1) for value in header.label)
        return (first, second) if first is not None and second is not None and 1 <= first <= second else None

    def _from_headers(self, reasons: collections.Counter) -> tuple[np.ndarray, np.ndarray]:
        """(positions, labels) by the headers of all records."""
        labels = np.full(len(self._file), -1, np.int64)
        for position in range(len(labels)):
            label = self._label(position)
            if isinstance(label, int):
                labels[position] = label
            elif label:
                reasons[label] += 1
        return np.flatnonzero(labels >= 0), labels[labels >= 0]

    def _label(self, position: int) -> int | str:
        """Label in the header of a record, or why it has none; "" of a record that is no image by its nature."""
        try:
            header, image = self._file.header(position)
        except CorruptRecord:
            return "damaged records"
        if not image:
            return "" if header.flag == 2 else "records without an image"
        label = _exact(header.label if header.flag == 0 else header.label[0], self._limit)
        return "records whose label is no class" if label is None else label

    def _first_shapes(self) -> list[tuple[int, int, int]]:
        """Shapes of the first five images that decode: one of them alone may be damaged and still decode."""
        shapes = []
        for index in range(min(len(self), 1000)):
            with contextlib.suppress(CorruptImage):
                shapes.append(decode_image(self.encoded(index)).shape)
            if len(shapes) == 5:
                break
        if not shapes:
            raise UserError(f"path: none of the first images of {self._file.path} can be read")
        return shapes

    def encoded(self, index: int) -> bytes:
        """The encoded image of a record, as it stands in the file.

        Raises:
          CorruptRecord: it is damaged, or its label is another than its identity's.
        """
        header, image = unpack(self._file[int(self._positions[index])])
        label = header.label if header.flag == 0 else header.label[0]
        if label != self._names[self.labels[index]]:
            raise CorruptRecord(
                f"its label {label} is not that of its identity, {self._describe_class(index)}"
            )
        return image

    def _describe_class(self, index: int) -> str:
        return self.class_names[self.labels[index]]

    def _read(self, index: int) -> Record:
        image = decode_image(self.encoded(index))
        if self._size:
            image = fit_square(image, self._size, fit=self._fit)
        elif image.shape != self.image_shape:
            raise CorruptImage(f"it is {image.shape}, the others are {self.image_shape}; give image_size")
        return {"image": image, "label": self.labels[index]}

    def _describe(self, index: int) -> str:
        return f"record {self._file.keys[self._positions[index]]} of {name_text(self._file.path)}"

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[index]
        for candidate in self._candidates(index):
            if candidate in self._bad:
                continue
            try:
                return self._read(candidate)
            except CorruptImage as error:
                self._count(candidate, error)
        return {"image": np.full(self.image_shape, 127, np.uint8), "label": self.labels[index]}

    def _candidates(self, index: int) -> Iterator[int]:
        """The record itself, then those that may stand in for it."""
        yield index
        if self._members is None:  # classes after each other, each in its order; made on the first damage
            order = np.argsort(self.labels, kind="stable")
            starts = np.searchsorted(self.labels[order], np.arange(len(self.class_names) + 1))
            self._members = order, starts
        order, starts = self._members
        members = order[slice(*starts[self.labels[index] :][:2].tolist())]
        place = int(np.searchsorted(members, index))
        following = np.arange(place + 1, place + min(len(members), _STAND_INS + 1)) % len(members)
        yield from members[following].tolist()


def write_record(rec: BinaryIO, idx: BinaryIO, key: int, payload: bytes) -> None:
    """Appends a record to a file and its line to the index; one that is `TooLarge` leaves both as they are."""
    _append_record(rec, idx, key, encode_record(payload))


def _append_record(rec: BinaryIO, idx: BinaryIO, key: int, record: bytes) -> None:
    idx.write(b"%d\t%d\n" % (key, rec.tell()))
    rec.write(record)


class RecordWriter:
    """Writes a training set: `.rec`, `.idx` and `property`.

    It writes beside the final files and renames when it is closed without an exception; a writer that is stopped leaves
    nothing that passes for a training set. `checkpoint` and `resume` let another writer resume after what was written.

        with RecordWriter("faces/train.rec") as writer:
            for label, image in images:    # of one class after the other
                writer.write(label, image)
    """

    def __init__(self, rec: str | os.PathLike, *, identities: bool = True, resume: dict | None = None):
        """Begins the files.

        Args:
          rec: the file to come; `.idx` and `property` come beside it, the folder is made.
          identities: InsightFace layout, for up to 2^24 records; otherwise images alone, in any order.
          resume: what `checkpoint` gave to a writer of this file that was stopped since.

        Raises:
          UserError: one of the files exists, or cannot be written, or another set is being written in this folder.
        """
        self.path = local_path("rec", rec)
        self._finals = (self.path, self.path.with_suffix(".idx"), self.path.parent / "property")
        self._partial = [path.with_name(f".{path.name}.partial") for path in self._finals]
        self._identities = identities
        self._ranges: list[list[int]] = []  # label, first key, key after the last
        self._seen: set[int] = set()
        self._key, self._top, self._shape = 0, -1, None
        # One that was stopped between its last renames has given the records no name yet.
        for path in self._finals if resume is None else self._finals[:1]:
            if path.exists():
                raise UserError(f"rec: {path} exists already; choose another folder or remove it")
        # `property` has one name in a folder, whatever the records are called.
        others = set(self.path.parent.glob(".*.rec.partial")) - {self._partial[0]}
        if others:
            raise UserError(
                f"rec: {min(others)} is being written in this folder, which holds one set; choose another folder"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if resume is not None and not self._partial[1].exists():
                os.replace(self._finals[1], self._partial[1])
            mode = "wb" if resume is None else "r+b"
            self._rec, self._idx = (path.open(mode) for path in self._partial[:2])
            if resume is not None:
                self._go_on(resume)
        except OSError as error:
            raise UserError(f"rec: cannot write to {self.path.parent}: {error.strerror}") from error
        if resume is None and identities:
            self._append(
                encode_record(pack(IRHeader(2, (0.0, 0.0), 0, 0)))
            )  # the numbers are known when all is written

    def _go_on(self, state: dict) -> None:
        for file, name in ((self._rec, "rec"), (self._idx, "idx")):
            if os.fstat(file.fileno()).st_size < state[name]:
                raise UserError(f"resume: {file.name} is shorter than at its checkpoint; remove it")
            file.truncate(state[name])
            file.seek(state[name])
        if not state["idx"]:
            return
        written = RecordFile(self._partial[0], self._partial[1])
        for position in range(int(self._identities), len(written)):
            label = int(written.header(position)[0].label)
            if self._shape is None:
                self._shape = decode_image(unpack(written[position])[1]).shape
            self._note(label, position)
        self._key = len(written)

    def _note(self, label: int, key: int) -> None:
        self._top = max(self._top, label)
        if not self._identities:
            return
        if self._ranges and self._ranges[-1][0] == label:
            self._ranges[-1][2] = key + 1
            return
        if label in self._seen:
            raise ValueError(f"label: the images of class {label} need to follow each other")
        self._seen.add(label)
        self._ranges.append([label, key, key + 1])

    def _append(self, record: bytes) -> int:
        _append_record(self._rec, self._idx, self._key, record)
        self._key += 1
        return self._key - 1

    def write(self, label: int, image: bytes) -> int:
        """Appends an encoded image; returns its key.

        Raises:
          CorruptImage: the first image does not decode (its size goes to `property`), or one is `TooLarge` for a record.
          TypeError: the image is not bytes.
          ValueError: a label that is no integer in [0, 2^24), a class that was left before, or too many records for identities.

        Nothing has been written then.
        """
        if not 0 <= label < EXACT or label != int(label):
            raise ValueError(f"label: needs an integer from 0 to {EXACT - 1}, got {label}")
        label, image = int(label), encoded_bytes(image)
        if self._identities and self._key + len(self._ranges) + 2 > EXACT:
            raise ValueError(f"identities: the keys of more than {EXACT} records are not exact")
        record = encode_record(pack(IRHeader(0, float(label), self._key, 0), image))
        if self._shape is None:
            self._shape = decode_image(image).shape
        self._note(label, self._key)
        return self._append(record)

    def checkpoint(self) -> dict:
        """Brings what was written to disk; returns what `resume` needs, for JSON."""
        for file in (self._rec, self._idx):
            file.flush()
            os.fsync(file.fileno())
        return {"rec": self._rec.tell(), "idx": self._idx.tell()}

    def close(self) -> None:
        """Writes the identities and `property`, and gives the files their names.

        Raises:
          UserError: no image was written.
        """
        if self._shape is None:
            self.abandon()
            raise UserError(f"rec: no image to write to {self.path}")
        if self._identities:
            first = self._key
            for _, begin, end in self._ranges:
                self._append(encode_record(pack(IRHeader(2, (float(begin), float(end)), self._key, 0))))
            self._rec.seek(0)
            self._rec.write(encode_record(pack(IRHeader(2, (float(first), float(self._key)), 0, 0))))
        with self._partial[2].open("w", encoding="ascii") as file:
            file.write(f"{self._top + 1},{self._shape[0]},{self._shape[1]}\n")
            file.flush()
            os.fsync(file.fileno())
        self.checkpoint()
        self._rec.close()
        self._idx.close()
        # The records last: without them nothing passes for a training set.
        for partial, final in reversed(list(zip(self._partial, self._finals, strict=True))):
            os.replace(partial, final)

    def stop(self) -> None:
        """Leaves what was written for `resume`."""
        self._rec.close()
        self._idx.close()

    def abandon(self) -> None:
        """Removes what was written."""
        self.stop()
        for path in self._partial:
            path.unlink(missing_ok=True)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()
