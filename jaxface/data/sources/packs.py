"""InsightFace verification packs: one pickle of (encoded images of N pairs, whether each is of one person).

A pickle is a program. Here nothing of it runs and nothing is imported: an interpreter of our own knows the instructions
that lists, tuples, numbers, bytes, strings and numpy arrays need, and takes the few functions that numpy's pickles call
as names of what the bytes beside them mean. Memory is taken for bytes that are there, never for a number in the file.
"""

import collections
import logging
import math
import os
import pathlib
import pickle
import re
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxface.data.sources.images import CorruptImage, Fit, decode_image, fit_square
from jaxface.data.sources.source import Record
from jaxface.errors import UserError
from jaxface.metrics.recognition.pairs import Pairs

MAX_PACK = 1 << 31  # bytes; the largest public ones have some hundred million
MAX_STEPS = 1 << 22  # instructions; arrays in the oldest protocol need some 50 for an image
MAX_DEPTH = 100  # of what stands inside each other
_log = logging.getLogger("jaxface.data")

_FUNCTIONS = {
    **{
        (f"numpy.{core}.{module}", name): name
        for core in ("core", "_core")
        for module, names in {
            "multiarray": ("_reconstruct", "scalar", "_frombuffer"),
            "numeric": ("_frombuffer",),
        }.items()
        for name in names
    },
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",  # how protocols below 3 write bytes
    ("__builtin__", "bytes"): "bytes",  # and no bytes at all
    ("builtins", "bytes"): "bytes",
}
_TYPES = {"b1", "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"}


_ESCAPE = re.compile(rb"\\(?:x[0-9a-fA-F]{2}|[\\'\"nrt])")  # those of Python 2's repr


class Refused(ValueError):
    """This pickle holds something that a pack has no use for, or is no pickle; one line."""


class _Function(NamedTuple):
    name: str


class _Type:
    """A numpy dtype: `code` such as u1, `order` of the bytes in a number."""

    __slots__ = ("code", "order")

    def __init__(self, code: str):
        self.code, self.order = code, "="


class _Array:
    """The bytes of an array, its type and shape; None before its BUILD."""

    __slots__ = ("data", "shape", "type")

    def __init__(self):
        self.data = self.type = self.shape = None

    def fill(self, data: Any, shape: Any, kind: Any) -> "_Array":
        if not isinstance(data, bytes) or not isinstance(kind, _Type) or not isinstance(shape, tuple):
            raise Refused("an array of something else than numbers")
        if len(shape) > 2 or not all(type(side) is int and side >= 0 for side in shape):
            raise Refused("an array whose shape is not that of a file or of a list")
        if math.prod(shape) * np.dtype(kind.code).itemsize != len(data):
            raise Refused(f"an array of {len(data)} bytes with another shape")
        self.data, self.shape, self.type = data, shape, kind
        return self

    def numbers(self) -> list:
        """What is in it, one after the other."""
        kind = np.dtype(self.type.code).newbyteorder(self.type.order)
        return np.frombuffer(self.data, kind).tolist()


def _text(value: Any) -> str:
    """A short str, or the bytes that Python 2 has for one."""
    if not isinstance(value, str | bytes) or len(value) > 200:
        raise Refused(f"a {type(value).__name__} where a name belongs")
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _items(value: Any, *lengths: int) -> tuple:
    if not isinstance(value, tuple) or len(value) not in lengths:
        raise Refused("a numpy object with other arguments than numpy writes")
    return value


def _call(function: Any, arguments: Any) -> Any:
    """What a call that numpy or bytes write into a pickle stands for."""
    if not isinstance(function, _Function):
        raise Refused(f"a call of a {type(function).__name__}")
    name = function.name
    if name == "bytes":
        _items(arguments, 0)
        return b""
    if name == "dtype":
        code = _text(_items(arguments, 1, 3)[0]).lstrip("|")
        if code not in _TYPES:
            raise Refused(f"an array of type {code[:20]!r}")
        return _Type(code)
    if name == "scalar":
        dtype, data = _items(arguments, 2)
        return _Array().fill(data, (), dtype)
    if name == "_frombuffer":
        data, dtype, shape, order = _items(arguments, 4)
        if _text(order) not in ("C", "F"):
            raise Refused("an array in an unknown order")
        return _Array().fill(data, shape, dtype)
    if name == "_reconstruct":
        kind, shape, code = _items(arguments, 3)
        if kind != _Function("ndarray") or shape != (0,) or code not in (b"b", "b"):
            raise Refused("a numpy object that is no plain array")
        return _Array()
    raise Refused(f"a call of numpy's {name}")


def _build(target: Any, state: Any) -> None:
    if isinstance(target, _Type):
        order = _text(_items(state, 8)[1])
        if order not in ("|", "<", ">", "=") or state[2:5] != (None, None, None):
            raise Refused("an array of records")
        target.order = order
        return
    if isinstance(target, _Array) and target.data is None:
        _, shape, dtype, _, data = _items(state, 5)
        target.fill(data, shape, dtype)
        return
    raise Refused(f"a state for a {type(target).__name__}")


class _Interpreter:
    """Runs a pickle's instructions over a stack of lists, tuples, numbers, bytes, strings and the classes above."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 0
        self._stack: list = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._encoded = 0

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise Refused("cut short, or a length beyond its end")
        self._at += count
        return self._data[self._at - count : self._at]

    def _number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _line(self, limit: int) -> bytes:
        end = self._data.find(b"\n", self._at, self._at + limit)
        if end < 0:
            raise Refused("a line without an end")
        line = self._data[self._at : end]
        self._at = end + 1
        return line

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise Refused("an instruction without its operands")
        return self._stack.pop()

    def _since_mark(self) -> list:
        if not self._marks:
            raise Refused("an instruction without its operands")
        start = self._marks.pop()
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def _top(self, kind: type) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0) or type(self._stack[-1]) is not kind:
            raise Refused(f"an instruction without the {kind.__name__} it is for")
        return self._stack[-1]

    def _integer(self, line: bytes) -> int:
        digits = line.removesuffix(b"L")
        if len(digits) > 20 or not digits.removeprefix(b"-").isdigit():
            raise Refused("a number that is none")
        return int(digits)

    def _function(self, module: Any, name: Any) -> _Function:
        module, name = _text(module), _text(name)
        known = _FUNCTIONS.get((module, name))
        if known is None:
            raise Refused(f"a call for {f'{module}.{name}'[:80]!a}")
        return _Function(known)

    def run(self) -> Any:
        """The object that the pickle makes; arrays as `_Array`."""
        for _ in range(MAX_STEPS):
            code = self._take(1)
            if code == b".":
                return self._pop()
            step = _STEPS.get(code)
            if step is None:
                raise Refused(f"instruction {ascii(code)[1:]}, which no pack needs")
            step(self)
        raise Refused(f"more than {MAX_STEPS} instructions")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _string(self, size: int) -> str:
        try:
            return self._take(size).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise Refused("text that is not UTF-8") from None

    def _proto(self) -> None:
        if self._number(1) > 5:
            raise Refused("a protocol above 5")

    def _frame(self) -> None:
        if self._number(8) > len(self._data) - self._at:
            raise Refused("cut short")

    def _int_line(self) -> None:
        line = self._line(32)
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else self._integer(line))

    def _long(self, size: int) -> None:
        count = self._number(size)
        if count > 8:
            raise Refused("a number of more than 8 bytes")
        self._push(self._number(count, signed=True))

    def _quoted(self) -> None:
        """Python 2's repr of a str: quotes and escapes, and bytes here."""
        line = self._line(MAX_PACK)
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise Refused("a string without quotes")
        line = line[1:-1]
        if b"\\" in _ESCAPE.sub(b"", line):
            raise Refused("a string with wrong escapes")
        self._push(line.decode("unicode_escape").encode("latin-1"))

    def _unicode_line(self) -> None:
        try:
            self._push(self._line(MAX_PACK).decode("raw_unicode_escape"))
        except UnicodeDecodeError:
            raise Refused("text with wrong escapes") from None

    def _mark(self) -> None:
        if len(self._marks) >= MAX_DEPTH:
            raise Refused(f"more than {MAX_DEPTH} things inside each other")
        self._marks.append(len(self._stack))

    def _tuple(self, count: int) -> None:
        found = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(found)))

    def _append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _appends(self) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def _put(self, key: int) -> None:
        self._memo[key] = self._peek()

    def _peek(self) -> Any:
        value = self._pop()
        self._push(value)
        return value

    def _get(self, key: int) -> None:
        if key not in self._memo:
            raise Refused("a reference to nothing")
        self._push(self._memo[key])

    def _pop_one(self) -> None:
        # As in pickle: POP on an empty part of the stack takes the mark away.
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _global(self) -> None:
        module, name = self._line(200), self._line(200)
        self._push(self._function(module, name))

    def _stack_global(self) -> None:
        name = self._pop()
        self._push(self._function(self._pop(), name))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        encode = function == _Function("encode")
        self._push(self._encode(*_items(arguments, 2)) if encode else _call(function, arguments))

    def _encode(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or _text(encoding) not in ("latin1", "latin-1"):
            raise Refused("an encoding that bytes are not written with")
        self._encoded += len(text)
        if self._encoded > len(self._data):  # the same text again and again
            raise Refused("more bytes than it is long")
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            raise Refused("text in the place of bytes") from None

    def _build(self) -> None:
        state = self._pop()
        _build(self._peek(), state)


_STEPS = {
    b"\x80": _Interpreter._proto,
    b"\x95": _Interpreter._frame,
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"I": _Interpreter._int_line,
    b"L": lambda m: m._push(m._integer(m._line(32))),
    b"J": lambda m: m._push(m._number(4, signed=True)),
    b"K": lambda m: m._push(m._number(1)),
    b"M": lambda m: m._push(m._number(2)),
    b"\x8a": lambda m: m._long(1),
    b"\x8b": lambda m: m._long(4),
    b"S": _Interpreter._quoted,
    b"T": lambda m: m._push(m._take(m._number(4))),
    b"U": lambda m: m._push(m._take(m._number(1))),
    b"B": lambda m: m._push(m._take(m._number(4))),
    b"C": lambda m: m._push(m._take(m._number(1))),
    b"\x8e": lambda m: m._push(m._take(m._number(8))),
    b"\x96": lambda m: m._push(m._take(m._number(8))),  # a bytearray, which nothing changes here
    b"V": _Interpreter._unicode_line,
    b"X": lambda m: m._push(m._string(m._number(4))),
    b"\x8c": lambda m: m._push(m._string(m._number(1))),
    b"\x8d": lambda m: m._push(m._string(m._number(8))),
    b"]": lambda m: m._push([]),
    b")": lambda m: m._push(()),
    b"(": _Interpreter._mark,
    b"l": lambda m: m._push(m._since_mark()),
    b"t": lambda m: m._push(tuple(m._since_mark())),
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"a": _Interpreter._append,
    b"e": _Interpreter._appends,
    b"p": lambda m: m._put(m._integer(m._line(32))),
    b"q": lambda m: m._put(m._number(1)),
    b"r": lambda m: m._put(m._number(4)),
    b"\x94": lambda m: m._put(len(m._memo)),
    b"g": lambda m: m._get(m._integer(m._line(32))),
    b"h": lambda m: m._get(m._number(1)),
    b"j": lambda m: m._get(m._number(4)),
    b"0": _Interpreter._pop_one,
    b"1": lambda m: m._since_mark(),
    b"2": lambda m: m._push(m._peek()),
    b"c": _Interpreter._global,
    b"\x93": _Interpreter._stack_global,
    b"R": _Interpreter._reduce,
    b"b": _Interpreter._build,
}


def _image(entry: Any) -> bytes:
    if isinstance(entry, bytes):
        return entry
    filled = isinstance(entry, _Array) and entry.data is not None
    if filled and entry.type.code == "u1" and (len(entry.shape) == 1 or entry.shape[1:] == (1,)):
        return entry.data
    raise Refused("an image that is neither bytes nor a uint8 array of shape [L] or [L, 1]")


def _truth(entry: Any) -> bool:
    if isinstance(entry, _Array) and entry.shape == ():
        entry = entry.numbers()[0]
    if isinstance(entry, bool) or (type(entry) is int and entry in (0, 1)):
        return bool(entry)
    raise Refused("a pair that is neither same nor different")


def parse_bin(data: bytes) -> tuple[list[bytes], np.ndarray]:
    """`read_bin` of bytes.

    Raises:
      Refused: what makes `read_bin` refuse.
    """
    if len(data) > MAX_PACK:
        raise Refused(f"more than {MAX_PACK} bytes")
    pack = _Interpreter(data).run()
    if not isinstance(pack, tuple | list) or len(pack) != 2:
        raise Refused("no pair of images and labels")
    bins, labels = pack
    if isinstance(labels, _Array) and labels.data is not None and len(labels.shape) == 1:
        labels = labels.numbers()
    if not isinstance(bins, list | tuple) or not isinstance(labels, list | tuple):
        raise Refused("no pair of a list of images and a list of labels")
    if len(bins) % 2:
        raise Refused(f"an odd number of images, {len(bins)}")
    if len(labels) != len(bins) // 2:
        raise Refused(f"{len(labels)} labels for {len(bins) // 2} pairs")
    return [_image(entry) for entry in bins], np.array([_truth(entry) for entry in labels], bool)


def read_bin(path: str | os.PathLike) -> tuple[list[bytes], np.ndarray]:
    """Images and labels of a verification pack, of any pickle protocol from 0 to 5 and of Python 2.

    Args:
      path: the `.bin`.

    Returns:
      (2N encoded images, pair i being 2i and 2i + 1; same [N] bool).

    Raises:
      UserError: no such file, or a pickle with anything but lists, tuples, numbers, bytes, strings and numpy arrays in
        it, which has been read and not run; an odd number of images or another number of labels than of pairs.
    """
    path = pathlib.Path(path).expanduser()
    try:
        if path.stat().st_size > MAX_PACK:
            raise UserError(f"path: needs a pack of at most {MAX_PACK} bytes; got {path}")
        return parse_bin(path.read_bytes())
    except OSError as error:
        raise UserError(f"path: needs a .bin pack; got {path}: {error.strerror}") from error
    except Refused as error:
        raise UserError(f"path: needs a .bin pack; got {path}, which holds {error}") from None


def write_bin(path: str | os.PathLike, images: Sequence[bytes], same: Sequence[bool] | np.ndarray) -> None:
    """Writes a verification pack, as protocol 4, whole or not at all.

    Args:
      path: the `.bin` to come.
      images: 2N encoded images, pair i being 2i and 2i + 1.
      same: [N] bool.

    Raises:
      ValueError: another number of labels than of pairs.
      UserError: the file cannot be written.
    """
    same = [bool(value) for value in same]
    if len(images) != 2 * len(same):
        raise ValueError(f"images: needs two for each of the {len(same)} pairs, got {len(images)}")
    path = pathlib.Path(path).expanduser()
    data = pickle.dumps(([bytes(image) for image in images], same), protocol=4)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            pathlib.Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"path: cannot write {path}: {error.strerror}") from error


class PackSource:
    """The images of a verification pack, to be compared in the pairs that come with them.

    All images are decoded once on opening. A pair with one that cannot be read is left out: no other image could stand
    in for it. The folds of the protocol are contiguous tenths of what is left, in the order of the pack.

    Attributes:
      pairs: the official pairs, for `jaxface.metrics.verify(embeddings, None, pairs=source.pairs)`.
      labels: [2N] int32, equal for the two images of a genuine pair and otherwise different. They say nothing across
        pairs: a pack does not tell who is on an image.
      class_names: one number per label.
      image_shape: (image_size, image_size, 3).
      corrupt: images that cannot be read.
    """

    def __init__(self, path: str | os.PathLike, *, image_size: int = 112, fit: Fit = "crop"):
        """Opens a pack.

        Args:
          path: the `.bin`.
          image_size: side of every image, pixels.
          fit: how a rectangle becomes a square; `crop` resizes the short side, as the public protocol does.

        Raises:
          UserError: what `read_bin` refuses, or fewer than two genuine or impostor pairs that can be read.
        """
        images, same = read_bin(path)
        good = np.ones(len(images), bool)
        reasons: collections.Counter[str] = collections.Counter()
        for index, image in enumerate(images):
            try:
                decode_image(image)
            except CorruptImage as error:
                good[index] = False
                reasons[str(error)] += 1
        self.corrupt = int((~good).sum())
        kept = np.flatnonzero(good[0::2] & good[1::2])
        if self.corrupt:
            _log.warning(
                "left out %d of the %d pairs of %s: %d images cannot be read (%s)",
                *(len(same) - len(kept), len(same), path, self.corrupt, reasons.most_common(1)[0][0]),
            )
        same = same[kept]
        if min(same.sum(), (~same).sum()) < 2:
            raise UserError(
                f"path: needs a pack with two genuine and two impostor pairs; {path} has {same.sum()} and "
                f"{(~same).sum()} that can be read"
            )
        self._images = [images[index] for pair in kept.tolist() for index in (2 * pair, 2 * pair + 1)]
        self._size, self._fit = image_size, fit
        self.image_shape = (image_size, image_size, 3)
        first = np.arange(0, 2 * len(same), 2)
        self.labels = np.stack([first, np.where(same, first, first + 1)], 1).ravel().astype(np.int32)
        self.class_names = [str(number) for number in range(2 * len(same))]
        indices = np.stack([first, first + 1], 1).astype(np.int32)
        self.pairs = Pairs(indices, same, folds=min(10, len(same)))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        image = fit_square(decode_image(self._images[index]), self._size, fit=self._fit)
        return {"image": image, "label": self.labels[index]}
