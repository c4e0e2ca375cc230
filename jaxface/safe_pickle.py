"""Reads pickles from outside without running them.

A pickle is a program. Here nothing of it runs and nothing is imported: its instructions are interpreted over lists, dicts,
tuples, numbers, bytes and text; a name stands for a function of the caller's, or is refused; and a caller says which
instructions its files need. Memory is taken for bytes that are there, never for a number in the file.
"""

import dataclasses
import pickletools
import re
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any

MAX_NAME = 200  # bytes of a module or of a function
MAX_DEPTH = 100  # marks inside each other

_ESCAPE = re.compile(rb"\\(?:x[0-9a-fA-F]{2}|[\\'\"nrt])")  # those of Python 2's repr
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class Refused(ValueError):
    """The pickle asks for more than its reader needs; the text goes on from "its pickle …" and has one line."""


class Damaged(Refused):
    """It is cut short, or no pickle."""


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """What a pickle names, `module.name`; nothing is imported for it."""

    full: str


def load(
    data: bytes,
    functions: Mapping[str, Callable[[tuple], Any] | None],
    *,
    opcodes: Collection[str],
    purpose: str,
    build: Callable[[Any, Any], None] | None = None,
    persistent: Callable[[Any], Any] | None = None,
    max_steps: int | None = None,
) -> Any:
    """What a pickle of protocol 0 to 5, or of Python 2, makes.

    Args:
      data: the pickle. What follows its end is not looked at.
      functions: every name that it may use, as `module.name` -> what a call of it means here, a function of the tuple of
        arguments; None for what is named and never called. The text and bytes that calls return may together be as long
        as `data`.
      opcodes: instructions that it may use, by their names in `pickletools`.
      purpose: what is read, for messages: "a pack".
      build: of (object, state), for BUILD; changes the object.
      persistent: of an identity, for BINPERSID; returns the object.
      max_steps: the most instructions; None for as many as there are bytes.

    Returns:
      the object. Dicts have text as keys, also where Python 2 wrote bytes; `Name` stands for a name; a bytearray comes as bytes.

    Raises:
      Refused: anything else in it.
    """
    return _Walker(data, functions, opcodes, purpose, build, persistent, max_steps).run()


def text(value: Any) -> str:
    """A short str, or the bytes that Python 2 has for one; anything else is refused."""
    if not isinstance(value, str | bytes) or len(value) > MAX_NAME:
        raise Refused(f"has a {type(value).__name__} where a name belongs")
    return value.decode("latin-1") if isinstance(value, bytes) else value


class _Walker:
    """Interprets the instructions over a stack; every method below is one, or a piece that several share."""

    def __init__(self, data, functions, opcodes, purpose, build, persistent, max_steps):
        self._data, self._at = data, 0
        self._functions, self._purpose = functions, purpose
        self._steps = [_STEPS[name] if (name := _NAMES.get(code)) in opcodes else None for code in range(256)]
        self._build_object, self._persistent = build, persistent
        self._max_steps = max_steps
        self._stack: list = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._returned = 0  # length of what calls returned

    def run(self) -> Any:
        stop = ord(".")
        for _ in range(len(self._data) if self._max_steps is None else self._max_steps):
            if self._at >= len(self._data):
                raise Damaged("is cut short")
            code = self._data[self._at]
            self._at += 1
            if code == stop:
                return self._pop()
            step = self._steps[code]
            if step is None:
                raise self._unneeded(code)
            step(self)
        if self._max_steps is None:
            raise Damaged("is cut short")
        raise Refused(f"has more than {self._max_steps} instructions")

    def _unneeded(self, code: int) -> Refused:
        if code not in _NAMES:
            return Damaged(f"has byte {code} in the place of an instruction")
        return Refused(f"uses {_NAMES[code]}, which {self._purpose} does not need")

    # Bytes of the pickle.

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise Damaged("is cut short, or claims a length beyond its end")
        self._at += count
        return self._data[self._at - count : self._at]

    def _number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _line(self, limit: int) -> bytes:
        end = self._data.find(b"\n", self._at, self._at + limit)
        if end < 0:
            raise Damaged("has a line without an end")
        line = self._data[self._at : end]
        self._at = end + 1
        return line

    def _integer(self) -> int:
        return _integer(self._line(32))

    def _unicode(self, size: int) -> None:
        try:
            self._push(self._take(self._number(size)).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise Damaged("has text that is not UTF-8") from None

    # The stack.

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _need(self) -> None:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise Damaged("has an instruction without its operands")

    def _pop(self) -> Any:
        self._need()
        return self._stack.pop()

    def _top(self) -> Any:
        self._need()
        return self._stack[-1]

    def _top_of(self, kind: type) -> Any:
        if type(self._top()) is not kind:
            raise Damaged(f"has an instruction without the {kind.__name__} it is for")
        return self._stack[-1]

    def _since_mark(self) -> list:
        if not self._marks:
            raise Damaged("has an instruction without its operands")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    # Instructions.

    def _proto(self) -> None:
        if self._number(1) > 5:
            raise Refused("has a protocol above 5")

    def _frame(self) -> None:
        if self._number(8) > len(self._data) - self._at:
            raise Damaged("is cut short")

    def _int_line(self) -> None:
        line = self._line(32)
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else _integer(line))

    def _long(self, size: int) -> None:
        count = self._number(size)
        if count > 8:
            raise Refused("has a number of more than 8 bytes")
        self._push(self._number(count, signed=True))

    def _quoted(self) -> None:
        """Python 2's repr of a str: quotes and escapes, and bytes here."""
        line = self._line(len(self._data))
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise Damaged("has a string without its quotes")
        line = line[1:-1]
        if b"\\" in _ESCAPE.sub(b"", line):
            raise Damaged("has a string with wrong escapes")
        self._push(line.decode("unicode_escape").encode("latin-1"))

    def _unicode_line(self) -> None:
        try:
            self._push(self._line(len(self._data)).decode("raw_unicode_escape"))
        except UnicodeDecodeError:
            raise Damaged("has text with wrong escapes") from None

    def _mark(self) -> None:
        if len(self._marks) >= MAX_DEPTH:
            raise Refused(f"has more than {MAX_DEPTH} things inside each other")
        self._marks.append(len(self._stack))

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def _append(self) -> None:
        value = self._pop()
        self._top_of(list).append(value)

    def _appends(self) -> None:
        values = self._since_mark()
        self._top_of(list).extend(values)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._fill(self._top_of(dict), [key, value])

    def _set_items(self) -> None:
        values = self._since_mark()
        self._fill(self._top_of(dict), values)

    def _dict(self) -> None:
        values, target = self._since_mark(), {}
        self._fill(target, values)
        self._push(target)

    def _fill(self, target: dict, values: list) -> None:
        if len(values) % 2:
            raise Damaged("has a dict with a key without a value")
        keys = values[::2]
        if not all(type(key) in (str, bytes) for key in keys):
            raise Refused(f"has a dict without names as keys, which {self._purpose} does not need")
        # Python 2 writes names as bytes.
        keys = [text(key) if type(key) is bytes else key for key in keys]
        target.update(zip(keys, values[1::2], strict=True))

    def _put(self, key: int) -> None:
        self._memo[key] = self._top()

    def _get(self, key: int) -> None:
        if key not in self._memo:
            raise Damaged("has a reference to nothing")
        self._push(self._memo[key])

    def _pop_one(self) -> None:
        # As in pickle: POP on an empty part of the stack takes the mark away.
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _global(self) -> None:
        self._name(self._line(MAX_NAME), self._line(MAX_NAME))

    def _stack_global(self) -> None:
        name = self._pop()
        self._name(self._pop(), name)

    def _name(self, module: Any, name: Any) -> None:
        full = f"{text(module)}.{text(name)}"
        if full not in self._functions:
            raise Refused(f"names {full[:80]!a}, which {self._purpose} does not need")
        self._push(Name(full))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        called = self._functions[function.full] if isinstance(function, Name) else None
        if called is None or not isinstance(arguments, tuple):
            subject = repr(function.full) if isinstance(function, Name) else f"a {type(function).__name__}"
            raise Refused(f"calls {subject}, which {self._purpose} does not need")
        value = called(arguments)
        if isinstance(value, bytes | str):
            self._returned += len(value)
            if self._returned > len(self._data):  # the same text again and again
                raise Refused("makes more bytes than it is long")
        self._push(value)

    def _build(self) -> None:
        state = self._pop()
        self._build_object(self._top(), state)

    def _persistent_id(self) -> None:
        self._push(self._persistent(self._pop()))


def _integer(line: bytes) -> int:
    digits = line.removesuffix(b"L")
    if len(digits) > 20 or not digits.removeprefix(b"-").isdigit():
        raise Damaged("has a number that is none")
    return int(digits)


_STEPS: dict[str, Callable[[_Walker], None]] = {
    "PROTO": _Walker._proto,
    "FRAME": _Walker._frame,
    "NONE": lambda w: w._push(None),
    "NEWTRUE": lambda w: w._push(True),
    "NEWFALSE": lambda w: w._push(False),
    "INT": _Walker._int_line,
    "LONG": lambda w: w._push(w._integer()),
    "BININT": lambda w: w._push(w._number(4, signed=True)),
    "BININT1": lambda w: w._push(w._number(1)),
    "BININT2": lambda w: w._push(w._number(2)),
    "LONG1": lambda w: w._long(1),
    "LONG4": lambda w: w._long(4),
    "BINFLOAT": lambda w: w._push(struct.unpack(">d", w._take(8))[0]),
    "STRING": _Walker._quoted,
    "BINSTRING": lambda w: w._push(w._take(w._number(4))),
    "SHORT_BINSTRING": lambda w: w._push(w._take(w._number(1))),
    "BINBYTES": lambda w: w._push(w._take(w._number(4))),
    "SHORT_BINBYTES": lambda w: w._push(w._take(w._number(1))),
    "BINBYTES8": lambda w: w._push(w._take(w._number(8))),
    "BYTEARRAY8": lambda w: w._push(w._take(w._number(8))),
    "UNICODE": _Walker._unicode_line,
    "BINUNICODE": lambda w: w._unicode(4),
    "SHORT_BINUNICODE": lambda w: w._unicode(1),
    "BINUNICODE8": lambda w: w._unicode(8),
    "EMPTY_LIST": lambda w: w._push([]),
    "EMPTY_DICT": lambda w: w._push({}),
    "EMPTY_TUPLE": lambda w: w._push(()),
    "MARK": _Walker._mark,
    "LIST": lambda w: w._push(w._since_mark()),
    "DICT": _Walker._dict,
    "TUPLE": lambda w: w._push(tuple(w._since_mark())),
    "TUPLE1": lambda w: w._tuple(1),
    "TUPLE2": lambda w: w._tuple(2),
    "TUPLE3": lambda w: w._tuple(3),
    "APPEND": _Walker._append,
    "APPENDS": _Walker._appends,
    "SETITEM": _Walker._set_item,
    "SETITEMS": _Walker._set_items,
    "PUT": lambda w: w._put(w._integer()),
    "BINPUT": lambda w: w._put(w._number(1)),
    "LONG_BINPUT": lambda w: w._put(w._number(4)),
    "MEMOIZE": lambda w: w._put(len(w._memo)),
    "GET": lambda w: w._get(w._integer()),
    "BINGET": lambda w: w._get(w._number(1)),
    "LONG_BINGET": lambda w: w._get(w._number(4)),
    "POP": _Walker._pop_one,
    "POP_MARK": lambda w: w._since_mark(),
    "DUP": lambda w: w._push(w._top()),
    "GLOBAL": _Walker._global,
    "STACK_GLOBAL": _Walker._stack_global,
    "REDUCE": _Walker._reduce,
    "BUILD": _Walker._build,
    "BINPERSID": _Walker._persistent_id,
}
OPCODES = frozenset(_STEPS)  # all that can be interpreted
