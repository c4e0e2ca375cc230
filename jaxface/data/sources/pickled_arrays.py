"""Arrays of numbers in pickles from outside, of numpy 1 and 2.

Nothing of the pickle runs (`jaxface.safe_pickle`): the few functions that numpy's pickles call are names of what the bytes beside
them mean.
"""

import math
from typing import Any

import numpy as np

from jaxface import safe_pickle
from jaxface.safe_pickle import Name, Refused

_TYPES = {"b1", "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"}


class PickledType:
    """A numpy dtype: `code` such as u1, `order` of the bytes in a number."""

    __slots__ = ("code", "order")

    def __init__(self, code: str):
        self.code, self.order = code, "="


class PickledArray:
    """The bytes of an array of at most two axes, its type and shape; None before its BUILD."""

    __slots__ = ("columns", "data", "shape", "type")

    def __init__(self):
        self.data = self.type = self.shape = None
        self.columns = False

    def fill(self, data: Any, shape: Any, kind: Any, columns: Any = False) -> "PickledArray":
        """Takes what it holds, checked; `columns` says that it lies column by column."""
        if not isinstance(data, bytes) or not isinstance(kind, PickledType) or not isinstance(shape, tuple):
            raise Refused("holds an array of something else than numbers")
        if len(shape) > 2 or not all(type(side) is int and side >= 0 for side in shape):
            raise Refused("holds an array whose shape is not that of a file or of a list")
        if math.prod(shape) * np.dtype(kind.code).itemsize != len(data):
            raise Refused(f"holds an array of {len(data)} bytes with another shape")
        self.data, self.shape, self.type, self.columns = data, shape, kind, bool(columns)
        return self

    def numbers(self) -> list:
        """What is in it, one after the other."""
        return np.frombuffer(self.data, self._dtype()).tolist()

    def array(self) -> np.ndarray:
        """The array, which cannot be written to."""
        if self.data is None:
            raise Refused("holds an array without its numbers")
        return np.frombuffer(self.data, self._dtype()).reshape(self.shape, order="F" if self.columns else "C")

    def _dtype(self) -> np.dtype:
        return np.dtype(self.type.code).newbyteorder(self.type.order)


def _items(value: Any, *lengths: int) -> tuple:
    if not isinstance(value, tuple) or len(value) not in lengths:
        raise Refused("holds a numpy object with other arguments than numpy writes")
    return value


def _empty(arguments: tuple) -> bytes:
    _items(arguments, 0)
    return b""


def _encode(arguments: tuple) -> bytes:
    """How protocols below 3 write bytes."""
    text, encoding = _items(arguments, 2)
    if not isinstance(text, str) or safe_pickle.text(encoding) not in ("latin1", "latin-1"):
        raise Refused("uses an encoding that bytes are not written with")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise Refused("has text in the place of bytes") from None


def _dtype(arguments: tuple) -> PickledType:
    code = safe_pickle.text(_items(arguments, 1, 3)[0]).lstrip("|")
    if code not in _TYPES:
        raise Refused(f"holds an array of type {code[:20]!r}")
    return PickledType(code)


def _scalar(arguments: tuple) -> PickledArray:
    dtype, data = _items(arguments, 2)
    return PickledArray().fill(data, (), dtype)


def _from_buffer(arguments: tuple) -> PickledArray:
    data, dtype, shape, order = _items(arguments, 4)
    order = safe_pickle.text(order)
    if order not in ("C", "F"):
        raise Refused("holds an array in an unknown order")
    return PickledArray().fill(data, shape, dtype, order == "F")


def _reconstruct(arguments: tuple) -> PickledArray:
    kind, shape, code = _items(arguments, 3)
    if kind != Name("numpy.ndarray") or shape != (0,) or code not in (b"b", "b"):
        raise Refused("holds a numpy object that is no plain array")
    return PickledArray()


FUNCTIONS = {  # for `safe_pickle.load`
    "numpy.ndarray": None,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _empty,
    "builtins.bytes": _empty,
    **{
        f"numpy.{core}.{name}": function
        for core in ("core", "_core")  # of numpy 1 and of numpy 2
        for name, function in {
            "multiarray._reconstruct": _reconstruct,
            "multiarray.scalar": _scalar,
            "multiarray._frombuffer": _from_buffer,
            "numeric._frombuffer": _from_buffer,
        }.items()
    },
}


def build(target: Any, state: Any) -> None:
    """What BUILD does to a type or an array, for `safe_pickle.load`."""
    if isinstance(target, PickledType):
        order = safe_pickle.text(_items(state, 8)[1])
        if order not in ("|", "<", ">", "=") or state[2:5] != (None, None, None):
            raise Refused("holds an array of records")
        target.order = order
    elif isinstance(target, PickledArray) and target.data is None:
        _, shape, dtype, columns, data = _items(state, 5)
        target.fill(data, shape, dtype, columns)
    else:
        raise Refused(f"sets attributes of a {type(target).__name__}")
