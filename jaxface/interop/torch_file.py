"""State dicts of `torch.save` without PyTorch, and without running anything in them.

The file is a zip archive of stored (not compressed) entries `<root>/data.pkl`, a pickle of names, shapes and strides, and
`<root>/data/<key>`, the bytes of one storage each. A pickle is a program. Of its language only the few instructions that a
dictionary of tensors needs are interpreted here, and the four names that they may call are functions of this file.
"""

import math
import pathlib
import pickletools
import struct
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxface.errors import UserError

_TYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_FUNCTIONS = (
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
)
_NAMES = {*_FUNCTIONS, *(f"torch.{name}" for name in _TYPES)}
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # protocol 2, then the magic number of before 1.6
# What a damaged archive or pickle may surface as.
_DAMAGE = (
    zipfile.BadZipFile, struct.error, ArithmeticError, AttributeError, EOFError,
    LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class Refused(Exception):
    """The file is damaged, or asks for more than a state dict needs."""


class _Name(NamedTuple):
    """What a pickle names; nothing is imported for it."""

    full: str


def read_torch(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that `torch.save` wrote (PyTorch 1.6 and later).

    Nothing in the file is run, and no memory is taken for a size it claims: a tensor is a view of the bytes that are there.

    Returns:
      name -> array of the type that was saved.

    Raises:
      UserError: no such file; not a state dict of tensors; damaged; or a pickle that needs anything else.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY))
        if start == _LEGACY:
            raise Refused(
                "is in the format of before PyTorch 1.6; save it anew: "
                f"torch.save(torch.load('{path.name}', weights_only=True), 'new.pth')"
            )
        with zipfile.ZipFile(path) as archive:
            return _state_dict(archive, path.stat().st_size)
    except Refused as error:
        raise UserError(f"weights: {path}: {error}") from None
    except OSError as error:
        raise UserError(f"weights: cannot read {path}: {error.strerror or error}") from None
    except _DAMAGE:
        raise UserError(f"weights: {path} is damaged, or not a state dict that torch.save wrote") from None


def _state_dict(archive: zipfile.ZipFile, file_size: int) -> dict[str, np.ndarray]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [
        name.removesuffix("data.pkl")
        for name in entries
        if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(roots) != 1:
        raise Refused(f"needs one data.pkl; got {len(roots)}")
    root, left = roots[0], file_size
    if f"{root}constants.pkl" in entries:
        raise Refused("is a TorchScript program; save its state_dict() instead")

    def content(name: str) -> bytes:
        nonlocal left
        entry = entries[root + name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise Refused(f"{name} is compressed, which torch.save never does")
        # Entries that overlap could otherwise ask for many times the bytes that there are.
        left -= entry.file_size
        if left < 0:
            raise Refused(f"{name} claims {entry.file_size} bytes, more than the file has")
        data = archive.read(entry)
        if len(data) != entry.file_size:
            raise Refused(f"{name} is truncated")
        return data

    if f"{root}byteorder" in entries and content("byteorder") != b"little":
        raise Refused("is big-endian; save it anew on a little-endian machine")
    storages: dict[str, np.ndarray] = {}

    def storage(identity: Any) -> np.ndarray:
        kind, name, key, _, count = identity
        if kind != "storage" or not isinstance(name, _Name) or not isinstance(key, str):
            raise Refused("names a storage in an unknown way")
        dtype = _TYPES[name.full.removeprefix("torch.")]
        if key not in storages:
            data = content(f"data/{key}")
            if type(count) is not int or count * dtype.itemsize != len(data):
                raise Refused(f"storage {key} claims {count} elements of {dtype} in {len(data)} bytes")
            storages[key] = np.frombuffer(data, dtype)
        if storages[key].dtype != dtype:
            raise Refused(f"storage {key} is of two types")
        return storages[key]

    state = _interpret(content("data.pkl"), storage)
    if not isinstance(state, dict):
        raise Refused("needs a state dict; save module.state_dict()")
    for name, tensor in state.items():
        if not isinstance(tensor, np.ndarray):
            kind = "a dict" if isinstance(tensor, dict) else type(tensor).__name__
            raise Refused(f"needs a state dict of tensors alone; {name!r} is {kind}")
    return state


def _interpret(data: bytes, storage) -> Any:
    """What a pickle builds, from the instructions that a state dict needs and no others."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each mark
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                below.append(stack)
                stack = []
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                items = above_mark()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                items = [stack.pop() for _ in range(count)]
                stack.append(tuple(reversed(items)))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(module, name))
            case "BINPERSID":
                stack.append(storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _fill(stack[-1], [key, value])
            case "SETITEMS":
                items = above_mark()
                _fill(stack[-1], items)
            case "BUILD":
                # The attributes of an OrderedDict: `_metadata`, versions of modules.
                if not isinstance(stack.pop(), dict) or not isinstance(stack[-1], dict):
                    raise Refused("sets attributes of something that is no state dict")
            case other:
                raise Refused(f"its pickle uses {other}, which a state dict of tensors does not need")
    raise Refused("its pickle does not end")


def _name(module: str, name: str) -> _Name:
    full = f"{module}.{name}"
    if full not in _NAMES:
        raise Refused(f"its pickle names {full[:80]!r}, which a state dict of tensors does not need")
    return _Name(full)


def _call(function: Any, arguments: Any) -> Any:
    match function:
        case _Name("collections.OrderedDict") if arguments == ():
            return {}
        case _Name("torch._utils._rebuild_tensor_v2"):
            return _tensor(*arguments[:4])
        case _Name("torch._utils._rebuild_parameter") if isinstance(arguments[0], np.ndarray):
            return arguments[0]
    raise Refused("its pickle calls something in a way that torch.save does not")


def _fill(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or not all(isinstance(key, str) for key in items[::2]):
        raise Refused("needs dicts with names as keys")
    target.update(zip(items[::2], items[1::2], strict=True))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, np.ndarray) or not all(type(n) is int and n >= 0 for n in numbers):
        raise Refused("describes a tensor in an unknown way")
    count = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    # No more elements than the storage has: an expanded tensor would be as large as it claims once it is copied.
    if count > storage.size or (count and last >= storage.size):
        raise Refused(f"a tensor of shape {shape} goes past its storage of {storage.size} elements")
    if not count:
        return np.zeros(shape, storage.dtype)
    steps = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
